"""firing_rates: how often the neurons of each layer spike."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from marsnn.plots.style import INK, NEGATIVE, POSITIVE, array_of, axes_or_new, check_recording, legend_above
from marsnn.record import Recording


def firing_rates(recording: Recording, ax: Axes | None = None) -> Axes:
    """Mean spikes per neuron and micro-step of each layer, positive and negative parts stacked.

    Over all tokens, samples and neurons; the whole bar, written at its end, is `recording.rates()`.

    Args:
        recording: from `simulate`, with spikes.
        ax: where to draw; a new figure if None.

    Returns:
        The axes, first layer on top.

    Raises:
        InputError: no spikes were recorded.
    """
    check_recording(recording)
    names = list(recording.spikes) or [""]
    arrays = [array_of(recording.spikes, "spikes", name) for name in names]
    positive = np.array([np.mean(array > 0) for array in arrays])
    negative = np.array([np.mean(array < 0) for array in arrays])
    ax = axes_or_new(ax, 6.0, float(np.clip(1.3 + 0.35 * len(names), 1.8, 12.0)))
    place = np.arange(len(names))
    ax.barh(place, positive, color=POSITIVE, height=0.65, label="+ spikes")
    ax.barh(place, negative, left=positive, color=NEGATIVE, height=0.65, label="− spikes")  # noqa: RUF001
    for y, rate in zip(place, positive + negative, strict=True):
        ax.annotate(
            f"{rate:.3f}", (rate, y), (4, 0), textcoords="offset points", va="center", fontsize="small",
            color=INK,
        )  # fmt: skip
    ax.set_yticks(place, names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0.0, max(1.15 * float((positive + negative).max()), 1e-3))  # room for the number
    ax.set_xlabel("spikes per neuron and micro-step")
    legend_above(ax)
    return ax
