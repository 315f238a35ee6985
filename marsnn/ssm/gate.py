"""The gate behind a scan, y * silu(z + bias): in torch, or in one pass each way on a CPU."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from marsnn import native
from marsnn.ssm import fused
from marsnn.ssm.reference import computed_in


def gated(y: Tensor, z: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    """y * silu(z + bias).

    Args:
        y: [L, B, D].   z: [L, B, D], which may be a slice.   bias: [D].
        backend: as of `ssd_scan`; "reference" and "chunked" are torch.
    """
    if backend in ("auto", "fused") and fused.why_not(y) is None and y.dtype == z.dtype:
        try:
            return _Gate.apply(y, z, bias)  # type: ignore[no-any-return]
        except native.BuildError as error:
            native.say_once(f"{error}; gates run in torch")
    return y * F.silu(z + bias)


class _Problem(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_long) for name in ("L", "B", "D")), ("threads", ctypes.c_int)]


_TENSOR, _LONG = ctypes.c_void_p, ctypes.c_long


@functools.cache
def _library(dtype: str) -> ctypes.CDLL:
    head: list[Any] = [ctypes.POINTER(_Problem), _TENSOR, _TENSOR, _LONG, _LONG, _TENSOR]
    return fused.load("gate", dtype, [*head, _TENSOR], [*head, *[_TENSOR] * 4])


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        y, z = y.contiguous(), z if z.stride(2) == 1 else z.contiguous()
        out = torch.empty_like(y)
        shift = bias.to(computed_in(y.dtype)).contiguous()
        tensors = (y.data_ptr(), *fused.strided(z), shift.data_ptr(), out.data_ptr())
        _library(fused.DTYPES[y.dtype]).forward(_problem(y), *tensors)
        ctx.save_for_backward(y, z, bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        y, z, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return tuple(
                fused.differentiable(lambda *t: (t[0] * F.silu(t[1] + t[2]),), (y, z, bias), (grad,))
            )
        grad, problem = grad.contiguous(), _problem(y)
        gy, gz = torch.empty_like(y), torch.empty_like(y)
        shift = bias.to(computed_in(y.dtype)).contiguous()
        gbias = shift.new_zeros((problem.threads, y.shape[2]))
        tensors = (y.data_ptr(), *fused.strided(z), *map(fused.pointer, (shift, grad, gy, gz, gbias)))
        _library(fused.DTYPES[y.dtype]).backward(problem, *tensors)
        return gy, gz, gbias.sum(0).to(bias.dtype)


def _problem(y: Tensor) -> _Problem:
    L, B, D = y.shape
    return _Problem(L, B, D, max(1, min(torch.get_num_threads(), L * B * D // 4096)))
