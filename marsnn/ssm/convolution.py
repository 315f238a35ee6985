"""The short causal convolution before a scan: each channel by itself, over its last few tokens.

    y[l] = bias + sum_k weight[k] x[l - k]         k = 0 .. K - 1

One shifted product and sum for each tap in torch, `kernels/conv.h` in one pass on a CPU.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from marsnn import native
from marsnn.ssm import fused
from marsnn.ssm.reference import computed_in

TAPS = 16
"""The most that the kernel takes."""


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    before: Tensor | None = None,
    seen: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise causal convolution.

    Args:
        x: [L, B, D].
        weight: [K, D], the tap of the token itself first.   bias: [D].
        before: [K - 1, B, D], the tokens before x, newest last; None for zeros.
        seen: [L, B] int32, how many tokens back each token may look; None for no limit.
        backend: as of `ssd_scan`; "reference" and "chunked" are torch.

    Returns:
        y [L, B, D].
    """
    K = len(weight)
    if backend in ("auto", "fused") and fused.why_not(x) is None and K <= TAPS and len(x) > 1:
        try:
            return _Convolution.apply(x, weight, bias, before, seen)  # type: ignore[no-any-return]
        except native.BuildError as error:
            native.say_once(f"{error}; convolutions run in torch")
    return shifted(x, weight, bias, before, seen)


def shifted(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, seen: Tensor | None
) -> Tensor:
    """`causal_convolution` in torch: a shifted product for each tap."""
    L, K, wide = len(x), len(weight), computed_in(x.dtype)
    before = x.new_zeros((K - 1, *x.shape[1:])) if before is None else before
    longer = torch.cat([before.to(x.dtype), x]).to(wide)
    y = torch.zeros_like(x, dtype=wide) if bias is None else bias.to(wide).expand(x.shape)
    for k in range(K):
        tap = longer[K - 1 - k : K - 1 - k + L]
        if seen is not None:
            tap = tap.where((seen >= k).unsqueeze(-1), 0.0)
        y = y + weight[k].to(wide) * tap
    return y.to(x.dtype)


class _Problem(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_long) for name in ("L", "B", "D", "K")), ("threads", ctypes.c_int)]


_TENSOR, _LONG = ctypes.c_void_p, ctypes.c_long


@functools.cache
def _library(dtype: str) -> ctypes.CDLL:
    strided: list[Any] = [_TENSOR, _LONG, _LONG]
    head: list[Any] = [ctypes.POINTER(_Problem), *strided, _TENSOR]
    return fused.load(
        "conv", dtype, [*head, *[_TENSOR] * 4], [*head, _TENSOR, _TENSOR, *strided, *[_TENSOR] * 4]
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, seen: Tensor | None
    ) -> Tensor:
        wide = computed_in(x.dtype)
        x = x if x.stride(2) == 1 else x.contiguous()
        taps = weight.to(wide).contiguous()
        past = None if before is None else before.to(x.dtype).contiguous()
        limit = None if seen is None else seen.to(torch.int32).contiguous()
        problem = _problem(x, weight)
        y = torch.empty(x.shape, dtype=x.dtype)
        shift = None if bias is None else bias.to(wide).contiguous()
        _library(fused.DTYPES[x.dtype]).forward(
            problem, *fused.strided(x), *map(fused.pointer, (taps, shift, past, limit, y))
        )
        ctx.save_for_backward(x, weight, bias, before, taps, past, limit)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:  # type: ignore[override]
        x, weight, bias, before, taps, past, limit = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            inputs = (x, weight, bias, before)

            def plain(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None) -> tuple[Tensor]:
                return (shifted(x, weight, bias, before, limit),)

            return *fused.differentiable(plain, inputs, (gy,)), None
        gy = gy if gy.stride(2) == 1 else gy.contiguous()
        problem = _problem(x, weight)
        gx = torch.empty(x.shape, dtype=x.dtype)
        gweight = taps.new_zeros((problem.threads, *taps.shape))
        gbias = taps.new_zeros((problem.threads, taps.shape[1]))
        gbefore = None if before is None else torch.empty(before.shape, dtype=taps.dtype)
        _library(fused.DTYPES[x.dtype]).backward(
            problem, *fused.strided(x), *map(fused.pointer, (taps, past, limit)), *fused.strided(gy),
            *map(fused.pointer, (gx, gweight, gbias, gbefore)),
        )  # fmt: skip
        return (
            gx,
            gweight.sum(0).to(weight.dtype),
            None if bias is None else gbias.sum(0).to(bias.dtype),
            None if gbefore is None else gbefore.to(before.dtype),
            None,
        )


def _problem(x: Tensor, weight: Tensor) -> _Problem:
    L, B, D = x.shape
    return _Problem(L, B, D, len(weight), max(1, min(torch.get_num_threads(), L * B * D // 4096)))
