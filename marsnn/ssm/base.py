"""The contract of a sequence layer: it ticks once a token, and remembers what came before.

    y, state = layer(x, state)          L tokens, [L, B, D]
    y, state = layer.step(x, state)     one token, [B, D]

As with neurons, state goes in and comes out and the Module never keeps it: 60 tokens and then 40 are 100.
Within a Network the layer receives the decoded activation of each token, whatever T is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from marsnn.checks import finite
from marsnn.errors import InputError, ShapeError
from marsnn.ssm.reference import computed_in


class SequenceLayer(nn.Module, ABC):
    """From x [L, B, D] to y [L, B, outputs]; see the module's docstring for the calls.

    Attributes:
        features: D.
        outputs: features of y.
    """

    clock = "token"

    State: ClassVar[type[tuple[Any, ...]]]
    """NamedTuple of tensors."""

    wide_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of the state that are float32 where the layer has 16 bits; the others have its dtype."""

    features: int
    outputs: int

    @abstractmethod
    def forward(self, x: Tensor, state: Any = None, final_state: bool = True) -> tuple[Tensor, Any]:
        """L tokens [L, B, D] from a state (None: nothing remembered) to (y [L, B, outputs], next state).

        Without `final_state` the next state may be None, which can save work.
        """

    @abstractmethod
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One token: x [B, D] to (y [B, outputs], next state), at a cost that no length changes."""

    @abstractmethod
    def initial_state(self, x: Tensor) -> Any:
        """What is remembered before the first token, for tokens such as x [B, D]."""

    @classmethod
    def state_fields(cls) -> tuple[str, ...]:
        """Names of the state's tensors."""
        return cls.State._fields  # type: ignore[attr-defined]

    def state_from(self, fields: Mapping[str, Tensor]) -> Any:
        """Rebuild a state from its named tensors, as a saved Recording holds them: without 16-bit dtypes."""
        weight = next(self.parameters())
        found = {}
        for name in self.state_fields():
            dtype = computed_in(weight.dtype) if name in self.wide_fields else weight.dtype
            dtype = dtype if fields[name].is_floating_point() else fields[name].dtype
            found[name] = fields[name].to(device=weight.device, dtype=dtype)
        return self.State(**found)

    @abstractmethod
    def constructor(self) -> dict[str, Any]:
        """JSON-ready arguments that build an equal layer, whose state_dict then fits."""

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.constructor().items())

    def _check(self, x: Tensor, state: Any, axes: str) -> Any:
        """Refuse tokens and states that don't fit; the state, at rest where none was given."""
        who, D = type(self).__name__, self.features
        if x.ndim != len(axes.split(",")) or x.shape[-1] != D:
            raise ShapeError(
                f"{who}: expected x [{axes[:-1]}{D}], got {list(x.shape)}; "
                "sequences [L, B, D] go to the layer itself, one token [B, D] to its step()"
            )
        if 0 in x.shape:
            raise ShapeError(f"{who}: x {list(x.shape)} is empty: L and B must be at least 1")
        weight = next(self.parameters())
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(
                f"{who}: x is {x.dtype}, the layer {weight.dtype}; convert one: x.to({weight.dtype})"
            )
        if x.device != weight.device:
            raise InputError(f"{who}: x is on {x.device}, the layer on {weight.device}; move one with .to()")
        finite(f"{who}: x", x)
        at_rest = self.initial_state(x[0] if axes.startswith("L") else x)
        if state is None:
            return at_rest
        if not isinstance(state, self.State):
            raise InputError(
                f"{who}: the state is a {type(state).__name__}, expected the {self.State.__name__} that an "
                "earlier call of this layer returned"
            )
        for name, own, rest in zip(self.state_fields(), state, at_rest, strict=True):
            if own.shape != rest.shape:
                raise ShapeError(
                    f"{who}: the state's {name} is {list(own.shape)}, expected {list(rest.shape)}; pass the "
                    "state that an earlier call of this layer with this batch returned"
                )
            if own.device != rest.device or own.dtype != rest.dtype:
                raise InputError(
                    f"{who}: the state's {name} is {own.dtype} on {own.device}, expected {rest.dtype} on "
                    f"{rest.device}; convert it with .to()"
                )
            finite(f"{who}: the state's {name}", own)
        return state
