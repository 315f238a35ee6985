"""Network: named layers in order, with skips; what the simulator, the counter and the exporter all read.

Two clocks. A token is T micro-steps, T equal for all neurons of a network. What travels between layers is a
`Signal`, which knows both clocks:

    decoded()    [L, B, *]       the activation of each token
    per_step()   [T, L, B, *]    what arrives at each micro-step

with one invariant: the mean of per_step() over T is decoded(). Linear maps keep it, bias included, so they
may act on either. A neuron then takes the clock it integrates by:

    ATMN              decoded(): the train of the token is summed, the bias added once, all injected at t = 0
    LIF and the like  per_step(): each step's current and bias; a static activation is held
    other layers      decoded(): once a token (activations, norms, gated maps; state space layers, which
                      remember tokens)

So the matmul before an ATMN is one matmul of the decoded value; `Network(..., unrolled=True)` runs the T
matmuls instead, which agrees within rounding. The two maps of a `GatedLinear` likewise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from marsnn.checks import count, finite
from marsnn.errors import InputError, ShapeError, UnknownLayerError
from marsnn.gated import GatedLinear
from marsnn.neurons.adopted import adopt_layers
from marsnn.neurons.base import Neuron
from marsnn.ssm import S4D, SSD, SequenceLayer, SSDCore

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")

State = dict[str, Any]
"""What one call hands to the next: layer name -> that layer's state. Empty where nothing crosses tokens."""

LINEAR_MAPS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
)
"""Layers that are affine in their input: they may act on each micro-step."""

TOKEN_LAYERS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.MaxPool1d,
    nn.MaxPool2d,
    GatedLinear,
)
"""Layers that act once a token, on the decoded activation."""


SEQUENCE_LAYERS: tuple[type[SequenceLayer], ...] = (S4D, SSD, SSDCore)
"""State space layers: once a token, on the decoded activation, with a state that crosses tokens."""


class Signal(Protocol):
    """An activation on both clocks."""

    def decoded(self) -> Tensor:
        """[L, B, *]."""

    def per_step(self) -> Tensor:
        """[T, L, B, *], whose mean over T is decoded()."""


@dataclass(frozen=True)
class Static:
    """A value that does not change within a token."""

    value: Tensor  # [L, B, *]
    steps: int

    def decoded(self) -> Tensor:
        return self.value

    def per_step(self) -> Tensor:
        return self.value.expand(self.steps, *self.value.shape)


@dataclass(frozen=True)
class Train:
    """A neuron's spikes, worth what the neuron says they are."""

    spikes: Tensor  # [T, L, B, *]
    neuron: Neuron

    def decoded(self) -> Tensor:
        return self.neuron.decode(self.spikes)

    def per_step(self) -> Tensor:
        return self.neuron.step_gain(self.spikes) * self.spikes


@dataclass(frozen=True)
class Mapped:
    """A linear map of a signal, computed once, on the clock that is asked for."""

    name: str
    layer: nn.Module
    source: Signal
    unrolled: bool
    results: dict[str, Tensor] = field(default_factory=dict)

    def decoded(self) -> Tensor:
        if "decoded" not in self.results:
            self.results["decoded"] = self._decoded()
        return self.results["decoded"]

    def _decoded(self) -> Tensor:
        if self.unrolled and not is_static(self.source):
            return self.per_step().mean(0)
        with located(self.name):
            return over_leading(self.layer, self.source.decoded(), 2)

    def per_step(self) -> Tensor:
        source = self.source.per_step()
        if is_static(self.source):
            return self.decoded().expand(len(source), *self.decoded().shape)
        if "per_step" not in self.results:
            with located(self.name):
                self.results["per_step"] = over_leading(self.layer, source, 3)
        return self.results["per_step"]


@dataclass(frozen=True)
class Sum:
    """Signals that meet: a layer's input and its skips."""

    parts: tuple[Signal, ...]

    def decoded(self) -> Tensor:
        return _add([part.decoded() for part in self.parts])

    def per_step(self) -> Tensor:
        return _add([part.per_step() for part in self.parts])


def is_static(signal: Signal) -> bool:
    """Whether the signal is the same at every micro-step of a token."""
    if isinstance(signal, Mapped):
        return is_static(signal.source)
    if isinstance(signal, Sum):
        return all(is_static(part) for part in signal.parts)
    return isinstance(signal, Static)


def over_leading(layer: Callable[[Tensor], Tensor], x: Tensor, leading: int) -> Tensor:
    """Apply a layer that knows one batch axis to a tensor with `leading` of them."""
    if isinstance(layer, nn.Linear) and x.shape[-1] != layer.in_features:
        raise ShapeError(f"expected an input [*, {layer.in_features}], got {list(x.shape)}")
    y = layer(x.flatten(0, leading - 1))
    return y.unflatten(0, x.shape[:leading])


def _add(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        if tensor.shape != total.shape:
            raise ShapeError(f"a skip brings {list(tensor.shape[2:])} to an input {list(total.shape[2:])}")
        total = total + tensor
    return total


class Listener(Protocol):
    """Whoever wants to see a run: the recorder, the energy counter, the calibration of an export."""

    membrane: bool
    """Whether neurons should hand over their membrane; it costs memory."""

    def neuron(self, name: str, neuron: Neuron, spikes: Tensor, membrane: Tensor | None) -> None:
        """Called after each neuron: spikes and membrane are [L, T, B, *]."""

    def layer(self, name: str, layer: nn.Module, source: Signal, output: Signal) -> None:
        """Called after each layer that is not a neuron."""


class Network(nn.Module):
    """Layers in order, from x [L, B, *D] to an output [L, B, *C].

    Args:
        layers: a sequence (named `linear1`, `atmn1`, `linear2`, ...) or a mapping of names to layers.
            Neurons, linear maps (`LINEAR_MAPS`), state space layers (`SEQUENCE_LAYERS`), layers of the
            token's clock (`TOKEN_LAYERS`, or any module with an attribute `clock = "token"`); anything else
            is refused by name. Neurons of snntorch and spikingjelly are adopted with the T of the others, see
            `marsnn.neurons.interop`.
        skips: {target: source} or {target: [sources]}: the output of each source layer is added to the
            input of the target layer. A source "input" is the network's own input.
        unrolled: run T matmuls on the spikes of each step instead of one on their decoded value.
        checkpoint_tokens: train over so many tokens at a time, and keep only the state between them: the
            backward runs each piece once more. Gradients are the same, memory no longer grows with L but for
            x and the output. None keeps everything.

    A trailing neuron gives its decoded activation; a trailing Linear its decoded sum.

    Example:
        >>> import torch
        >>> from marsnn import ATMN, Network
        >>> network = Network([torch.nn.Linear(8, 16), ATMN(16), torch.nn.Linear(16, 4)])
        >>> network.names
        ('linear1', 'atmn1', 'linear2')
        >>> network(torch.randn(5, 2, 8)).shape
        torch.Size([5, 2, 4])
    """

    def __init__(
        self,
        layers: Sequence[nn.Module] | Mapping[str, nn.Module],
        skips: Mapping[str, str | Sequence[str]] | None = None,
        unrolled: bool = False,
        checkpoint_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(layers, Mapping | nn.ModuleDict):
            named = dict(layers.items())
        elif isinstance(layers, Sequence | nn.ModuleList | nn.Sequential) and not isinstance(layers, str):
            named = dict(zip(_names(list(layers)), layers, strict=True))
        else:
            raise InputError(
                f"a Network takes a list or a mapping of layers, got {type(layers).__name__}; "
                "write Network([layer, ...])"
            )
        if not named:
            raise InputError("a Network needs at least one layer, got none")
        named = adopt_layers(named)
        for name, layer in named.items():
            taken = not isinstance(name, str) or name == "input" or hasattr(nn.ModuleDict(), name)
            if taken or not _NAME.fullmatch(name):
                raise InputError(
                    f'a layer can\'t be named {name!r}: use up to 100 of a-z, A-Z, 0-9, "_" and "-", and '
                    'not "input" or the name of a torch method'
                )
            check_layer(name, layer)
        self.layers = nn.ModuleDict(named)
        self.skips = self._checked_skips(skips or {})
        self.unrolled = bool(unrolled)
        self.checkpoint_tokens = (
            None if checkpoint_tokens is None else count("checkpoint_tokens", checkpoint_tokens)
        )
        self._check_steps()

    # ---- what it is made of -------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Layer names in order."""
        return tuple(self.layers)

    @property
    def neurons(self) -> dict[str, Neuron]:
        """The neurons among the layers, by name."""
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, Neuron)}

    @property
    def steps(self) -> int:
        """T, the micro-steps of one token; 1 where there is no neuron."""
        return self._check_steps()

    def __getitem__(self, name: str) -> nn.Module:
        try:
            return self.layers[name]
        except KeyError:
            raise InputError(f"no layer named {name!r}; the layers are {', '.join(self.names)}") from None

    # ---- running it ---------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Differentiable pass over all tokens at once: x [L, B, *D] to [L, B, *C], from rest."""
        if self.checkpoint_tokens is None or not torch.is_grad_enabled() or len(x) <= self.checkpoint_tokens:
            return self.run(x, final_state=False)[0]
        self.check_input(x)
        state: State = {}
        outputs = []
        for piece in x.split(self.checkpoint_tokens):
            output, state = checkpoint(self.run, piece, state, use_reentrant=False)
            outputs.append(output)
        return torch.cat(outputs)

    def run(
        self,
        x: Tensor,
        state: State | None = None,
        listeners: Iterable[Listener] = (),
        final_state: bool = True,
    ) -> tuple[Tensor, State]:
        """As calling it, with the state that crosses tokens in and out, and listeners at every layer.

        Args:
            x: [L, B, *D], in the dtype of the parameters.
            state: what an earlier call returned, or None for rest.
            listeners: told of every layer; see `Listener`.
            final_state: False where nothing goes on; it saves layers the work for a next state.

        Returns:
            output [L, B, *C] and the next state.
        """
        self.check_input(x)
        listeners = tuple(listeners)
        steps = self.steps
        state, next_state = state or {}, {}
        signal: Signal = Static(x, steps)
        outputs: dict[str, Signal] = {"input": signal}
        for name, layer in self.layers.items():
            if name in self.skips:
                signal = Sum((signal, *(outputs[source] for source in self.skips[name])))
            with located(name):
                signal, after = self._run_layer(name, layer, signal, state.get(name), listeners, final_state)
            outputs[name] = signal
            if after is not None:
                next_state[name] = after
        return signal.decoded(), next_state

    def _run_layer(
        self,
        name: str,
        layer: nn.Module,
        source: Signal,
        state: Any,
        listeners: tuple[Listener, ...],
        final_state: bool,
    ) -> tuple[Signal, Any]:
        if isinstance(layer, Neuron):
            membrane = any(listener.membrane for listener in listeners)
            spikes, trace, after = run_neuron(layer, source, state, membrane)
            for listener in listeners:
                by_token = None if trace is None else trace.transpose(0, 1)
                listener.neuron(name, layer, spikes.transpose(0, 1), by_token)
            return Train(spikes, layer), after
        output: Signal
        after = None
        if isinstance(layer, SequenceLayer):
            value, after = layer(source.decoded(), state, final_state)
            output = Static(value, self.steps)
        elif isinstance(layer, LINEAR_MAPS):
            output = Mapped(name, layer, source, self.unrolled)
        elif isinstance(layer, GatedLinear) and self.unrolled:
            maps = (Mapped(name, part, source, True).decoded() for part in (layer.gate, layer.up))
            output = Static(layer.combine(*maps), self.steps)
        else:
            output = Static(over_leading(layer, source.decoded(), 2), self.steps)
        for listener in listeners:
            listener.layer(name, layer, source, output)
        return output, after

    # ---- checks -------------------------------------------------------------------------------------

    def check_weights(self) -> None:
        """Refuse parameters and settings that are NaN, infinite or out of range, naming the layer."""
        for name, parameter in self.layers.named_parameters():
            finite(f"{name}: the parameter", parameter.detach())
        for name, neuron in self.neurons.items():
            with located(name):
                neuron.check_tensors()

    def check_input(self, x: Tensor) -> None:
        if x.ndim < 3:
            raise ShapeError(
                f"expected x [L, B, D] (tokens, batch, features), got {list(x.shape)}; "
                "for one token use x[None], for one sample x[:, None]"
            )
        if 0 in x.shape[:2]:
            raise ShapeError(f"x {list(x.shape)} is empty: L and B must be at least 1")
        parameter = next((p for p in self.parameters() if p.is_floating_point()), None)
        if parameter is not None and x.dtype != parameter.dtype and not torch.is_autocast_enabled():
            raise InputError(
                f"x is {x.dtype}, the network {parameter.dtype}; convert one: x.to({parameter.dtype})"
            )

    def _check_steps(self) -> int:
        steps = {name: neuron.steps for name, neuron in self.neurons.items()}
        if len(set(steps.values())) > 1:
            shown = ", ".join(f"{name}: {value}" for name, value in steps.items())
            raise InputError(f"all neurons of a Network share T, got {shown}; give them the same steps=")
        return next(iter(steps.values()), 1)

    def _checked_skips(self, skips: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
        order = {"input": -1, **{name: i for i, name in enumerate(self.names)}}
        checked = {}
        for target, sources in skips.items():
            sources = (sources,) if isinstance(sources, str) else tuple(sources)
            for end in (target, *sources):
                if end not in order:
                    raise InputError(f"skip {end!r} -> {target!r}: no layer named {end!r} in {self.names}")
            late = [source for source in sources if order[source] >= order[target]]
            if late or target == "input":
                raise InputError(
                    f"skip {late} -> {target!r}: a skip goes forward, from earlier to later; spikes that "
                    "come back to their own neurons are Recurrent(neuron)"
                )
            checked[target] = sources
        return checked

    def extra_repr(self) -> str:
        return f"steps={self.steps}" + (f", skips={self.skips}" if self.skips else "")


def run_neuron(
    neuron: Neuron, source: Signal, state: Any = None, membrane: bool = False
) -> tuple[Tensor, Tensor | None, Any]:
    """Spikes [T, L, B, *] of one neuron, its membrane if asked for, and the state that crosses tokens."""
    crosses = neuron.carry == "sequence"
    if not crosses and (neuron.integrates == "token" or is_static(source)):
        return *neuron.respond(source.decoded(), membrane), None
    currents = source.per_step()
    T, L = currents.shape[:2]
    if crosses:  # one long train: step t of token l is step l T + t
        currents = currents.transpose(0, 1).flatten(0, 1)
    run = neuron.trace if membrane else neuron.forward
    spikes, *trace, after = run(currents, state if crosses else None)
    if crosses:
        spikes = spikes.unflatten(0, (L, T)).transpose(0, 1)
        trace = [m.unflatten(0, (L, T)).transpose(0, 1) for m in trace]
    return spikes, trace[0] if trace else None, after if crosses else None


def check_layer(name: str, layer: object) -> None:
    """Refuse what a Network can't run, saying what it can."""
    if isinstance(layer, (Neuron, *LINEAR_MAPS, *TOKEN_LAYERS)) or getattr(layer, "clock", "") == "token":
        return
    known = ", ".join(kind.__name__ for kind in (*LINEAR_MAPS, *TOKEN_LAYERS, *SEQUENCE_LAYERS))
    raise UnknownLayerError(
        f"{name}: don't know how {type(layer).__name__} acts on spikes; use a neuron, one of {known}, "
        'or give the module an attribute clock = "token" if it acts once a token on the decoded value'
    )


def _names(layers: Sequence[nn.Module]) -> list[str]:
    """linear1, atmn1, linear2, ...: the class in lower case, numbered."""
    seen: dict[str, int] = {}
    names = []
    for layer in layers:
        kind = (layer._get_name() if isinstance(layer, nn.Module) else type(layer).__name__).lower()
        seen[kind] = seen.get(kind, 0) + 1
        names.append(f"{kind}{seen[kind]}")
    return names


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off and the like within the block; every submodule then gets its own mode back."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training


@contextmanager
def located(name: str) -> Iterator[None]:
    """Put the layer's name before any error about its input, once."""
    try:
        yield
    except (InputError, RuntimeError) as error:
        if hasattr(error, "layer"):
            raise
        told: Exception
        if isinstance(error, InputError):
            told = type(error)(f"{name}: {error}")
        elif "shape" in str(error) or "size" in str(error):
            told = ShapeError(f"{name}: {str(error).splitlines()[0]}")
        else:
            raise
        told.layer = name  # type: ignore[attr-defined]
        raise told from error
