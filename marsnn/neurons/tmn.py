"""TMN, the Ternary Momentum Neuron: ATMN at one setting, under the name by which it is known."""

from __future__ import annotations

from torch import Tensor

from marsnn import surrogate as surrogates
from marsnn.neurons.atmn import ATMN
from marsnn.neurons.base import Backend, register


@register("TMN")
class TMN(ATMN):
    """Ternary Momentum Neuron: the membrane doubles before each step, and fires at half its amplitude.

        h[t] = I[t] + 2 u[t-1]
        s[t] = +1 where h[t] >= V / 2,  -1 where h[t] <= -V / 2,  else 0
        u[t] = h[t] - s[t] V

    That is `atmn_step` with tau = 1/2, fire_at = 1/2 and a fixed V: each step rounds to the nearer value, so
    a later spike of the other sign corrects an early one, and T steps write abs(I) <= 3/2 V as T signed
    binary digits with an error of at most V 2^-T.

    Source: arXiv 2408.17245, the momentum doubling and the sub-thresholds of half the spike's amplitude.
    Differs in: it presents a static activation at t = 0 alone, as ATMN does; and V may be learned.

    Args:
        features, steps, threshold, surrogate, detach_reset, feature_dim, backend: as for `ATMN`.
        learn_threshold: train log V; off, as V is fixed in the source.

    Example:
        >>> import torch
        >>> from marsnn.neurons import TMN
        >>> TMN(3, steps=3).encode(torch.tensor([0.75, -0.375, 1.25])).int().tolist()
        [[1, 0, 1], [-1, -1, 1], [1, 1, -1]]
    """

    def __init__(
        self,
        features: int | None,
        steps: int = 4,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = False,
        surrogate: surrogates.SpikeFunction | None = None,
        detach_reset: bool = False,
        feature_dim: int = -1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(
            features,
            steps,
            tau=0.5,
            threshold=threshold,
            fire_at=0.5,
            learn_threshold=learn_threshold,
            surrogate=surrogate,
            detach_reset=detach_reset,
            feature_dim=feature_dim,
            backend=backend,
        )
