"""The short causal convolution before a scan: each channel by itself, over its last few tokens.

    u[l] = bias + sum_k weight[k] x[l - k]         k = 0 .. K - 1
    y    = u, or u sigmoid(u)

One shifted product and sum for each tap in torch, `kernels/conv.h` in one pass on a CPU.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from marsnn import native
from marsnn.checks import transformed
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
    silu: bool = False,
) -> Tensor:
    """Depthwise causal convolution.

    Args:
        x: [L, B, D].
        weight: [K, D], the tap of the token itself first.   bias: [D].
        before: [K - 1, B, D], the tokens before x, newest last; None for zeros.
        seen: [L, B] int32, how many tokens back each token may look; None for no limit.
        backend: as of `ssd_scan`; "reference" and "chunked" are torch.
        silu: whether SiLU follows.

    Returns:
        y [L, B, D].
    """
    if backend == "reference" or transformed(x):
        return _activated(shifted(x, weight, bias, before, seen), silu)
    compiled = backend in ("auto", "fused") and fused.why_not(x) is None and len(weight) <= TAPS
    try:
        y = _Convolution.apply(x, weight, bias, before, seen, compiled, silu and compiled)
        return _activated(y, silu and not compiled)
    except native.BuildError as error:
        native.say_once(f"{error}; convolutions run in torch")
    return _activated(shifted(x, weight, bias, before, seen), silu)


def _activated(u: Tensor, silu: bool) -> Tensor:
    return F.silu(u) if silu else u


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
    _fields_ = [*((name, ctypes.c_long) for name in ("L", "B", "D", "K", "silu")), ("threads", ctypes.c_int)]


_TENSOR, _LONG = ctypes.c_void_p, ctypes.c_long


@functools.cache
def _library(dtype: str) -> ctypes.CDLL:
    strided: list[Any] = [_TENSOR, _LONG, _LONG]
    head: list[Any] = [ctypes.POINTER(_Problem), *strided, _TENSOR]
    loaded = fused.load(
        "conv", dtype, [*head, *[_TENSOR] * 4], [*head, _TENSOR, _TENSOR, *strided, *[_TENSOR] * 4]
    )
    loaded.before_silu.argtypes = [*head, *[_TENSOR] * 3, *strided, _TENSOR]
    loaded.before_silu.restype = None
    return loaded


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        before: Tensor | None,
        seen: Tensor | None,
        compiled: bool,
        silu: bool,
    ) -> Tensor:
        ctx.compiled, ctx.silu = compiled, silu
        if not compiled:
            ctx.save_for_backward(x, weight, bias, before, None, None, seen)
            return _by_taps(x, weight, bias, before, seen)
        wide = computed_in(x.dtype)
        x = x if x.stride(2) == 1 else x.contiguous()
        taps = weight.to(wide).contiguous()
        past = None if before is None else before.to(x.dtype).contiguous()
        limit = None if seen is None else seen.to(torch.int32).contiguous()
        problem = _problem(x, weight, silu)
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
                return (_activated(shifted(x, weight, bias, before, limit), ctx.silu),)

            return *fused.differentiable(plain, inputs, (gy,)), None, None, None
        if not ctx.compiled:
            return *_taps_backward(x, weight, bias, before, limit, gy), None, None, None
        gy = gy if gy.stride(2) == 1 else gy.contiguous()
        problem = _problem(x, weight, ctx.silu)
        if ctx.silu:
            gu = torch.empty(x.shape, dtype=x.dtype)
            shift = None if bias is None else bias.to(taps.dtype).contiguous()
            _library(fused.DTYPES[x.dtype]).before_silu(
                problem, *fused.strided(x), *map(fused.pointer, (taps, shift, past, limit)),
                *fused.strided(gy), gu.data_ptr(),
            )  # fmt: skip
            gy = gu
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
            None,
            None,
        )


def _by_taps(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, seen: Tensor | None
) -> Tensor:
    """As `shifted`, in place."""
    wide, (K, L) = computed_in(x.dtype), (len(weight), len(x))
    source, taps = x.to(wide), weight.to(wide)
    y = source * taps[0]
    if bias is not None:
        y += bias.to(wide)
    for k in range(1, K):
        if k < L:
            y[k:].addcmul_(_limited(source[:-k], seen, k), taps[k])
        if before is not None:
            few = min(k, L)
            y[:few].addcmul_(_limited(before[K - 1 - k : K - 1 - k + few].to(wide), seen, k, few), taps[k])
    return y.to(x.dtype)


def _limited(values: Tensor, seen: Tensor | None, k: int, upto: int | None = None) -> Tensor:
    """Zero where a token must not look k back; `values` meet tokens k on, or the first `upto`."""
    if seen is None:
        return values
    return values.where((seen[k:upto] if upto is None else seen[:upto]).ge(k).unsqueeze(-1), 0.0)


def _taps_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, seen: Tensor | None, gy: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and before."""
    wide, (K, L) = computed_in(x.dtype), (len(weight), len(x))
    source, taps, grads = x.to(wide), weight.to(wide), gy.to(wide)
    gx = grads * taps[0]
    gweight = [torch.linalg.vecdot(grads.flatten(0, 1), source.flatten(0, 1), dim=0)]
    gbefore = None if before is None else torch.zeros_like(before, dtype=wide)
    for k in range(1, K):
        own = grads.new_zeros(grads.shape[-1])
        if k < L:
            later = _limited(grads[k:], seen, k)
            gx[:-k].addcmul_(later, taps[k])
            own += (later * source[:-k]).sum((0, 1))
        if before is not None and gbefore is not None:
            few = min(k, L)
            first, span = _limited(grads[:few], seen, k, few), slice(K - 1 - k, K - 1 - k + few)
            gbefore[span].addcmul_(first, taps[k])
            own += (first * before[span].to(wide)).sum((0, 1))
        gweight.append(own)
    return (
        gx.to(x.dtype),
        torch.stack(gweight).to(weight.dtype),
        None if bias is None else grads.sum((0, 1)).to(bias.dtype),
        None if gbefore is None or before is None else gbefore.to(before.dtype),
    )


def _problem(x: Tensor, weight: Tensor, silu: bool) -> _Problem:
    L, B, D = x.shape
    return _Problem(L, B, D, len(weight), silu, max(1, min(torch.get_num_threads(), L * B * D // 4096)))
