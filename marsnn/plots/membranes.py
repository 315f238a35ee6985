"""traces: one neuron's membrane before and after its reset, its thresholds and its spikes."""

from __future__ import annotations

import copy

import numpy as np
import torch
from matplotlib.axes import Axes

from marsnn.errors import InputError
from marsnn.network import Network
from marsnn.neurons.base import Neuron
from marsnn.neurons.recurrent import Recurrent
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


def traces(
    recording: Recording,
    source: Network | Neuron,
    layer: str,
    neuron: int = 0,
    sample: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Membrane of one neuron over the micro-steps, with its firing levels and spikes.

    Each step is drawn in two halves: on the left the membrane before the reset, h = u + s V, on the right
    the membrane u that the reset leaves. A spike is a triangle at h, up and blue or down and orange, and
    the drop to u has its colour. After a reset to a value h is not recorded: it is drawn at the firing level,
    the least that it can have been. A threshold that moves with the spikes is worked out from them, from
    rest.

    Args:
        recording: from `simulate`, with spikes and membrane [L, T, B, *N].
        source: the network that was simulated, or the neuron of that layer: it knows the thresholds.
        layer: name of the layer.
        neuron: flat index into *N.
        sample: index into B.
        ax: where to draw; a new figure if None.

    Returns:
        The axes; y is in the units of the membrane.

    Raises:
        InputError: the membrane or the layer was not recorded, an index does not exist, or `source` has
            no such neuron.

    Example:
        >>> import torch
        >>> from marsnn import ATMN, Network, plots, simulate
        >>> network = Network([ATMN(1)])
        >>> ax = plots.traces(simulate(network, torch.tensor([[[1.3]], [[-0.8]]])), network, "atmn1")
        >>> ax.get_ylabel()
        'membrane of atmn1[0]'
    """
    check_recording(recording)
    membrane = array_of(recording.membrane, "membrane", layer)
    tokens, steps, batch, *shape = membrane.shape
    place = index_in("neuron", neuron, int(np.prod(shape)))
    column = (index_in("sample", sample, batch), place)
    u = membrane.reshape(tokens * steps, batch, -1)[:, *column].astype(float)
    model = _neuron_of(source, layer)
    if model.features is not None and shape[model.feature_dim] != model.features:
        raise InputError(
            f"this neuron has {model.features} features, {layer} was recorded with "
            f"{shape[model.feature_dim]}; pass the network that was simulated"
        )
    if not model.levels:  # it emits its membrane: nothing resets it
        s = np.zeros_like(u)
    else:
        s = array_of(recording.spikes, "spikes", layer).reshape(tokens * steps, batch, -1)[:, *column]
    level = _firing_level(model, recording, layer, column) if model.levels else None
    h = u if level is None else np.where(s != 0, _before_reset(model, u, s, level, place, shape), u)

    ax = axes_or_new(ax, 8.0, 3.0)
    step_ruler(ax, tokens, steps)
    ax.axhline(0.0, color=INK, linewidth=0.5, zorder=1)
    if level is not None:
        _draw_level(ax, level, POSITIVE, "fires at")
        if min(model.levels) < 0:
            _draw_level(ax, -level, NEGATIVE, "at")
    _draw_steps(ax, h, u)
    if model.levels:
        _draw_spikes(ax, h, u, s)
    ax.set_ylabel(f"membrane of {layer}[{neuron}]")
    ax.margins(y=0.12)
    legend_above(ax)
    return ax


def _firing_level(
    model: Neuron, recording: Recording, layer: str, column: tuple[int, int]
) -> np.ndarray | None:
    """Of one neuron at each micro-step [L T], from the spikes of its layer; None where it has none."""
    spikes = torch.as_tensor(recording.spikes[layer])  # [L, T, B, *N]
    spikes = spikes.to(next((b.dtype for b in model.buffers() if b.is_floating_point()), torch.float64))
    trains = [spikes.flatten(0, 1)] if model.carry == "sequence" else list(spikes)
    levels = []
    with torch.no_grad():
        model = copy.deepcopy(model).cpu()
        for train in trains:
            level = model.firing_level(train)
            if level is None:
                return None
            levels.append(level.expand(train.shape).flatten(2)[:, column[0], column[1]])
    return torch.cat(levels).double().numpy()


def _before_reset(
    model: Neuron, u: np.ndarray, s: np.ndarray, level: np.ndarray, place: int, shape: list[int]
) -> np.ndarray:
    threshold = getattr(model, "threshold", None)
    if threshold is None or getattr(model, "reset", "subtract") == "zero":
        return np.sign(s) * level
    return u + s * _at(threshold, model.feature_dim, place, shape)


def _draw_level(ax: Axes, level: np.ndarray, color: str, text: str) -> None:
    """A dashed line; steps where the level moves."""
    if np.ptp(level) == 0:
        ax.axhline(level[0], color=color, linestyle="--", linewidth=1, label=f"{text} {level[0]:.3g}")
    else:
        edges = np.arange(len(level) + 1) - 0.5
        levels = np.append(level, level[-1])
        ax.step(edges, levels, color=color, linestyle="--", linewidth=1, where="post", label=text)


def _draw_steps(ax: Axes, h: np.ndarray, u: np.ndarray) -> None:
    """The membrane as one line: h[t] from t - 1/2 to t, u[t] from t to t + 1/2."""
    t = np.arange(len(u))
    x = np.stack([t - 0.5, t, t, t + 0.5], axis=-1).ravel()
    ax.plot(x, np.stack([h, h, u, u], axis=-1).ravel(), color=INK, linewidth=1.2, label="membrane", zorder=2)


def _draw_spikes(ax: Axes, h: np.ndarray, u: np.ndarray, s: np.ndarray) -> None:
    """The drop of each reset and, at its peak, a triangle."""
    for sign, color, marker, text in ((1, POSITIVE, "^", "+"), (-1, NEGATIVE, "v", "−")):  # noqa: RUF001
        at = np.flatnonzero(s * sign > 0)
        if len(at) or sign > 0 or (s < 0).any():
            size = float(np.clip(200 / len(s), 3.0, 7.0))
            ax.vlines(at, u[at], h[at], color=color, linewidth=2, zorder=3)
            ax.plot(
                at, h[at], linestyle="none", marker=marker, markersize=size, color=color, zorder=4,
                label=spikes_label(text, len(at)),
            )  # fmt: skip


def _neuron_of(source: Network | Neuron, layer: str) -> Neuron:
    """The neuron that resets the membrane: of a `Recurrent` the one in it."""
    if isinstance(source, Neuron):
        return source.neuron if isinstance(source, Recurrent) else source
    if not isinstance(source, Network):
        raise InputError(f"traces() needs the Network or the Neuron, got {type(source).__name__}")
    if layer not in source.neurons:
        known = ", ".join(source.neurons) or "none"
        raise InputError(f"the network has no neuron layer {layer!r}; its neuron layers are {known}")
    return _neuron_of(source.neurons[layer], layer)


def _at(setting: torch.Tensor, feature_dim: int, place: int, shape: list[int]) -> float:
    """A setting, [] or [N], at a flat place of *N."""
    values = setting.detach().cpu().double().flatten()
    feature = np.unravel_index(place, shape)[feature_dim] if len(values) > 1 else 0
    return float(values[int(feature)])
