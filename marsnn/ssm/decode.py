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
    try:
        run = Step(core)
    except native.BuildError as error:
        native.say_once(f"{error}; tokens run in torch")
        return None
    x, recent, memory, position = (each.contiguous() for each in (x, recent, memory, position))
    after = torch.empty_like(recent), torch.empty_like(memory)
    return run(x, recent, memory, position, *after), *after


class Step:
    """The kernel for one `SSDCore`, whose weights must stay where they are.

    Raises:
        BuildError: it can't be built or loaded.
    """

    def __init__(self, core: Any) -> None:
        self._forward = _library(fused.DTYPES[core.decay_bias.dtype]).forward
        self._runner, self._outputs = pool.runner(), core.outputs
        self._shared = core.heads * core.state_size * core.head_dim >= SHARED
        self._settings = (
            core.heads, core.groups, core.head_dim, core.state_size, core.conv_size,
            core.activation == "silu", core.scale_input,
        )  # fmt: skip
        self._problems: dict[tuple[int, int], _Problem] = {}  # never written to, for threads may share one
        frequency = None if core.rope is None else _frequencies(core.rope, core.state_size // 2)
        weights = (core.conv_weight, core.conv_bias, core.decay_bias, core.gate_bias, core.skip, frequency)
        self._weights = tuple(map(fused.pointer, weights))
        self._frequency = frequency  # lives as long as its address is held

    def __call__(
        self,
        x: Tensor,
        recent: Tensor,
        memory: Tensor,
        position: Tensor,
        recent_after: Tensor,
        memory_after: Tensor,
    ) -> Tensor:
        """y [B, H P] for tensors without gaps of a token that the kernel `can` run.

        Args:
            recent_after, memory_after: written to; they may be `recent` and `memory`.
        """
        sizes = x.shape[0], torch.get_num_threads() if self._shared else 1
        problem = self._problems.get(sizes)
        if problem is None:
            problem = self._problems[sizes] = _Problem(sizes[0], *self._settings, sizes[1])
        y = x.new_empty((sizes[0], self._outputs))
        self._forward(
            problem, x.data_ptr(), *self._weights, position.data_ptr(), recent.data_ptr(), memory.data_ptr(),
            y.data_ptr(), recent_after.data_ptr(), memory_after.data_ptr(), self._runner,
        )  # fmt: skip
        return y
