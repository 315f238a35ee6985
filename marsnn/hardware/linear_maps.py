"""Linear layers as maps that merge: what stands between two stages becomes one matrix or one kernel.

    Flatten, Identity           nothing but a shape
    Linear                      a matrix
    Conv1d, Conv2d, AvgPool     a kernel; a pool's is 1 / size, each channel by itself
    pool after a convolution, convolution after a pool      one kernel, longer and with wider strides
    Linear after a pool                                     one matrix

All of these are exact in real numbers. Two Linear layers in a row, or two convolutions, would merge to a map
of more weights than they have, so they are left to their owner.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.hardware.stages import Convolution

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Dense:
    """y = weight x."""

    weight: Reals  # [N, M]

    def columns(self, worth: Reals, shape: tuple[int, ...]) -> Dense | str:
        """With what each sender [M] is worth folded in."""
        return Dense(self.weight * worth)

    def rows(self, begin: int, end: int) -> Dense:
        return Dense(self.weight[begin:end])


@dataclass(frozen=True)
class Kernel:
    """A convolution."""

    weight: Reals  # [C, C_in / groups, *K]
    conv: Convolution
    pool: bool = False  # the same weight for all of a channel's window, each channel by itself

    def columns(self, worth: Reals, shape: tuple[int, ...]) -> Kernel | str:
        """As `Dense.columns`; all neurons of a channel have to be worth the same."""
        by_channel = worth.reshape(self.conv.source[0], -1)
        if (by_channel != by_channel[:, :1]).any():
            return (
                "thresholds differ within a channel, whose kernel has one weight for all; use feature_dim=-3"
            )
        each = by_channel[:, 0].reshape(self.conv.groups, -1)  # [groups, C_in / groups]
        per_output = np.repeat(each, len(self.weight) // self.conv.groups, axis=0)
        return replace(
            self, weight=self.weight * per_output.reshape(*per_output.shape, *[1] * len(self.conv.stride))
        )


@dataclass(frozen=True)
class Each:
    """y_j = weight_j x_j."""

    weight: Reals  # [N]

    def columns(self, worth: Reals, shape: tuple[int, ...]) -> Each | str:
        return Each(self.weight * worth)


Affine = Dense | Kernel | Each


def each_of(shape: tuple[int, ...]) -> Each:
    """The identity."""
    return Each(np.ones(int(np.prod(shape))))


@dataclass(frozen=True)
class Own:
    """A layer on inputs of one shape."""

    map: Dense | Kernel | None  # None: only the shape changes
    shape: tuple[int, ...]  # of its output
    apply: Callable[[Reals], Reals]  # flat [M] to flat [N], the layer's bias included


@dataclass(frozen=True)
class Merged:
    """A map of what one stage sends; None is the identity."""

    source: str
    map: Dense | Kernel | None = None
    name: str = ""  # of its last layer with weights

    @property
    def plain(self) -> bool:
        """Whether it is what the stage sends, as it is."""
        return self.map is None


def affine_of(layer: nn.Module, shape: tuple[int, ...]) -> Own | str:
    """A linear layer on inputs [*shape], or why it has no map."""
    exact = deepcopy(layer).double().cpu().eval()
    if isinstance(layer, nn.Linear) and len(shape) != 1:
        return f"a Linear on {list(shape)}; put a Flatten before it"
    try:
        with torch.no_grad():
            out = tuple(exact(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    except RuntimeError as error:
        return f"can't take an input {list(shape)}: {str(error).splitlines()[0]}"

    def apply(x: Reals) -> Reals:
        with torch.no_grad():
            y: Tensor = exact(torch.from_numpy(x).reshape(1, *shape))
        return y.reshape(-1).numpy().copy()

    found: Dense | Kernel | str | None = None
    if isinstance(layer, nn.Linear):
        found = Dense(_real(layer.weight))
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        found = _convolution(layer, shape, out)
    elif isinstance(layer, nn.AvgPool1d | nn.AvgPool2d):
        found = _pool(layer, shape, out)
    if isinstance(found, str):
        return found
    return Own(found, out, apply)


def _convolution(layer: nn.Conv1d | nn.Conv2d, shape: tuple[int, ...], out: tuple[int, ...]) -> Kernel | str:
    if layer.padding_mode != "zeros":
        return f"padding_mode = {layer.padding_mode!r}; only zeros are mapped"
    padding = layer.padding
    if padding == "valid":
        padding = (0,) * len(layer.kernel_size)
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(each % 2 for each in total):
            return 'padding = "same" with an even kernel pads one side more; give numbers'
        padding = tuple(each // 2 for each in total)
    assert not isinstance(padding, str)
    conv = Convolution(
        shape, out, tuple(layer.stride), tuple(padding), tuple(layer.dilation), int(layer.groups)
    )
    return Kernel(_real(layer.weight), conv)


def _pool(layer: nn.AvgPool1d | nn.AvgPool2d, shape: tuple[int, ...], out: tuple[int, ...]) -> Kernel | str:
    rank = 1 if isinstance(layer, nn.AvgPool1d) else 2
    size, stride, padding = (_tuple(each, rank) for each in (layer.kernel_size, layer.stride, layer.padding))
    if layer.ceil_mode or (any(padding) and not layer.count_include_pad):
        return "windows of an average that are cut at the border have other weights; pad or crop the input"
    divisor = getattr(layer, "divisor_override", None) or int(np.prod(size))
    conv = Convolution(shape, out, stride, padding, (1,) * rank, shape[0])
    return Kernel(np.full((shape[0], 1, *size), 1 / divisor), conv, pool=True)


def _tuple(value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    found = (value,) * rank if isinstance(value, int) else tuple(value)
    return found * rank if len(found) == 1 else found


def merge(name: str, own: Own, term: Merged) -> Merged | str:
    """A layer behind what is there already, or why they don't merge."""
    before = term.map
    if own.map is None:
        return term
    if before is None:
        return Merged(term.source, own.map, name)
    label = term.name if isinstance(own.map, Kernel) and own.map.pool else name
    if isinstance(own.map, Kernel) and isinstance(before, Kernel) and (own.map.pool or before.pool):
        found = _kernels(own.map, before)
        if isinstance(found, str):
            return found
        return Merged(term.source, found, label)
    if isinstance(own.map, Dense) and isinstance(before, Kernel) and before.pool:
        return Merged(term.source, Dense(_through(own.map.weight, before)), name)
    kind = "Linear" if isinstance(own.map, Dense) else "convolution"
    return f"follows {term.name} with no neuron between; merge the two into one {kind}"


def _kernels(after: Kernel, before: Kernel) -> Kernel | str:
    """One kernel that does what two do, one of which is a pool."""
    a, b = after.conv, before.conv
    rank = len(a.stride)
    if len(b.stride) != rank:
        return "a kernel of other dimensions than the one before it; put a neuron between them"
    if any(a.padding):
        sizes = before.weight.shape[2:]
        whole = all(n % s == 0 for n, s in zip(b.source[1:], b.stride, strict=True))
        if not (before.pool and not any(b.padding) and tuple(b.stride) == tuple(sizes) and whole):
            return "pads what a kernel before it has made; put a neuron between them, or pad before that one"
    span = [
        (k1 - 1) * d1 + s1 * (k2 - 1) * d2 + 1
        for k1, d1, s1, k2, d2 in zip(
            before.weight.shape[2:], b.dilation, b.stride, after.weight.shape[2:], a.dilation, strict=True
        )
    ]
    # The one that isn't a pool says which channels meet; a pool's weight is one number.
    mixing, pooling = (before, after) if after.pool else (after, before)
    weight = np.zeros((*mixing.weight.shape[:2], *span))
    share = pooling.weight.flat[0]
    for first in product(*map(range, before.weight.shape[2:])):
        for second in product(*map(range, after.weight.shape[2:])):
            place = tuple(
                i * d1 + s1 * j * d2
                for i, d1, s1, j, d2 in zip(first, b.dilation, b.stride, second, a.dilation, strict=True)
            )
            own = first if mixing is before else second
            weight[(slice(None), slice(None), *place)] += (
                share * mixing.weight[(slice(None), slice(None), *own)]
            )
    conv = Convolution(
        b.source,
        a.target,
        tuple(s1 * s2 for s1, s2 in zip(b.stride, a.stride, strict=True)),
        tuple(p1 + s1 * p2 for p1, s1, p2 in zip(b.padding, b.stride, a.padding, strict=True)),
        (1,) * rank,
        mixing.conv.groups,
    )
    return Kernel(weight, conv, pool=after.pool and before.pool)


def _through(weight: Reals, pool: Kernel) -> Reals:
    """weight [N, M'] times the matrix of a pool [M', M]."""
    conv, rank = pool.conv, len(pool.conv.stride)
    image = torch.from_numpy(weight).reshape(len(weight), *conv.target)
    transposed = F.conv_transpose1d if rank == 1 else F.conv_transpose2d
    left = [
        n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
        for n, m, s, p, d, k in zip(
            conv.source[1:], conv.target[1:], conv.stride, conv.padding, conv.dilation,
            pool.weight.shape[2:], strict=True,
        )
    ]  # fmt: skip
    spread = transposed(
        image, torch.from_numpy(pool.weight), None, conv.stride, conv.padding, 0, conv.groups, conv.dilation
    )
    pads = [each for size in reversed(left) for each in (0, size)]
    return F.pad(spread, pads).reshape(len(weight), -1).numpy().copy()


def _real(tensor: Tensor) -> Reals:
    return tensor.detach().cpu().double().numpy()
