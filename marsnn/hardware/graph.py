"""From a Network to the stages that a chip runs, still in real numbers.

Reads the network layer by layer, merges what is linear between two stages into one map, refuses what has no
exact image, and lists all refusals at once. Kinds, ports and arrivals are those of `marsnn.hardware.stages`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from marsnn.errors import ExportError
from marsnn.gated import GatedLinear
from marsnn.hardware.linear_maps import Affine, Dense, Merged, Own, affine_of, each_of, merge
from marsnn.hardware.stages import (
    ATMN_DECAYS,
    INPUT,
    LARGEST_DOUBLINGS,
    LARGEST_LEVEL,
    LARGEST_STEPS,
    Arrival,
)
from marsnn.network import LINEAR_MAPS, Network
from marsnn.neurons import ALIF, ATMN, LIF, PLIF, TMN, CubaLIF, IntegerLIF, Recurrent, TernaryLIF
from marsnn.neurons.base import Neuron
from marsnn.ssm import S4D, SSD, SSDCore

Reals = NDArray[np.float64]

SILENT = (nn.Identity, nn.Dropout)
"""Layers that do nothing at inference."""

STEP_NEURONS = (LIF, PLIF, CubaLIF, ALIF, IntegerLIF, TernaryLIF)
KNOWN = (ATMN, TMN, *STEP_NEURONS)


@dataclass(frozen=True)
class RealSynapse:
    """A linear map from one sender to one port, with what a spike of each sender is worth folded in."""

    name: str
    source: str
    port: str
    arrival: Arrival
    map: Affine


@dataclass(frozen=True)
class RealStage:
    """A stage in real numbers; `of` holds what its kind needs, by name."""

    name: str
    kind: str
    shape: tuple[int, ...]
    synapses: tuple[RealSynapse, ...]
    bias: Mapping[str, Reals]
    of: Mapping[str, Any] = field(default_factory=dict)
    reset: Literal["subtract", "zero"] = "subtract"
    carry: Literal["token", "sequence"] = "token"

    @property
    def neurons(self) -> int:
        """N."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Graph:
    """What a network becomes."""

    steps: int
    inputs: tuple[int, ...]
    stages: tuple[RealStage, ...]


@dataclass(frozen=True)
class Signal:
    """What travels between layers: maps of what stages send, and a bias."""

    name: str  # of the layer that made it
    terms: tuple[Merged, ...]
    bias: Reals  # [size]
    shape: tuple[int, ...]

    @property
    def weighted(self) -> bool:
        """Whether there is more to it than what one stage sends."""
        return any(not term.plain for term in self.terms) or bool(self.bias.any())


def extract(network: Network, inputs: tuple[int, ...]) -> Graph:
    """The stages of a network whose input has the shape `inputs`.

    Raises:
        ExportError: with every reason for which it can't be mapped exactly.
    """
    reader = _Reader(network, inputs)
    reader.read()
    if reader.refusals:
        raise ExportError(reader.refusals)
    return Graph(network.steps, inputs, tuple(reader.stages))


class _Reader:
    """One pass over a network's layers."""

    def __init__(self, network: Network, inputs: tuple[int, ...]) -> None:
        self.network, self.steps = network, network.steps
        self.refusals: list[str] = []
        self.stages: list[RealStage] = []
        self.neurons: dict[str, Neuron] = {}  # stage -> the neuron whose spikes it sends
        size = int(np.prod(inputs))
        start = Signal(INPUT, (Merged(INPUT),), np.zeros(size), inputs)
        self.outputs: dict[str, Signal] = {INPUT: start}
        # Currents of a neuron that takes each step must not be summed on their way.
        self.all_sum = all(neuron.integrates == "token" for neuron in network.neurons.values())
        order = [INPUT, *network.names]
        self.uses = Counter(order[:-1])
        for sources in network.skips.values():
            self.uses.update(sources)

    def read(self) -> None:
        network = self.network
        if self.steps > LARGEST_STEPS:
            self.refuse(
                network.names[0], f"T = {self.steps} micro-steps a token; use at most {LARGEST_STEPS}"
            )
        signal = self.outputs[INPUT]
        broken = False
        for name, layer in network.layers.items():
            reason = _unmappable(layer)
            if reason:
                self.refuse(name, reason)
                broken = True
            if broken:  # shapes behind it can't be told; settings can
                continue
            for source in network.skips.get(name, ()):
                other = self.outputs[source]
                signal = Signal(name, signal.terms + other.terms, signal.bias + other.bias, signal.shape)
            found = self.layer(name, layer, signal)
            if found is None:
                broken = True
                continue
            signal = self.outputs[name] = self.shared(name, found)
        if not network.neurons:
            self.refusals.append(
                "the network has no spiking neuron, so there is nothing for the chip to time"
            )
        self.check_doublings()
        if broken or self.refusals:
            return
        last = self.stages[-1] if self.stages else None
        if signal.weighted or len(signal.terms) > 1 or last is None or signal.terms[0].source != last.name:
            self.add(signal.name, "sum", signal.shape, {"in": signal})

    def refuse(self, name: str, reason: str) -> None:
        self.refusals.append(f"{name}: {reason}")

    def check_doublings(self) -> None:
        names = list(self.network.layers)
        for name, neuron in self.network.neurons.items():
            if not isinstance(neuron, ATMN) or name == names[-1] or neuron.tau.item() == 1.0:
                continue
            if self.steps > LARGEST_DOUBLINGS:
                self.refuse(
                    name,
                    f"{self.steps} steps with tau = {neuron.tau.item():g} outweigh 24 bits; use at most "
                    f"{LARGEST_DOUBLINGS}",
                )

    # ---- layers -----------------------------------------------------------------------------------------

    def layer(self, name: str, layer: nn.Module, signal: Signal) -> Signal | None:
        """What a layer makes of a signal; None where it was refused."""
        if isinstance(layer, SILENT):
            return replace(signal, name=name if name in self.network.skips else signal.name)
        if isinstance(layer, LINEAR_MAPS):
            return self.linear(name, layer, signal)
        if isinstance(layer, Neuron):
            return self.neuron(name, layer, signal)
        if isinstance(layer, GatedLinear):
            return self.gated(name, layer, signal)
        if isinstance(layer, SSD):
            inner = self.linear(f"{name}.in_proj", layer.in_proj, signal)
            core = None if inner is None else self.ssd(name, layer.core, inner)
            return None if core is None else self.linear(f"{name}.out_proj", layer.out_proj, core)
        if isinstance(layer, SSDCore):
            return self.ssd(name, layer, signal)
        if isinstance(layer, S4D):
            return self.s4d(name, layer, signal)
        return self.norm(name, layer, signal)

    def linear(self, name: str, layer: nn.Module, signal: Signal) -> Signal | None:
        """Merge a linear map into every term of a signal."""
        own = affine_of(layer, signal.shape)
        if isinstance(own, str):
            self.refuse(name, own)
            return None
        terms = []
        for term in signal.terms:
            if isinstance(own.map, Dense) and self.graded(term.source):
                self.refuse(
                    name,
                    f"takes the graded values of {term.source}, and a chip's weights meet spikes; put a "
                    "neuron between them",
                )
                return None
            merged = merge(name, own, term)
            if isinstance(merged, str):
                self.refuse(name, merged)
                return None
            terms.append(merged)
        return Signal(name, tuple(terms), own.apply(signal.bias), own.shape)

    def graded(self, source: str) -> bool:
        """Whether a sender's values are wider than weights can take."""
        return source != INPUT and source not in self.neurons

    def shared(self, name: str, signal: Signal) -> Signal:
        """A signal that several layers take becomes a stage, so that its map is run once."""
        if not self.all_sum or self.uses[name] < 2 or not signal.weighted or signal.name == INPUT:
            return signal
        return self.add(name, "sum", signal.shape, {"in": signal})

    def neuron(self, name: str, neuron: Neuron, signal: Signal) -> Signal | None:
        if neuron.feature_dim < -len(signal.shape):
            self.refuse(name, f"feature_dim = {neuron.feature_dim} of an input {list(signal.shape)}")
            return None
        loop: Affine | None = None
        if isinstance(neuron, Recurrent):
            found = _returning(neuron, signal.shape)
            if isinstance(found, str):
                self.refuse(name, found)
                return None
            loop = found.map
            signal = replace(signal, bias=signal.bias + found.apply(np.zeros(signal.bias.size)))
            neuron = neuron.neuron
        of: dict[str, Any] = {"threshold": _wide(neuron, neuron.threshold, signal.shape)}  # type: ignore[arg-type]
        settings: dict[str, Any] = {}
        if isinstance(neuron, ATMN):
            kind = "atmn"
            of |= {"fire_at": neuron.fire_at, "tau": neuron.tau.item()}
        else:
            kind = "lif"
            settings = {"reset": neuron.reset, "carry": neuron.carry}
            of |= _lif_numbers(neuron, signal.shape)
        made = self.add(name, kind, signal.shape, {"in": signal}, of, neuron, loop, **settings)
        self.neurons[name] = neuron
        return made

    def gated(self, name: str, layer: GatedLinear, signal: Signal) -> Signal | None:
        parts = [self.linear(f"{name}.{part}", getattr(layer, part), signal) for part in ("gate", "up")]
        argument, factor = parts
        if argument is None or factor is None:
            return None
        of = {"activation": layer.activation, "level": layer.level or 0.0}
        return self.add(name, "gate", argument.shape, {"argument": argument, "factor": factor}, of)

    def norm(self, name: str, layer: nn.Module, signal: Signal) -> Signal | None:
        shape = tuple(layer.normalized_shape)  # type: ignore[arg-type]
        if shape != signal.shape or len(shape) != 1:
            self.refuse(
                name, f"normalises {list(shape)} of {list(signal.shape)}; only whole vectors are mapped"
            )
            return None
        size = shape[0]
        gain = np.ones(size) if layer.weight is None else _real(layer.weight)  # type: ignore[arg-type]
        bias = getattr(layer, "bias", None)
        eps = layer.eps if layer.eps is not None else torch.finfo(torch.float32).eps
        of = {
            "gain": gain, "offset": np.zeros(size) if bias is None else _real(bias), "epsilon": float(eps),  # type: ignore[arg-type]
            "center": isinstance(layer, nn.LayerNorm),
        }  # fmt: skip
        return self.add(name, "norm", shape, {"in": signal}, of)

    def s4d(self, name: str, layer: S4D, signal: Signal) -> Signal | None:
        """The layer as one stage; its gate, where it has one, as another one behind it."""
        bias, gate, values = layer.gate_bias, None, signal
        if bias is not None:
            found = self.parted(name, signal, dict(zip(("gate", "values"), layer.widths, strict=True)))
            if found is None:
                return None
            gate, values = found
        elif signal.shape != (layer.inputs,):
            self.refuse(name, f"expected an input [{layer.inputs}], got {list(signal.shape)}")
            return None
        with torch.no_grad():
            decay, b, c = (each.to(torch.complex128).numpy() for each in layer.discrete())
        of = {"decay": decay, "out": 2 * b * c, "skip": _real(layer.skip)}
        made = self.add(name, "s4d", values.shape, {"in": values}, of)
        return made if bias is None or gate is None else self.behind(name, made, gate, bias)

    def ssd(self, name: str, layer: SSDCore, signal: Signal) -> Signal | None:
        """The core as one stage, its gate as another one behind it."""
        keys = layer.groups * layer.state_size
        widths = (layer.widths[0], layer.outputs, keys, keys, layer.heads)
        parts = ("gate", "values", "keys", "queries", "forgetting")
        found = self.parted(name, signal, dict(zip(parts, widths, strict=True)))
        if found is None:
            return None
        gate, values, key, query, forgetting = found
        with torch.no_grad():
            of = {
                "taps": _real(layer.conv_weight), "tap_bias": _real(layer.conv_bias),
                "decay_bias": _real(layer.decay_bias), "heads": layer.heads, "groups": layer.groups,
                "scaled": layer.scale_input,
                "skip": np.zeros(layer.heads) if layer.skip is None else _real(layer.skip),
                "angles": np.zeros(0) if layer.rope is None else _angles(layer.rope, layer.state_size),
            }  # fmt: skip
        ports = {"values": values, "keys": key, "queries": query, "forgetting": forgetting}
        made = self.add(name, "ssd", (layer.outputs,), ports, of)
        return made if layer.gate_bias is None else self.behind(name, made, gate, layer.gate_bias)

    def parted(self, name: str, signal: Signal, widths: Mapping[str, int]) -> list[Signal] | None:
        """The parts of a signal, side by side in it, for a layer of several inputs; None where refused."""
        ends = [int(each) for each in np.cumsum((0, *widths.values()))]
        if signal.shape != (ends[-1],) or not all(isinstance(t.map, Dense) for t in signal.terms):
            self.refuse(name, f"wants a Linear to {ends[-1]} features before it, for its several inputs")
            return None
        return [
            Signal(
                f"{signal.name}.{part}",
                tuple(
                    replace(term, map=term.map.rows(begin, end), name=f"{term.name}.{part}")  # type: ignore[union-attr]
                    for term in signal.terms
                ),
                signal.bias[begin:end],
                (end - begin,),
            )
            for part, (begin, end) in zip(widths, pairwise(ends), strict=True)
        ]

    def behind(self, name: str, made: Signal, gate: Signal, bias: torch.Tensor) -> Signal:
        """The gate of a state space layer: silu(gate + bias) times what the layer sends."""
        argument = replace(gate, bias=gate.bias + _real(bias))
        of = {"activation": "silu", "level": 0.0}
        return self.add(f"{name}.gate", "gate", made.shape, {"argument": argument, "factor": made}, of)

    # ---- stages -----------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        kind: str,
        shape: tuple[int, ...],
        ports: Mapping[str, Signal],
        of: Mapping[str, Any] | None = None,
        receiver: Neuron | None = None,
        loop: Affine | None = None,
        **settings: Any,
    ) -> Signal:
        """Put a stage behind the others; what it sends is the signal, and by `loop` comes back to it."""
        every_step = receiver is not None and receiver.integrates == "step"
        synapses: list[RealSynapse] = []

        def join(label: str, source: str, port: str, own: Affine) -> None:
            sender = receiver if source == name else self.neurons.get(source)
            worth, arrival = _worth(sender, every_step, self.steps)
            if sender is not None:
                size = shape if source == name else self.outputs[source].shape
                threshold = _wide(sender, sender.threshold, size)  # type: ignore[arg-type]
                folded = own.columns(worth * threshold, size)
                if isinstance(folded, str):
                    self.refuse(source, folded)
                else:
                    own = folded
            synapses.append(RealSynapse(self.free(label, source, synapses), source, port, arrival, own))

        for port, signal in ports.items():
            for term in signal.terms:
                own = each_of(shape) if term.map is None else term.map
                join(term.name or f"{name}.{term.source}", term.source, port, own)
        if loop is not None:
            join(f"{name}.recurrent", name, "in", loop)
        bias = {port: signal.bias for port, signal in ports.items()}
        self.stages.append(RealStage(name, kind, shape, tuple(synapses), bias, of or {}, **settings))
        return Signal(name, (Merged(name),), np.zeros(int(np.prod(shape))), shape)

    def free(self, label: str, source: str, beside: list[RealSynapse]) -> str:
        """A name that no synapse has: a layer that takes several senders has one synapse for each."""
        stages = (*(each for stage in self.stages for each in stage.synapses), *beside)
        taken = {each.name for each in stages}
        names = (label, f"{label}.{source}", *(f"{label}.{source}-{number}" for number in range(2, 1000)))
        return next(each for each in names if each not in taken)


# ---- what has an image -------------------------------------------------------------------------------


def _unmappable(layer: nn.Module) -> str:
    """Why a layer has none, by its settings alone; empty where it has one."""
    if isinstance(layer, Neuron):
        return _unmappable_neuron(layer)
    if isinstance(layer, SSD | SSDCore):
        core = layer.core if isinstance(layer, SSD) else layer
        if isinstance(layer, SSD):
            return (
                "its out_proj takes graded values, and a chip's weights meet spikes; write Linear, SSDCore, "
                "ATMN and Linear instead"
            )
        wrong = [
            f"{name} = {getattr(core, name)!r}"
            for name, kept in (("activation", "none"), ("feature_map", "none"), ("normalize", False))
            if getattr(core, name) != kept
        ]
        return f"{', '.join(wrong)}; only products, sums and decays of an SSDCore are mapped" if wrong else ""
    if isinstance(layer, (*LINEAR_MAPS, S4D, nn.RMSNorm, nn.LayerNorm)) or type(layer) is GatedLinear:
        return ""
    return (
        f"{layer._get_name()} has no exact integer form; mapped are linear maps, GatedLinear, RMSNorm, "
        f"LayerNorm, S4D, SSDCore and {', '.join(kind.__name__ for kind in KNOWN)}"
    )


def _returning(neuron: Recurrent, shape: tuple[int, ...]) -> Own | str:
    """The map of a population's own spikes: a matrix, or at each place of an image the same one."""
    layer: nn.Module = neuron.recurrent
    if len(shape) > 1:
        kinds = {2: nn.Conv1d, 3: nn.Conv2d}
        if neuron.feature_dim != -len(shape) or len(shape) not in kinds:
            return f"its features are axis {neuron.feature_dim} of {list(shape)}; put a Flatten before it"
        layer = kinds[len(shape)](shape[0], shape[0], 1, bias=neuron.recurrent.bias is not None).double()
        with torch.no_grad():
            layer.weight.copy_(neuron.recurrent.weight.view_as(layer.weight))
            if neuron.recurrent.bias is not None:
                layer.bias.copy_(neuron.recurrent.bias)  # type: ignore[union-attr]
    return affine_of(layer, shape)


def _unmappable_neuron(neuron: Neuron) -> str:
    if type(neuron) is Recurrent:
        return _unmappable_neuron(neuron.neuron)
    if type(neuron) not in KNOWN:
        known = ", ".join(kind.__name__ for kind in KNOWN)
        return f"{neuron._get_name()} has no exact integer form; mapped are {known}"
    if isinstance(neuron, ATMN):
        tau = neuron.tau.item()
        if tau not in ATMN_DECAYS:
            known = ", ".join(f"{value:g}" for value in ATMN_DECAYS)
            return f"tau = {tau:g}; a chip can shift only for tau = {known}"
        return ""
    if max(neuron.levels) > LARGEST_LEVEL:
        return f"spikes up to {max(neuron.levels)}; use max_level of at most {LARGEST_LEVEL}"
    return ""


def _lif_numbers(neuron: Neuron, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the LIF-like kinds differ in; a plain LIF is what is left of all of them."""
    nothing = np.zeros(int(np.prod(shape)))
    found: dict[str, Any] = {
        "beta": _wide(neuron, neuron.beta, shape), "alpha": nothing, "rho": nothing, "adaptation": nothing,  # type: ignore[arg-type]
        "fire_at": 1.0, "most": 1, "signed": False,
    }  # fmt: skip
    if isinstance(neuron, CubaLIF):
        found["alpha"] = _wide(neuron, neuron.alpha, shape)
    if isinstance(neuron, ALIF):
        found |= {name: _wide(neuron, getattr(neuron, name), shape) for name in ("rho", "adaptation")}
    if isinstance(neuron, IntegerLIF):
        found |= {"fire_at": neuron.fire_at, "most": neuron.max_level, "signed": neuron.signed}
    return found


def _worth(sender: Neuron | None, every_step: bool, steps: int) -> tuple[float, Arrival]:
    """What a spike is worth in units of its threshold, and how a train becomes what the receiver takes."""
    if sender is None:
        return 1.0, "held" if every_step else "value"
    tau = sender.tau.item() if isinstance(sender, ATMN) else 1.0
    if every_step:
        # A receiver that takes every step sees the train at unit mean: T times what a sum would.
        worth = float(steps) if isinstance(sender, ATMN) else 1.0
        return worth, {0.5: "stream_down", 1.0: "stream", 2.0: "stream_up"}[tau]  # type: ignore[return-value]
    worth = 1.0 if isinstance(sender, ATMN) else 1.0 / steps
    return worth, {0.5: "horner", 1.0: "sum", 2.0: "power"}[tau]  # type: ignore[return-value]


def _angles(base: float, state_size: int) -> Reals:
    """By how far pairs of keys and queries turn from one token to the next."""
    half = state_size // 2
    return base ** (-np.arange(half) / half)


def _wide(neuron: Neuron, setting: torch.Tensor, shape: tuple[int, ...]) -> Reals:
    """A setting, [], [1] or [features], for every neuron of a population, flat."""
    like = torch.empty(shape, dtype=torch.float64)
    setting = setting.detach().cpu()
    own = neuron._along_features(setting if setting.numel() > 1 else setting.reshape(()), like)
    return own.expand(shape).reshape(-1).numpy().copy()


def _real(tensor: torch.Tensor) -> Reals:
    return tensor.detach().cpu().double().numpy()
