"""EnergyReport: counts priced by at least two tables, per token, against a dense twin; measurements beside.

What is estimated and what is measured never share a column, a field or a word: tables give pJ under
"estimated", meters give joules under "measured (<meter>; idle subtracted)".
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from marsnn.energy.counts import Hops, LayerCounts, OperationCounts
from marsnn.energy.measured import MeasuredEnergy, Measurement
from marsnn.energy.page import page
from marsnn.energy.tables import EnergyTable, load_table
from marsnn.errors import InputError
from marsnn.files import PathLike, json_text, write_text

DEFAULT_TABLES = ("45nm-fp32", "45nm-int8", "loihi1")
"""What a report shows where nobody says otherwise."""

FORMAT = "marsnn.energy/1"
ALWAYS = ("45nm-fp32", "45nm-int8")
WIDTH = 100
TABLES_ABREAST = 3
METERS_ABREAST = 2
PJ = 1e12
"""pJ of a joule."""

OPERATIONS = {
    "MAC": "mac",
    "AC": "ac",
    "graded": "graded_ac",
    "mul": "mul",
    "add": "add",
    "spikes": "spikes",
    "updates": "neuron_updates",
    "dense MAC": "baseline_mac",
}
"""Column of the text -> field of LayerCounts."""

ON_THE_MESH = {"messages": "messages", "hops E-W": "hops_east_west", "hops N-S": "hops_north_south"}
"""Column of the text -> operation of a row, where a placement gave hops."""


@dataclass(frozen=True)
class Energy:
    """One table's verdict, per token."""

    spiking_pj: float
    dense_pj: float | None  # None: the table has no dense MAC, or nothing to compare with
    ratio: float | None  # spiking / dense; above 1 the dense twin is cheaper


@dataclass(frozen=True)
class Row:
    """One layer, or the total: operations and energy, per token."""

    name: str
    operations: dict[str, float]  # fields of LayerCounts; with hops, the values of ON_THE_MESH
    energy: dict[str, Energy]  # table name -> Energy


class Placed(Protocol):
    """What a report takes of a placement."""

    @property
    def hops(self) -> Mapping[str, Hops] | None: ...  # by layer, per token; None where it doesn't fit

    @property
    def summary(self) -> str: ...  # the chip, the cores, where the events come from


class EnergyReport:
    """What an inference would cost, per token, by several tables.

    Estimated from counted operations, never measured; `measured` stands beside it in columns of its own. The
    dense twin is the same network with one MAC per
    synapse and token and nothing else, no bias and no activation, unless `dense` brings counts of another
    module: that one is charged for every synapse, zero or not, and for its mul and add.

    Args:
        counts: what `marsnn.energy.count` returned.
        dense: counts of a dense module to compare with; None for the dense twin.
        tables: at least two names or paths of tables, or tables; the two of 45 nm (fp32 and int8) are
            always added.
        name: the title of the text.
        measured: what `marsnn.energy.measure` said about the same network; None: nobody measured.
        placement: of `marsnn.hardware.place.place`: tables of events charge its hops. None leaves hops out,
            which the notes say.

    Attributes:
        rows: a Row for each layer.   total: the Row of their sum.   totals: table name -> Energy of the sum.
        tables: name -> EnergyTable.   notes: what is counted and what is left out.

    Example:
        >>> import torch
        >>> from marsnn.energy import EnergyReport, count
        >>> report = EnergyReport(count(torch.nn.Linear(3, 2, bias=False), torch.ones(1, 3)))
        >>> round(report.totals["45nm-fp32"].spiking_pj, 1), round(report.totals["45nm-fp32"].dense_pj, 1)
        (5.4, 27.6)
    """

    def __init__(
        self,
        counts: OperationCounts,
        dense: OperationCounts | None = None,
        tables: Iterable[PathLike | EnergyTable] = DEFAULT_TABLES,
        name: str = "spiking",
        measured: MeasuredEnergy | None = None,
        placement: Placed | None = None,
    ) -> None:
        for what, given in (("counts", counts), ("dense", dense)):
            if not isinstance(given, OperationCounts) and not (what == "dense" and given is None):
                raise InputError(
                    f"{what} must be OperationCounts, got {type(given).__name__}; use marsnn.energy.count()"
                )
        if not isinstance(measured, MeasuredEnergy | None):
            raise InputError(
                f"measured must be MeasuredEnergy, got {type(measured).__name__}; use marsnn.energy.measure()"
            )
        self.counts = counts
        self.dense = dense
        self.measured = measured
        self.name = str(name)
        self.tables = _gathered(tables)
        self.placement = placement
        hops = None if placement is None else placement.hops
        self.hops = None if hops is None else dict(hops)
        named = [*counts.layers, *(layer for layer in self.hops or () if layer not in counts.layers)]
        self.rows = [
            self._row(layer, counts.layers.get(layer, LayerCounts()), (self.hops or {}).get(layer, Hops()))
            for layer in named
        ]
        passed = sum((self.hops or {}).values(), Hops())
        self.total = self._row("total", counts.total, passed, dense.total if dense else None)
        self.totals = self.total.energy
        self.notes = self._notes()

    def _row(self, name: str, booked: LayerCounts, hops: Hops, twin: LayerCounts | None = None) -> Row:
        if self.dense is not None and twin is None:
            twin = self.dense.layers.get(name)
        per_token = {key: value / self.counts.tokens for key, value in asdict(booked).items()}
        per_token["neuron_updates"] = booked.neuron_updates / self.counts.tokens
        run = None  # hops of all tokens, as the counts are
        if self.hops is not None:
            per_token |= {f"hops_{key}" if "_" in key else key: each for key, each in asdict(hops).items()}
            tokens = self.counts.tokens
            run = Hops(hops.messages * tokens, hops.east_west * tokens, hops.north_south * tokens)
        energy = {}
        for key, table in self.tables.items():
            spiking_pj = table.spiking_pj(booked, run) / self.counts.tokens
            if self.dense is None:
                dense_pj, tokens = table.dense_pj(booked, elementwise=False), self.counts.tokens
            else:
                dense_pj = None if twin is None else table.dense_pj(twin, elementwise=True)
                tokens = self.dense.tokens
            dense_pj = None if dense_pj is None else dense_pj / tokens
            energy[key] = Energy(spiking_pj, dense_pj, spiking_pj / dense_pj if dense_pj else None)
        return Row(name, per_token, energy)

    def _notes(self) -> list[str]:
        dense = (
            "dense twin: one MAC per synapse and token, zeros not skipped, without biases or activations"
            if self.dense is None
            else "dense: every synapse of the module it was counted from, zeros not skipped, its mul and add"
        )
        if self.measured is not None and self.measured.measurements:
            what = "energies by table are estimated: counted operations times the table's prices"
        else:
            what = "energies are estimated: counted operations times the table's prices; nothing was measured"
        notes = [
            what,
            "spiking: zeros are skipped at no cost; a graded accumulate is priced as a MAC",
            dense,
            "ratio: spiking / dense; above 1 the dense side is cheaper",
            "biases are booked as one addition a token; the sender's decode weights are folded into synapses",
            f"memory traffic is not charged: {self.total.operations['bytes_moved']:,.0f} bytes a token moved "
            "(weights, activations)",
            *self._notes_on_hops(),
        ]
        for what, given in (("", self.counts), ("dense: ", self.dense)):
            if given is not None and given.unattributed:
                listed = ", ".join(f"{key} {value}" for key, value in given.unattributed.items())
                notes.append(f"{what}not charged, in elements of the whole run: {listed}")
        if self.measured is not None and self.measured.measurements:
            notes += [
                "measured: the network as torch runs it here, by a meter of the whole device, power at rest "
                "subtracted; not the dense side, and not by layer",
                "estimated and measured are not expected to agree: a table prices arithmetic alone, on the "
                "process that it names; a meter sees memory, control and everything else",
            ]
        for table in self.tables.values():
            notes += [f"{table.name}: {note}" for note in (f"{table.title}; {table.precision}", *table.notes)]
        return notes

    def _notes_on_hops(self) -> list[str]:
        priced = ", ".join(table.name for table in self.tables.values() if table.prices_hops)
        if not priced:
            return []
        if self.placement is None:
            return [f"hops between tiles are left out of {priced}: no placement was given"]
        where = self.placement.summary
        if self.hops is None:
            return [f"hops between tiles are left out of {priced}: there is no placement on {where}"]
        return [
            f"{priced}: hops by a placement on {where}; each message of an event to one core costs a spike "
            "within its tile, too",
        ]

    # ---- showing it ---------------------------------------------------------------------------------

    def text(self) -> str:
        """The report as aligned text of at most 100 columns, but for a line about each meter."""
        rows = [*self.rows, self.total]
        label = max(len("layer"), *(len(row.name) for row in rows))
        label = min(label, WIDTH - max(10 * len(OPERATIONS), 27 * TABLES_ABREAST))
        tokens = f"{self.counts.tokens} token{'s' if self.counts.tokens > 1 else ''}"
        lines = [
            f"{self.name}: energy per token, {self._kinds()}",
            f"T = {self.counts.steps} micro-step{'s' if self.counts.steps > 1 else ''} a token; "
            f"means over {tokens}",
            "",
            "operations per token",
            "layer".ljust(label) + "".join(column.rjust(10) for column in OPERATIONS),
        ]
        for row in rows:
            cells = (_number(row.operations[key]).rjust(10) for key in OPERATIONS.values())
            lines.append(_short(row.name, label) + "".join(cells))
        if self.hops is not None:
            lines += ["", "on the mesh, per token", "layer".ljust(label) + _cells(ON_THE_MESH, 12)]
            lines += [
                _short(row.name, label)
                + _cells((_number(row.operations[key]) for key in ON_THE_MESH.values()), 12)
                for row in rows
                if any(row.operations[key] for key in ON_THE_MESH.values()) or row is self.total
            ]
        names = list(self.tables)
        for start in range(0, len(names), TABLES_ABREAST):
            lines += ["", *_energy_block(rows, names[start : start + TABLES_ABREAST], label)]
        if self.measured is not None:
            lines += ["", *_beside(self.totals, self.measured.measurements), *self.measured.lines()]
        lines += ["", "notes"]
        for note in self.notes:
            lines += textwrap.wrap(note, WIDTH, initial_indent="- ", subsequent_indent="  ")
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def _kinds(self) -> str:
        if self.measured is None or not self.measured.measurements:
            return "ESTIMATED from counted operations, never measured"
        return "ESTIMATED from counted operations; MEASURED only where it says so"

    def __str__(self) -> str:
        return self.text()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; every number is per token, energies in pJ.

        "estimated" and "measured" at the top speak of these energies by table. Where a meter was asked its
        verdict stands under "measurement" alone, in joules.
        """
        measurement = {} if self.measured is None else {"measurement": self.measured.to_dict()}
        return {
            "format": FORMAT,
            "name": self.name,
            "estimated": True,
            "measured": False,
            "per": "token",
            "tokens": self.counts.tokens,
            "steps": self.counts.steps,
            "total": _row_dict(self.total),
            "layers": [_row_dict(row) for row in self.rows],
            "tables": {key: _table_dict(table) for key, table in self.tables.items()},
            **measurement,
            "unattributed": dict(self.counts.unattributed),
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """`to_dict` as readable JSON text."""
        return json_text(self.to_dict())

    def html(self) -> str:
        """A page of its own: a row for each layer, columns that say estimated or measured."""
        return page(self.to_dict())

    def save(self, path: PathLike) -> Path:
        """Write the JSON, or the text where the name ends in .txt, or the page where it ends in .html."""
        shown = {".txt": self.text, ".html": self.html}.get(Path(path).suffix, self.to_json)
        return write_text(path, shown())


def _gathered(tables: Iterable[PathLike | EnergyTable]) -> dict[str, EnergyTable]:
    given: Sequence[PathLike | EnergyTable] = (
        (tables,) if isinstance(tables, str | os.PathLike | EnergyTable) else tuple(tables)
    )
    loaded: dict[str, EnergyTable] = {}
    for each in given:
        table = each if isinstance(each, EnergyTable) else load_table(each)
        if loaded.setdefault(table.name, table) != table:
            raise InputError(f"two energy tables are named {table.name!r}; rename one")
    if len(loaded) < 2:
        raise InputError(
            f"a report needs at least two energy tables, got {', '.join(loaded) or 'none'}: one table alone "
            f'can decide the winner; use tables=("45nm-fp32", "45nm-int8", ...)'
        )
    for name in ALWAYS:
        own = load_table(name)
        if loaded.setdefault(name, own) != own:
            raise InputError(f"{name!r} is the name of marsnn's own energy table; rename yours")
    return loaded


def _row_dict(row: Row) -> dict[str, Any]:
    energy = {key: asdict(value) for key, value in row.energy.items()}
    return {"name": row.name, **row.operations, "energy": energy}


def _table_dict(table: EnergyTable) -> dict[str, Any]:
    return {**asdict(table), "notes": list(table.notes)}


def _energy_block(rows: Sequence[Row], names: Sequence[str], label: int) -> list[str]:
    heads = "".join(f"  {_short(name, 25).center(25)}" for name in names)
    columns = "   spiking     dense  ratio".rjust(27) * len(names)
    lines = ["energy per token, pJ", " " * label + heads, "layer".ljust(label) + columns]
    for row in rows:
        cells = ""
        for name in names:
            energy = row.energy[name]
            cells += (
                f"{_number(energy.spiking_pj):>10}{_number(energy.dense_pj):>10}{_ratio(energy.ratio):>7}"
            )
        lines.append(_short(row.name, label) + cells)
    return lines


def _beside(totals: dict[str, Energy], meters: Sequence[Measurement]) -> list[str]:
    """The whole network by every table and every meter, each in its column; nothing where no meter is."""
    if not meters:
        return []
    lines = ["energy per token of the whole network, pJ: estimated | measured"]
    names = list(totals)
    blocks = zip_longest(
        (names[i : i + TABLES_ABREAST] for i in range(0, len(names), TABLES_ABREAST)),
        (meters[i : i + METERS_ABREAST] for i in range(0, len(meters), METERS_ABREAST)),
        fillvalue=(),
    )
    for tables, told in blocks:
        estimated = [
            (["estimated", f"({_short(name, 11).strip()})"], [_number(totals[name].spiking_pj), ""])
            for name in tables
        ]
        measured = [(textwrap.wrap(each.label, 20), _measured_cells(each)) for each in told]
        height = max(len(head) for head, _ in (*estimated, *measured))
        for row in (*range(height), "total", "+- 95 %"):
            line = f"{row if isinstance(row, str) else '':<9}"
            for columns, width, edge in ((estimated, 15, ""), (measured, 21, " |")):
                for head, cells in columns:
                    if isinstance(row, int):
                        cell = head[row] if row < len(head) else ""
                    else:
                        cell = cells[0 if row == "total" else 1]
                    line += edge + cell.rjust(width)
            lines.append(line)
        lines.append("")
    return lines


def _measured_cells(told: Measurement) -> list[str]:
    """Net energy in pJ and half its interval; only a bound where the meter can't tell it from zero."""
    if told.below_resolution:
        return ["below resolution", f"< {_number(told.resolution_j * PJ)}"]
    return [_number(told.per_token_j.mean * PJ), _number((told.per_token_j.half or 0.0) * PJ)]


def _cells(texts: Iterable[str], width: int) -> str:
    return "".join(text.rjust(width) for text in texts)


def _number(value: float | None) -> str:
    """At most nine characters."""
    if value is None:
        return "n/a"
    if value == 0:
        return "0"
    if value >= 1e6 or value < 0.01:
        return f"{value:.3g}"
    return f"{value:,.2f}" if value < 1e4 else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" if value < 100 else f"{value:.3g}"


def _short(name: str, width: int) -> str:
    """The name, its beginning cut off where it is too long."""
    return name.ljust(width) if len(name) <= width else "~" + name[len(name) - width + 1 :]
