"""What one step of an unknown neuron costs, read off its tensor operations.

The convention is that of our own `update_cost`: a product with a spike, or with 1 - spike, selects and costs
nothing; comparisons, copies and signs cost nothing; a subtraction before a comparison is an addition. A
product with a setting, dividing by one included, is a multiplication. A function (exp, sigmoid, a true
division, a broken power) counts as one multiplication, which is a lower bound. Work that all neurons share,
such as clamping a decay, is left out. Anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from marsnn.errors import InputError
from marsnn.neurons.base import UpdateCost

KINDS = {
    "copies and conversions": """
        _to_copy _unsafe_view alias arange cat clone copy detach empty empty_like expand fill full full_like
        gather index index_put item lift_fresh masked_fill masked_scatter new_zeros ones ones_like permute
        scalar_tensor scatter select split squeeze stack t transpose unsafe_split unsqueeze view zeros
        zeros_like""",
    "comparisons, choices, signs": """
        abs amax amin any argmax argmin bitwise_and bitwise_not bitwise_or ceil clamp clamp_max clamp_min eq
        floor ge gt heaviside isfinite le logical_and logical_not logical_or lt max maximum min minimum ne neg
        relu round sign sort topk trunc where""",
    "drawn": "bernoulli rand rand_like uniform",
    "functions": """
        acos atan cos erf exp expm1 gelu log log1p log_sigmoid_forward reciprocal rsqrt sigmoid silu sin
        softplus sqrt tan tanh""",
}
"""Operations without products or sums, by name."""

FUNCTIONS = frozenset(KINDS["functions"].split())
FREE = frozenset(name for names in KINDS.values() for name in names.split()) - FUNCTIONS
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "convolution": (0, 1)}
"""Where the two factors of a product with weights stand among its arguments."""


def measure(step: Callable[[], object], neurons: int) -> UpdateCost:
    """Arithmetic of `step()` per neuron, where it runs `neurons` of them.

    Raises:
        InputError: naming an operation that nobody has said the cost of.
    """
    meter = _Meter(neurons)
    with torch.no_grad(), meter:
        step()
    return UpdateCost(mul=round(meter.mul / neurons), add=round(meter.add / neurons))


class _Meter(TorchDispatchMode):
    """Adds up elements of results that have at least one value for each neuron."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.neurons = neurons
        self.mul = 0
        self.add = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace != "aten":
            raise InputError(f"nobody has said what the operation {func.namespace}.{name} costs")
        result = next((t for t in (out if isinstance(out, tuple | list) else [out]) if _full(t, self)), None)
        if result is not None and result.dtype != torch.bool and not func.is_view:
            self._book(name.rstrip("_"), args, kwargs or {}, result)
        return out

    def _book(self, name: str, args: Any, kwargs: dict[str, Any], out: Tensor) -> None:
        n = out.numel()
        operands = [arg for arg in args if _full(arg, self)]
        spikes = [is_spike(operand) for operand in operands]
        if name in FREE:
            return
        if name in ("add", "sub", "rsub"):
            other = args[1]
            nothing = not isinstance(other, Tensor) and other == 0
            self.add += 0 if nothing or (spikes and all(spikes)) else n
            self.mul += 0 if kwargs.get("alpha", 1) in (1, -1) else n
        elif name == "mul":
            self.mul += 0 if any(spikes) else n
        elif name == "div":
            self.mul += 0 if spikes and spikes[0] else n
        elif name == "square":
            self.mul += n
        elif name == "pow" and args[1] in (2, 3):
            self.mul += n * (int(args[1]) - 1)
        elif name in ("addcmul", "lerp"):
            self.mul += n
            self.add += n * (2 if name == "lerp" else 1)
        elif name in FUNCTIONS or name == "pow":
            self.mul += n
        elif "batch_norm" in name:  # at inference a scale and a shift
            self.mul += n
            self.add += n
        elif name in PRODUCTS:
            self._book_product(name, args, n)
        else:
            raise InputError(f"nobody has said what the operation {name} costs")

    def _book_product(self, name: str, args: Any, n: int) -> None:
        values, weights = (args[place] for place in PRODUCTS[name])
        each = weights[0].numel() if name == "convolution" else values.shape[-1]
        self.add += n * each
        self.mul += 0 if is_spike(values) else n * each


def is_spike(tensor: Tensor) -> bool:
    """Whether every value is -1, 0 or 1."""
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor.abs() == 1)).all())


def _full(value: object, meter: _Meter) -> bool:
    """Whether a value is a tensor with at least one element for each neuron."""
    return isinstance(value, Tensor) and value.numel() >= meter.neurons
