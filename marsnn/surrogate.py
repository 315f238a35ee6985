"""Spike functions: a step forward, a smooth derivative backward.

Every surrogate is a callable `spikes = surrogate(x)`. Forward it is the Heaviside step,

    s = 1 where x >= 0 else 0,          x = membrane - threshold

and backward it multiplies the incoming gradient by its `derivative(x)`, because the true derivative is
zero almost everywhere (Neftci, Mostafa, Zenke 2019, IEEE Signal Processing Magazine 36(6)).

| factory                 | derivative at x                       | known as                         |
|-------------------------|---------------------------------------|----------------------------------|
| atan(alpha)             | alpha / (2 (1 + (pi alpha x / 2)^2))  | ATan in spikingjelly, snntorch   |
| sigmoid(alpha)          | alpha sg(alpha x) (1 - sg(alpha x))   | Sigmoid in spikingjelly          |
| triangular(alpha)       | alpha max(0, 1 - alpha abs(x))        | PiecewiseQuadratic, Esser 2016   |
| fast_sigmoid(slope)     | 1 / (1 + slope abs(x))^2              | SuperSpike, Zenke & Ganguli 2018 |
| rectangular(width)      | 1 / width where abs(x) < width / 2    | Rect, Wu 2018 (STBP)             |
| erf(alpha)              | alpha / sqrt(pi) exp(-(alpha x)^2)    | Erf, a Gaussian window           |
| straight_through(scale) | scale                                 | STE, Bengio 2013                 |

Surrogates of snntorch and spikingjelly are accepted wherever one of these is: their gradient is used, the
spike decision stays `>=` (snntorch itself decides with `>`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from marsnn.checks import positive
from marsnn.errors import InputError

SpikeFunction = Callable[[Tensor], Tensor]


class _Heaviside(torch.autograd.Function):
    """The step with a borrowed derivative; differentiable twice, since the derivative is plain torch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, surrogate: Surrogate) -> Tensor:
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(x), None


class Surrogate(ABC):
    """A step function whose gradient is `derivative`."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """The stand-in for ds/dx. Shapes: x and the result are [*]."""

    def __call__(self, x: Tensor) -> Tensor:
        return _Heaviside.apply(x, self)  # type: ignore[no-untyped-call]

    @property
    def name(self) -> str:
        """The factory that made it."""
        return next(name for name, kind in _KINDS.items() if kind is type(self))

    @property
    def setting(self) -> float:
        """Its one argument, whatever it is called."""
        return float(getattr(self, next(iter(self.__dataclass_fields__))))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _ATan(Surrogate):
    alpha: float

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha / (2 * (1 + (math.pi / 2 * self.alpha * x) ** 2))


@dataclass(frozen=True)
class _Sigmoid(Surrogate):
    alpha: float

    def derivative(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(self.alpha * x)
        return self.alpha * s * (1 - s)


@dataclass(frozen=True)
class _Triangular(Surrogate):
    alpha: float

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha * (1 - self.alpha * x.abs()).clamp(min=0)


@dataclass(frozen=True)
class _FastSigmoid(Surrogate):
    slope: float

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (1 + self.slope * x.abs()) ** 2


@dataclass(frozen=True)
class _Rectangular(Surrogate):
    width: float

    def derivative(self, x: Tensor) -> Tensor:
        return (x.abs() < self.width / 2).to(x.dtype) / self.width


@dataclass(frozen=True)
class _Erf(Surrogate):
    alpha: float

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha / math.sqrt(math.pi) * torch.exp(-((self.alpha * x) ** 2))


@dataclass(frozen=True)
class _StraightThrough(Surrogate):
    scale: float

    def derivative(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.scale)


@dataclass(frozen=True)
class _Foreign(Surrogate):
    """Another library's spike function: its gradient, our decision."""

    function: SpikeFunction

    def derivative(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            probe = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(probe).sum(), probe)
        return slope

    def __call__(self, x: Tensor) -> Tensor:
        theirs = self.function(x)
        ours = (x >= 0).to(x.dtype)
        return ours + (theirs - theirs.detach()).to(x.dtype)

    @property
    def name(self) -> str:
        return "foreign"


_KINDS: dict[str, type[Surrogate]] = {
    "atan": _ATan,
    "sigmoid": _Sigmoid,
    "triangular": _Triangular,
    "fast_sigmoid": _FastSigmoid,
    "rectangular": _Rectangular,
    "erf": _Erf,
    "straight_through": _StraightThrough,
}


def _checked(name: str, value: float) -> float:
    positive(name, value)
    return float(value)


def atan(alpha: float = 2.0) -> Surrogate:
    """Arctangent; the default, and the one that spikingjelly and snntorch share."""
    return _ATan(_checked("alpha", alpha))


def sigmoid(alpha: float = 4.0) -> Surrogate:
    """Derivative of the logistic function."""
    return _Sigmoid(_checked("alpha", alpha))


def triangular(alpha: float = 1.0) -> Surrogate:
    """A tent of height alpha, zero from abs(x) = 1 / alpha on."""
    return _Triangular(_checked("alpha", alpha))


def fast_sigmoid(slope: float = 25.0) -> Surrogate:
    """SuperSpike's derivative of the fast sigmoid."""
    return _FastSigmoid(_checked("slope", slope))


def rectangular(width: float = 1.0) -> Surrogate:
    """A box of area one."""
    return _Rectangular(_checked("width", width))


def erf(alpha: float = 2.0) -> Surrogate:
    """A Gaussian bell of area one."""
    return _Erf(_checked("alpha", alpha))


def straight_through(scale: float = 1.0) -> Surrogate:
    """A constant derivative."""
    return _StraightThrough(_checked("scale", scale))


def resolve(surrogate: SpikeFunction | None) -> Surrogate:
    """Return a Surrogate: the default for None, our own as it is, any other callable wrapped."""
    if surrogate is None:
        return atan()
    if isinstance(surrogate, Surrogate):
        return surrogate
    if callable(surrogate):
        return _Foreign(surrogate)
    raise InputError(f"surrogate must be callable, got {surrogate!r}; try marsnn.surrogate.atan(2.0)")


def to_settings(surrogate: Surrogate) -> dict[str, Any] | None:
    """A JSON-ready form of one of our surrogates; None for another library's."""
    if isinstance(surrogate, _Foreign):
        return None
    return {"name": surrogate.name, **asdict(surrogate)}  # type: ignore[call-overload]


def from_settings(settings: dict[str, Any]) -> Surrogate:
    """The surrogate that `to_settings` described."""
    values = dict(settings)
    name = values.pop("name", None)
    try:
        return _KINDS[name](**values)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"no surrogate of settings {settings}; the known ones: {', '.join(_KINDS)}"
        ) from error
