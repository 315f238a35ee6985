"""One token through an `SSDCore` in one call of `kernels/step.h`: one by one, it is calls that cost.

Only without gradients, on a CPU, in float32 and float64, without feature map and normaliser; everything else
runs the same equations in torch.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from marsnn import native
from marsnn.ssm import fused, pool


class _Problem(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("B", "H", "G", "P", "N", "K", "silu", "scaled", "threads")]


_PLAIN = (torch.float32, torch.float64)

SHARED = 1 << 14
"""Numbers in a sample's memory from which heads are dealt out to threads; below, waking one takes longer."""


@functools.cache
def _library(dtype: str) -> ctypes.CDLL:
    return fused.load("step", dtype, [ctypes.POINTER(_Problem), *[ctypes.c_void_p] * 14])


@functools.cache
def _frequencies(base: float, pairs: int) -> Tensor:
    """Radians per token of each pair of a key, as `rotated` has them."""
    return base ** (-torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs)


def can(core: Any, x: Tensor) -> bool:
    """Whether the kernel runs a token such as x through an `SSDCore`."""
    return not (
        core.backend not in ("auto", "fused")
        or x.dtype not in _PLAIN
        or torch.is_grad_enabled()
        or core.feature_map != "none"
        or core.normalize
        or core.decay_bias.dtype != x.dtype
        or fused.why_not(x) is not None
    )


def step(
    core: Any, x: Tensor, recent: Tensor, memory: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """y [B, H P], the next recent and memory; None where torch must run it.

    Args:
        core: an `SSDCore`.   x: [B, inputs].   recent, memory, position: of its state.
    """
    if not can(core, x):
        return None
    x, recent, memory, position = (each.contiguous() for each in (x, recent, memory, position))
    after = torch.empty_like(recent), torch.empty_like(memory)
    y = run(core, x, recent, memory, position, *after)
    return None if y is None else (y, *after)


def run(
    core: Any,
    x: Tensor,
    recent: Tensor,
    memory: Tensor,
    position: Tensor,
    recent_after: Tensor,
    memory_after: Tensor,
) -> Tensor | None:
    """y [B, H P] by the kernel, for tensors without gaps of a token that it `can`; None where it isn't built.

    Args:
        recent_after, memory_after: written to; they may be `recent` and `memory`.
    """
    try:
        forward, runner = _library(fused.DTYPES[x.dtype]).forward, pool.runner()
    except native.BuildError as error:
        native.say_once(f"{error}; tokens run in torch")
        return None
    y = x.new_empty((len(x), core.outputs))
    threads = torch.get_num_threads() if memory[0].numel() >= SHARED else 1
    problem = _Problem(
        len(x), core.heads, core.groups, core.head_dim, core.state_size, core.conv_size,
        core.activation == "silu", core.scale_input, min(threads, core.heads),
    )  # fmt: skip
    frequency = None if core.rope is None else _frequencies(core.rope, core.state_size // 2)
    weights = (core.conv_weight, core.conv_bias, core.decay_bias, core.gate_bias, core.skip, frequency)
    places = map(fused.pointer, (x, *weights, position, recent, memory, y, recent_after, memory_after))
    forward(problem, *places, runner)
    return y
