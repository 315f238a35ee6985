"""TernaryLIF, a LIF that fires both ways; TI-LIF of SpikingMamba is one setting of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from marsnn import surrogate as surrogates
from marsnn.neurons.base import Backend, Carry, register
from marsnn.neurons.integer_lif import IntegerLIF
from marsnn.neurons.rate import Reset


@register("TernaryLIF")
class TernaryLIF(IntegerLIF):
    """LIF with spikes in {-1, 0, 1}: `integer_lif_step` with both signs and one level.

        h = beta v + I
        s = +1 where h >= fire_at threshold,  -1 where h <= -fire_at threshold,  else 0
        v' = h - s threshold, or zero where it fired

    TI-LIF, the ternary-integer neuron of SpikingMamba (arXiv 2510.04595), is the setting
    `TernaryLIF(max_level=D, fire_at=0.5)`: trained on integers -D .. D, run as D ternary micro-steps, which
    `unfold` gives. A static activation is held at every step; `decode` is threshold * mean(spikes).

    Args:
        features: N, or None for any shape.
        steps: T.
        beta: decay in [0, 1].   tau: time constant >= 1 in steps, beta = 1 - 1 / tau; default tau = 2.
        max_level: D, the largest spike; beyond 1 spikes are integers.
        fire_at: > 0, the firing level in units of the threshold.
        threshold, reset, detach_reset, surrogate, carry, feature_dim, backend: as for `LIF`; the surrogate
            sees (abs(h) - fire_at threshold) / threshold.

    Example:
        >>> import torch
        >>> from marsnn.neurons import TernaryLIF
        >>> spikes, state = TernaryLIF(beta=0.5)(torch.tensor([[1.25], [-1.5], [0.0]]))
        >>> spikes.flatten().tolist(), state.v.item()
        ([1.0, -1.0, 0.0], -0.1875)
    """

    def __init__(
        self,
        features: int | None = None,
        steps: int = 4,
        beta: float | Tensor | None = None,
        tau: float | Tensor | None = None,
        max_level: int = 1,
        fire_at: float = 1.0,
        threshold: float | Tensor = 1.0,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate: surrogates.SpikeFunction | None = None,
        carry: Carry = "token",
        feature_dim: int = -1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(
            features,
            steps,
            beta,
            tau,
            max_level,
            True,
            fire_at,
            threshold,
            reset,
            detach_reset,
            surrogate,
            carry,
            feature_dim,
            backend,
        )

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "signed"}
