"""Distillation in pictures: how quality comes back with tokens, and what each arm of an ablation reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from marsnn.errors import InputError
from marsnn.intervals import interval
from marsnn.plots.style import INK, LIGHT, NEGATIVE, POSITIVE, axes_or_new, legend_above

COLORS = (POSITIVE, NEGATIVE, INK, "#009E73")
END = "_bits_per_byte"


def recovery_curve(
    course: Sequence[Mapping[str, Any]], dense: Mapping[str, float], ax: Axes | None = None
) -> Axes:
    """What a student is behind its teacher by, against the tokens that it has learnt from.

    Args:
        course: of `refinement["distillation"]["course"]`, with looks at held-out text (`curve_every`).
        dense: text -> the teacher's bits per byte.
        ax: where to draw; a new figure if None.

    Raises:
        InputError: nobody looked.
    """
    looks = [each for each in course if "seen_tokens" in each]
    if not looks:
        raise InputError("no looks at held-out text to draw; learn with curve_every")
    ax = axes_or_new(ax, 6.4, 3.2)
    tokens = [each["seen_tokens"] / 1e6 for each in looks]
    for (text, own), color in zip(dense.items(), COLORS, strict=False):
        behind = [100 * (each[text + END] / own - 1) for each in looks]
        ax.plot(
            tokens, behind, "-o", markersize=4, color=color, label=f"{text}, {behind[-1]:+.1f} % at the end"
        )
    ax.axhline(0, color=LIGHT, linewidth=0.8)
    ax.set_xlabel("tokens learnt from, millions")
    ax.set_ylabel("bits per byte\nabove the teacher's, %")
    legend_above(ax)
    return ax


def arm_intervals(result: Mapping[str, Any], table: str, ax: Axes | None = None) -> Axes:
    """Bits per byte of each arm of a table: seeds as dots, their mean with its 95 % interval, the teacher's.

    Args:
        result: of `marsnn bench distillation`.   table: one of its tables.
        ax: where to draw; a new figure if None.

    Raises:
        InputError: no such table.
    """
    if table not in result.get("tables", {}):
        raise InputError(f"no table {table!r}; there are {', '.join(result.get('tables', {})) or 'none'}")
    text = result["settings"]["held_out"][0]
    arms = result["tables"][table]
    ax = axes_or_new(ax, 6.4, 1.0 + 0.3 * len(arms))
    for place, key in enumerate(arms.values()):
        values = [each["texts"][text]["bits_per_byte"] for each in result["cells"][key]["seeds"].values()]
        found = interval(values)
        ax.errorbar(found.mean, place, xerr=found.half, fmt="|", color=INK, markersize=10, capsize=3)
        ax.plot(values, [place] * len(values), ".", color=POSITIVE, markersize=5)
    ax.axvline(result["teacher"]["texts"][text]["bits_per_byte"], color=NEGATIVE, linewidth=1)
    ax.set_yticks(range(len(arms)), list(arms), fontsize="small")
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.set_xlabel(f"{text}, bits per byte (vermilion: the teacher)")
    return ax
