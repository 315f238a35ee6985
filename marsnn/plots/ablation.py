"""accuracy_energy: what each neuron reaches for what it costs, T by T, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from marsnn.errors import InputError
from marsnn.plots.style import INK, LIGHT, axes_or_new, legend_above
from marsnn.tidy import Group, Row, summarize

# Okabe and Ito (2008), with a shape to each: told apart without colour too. (fill, ink of the T on it)
COLORS = (
    ("#0072B2", "white"), ("#D55E00", "white"), ("#009E73", "white"), ("#CC79A7", "black"),
    ("#56B4E9", "black"), ("#E69F00", "black"), ("#333333", "white"), ("#F0E442", "black"),
)  # fmt: skip
SHAPES = "osDhp8Hd"
DENSE = "dense twin, same precision"


def accuracy_energy(rows: Sequence[Row], table: str = "45nm-fp32", ax: Axes | None = None) -> Axes:
    """Accuracy on the test part against estimated energy per inference, on a logarithmic axis.

    A point for each neuron and T, T written in it, a line through the T of one neuron; bars are the 95 %
    confidence intervals over seeds. The dashed line is the energy of the dense twin at the same precision;
    its accuracy is not measured.

    Args:
        rows: of an ablation, `marsnn.tidy.read_table(path)` or `Ablation.rows`; of one task.
        table: the table of energies, one that the rows have a column for.
        ax: where to draw; a new figure if None.

    Returns:
        The axes: nJ, percent.

    Raises:
        InputError: no rows of an ablation, several tasks, or no such table.
    """
    groups = summarize(rows)
    if len({group.task for group in groups}) > 1:
        raise InputError("the rows are of several tasks; draw one at a time")
    known = list(groups[0].energy_pj)
    if any(table not in group.energy_pj for group in groups):
        raise InputError(f"the rows have no energies of a table {table!r}; they have {', '.join(known)}")
    ax = axes_or_new(ax, 7.0, 4.6)
    ax.set_xscale("log")
    series: dict[str, list[Group]] = {}
    for group in groups:
        series.setdefault(_label(group), []).append(group)
    for place, (label, own) in enumerate(series.items()):
        _draw(ax, label, sorted(own, key=lambda group: group.steps), table, place)
    if dense := groups[0].dense_pj.get(table):
        ax.axvline(dense / 1000, color=INK, linestyle=(0, (5, 3)), linewidth=1.2, zorder=1, label=DENSE)
    ax.set_xlabel(f"estimated energy per inference [nJ], {table}, logarithmic")
    ax.set_ylabel("accuracy on the test part [%]")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0), numticks=12))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", color=LIGHT, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.margins(x=0.08)
    legend_above(ax)
    return ax


def _label(group: Group) -> str:
    axes = (("tau", group.tau), ("surrogate", group.surrogate))
    told = [
        value if name == "surrogate" else f"{name} {value:g}" for name, value in axes if value is not None
    ]
    return ", ".join([group.neuron, *map(str, told)])


def _draw(ax: Axes, label: str, groups: list[Group], table: str, place: int) -> None:
    color, ink = COLORS[place % len(COLORS)]
    shape = SHAPES[place % len(SHAPES)]
    above = 3 + place / 100  # a marker that covers another covers its T too
    energies = [group.energy_pj[table] for group in groups]
    x = np.array([energy.mean for energy in energies]) / 1000
    y = 100 * np.array([group.accuracy.mean for group in groups])
    ax.errorbar(
        x, y,
        xerr=[(energy.half or 0.0) / 1000 for energy in energies],
        yerr=[100 * (group.accuracy.half or 0.0) for group in groups],
        color=color, linestyle="none", elinewidth=0.9, capsize=2.0, alpha=0.55, zorder=2,
    )  # fmt: skip
    ax.plot(
        x, y, color=color, linewidth=1.4, marker=shape, markersize=10, markeredgecolor="white",
        markeredgewidth=0.8, label=label, zorder=above,
    )  # fmt: skip
    for group, at_x, at_y in zip(groups, x, y, strict=True):
        ax.annotate(
            str(group.steps), (at_x, at_y), ha="center", va="center_baseline", fontsize=6.5, color=ink,
            fontweight="bold", zorder=above,
        )  # fmt: skip


def accuracy_energy_panels(rows: Sequence[Row], tables: Sequence[str] = ("45nm-fp32", "45nm-int8")) -> Axes:
    """A new figure with one `accuracy_energy` for each table, since no two precisions stand in one.

    Returns:
        The first axes; `marsnn.plots.files.save_figure` takes them for the whole figure.
    """
    figure, panels = plt.subplots(
        1, len(tables), sharey=True, squeeze=False, figsize=(1 + 5 * len(tables), 4.8), layout="constrained"
    )
    for table, ax in zip(tables, panels[0], strict=True):
        accuracy_energy(rows, table, ax).label_outer()
        ax.get_legend().remove()
    first: Axes = panels[0, 0]
    handles, labels = first.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=7, frameon=False, fontsize="small",
        title="T is written in the markers; bars are 95 % confidence intervals over seeds",
        title_fontsize="small",
    )  # fmt: skip
    return first
