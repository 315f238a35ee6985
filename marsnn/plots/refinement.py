"""A refinement in pictures: what was planned, what is left of the quality, what a token costs by context."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from marsnn.errors import InputError
from marsnn.plots.style import INK, LIGHT, NEGATIVE, POSITIVE, axes_or_new, legend_above

CYCLE = (INK, LIGHT, POSITIVE, "#009E73", NEGATIVE, "#CC79A7", "#B8860B", "#56B4E9")
"""One colour a checkpoint, in the order of the rows; the dense one is ink."""


def plan_bars(plan: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """What each attention is worth, and what becomes of it.

    Args:
        plan: of `Plan.to_dict()`.
        ax: where to draw; a new figure if None.

    Returns:
        The axes: what the model's predictions move by without each attention, logarithmic; blue where a state
        space layer takes its place; the mark is the score that decided, that times the share of the
        attention's output which a fit without training misses.

    Raises:
        InputError: not such a plan.
    """
    layers = plan.get("layers") if isinstance(plan, Mapping) else None
    if not layers:
        raise InputError("no layers to draw; expected what Plan.to_dict() gives")
    ax = axes_or_new(ax, 8.0, 3.2)
    costs = [each["scores"].get("ablation_kl", 0.0) for each in layers]
    floor = max(1e-6, 0.2 * min((cost for cost in costs if cost > 0), default=1.0))
    for chosen, color, label in (
        ("ssm", POSITIVE, "becomes state space layer"), ("attention", LIGHT, "stays attention")
    ):  # fmt: skip
        own = [each for each in layers if each["choice"] == chosen]
        heights = [max(each["scores"].get("ablation_kl", 0.0), floor) for each in own]
        ax.bar([each["layer"] for each in own], heights, color=color, label=label)
    scored = [each for each in layers if "fit_error" in each["scores"]]
    left = [
        max(each["scores"]["ablation_kl"] * min(each["scores"]["fit_error"], 1.0), floor) for each in scored
    ]
    ax.plot(
        [each["layer"] for each in scored], left, "_", color=NEGATIVE, markersize=9, markeredgewidth=2,
        label="times what a fit misses: the score",
    )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylim(floor, None)
    ax.set_xlim(-0.7, len(layers) - 0.3)
    ax.set_xlabel(f"layer (by {plan.get('policy', '')}, budget {plan.get('budget', '')})")
    ax.set_ylabel("predictions without it\n[KL, nats]")
    legend_above(ax)
    return ax


def quality_bars(report: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Bits per byte of every checkpoint on every text.

    Args:
        report: of `Evaluation.to_dict()`.   ax: where to draw; a new figure if None.

    Raises:
        InputError: not such a report.
    """
    rows = _rows(report)
    sources = list(next(iter(rows.values()))["texts"])
    ax = axes_or_new(ax, 8.0, 1.2 + 0.3 * len(rows) * len(sources))
    height = 0.8 / len(rows)
    for number, ((name, row), color) in enumerate(zip(rows.items(), _colors(rows), strict=True)):
        values = [row["texts"][source]["bits_per_byte"] for source in sources]
        places = np.arange(len(sources)) + (number - (len(rows) - 1) / 2) * height
        ax.barh(places, values, height=0.9 * height, color=color, label=name)
        for place, value in zip(places, values, strict=True):
            ax.annotate(f"{value:.3f}", (value, place), (3, 0), textcoords="offset points", va="center",
                        fontsize="x-small", color=INK)  # fmt: skip
    ax.set_yticks(range(len(sources)), [source[-18:] for source in sources])
    ax.set_ylim(len(sources) - 0.5, -0.5)
    ax.margins(x=0.12)
    ax.set_xlabel(f"bits per byte, context {report['settings']['context']:,}")
    legend_above(ax, ncols=3)
    return ax


def energy_curves(report: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Energy of a token in the dense Transformer's, over the context: fp32 solid, int8 dotted.

    Args:
        report: of `Evaluation.to_dict()`.   ax: where to draw; a new figure if None.

    Raises:
        InputError: not such a report.
    """
    rows = _rows(report)
    ax = axes_or_new(ax, 5.2, 3.6)
    for (name, row), color in zip(rows.items(), _colors(rows), strict=True):
        if not row["energy"]:
            continue
        contexts = [int(context) for context in row["energy"]]
        for table, style, label in (("45nm-fp32", "-", name), ("45nm-int8", ":", None)):
            shares = [row["energy"][str(context)][f"{table} ratio"] for context in contexts]
            ax.plot(contexts, shares, style, color=color, marker=".", label=label)
    ax.set_xscale("log", base=2)
    ax.set_ylim(0, None)
    ax.set_xlabel("context [tokens]")
    ax.set_ylabel("estimated energy of a token,\nin the dense model's (int8 dotted)")
    ax.grid(color=LIGHT, linewidth=0.5)
    ax.set_axisbelow(True)
    legend_above(ax, ncols=2)
    return ax


def layer_curves(report: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """How far the stream behind each layer is from the teacher's.

    Args:
        report: of `Evaluation.to_dict()`, with a teacher.   ax: where to draw; a new figure if None.

    Raises:
        InputError: nothing was compared with a teacher.
    """
    rows = _rows(report)
    compared = {name: row["layers"] for name, row in rows.items() if row.get("layers")}
    if not compared:
        raise InputError("no errors of layers; evaluate against a teacher")
    ax = axes_or_new(ax, 5.2, 3.6)
    for name, color in zip(rows, _colors(rows), strict=True):
        if name in compared:
            ax.plot(np.maximum(compared[name], 1e-12), color=color, marker=".", label=name)
    ax.set_yscale("log")
    ax.set_ylim(1e-5 * max(max(each) for each in compared.values()), None)  # rounding is below
    ax.set_xlabel("layer")
    ax.set_ylabel("squared error of its output,\nin the square of the teacher's")
    ax.grid(color=LIGHT, linewidth=0.5)
    ax.set_axisbelow(True)
    legend_above(ax, ncols=2)
    return ax


def rate_map(rates: Mapping[str, float], ax: Axes | None = None) -> Axes:
    """Spikes per neuron and step of every layer and site.

    Args:
        rates: by "layer.site", of a row of a report.   ax: where to draw; a new figure if None.

    Raises:
        InputError: no rates.
    """
    if not rates:
        raise InputError("no firing rates; the model has no spikes")
    sites = list(dict.fromkeys(name.partition(".")[2] for name in rates))
    layers = 1 + max(int(name.partition(".")[0]) for name in rates)
    grid = np.full((len(sites), layers), np.nan)
    for name, rate in rates.items():
        layer, _, site = name.partition(".")
        grid[sites.index(site), int(layer)] = rate
    ax = axes_or_new(ax, 8.0, 2.0)
    picture = ax.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    ax.set_yticks(range(len(sites)), sites)
    ax.set_xlabel("layer")
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(picture, ax=ax, label="spikes per\nneuron and step")
    return ax


def pictures(report: Mapping[str, Any]) -> list[str]:
    """The pictures of a report, each an SVG to put into a page."""
    rows = _rows(report)
    drawn = [quality_bars(report)]
    if any(row["energy"] for row in rows.values()):
        drawn.append(energy_curves(report))
    if any(row.get("layers") for row in rows.values()):
        drawn.append(layer_curves(report))
    drawn += [rate_map(row["rates"]) for row in rows.values() if row["rates"]]
    plan = (report.get("refinement") or {}).get("plan")
    if plan:
        drawn.append(plan_bars(plan))
    return [_svg(ax) for ax in drawn]


def _rows(report: Mapping[str, Any]) -> dict[str, Any]:
    rows = report.get("rows") if isinstance(report, Mapping) else None
    if not rows:
        raise InputError("no rows to draw; expected what Evaluation.to_dict() gives")
    return dict(rows)


def _colors(rows: Mapping[str, Any]) -> list[str]:
    return [CYCLE[number % len(CYCLE)] for number in range(len(rows))]


def _svg(ax: Axes) -> str:
    figure = ax.get_figure(root=True)
    assert figure is not None
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
