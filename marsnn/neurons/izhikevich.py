"""Izhikevich's simple model of a cortical neuron."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from marsnn import surrogate as surrogates
from marsnn.checks import positive
from marsnn.errors import InputError
from marsnn.neurons.base import Backend, Carry, Neuron, UpdateCost, register
from marsnn.neurons.fused import Kernel


class IzhikevichState(NamedTuple):
    """What the model carries between micro-steps."""

    v: Tensor  # [*, N] membrane after the reset, in mV
    u: Tensor  # [*, N] recovery, in mV / ms


class IzhikevichParams(NamedTuple):
    """What the step function needs beside current and state."""

    a: float  # 1 / ms, rate of the recovery
    b: float  # 1 / ms, how strongly the recovery follows the membrane
    c: float  # mV, membrane after a spike
    d: float  # mV / ms, what a spike adds to the recovery
    peak: float  # mV, where it fires
    dt: float  # ms, length of a micro-step
    detach_reset: bool
    spike: surrogates.SpikeFunction


def izhikevich_step(
    current: Tensor, state: IzhikevichState, params: IzhikevichParams
) -> tuple[Tensor, IzhikevichState]:
    """One micro-step of Izhikevich's model.

        dv/dt = 0.04 v^2 + 5 v + 140 - u + I    sampled as    h = v + dt (0.04 v^2 + 5 v + 140 - u + I)
        du/dt = a (b v - u)                     sampled as    w = u + dt a (b v - u)
        s = 1 where h >= peak else 0
        v' = h + s (c - h),   u' = w + s d

    Discretisation: forward Euler, both equations from the same v and u. Shapes: current, s, v and u are
    [*, N]. Units: v, c, peak in mV, t in ms, u, d and I in mV / ms. Fires at >=, reset to c. Gradient:
    through the surrogate of (h - peak) / (peak - c), and through the reset unless `detach_reset`.

    Source: Izhikevich 2003, "Simple model of spiking neurons", IEEE Trans. Neural Networks 14(6). Differs
    in: its program takes two half steps of v, then one of u, in each ms; here every step is dt.
    """
    v, u = state
    h = v + params.dt * (0.04 * v * v + 5 * v + 140 - u + current)
    w = u + params.dt * params.a * (params.b * v - u)
    s = params.spike((h - params.peak) / (params.peak - params.c))
    reset = s.detach() if params.detach_reset else s
    return s, IzhikevichState(h + reset * (params.c - h), w + reset * params.d)


@register("Izhikevich")
class Izhikevich(Neuron):
    """Izhikevich's model: spikes, bursts and chatter of cortical cells from four numbers.

    Rest is v = c, u = b c, where the source's program starts. A current of about 4 mV / ms makes the default
    cell fire tonically: scale what drives it. A static activation is held at every step; `decode` is the
    mean number of spikes.

    | cell | a | b | c | d |
    |---|---|---|---|---|
    | regular spiking (the default) | 0.02 | 0.2 | -65 | 8 |
    | intrinsically bursting | 0.02 | 0.2 | -55 | 4 |
    | chattering | 0.02 | 0.2 | -50 | 2 |
    | fast spiking | 0.1 | 0.2 | -65 | 2 |

    Args:
        features: N, or None for any shape.
        steps: T.
        a, b, c, d: see `IzhikevichParams` for the units.
        peak: mV, where it fires.
        dt: ms, the length of a micro-step; beyond about 1 ms the Euler step is too coarse for the equation.
        detach_reset: let no gradient through the reset.
        surrogate: spike function of (h - peak) / (peak - c).
        carry, feature_dim, backend: see `Neuron`.

    Example:
        >>> import torch
        >>> from marsnn.neurons import Izhikevich
        >>> spikes, state = Izhikevich()(torch.full((400, 1), 10.0))  # 200 ms
        >>> int(spikes.sum())
        5
    """

    State = IzhikevichState
    equation = staticmethod(izhikevich_step)

    def __init__(
        self,
        features: int | None = None,
        steps: int = 4,
        a: float = 0.02,
        b: float = 0.2,
        c: float = -65.0,
        d: float = 8.0,
        peak: float = 30.0,
        dt: float = 0.5,
        detach_reset: bool = False,
        surrogate: surrogates.SpikeFunction | None = None,
        carry: Carry = "token",
        feature_dim: int = -1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(features, steps, surrogate, feature_dim, carry, backend)
        positive("dt", dt)
        for name, value in (("a", a), ("b", b), ("c", c), ("d", d), ("peak", peak)):
            if not isinstance(value, Real) or not math.isfinite(value):
                raise InputError(f"{name} must be a finite number, got {value!r}")
        if c >= peak:
            raise InputError(f"c must lie below the peak, got c={c!r} and peak={peak!r}")
        self.a, self.b, self.c, self.d = float(a), float(b), float(c), float(d)
        self.peak = float(peak)
        self.dt = float(dt)
        self.detach_reset = bool(detach_reset)

    def params(self, like: Tensor) -> IzhikevichParams:
        """Settings of the step."""
        return IzhikevichParams(
            self.a, self.b, self.c, self.d, self.peak, self.dt, self.detach_reset, self.surrogate
        )

    def initial_state(self, current: Tensor) -> IzhikevichState:
        """v = c and u = b c, for currents [*, N]."""
        return IzhikevichState(torch.full_like(current, self.c), torch.full_like(current, self.b * self.c))

    def step_gain(self, train: Tensor) -> Tensor:
        """One, at every step."""
        return train.new_ones(())

    def firing_level(self, spikes: Tensor) -> Tensor:
        """The peak."""
        return spikes.new_tensor(self.peak)

    def kernel(self, like: Tensor) -> Kernel:
        macros = ("DETACH_RESET",) if self.detach_reset else ()
        p = self.params(like)
        return Kernel("izhikevich", macros, (p.dt, p.dt * p.a, p.b, p.c, p.d, p.peak, p.peak - p.c))

    @property
    def update_cost(self) -> UpdateCost:
        """0.04 v v, 5 v, two times dt, a, b; the sums of both equations, comparison, both resets."""
        return UpdateCost(mul=7, add=10)

    def settings(self) -> dict[str, Any]:
        own = ("a", "b", "c", "d", "peak", "dt", "detach_reset")
        return {**super().settings(), **{name: getattr(self, name) for name in own}}

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, a={self.a:g}, b={self.b:g}, c={self.c:g}, d={self.d:g}, dt={self.dt:g}"
        )
