"""CubaLIF, a LIF whose current decays too."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from marsnn import surrogate as surrogates
from marsnn.neurons.base import Backend, Carry, UpdateCost, register
from marsnn.neurons.fused import Kernel
from marsnn.neurons.rate import RateNeuron, Reset, after_reset, check_decay, decay_from, leaks


class CubaLIFState(NamedTuple):
    """What CubaLIF carries between micro-steps."""

    v: Tensor  # [*, N] membrane after the reset, in the units of the threshold
    i: Tensor  # [*, N] synaptic current, in the units of the threshold


class CubaLIFParams(NamedTuple):
    """What the step function needs beside current and state."""

    alpha: Tensor  # [] or [N], what is left of the synaptic current after one step, in [0, 1]
    beta: Tensor  # [] or [N], what is left of the membrane after one step, in [0, 1]
    threshold: Tensor  # [] or [N], > 0
    reset: Reset
    detach_reset: bool
    spike: surrogates.SpikeFunction


def cuba_lif_step(current: Tensor, state: CubaLIFState, params: CubaLIFParams) -> tuple[Tensor, CubaLIFState]:
    """One micro-step of a current-based leaky integrate-and-fire population.

        tau_syn di/dt = -i + tau_syn I    sampled as    i' = alpha i + I,   alpha = 1 - 1 / tau_syn
        tau     dv/dt = -v + tau i        sampled as    h  = beta v + i',   beta  = 1 - 1 / tau
        s = 1 where h >= threshold else 0
        v' = h - s threshold      (reset "subtract")
        v' = h (1 - s)            (reset "zero"; the current is not reset)

    Discretisation: forward Euler with dt = 1, current before membrane, inputs unscaled. Shapes: current, s,
    v and i are [*, N]. Units: v, i and I in those of the threshold. Fires at >=. Gradient: through the
    surrogate of h - threshold, and through the reset unless `detach_reset`.

    Source: the CUBA leaky integrate-and-fire neuron of Loihi (Davies et al. 2018, IEEE Micro 38(1),
    section "Loihi's neuron model"). Differs in: snntorch Synaptic, the same but for > and its later reset.
    """
    i = params.alpha * state.i + current
    h = params.beta * state.v + i
    s = params.spike(h - params.threshold)
    v = after_reset(h, s, s * params.threshold, params.reset, params.detach_reset)
    return s, CubaLIFState(v, i)


@register("CubaLIF")
class CubaLIF(RateNeuron):
    """Current-based LIF: two leaks in a row, a synaptic current and a membrane; Loihi's own neuron.

    Args:
        features: N, or None for any shape.
        steps: T.
        beta: membrane decay in [0, 1].   tau: its time constant >= 1 in steps; default 2.
        alpha: current decay in [0, 1].   tau_syn: its time constant >= 1 in steps; default 2.
        threshold, reset, detach_reset, surrogate, carry, feature_dim, backend: as for `LIF`.

    Example:
        >>> import torch
        >>> from marsnn.neurons import CubaLIF
        >>> spikes, state = CubaLIF(alpha=0.5, beta=0.5)(torch.tensor([[0.75], [0.0], [0.0]]))
        >>> spikes.flatten().tolist(), state.v.item(), state.i.item()
        ([0.0, 0.0, 0.0], 0.5625, 0.1875)
    """

    State = CubaLIFState
    equation = staticmethod(cuba_lif_step)

    def __init__(
        self,
        features: int | None = None,
        steps: int = 4,
        beta: float | Tensor | None = None,
        tau: float | Tensor | None = None,
        alpha: float | Tensor | None = None,
        tau_syn: float | Tensor | None = None,
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
        self.alpha: Tensor
        self.register_buffer("beta", decay_from(beta, tau, features))
        self.register_buffer("alpha", decay_from(alpha, tau_syn, features, ("alpha", "tau_syn")))

    def params(self, like: Tensor) -> CubaLIFParams:
        """Settings for currents such as `like`, in its dtype."""
        return CubaLIFParams(
            alpha=self._along_features(self.alpha, like),
            beta=self._along_features(self.beta, like),
            threshold=self._along_features(self.threshold, like),
            reset=self.reset,
            detach_reset=self.detach_reset,
            spike=self.surrogate,
        )

    def check_tensors(self) -> None:
        super().check_tensors()
        check_decay("alpha", self.alpha, "tau_syn")

    def kernel(self, like: Tensor) -> Kernel:
        return Kernel("cuba_lif", self._macros(), ())

    @property
    def update_cost(self) -> UpdateCost:
        """Two leaks; input, current, comparison, reset."""
        return UpdateCost(mul=leaks(self.alpha, self.beta), add=4)
