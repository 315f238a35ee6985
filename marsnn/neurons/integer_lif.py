"""IntegerLIF, a LIF whose spike is a small integer, sent as that many unit spikes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from marsnn import surrogate as surrogates
from marsnn.checks import count, positive
from marsnn.errors import InputError
from marsnn.neurons.base import Backend, Carry, UpdateCost, register
from marsnn.neurons.fused import Kernel, levels_are_distinct
from marsnn.neurons.rate import RateNeuron, Reset, after_reset, decay_from, leaks


class IntegerLIFState(NamedTuple):
    """What IntegerLIF carries between micro-steps."""

    v: Tensor  # [*, N] membrane after the reset, in the units of the threshold


class IntegerLIFParams(NamedTuple):
    """What the step function needs beside current and state."""

    beta: Tensor  # [] or [N], what is left of the membrane after one step, in [0, 1]
    threshold: Tensor  # [] or [N], > 0, worth of one unit
    max_level: int  # D, the largest spike
    signed: bool  # whether spikes go down to -D
    fire_at: float  # the first level fires at fire_at * threshold, each further one a threshold higher
    reset: Reset
    detach_reset: bool
    spike: surrogates.SpikeFunction


def integer_lif_step(
    current: Tensor, state: IntegerLIFState, params: IntegerLIFParams
) -> tuple[Tensor, IntegerLIFState]:
    """One micro-step of a leaky integrate-and-fire population with integer spikes.

        tau dv/dt = -v + tau I    sampled as    h = beta v + I,   beta = 1 - 1 / tau
        level k = 1 .. D lies at (k - 1 + fire_at) threshold
        s = number of levels that h reaches, minus (if signed) the number that -h reaches
        v' = h - s threshold          (reset "subtract")
        v' = h where s = 0 else 0     (reset "zero")

    so fire_at = 1 takes the floor of h / threshold and fire_at = 1/2 rounds it, clipped to D. Discretisation:
    forward Euler with dt = 1 and the current unscaled. Shapes: current, s, v are [*, N]. Units: v and I in
    those of the threshold. A level fires at >=, on both sides. Gradient: the sum over the levels of the
    surrogate of (abs(h) - level) / threshold, its width in units of the threshold, and through the reset
    unless `detach_reset`. With `rectangular(1.0)` and fire_at = 1/2 it is 1 / threshold wherever h is not
    clipped, the straight-through window of the source.

    Source: Luo et al. 2024, "Integer-valued training and spike-driven inference", ECCV, arXiv 2407.20708.
    Differs in: `fire_at`, levels at >=, signed spikes, any surrogate.
    """
    h = params.beta * state.v + current
    s, fired = _levels_reached(h, params)
    if params.signed:
        below, fired_below = _levels_reached(-h, params)
        s, fired = s - below, fired + fired_below
    v = after_reset(h, fired, s * params.threshold, params.reset, params.detach_reset)
    return s, IntegerLIFState(v)


def _levels_reached(h: Tensor, params: IntegerLIFParams) -> tuple[Tensor, Tensor]:
    """How many levels h [*, N] has reached, and whether it has reached the first."""
    reached = [
        params.spike((h - (k + params.fire_at) * params.threshold) / params.threshold)
        for k in range(params.max_level)
    ]
    total = reached[0]
    for level in reached[1:]:
        total = total + level
    return total, reached[0]


@register("IntegerLIF")
class IntegerLIF(RateNeuron):
    """LIF with integer spikes 0 .. D, or -D .. D: trained as integers, sent as D micro-steps of unit spikes.

    A static activation is held at every step; `decode` is threshold * mean(spikes). `unfold` gives the unit
    spikes that a spiking chip would see: a spike of k is k accumulates.

    Args:
        features: N, or None for any shape.
        steps: T.
        beta: decay in [0, 1].   tau: time constant >= 1 in steps, beta = 1 - 1 / tau; default tau = 2.
        max_level: D, the largest spike.
        signed: whether spikes go down to -D.
        fire_at: > 0, the first level in units of the threshold: 1/2 rounds, 1 truncates.
        threshold, reset, detach_reset, surrogate, carry, feature_dim, backend: as for `LIF`.

    Example:
        >>> import torch
        >>> from marsnn.neurons import IntegerLIF
        >>> neuron = IntegerLIF(beta=0.5, max_level=4)
        >>> spikes, state = neuron(torch.tensor([[2.25], [0.5], [9.0]]))
        >>> spikes.flatten().tolist(), state.v.item()
        ([2.0, 1.0, 4.0], 4.8125)
        >>> neuron.unfold(spikes).squeeze(-1).int().tolist()
        [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    """

    State = IntegerLIFState
    equation = staticmethod(integer_lif_step)

    def __init__(
        self,
        features: int | None = None,
        steps: int = 4,
        beta: float | Tensor | None = None,
        tau: float | Tensor | None = None,
        max_level: int = 4,
        signed: bool = False,
        fire_at: float = 0.5,
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
        positive("fire_at", fire_at)
        self.max_level = count("max_level", max_level)
        self.signed = bool(signed)
        self.fire_at = float(fire_at)
        self.register_buffer("beta", decay_from(beta, tau, features))

    @property
    def levels(self) -> tuple[int, ...]:  # type: ignore[override]
        """-D .. D or 0 .. D."""
        return tuple(range(-self.max_level if self.signed else 0, self.max_level + 1))

    def params(self, like: Tensor) -> IntegerLIFParams:
        """Settings for currents such as `like`, in its dtype."""
        return IntegerLIFParams(
            beta=self._along_features(self.beta, like),
            threshold=self._along_features(self.threshold, like),
            max_level=self.max_level,
            signed=self.signed,
            fire_at=self.fire_at,
            reset=self.reset,
            detach_reset=self.detach_reset,
            spike=self.surrogate,
        )

    def unfold(self, spikes: Tensor) -> Tensor:
        """The unit spikes, in {0, 1} or {-1, 0, 1}, whose sum over D micro-steps is each spike.

        Shapes: spikes [T, *, N] to [T, D, *, N]; `.flatten(0, 1)` gives one train of T D micro-steps.
        """
        self._check_train("spikes", spikes)
        if bool((spikes.detach().abs() > self.max_level).any()):
            raise InputError(
                f"{type(self).__name__}: spikes beyond its largest level {self.max_level}; "
                "unfold() takes what this neuron fired"
            )
        units = torch.arange(self.max_level, device=spikes.device, dtype=spikes.dtype)
        units = units.reshape(1, -1, *[1] * (spikes.ndim - 1))
        return spikes.sign().unsqueeze(1) * (spikes.abs().unsqueeze(1) > units)

    def kernel(self, like: Tensor) -> Kernel | None:
        if not levels_are_distinct(self.fire_at):
            return None
        signed = ("SIGNED",) if self.signed else ()
        return Kernel(
            "integer_lif", (*self._macros(), f"MAX_LEVEL={self.max_level}", *signed), (self.fire_at,)
        )

    @property
    def update_cost(self) -> UpdateCost:
        """Leak; input, one comparison a micro-step, reset. The sign comes with the comparison."""
        return UpdateCost(mul=leaks(self.beta), add=2 + self.max_level)

    def settings(self) -> dict[str, Any]:
        own = {"max_level": self.max_level, "signed": self.signed, "fire_at": self.fire_at}
        return {**super().settings(), **own}

    def extra_repr(self) -> str:
        lowest = -self.max_level if self.signed else 0
        return f"{super().extra_repr()}, levels={lowest}..{self.max_level}, fire_at={self.fire_at:g}"
