"""What the plots share: the palette, the axes, the ruler of micro-steps, the checks on what is asked for."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, MultipleLocator

from marsnn.errors import InputError
from marsnn.record import Recording

# Blue and vermilion of Okabe and Ito (2008): told apart with every common colour vision deficiency.
POSITIVE = "#0072B2"
NEGATIVE = "#D55E00"
INK = "#333333"
LIGHT = "#C8C8C8"

MOST_BOUNDARIES = 32
"""Token boundaries are drawn up to this many tokens; more would hide the spikes."""


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """`ax`, or the axes of a new figure of width x height inches."""
    if ax is not None and not isinstance(ax, Axes):
        raise InputError(f"ax must be matplotlib Axes, got {type(ax).__name__}; try figure.subplots()")
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def check_recording(recording: object) -> None:
    """Refuse what is no Recording, say the network itself."""
    if not isinstance(recording, Recording):
        raise InputError(f"expected a Recording, got {type(recording).__name__}; call simulate(network, x)")


def index_in(name: str, value: int, size: int) -> int:
    """An index that exists, or an InputError that says which do."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < size:
        raise InputError(f"{name} must be a whole number from 0 to {size - 1}, got {value!r}")
    return int(value)


def array_of(arrays: Mapping[str, np.ndarray], what: str, layer: str) -> np.ndarray:
    """A layer's recorded array [L, T, B, *N], or an InputError that names the recorded layers."""
    if not arrays:
        raise InputError(
            f"this Recording holds no {what}; simulate a network with neurons and "
            'record=("spikes", "membrane")'
        )
    if layer not in arrays:
        raise InputError(f"no {what} of a layer {layer!r}; recorded are {', '.join(arrays)}")
    array = arrays[layer]
    if array.size == 0:
        raise InputError(f"{layer}: the recorded {what} {list(array.shape)} are empty")
    return array


def step_ruler(ax: Axes, tokens: int, steps: int) -> None:
    """The x axis in micro-steps, step t of token l at l T + t, with light lines between tokens."""
    ax.set_xlim(-0.5, tokens * steps - 0.5)
    tokens_a_tick = next(n for n in (k * 10**e for e in range(12) for k in (1, 2, 5)) if tokens / n <= 12)
    within = MaxNLocator(nbins=10, integer=True)
    ax.xaxis.set_major_locator(within if tokens == 1 else MultipleLocator(steps * tokens_a_tick))
    held = f"{tokens} tokens of T = {steps}" if tokens > 1 else f"1 token, T = {steps}"
    ax.set_xlabel(f"micro-step ({held})")
    if 1 < tokens <= MOST_BOUNDARIES and steps > 1:
        for token in range(1, tokens):
            ax.axvline(token * steps - 0.5, color=LIGHT, linewidth=0.6, zorder=0.5)


def spikes_label(sign: str, count: int) -> str:
    """Legend entry such as "+ 1,204 spikes"."""
    return f"{sign} {count:,} spike{'' if count == 1 else 's'}"


def legend_above(ax: Axes, **entries: object) -> None:
    """A legend in one row above the axes, where it covers no data; titles go to the left of it."""
    ax.legend(
        **{
            "loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 5, "frameon": False,
            "fontsize": "small", "borderaxespad": 0.2, "columnspacing": 1.2, "handlelength": 1.4,
            "handletextpad": 0.5, **entries,
        }
    )  # fmt: skip
