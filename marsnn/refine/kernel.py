"""The kernels of `kernels/token.h`: what a layer does to a few tokens, one call for what torch does in ten.

A product with one token does two operations for each weight, so it takes as long as its weights take from
memory; MKL's gives it to one thread. Every function here takes activations [R, *] without gaps, R <= `MOST`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn import native
from marsnn.ssm import fused, pool

SOURCES = Path(__file__).parent / "kernels"

MOST = 4
"""Tokens, of so many samples, that are worth less than a matrix product."""

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

ALL, NONZERO, THRESHOLD, TOPK = range(4)
"""Which values of an activation stay."""

LANES = 16
"""Numbers to which rows of a transposed weight are padded: a vector of float32 at its widest."""

_TENSOR, _LONG = ctypes.c_void_p, ctypes.c_long


class _Map(ctypes.Structure):
    _fields_ = [(name, _TENSOR) for name in ("weight", "bias")] + [
        (name, _LONG) for name in ("rows", "width", "repeats", "at")
    ]


class _Maps(ctypes.Structure):
    _fields_ = [
        ("norm", _TENSOR), ("eps", ctypes.c_double), ("K", _LONG), ("outputs", _LONG), ("count", _LONG),
        ("map", _Map * 5),
    ]  # fmt: skip


class _Down(ctypes.Structure):
    _fields_ = [
        *((name, _TENSOR) for name in ("weight", "bias", "rows")),
        *((name, _LONG) for name in ("N", "D", "width", "choice", "number")),
        ("level", ctypes.c_double),
    ]  # fmt: skip


class _FeedForward(ctypes.Structure):
    _fields_ = [
        *((name, _TENSOR) for name in ("norm", "gate", "up", "gate_bias", "up_bias")),
        ("eps", ctypes.c_double), ("down", _Down),
    ]  # fmt: skip


@functools.cache
def library(dtype: str) -> ctypes.CDLL:
    """The kernels in a dtype of `DTYPES`.

    Raises:
        BuildError: they can't be built or loaded.
    """
    text = native.source("token", (f"DTYPE_{dtype}",))
    path = native.built(SOURCES, "token", text, native.CONTRACTED, fused.SOURCES)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise native.BuildError(f"can't load the kernel token: {error}") from error
    sizes = [_LONG, _LONG, _TENSOR]
    for name, arguments in (("maps", 4), ("down", 3), ("feed_forward", 3)):
        function = getattr(loaded, name)
        function.argtypes, function.restype = [*[_TENSOR] * arguments, *sizes], None
    return loaded


class Norm(NamedTuple):
    """RMSNorm: its weight [K] and the number under its root."""

    weight: Tensor
    eps: float


class Maps:
    """Several maps of one activation in one call, side by side: x [R, K] to [R, outputs].

    Args:
        maps: with the same K, each with how often blocks of `width` of its outputs are repeated.
        norm: before them.   width: of a block.
    """

    def __init__(
        self, maps: Sequence[tuple[nn.Linear, int]], norm: Norm | None = None, width: int = 1
    ) -> None:
        first = maps[0][0].weight
        self._run = library(DTYPES[first.dtype]).maps
        self._runner = pool.runner()
        self._problem = _Maps(norm=_place(norm and norm.weight), eps=norm.eps if norm else 0.0)
        at = 0
        for number, (linear, repeats) in enumerate(maps):
            rows = len(linear.weight)
            block = rows if repeats == 1 else width
            own = _Map(_place(linear.weight), _place(linear.bias), rows, block, repeats, at)
            self._problem.map[number] = own
            at += rows * repeats
        self.outputs = at
        self._problem.K, self._problem.outputs, self._problem.count = first.shape[1], at, len(maps)
        self._place = ctypes.addressof(self._problem)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The residual [R, outputs] is added to a single map."""
        out = x.new_empty((x.shape[0], self.outputs))
        added = None if residual is None else residual.data_ptr()
        self._run(
            self._place,
            x.data_ptr(),
            added,
            out.data_ptr(),
            x.shape[0],
            torch.get_num_threads(),
            self._runner,
        )
        return out


class Down:
    """The second product of a feed-forward net: x [R, N] to [R, D], of what stays of x.

    Args:
        linear: [D, N].
        weight: what it multiplies with, where that isn't its own.
        rows: the weight by `transposed`; None where it is always read whole.
    """

    def __init__(self, linear: nn.Linear, weight: Tensor | None = None, rows: Tensor | None = None) -> None:
        weight = linear.weight if weight is None else weight
        self._library, self._runner = library(DTYPES[weight.dtype]), pool.runner()
        D, N = weight.shape
        self._rows = _place(rows)
        width = 0 if rows is None else rows.shape[1]
        self.problem = _Down(_place(weight), _place(linear.bias), None, N, D, width, ALL, N, 0.0)
        self.weight = weight
        self._kept = rows  # lives as long as its address is held

    def choose(self, choice: int, number: int, level: float, skipping: bool) -> None:
        """What stays from now on, and whether the rows of the others are passed over."""
        problem = self.problem
        problem.rows = self._rows if skipping else None
        problem.choice, problem.number, problem.level = choice, number, level

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty((x.shape[0], self.problem.D))
        place = ctypes.addressof(self.problem)
        self._library.down(
            place, x.data_ptr(), out.data_ptr(), x.shape[0], torch.get_num_threads(), self._runner
        )
        return out


class FeedForward:
    """x + W_down sparse(silu(W_gate n) * W_up n), n = norm(x): x [R, D] to [R, D]."""

    def __init__(self, norm: Norm, gate: nn.Linear, up: nn.Linear, down: Down) -> None:
        self._run, self._runner = library(DTYPES[gate.weight.dtype]).feed_forward, pool.runner()
        maps = (_place(each) for each in (norm.weight, gate.weight, up.weight, gate.bias, up.bias))
        self._problem = _FeedForward(*maps, norm.eps)
        self._down = down

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        self._problem.down = self._down.problem
        place = ctypes.addressof(self._problem)
        self._run(place, x.data_ptr(), out.data_ptr(), x.shape[0], torch.get_num_threads(), self._runner)
        return out


def transposed(weight: Tensor) -> Tensor:
    """A weight [D, N] as rows [N, D and zeros] that can be passed over one by one."""
    D = len(weight)
    return F.pad(weight.detach().t(), [0, -D % LANES]).contiguous()


def _place(tensor: Any) -> int | None:
    return None if tensor is None else tensor.data_ptr()
