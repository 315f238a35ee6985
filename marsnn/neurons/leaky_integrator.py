"""LeakyIntegrator, the non-spiking readout."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from marsnn.neurons.base import Backend, Carry, Neuron, UpdateCost, register
from marsnn.neurons.fused import Kernel
from marsnn.neurons.rate import check_decay, decay_from, leaks


class LeakyIntegratorState(NamedTuple):
    """What a leaky integrator carries between micro-steps."""

    v: Tensor  # [*, N] membrane, in the units of the current


class LeakyIntegratorParams(NamedTuple):
    """What the step function needs beside current and state."""

    beta: Tensor  # [] or [N], what is left of the membrane after one step, in [0, 1]


def leaky_integrator_step(
    current: Tensor, state: LeakyIntegratorState, params: LeakyIntegratorParams
) -> tuple[Tensor, LeakyIntegratorState]:
    """One micro-step of a leaky integrator without threshold.

        tau dv/dt = -v + tau I    sampled as    v' = beta v + I,   beta = 1 - 1 / tau

    The output is the membrane itself. Shapes: current, v and the output are [*, N]. Units: those of the
    current. No spike, no reset. Source: Gerstner et al. 2014, Neuronal Dynamics, section 1.3.
    """
    v = params.beta * state.v + current
    return v, LeakyIntegratorState(v)


@register("LeakyIntegrator")
class LeakyIntegrator(Neuron):
    """A membrane that is read out as it is: the usual last layer of a spiking classifier.

    Its "spikes" are the graded membrane, and `decode` is their mean over the steps.

    Args:
        features: N, or None for any shape.
        steps: T.
        beta: decay in [0, 1].   tau: time constant >= 1 in steps, beta = 1 - 1 / tau; default tau = 2.
        carry: "token" or "sequence", see `Neuron`.
        feature_dim: axis of N, counted from the end.
        backend: "auto", "reference" or "fused", see `Neuron`.
    """

    State = LeakyIntegratorState
    equation = staticmethod(leaky_integrator_step)
    levels = ()

    def __init__(
        self,
        features: int | None = None,
        steps: int = 4,
        beta: float | Tensor | None = None,
        tau: float | Tensor | None = None,
        carry: Carry = "token",
        feature_dim: int = -1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(features, steps, None, feature_dim, carry, backend)
        self.beta: Tensor
        self.register_buffer("beta", decay_from(beta, tau, features))

    def params(self, like: Tensor) -> LeakyIntegratorParams:
        """Settings for currents such as `like`, in its dtype."""
        return LeakyIntegratorParams(beta=self._along_features(self.beta, like))

    def step_gain(self, train: Tensor) -> Tensor:
        """One: the output is a value already."""
        return train.new_ones(())

    def kernel(self, like: Tensor) -> Kernel:
        return Kernel("leaky_integrator", (), ())

    @property
    def update_cost(self) -> UpdateCost:
        """Leak and input."""
        return UpdateCost(mul=leaks(self.beta), add=1)

    def check_tensors(self) -> None:
        super().check_tensors()
        check_decay("beta", self.beta)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, beta={self.beta.mean().item():g}"
