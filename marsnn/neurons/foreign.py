"""What marsnn knows about the neurons of snntorch and spikingjelly: how to run one step of them, purely.

Both keep their state inside the module. A `Guest` lends them a state for one step and takes it away again:

    guest.rest(x)                 their state before the first step, for currents x [B, *N]
    guest.advance(x, state)       one of their steps: (spikes, next state); the module is left as it was

Nothing here imports either library: a module that belongs to one brought it along. Checked with snntorch 1.0
and spikingjelly 2.0.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from marsnn.errors import InputError

HOMES = {
    "snntorch._neurons": "snntorch",
    "spikingjelly.activation_based.neuron": "spikingjelly",
}
"""The packages whose classes are neurons, and the library that each belongs to."""
LAYERS = "spikingjelly.activation_based.layer"
STATEFUL = ("spikingjelly.activation_based.base", "MemoryModule")
"""What a neuron of a user's own inherits from, and the packaged layers that do so too."""


def library(module: object) -> str | None:
    """The library whose neuron a module is, or inherits from; None where it is neither's."""
    if not isinstance(module, nn.Module):
        return None
    lineage = [(cls.__module__, cls.__name__) for cls in type(module).__mro__]
    for home, _ in lineage:
        for package, name in HOMES.items():
            if f"{home}.".startswith(f"{package}."):
                return name
    packaged = any(home.startswith(LAYERS) for home, _ in lineage)
    return "spikingjelly" if STATEFUL in lineage and not packaged else None


def guest_of(module: nn.Module) -> Guest:
    """The module as a guest.

    Raises:
        InputError: it is neither library's neuron, or one that has no step of its own; the reason is given.
    """
    who = f"{type(module).__module__.split('.')[0]}.{type(module).__name__}"
    name = library(module)
    if name is None:
        raise InputError(
            f"{who} is no neuron of snntorch or spikingjelly, so it can't be adopted; "
            "write it as a marsnn Neuron, or give a layer an attribute clock"
        )
    kind: type[Guest] = SnnTorch if name == "snntorch" else SpikingJelly
    reason = kind.refusal(module)
    if reason:
        raise InputError(f"{who} can't be adopted: {reason}")
    return kind(module)


class Guest(ABC):
    """A neuron of another library, run one step at a time with a state from outside.

    Attributes:
        module: theirs.
        fields: names of its state, the membrane first.
        surrogate: its spike function, None where it hides it.
    """

    fields: tuple[str, ...]
    surrogate: Any = None

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    @staticmethod
    @abstractmethod
    def refusal(module: nn.Module) -> str | None:
        """Why it can't be run step by step, None if it can."""

    @abstractmethod
    def rest(self, x: Tensor) -> tuple[Tensor, ...]:
        """The state before the first step, for currents x [B, *N]."""

    @abstractmethod
    def advance(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Any, tuple[Any, ...]]:
        """One step: what the module returns as spikes, and its next state, in the order of `fields`."""

    @abstractmethod
    def threshold(self) -> Tensor | float:
        """What a spike is worth: their threshold, 1 where a spike carries its worth or they have none."""

    @abstractmethod
    def levels(self) -> tuple[int, ...] | None:
        """Values of their spikes; empty if graded, None if nobody knows."""


class SnnTorch(Guest):
    """`spk, *states = module(x, *states)`, whatever `init_hidden` and `output` say."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.order = _state_arguments(module)
        if self._is_delta:
            self.order = ("mem", "mem_prev")
        self.fields = ("mem", *(name for name in self.order if name != "mem"))
        self.surrogate = self.module.spike_grad

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        if not _state_arguments(module):
            return "it runs all time steps at once and takes no state; use a neuron that steps, say Leaky"
        if not hasattr(module, "spike_grad") or "mem" not in _state_arguments(module):
            return "it has no membrane named mem and no spike_grad, so it is no neuron of snntorch's kind"
        for ours, theirs in (("input_size", "hidden_size"), ("in_channels", "out_channels")):
            before, after = getattr(module, ours, None), getattr(module, theirs, None)
            if before != after:
                return (
                    f"it maps {before} features to {after}, and a neuron keeps their number; "
                    f"give it {ours} = {theirs}, behind a layer of yours"
                )
        if getattr(module, "max_pool", 0) or getattr(module, "avg_pool", 0):
            return "it pools its spikes, and a neuron keeps the shape; pool in a layer of its own"
        return None

    @property
    def _is_delta(self) -> bool:
        return any(cls.__name__ == "DeltaLeaky" for cls in type(self.module).__mro__)

    def rest(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(x) for _ in self.fields)

    def advance(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Any, tuple[Any, ...]]:
        given = dict(zip(self.fields, state, strict=True))
        arguments: list[Any] = [given[name] for name in self.order]
        if self._is_delta:  # takes and returns its state as one tuple
            arguments = [tuple(arguments)]
        with lent(self.module, (*self.order, "reset", "spk", "init_hidden", "output")):
            self.module.init_hidden, self.module.output = False, False
            spikes, *after = self.module(x, *arguments)
        after = list(after[0]) if self._is_delta else after
        if "spk" in self.order:  # the recurrent ones return their spikes once, as output and as state
            after.insert(self.order.index("spk"), spikes)
        named = dict(zip(self.order, after, strict=True))
        return spikes, tuple(named[name] for name in self.fields)

    def threshold(self) -> Tensor | float:
        worth: Tensor = self.module.delta_threshold if self._is_delta else self.module.threshold
        return worth

    def levels(self) -> tuple[int, ...] | None:
        factor = getattr(self.module, "graded_spikes_factor", None)
        if factor is None or self.module.inhibition or self._is_delta:  # which leave the factor out
            return (0, 1)
        return _multiples((0, 1), factor)


class SpikingJelly(Guest):
    """A MemoryModule in single-step mode, its memories lent for the step."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.order = tuple(self.module._memories)
        first = "v" if "v" in self.order else self.order[0]
        self._names = (first, *(name for name in self.order if name != first))
        self.fields = tuple(name.lstrip("_") for name in self._names)
        self.surrogate = getattr(module, "surrogate_function", None)

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        names = {cls.__name__ for cls in type(module).__mro__}
        if "OTTTLIFNode" in names:
            return "it returns a trace beside its spikes, which only the OTTT layers of its library take"
        if "MemoryModule" not in names:
            return (
                "it keeps no state from one step to the next (it takes all steps at once, or stands for a "
                "whole token by itself)"
            )
        if not _has_single_step(type(module)):
            return "it has a multi-step form only, no step of its own to run"
        reset_values: Mapping[str, Any] = module._memories_rv  # type: ignore[assignment]
        odd = [name for name, value in reset_values.items() if isinstance(value, list | tuple | dict)]
        if odd or not reset_values:
            kept = f"keeps {odd[0]}, a {type(reset_values[odd[0]]).__name__}," if odd else "keeps no memory"
            return f"it {kept} instead of a membrane for each neuron"
        inner = [part for part in module.modules() if part is not module and getattr(part, "_memories", None)]
        if inner:
            return f"it holds another stateful module, {type(inner[0]).__name__}; adopt them one by one"
        return None

    def rest(self, x: Tensor) -> tuple[Tensor, ...]:
        """Their reset values, which they spread over the neurons themselves where they know how."""
        values = [copy.deepcopy(self.module._memories_rv[name]) for name in self.order]
        values = list(self.module.materialize_states((x,), tuple(values), "s"))
        named = {name: self._spread(name, value, x) for name, value in zip(self.order, values, strict=True)}
        return tuple(named[name] for name in self._names)

    def _spread(self, name: str, value: Any, x: Tensor) -> Tensor:
        if not isinstance(value, Tensor | int | float):
            raise InputError(
                f"{type(self.module).__name__} starts with {name} = {value!r}, not a number: call "
                f"set_reset_value({name!r}, 0.0) on it"
            )
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand_as(x).clone()

    def advance(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Any, tuple[Any, ...]]:
        given = dict(zip(self._names, state, strict=True))
        with lent(self.module, ("_memories", "_step_mode", "v_seq", "state_seqs")):
            self.module._memories = {name: given[name] for name in self.order}
            self.module._step_mode = "s"
            if hasattr(self.module, "v_seq"):
                self.module.v_seq = None
            spikes = self.module(x)
            after = self.module._memories
        return spikes, tuple(after[name] for name in self._names)

    def threshold(self) -> Tensor | float:
        if self._is("LIAFNode"):
            return 1.0
        worth: Tensor | float = getattr(self.module, "v_threshold", 1.0)
        return worth

    def levels(self) -> tuple[int, ...] | None:
        if self._is("LIAFNode"):
            return ()
        if self._is("STBIFNode"):
            return _multiples((-1, 0, 1), self.module.q_threshold)
        if not self._is("BaseNode", "SimpleBaseNode", "ActivationAwareIFNode"):
            return None
        if not getattr(self.surrogate, "spiking", True):
            return ()
        if type(self.surrogate).__name__ == "MultiLevelSpikeCount":
            return tuple(range(int(self.surrogate.max_spike_count) + 1))
        return (-1, 0, 1) if self._is("TernaryIFNode", "TernaryLIFNode") else (0, 1)

    def _is(self, *names: str) -> bool:
        return any(cls.__name__ in names for cls in type(self.module).__mro__)


@contextmanager
def lent(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Attributes and buffers of a module that may change within the block and are then put back."""
    names = tuple(names)
    stores: tuple[dict[str, Any], ...] = (module.__dict__, module._buffers)
    kept = [{name: store[name] for name in names if name in store} for store in stores]
    try:
        yield
    finally:
        for store, before in zip(stores, kept, strict=True):
            for name in names:
                if name in before:
                    store[name] = before[name]
                else:
                    store.pop(name, None)


def _state_arguments(module: nn.Module) -> tuple[str, ...]:
    """The states that a snntorch neuron takes after its input: (syn, mem) of Synaptic."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[2:]
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def _has_single_step(cls: type) -> bool:
    """Whether a class below MemoryModule and BaseNode, whose steps only raise, defines a step."""
    steps = {"forward", "single_step_forward", "single_step_functional_forward"}
    return any(
        steps & set(vars(base))
        for base in cls.__mro__
        if base.__name__ not in ("MemoryModule", "BaseNode", "Module")
    )


def _multiples(signs: tuple[int, ...], factor: Tensor) -> tuple[int, ...]:
    """The levels of spikes scaled by `factor`: empty where it is trained, not whole, or of each neuron."""
    if factor.requires_grad or factor.numel() != 1 or factor.item() != round(factor.item()):
        return ()
    return tuple(sorted({sign * round(factor.item()) for sign in signs}))
