"""core_map: where a network lies on a chip, how full its cores are, and what passes between its tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from marsnn.errors import InputError
from marsnn.plots.style import INK, LIGHT, NEGATIVE, POSITIVE, axes_or_new

COLORS = (POSITIVE, NEGATIVE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#B0A800")
"""Of up to eight stages; more take their colours from viridis, in their order."""
TILE = 0.64
"""Side of a tile, in the distance of two."""
WIDEST = 7.0
"""Points, of the busiest link."""
MOST_LISTED = 23
LISTED_A_COLUMN = 12


class Placed(Protocol):
    """Anything that tells a placement: a Placement."""

    def to_dict(self) -> dict[str, Any]: ...


def core_map(placement: Placed | Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """The mesh of tiles with their cores: colour and number by stage, filled as far as their fullest limit.

    A line between two tiles is as wide as the messages that pass there, per token, both directions.

    Args:
        placement: a Placement, or what its `to_dict()` gives.
        ax: where to draw; a new figure if None.

    Returns:
        The axes, a tile a unit, the first row on top.

    Raises:
        InputError: no placement, or one that does not fit and so has no cores.
    """
    told = placement if isinstance(placement, Mapping) else _told(placement)
    if not told.get("placed"):
        refusals = "; ".join(told.get("refusals", ())) or "expected what place() gives"
        raise InputError(f"no cores to draw: {refusals}")
    mesh = told["mesh"]
    columns, rows = mesh["columns"], mesh["rows"]
    stages = [stage for stage in told["stages"] if stage["cores"]]
    side = 0.85 if mesh["cores_per_tile"] > 1 else 0.55  # inches
    lists = -(-(min(len(stages), MOST_LISTED) + 1) // LISTED_A_COLUMN)
    ax = axes_or_new(
        ax, min(side * columns, 14.0) + 0.9 + 2.7 * lists, float(np.clip(side * rows + 0.9, 3.6, 14.0))
    )
    numbers = {stage["name"]: number for number, stage in enumerate(stages, 1)}
    colors = _colors(len(stages))
    busiest = _draw_links(ax, told["links"])
    _draw_tiles(ax, mesh, told["cores"])
    for core in told["placed"]:
        number = numbers[core["stage"]]
        _draw_core(ax, mesh, core, number, colors[number - 1])
    _list(ax, told, stages, colors, busiest, lists)
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    per_tile = mesh["cores_per_tile"]
    ax.set_xlabel(
        f"{told['profile']}: {told['cores_used']} of {told['cores']} cores, "
        f"{columns} x {rows} tiles of {per_tile}\n"
        "filled: the fullest limit of a core; lines: messages between tiles"
    )
    return ax


def _told(placement: object) -> Mapping[str, Any]:
    tell = getattr(placement, "to_dict", None)
    told = tell() if callable(tell) else None
    if not isinstance(told, Mapping):
        raise InputError(f"expected a Placement, got {type(placement).__name__}; call place()")
    return told


def _colors(count: int) -> list[Any]:
    if count <= len(COLORS):
        return list(COLORS[:count])
    return list(plt.get_cmap("viridis")(np.linspace(0.0, 1.0, count)))


def _cell(mesh: Mapping[str, Any], core: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a core; y grows downward."""
    per_tile = mesh["cores_per_tile"]
    across = int(np.ceil(np.sqrt(per_tile)))
    down = -(-per_tile // across)
    tile, own = divmod(core, per_tile)
    row, column = divmod(tile, mesh["columns"])
    width, height = TILE / across, TILE / down
    left = column - TILE / 2 + own % across * width
    return left, row - TILE / 2 + (own // across + 1) * height, width, height


def _draw_tiles(ax: Axes, mesh: Mapping[str, Any], cores: int) -> None:
    """Every core that can be used, empty."""
    frames = []
    for core in range(cores):
        left, bottom, width, height = _cell(mesh, core)
        frames.append(Rectangle((left, bottom - height), width, height))
    ax.add_collection(PatchCollection(frames, facecolor="white", edgecolor=LIGHT, linewidth=0.6, zorder=2))


def _draw_core(ax: Axes, mesh: Mapping[str, Any], core: Mapping[str, Any], number: int, color: Any) -> None:
    left, bottom, width, height = _cell(mesh, core["core"])
    filled = max(core["filled"].values())
    ax.add_patch(
        Rectangle((left, bottom - height), width, height, color=color, alpha=0.25, linewidth=0, zorder=3)
    )
    ax.add_patch(
        Rectangle(
            (left, bottom - filled * height), width, filled * height, color=color, linewidth=0, zorder=3
        )
    )
    ax.add_patch(
        Rectangle(
            (left, bottom - height), width, height, fill=False, edgecolor="white", linewidth=1.0, zorder=4
        )
    )
    text = ax.text(left + width / 2, bottom - height / 2, str(number), ha="center", va="center", zorder=5,
                   color=INK, fontsize="x-small")  # fmt: skip
    text.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "boxstyle": "round,pad=0.15"})


def _draw_links(ax: Axes, links: list[Mapping[str, Any]]) -> float:
    """Lines between the tiles; gives the messages of the busiest."""
    busiest = max((float(link["messages"]) for link in links), default=0.0)
    if busiest > 0:
        widths = [max(WIDEST * link["messages"] / busiest, 0.4) for link in links]
        ends = [(link["a"], link["b"]) for link in links]
        ax.add_collection(LineCollection(ends, linewidths=widths, colors=INK, zorder=1, capstyle="butt"))
    return busiest


def _list(
    ax: Axes, told: Mapping[str, Any], stages: list[Any], colors: list[Any], busiest: float, lists: int
) -> None:
    """Beside the mesh: number, name, cores and what each stage sends."""
    sent: dict[str, float] = {}
    for edge in told["edges"]:
        sent[edge["source"]] = sent.get(edge["source"], 0.0) + edge["messages"]
    entries: list[tuple[Any, str]] = []
    for number, (stage, color) in enumerate(zip(stages, colors, strict=True), 1):
        name = stage["name"] if len(stage["name"]) <= 18 else "~" + stage["name"][-17:]
        cores = f"{stage['cores']} core{'s' if stage['cores'] > 1 else ''}"
        tells = f", sends {sent[stage['name']]:,.0f}" if stage["name"] in sent else ""
        entries.append((Patch(color=color), f"{number}  {name}: {cores}{tells}"))
    if len(entries) > MOST_LISTED:
        left = len(entries) - MOST_LISTED + 1
        entries = [*entries[: MOST_LISTED - 1], (Patch(alpha=0), f"and {left} more")]
    if busiest > 0:
        line = Line2D([], [], color=INK, linewidth=WIDEST)
        entries.append((line, f"busiest link: {busiest:,.0f}"))
    handles, labels = zip(*entries, strict=True)
    ax.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small",
        ncols=lists, title="per token", title_fontsize="small", alignment="left", borderaxespad=0.2,
    )  # fmt: skip
