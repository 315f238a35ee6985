"""A golden run as SANA-FE is told it: groups of neurons that send, their synapses, and their cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import InputError
from marsnn.hardware import integer
from marsnn.hardware.chip import Chip
from marsnn.hardware.parts import heard
from marsnn.hardware.placement import Core, Placement
from marsnn.hardware.populations import Population, Sender, populations
from marsnn.hardware.stages import INPUT, IntegerGraph, IntegerRun, Ints, Stage, Synapse

COLUMNS, ROWS, CORES_PER_TILE = 8, 4, 4
"""Of SANA-FE's Loihi 1, whose tiles are numbered down the columns."""
CORES = COLUMNS * ROWS * CORES_PER_TILE

Soma = Literal["neuron", "rail", "free"]
NEURONS: tuple[Soma, Soma] = ("neuron", "rail")
RELAYS: tuple[Soma, Soma] = ("free", "free")
"""Of the axon of each sign: what it costs, see `sanafe_runtime/run.py`."""


@dataclass(frozen=True)
class Group:
    """Neurons that send: a population, or one of its two signs, or the input as one core hears it."""

    name: str
    population: str  # "input", a stage, or a relay of one
    origin: str  # whose events they are
    soma: Soma
    cores: Ints  # [N]
    fires: NDArray[np.bool_]  # [S, N], S = W T timesteps
    edges: tuple[Pairs, ...] = ()
    priced: bool = True  # False: what is heard here meets no weight


@dataclass(frozen=True)
class Pairs:
    """Synapses of a group with another, [E, 2] as (neuron that sends, neuron that takes)."""

    taker: str  # a group
    pairs: Ints


def replay(
    graph: IntegerGraph, inputs: Ints, run: IntegerRun, cores: Mapping[str, Ints], placement: Placement
) -> list[Group]:
    """A golden run as groups that send: all layers at once, step t of token w at timestep w T + t.

    A value (an input, a sum) is sent once, at its token's first step, where it is not zero: one event for
    each weight that it meets, as the table has it. A ternary spike leaves by the axon of its sign. Each core
    that hears the input has it from a group on that very core. With a placement a neuron sends to each core
    that hears it, be all its weights there zero: a listener there takes it. Relays send what they hear.
    """
    takers = takers_of(graph, cores, placement)
    homes = {_takes(graph, stage.name): cores[stage.name] for stage in graph.stages}
    given = _once(inputs.reshape(len(inputs), -1), graph.steps)
    groups = []
    for core in sorted({core for each in takers[INPUT] for core in homes[each.taker].tolist()}):
        own = (_ending(each, homes[each.taker] == core) for each in takers[INPUT])
        everywhere = np.full(given.shape[-1], core)
        groups.append(Group(f"input:{core}", INPUT, INPUT, "free", everywhere, given, tuple(own)))
    for population in populations(graph, placement.chip):
        name, stage, own_cores = population.name, graph[population.origin], cores[population.name]
        here = np.unique(own_cores)
        silence = np.zeros((len(given), len(here)), dtype=bool)
        groups.append(Group(f"{name}:heard", name, "", "free", here, silence, priced=False))
        edges = tuple(takers[name])
        if stage.sends == "value":
            fires = _once(run.values[stage.name], graph.steps)
            groups.append(Group(name, name, stage.name, "free", own_cores, fires, edges))
            continue
        spikes = run.spikes[stage.name].reshape(len(given), -1)
        first, second = RELAYS if population.stage is None else NEURONS
        taker = name if population.stage is None else _takes(graph, name)
        groups.append(Group(taker, name, stage.name, first, own_cores, spikes > 0, edges))
        if has_two_rails(stage):
            groups.append(Group(f"{name}:-", name, stage.name, second, own_cores, spikes < 0, edges))
    return groups


def takers_of(graph: IntegerGraph, cores: Mapping[str, Ints], placement: Placement) -> dict[str, list[Pairs]]:
    """Sender -> its synapses with each stage, and with the listeners of each core."""
    found = populations(graph, placement.chip)
    takers: dict[str, list[Pairs]] = {INPUT: [], **{each.name: [] for each in found}}
    for population in found:
        for sender in population.senders:
            weights = [meetings(graph, each) for each in sender.synapses if meets_weights(graph, each)]
            if population.stage is not None:
                taker = _takes(graph, population.name)
                takers[sender.name] += [Pairs(taker, pairs) for pairs in weights]
            if placement.fits and sender.name != INPUT:
                met = np.concatenate([np.empty((0, 2), dtype=np.int64), *weights])
                pairs = unweighed(population, sender, met, cores, placement)
                takers[sender.name].append(Pairs(f"{population.name}:heard", pairs))
    return takers


def unweighed(
    population: Population, sender: Sender, met: Ints, cores: Mapping[str, Ints], placement: Placement
) -> Ints:
    """For each neuron and core that hears it by no weight but zeros: the neuron, and the core's listener."""
    own, here, pairs = cores[population.name], np.unique(cores[population.name]), []
    reached = np.zeros((sender.neurons, CORES), dtype=bool)
    reached[met[:, 0], own[met[:, 1]]] = True
    for part in placement.cores:
        if part.stage == population.name:
            core = _their_core(part)
            silent = np.flatnonzero(heard(population, sender, part.box) & ~reached[:, core])
            pairs.append(np.stack([silent, np.full_like(silent, np.searchsorted(here, core))], axis=1))
    return np.concatenate(pairs)


def has_two_rails(stage: Stage) -> bool:
    """Whether it sends spikes of either sign, on a chip whose spikes have none."""
    return stage.kind == "atmn" or (stage.kind == "lif" and bool(stage.number("signed")))


def meets_weights(graph: IntegerGraph, synapse: Synapse) -> bool:
    """Whether its events are synaptic operations; of a value to one neuron they are multiplications."""
    return synapse.form != "each" or graph.sends(synapse.source) == "train"


def meetings(graph: IntegerGraph, synapse: Synapse) -> Ints:
    """The weights of a synapse that are not zero, [E, 2], as (neuron that sends, neuron that takes)."""
    if synapse.form == "dense":
        return np.argwhere(synapse.weight.T)
    if synapse.form == "each":
        return np.flatnonzero(synapse.weight)[:, None].repeat(2, axis=1)
    senders = np.eye(graph.size(synapse.source), dtype=np.int64)
    found = []
    for first in range(0, len(senders), 256):  # the image of each sender alone shows its taps
        pairs = np.argwhere(integer.reach(synapse, senders[first : first + 256]))
        found.append(pairs + np.array([first, 0]))
    return np.concatenate(found)


def refuse_numbers(graph: IntegerGraph) -> None:
    """A spike of this chip has no number with it."""
    for stage in graph.stages:
        if stage.kind == "count":
            raise InputError(
                f'{stage.name}: sends numbers, and Loihi 1 has binary spikes; export it in mode "window"'
            )
        if stage.kind == "lif" and stage.number("most") > 1:
            raise InputError(
                f"{stage.name}: sends up to {stage.number('most')} spikes at once, Loihi 1 sends one or none"
            )


def _takes(graph: IntegerGraph, name: str) -> str:
    """The group of a stage where synapses end."""
    return f"{name}:+" if has_two_rails(graph[name]) else name


def _once(values: NDArray[np.integer], steps: int) -> NDArray[np.bool_]:
    """Values [W, N] sent at the first step of each token where they are not zero, [W T, N]."""
    fires = np.zeros((len(values), steps, values.shape[-1]), dtype=bool)
    fires[:, 0] = values != 0
    return fires.reshape(-1, values.shape[-1])


def _ending(synapses: Pairs, here: NDArray[np.bool_]) -> Pairs:
    return Pairs(synapses.taker, synapses.pairs[here[synapses.pairs[:, 1]]])


# ---- where its neurons are ---------------------------------------------------------------------------


def on_their_chip(graph: IntegerGraph, placement: Placement) -> dict[str, Ints]:
    """SANA-FE's core of each neuron [N], by stage and relay."""
    chip = placement.chip
    if (chip.columns, chip.rows, chip.cores_per_tile) != (COLUMNS, ROWS, CORES_PER_TILE):
        raise InputError(
            f"placement: {chip.name} has {chip.columns} x {chip.rows} tiles of {chip.cores_per_tile} cores, "
            f"SANA-FE's Loihi 1 {COLUMNS} x {ROWS} of {CORES_PER_TILE}; place it on a chip with that mesh"
        )
    cores, found = {}, populations(graph, chip)
    strange = {part.stage for part in placement.cores} - {population.name for population in found}
    if strange:
        raise InputError(
            f"placement: has a part of {min(strange)}, which this graph lacks; use place() on it"
        )
    for population in found:
        where = np.full(population.shape, -1, dtype=np.int64)
        for part in placement.cores:
            if part.stage == population.name:
                if len(part.box) != where.ndim:
                    raise InputError(_not_of_this(population.name))
                where[tuple(slice(*axis) for axis in part.box)] = _their_core(part)
        if (where < 0).any():
            raise InputError(_not_of_this(population.name))
        cores[population.name] = where.reshape(-1)
    return cores


def _their_core(part: Core) -> int:
    return (part.column * ROWS + part.row) * CORES_PER_TILE + part.core % CORES_PER_TILE


def _not_of_this(name: str) -> str:
    return f"placement: has no place for all of {name}; it is of another graph: use place() on this one"


def in_order(graph: IntegerGraph, chip: Chip) -> dict[str, Ints]:
    """Cores filled one after the other, each population on its own; for counts that depend on no place."""
    placed, first = {}, 0
    for population in populations(graph, chip):
        cores = -(-population.neurons // chip.neurons_per_core)
        placed[population.name] = first + np.arange(population.neurons) * cores // population.neurons
        first += cores
    if first > CORES:
        raise InputError(f"needs {first} cores, SANA-FE's Loihi 1 has {CORES}; make the layers smaller")
    return placed


# ---- the job -----------------------------------------------------------------------------------------


def job_of(
    groups: Sequence[Group], prices: Mapping[str, float], timesteps: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The two files that `sanafe_runtime/run.py` reads, as a dict and arrays; prices are in pJ."""
    arrays: dict[str, NDArray[Any]] = {f"fires/{group.name}": group.fires.astype(np.int8) for group in groups}
    edges = [(group.name, each) for group in groups for each in group.edges if len(each.pairs)]
    arrays |= {f"pairs/{number}": each.pairs for number, (_, each) in enumerate(edges)}
    job = {
        "timesteps": timesteps,
        "prices": dict(prices),
        "groups": [
            {"name": each.name, "soma": each.soma, "cores": each.cores.tolist(), "priced": each.priced}
            for each in groups
        ],
        "edges": [[sender, each.taker] for sender, each in edges],
    }
    return job, arrays
