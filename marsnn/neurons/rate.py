"""What the rate-coding neurons share: a leak, a threshold, a reset, and a spike that is worth the threshold.

`lif.py` and its relatives (`plif`, `cuba_lif`, `alif`, `integer_lif`, ...) hold the equations; this file
holds the settings that they have in common, checked once.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from marsnn import surrogate as surrogates
from marsnn.checks import positive
from marsnn.errors import InputError
from marsnn.neurons.base import Backend, Carry, Neuron, per_feature

Reset = Literal["subtract", "zero"]


def after_reset(h: Tensor, fired: Tensor, drop: Tensor, reset: Reset, detach: bool) -> Tensor:
    """The membrane after a spike: h - drop, or zero where `fired` is one.

    Args:
        h: [*, N] membrane before the reset.
        fired: [*, N], 1 where it fired, for "zero"; unused by "subtract".
        drop: [*, N] what "subtract" takes off, spikes times threshold.
        reset: "subtract" or "zero".
        detach: no gradient through `fired` and `drop`.
    """
    if reset == "subtract":
        return h - (drop.detach() if detach else drop)
    return h * (1 - (fired.detach() if detach else fired))


def decay_from(
    beta: float | Tensor | None,
    tau: float | Tensor | None,
    features: int | None,
    names: tuple[str, str] = ("beta", "tau"),
    default_tau: float = 2.0,
) -> Tensor:
    """A decay per step from either setting, beta = 1 - 1 / tau; `default_tau` where neither is given."""
    beta_name, tau_name = names
    if beta is not None and tau is not None:
        raise InputError(f"give {beta_name} or {tau_name}, not both: {beta_name} = 1 - 1 / {tau_name}")
    if beta is None:
        tau = default_tau if tau is None else tau
        positive(tau_name, tau)
        beta = 1 - 1 / tau
    tensor = per_feature(beta_name, beta, features)
    check_decay(beta_name, tensor, tau_name)
    return tensor


def check_decay(name: str, decay: Tensor, tau_name: str = "tau") -> None:
    """Refuse a decay that would grow what it acts on, or turn it around."""
    if not bool(((decay >= 0) & (decay <= 1)).all()):
        shown = decay.detach().flatten()[:4].tolist()
        raise InputError(f"{name} must lie in [0, 1] ({tau_name} >= 1), got {shown}")


def leaks(*decays: Tensor) -> int:
    """How many of the decays cost a multiplication: those that are neither 0 nor 1 everywhere."""
    return sum(bool(((decay > 0) & (decay < 1)).any()) for decay in decays)


class RateNeuron(Neuron):
    """A leaky neuron whose mean number of spikes, times its threshold, is the activation.

    Args:
        features: N, or None for any shape.
        steps: T.
        threshold: > 0, a number or a tensor [N].
        reset: "subtract" (soft) or "zero" (hard).
        detach_reset: let no gradient through the reset.
        surrogate, feature_dim, carry, backend: see `Neuron`.

    A subclass sets `beta`, [] or [N]: a buffer, a parameter or a property.
    """

    beta: Tensor
    threshold: Tensor

    def __init__(
        self,
        features: int | None,
        steps: int,
        threshold: float | Tensor,
        reset: Reset,
        detach_reset: bool,
        surrogate: surrogates.SpikeFunction | None,
        carry: Carry,
        feature_dim: int,
        backend: Backend,
    ) -> None:
        super().__init__(features, steps, surrogate, feature_dim, carry, backend)
        positive("threshold", threshold)
        if reset not in ("subtract", "zero"):
            raise InputError(f'reset must be "subtract" or "zero", got {reset!r}')
        self.reset: Reset = reset
        self.detach_reset = bool(detach_reset)
        self.register_buffer("threshold", per_feature("threshold", threshold, features))

    def step_gain(self, train: Tensor) -> Tensor:
        """The threshold, at every step."""
        return self._along_features(self.threshold, train)

    def check_tensors(self) -> None:
        super().check_tensors()
        check_decay("beta", self.beta)

    def _macros(self) -> tuple[str, ...]:
        """The kernel's form of reset and detach_reset."""
        reset = ("RESET_ZERO",) if self.reset == "zero" else ()
        return (*reset, "DETACH_RESET") if self.detach_reset else reset

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "reset": self.reset, "detach_reset": self.detach_reset}

    def extra_repr(self) -> str:
        with torch.no_grad():
            beta, threshold = self.beta.mean().item(), self.threshold.mean().item()
        return f"{super().extra_repr()}, beta={beta:g}, threshold={threshold:g}, reset={self.reset}"
