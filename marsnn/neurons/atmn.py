"""ATMN, the Adaptive Ternary Multi-step Neuron of MAR (arXiv 2601.21503, section on ATMN)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from marsnn import surrogate as surrogates
from marsnn.checks import positive
from marsnn.neurons.base import Backend, Neuron, UpdateCost, per_feature, register, setting_tensor
from marsnn.neurons.fused import Kernel, levels_are_distinct


class ATMNState(NamedTuple):
    """What ATMN carries between micro-steps."""

    u: Tensor  # [*, N] membrane after the reset, in the units of the input


class ATMNParams(NamedTuple):
    """What the step function needs beside current and state."""

    V: Tensor  # [N] or [], amplitude of a spike, > 0
    tau: Tensor  # [], what the membrane is divided by between steps, > 0
    fire_at: float  # fires when abs(h) >= fire_at * V
    detach_reset: bool
    spike: surrogates.SpikeFunction


def atmn_step(current: Tensor, state: ATMNState, params: ATMNParams) -> tuple[Tensor, ATMNState]:
    """One micro-step of ATMN.

        h[t] = I[t] + u[t-1] / tau
        s[t] = +1 where h[t] >= fire_at V,  -1 where h[t] <= -fire_at V,  else 0
        u[t] = h[t] - s[t] V

    Discrete by definition, there is no underlying ODE. Shapes: current, s, u are [*, N]. Units: I, h, u
    and V share those of the input. Fires at >=, on both sides. Reset: subtraction of the amplitude V.
    Gradient: through the surrogate of (abs(h) - fire_at V) / V, so its width is in units of V, and
    through the reset unless `detach_reset`.

    Source: arXiv 2601.21503, the ATMN equations; the membrane that grows between steps (tau < 1) follows
    TMN, arXiv 2408.17245. Differs in: `fire_at` (the paper has 1) and in admitting tau < 1.
    """
    h = current + state.u / params.tau
    theta = params.fire_at * params.V
    s = params.spike((h - theta) / params.V) - params.spike((-h - theta) / params.V)
    reset = s.detach() if params.detach_reset else s
    u = h - reset * params.V
    return s, ATMNState(u)


@register("ATMN")
class ATMN(Neuron):
    """Adaptive Ternary Multi-step Neuron: an activation becomes T spikes in {-1, 0, +1}.

    A static activation enters at t = 0 only. Unrolled, with the last membrane as the error of the code,

        I = V sum_t tau^t s[t] + tau^(T-1) u[T-1]

    so `decode` weighs a spike at step t by V tau^t. tau = 1/2 with fire_at = 1 writes the T leading binary
    digits of abs(I) / V, tau = 1 counts multiples of V, tau > 1 is a leaky membrane. `fire_at = 1` with
    `tau >= 1` is the paper's literal form. T, tau and the default tau = 1/2 are choices of this package
    (the paper states none): `docs/log.md` has the measurements.

    Args:
        features: N, each with its own threshold; None for one threshold shared by all.
        steps: T.
        tau: > 0; the membrane is divided by it between steps.
        threshold: initial V > 0, a number or a tensor [N].
        fire_at: the firing level in units of V; 1 truncates, 1/2 rounds.
        learn_threshold: train a = log V, which keeps V > 0. As V = exp(a), a V other than 1 may start a
            unit in the last place away from `threshold`; ties are ties with `self.threshold`.
        learn_tau: train log tau.
        surrogate: spike function of (abs(h) - fire_at V) / V.
        detach_reset: let no gradient through the reset.
        feature_dim: axis of N, counted from the end.
        backend: "auto", "reference" or "fused", see `Neuron`.

    Example:
        >>> import torch
        >>> from marsnn.neurons import ATMN
        >>> atmn = ATMN(3, steps=3, tau=0.5)
        >>> atmn.encode(torch.tensor([1.25, -0.5, 0.1])).int().tolist()
        [[1, 0, 0], [0, -1, 0], [1, 0, 0]]
        >>> atmn.decode(atmn.encode(torch.tensor([1.25, -0.5, 0.1]))).tolist()
        [1.25, -0.5, 0.0]
    """

    State = ATMNState
    equation = staticmethod(atmn_step)
    integrates = "token"
    levels = (-1, 0, 1)

    def __init__(
        self,
        features: int | None,
        steps: int = 4,
        tau: float = 0.5,
        threshold: float | Tensor = 1.0,
        fire_at: float = 1.0,
        learn_threshold: bool = True,
        learn_tau: bool = False,
        surrogate: surrogates.SpikeFunction | None = None,
        detach_reset: bool = False,
        feature_dim: int = -1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(features, steps, surrogate, feature_dim, "token", backend)
        for name, value in (("tau", tau), ("threshold", threshold), ("fire_at", fire_at)):
            positive(name, value)
        self.fire_at = float(fire_at)
        self.detach_reset = bool(detach_reset)
        amplitude = per_feature("threshold", threshold, features)
        self.log_threshold = nn.Parameter(amplitude.log(), requires_grad=bool(learn_threshold))
        # tau itself is stored, not its logarithm, where it is fixed: 1/2, 1 and 2 stay exact.
        self.fixed_tau: Tensor
        self._store_tau(setting_tensor("tau", tau, None), bool(learn_tau))

    def _store_tau(self, tau: Tensor, learn: bool) -> None:
        self.learn_tau = learn
        if learn:
            self.log_tau = nn.Parameter(tau.log())
        else:
            self.register_buffer("fixed_tau", tau)

    @property
    def threshold(self) -> Tensor:
        """V = exp(a), [N] or []: positive whatever the optimiser did to a."""
        return self.log_threshold.exp()

    @property
    def tau(self) -> Tensor:
        """[], > 0."""
        return self.log_tau.exp() if self.learn_tau else self.fixed_tau

    def params(self, like: Tensor) -> ATMNParams:
        """Settings for currents such as `like`, in its dtype."""
        return ATMNParams(
            V=self._along_features(self.threshold, like),
            tau=self.tau.to(like.dtype),
            fire_at=self.fire_at,
            detach_reset=self.detach_reset,
            spike=self.surrogate,
        )

    def step_gain(self, train: Tensor) -> Tensor:
        """T V tau^t."""
        power = self._powers(train).reshape(-1, *[1] * (train.ndim - 1))
        return len(train) * power * self._along_features(self.threshold, train)

    def decode(self, spikes: Tensor) -> Tensor:
        """sum_t V tau^t s[t]: spikes [T, *, N] to [*, N]."""
        self._check_train("spikes", spikes)
        digits = torch.einsum("t,t...->...", self._powers(spikes), spikes)
        return self._along_features(self.threshold, spikes) * digits

    def _powers(self, train: Tensor) -> Tensor:
        """tau^t, [T]."""
        t = torch.arange(len(train), device=train.device, dtype=train.dtype)
        return torch.pow(self.tau.to(train.dtype), t)

    def kernel(self, like: Tensor) -> Kernel | None:
        if not levels_are_distinct(self.fire_at):
            return None
        macros = ("DETACH_RESET",) if self.detach_reset else ()
        if torch.compiler.is_compiling() or not self._tau_is_power_of_two():
            return Kernel("atmn", macros, (self.fire_at, 0.0))
        return Kernel("atmn", (*macros, "TAU_IS_POWER_OF_TWO"), (self.fire_at, 1 / float(self.tau)))

    @property
    def update_cost(self) -> UpdateCost:
        """A comparison and the reset; the leak multiplies, but is a shift where tau is a power of two.

        The input costs no addition: it enters an empty membrane.
        """
        return UpdateCost(mul=0 if self._tau_is_power_of_two() else 1, add=2)

    def _tau_is_power_of_two(self) -> bool:
        return not self.learn_tau and float(torch.frexp(self.tau)[0]) == 0.5

    def settings(self) -> dict[str, Any]:
        own = {"fire_at": self.fire_at, "detach_reset": self.detach_reset, "learn_tau": self.learn_tau}
        return {**super().settings(), **own}

    def apply_settings(self, settings: Mapping[str, Any]) -> None:
        tau, learned = self.tau.detach(), self.learn_tau
        super().apply_settings(settings)
        if self.learn_tau != learned:  # tau moves from buffer to parameter, or back
            delattr(self, "log_tau" if learned else "fixed_tau")
            self._store_tau(tau, self.learn_tau)

    def constructor(self) -> dict[str, Any]:
        return {**super().constructor(), "learn_threshold": self.log_threshold.requires_grad}

    def extra_repr(self) -> str:
        V, tau = self.threshold.mean().item(), self.tau.item()
        return f"{super().extra_repr()}, tau={tau:g}, threshold={V:g} (mean), fire_at={self.fire_at:g}"
