"""LIF, the leaky integrate-and-fire baseline."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from marsnn import surrogate as surrogates
from marsnn.neurons.base import Backend, Carry, UpdateCost, register
from marsnn.neurons.fused import Kernel
from marsnn.neurons.rate import RateNeuron, Reset, after_reset, decay_from, leaks


class LIFState(NamedTuple):
    """What LIF carries between micro-steps."""

    v: Tensor  # [*, N] membrane after the reset, in the units of the threshold


class LIFParams(NamedTuple):
    """What the step function needs beside current and state."""

    beta: Tensor  # [] or [N], what is left of the membrane after one step, in [0, 1]
    threshold: Tensor  # [] or [N], > 0
    reset: Reset
    detach_reset: bool
    spike: surrogates.SpikeFunction


def lif_step(current: Tensor, state: LIFState, params: LIFParams) -> tuple[Tensor, LIFState]:
    """One micro-step of a leaky integrate-and-fire population.

        tau dv/dt = -v + tau I    sampled as    h = beta v + I,   beta = 1 - 1 / tau
        s = 1 where h >= threshold else 0
        v' = h - s threshold      (reset "subtract")
        v' = h (1 - s)            (reset "zero")

    Discretisation: forward Euler with dt = 1 and the current unscaled. Shapes: current, s, v are [*, N].
    Units: v and I in those of the threshold. Fires at >=. Gradient: through the surrogate of
    h - threshold, and through the reset unless `detach_reset`.

    Source: Gerstner, Kistler, Naud, Paninski 2014, Neuronal Dynamics, section 1.3. Differs in: snntorch
    Leaky fires at > and resets one step later; spikingjelly LIFNode scales the current by 1 / tau unless
    `decay_input=False`.
    """
    h = params.beta * state.v + current
    s = params.spike(h - params.threshold)
    v = after_reset(h, s, s * params.threshold, params.reset, params.detach_reset)
    return s, LIFState(v)


@register("LIF")
class LIF(RateNeuron):
    """Leaky integrate-and-fire: binary spikes whose mean rate stands for the activation.

    A static activation is held at every step; `decode` is threshold * mean(spikes).

    Args:
        features: N, or None for any shape.
        steps: T.
        beta: decay in [0, 1].   tau: time constant >= 1 in steps, beta = 1 - 1 / tau; default tau = 2.
        threshold: > 0, a number or a tensor [N].
        reset: "subtract" (soft) or "zero" (hard).
        detach_reset: let no gradient through the reset.
        surrogate: spike function of v - threshold.
        carry: "token" or "sequence", see `Neuron`.
        feature_dim: axis of N, counted from the end.
        backend: "auto", "reference" or "fused", see `Neuron`.

    Example:
        >>> import torch
        >>> from marsnn.neurons import LIF
        >>> lif = LIF(beta=0.5, threshold=1.0)
        >>> spikes, state = lif(torch.tensor([[0.6], [0.8], [0.5], [0.5]]))
        >>> spikes.flatten().tolist(), round(state.v.item(), 3)
        ([0.0, 1.0, 0.0, 0.0], 0.775)
    """

    State = LIFState
    equation = staticmethod(lif_step)

    def __init__(
        self,
        features: int | None = None,
        steps: int = 4,
        beta: float | Tensor | None = None,
        tau: float | Tensor | None = None,
        threshold: float | Tensor = 1.0,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate: surrogates.SpikeFunction | None = None,
        carry: Carry = "token",
        feature_dim: int = -1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(
            features, steps, threshold, reset, detach_reset, surrogate, carry, feature_dim, backend
        )
        self.register_buffer("beta", decay_from(beta, tau, features))

    def params(self, like: Tensor) -> LIFParams:
        """Settings for currents such as `like`, in its dtype."""
        return LIFParams(
            beta=self._along_features(self.beta, like),
            threshold=self._along_features(self.threshold, like),
            reset=self.reset,
            detach_reset=self.detach_reset,
            spike=self.surrogate,
        )

    def kernel(self, like: Tensor) -> Kernel:
        return Kernel("lif", self._macros(), ())

    @property
    def update_cost(self) -> UpdateCost:
        """Leak; input, comparison, reset."""
        return UpdateCost(mul=leaks(self.beta), add=3)
