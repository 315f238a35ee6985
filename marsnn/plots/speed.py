"""Speed: what each neuron takes beside the others and beside a copy of the memory that it must touch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from marsnn.errors import InputError
from marsnn.plots.style import INK, LIGHT, NEGATIVE, POSITIVE, axes_or_new, legend_above

OURS, STEPWISE, PEER = POSITIVE, "#56B4E9", "#E69F00"


def speed_bars(result: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Forward and backward of every neuron, in copies of currents, spikes and both gradients.

    One bar for each contestant under its model, the quartiles over rounds as its error bar; 1 is the floor.

    Args:
        result: of `marsnn bench neurons`, as its JSON holds it.
        ax: where to draw; a new figure if None.

    Returns:
        The axes: multiples of the floor, logarithmic.

    Raises:
        InputError: not such a result.
    """
    rows = _rows(result, "speed")
    ax = axes_or_new(ax, 7.4, 0.24 * len(rows) + 1.2)
    ax.set_xscale("log")
    place, places, labels = 0.0, [], []
    for number, row in enumerate(rows):
        if number and row["model"] != rows[number - 1]["model"]:
            place += 0.6
        ratio = row["both_to_copies"]
        middle = ratio["median"]
        ax.barh(
            place, middle, left=0, height=0.85, color=_color(row), ecolor=INK,
            xerr=[[middle - ratio["low"]], [ratio["high"] - middle]], error_kw={"elinewidth": 0.8},
        )  # fmt: skip
        ax.annotate(
            f"{middle:.1f}", (ratio["high"], place), xytext=(3, 0), textcoords="offset points", va="center",
            fontsize=6.5, color=INK,
        )  # fmt: skip
        places.append(place)
        labels.append(row["what"] if row["library"] == "marsnn" else f"{row['library']} {row['what']}")
        place += 1
    ax.set_yticks(places, labels, fontsize=7)
    ax.invert_yaxis()
    ax.axvline(1, color=INK, linestyle=(0, (5, 3)), linewidth=1.0)
    ax.set_xlim(0.5, 1.6 * max(row["both_to_copies"]["high"] for row in rows))
    _plain(ax.xaxis)
    ax.set_xlabel("forward + backward, in copies of currents, spikes and both gradients")
    ax.grid(axis="x", color=LIGHT, linewidth=0.5)
    ax.set_axisbelow(True)
    named = {"marsnn": OURS, "marsnn, step by step": STEPWISE, "other libraries": PEER}
    legend_above(ax, handles=[Patch(color=color) for color in named.values()],
                 labels=list(named))  # fmt: skip
    return ax


def speed_scaling(result: Mapping[str, Any], axis: str = "T", ax: Axes | None = None) -> Axes:
    """Nanoseconds per neuron and step over T or N: flat where the cost is linear.

    Args:
        result: of `marsnn bench neurons`.
        axis: "T" or "N".
        ax: where to draw; a new figure if None.

    Returns:
        The axes, both logarithmic.

    Raises:
        InputError: not such a result, or another axis.
    """
    if axis not in ("T", "N"):
        raise InputError(f'axis must be "T" or "N", got {axis!r}')
    rows = _rows(result, f"over_{axis}")
    ax = axes_or_new(ax, 4.5, 3.2)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model, color in zip(models, (POSITIVE, NEGATIVE, "#009E73", "#CC79A7"), strict=False):
        own = [row for row in rows if row["model"] == model]
        for part, style in (("forward", (0, (2, 1.5))), ("both", "-")):
            _line(
                ax, own, axis, part, color, style, f"{model} {'fwd + bwd' if part == 'both' else 'forward'}"
            )
    _line(ax, [row for row in rows if row["model"] == models[0]], axis, "copy", INK, ":", "one copy")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    _plain(ax.yaxis)
    fixed = f"N = {result['N']:,}" if axis == "T" else f"T = {result['T']}"
    ax.set_xlabel(f"{axis}, at {fixed}")
    ax.set_ylabel("ns per neuron and step")
    ax.grid(color=LIGHT, linewidth=0.5)
    return ax


def speed_panels(result: Mapping[str, Any]) -> Axes:
    """A new figure: `speed_bars` beside `speed_scaling` over T and over N.

    Returns:
        The axes of the bars; `marsnn.plots.files.save_figure` takes them for the whole figure.
    """
    height = 0.2 * len(_rows(result, "speed")) + 1.6
    figure, axes = plt.subplot_mosaic(
        [["bars", "T"], ["bars", "N"]], figsize=(12.0, height), width_ratios=(1.3, 1), layout="constrained"
    )
    speed_scaling(result, "N", axes["N"])
    legend_above(speed_scaling(result, "T", axes["T"]), ncols=3)
    bars = speed_bars(result, axes["bars"])
    assert bars.figure is figure
    return bars


def _rows(result: Mapping[str, Any], part: str) -> Sequence[Any]:
    rows = result.get(part) if isinstance(result, Mapping) else None
    if not rows:
        raise InputError(f"no rows {part!r}; expected what `marsnn bench neurons --save` writes")
    return rows  # type: ignore[no-any-return]


def _color(row: Mapping[str, Any]) -> str:
    if row["library"] != "marsnn":
        return PEER
    return OURS if row["what"] == row["model"] else STEPWISE


def _line(
    ax: Axes, rows: Sequence[Mapping[str, Any]], axis: str, part: str, color: str, style: Any, label: str
) -> None:
    of = [row[f"{part}_ns"] for row in rows]
    x = [row[axis] for row in rows]
    ax.fill_between(x, [each["low"] for each in of], [each["high"] for each in of], color=color, alpha=0.15,
                    linewidth=0)  # fmt: skip
    ax.plot(x, [each["median"] for each in of], color=color, linestyle=style, marker=".", label=label)


def _plain(axis: Any) -> None:
    """Numbers such as 0.5, 1, 2, 20 on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
