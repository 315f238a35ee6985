"""The scan in C++ on a CPU: `kernels/ssd.h`, under autograd.

What autograd keeps is the inputs and the state at the start of every chunk; the backward makes the rest again
while a chunk is in the cache.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marsnn import native
from marsnn.checks import transformed
from marsnn.errors import InputError
from marsnn.ssm.reference import computed_in

SOURCES = Path(__file__).parent / "kernels"
CHUNK = 64  # Q in ssd.h
DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}

LAUNCHES: Counter[tuple[str, str]] = Counter()
"""How often the kernels ran: (dtype, "forward" | "backward")."""

Plain = Callable[..., tuple[Tensor, Tensor]]


class _Problem(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_long) for name in ("L", "B", "H", "G", "P", "N", "parts")),
                ("threads", ctypes.c_int)]  # fmt: skip


_TENSOR, _LONG = ctypes.c_void_p, ctypes.c_long
_STRIDED: list[Any] = [_TENSOR, _LONG, _LONG]
_INPUTS: list[Any] = [ctypes.POINTER(_Problem), *_STRIDED, _TENSOR, *_STRIDED, *_STRIDED, _TENSOR, _TENSOR]


@functools.cache
def _library(dtype: str) -> ctypes.CDLL:
    return load("ssd", dtype, [*_INPUTS, *[_TENSOR] * 3], [*_INPUTS, *_STRIDED, *[_TENSOR] * 7])


def load(header: str, dtype: str, forward: list[Any], backward: list[Any] | None = None) -> ctypes.CDLL:
    """The kernel of `kernels/<header>.h` in a dtype: `forward` and, where it has one, `backward`.

    Raises:
        BuildError: it can't be built or loaded.
    """
    text = native.source(header, (f"DTYPE_{dtype}",))
    try:
        loaded = ctypes.CDLL(str(native.built(SOURCES, header, text, native.CONTRACTED)))
    except OSError as error:
        raise native.BuildError(f"can't load the kernel {header}: {error}") from error
    loaded.forward.argtypes, loaded.forward.restype = forward, None
    if backward is not None:
        loaded.backward.argtypes, loaded.backward.restype = backward, None
    return loaded


def why_not(x: Tensor) -> str | None:
    """Why the kernel can't run on tensors such as x; None where it can."""
    if x.device.type != "cpu":
        return f"it runs on a CPU, and x is on {x.device}"
    if x.dtype not in DTYPES:
        return f"it has no {x.dtype}"
    if transformed(x):
        return "tensors are being transformed or traced (torch.compile, torch.func, a dispatch mode)"
    if native.compiler() is None:
        return "there is no C++ compiler (CXX, c++, g++, clang++); install g++"
    return None


def scan(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    state: Tensor | None,
    plain: Plain,
    required: bool,
) -> tuple[Tensor, Tensor] | None:
    """`ssd_scan` by the kernel, or None where it can't run.

    Args:
        plain: the same in torch, for gradients that are to be differentiated again.
        required: raise InputError, with the reason, in place of None.
    """
    reason = why_not(x)
    if reason is None:
        wide = computed_in(x.dtype)
        log_decay = log_decay.to(wide)
        skip = None if skip is None else skip.to(wide)
        try:
            return _Scan.apply(plain, x, log_decay, b, c, skip, state)  # type: ignore[no-any-return]
        except native.BuildError as error:
            reason = str(error)
            native.say_once(f"{error}; scans run in torch")
    if required:
        raise InputError(f'backend="fused" can\'t run this: {reason}')
    return None


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plain: Plain,
        x: Tensor,
        log_decay: Tensor,
        b: Tensor,
        c: Tensor,
        skip: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        x, b, c = _dense(x), _dense(b), _dense(c)
        decay = log_decay.exp().contiguous()
        skip = None if skip is None else skip.contiguous()
        problem = _problem(x, b)
        L, B, H, P = x.shape
        shape = (B, H, b.shape[-1], P)
        y = torch.empty((L, B, H, P), dtype=x.dtype)
        after = torch.empty(shape, dtype=decay.dtype)
        kept = torch.empty((-(-L // CHUNK), *shape), dtype=decay.dtype) if any(ctx.needs_input_grad) else None
        before = None if state is None else state.contiguous()
        _library(DTYPES[x.dtype]).forward(
            problem, *strided(x), pointer(decay), *strided(b), *strided(c), pointer(skip),
            pointer(before), pointer(y), pointer(after), pointer(kept),
        )  # fmt: skip
        LAUNCHES[DTYPES[x.dtype], "forward"] += 1
        ctx.plain = plain
        if kept is not None:
            ctx.save_for_backward(x, log_decay, b, c, skip, state, decay, kept)
            ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gafter: Tensor | None) -> Any:  # type: ignore[override]
        x, log_decay, b, c, skip, state, decay, kept = ctx.saved_tensors
        inputs = (x, log_decay, b, c, skip, state)
        if gy is None and gafter is None:
            return None, *[None] * len(inputs)
        if torch.is_grad_enabled():  # create_graph=True
            return None, *differentiable(ctx.plain, inputs, (gy, gafter))
        gy = torch.zeros_like(x) if gy is None else _dense(gy)
        gafter = None if gafter is None else gafter.contiguous()
        problem = _problem(x, b)
        gx = torch.empty(x.shape, dtype=x.dtype)
        gdecay = torch.empty_like(decay)
        gb, gc = (torch.zeros((problem.parts, *b.shape), dtype=decay.dtype) for _ in range(2))
        gskip = torch.empty(x.shape[1:3], dtype=decay.dtype)
        gstate = torch.empty(kept.shape[1:], dtype=decay.dtype)
        _library(DTYPES[x.dtype]).backward(
            problem, *strided(x), pointer(decay), *strided(b), *strided(c), pointer(skip),
            pointer(kept), *strided(gy), pointer(gafter), pointer(gx), pointer(gdecay), pointer(gb),
            pointer(gc), pointer(gskip), pointer(gstate),
        )  # fmt: skip
        LAUNCHES[DTYPES[x.dtype], "backward"] += 1
        gb, gc = (each[0] if len(each) == 1 else each.sum(0) for each in (gb, gc))
        return (
            None, gx, gdecay, gb.to(b.dtype), gc.to(c.dtype), None if skip is None else gskip.sum(0),
            None if state is None else gstate,
        )  # fmt: skip


def differentiable(
    plain: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Any], grads: Sequence[Tensor | None]
) -> list[Any]:
    """The gradients of inputs by plain torch, so that they can be differentiated again."""
    # as tensors of their own: an input may have been made from another
    inputs = [None if each is None else each.view_as(each) for each in inputs]
    outputs = plain(*inputs)
    followed = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [i for i, each in enumerate(inputs) if each is not None and each.requires_grad]
    slopes = torch.autograd.grad(
        [y for y, _ in followed], [inputs[i] for i in wanted], [g for _, g in followed], create_graph=True,
        allow_unused=True,
    )  # fmt: skip
    found: list[Any] = [None] * len(inputs)
    for i, slope in zip(wanted, slopes, strict=True):
        found[i] = slope
    return found


def _problem(x: Tensor, b: Tensor) -> _Problem:
    """Sizes, and how the heads are dealt out to threads."""
    L, B, H, P = x.shape
    threads = min(torch.get_num_threads(), B * H)
    parts = min(H, -(-threads // B))
    return _Problem(L, B, H, b.shape[2], P, b.shape[3], parts, threads)


def _dense(tensor: Tensor) -> Tensor:
    """With contiguous samples [*, *]; tokens and samples may lie anywhere."""
    inner = tensor.stride()[2:]
    return tensor if inner == (tensor.shape[3], 1) else tensor.contiguous()


def strided(tensor: Tensor) -> tuple[int, int, int]:
    """A tensor [L, B, *] for the kernels: where it is, and the strides of its first two axes."""
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1)


def pointer(tensor: Tensor | None) -> int | None:
    """Where it is; None stays None."""
    return None if tensor is None else tensor.data_ptr()
