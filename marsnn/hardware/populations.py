"""What lies on cores: the stages of a graph, and relays where an event waits longer than a synapse holds it.

A relay is a population of its sender's size that hears each event and sends it again, so r relays in a row
add r steps and r further waits. Senders share them: the r-th relay of a sender serves every synapse that
needs r or more. The input needs none: whoever sends it sends it later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from marsnn.hardware.chip import Chip
from marsnn.hardware.stages import INPUT, KINDS, IntegerGraph, Ints, Stage, Synapse, schedule

RELAY = "relay"
GRADED_KINDS = ("count", "gate", "norm", "s4d", "ssd")
"""Kinds that work on graded values, whoever takes theirs."""


@dataclass(frozen=True)
class Sender:
    """From whom a population hears, by which synapses; none where it repeats its sender's events."""

    name: str  # of a population, or the input
    neurons: int
    rails: int
    synapses: tuple[Synapse, ...]
    waits: bool


@dataclass(frozen=True)
class Population:
    """A stage, or a relay of one."""

    name: str
    origin: str  # the stage whose events it sends
    kind: str  # of the stage, or "relay"
    shape: tuple[int, ...]  # along whose axes it is cut: a convolution's image, else [N]
    unit: int  # neurons that are better kept together: a head's
    rails: int  # axons of a neuron to one core
    senders: tuple[Sender, ...]
    stage: Stage | None  # None of a relay

    @property
    def neurons(self) -> int:
        return prod(self.shape)


def populations(graph: IntegerGraph, chip: Chip) -> list[Population]:
    """All populations, each behind those that it hears from."""
    clock = schedule(graph)
    needed = {synapse.name: relays(clock.delays[synapse.name], chip)
              for stage in graph.stages for synapse in stage.synapses if synapse.source != INPUT}  # fmt: skip
    rails = {INPUT: 1} | {stage.name: rails_of(stage, chip) for stage in graph.stages}
    found: list[Population] = []
    for stage in graph.stages:
        heard: dict[str, list[Synapse]] = {}
        waits: dict[str, bool] = {}
        for synapse in stage.synapses:
            number = needed.get(synapse.name, 0)
            name = relay_name(synapse.source, number)
            heard.setdefault(name, []).append(synapse)
            left = clock.delays[synapse.name] - number * (chip.longest_wait + 1)
            waits[name] = waits.get(name, False) or (left > 0 and synapse.source != INPUT)
        senders = tuple(
            Sender(name, graph.size(own[0].source), rails[own[0].source], tuple(own), waits[name])
            for name, own in heard.items()
        )
        images = [synapse.conv.target for synapse in stage.synapses if synapse.conv is not None]
        images = images if set(KINDS[stage.kind].ports.values()) == {"N"} else []
        shape = images[0] if images else (stage.neurons,)
        heads = int(stage.bias["forgetting"].size) if stage.kind == "ssd" else stage.neurons
        found.append(
            Population(stage.name, stage.name, stage.kind, shape, max(stage.neurons // heads, 1),
                       rails[stage.name], senders, stage)
        )  # fmt: skip
        own = [needed[s.name] for each in graph.stages for s in each.synapses if s.source == stage.name]
        for number in range(1, max(own, default=0) + 1):
            before = Sender(
                relay_name(stage.name, number - 1),
                stage.neurons,
                rails[stage.name],
                (),
                chip.longest_wait > 0,
            )
            found.append(
                Population(relay_name(stage.name, number), stage.name, RELAY, shape, 1,
                           rails[stage.name], (before,), None)
            )  # fmt: skip
    return found


def relays(wait: int, chip: Chip) -> int:
    """Relays that an event passes to come `wait` steps late: each path of w + 1 steps is w waits at most."""
    return -(-(wait + 1) // (chip.longest_wait + 1)) - 1


def relay_name(sender: str, number: int) -> str:
    """Of the sender's relays; the sender itself is number 0."""
    return f"{sender}~{number}" if number else sender


def rails_of(stage: Stage, chip: Chip) -> int:
    """Axons of one neuron to one core: one a sign where spikes are ternary."""
    ternary = stage.kind == "atmn" or (stage.kind == "lif" and stage.number("signed") == 1)
    return chip.rails_per_ternary_spike if ternary else 1


def graded_refusals(graph: IntegerGraph, chip: Chip) -> list[str]:
    """What a chip of binary spikes can't send, by the name of the stage."""
    if chip.graded_spikes:
        return []
    heard = {synapse.source for stage in graph.stages for synapse in stage.synapses}
    refusals = []
    for stage in graph.stages:
        reason = ""
        if stage.kind in GRADED_KINDS:
            reason = f"a stage of kind {stage.kind!r} works on them"
        elif stage.sends == "value" and stage.name in heard:
            reason = "its values are sent to other stages"
        elif stage.kind == "lif" and stage.number("most") > 1:
            reason = f"its spikes carry levels up to {stage.number('most')}"
        if reason:
            refusals.append(
                f"{stage.name}: {chip.name} sends no graded spikes: {reason}; place it on a chip that does, "
                'such as profile "loihi2"'
            )
    return refusals


def events_per_neuron(population: Population, traffic: Mapping[str, float | Ints | np.ndarray]) -> np.ndarray:
    """Events a token of each neuron [N]; a sender that isn't named in `traffic` is taken to send one each."""
    given = np.asarray(traffic.get(population.origin, float(population.neurons)), dtype=np.float64)
    return np.broadcast_to(given / population.neurons if given.ndim == 0 else given, (population.neurons,))
