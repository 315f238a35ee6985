"""The few checks on users' tensors and settings that many modules share.

Legend of shapes, used in every docstring of the package:

    L tokens (or samples of a sequence)     T micro-steps of a neuron inside one token
    B batch                                 N neurons, D features, C classes, * any leading axes
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from marsnn.errors import InputError, NonFiniteError


def positive(name: str, value: float | Tensor) -> None:
    """Refuse a setting that is not finite and greater than zero."""
    if hasattr(value, "__array__") and not isinstance(value, Tensor | Real):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        good = bool(torch.isfinite(value).all() and (value > 0).all())
        shown = f"a tensor with minimum {value.min().item():g}" if value.numel() else "an empty tensor"
    else:
        try:
            good = isinstance(value, Real) and math.isfinite(value) and value > 0
        except OverflowError:  # an int beyond every float
            good = False
        shown = repr(value) if len(repr(value)) < 40 else f"{repr(value)[:36]}..."
    if not good:
        raise InputError(f"{name} must be finite and > 0, got {shown}")


def count(name: str, value: object) -> int:
    """Return `value` as an int >= 1, or refuse it."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} must be a whole number >= 1, got {value!r}")
    return int(value)


def not_negative(name: str, value: object) -> None:
    """Refuse a setting that is not finite and zero or greater."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise InputError(f"{name} must be finite and >= 0, got {value!r}")


def none_or_count(name: str, value: object) -> None:
    """Refuse a setting that is no whole number >= 0, of which 0 stands for none."""
    if value != 0 or isinstance(value, bool):
        count(name, value)


def finite(where: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity, saying how many and where the first one is.

    Inside `torch.compile` and `torch.func` transforms, and on the meta device, there are no values to read,
    so nothing is checked.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or tensor.is_meta:
        return
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    first = tuple(bad[0].tolist())
    raise NonFiniteError(
        f"{where} holds {len(bad)} NaN or infinite values of {tensor.numel()}, the first at index "
        f"{first}; clean or rescale it first"
    )


def transformed(x: Tensor) -> bool:
    """Whether operations on x are traced or transformed: torch.compile, torch.func, a mode or a subclass."""
    return (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or bool(torch._C._len_torch_dispatch_stack())
    )
