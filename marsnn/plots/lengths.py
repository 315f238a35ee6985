"""A mixer over the length of a sequence: time and memory, each beside others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from marsnn.errors import InputError
from marsnn.plots.style import INK, LIGHT, NEGATIVE, POSITIVE, axes_or_new, legend_above

COLORS = {
    "SSD": POSITIVE,
    "SSD, torch": "#56B4E9",
    "SSD, steps": "#CC79A7",
    "Mamba2Mixer": NEGATIVE,
    "attention": "#009E73",
    "mambapy": "#B8860B",
    "projections": INK,
}


def over_length(result: Mapping[str, Any], what: str = "time", ax: Axes | None = None) -> Axes:
    """Time or memory of forward and backward over L, both axes logarithmic: straight lines are powers.

    Args:
        result: of `marsnn bench ssm`, as its JSON holds it.
        what: "time" in ms per 1,000 tokens, flat where the cost is linear, or "memory" in MB.
        ax: where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        InputError: not such a result, or another quantity.
    """
    if what not in ("time", "memory"):
        raise InputError(f'what must be "time" or "memory", got {what!r}')
    rows = result.get("whole" if what == "time" else "memory") if isinstance(result, Mapping) else None
    if not rows:
        raise InputError("no rows over L; expected what `marsnn bench ssm --save` writes")
    ax = axes_or_new(ax, 5.2, 3.6)
    for name, color in COLORS.items():
        own = [row for row in rows if row["what"] == name]
        if what == "memory":
            own = [row for row in own if row["extra_mb"] is not None]
        if own:
            _line(ax, own, what, name, color)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("L, tokens of a sequence")
    ax.set_ylabel(f"{'ms per 1,000 tokens' if what == 'time' else 'MB'}, forward + backward")
    ax.grid(color=LIGHT, linewidth=0.5)
    ax.set_axisbelow(True)
    return ax


def length_panels(result: Mapping[str, Any]) -> Axes:
    """A new figure: `over_length` of time beside that of memory.

    Returns:
        The axes of time; `marsnn.plots.files.save_figure` takes them for the whole figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9), layout="constrained")
    over_length(result, "memory", right)
    legend_above(over_length(result, "time", left), ncols=4)
    assert left.figure is figure
    return left


def _line(ax: Axes, rows: Sequence[Mapping[str, Any]], what: str, name: str, color: str) -> None:
    lengths = [row["L"] for row in rows]
    style = ":" if name == "projections" else "-"
    if what == "memory":
        ax.plot(
            lengths, [row["extra_mb"] for row in rows], color=color, marker=".", linestyle=style, label=name
        )
        return
    times = [[1000 * row["both_ms"][key] / row["L"] for row in rows] for key in ("low", "median", "high")]
    ax.fill_between(lengths, times[0], times[2], color=color, alpha=0.15, linewidth=0)
    ax.plot(lengths, times[1], color=color, marker=".", linestyle=style, label=name)
