"""Two linear maps of one input, multiplied: the first half of a gated feed-forward net (SwiGLU)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.checks import count, positive
from marsnn.errors import InputError
from marsnn.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu}
"""By name. All are x f(x) with f between 0 and 1, which is the form that `marsnn.hardware` tabulates."""


class GatedLinear(nn.Module):
    """Once a token, on the decoded activation x [*, D]:

        y = activation(W_gate x + b_gate) * (W_up x + b_up)        [*, F]
        y = 0 where |y| < level                                    if there is a level

    Args:
        in_features, out_features: D and F.
        bias: whether both maps have one.
        activation: "silu".
        level: > 0, below which a product is dropped; None for none. Fixed, not learned.

    Attributes:
        gate, up: the two Linear maps.

    Raises:
        InputError: another activation, or a setting out of range.

    Source: Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202; the level is TEAL's (Liu et al.
    2024, arXiv 2408.14690), at the input of the map that follows.

    Example:
        >>> import torch
        >>> from marsnn.gated import GatedLinear
        >>> GatedLinear(8, 16, level=0.1)(torch.randn(5, 8)).shape
        torch.Size([5, 16])
    """  # fmt: skip

    clock = "token"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "silu",
        level: float | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise InputError(f"GatedLinear has no activation {activation!r}; known: {known}")
        if level is not None:
            positive("level", level)
        self.in_features = count("in_features", in_features)
        self.out_features = count("out_features", out_features)
        self.activation = activation
        self.level = None if level is None else float(level)
        self.gate = Linear(self.in_features, self.out_features, bias=bool(bias))
        self.up = Linear(self.in_features, self.out_features, bias=bool(bias))

    def forward(self, x: Tensor) -> Tensor:
        """[*, D] to [*, F]."""
        return self.combine(self.gate(x), self.up(x))

    def combine(self, gate: Tensor, up: Tensor) -> Tensor:
        """What the two maps' results [*, F] become."""
        y = ACTIVATIONS[self.activation](gate) * up
        return y if self.level is None else y.where(y.abs() >= self.level, 0.0)

    def constructor(self) -> dict[str, Any]:
        """Arguments that build another one of this kind, JSON-ready."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.gate.bias is not None,
            "activation": self.activation,
            "level": self.level,
        }

    def extra_repr(self) -> str:
        return f"activation={self.activation}" + ("" if self.level is None else f", level={self.level:g}")
