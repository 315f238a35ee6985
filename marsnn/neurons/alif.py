"""ALIF, a LIF that grows tired: its threshold rises with every spike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marsnn import surrogate as surrogates
from marsnn.checks import positive
from marsnn.neurons.base import Backend, Carry, UpdateCost, per_feature, register
from marsnn.neurons.fused import Kernel
from marsnn.neurons.rate import RateNeuron, Reset, after_reset, check_decay, decay_from, leaks


class ALIFState(NamedTuple):
    """What ALIF carries between micro-steps."""

    v: Tensor  # [*, N] membrane after the reset, in the units of the threshold
    a: Tensor  # [*, N] adaptation: past spikes, each decayed by rho a step


class ALIFParams(NamedTuple):
    """What the step function needs beside current and state."""

    beta: Tensor  # [] or [N], what is left of the membrane after one step, in [0, 1]
    rho: Tensor  # [] or [N], what is left of the adaptation after one step, in [0, 1]
    adaptation: Tensor  # [] or [N], > 0, how far one spike raises the threshold, in its units
    threshold: Tensor  # [] or [N], > 0, at rest
    reset: Reset
    detach_reset: bool
    spike: surrogates.SpikeFunction


def alif_step(current: Tensor, state: ALIFState, params: ALIFParams) -> tuple[Tensor, ALIFState]:
    """One micro-step of an adaptive leaky integrate-and-fire population.

        tau dv/dt = -v + tau I                sampled as    h = beta v + I,   beta = 1 - 1 / tau
        A = threshold + adaptation a
        s = 1 where h >= A else 0
        v' = h - s threshold      (reset "subtract": the threshold at rest)
        v' = h (1 - s)            (reset "zero")
        tau_adapt da/dt = -a + spikes         sampled as    a' = rho a + s,   rho = 1 - 1 / tau_adapt

    Discretisation: forward Euler with dt = 1; a spike raises the threshold from the next step on. Shapes:
    current, s, v and a are [*, N]. Units: v, I and adaptation in those of the threshold, a in spikes. Fires
    at >=. Gradient: through the surrogate of h - A, through the adaptation, and through the reset unless
    `detach_reset`.

    Source: Bellec et al. 2020, Nature Communications 11:3625, equations 6 to 9. Differs in: no refractory
    time; decays 1 - 1 / tau instead of exp(-1 / tau).
    """
    h = params.beta * state.v + current
    level = params.threshold + params.adaptation * state.a
    s = params.spike(h - level)
    v = after_reset(h, s, s * params.threshold, params.reset, params.detach_reset)
    a = params.rho * state.a + s
    return s, ALIFState(v, a)


@register("ALIF")
class ALIF(RateNeuron):
    """Adaptive LIF: each spike raises the threshold, which then decays: a slow memory of its own firing.

    Args:
        features: N, or None for any shape.
        steps: T.
        beta: membrane decay in [0, 1].   tau: its time constant >= 1 in steps; default 2.
        rho: adaptation decay in [0, 1].   tau_adapt: its time constant >= 1 in steps; default 10.
        adaptation: > 0, what one spike adds to the threshold, a number or a tensor [N].
        threshold: at rest; reset, detach_reset, surrogate, carry, feature_dim, backend: as for `LIF`.

    Example:
        >>> import torch
        >>> from marsnn.neurons import ALIF
        >>> spikes, state = ALIF(beta=0.0, rho=0.5, adaptation=1.0)(torch.full((4, 1), 1.5))
        >>> spikes.flatten().tolist()
        [1.0, 0.0, 1.0, 0.0]
    """

    State = ALIFState
    equation = staticmethod(alif_step)

    def __init__(
        self,
        features: int | None = None,
        steps: int = 4,
        beta: float | Tensor | None = None,
        tau: float | Tensor | None = None,
        rho: float | Tensor | None = None,
        tau_adapt: float | Tensor | None = None,
        adaptation: float | Tensor = 0.2,
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
        positive("adaptation", adaptation)
        self.rho: Tensor
        self.adaptation: Tensor
        self.register_buffer("beta", decay_from(beta, tau, features))
        self.register_buffer("rho", decay_from(rho, tau_adapt, features, ("rho", "tau_adapt"), 10.0))
        self.register_buffer("adaptation", per_feature("adaptation", adaptation, features))

    def params(self, like: Tensor) -> ALIFParams:
        """Settings for currents such as `like`, in its dtype."""
        return ALIFParams(
            beta=self._along_features(self.beta, like),
            rho=self._along_features(self.rho, like),
            adaptation=self._along_features(self.adaptation, like),
            threshold=self._along_features(self.threshold, like),
            reset=self.reset,
            detach_reset=self.detach_reset,
            spike=self.surrogate,
        )

    def firing_level(self, spikes: Tensor) -> Tensor:
        """The threshold that the spikes before each step have raised, [T, *, N]."""
        p = self.params(spikes)
        a, levels = torch.zeros_like(spikes[0]), []
        for s in spikes:
            levels.append(p.threshold + p.adaptation * a)
            a = p.rho * a + s
        return torch.stack(levels)

    def check_tensors(self) -> None:
        super().check_tensors()
        positive("adaptation", self.adaptation)
        check_decay("rho", self.rho, "tau_adapt")

    def kernel(self, like: Tensor) -> Kernel:
        return Kernel("alif", self._macros(), ())

    @property
    def update_cost(self) -> UpdateCost:
        """Two leaks and the raised threshold; input, threshold, comparison, reset, adaptation."""
        return UpdateCost(mul=leaks(self.beta, self.rho) + 1, add=5)
