"""What one tensor operation costs: synapses by their non-zero operands, elementwise work by its elements.

Synaptic operations follow neurobench's SynapticOperations (v2.3): an operand whose values all lie in
{-1, 0, 1} makes its call an AC, any other a MAC; an operation is effective when input and weight are both
non-zero; zeros that a convolution pads are no operands. Biases are additions, not synapses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

COSTS_NOTHING = {
    "copies, joins, conversions": """
        _reshape_alias _to_copy _unsafe_view alias alias_copy as_strided cat channel_shuffle clone
        constant_pad_nd contiguous copy detach fill flip lift_fresh lift_fresh_copy masked_fill pixel_shuffle
        pixel_unshuffle reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad1d
        replication_pad2d resize roll set squeeze stack t transpose tril triu unsafe_split
        unsafe_split_with_sizes unsqueeze zero""",
    "made from nothing": """
        arange empty empty_like empty_permuted empty_strided eye full full_like new_empty new_empty_strided
        new_full new_ones new_zeros ones ones_like scalar_tensor zeros zeros_like""",
    "indexing and reading": """
        _local_scalar_dense _unsafe_index _unsafe_index_put _unsafe_masked_index embedding gather index
        index_copy index_fill index_put index_select masked_scatter masked_select nonzero scatter
        select_scatter slice_scatter take upsample_nearest1d upsample_nearest2d where""",
    "comparisons, choices, signs, logic": """
        abs all amax amin aminmax any argmax argmin argsort bitwise_and bitwise_not bitwise_or bitwise_xor
        clamp clamp_max clamp_min copysign eq equal ge gt hardtanh isfinite isinf isnan isneginf isposinf le
        logical_and logical_not logical_or logical_xor lt max max_pool2d_with_indices
        max_pool3d_with_indices maximum min minimum ne neg relu sgn sign signbit sort threshold topk""",
    "complex numbers as pairs": "_conj _conj_physical complex conj_physical",
}
"""Operations without arithmetic, by name. Views need no entry: their schema says that they are."""

FREE = frozenset(name for names in COSTS_NOTHING.values() for name in names.split())


class Synapses(NamedTuple):
    """Synaptic operations of one call."""

    ternary: bool  # the activation operand lies in {-1, 0, 1}: AC, otherwise MAC
    effective: int
    dense: int


class Elementwise(NamedTuple):
    """Other arithmetic of one call."""

    mul: int = 0
    add: int = 0
    rest: tuple[tuple[str, int], ...] = ()  # (operation, elements) that is neither


# ---- synapses ---------------------------------------------------------------------------------------


def is_ternary(x: Tensor) -> bool:
    """Whether every value is -1, 0 or 1."""
    return not x.is_complex() and bool(((x == 0) | (x == 1) | (x == -1)).all())


def matmul_operations(a: Tensor, b: Tensor) -> tuple[int, int]:
    """Effective and dense operations of a [*, n, k] @ b [*, k, m]: both operands meet along k."""
    met = (a != 0).sum(-2) * (b != 0).sum(-1)
    scale = 4 if a.is_complex() else 1
    return scale * int(met.sum()), scale * a.numel() * b.shape[-1]


def convolution_operations(
    x: Tensor, weight: Tensor, convolve: Callable[[Tensor, Tensor], Tensor]
) -> tuple[int, int]:
    """Effective and dense operations of a convolution of x [B, C, *] by `convolve(x, weight)`.

    The masks of non-zeros are convolved in float64, exact below 2^53; being linear, the convolution of
    their sum over the batch serves all samples at once.
    """
    met = (x != 0).sum(0, keepdim=True).double()
    each = torch.full_like(met, len(x))
    weights = (weight != 0).double()
    effective = convolve(met, weights).sum()
    dense = convolve(each, torch.ones_like(weights)).sum()
    scale = 4 if x.is_complex() else 1
    return scale * round(effective.item()), scale * round(dense.item())


def layer_operations(layer: nn.Module, x: Tensor) -> tuple[int, int]:
    """Effective and dense operations of a Linear or convolution layer on x [B, *], without its bias."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        conv = layer
        return convolution_operations(x, weight, lambda met, w: conv._conv_forward(met, w, None))
    return matmul_operations(x.flatten(0, -2), weight.t())


def synapses(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any, is_weight: Callable[[Tensor], bool]
) -> tuple[Synapses, Elementwise] | None:
    """The synaptic operations of an aten call and the additions of its bias; None if it has no synapse."""
    bias = None
    if name == "convolution":
        a, b, bias, stride, padding, dilation, transposed, output_padding, groups = args
        effective, dense = convolution_operations(
            a,
            b,
            lambda x, w: torch.ops.aten.convolution(
                x, w, None, stride, padding, dilation, transposed, output_padding, groups
            ),
        )
    elif name in ("mm", "bmm", "mv", "dot", "vdot", "addmm", "baddbmm", "addmv"):
        if name.startswith(("add", "badd")):
            bias, *args = args
        a, b = args[:2]
        effective, dense = matmul_operations(a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b)
    else:
        return None
    if is_weight(b):
        activation = a
    elif is_weight(a):
        activation = b
    else:
        activation = a if is_ternary(a) or not is_ternary(b) else b
    alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
    if bias is None or beta == 0:
        outside = Elementwise()
    else:
        outside = Elementwise(mul=out.numel() * ((alpha != 1) + (beta != 1)), add=out.numel())
    return Synapses(is_ternary(activation), effective, dense), outside


# ---- everything else --------------------------------------------------------------------------------


def elementwise(name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Elementwise | None:
    """Multiplications and additions of an aten call; None if nobody has said what it costs."""
    result = next(
        (t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)), None
    )
    if name in FREE or result is None or result.dtype == torch.bool:
        return Elementwise()
    rule = _RULES.get(name)
    return None if rule is None else rule(args, kwargs, result)


def pooling(outputs: int, kernel: int) -> Elementwise:
    """An average of `kernel` values: additions, and one multiplication by 1 / kernel."""
    return Elementwise(mul=outputs, add=outputs * (kernel - 1))


def _mul(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    n = out.numel()
    parts = sum((isinstance(a, Tensor) and a.is_complex()) or isinstance(a, complex) for a in args[:2])
    if parts == 2:
        return Elementwise(mul=4 * n, add=2 * n)
    return Elementwise(mul=2 * n if parts else n)


def _add(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    n = out.numel() * (2 if out.is_complex() else 1)
    alpha = kwargs.get("alpha", args[2] if len(args) > 2 else 1)
    return Elementwise(mul=n if alpha not in (1, -1) else 0, add=n)


def _sum(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    return Elementwise(add=(args[0].numel() - out.numel()) * (2 if out.is_complex() else 1))


def _mean(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    return Elementwise(mul=out.numel(), add=args[0].numel() - out.numel())


def _cumsum(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    n = out.numel()
    return Elementwise(add=n - n // out.shape[args[1]] if out.ndim and n else 0)


def _pow(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise | None:
    exponent = args[1]
    if isinstance(exponent, Tensor | complex) or exponent != int(exponent) or not 0 <= exponent <= 8:
        return None
    return Elementwise(mul=out.numel() * max(int(exponent) - 1, 0))


def _addcmul(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    n = out.numel()
    return Elementwise(mul=n if kwargs.get("value", 1) == 1 else 2 * n, add=n)


def _lerp(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    return Elementwise(mul=out.numel(), add=2 * out.numel())


def _scaled(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    return Elementwise(mul=out.numel())


def _batch_norm(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise | None:
    """At inference a scale and a shift of each element, known in advance."""
    return None if args[5] else Elementwise(mul=out.numel(), add=out.numel())


def _fixed_batch_norm(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    return Elementwise(mul=out.numel(), add=out.numel())


def _layer_norm(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    """Mean, difference, square, variance, scale, and the affine map where there is one."""
    n, rows = out.numel(), out.numel() // max(prod(args[1]), 1)
    weight, bias = args[2], args[3]
    return Elementwise(
        mul=2 * n + 2 * rows + (0 if weight is None else n),
        add=3 * n - rows + (0 if bias is None else n),  # two sums of n - rows, n differences, eps
        rest=(("rsqrt", rows),),
    )


def _avg_pool(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Elementwise:
    window, axes = args[1], out.ndim - 2
    kernel = prod(window) if len(window) > 1 else window[0] ** max(axes, 1)
    return pooling(out.numel(), kernel)


_RULES: dict[str, Callable[[Sequence[Any], dict[str, Any], Tensor], Elementwise | None]] = {
    "mul": _mul,
    "add": _add,
    "sub": _add,
    "rsub": _add,
    "sum": _sum,
    "mean": _mean,
    "cumsum": _cumsum,
    "pow": _pow,
    "addcmul": _addcmul,
    "lerp": _lerp,
    "leaky_relu": _scaled,
    "_prelu_kernel": _scaled,
    "native_batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _fixed_batch_norm,
    "native_layer_norm": _layer_norm,
    "avg_pool1d": _avg_pool,
    "avg_pool2d": _avg_pool,
    "avg_pool3d": _avg_pool,
    "_adaptive_avg_pool2d": _mean,
    "_adaptive_avg_pool3d": _mean,
}
