"""raster: the spikes of every layer over time, one band a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from marsnn.errors import InputError
from marsnn.plots.style import (
    INK,
    NEGATIVE,
    POSITIVE,
    array_of,
    axes_or_new,
    check_recording,
    index_in,
    legend_above,
    spikes_label,
    step_ruler,
)
from marsnn.record import Recording

SMALLEST_SHARE = 0.08
"""A band is at least this share of the height, so that 10 outputs beside 4,000 neurons stay visible."""

MOST_MARKS = 60_000
"""Above this many spikes, or below one pixel a neuron or a step, an image takes over from single marks."""


class Band(NamedTuple):
    """One layer's strip of the picture."""

    name: str
    spikes: np.ndarray  # [S, N], S = L T micro-steps
    top: float  # in units of the whole height, downwards
    height: float


def raster(
    recording: Recording, sample: int = 0, layers: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Spikes of one sample: micro-steps along x, neurons stacked in a band per layer along y.

    The first layer is on top and neuron 0 at the top of its band; bands are as high as they have neurons,
    but never too thin to see. Positive spikes are blue, negative ones orange, counted in the legend. Each
    spike is a mark of its own, a graded one too, while neurons and steps are a pixel or more; beyond that
    a cell of an image, its colour mixed by the share of the signs and darker the more of it spikes.

    Args:
        recording: from `simulate`, with spikes [L, T, B, *N].
        sample: index into B.
        layers: the names to draw, in this order; all recorded ones if None.
        ax: where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        InputError: no spikes were recorded, a layer was not, or the sample does not exist.

    Example:
        >>> import torch
        >>> from marsnn import ATMN, Network, plots, simulate
        >>> network = Network([torch.nn.Linear(8, 16), ATMN(16)])
        >>> ax = plots.raster(simulate(network, torch.randn(10, 1, 8)))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['atmn1 (16)']
    """
    check_recording(recording)
    names = [layers] if isinstance(layers, str) else list(recording.spikes if layers is None else layers)
    if not names and recording.spikes:
        raise InputError(f"layers is empty; recorded are {', '.join(recording.spikes)}")
    arrays = {name: array_of(recording.spikes, "spikes", name) for name in names or [""]}
    tokens, steps, batch = next(iter(arrays.values())).shape[:3]
    index_in("sample", sample, batch)
    flat = {name: a[:, :, sample].reshape(tokens * steps, -1) for name, a in arrays.items()}
    bands = _stack(flat)

    neurons = sum(band.spikes.shape[1] for band in bands)
    ax = axes_or_new(ax, 8.0, float(np.clip(1.4 + 0.4 * len(bands) + 0.008 * neurons, 2.2, 6.0)))
    step_ruler(ax, tokens, steps)
    ax.set_ylim(1.0, 0.0)
    pixels = ax.get_window_extent()
    counts = [sum(int(np.sum(band.spikes * sign > 0)) for band in bands) for sign in (1, -1)]
    narrowest = min(pixels.height * band.height / band.spikes.shape[1] for band in bands)
    if sum(counts) <= MOST_MARKS and min(narrowest, pixels.width / (tokens * steps)) >= 1:
        _draw_marks(ax, bands, pixels.width / (tokens * steps))
    else:
        _draw_images(ax, bands, max(1, int(pixels.height)), max(1, int(pixels.width)))
    _label(ax, bands, pixels.height)
    handles = [Line2D([], [], color=color, linewidth=4) for color in (POSITIVE, NEGATIVE)]
    legend_above(ax, handles=handles, labels=[spikes_label("+", counts[0]), spikes_label("−", counts[1])])  # noqa: RUF001, a minus sign
    return ax


def _stack(flat: dict[str, np.ndarray]) -> list[Band]:
    """Heights that follow the neurons, none below its smallest share, together 1."""
    sizes = np.array([spikes.shape[1] for spikes in flat.values()], dtype=float)
    heights = np.maximum(sizes / sizes.sum(), min(SMALLEST_SHARE, 1 / len(sizes)))
    heights /= heights.sum()
    tops = np.cumsum(heights) - heights
    return [Band(*band) for band in zip(flat, flat.values(), tops.tolist(), heights.tolist(), strict=True)]


def _draw_marks(ax: Axes, bands: list[Band], step_pixels: float) -> None:
    """One upright line a spike, 0.8 of its neuron's row high."""
    points = step_pixels * 72 / ax.figure.dpi
    width = float(np.clip(0.35 * points, 0.7, 5.0))
    for sign, color in ((1, POSITIVE), (-1, NEGATIVE)):
        segments = []
        for band in bands:
            step, neuron = np.nonzero(band.spikes * sign > 0)
            row = band.height / band.spikes.shape[1]
            middle = band.top + (neuron + 0.5) * row
            ends = [np.stack([step, middle + half * row], axis=-1) for half in (-0.4, 0.4)]
            segments.append(np.stack(ends, axis=1))
        marks = LineCollection(
            list(np.concatenate(segments)), colors=color, linewidths=width, capstyle="butt", zorder=2
        )
        marks.set_label("positive" if sign > 0 else "negative")
        marks.set_rasterized(True)  # keeps vector files small
        ax.add_collection(marks, autolim=False)


def _draw_images(ax: Axes, bands: list[Band], rows: int, columns: int) -> None:
    """An image a band, of at most one cell a pixel, so that no spike falls between two pixels."""
    for band in bands:
        steps = len(band.spikes)
        positive, negative, capacity = _binned(band.spikes, max(1, int(rows * band.height)), columns)
        spikes = positive + negative
        share = (positive / np.maximum(spikes, 1))[..., None]
        # 0.35: a lone spike among many silent neurons must still be seen
        ink = np.where(spikes > 0, 0.35 + 0.65 * spikes / capacity, 0.0)[..., None]
        color = share * to_rgb(POSITIVE) + (1 - share) * np.array(to_rgb(NEGATIVE))
        picture = ink * color + (1 - ink) * np.array(to_rgb(ax.get_facecolor()))
        box = (-0.5, steps - 0.5, band.top + band.height, band.top)
        ax.imshow(picture, extent=box, aspect="auto", interpolation="nearest", zorder=0.4)
    ax.set_xlim(-0.5, len(bands[0].spikes) - 0.5)
    ax.set_ylim(1.0, 0.0)


def _binned(spikes: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positive spikes, negative spikes and places of each cell, [rows, columns] or as few as there are."""
    steps, neurons = spikes.shape
    rows, columns = min(rows, neurons), min(columns, steps)
    row_edges = np.arange(rows) * neurons // rows
    column_edges = np.arange(columns) * steps // columns

    def cells(of: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(of.T.astype(np.int64), row_edges, 0), column_edges, 1)

    return cells(spikes > 0), cells(spikes < 0), cells(np.ones_like(spikes))


def _label(ax: Axes, bands: list[Band], pixels: float) -> None:
    """Band names with their neurons, small enough not to touch, and a line between bands."""
    for band in bands[1:]:
        ax.axhline(band.top, color=INK, linewidth=0.8, zorder=3)
    points = min(band.height for band in bands) * pixels * 72 / ax.figure.dpi
    ax.set_yticks(
        [band.top + band.height / 2 for band in bands],
        [f"{band.name} ({band.spikes.shape[1]:,})" for band in bands],
        fontsize=float(np.clip(0.8 * points, 4.0, 9.0)),
    )
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("layer (neurons)")
