"""place: the stages of a graph on the cores of a chip, near whom they talk to.

    graph -> populations (stages and relays) -> parts (one a core) -> cores of the mesh

Parts are cut from the last population to the first, because what a part sends depends on how its receivers
are cut. One core holds one part, so two small stages never share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from marsnn.energy.counts import Hops
from marsnn.errors import InputError
from marsnn.files import PathLike
from marsnn.hardware import swaps
from marsnn.hardware.chip import Chip, load_profile
from marsnn.hardware.lif_stages import stages_of
from marsnn.hardware.loihi import LoihiModel, LoihiRun
from marsnn.hardware.parts import (
    Box,
    Use,
    cut,
    heard,
    hearers,
    norm_messages,
    outgoing,
    owners,
    returning,
    use_of,
)
from marsnn.hardware.placement import Core, Cut, Edge, Link, Placement
from marsnn.hardware.populations import (
    RELAY,
    Population,
    events_per_neuron,
    graded_refusals,
    populations,
)
from marsnn.hardware.stages import INPUT, IntegerGraph, IntegerRun

__all__ = ["events_of", "load_profile", "place"]

Floats = NDArray[np.float64]
Traffic = Mapping[str, float | Floats]
"""Stage -> events per token, of all its neurons together or of each [N]."""


def events_of(run: IntegerRun | LoihiRun) -> dict[str, Floats]:
    """Events per token of each neuron, counted in a run: spikes and values that aren't 0."""
    trains = {
        name: np.count_nonzero(spikes, axis=1).mean(axis=0).reshape(-1) for name, spikes in run.spikes.items()
    }
    values = run.values if isinstance(run, IntegerRun) else {}
    return trains | {name: (each != 0).mean(axis=0) for name, each in values.items()}


def place(
    graph: IntegerGraph | LoihiModel,
    profile: PathLike | Chip = "loihi1",
    traffic: Traffic | None = None,
    seed: int = 0,
    effort: float = 1.0,
) -> Placement:
    """Cut a graph's stages into parts that a core holds, and lay them where their messages pass few tiles.

    Estimated: each event is one message to each core that hears it, routed along its row first. What the
    input sends is left out, since where it enters the chip is not part of a profile.

    Args:
        graph: the stages, or a chain of stock LIFs.
        profile: a shipped profile's name, the path of a TOML file, or a chip.
        traffic: events per token by stage, as `events_of` counts them; None takes one event a neuron.
        seed: of the search.   effort: how long it lasts; 1 is about a second for 100 cores, 0 only descends.

    Returns:
        The placement. What doesn't fit stands in its `refusals`, and then no core is chosen.

    Raises:
        FileError: of the profile.   InputError: events that are no counts of the graph's stages.
    """
    graph = stages_of(graph) if isinstance(graph, LoihiModel) else graph
    chip = profile if isinstance(profile, Chip) else load_profile(profile)
    checked = _checked(graph, traffic)
    found = populations(graph, chip)
    refusals = graded_refusals(graph, chip)
    fan = {each.name: np.zeros(each.neurons, dtype=np.int64) for each in found}  # cores that hear a neuron
    parts: dict[str, list[Box]] = {}
    for population in reversed(found):
        fan[population.name] *= population.rails
        parts[population.name], refusal = cut(population, fan[population.name], chip)
        if refusal:
            refusals.append(refusal)
        for sender in population.senders:
            if sender.name not in (INPUT, population.name):
                fan[sender.name] += hearers(population, sender, parts[population.name])
        fan[population.name] = fan[population.name] + returning(population, parts[population.name])
    uses = {each.name: _uses(each, parts[each.name], fan[each.name], chip) for each in found}
    cuts = tuple(_cut(each, uses[each.name], chip) for each in found)
    used = sum(each.cores for each in cuts)
    if used > chip.cores:
        refusals.append(_too_many(found, cuts, chip))
    told = _events_told([each.name for each in found if each.kind != RELAY and fan[each.name].any()], checked)
    relays = sum(each.neurons for each in found if each.kind == RELAY)
    if refusals:
        return Placement(
            chip, cuts, tuple(refusals), (), (), (), None, told, 0.0, 0.0, 0.0, relays,
            "none, it doesn't fit", seed, _notes(chip, told),
        )  # fmt: skip
    laid = _Laid.out(found, parts, uses, checked)
    east_west, north_south = chip.hops()
    distance = chip.hop_east_west * east_west + chip.hop_north_south * north_south
    begin = swaps.starts(chip, used)
    cores = swaps.search(laid.flow, distance, begin, seed, effort)
    grid = np.ix_(cores, cores)
    edges = laid.edges(east_west[grid], north_south[grid])
    return Placement(
        chip=chip,
        cuts=cuts,
        refusals=(),
        cores=tuple(
            Core(int(core), *chip.tile(int(core)), population.name, number, box, use)
            for core, (population, number, box, use) in zip(cores, laid.parts, strict=True)
        ),
        edges=edges,
        links=_links(laid.flow, [chip.tile(int(core)) for core in cores]),
        hops=_hops(found, edges),
        events=told,
        weighted_hops=swaps.cost_of(laid.flow, distance, cores),
        naive=swaps.cost_of(laid.flow, distance, begin[0]),
        bound=swaps.lower_bound(laid.flow, distance),
        relays=relays,
        method=swaps.METHOD,
        seed=seed,
        notes=_notes(chip, told),
    )


@dataclass(frozen=True)
class _Laid:
    """All parts in order, and the messages between them, per token."""

    parts: list[tuple[Population, int, Box, Use]]
    flow: Floats  # [n, n]
    between: dict[tuple[str, str], tuple[slice, slice]]  # sender, receiver -> its rows and columns

    @classmethod
    def out(
        cls,
        found: list[Population],
        parts: Mapping[str, list[Box]],
        uses: Mapping[str, list[Use]],
        traffic: Traffic,
    ) -> _Laid:
        rows = [(p, k, box, uses[p.name][k]) for p in found for k, box in enumerate(parts[p.name])]
        behind = np.cumsum([len(parts[p.name]) for p in found]).tolist()
        own = {p.name: slice(end - len(parts[p.name]), end) for p, end in zip(found, behind, strict=True)}
        owner = {p.name: owners(p, parts[p.name]) for p in found}
        events = {p.name: events_per_neuron(p, traffic) for p in found}
        flow = np.zeros((len(rows), len(rows)))
        between: dict[tuple[str, str], tuple[slice, slice]] = {}
        for population in found:
            here = own[population.name]
            for sender in population.senders:
                if sender.name == INPUT:
                    continue
                there = own[sender.name]
                between[sender.name, population.name] = (there, here)
                for index, box in enumerate(parts[population.name], here.start):
                    sent = events[sender.name] * heard(population, sender, box)
                    flow[there, index] = np.bincount(owner[sender.name], sent, len(parts[sender.name]))
            sums, count = norm_messages(population), len(parts[population.name])
            if sums and count > 1:
                between[population.name, population.name] = (here, here)
                flow[here, here] = sums * (1 - np.eye(count))
        return cls(rows, flow, between)

    def edges(self, east_west: NDArray[np.int64], north_south: NDArray[np.int64]) -> tuple[Edge, ...]:
        edges = []
        for (source, target), at in self.between.items():
            flow = self.flow[at]
            sums = (flow.sum(), (flow * east_west[at]).sum(), (flow * north_south[at]).sum())
            edges.append(Edge(source, target, *(float(each) for each in sums)))
        return tuple(edges)


def _checked(graph: IntegerGraph, traffic: Traffic | None) -> dict[str, float | Floats]:
    checked: dict[str, float | Floats] = {}
    for name, given in (traffic or {}).items():
        if name == INPUT:
            continue
        if name not in {stage.name for stage in graph.stages}:
            known = ", ".join(stage.name for stage in graph.stages)
            raise InputError(f"events of {name!r}, which is no stage of this graph; its stages are {known}")
        events = np.asarray(given, dtype=np.float64)
        if events.ndim and events.shape != (graph[name].neurons,):
            raise InputError(
                f"{name}: events of shape {list(events.shape)}, expected one number or one for each of its "
                f"{graph[name].neurons} neurons"
            )
        if not np.isfinite(events).all() or (events < 0).any():
            raise InputError(f"{name}: events must be finite numbers >= 0 per token")
        checked[name] = events
    return checked


def _uses(population: Population, parts: list[Box], fan: NDArray[np.int64], chip: Chip) -> list[Use]:
    sent = outgoing(population, parts, fan) if parts else []
    uses = []
    for box, output in zip(parts, sent, strict=True):
        use = use_of(population, box, chip, len(parts))
        output += norm_messages(population) * (len(parts) - 1)
        uses.append(Use(use.neurons, use.synapse_bytes, use.input_axons, output, use.delayed_axons))
    return uses


def _cut(population: Population, uses: list[Use], chip: Chip) -> Cut:
    names = ("neurons", "synapse_bytes", "input_axons", "output_axons", "delayed_axons")
    total = Use(*(sum(getattr(use, name) for use in uses) for name in names))
    shares = [use.shares(chip) for use in uses]
    fullest = {name: max(share[name] for share in shares) for name in (shares[0] if shares else {})}
    return Cut(population.name, population.kind, population.neurons, len(uses), total, fullest)


def _too_many(found: list[Population], cuts: tuple[Cut, ...], chip: Chip) -> str:
    used = sum(each.cores for each in cuts)
    population, largest = max(zip(found, cuts, strict=True), key=lambda pair: pair[1].cores)
    over, chips = used - chip.cores, -(-used // chip.cores)
    more = "a second chip" if chips == 2 else f"{chips} chips"
    remedy = f"take {more}"
    if largest.cores > over:
        most = population.neurons * (largest.cores - over) // largest.cores
        remedy += f", or make {largest.name} ({largest.cores} cores for {population.neurons:,} neurons) "
        remedy += f"smaller: about {most:,} neurons"
    else:
        remedy += f", or smaller layers: {largest.name} alone takes {largest.cores}"
    return f"needs {used} cores, {chip.name} has {chip.cores}: {remedy}"


def _hops(found: list[Population], edges: tuple[Edge, ...]) -> dict[str, Hops]:
    """By the stage whose events they are; a relay's are its sender's."""
    hops = {population.origin: Hops() for population in found}
    origin = {population.name: population.origin for population in found}
    for edge in edges:
        hops[origin[edge.source]] += Hops(edge.messages, edge.east_west, edge.north_south)
    return hops


def _links(flow: Floats, tiles: list[tuple[int, int]]) -> tuple[Link, ...]:
    """Messages over each pair of neighbouring tiles; along the sender's row, then the receiver's column."""
    found: dict[tuple[tuple[int, int], tuple[int, int]], float] = {}
    for i, j in zip(*np.nonzero(flow), strict=True):
        (x, y), (column, row) = tiles[i], tiles[j]
        path = [(at, y) for at in _between(x, column)] + [(column, at) for at in _between(y, row)[1:]]
        for a, b in pairwise(path):
            key = (min(a, b), max(a, b))
            found[key] = found.get(key, 0.0) + float(flow[i, j])
    return tuple(Link(a, b, messages) for (a, b), messages in sorted(found.items()))


def _between(start: int, stop: int) -> range:
    return range(start, stop + 1) if start <= stop else range(start, stop - 1, -1)


def _events_told(senders: list[str], given: Traffic) -> str:
    """Where the events of those that anyone hears come from."""
    guessed = [name for name in senders if name not in given]
    if not guessed:
        return "counted"
    if guessed == senders:
        return "a guess: one a neuron and token"
    return f"counted, but a guess of one a neuron and token for {', '.join(guessed)}"


def _notes(chip: Chip, events: str) -> tuple[str, ...]:
    verified = "" if chip.verified else "; not verified on silicon"
    notes = [
        f"limits of {chip.name}: {chip.source}{verified}",
        f"events: {events}; each is one message to each core that hears it",
        "what the input sends is left out: where it enters the chip is not part of a profile",
        "room is counted; whether the chip's neurons compute these kinds of stages is not",
    ]
    if not chip.graded_spikes:
        notes.append(f"the input is graded: {chip.name} gets it from outside, as currents or as spikes")
    return (*notes, *chip.notes)
