"""energy_bars: what the spikes cost beside the dense network, for each table of constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes

from marsnn.errors import InputError
from marsnn.plots.style import INK, LIGHT, POSITIVE, axes_or_new, legend_above

UNITS = (("J", 1e12), ("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3), ("pJ", 1.0))


class Total(Protocol):
    """One table's sums, as an EnergyReport holds them."""

    @property
    def spiking_pj(self) -> float: ...

    @property
    def dense_pj(self) -> float | None: ...

    @property
    def ratio(self) -> float | None: ...


class Totals(Protocol):
    """Anything with totals by table: an EnergyReport."""

    @property
    def totals(self) -> Mapping[str, Total]: ...


def energy_bars(report: Totals, ax: Axes | None = None) -> Axes:
    """Energy per token of the spiking and the dense network under each table, on a logarithmic axis.

    Estimated from counted operations, as the report is. The two bars of a table are at that table's own
    precision. Each bar has its energy at its end, the spiking one also its ratio to dense; a table without
    a dense figure says "dense n/a".

    Args:
        report: an EnergyReport.
        ax: where to draw; a new figure if None.

    Returns:
        The axes, in pJ, first table on top.

    Raises:
        InputError: the report has no tables.
    """
    if not report.totals:
        raise InputError("this report has no energy tables; make it with at least one")
    names = list(report.totals)
    spiking = [report.totals[name].spiking_pj for name in names]
    dense = [report.totals[name].dense_pj for name in names]
    ax = axes_or_new(ax, 7.0, float(np.clip(1.2 + 0.55 * len(names), 2.0, 12.0)))
    drawn = [energy for energy in (*spiking, *dense) if energy]
    low, high = (min(drawn), max(drawn)) if drawn else (1.0, 1.0)
    floor = 10.0 ** (np.floor(np.log10(low)) - 1)
    ax.set_xscale("log")
    for offset, energies, color, label in (
        (-0.2, spiking, POSITIVE, "spiking"),
        (0.2, dense, LIGHT, "dense, same precision"),
    ):
        # from the axis' left end, for a logarithmic bar has no zero to start from
        widths = [max((energy or floor) - floor, 0.0) for energy in energies]
        ax.barh(np.arange(len(names)) + offset, widths, left=floor, height=0.38, color=color, label=label)
    for y, total in enumerate(report.totals.values()):
        ratio = "" if total.ratio is None else f"  ({total.ratio:.3g} of dense)"
        _write(ax, total.spiking_pj or floor, y - 0.2, energy_text(total.spiking_pj) + ratio)
        dense_text = "dense n/a" if total.dense_pj is None else energy_text(total.dense_pj)
        _write(ax, total.dense_pj or floor, y + 0.2, dense_text)
    ax.set_yticks(np.arange(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(floor, high * (high / floor) ** 0.35)  # room for the numbers
    ax.set_xlabel("estimated energy per token [pJ], logarithmic")
    legend_above(ax)
    return ax


def energy_text(energy_pj: float) -> str:
    """Three digits and the unit that fits: 1.23 nJ."""
    unit, size = next(((unit, size) for unit, size in UNITS if energy_pj >= size), UNITS[-1])
    return f"{energy_pj / size:.3g} {unit}"


def _write(ax: Axes, x: float, y: float, text: str) -> None:
    """Beside the end of a bar."""
    ax.annotate(
        text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize="small", color=INK
    )  # fmt: skip
