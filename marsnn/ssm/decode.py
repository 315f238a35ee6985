"""One token through an `SSDCore` in one call of `kernels/step.h`: one by one, it is calls that cost.

Only without gradients, on a CPU, in float32 and float64, without feature map, RoPE and normaliser; everything
else runs the same equations in torch.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from marsnn import native
from marsnn.ssm import fused


class _Problem(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("B", "H", "G", "P", "N", "K", "silu", "scaled")]


_PLAIN = (torch.float32, torch.float64)


@functools.cache
def _library(dtype: str) -> ctypes.CDLL:
    return fused.load("step", dtype, [ctypes.POINTER(_Problem), *[ctypes.c_void_p] * 11])


def step(core: Any, x: Tensor, recent: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """y [B, H P], the next recent and memory; None where torch must run it.

    Args:
        core: an `SSDCore`.   x: [B, inputs].   recent, memory: of its state.
    """
    if (
        core.backend not in ("auto", "fused")
        or x.dtype not in _PLAIN
        or torch.is_grad_enabled()
        or core.feature_map != "none"
        or core.rope is not None
        or core.normalize
        or core.decay_bias.dtype != x.dtype
        or fused.why_not(x) is not None
    ):
        return None
    try:
        run = _library(fused.DTYPES[x.dtype]).forward
    except native.BuildError as error:
        native.say_once(f"{error}; tokens run in torch")
        return None
    x, recent, memory = x.contiguous(), recent.contiguous(), memory.contiguous()
    y = x.new_empty((len(x), core.outputs))
    after = torch.empty_like(recent), torch.empty_like(memory)
    problem = _Problem(
        len(x), core.heads, core.groups, core.head_dim, core.state_size, core.conv_size,
        core.activation == "silu", core.scale_input,
    )  # fmt: skip
    weights = (core.conv_weight, core.conv_bias, core.decay_bias, core.gate_bias, core.skip)
    run(problem, *map(fused.pointer, (x, *weights, recent, memory, y, *after)))
    return y, *after
