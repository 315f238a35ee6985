"""ATMN in NIR: the count of its spikes from Threshold and Scale nodes, no step and no state.

With tau >= 1 and f = fire_at such that f (1 + tau) > 1, all spikes of a token have the sign of its current
and come first, so their number says everything:

    k(I) = #{m in 1..T : |I| >= L_m},   value(I) = sign(I) V sum_{m <= k} tau^(m-1)

    L_m = V (1 + tau + ... + tau^(m-2) + f tau^(m-1))      in real numbers

The L_m that are written are those of the floats: the smallest current at which the neuron itself, in its own
dtype, gives m spikes, found by bisection. So the counts are equal for every float, ties included.

    a node     what it is
    x.plus2          Threshold   1 where I fires at L_2             x.plus2.worth    Scale   tau
    x.negated        Scale -1    of I, into the thresholds of the other sign
    x.minus2         Threshold   1 where -I fires at L_2            x.minus2.worth   Scale   -tau
    x                Scale V     of the sum of all worths: the decoded value
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from marsnn.checks import count
from marsnn.hardware.nir_units import FiresAt, Reals, to_file
from marsnn.neurons import ATMN

if TYPE_CHECKING:
    import nir

TAG = "marsnn"
"""Key of a node's metadata that says which layer of ours it stands for."""

LARGEST_STEPS = 64
"""T of a count form: a layer takes 4 T nodes of N numbers each."""

_WIDE = 1.01  # the search for a level starts so far beside the real formula
_MARGIN = 1e-5  # how far f (1 + tau) must stay above 1, so that no rounding flips a sign


@dataclass(frozen=True)
class CountForm:
    """The nodes of one ATMN and how they hang together."""

    nodes: dict[str, nir.NIRNode]
    edges: list[tuple[str, str]]
    entries: list[
        str
    ]  # the nodes that take the current; the layer's own name is the one that gives the value


def unmappable(neuron: ATMN) -> str | None:
    """Why a neuron has no count form, or None."""
    tau, fire_at = neuron.tau.item(), neuron.fire_at
    if tau < 1:
        return f"tau = {tau:g} gives digits, not a count, and NIR has no ternary neuron; use tau >= 1"
    if fire_at * (1 + tau) <= 1 + _MARGIN:
        return f"fire_at = {fire_at:g} with tau = {tau:g} mixes spikes of both signs; use a greater fire_at"
    if neuron.steps > LARGEST_STEPS:
        return f"T = {neuron.steps} would be {4 * neuron.steps} nodes; use at most {LARGEST_STEPS} steps"
    if float(_real_levels(neuron)[-1].max()) * _WIDE >= torch.finfo(neuron.threshold.dtype).max:
        return (
            f"T = {neuron.steps} spikes with tau = {tau:g} need a current beyond its floats; use fewer steps"
        )
    return None


def count_form(name: str, neuron: ATMN, shape: tuple[int, ...], fires_at: FiresAt) -> CountForm:
    """The nodes of `neuron` on signals of `shape` (without batch), in the dtype of its threshold."""
    import nir

    axis = neuron.feature_dim
    V = _along(neuron.threshold, axis, shape)
    levels = [_along(level, axis, shape) for level in firing_levels(neuron)]
    powers = [power.item() for power in neuron._powers(_train_like(neuron))]
    tag = {
        TAG: "ATMN",
        "steps": neuron.steps,
        "tau": neuron.tau.item(),
        "fire_at": neuron.fire_at,
        "features": neuron.features or 0,
        "feature_dim": axis,
        "fires_at": fires_at,
        "log_threshold": neuron.log_threshold.detach().cpu().numpy().reshape(-1),
    }
    part = {TAG: f"part of {name}"}
    nodes: dict[str, nir.NIRNode] = {f"{name}.negated": nir.Scale(-np.ones_like(V), metadata=dict(part))}
    edges: list[tuple[str, str]] = []
    for sign, side in ((1, "plus"), (-1, "minus")):
        for m, (level, power) in enumerate(zip(levels, powers, strict=True), start=1):
            each = f"{name}.{side}{m}"
            nodes[each] = nir.Threshold(to_file(level, fires_at), metadata=dict(part))
            nodes[f"{each}.worth"] = nir.Scale(np.full_like(V, sign * power), metadata=dict(part))
            edges += [(each, f"{each}.worth"), (f"{each}.worth", name)]
            if sign < 0:
                edges.append((f"{name}.negated", each))
    nodes[name] = nir.Scale(V, metadata=tag)
    entries = [f"{name}.plus{m}" for m in range(1, neuron.steps + 1)] + [f"{name}.negated"]
    return CountForm(nodes, edges, entries)


@torch.no_grad()
def firing_levels(neuron: ATMN) -> torch.Tensor:
    """L_m, [T] or [T, N]: the smallest current that gives m spikes, in the neuron's own dtype and steps."""
    V = neuron.threshold.detach()
    real = _real_levels(neuron)
    bits = torch.int32 if V.dtype == torch.float32 else torch.int64
    low = (real / _WIDE).to(V.dtype).view(bits)  # positive floats are ordered as their bits are
    high = (real * _WIDE).to(V.dtype).view(bits)
    wanted = torch.arange(1, neuron.steps + 1, device=V.device).reshape(-1, *[1] * V.ndim)
    while bool((high - low > 1).any()):
        middle = low + (high - low) // 2
        fires = _counts(neuron, middle.view(V.dtype)) >= wanted
        low, high = torch.where(fires, low, middle), torch.where(fires, middle, high)
    return high.view(V.dtype)


def _real_levels(neuron: ATMN) -> torch.Tensor:
    """L_m by the formula, [T] or [T, N], in float64."""
    tau, before = neuron.tau.item(), 0.0
    levels = []
    for m in range(neuron.steps):
        levels.append(before + neuron.fire_at * tau**m)
        before += tau**m
    V = neuron.threshold.detach().double()
    return V.new_tensor(levels).reshape(-1, *[1] * V.ndim) * V


def _counts(neuron: ATMN, currents: torch.Tensor) -> torch.Tensor:
    """How many spikes each current [T] or [T, N] gives."""
    trailing = [1] * (-neuron.feature_dim - 1)
    x = currents.reshape(*currents.shape, *trailing) if currents.ndim > 1 else currents
    return neuron.encode(x).sum(0).reshape(currents.shape)


def _train_like(neuron: ATMN) -> torch.Tensor:
    """A train of T steps in the neuron's dtype, of which only length and dtype matter."""
    return neuron.threshold.detach().new_zeros(neuron.steps, 1)


def _along(setting: torch.Tensor, axis: int, shape: tuple[int, ...]) -> Reals:
    value = setting.detach().cpu().numpy()
    value = value.reshape(-1, *[1] * (-axis - 1)) if value.ndim else value
    return np.broadcast_to(value, shape).copy()


# ---- back --------------------------------------------------------------------------------------------


def parts_of(name: str, nodes: Mapping[str, nir.NIRNode]) -> Iterator[str]:
    """The nodes tagged as parts of the ATMN `name`, itself included."""
    for each, node in nodes.items():
        if each == name or node.metadata.get(TAG) == f"part of {name}":
            yield each


def rebuild(name: str, node: nir.NIRNode) -> tuple[ATMN, CountForm]:
    """The ATMN that a tagged node speaks of, and the nodes that it must then have.

    The tag alone proves nothing: the caller compares the nodes, see `equal`.
    """
    tag = node.metadata
    logs = torch.as_tensor(np.atleast_1d(tag["log_threshold"]))
    if logs.dtype not in (torch.float32, torch.float64) or logs.ndim != 1:
        raise ValueError("log_threshold is no vector of floats")
    features = int(tag["features"]) or None
    axis, steps = int(tag["feature_dim"]), count("steps", int(tag["steps"]))
    if steps > LARGEST_STEPS:
        raise ValueError(f"T = {steps}")
    V = logs.exp()
    neuron = ATMN(
        features,
        steps=steps,
        tau=torch.tensor(float(tag["tau"]), dtype=logs.dtype),  # type: ignore[arg-type]
        threshold=V if features else V[0],
        fire_at=float(tag["fire_at"]),
        feature_dim=axis,
    )
    neuron.log_threshold.data = logs if features else logs[0]
    reason = unmappable(neuron)
    if reason:
        raise ValueError(reason)
    fires_at = tag["fires_at"]
    if fires_at not in (">", ">="):
        raise ValueError(f"fires_at = {fires_at!r}")
    return neuron, count_form(name, neuron, node.scale.shape, fires_at)


def equal(ours: nir.NIRNode, theirs: nir.NIRNode) -> bool:
    """The same kind of node with the same numbers, up to the last places of an exponential."""
    if type(ours) is not type(theirs):
        return False
    field = "scale" if hasattr(ours, "scale") else "threshold"
    first, second = getattr(ours, field), np.asarray(getattr(theirs, field))
    places: Any = 8 * np.finfo(first.dtype).eps
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=places, atol=0))
