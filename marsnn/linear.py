"""Linear layers whose matrix products go to the faster of the two libraries that torch carries.

On a CPU torch gives float32 products to MKL, which leaves the AVX-512 of AMD's processors unused; oneDNN does
not, and takes half of the time there once a product is of some size (`marsnn bench ssm` measures it as
projections). Everywhere else a `Linear` is torch's own: on other processors and devices, in other dtypes, for
small products, under autocast, and where tensors are traced or transformed.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.checks import transformed

WORTHWHILE = 1 << 24
"""Multiplications of a product; below, oneDNN's longer call costs more than it saves."""


class Linear(nn.Linear):
    """torch's Linear, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [*, K] times weight [N, K] transposed, plus bias [N]: [*, N].

    Sizes and the machine decide which library runs, never a measurement, so results repeat.
    """
    if x.dtype != torch.float32 or x.numel() * len(weight) < WORTHWHILE or not _can(x, weight):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this machine is one on which MKL stays below what it could do."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        with open("/proc/cpuinfo") as file:
            amd = any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in file)
    except OSError:
        return False
    return amd and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _can(x: Tensor, weight: Tensor) -> bool:
    return (
        onednn_is_faster()
        and x.device.type == weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not transformed(x)
        and not transformed(weight)
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        product = torch.Tensor.matmul if torch.is_grad_enabled() else _by_onednn  # create_graph=True
        gx = gweight = None
        if ctx.needs_input_grad[0]:
            gx = product(rows, weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            # oneDNN copies the left operand where it is transposed, so that is the narrower one
            narrow = rows.shape[1] <= inputs.shape[1]
            gweight = product(rows.t(), inputs) if narrow else product(inputs.t(), rows).t()
        return gx, gweight, rows.sum(0) if ctx.needs_input_grad[2] else None


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    return _product(a, b.t(), None)


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a b^T + bias."""
    return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
        _dense(a), _dense(b), bias, "none", [], ""
    )


def _dense(matrix: Tensor) -> Tensor:
    """Without gaps and repetitions, for which oneDNN takes loops that are a thousand times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()
