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

    whole_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of the state that are whole numbers."""

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
    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """The shape of each field of the state of so many samples."""

    def initial_state(self, x: Tensor) -> Any:
        """What is remembered before the first token, for tokens such as x [B, D]: zeros."""
        shapes = self.state_shapes(len(x))
        return self.State(
            *(
                torch.zeros(shape, dtype=self._dtype_of(name, x.dtype), device=x.device)
                for name, shape in zip(self.state_fields(), shapes, strict=True)
            )
        )

    def _dtype_of(self, field: str, dtype: torch.dtype) -> torch.dtype:
        """Of a field of the state, where tokens have `dtype`."""
        if field in self.whole_fields:
            return torch.long
        return computed_in(dtype) if field in self.wide_fields else dtype

    @classmethod
    def state_fields(cls) -> tuple[str, ...]:
        """Names of the state's tensors."""
        return cls.State._fields  # type: ignore[attr-defined]

    def state_from(self, fields: Mapping[str, Tensor]) -> Any:
        """Rebuild a state from its named tensors, as a saved Recording holds them: without 16-bit dtypes."""
        weight = next(self.parameters())
        found = {
            name: fields[name].to(device=weight.device, dtype=self._dtype_of(name, weight.dtype))
            for name in self.state_fields()
        }
        return self.State(**found)

    @abstractmethod
    def constructor(self) -> dict[str, Any]:
        """JSON-ready arguments that build an equal layer, whose state_dict then fits."""

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.constructor().items())

    def _check(self, x: Tensor, state: Any, axes: str) -> Any:
        """Refuse tokens and states that don't fit; the state, at rest where none was given.

        A state is looked through for NaN where it meets a sequence; one token must not wait for that.
        """
        self._check_tokens(x, axes)
        finite(f"{type(self).__name__}: x", x)
        return self._check_state(x, state, axes)

    def _check_state(self, x: Tensor, state: Any, axes: str) -> Any:
        who = type(self).__name__
        tokens = x[0] if axes.startswith("L") else x
        if state is None:
            return self.initial_state(tokens)
        if not isinstance(state, self.State):
            raise InputError(
                f"{who}: the state is a {type(state).__name__}, expected the {self.State.__name__} that an "
                "earlier call of this layer returned"
            )
        for name, own, shape in zip(self.state_fields(), state, self.state_shapes(len(tokens)), strict=True):
            if own.shape != shape:
                raise ShapeError(
                    f"{who}: the state's {name} is {list(own.shape)}, expected {list(shape)}; pass the state "
                    "that an earlier call of this layer with this batch returned"
                )
            dtype = self._dtype_of(name, x.dtype)
            if own.device != x.device or own.dtype != dtype:
                raise InputError(
                    f"{who}: the state's {name} is {own.dtype} on {own.device}, expected {dtype} on "
                    f"{x.device}; convert it with .to()"
                )
            if axes.startswith("L"):
                finite(f"{who}: the state's {name}", own)
        return state

    def _check_tokens(self, x: Tensor, axes: str) -> None:
        """Refuse tokens that don't fit, whatever they hold."""
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
