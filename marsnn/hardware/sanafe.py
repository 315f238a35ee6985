"""SANA-FE as an outside opinion on energy: a bundle's golden run on its Loihi 1, count beside count.

SANA-FE (Boyle et al., IEEE TCAD 44(8), 2025) simulates neuromorphic chips and brings a Loihi 1. It is told
when each neuron sends; routing the spikes, counting synaptic events, updates, messages and hops, and adding
up energy is its own work. Its prices are those of our table "loihi1", so counts are compared, not joules.

What it is told stands in `sanafe_replay.py`, how it is run in `sanafe_process.py`. Needs numpy alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from marsnn.energy.counts import Hops, LayerCounts, OperationCounts
from marsnn.energy.tables import load_table
from marsnn.errors import InputError
from marsnn.files import PathLike
from marsnn.hardware.bundle import load
from marsnn.hardware.place import events_of, place
from marsnn.hardware.placement import Placement
from marsnn.hardware.price import counts_of
from marsnn.hardware.sanafe_process import ask
from marsnn.hardware.sanafe_replay import (
    Group,
    has_two_rails,
    in_order,
    job_of,
    meets_weights,
    on_their_chip,
    refuse_numbers,
    replay,
)
from marsnn.hardware.stages import INPUT, IntegerGraph, IntegerRun, Ints, Stage

TABLE = "loihi1"
PROFILE = "loihi1"
MESH = ("messages", "hops east-west", "hops north-south")
ROUNDING = 1e-9
"""Relative difference of energies that adding up may leave; counts have to be equal."""


# ---- the result --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One quantity of the run as marsnn and as SANA-FE have it."""

    layer: str
    what: str
    ours: float
    sanafe: float

    @property
    def difference(self) -> float:
        """Relative; 0 where both are 0."""
        if self.ours == self.sanafe:
            return 0.0
        return abs(self.ours - self.sanafe) / max(abs(self.ours), abs(self.sanafe))


@dataclass(frozen=True)
class EnergyValidation:
    """marsnn's counts and energy beside SANA-FE's, over the whole golden run.

    Attributes:
        tokens, steps: W and T of the run.
        counts: a row for each layer's synaptic events, neuron updates and spikes, and, where there is a
            placement, for its messages and hops.
        energy: rows in pJ: synapses, neurons, the mesh and their sum.
        rails: stages with ternary spikes, each neuron of which sends on two axons.
        unplaced: why there is no placement, so that messages and hops are not compared; empty where there is.
        seconds: how long SANA-FE took.
    """

    tokens: int
    steps: int
    counts: tuple[Compared, ...]
    energy: tuple[Compared, ...]
    rails: tuple[str, ...]
    unplaced: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether all counts are equal and all energies agree within rounding."""
        return all(row.difference == 0 for row in self.counts) and self.largest_difference <= ROUNDING

    @property
    def largest_difference(self) -> float:
        """The largest relative difference of any row."""
        return max(row.difference for row in (*self.counts, *self.energy))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with `ok` and `largest_difference`."""
        return {"ok": self.ok, "largest_difference": self.largest_difference, **asdict(self)}

    def text(self) -> str:
        """One table, a row for each quantity, and what is and is not compared."""
        rows = [*self.counts, *self.energy]
        label = max(len("layer"), *(len(row.layer) for row in rows))
        heads = "what".ljust(19) + "marsnn".rjust(18) + "SANA-FE".rjust(18) + "difference".rjust(12)
        lines = [
            f"SANA-FE's Loihi 1 replays {self.tokens} tokens x {self.steps} steps; prices of table {TABLE!r}",
            f"{'layer'.ljust(label)}  {heads}",
        ]
        for row in rows:
            form = ",.1f" if row in self.energy else ",.0f"
            difference = f"{row.difference:.1e}" if row.difference else "0"
            cells = f"{row.what:<19}{row.ours:>18{form}}{row.sanafe:>18{form}}{difference:>12}"
            lines.append(f"{row.layer.ljust(label)}  {cells}")
        lines.append(
            "the spikes were given to SANA-FE: it compares counts and their sum, not joules on silicon"
        )
        if self.rails:
            lines.append(f"two axons a neuron, one for each sign: {', '.join(self.rails)}")
        if self.unplaced:
            lines.append(f"messages and hops are not compared, there is no placement: {self.unplaced}")
        return "\n".join(lines)


# ---- the call ----------------------------------------------------------------------------------------


def validate_energy(path: PathLike, placement: Placement | None = None) -> EnergyValidation:
    """Replay a bundle's golden run in SANA-FE and compare its counts and energy with ours.

    Args:
        path: the bundle's folder.
        placement: where its stages lie, made with the events of the golden run; None has `place` search for
            one. Where none fits, messages and hops are not compared, and a spike costs the one within a tile.

    Raises:
        BundleError: the bundle is damaged.   InputError: it does not fit SANA-FE's Loihi 1, or the placement
        does not fit the bundle.   SanafeError: SANA-FE is missing or failed.
    """
    bundle = load(path)
    return validate_run(bundle.graph, bundle.inputs, bundle.golden, placement)


def validate_run(
    graph: IntegerGraph, inputs: Ints, run: IntegerRun, placement: Placement | None = None
) -> EnergyValidation:
    """As `validate_energy`, for a run of W tokens [W, D] that is no bundle."""
    refuse_numbers(graph)
    if placement is None:
        placement = place(graph, PROFILE, events_of(run))
    if placement.fits and placement.events != "counted":
        raise InputError(
            f"placement: its events are {placement.events}; place(graph, traffic=events_of(run)) counts them"
        )
    cores = on_their_chip(graph, placement) if placement.fits else in_order(graph, placement.chip)
    groups = replay(graph, inputs, run, cores, placement)
    prices = _prices(placement.fits)
    started = time.perf_counter()
    told = ask(*job_of(groups, prices, len(inputs) * graph.steps))
    seconds = time.perf_counter() - started
    counts = counts_of(graph, inputs, run)
    rows = [row for stage in graph.stages for row in _of_layer(graph, stage, counts, told, groups, cores)]
    hops = None
    if placement.hops is not None:
        hops = {name: _of_all(each, len(inputs)) for name, each in placement.hops.items()}
        rows += [row for name, each in hops.items() for row in _of_mesh(name, each, told, groups)]
    # Where the input enters is not part of a placement: its messages are taken off again, at their price.
    brought = sum(told["messages"].get(group.name, (0,))[0] for group in groups if group.origin == INPUT)
    return EnergyValidation(
        tokens=len(inputs),
        steps=graph.steps,
        counts=tuple(row for row in rows if row.ours or row.sanafe),
        energy=_energy(counts.total, hops, told["energy_pj"], brought * prices["message"]),
        rails=tuple(stage.name for stage in graph.stages if has_two_rails(stage)),
        unplaced="" if placement.fits else placement.refusals[0],
        seconds=seconds,
    )


def _prices(placed: bool) -> dict[str, float]:
    """In pJ. With a placement a message costs a spike within its tile and its hops; without, a spike that."""
    table = load_table(TABLE)
    return {
        "synop": table["synop"],
        # an integer membrane is hardly ever exactly zero: every update is booked as an active one
        "update": table["update_active"],
        "spike": 0.0 if placed else table["spike"],
        "message": table["spike"] if placed else 0.0,
        "hop_east_west": table["hop_east_west"] if placed else 0.0,
        "hop_north_south": table["hop_north_south"] if placed else 0.0,
    }


def _of_layer(
    graph: IntegerGraph,
    stage: Stage,
    counts: OperationCounts,
    told: Mapping[str, Any],
    groups: Sequence[Group],
    cores: Mapping[str, Ints],
) -> Iterator[Compared]:
    homes = {str(core) for core in cores[stage.name].tolist()}
    names = {synapse.name for synapse in stage.synapses if meets_weights(graph, synapse)}
    met = sum(synaptic(counts.layers[name]) for name in names)
    yield Compared(stage.name, "synaptic events", met, _sum(told["events"], homes))
    if stage.sends == "train":
        own, axons = (
            counts.layers[stage.name],
            {each.name for each in groups if each.population == stage.name},
        )
        yield Compared(stage.name, "neuron updates", own.neuron_updates, _sum(told["updates"], homes))
        yield Compared(stage.name, "spikes", own.spikes, _sum(told["spikes"], axons))


def _of_mesh(name: str, hops: Hops, told: Mapping[str, Any], groups: Sequence[Group]) -> Iterator[Compared]:
    """Messages and hops of a stage's events, those of its relays among them."""
    passed = np.zeros(3, dtype=int)
    for group in groups:
        if group.origin == name:
            passed += told["messages"].get(group.name, (0, 0, 0))
    for what, ours, theirs in zip(
        MESH, (hops.messages, hops.east_west, hops.north_south), passed, strict=True
    ):
        yield Compared(name, what, ours, int(theirs))


def _energy(
    total: LayerCounts, hops: Mapping[str, Hops] | None, told: Mapping[str, float], brought: float
) -> tuple[Compared, ...]:
    table = load_table(TABLE)
    mesh = None if hops is None else sum(hops.values(), Hops())
    whole, synapses = table.spiking_pj(total, mesh), synaptic(total) * table["synop"]
    moved = 0.0 if mesh is None else table.spiking_pj(LayerCounts(), mesh)
    network = told["network"] - brought
    return (
        Compared("total", "synapses, pJ", synapses, told["synapse"]),
        Compared("total", "neurons, pJ", whole - synapses - moved, told["soma"]),
        Compared("total", "mesh, pJ", moved, network),
        Compared("total", "all, pJ", whole, told["total"] - brought),
    )


def synaptic(counts: LayerCounts) -> int:
    """Weights met by something that is not zero; on a chip of events each costs the same."""
    return counts.ac + counts.mac + counts.graded_ac


def _sum(told: Mapping[str, int], names: set[str]) -> int:
    return sum(number for name, number in told.items() if name in names)


def _of_all(hops: Hops, tokens: int) -> Hops:
    """Hops per token as those of all tokens, which are whole numbers where they were counted in this run."""
    numbers = (each * tokens for each in (hops.messages, hops.east_west, hops.north_south))
    return Hops(*(round(each) if abs(each - round(each)) < 1e-6 * max(each, 1) else each for each in numbers))
