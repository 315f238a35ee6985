"""LIF, the leaky integrate-and-fire baseline."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from marsnn import surrogate as surrogates
from marsnn.checks import positive
from marsnn.errors import InputError
from marsnn.neurons.base import Carry, Neuron, UpdateCost, per_feature, register

Reset = Literal["subtract", "zero"]


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
    reset = s.detach() if params.detach_reset else s
    v = h - reset * params.threshold if params.reset == "subtract" else h * (1 - reset)
    return s, LIFState(v)


def decay_from(beta: float | Tensor | None, tau: float | Tensor | None, features: int | None) -> Tensor:
    """beta from either setting: beta = 1 - 1 / tau; tau = 2 where neither is given."""
    if beta is not None and tau is not None:
        raise InputError("give beta or tau, not both: beta = 1 - 1 / tau")
    if beta is None:
        tau = 2.0 if tau is None else tau
        positive("tau", tau)
        beta = 1 - 1 / tau
    tensor = per_feature("beta", beta, features)
    check_beta(tensor)
    return tensor


def check_beta(beta: Tensor) -> None:
    """Refuse a decay that would grow the membrane, or turn it around."""
    if not bool(((beta >= 0) & (beta <= 1)).all()):
        raise InputError(f"beta must lie in [0, 1] (tau >= 1), got {beta.flatten()[:4].tolist()}")


@register("LIF")
class LIF(Neuron):
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

    Example:
        >>> import torch
        >>> from marsnn.neurons import LIF
        >>> lif = LIF(beta=0.5, threshold=1.0)
        >>> spikes, state = lif(torch.tensor([[0.6], [0.8], [0.5], [0.5]]))
        >>> spikes.flatten().tolist(), round(state.v.item(), 3)
        ([0.0, 1.0, 0.0, 0.0], 0.775)
    """

    State = LIFState

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
    ) -> None:
        super().__init__(features, steps, surrogate, feature_dim, carry)
        positive("threshold", threshold)
        if reset not in ("subtract", "zero"):
            raise InputError(f'reset must be "subtract" or "zero", got {reset!r}')
        self.reset: Reset = reset
        self.detach_reset = bool(detach_reset)
        self.beta: Tensor
        self.threshold: Tensor
        self.register_buffer("beta", decay_from(beta, tau, features))
        self.register_buffer("threshold", per_feature("threshold", threshold, features))

    def params(self, like: Tensor) -> LIFParams:
        """Settings for currents such as `like`, in its dtype."""
        return LIFParams(
            beta=self._along_features(self.beta, like),
            threshold=self._along_features(self.threshold, like),
            reset=self.reset,
            detach_reset=self.detach_reset,
            spike=self.surrogate,
        )

    def check_tensors(self) -> None:
        super().check_tensors()
        check_beta(self.beta)

    def step(self, current: Tensor, state: LIFState | None = None) -> tuple[Tensor, LIFState]:
        self._check_current("current", current)
        return lif_step(current, state or self.initial_state(current), self.params(current))

    def present(self, x: Tensor) -> Tensor:
        """x, held at every step."""
        return x.expand(self.steps, *x.shape)

    def step_gain(self, train: Tensor) -> Tensor:
        """The threshold, at every step."""
        return self._along_features(self.threshold, train)

    @property
    def update_cost(self) -> UpdateCost:
        """Leak; input, comparison, reset."""
        leaks = bool(((self.beta > 0) & (self.beta < 1)).any())
        return UpdateCost(mul=1 if leaks else 0, add=3)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "reset": self.reset, "detach_reset": self.detach_reset}

    def extra_repr(self) -> str:
        beta, threshold = self.beta.mean().item(), self.threshold.mean().item()
        return f"{super().extra_repr()}, beta={beta:g}, threshold={threshold:g}, reset={self.reset}"
