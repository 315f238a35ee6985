"""What a placement says: each part's core and filling, the hops of a token, and what does not fit."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from marsnn.energy.counts import Hops
from marsnn.hardware.chip import Chip
from marsnn.hardware.parts import Use, limits_of

FORMAT = "marsnn.placement/1"
WIDTH = 100


@dataclass(frozen=True)
class Core:
    """A core and the part on it."""

    core: int
    column: int  # of its tile
    row: int
    stage: str  # or a relay, "stage~1"
    part: int
    box: tuple[tuple[int, int], ...]  # its neurons, along each axis: from, to
    use: Use


@dataclass(frozen=True)
class Cut:
    """A stage or relay, all parts together."""

    name: str
    kind: str
    neurons: int
    cores: int
    use: Use  # sums over its cores
    fullest: Mapping[str, float]  # of each limit, the share of the core that uses most of it


@dataclass(frozen=True)
class Edge:
    """What one population sends another, per token."""

    source: str
    target: str
    messages: float  # an event to one core
    east_west: float  # hops between tiles
    north_south: float


@dataclass(frozen=True)
class Link:
    """Messages a token between two neighbouring tiles, both directions; rows are followed before columns."""

    a: tuple[int, int]  # column, row
    b: tuple[int, int]
    messages: float


@dataclass(frozen=True)
class Placement:
    """Where each stage of a graph lies on a chip, and what its messages cost in hops.

    Attributes:
        chip: the limits.   cuts: what each population takes.
        refusals: why it doesn't fit, each with a remedy.
        cores: where the parts lie; empty, as `edges` and `links` are, where there are refusals.
        events: "counted", or whose were not given and so are a guess, one a neuron and token.
        hops: by stage, of what it sends, per token; None where there are refusals.
        weighted_hops: a token's hops times what the chip's profile says that each counts for.
        naive: the same with parts in their order, row by row.   bound: no placement has less.
        relays: neurons that only wait.   method, seed: of the search.
    """

    chip: Chip
    cuts: tuple[Cut, ...]
    refusals: tuple[str, ...]
    cores: tuple[Core, ...]
    edges: tuple[Edge, ...]
    links: tuple[Link, ...]
    hops: Mapping[str, Hops] | None
    events: str
    weighted_hops: float
    naive: float
    bound: float
    relays: int
    method: str
    seed: int
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.refusals

    @property
    def cores_used(self) -> int:
        """Cores that it takes, or would take."""
        return sum(cut.cores for cut in self.cuts)

    @property
    def summary(self) -> str:
        """The chip, the cores, where the events come from."""
        profile = self.chip.name if self.chip.verified else f"{self.chip.name} (unverified profile)"
        if not self.fits:
            return f"{profile}: it doesn't fit"
        return f"{profile}, {self.cores_used} cores, events {self.events}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; messages and hops are per token."""
        chip = self.chip
        return {
            "format": FORMAT,
            "profile": chip.name,
            "source": chip.source,
            "verified": chip.verified,
            "mesh": {
                "columns": chip.columns, "rows": chip.rows, "cores_per_tile": chip.cores_per_tile,
                "hop_east_west": chip.hop_east_west, "hop_north_south": chip.hop_north_south,
            },
            "limits": limits_of(chip),
            "cores": chip.cores,
            "cores_used": self.cores_used,
            "fits": self.fits,
            "refusals": list(self.refusals),
            "stages": [
                {"name": cut.name, "kind": cut.kind, "cores": cut.cores, **asdict(cut.use),
                 "fullest": dict(cut.fullest)} | {"neurons": cut.neurons}
                for cut in self.cuts
            ],
            "placed": [
                {"core": each.core, "column": each.column, "row": each.row, "stage": each.stage,
                 "part": each.part, "box": [list(axis) for axis in each.box], **asdict(each.use),
                 "filled": each.use.shares(chip)}
                for each in self.cores
            ],
            "edges": [asdict(edge) for edge in self.edges],
            "links": [
                {"a": list(link.a), "b": list(link.b), "messages": link.messages} for link in self.links
            ],
            "hops": {name: asdict(each) for name, each in self.hops.items()} if self.hops else {},
            "weighted_hops": self.weighted_hops,
            "naive_weighted_hops": self.naive,
            "least_weighted_hops": self.bound,
            "events": self.events,
            "relay_neurons": self.relays,
            "method": self.method,
            "seed": self.seed,
            "notes": list(self.notes),
        }  # fmt: skip

    def text(self) -> str:
        """The placement as aligned text of at most 100 columns."""
        lines = [line_of(self.to_dict())]
        for refusal in self.refusals:
            lines += textwrap.wrap(refusal, WIDTH, initial_indent="! ", subsequent_indent="  ")
        label = min(max([len("stage"), *(len(cut.name) for cut in self.cuts)]), 26)
        heads = ("cores", "neurons", "bytes", "axons in", "axons out", "delayed", "fullest")
        lines += [
            "",
            "stage".ljust(label) + "".join(head.rjust(14 if head == "bytes" else 10) for head in heads),
        ]
        for cut in self.cuts:
            use = cut.use
            cells = (cut.cores, cut.neurons, use.synapse_bytes, use.input_axons, use.output_axons,
                     use.delayed_axons)  # fmt: skip
            name = cut.name if len(cut.name) <= label else "~" + cut.name[1 - label :]
            full = max(cut.fullest.values(), default=0.0)
            numbers = [f"{cell:,}".rjust(14 if at == 2 else 10) for at, cell in enumerate(cells)]
            lines.append(name.ljust(label) + "".join(numbers) + f"{full:>10.0%}")
        if self.fits:
            lines += ["", "per token".ljust(2 * label + 4) + "messages".rjust(12) + "E-W hops".rjust(12)
                      + "N-S hops".rjust(12)]  # fmt: skip
            for edge in self.edges:
                name = f"{edge.source[-label:]} -> {edge.target[-label:]}".ljust(2 * label + 4)
                passed = (edge.messages, edge.east_west, edge.north_south)
                lines.append(name + "".join(f"{number:>12,.1f}" for number in passed))
            gain = f", {1 - self.weighted_hops / self.naive:.0%} below row by row" if self.naive else ""
            lines += [
                "",
                f"weighted hops a token {self.weighted_hops:,.1f}{gain} ({self.naive:,.1f}); "
                f"none has less than {self.bound:,.1f}",
                f"by {self.method}, seed {self.seed}",
            ]
        lines += ["", "notes"]
        for note in self.notes:
            lines += textwrap.wrap(note, WIDTH, initial_indent="- ", subsequent_indent="  ")
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def __str__(self) -> str:
        return self.text()


def line_of(placed: Mapping[str, Any]) -> str:
    """Of `Placement.to_dict`: how many cores, and whether they are there."""
    verified = "" if placed["verified"] else ", UNVERIFIED profile"
    fits = "fits" if placed["fits"] else "DOES NOT FIT"
    return f"{placed['profile']}{verified}: {placed['cores_used']} of {placed['cores']} cores, {fits}"
