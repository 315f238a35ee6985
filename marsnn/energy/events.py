"""Counting a Network from its spikes, whatever arithmetic its run used for them.

Between the layers of a Network spikes travel scaled by their decode weights (V tau^t for ATMN) and usually
as one decoded value a token. On hardware those weights are folded into the synapses and every spike is an
accumulate, so the counter reads the spikes themselves:

    source of a linear layer                       what it costs there
    spikes in {-1, 0, 1}                           an AC where a non-zero spike meets a non-zero weight
    integer spikes beyond that                     likewise, booked as graded
    a static value                                 MACs once a token (ACs if all of it is in {-1, 0, 1})
    pooled spikes, or a linear map of spikes       MACs every micro-step: no longer a spike train
    several of them, by skips                      each by its own rule; static values are added first
    a neuron's own spikes (`Recurrent`)            as spikes; those of the last step are sent, too

The two maps of a `GatedLinear` are two linear layers of one source; its product is audited where it runs.

`Identity`, `Flatten` and `Dropout` (off) hand on what they receive. Biases, and the sums where a skip meets
a layer that is no synapse, are additions once a token. The decode weights themselves are free: V folds into
the weights, tau^t is a shift where tau is a power of two; where it is not, the scaling is listed as
unattributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from marsnn.energy.arithmetic import is_ternary, layer_operations, pooling
from marsnn.energy.counts import LayerCounts, OperationCounts
from marsnn.gated import GatedLinear
from marsnn.network import Mapped, Network, Signal, Static, Sum, Train, is_static, over_leading
from marsnn.neurons.base import Neuron
from marsnn.neurons.recurrent import Recurrent

SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d)
HANDED_ON = (nn.Identity, nn.Flatten, nn.Dropout)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d)

Part = tuple[str, Tensor]
"""("ac" | "mac" | "graded_ac", values [S, L, B, *]): S = T micro-steps, or 1 for what a token holds still."""


class SpikeCounter:
    """A listener that books the linear maps and the neurons of one run of a Network.

    Args:
        counts: where to book.
        network: whose run it listens to.
        prefix: before every layer's name, where the Network is part of another module.
    """

    membrane = True

    def __init__(self, counts: OperationCounts, network: Network, prefix: str = "") -> None:
        self.counts = counts
        self.network = network
        self.prefix = prefix

    def neuron(self, name: str, neuron: Neuron, spikes: Tensor, membrane: Tensor | None) -> None:
        """Updates, spikes, bytes; spikes and membrane are [L, T, B, *]."""
        assert membrane is not None
        before = torch.zeros_like(membrane)
        before[:, 1:] = membrane[:, :-1]
        if neuron.carry == "sequence":
            before[1:, 0] = membrane[:-1, -1]
        booked = self.counts.layer(self.prefix + name)
        by_step = [each.transpose(0, 1) for each in (spikes, membrane, before)]
        book_neuron(booked, neuron, by_step[0], by_step)
        received = spikes.numel() // (spikes.shape[1] if neuron.integrates == "token" else 1)
        booked.bytes_moved += (received + spikes.numel()) * spikes.element_size()
        self._book_skips(name, booked, spikes[:, 0].numel())

    def layer(self, name: str, layer: nn.Module, source: Signal, output: Signal) -> None:
        """Synapses, pools, skips; the arithmetic of other layers is audited where it happens."""
        booked = self.counts.layer(self.prefix + name)
        if isinstance(layer, SYNAPSES):
            self._book_synapses(name, booked, (layer,), source, output)
            return
        if isinstance(layer, GatedLinear):
            self._book_synapses(name, booked, (layer.gate, layer.up), source, output)
            return
        value = source.decoded()
        self._book_skips(name, booked, value.numel())
        if isinstance(layer, AVERAGES):
            result = output.decoded()
            times = 1 if is_static(source) else self.network.steps
            cost = pooling(times * result.numel(), _window(layer))
            booked.mul += cost.mul
            booked.add += cost.add
            booked.bytes_moved += times * (value.numel() + result.numel()) * result.element_size()

    def _book_synapses(
        self, name: str, booked: LayerCounts, maps: tuple[nn.Module, ...], source: Signal, output: Signal
    ) -> None:
        """Maps of the same source, each with results of the output's shape."""
        result = output.decoded()
        parts, joins = grouped(arrivals(source))
        if isinstance(source, Sum):
            booked.add += joins
        booked.bytes_moved += sum(values.numel() * values.element_size() for _, values in parts)
        for layer in maps:
            dense_of_a_token = 0
            for kind, values in parts:
                dense_of_a_token = book_map(booked, kind, layer, values.flatten(0, 2)) // len(values)
            booked.baseline_mac += dense_of_a_token
            if layer.bias is not None:
                booked.add += result.numel()
            booked.bytes_moved += sum(p.numel() * p.element_size() for p in layer.parameters())
            booked.bytes_moved += result.numel() * result.element_size()
        for train in trains(source):
            if not scales_by_shifts(train):
                scaling = f"decode weights of {type(train.neuron).__name__} at {self.prefix}{name}"
                self.counts.leave_out(scaling, len(maps) * len(train.spikes) * result.numel())

    def _book_skips(self, name: str, booked: LayerCounts, elements: int) -> None:
        booked.add += len(self.network.skips.get(name, ())) * elements


def book_map(booked: LayerCounts, kind: str, layer: nn.Module, values: Tensor) -> int:
    """Book what values [B, *] cost in a map, as the field `kind` and its dense twin, which is returned."""
    effective, dense = layer_operations(layer, values)
    for name, operations in ((kind, effective), (f"dense_{kind}", dense)):
        setattr(booked, name, getattr(booked, name) + operations)
    return dense


def book_neuron(booked: LayerCounts, neuron: Neuron, spikes: Tensor, signs_of_life: Sequence[Tensor]) -> None:
    """Book one update per element of spikes [T, *, N], active where any of `signs_of_life` is not zero, and
    the synapses from a `Recurrent` to itself."""
    active = torch.zeros_like(spikes, dtype=torch.bool)
    for sign in signs_of_life:
        active |= sign != 0
    updates, alive = spikes.numel(), int(active.sum())
    booked.neuron_updates_active += alive
    booked.neuron_updates_idle += updates - alive
    if neuron.levels:
        booked.spikes += int((spikes != 0).sum())
    cost = neuron.update_cost
    booked.mul += updates * cost.mul
    booked.add += updates * cost.add
    if isinstance(neuron, Recurrent):
        _book_recurrence(booked, neuron, spikes)


def _book_recurrence(booked: LayerCounts, neuron: Recurrent, spikes: Tensor) -> None:
    """Every spike is sent back: a chip sends that of a token's last step, too, and then clears the state."""
    kind = _kind_of_spike(neuron).replace("moving", "mac")
    dense = book_map(booked, kind, neuron.recurrent, spikes.movedim(neuron.feature_dim, -1))
    booked.baseline_mac += dense // len(spikes)
    moved = (*neuron.recurrent.parameters(), spikes)
    booked.bytes_moved += sum(tensor.numel() * tensor.element_size() for tensor in moved)


def _window(layer: nn.Module) -> int:
    """How many values an average pool takes together."""
    kernel = layer.kernel_size
    axes = 2 if isinstance(layer, nn.AvgPool2d) else 1
    return kernel**axes if isinstance(kernel, int) else prod(kernel)  # type: ignore[arg-type]


def arrivals(signal: Signal) -> list[Part]:
    """What arrives at a linear layer, part by part."""
    if isinstance(signal, Sum):
        return [part for each in signal.parts for part in arrivals(each)]
    if isinstance(signal, Train):
        return [(_kind_of_spike(signal.neuron), signal.spikes)]
    if isinstance(signal, Static):
        return [("static", signal.value.unsqueeze(0))]
    if isinstance(signal, Mapped) and isinstance(signal.layer, HANDED_ON):
        layer = signal.layer
        return [(kind, over_leading(layer, values, 3)) for kind, values in arrivals(signal.source)]
    if is_static(signal):
        return [("static", signal.decoded().unsqueeze(0))]
    return [("moving", signal.per_step())]


def grouped(parts: list[Part]) -> tuple[list[Part], int]:
    """Sum the static values, and the moving graded ones, before they meet the weights.

    Returns:
        the parts by the field that books them, and the additions of these sums.
    """
    spikes = [part for part in parts if part[0] not in ("static", "moving")]
    joins = 0
    for kind in ("static", "moving"):
        values = [value for name, value in parts if name == kind]
        if values:
            value = torch.stack(values).sum(0) if len(values) > 1 else values[0]
            joins += (len(values) - 1) * value.numel()
            spikes.append(("ac" if kind == "static" and is_ternary(value) else "mac", value))
    return spikes, joins


def trains(signal: Signal) -> list[Train]:
    """The spike trains that reach a linear layer as spikes."""
    if isinstance(signal, Train):
        return [signal]
    if isinstance(signal, Sum):
        return [train for part in signal.parts for train in trains(part)]
    if isinstance(signal, Mapped) and isinstance(signal.layer, HANDED_ON):
        return trains(signal.source)
    return []


def scales_by_shifts(train: Train) -> bool:
    """Whether the decode weights of successive steps differ by powers of two, if they differ at all."""
    gain = train.neuron.step_gain(train.spikes)
    if gain.ndim < train.spikes.ndim or len(gain) == 1:
        return True  # the same at every step
    mantissa = torch.frexp(gain[1:] / gain[:-1])[0]
    return bool((mantissa == 0.5).all())


def _kind_of_spike(neuron: Neuron) -> str:
    if not neuron.levels:
        return "moving"  # a membrane that is read out
    return "ac" if set(neuron.levels) <= {-1, 0, 1} else "graded_ac"
