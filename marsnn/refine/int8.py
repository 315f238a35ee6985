"""Weight-only int8: projections store bytes, and a scale for each output; what they multiply stays as it is.

    q[n, k] = round(W[n, k] / scale[n])      scale[n] = max_k |W[n, k]| / 127
    y = (x q^T) scale + bias                 the product in x's dtype

A quarter of float32's bytes to store and to read, but no integer arithmetic: bytes become floats within the
product, a block of them at a time. `marsnn.bench.generation.dynamic_int8` also makes integers of activations.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.checks import finite

Model = TypeVar("Model", bound=nn.Module)

BLOCK = 1 << 20
"""Weights that are floats at a time: larger blocks leave the cache, smaller ones are more calls."""


class Int8Linear(nn.Module):
    """A linear map of int8 weights [N, K].

    Args:
        linear: the map that it stands for; where a mask chooses among its weights, the chosen ones.

    Raises:
        NonFiniteError: weights hold NaN or infinity.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = getattr(linear, "effective_weight", linear.weight).detach()
        finite("the weight", weight)
        scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    @property
    def effective_weight(self) -> Tensor:
        """What the bytes stand for, [N, K]."""
        return self.weight.to(self.scale.dtype) * self.scale.unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """[*, K] to [*, N]."""
        rows = max(1, BLOCK // self.in_features)
        parts = [F.linear(x, part.to(x.dtype)) for part in self.weight.split(rows)]
        y = (parts[0] if len(parts) == 1 else torch.cat(parts, -1)) * self.scale
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, weights=int8"


def int8_weights(model: Model) -> Model:
    """A copy for inference whose nn.Linear layers are `Int8Linear`.

    A head that shares its weight with the embedding gets bytes of its own; the embedding stays as it is.

    Raises:
        NonFiniteError: weights hold NaN or infinity.
    """
    made = copy.deepcopy(model)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
    return made.eval()
