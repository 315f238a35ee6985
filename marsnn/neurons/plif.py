"""PLIF, a LIF that learns its time constant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marsnn import surrogate as surrogates
from marsnn.checks import positive
from marsnn.errors import InputError
from marsnn.neurons.base import Backend, Carry, UpdateCost, register, setting_tensor
from marsnn.neurons.fused import Kernel
from marsnn.neurons.lif import LIFParams, LIFState, lif_step
from marsnn.neurons.rate import RateNeuron, Reset


@register("PLIF")
class PLIF(RateNeuron):
    """Parametric LIF: `lif_step` with a decay that is trained.

        beta = 1 - 1 / tau,   1 / tau = sigmoid(w),   w a parameter

    so tau stays above 1 whatever the optimiser does to w. A number for tau or beta gives one w for the whole
    population, as in the source; a tensor [N] gives each neuron its own.

    Source: Fang et al. 2021, "Incorporating learnable membrane time constant to enhance learning of spiking
    neural networks", ICCV, equations 5 to 7. Differs in: the current is not scaled by 1 / tau, as in our LIF
    (spikingjelly's ParametricLIFNode scales it unless `decay_input=False`).

    Args:
        features: N, or None for any shape.
        steps: T.
        beta: initial decay in (0, 1).   tau: initial time constant > 1 in steps; default 2.
        threshold, reset, detach_reset, surrogate, carry, feature_dim, backend: as for `LIF`.

    Example:
        >>> import torch
        >>> from marsnn.neurons import PLIF
        >>> plif = PLIF(tau=2.0)
        >>> spikes, state = plif(torch.full((4, 3), 0.8))
        >>> state.v.sum().backward()
        >>> plif.w.shape, plif.w.grad is not None, round(plif.tau.item(), 4)
        (torch.Size([]), True, 2.0)
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
        self.w = nn.Parameter(_logit_of_rate(beta, tau, features))

    @property
    def beta(self) -> Tensor:  # type: ignore[override]
        """1 - sigmoid(w), [] or [N], in (0, 1)."""
        return torch.sigmoid(-self.w)

    @property
    def tau(self) -> Tensor:
        """1 / sigmoid(w), [] or [N], in steps."""
        return 1 / torch.sigmoid(self.w)

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
        return UpdateCost(mul=1, add=3)


def _logit_of_rate(beta: float | Tensor | None, tau: float | Tensor | None, features: int | None) -> Tensor:
    """w with sigmoid(w) = 1 / tau = 1 - beta, shaped as the setting was given."""
    if beta is not None and tau is not None:
        raise InputError("give beta or tau, not both: beta = 1 - 1 / tau")
    if beta is None:
        tau = 2.0 if tau is None else tau
        positive("tau", tau)
        decay = 1 - 1 / setting_tensor("tau", tau, features)
    else:
        decay = setting_tensor("beta", beta, features)
    if not bool(((decay > 0) & (decay < 1)).all()):
        raise InputError(
            f"beta must lie in [0, 1] without its ends (tau > 1) to be learned, got "
            f"{decay.flatten()[:4].tolist()}; use LIF for a fixed decay"
        )
    return torch.logit(1 - decay)
