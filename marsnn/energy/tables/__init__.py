"""Energy tables: TOML files that price operations, each number with its unit, process and source.

    kind "arithmetic"   mac, ac, mul, add: all four, at one precision, so that no comparison mixes two
    kind "events"       synop, update_active, update_idle, spike: a spiking chip without a dense MAC; where a
                        placement is given, hop_east_west and hop_north_south too

Numbers beyond these are kept and shown but charged to nothing. `45nm-fp32.toml` beside this file shows the
form of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsnn.energy.counts import Hops, LayerCounts
from marsnn.errors import InputError
from marsnn.files import PathLike, read_toml

FOLDER = Path(__file__).parent

CHARGED = {
    "arithmetic": ("mac", "ac", "mul", "add"),
    "events": ("synop", "update_active", "update_idle", "spike"),
}
"""What a table of each kind must price, in pJ."""

HOPS = ("hop_east_west", "hop_north_south")
"""What a table of events can price, in pJ, both or neither."""


@dataclass(frozen=True)
class Price:
    """One number and where it comes from."""

    value: float
    unit: str
    process: str
    source: str


@dataclass(frozen=True)
class EnergyTable:
    """Prices of operations; `load_table` reads and checks them.

    Attributes:
        name: short, shown above its column.   title: what it stands for.
        kind: "arithmetic" or "events".   precision: of all its numbers.
        prices: operation -> Price.   notes: what it counts and leaves out.
    """

    name: str
    title: str
    kind: str
    precision: str
    prices: Mapping[str, Price]
    notes: tuple[str, ...]

    def __getitem__(self, operation: str) -> float:
        return self.prices[operation].value

    @property
    def prices_hops(self) -> bool:
        return self.kind == "events" and all(operation in self.prices for operation in HOPS)

    def spiking_pj(self, counts: LayerCounts, hops: Hops | None = None) -> float:
        """Energy of what ran: zeros skipped, graded accumulates priced as MACs.

        On a chip of events every synaptic operation costs the same, graded or not. With `hops`, of the whole
        run as the counts are, each message costs a spike within its tile and its hops; without, each spike
        costs the one within its tile.
        """
        if self.kind == "events":
            moved = counts.spikes * self["spike"]
            if hops is not None:
                moved = hops.messages * self["spike"]
                if self.prices_hops:
                    moved += hops.east_west * self[HOPS[0]] + hops.north_south * self[HOPS[1]]
            return (
                (counts.ac + counts.graded_ac + counts.mac) * self["synop"]
                + counts.neuron_updates_active * self["update_active"]
                + counts.neuron_updates_idle * self["update_idle"]
                + moved
            )
        synapses = (counts.mac + counts.graded_ac) * self["mac"] + counts.ac * self["ac"]
        return synapses + counts.mul * self["mul"] + counts.add * self["add"]

    def dense_pj(self, counts: LayerCounts, elementwise: bool) -> float | None:
        """Energy of the dense twin: `baseline_mac`, and mul and add if asked for; None where it can't run."""
        if self.kind == "events":
            return None
        outside = counts.mul * self["mul"] + counts.add * self["add"] if elementwise else 0.0
        return counts.baseline_mac * self["mac"] + outside


def table_names() -> tuple[str, ...]:
    """Tables that come with marsnn."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load_table(name_or_path: PathLike) -> EnergyTable:
    """A table by name, or from a TOML file of your own.

    Raises:
        InputError: no such table, or one that is incomplete.   FileError: the file can't be read.

    Example:
        >>> from marsnn.energy import load_table
        >>> load_table("45nm-fp32")["mac"]
        4.6
    """
    name = str(name_or_path)
    if name in table_names():
        path = FOLDER / f"{name}.toml"
    elif name.endswith(".toml") or "/" in name or Path(name_or_path).is_file():
        path = Path(name_or_path)
    else:
        known = ", ".join(table_names())
        raise InputError(f"no energy table named {name!r}; use one of {known}, or the path of a .toml file")
    return _checked(path, read_toml(path))


def _checked(path: Path, raw: dict[str, Any]) -> EnergyTable:
    texts = {key: _text(path, key, raw.get(key)) for key in ("name", "title", "kind", "precision")}
    kind, energy, notes = texts["kind"], raw.get("energy"), raw.get("notes")
    if kind not in CHARGED:
        raise InputError(f'{path}: kind must be "arithmetic" or "events", got {kind!r}')
    if not isinstance(energy, dict):
        raise InputError(
            f"{path}: prices nothing; write a section [energy.NAME] for {', '.join(CHARGED[kind])}"
        )
    if not isinstance(notes, list) or not notes or not all(isinstance(note, str) for note in notes):
        raise InputError(f"{path}: notes must be a list of texts: what the table counts and leaves out")
    prices = {operation: _price(path, operation, entry) for operation, entry in energy.items()}
    missing = [operation for operation in CHARGED[kind] if operation not in prices]
    if missing:
        raise InputError(
            f"{path}: lacks {', '.join(missing)}; a table of kind {kind!r} prices "
            f"{', '.join(CHARGED[kind])} together, at one precision"
        )
    stray = [operation for operation in ("mac", "ac") if kind == "events" and operation in prices]
    if stray:
        raise InputError(f'{path}: {", ".join(stray)} belongs in a table of kind "arithmetic"')
    hops = [operation for operation in HOPS if kind == "events" and operation in prices]
    if len(hops) == 1:
        raise InputError(f"{path}: prices {hops[0]} alone; a table prices {' and '.join(HOPS)}, or neither")
    wrong = [operation for operation in (*CHARGED[kind], *hops) if prices[operation].unit != "pJ"]
    if wrong:
        raise InputError(f'{path}: {", ".join(wrong)} must be in unit = "pJ", got {prices[wrong[0]].unit!r}')
    return EnergyTable(**texts, prices=prices, notes=tuple(notes))


def _price(path: Path, operation: str, entry: Any) -> Price:
    where = f"energy.{operation}"
    if not isinstance(entry, dict):
        raise InputError(f"{path}: {where} must be a section with value, unit, process, source")
    value = entry.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e12:
        raise InputError(
            f"{path}: {where}.value must be a finite number >= 0 (and <= 1e12), got {str(value)[:40]!r}"
        )
    texts = {key: _text(path, f"{where}.{key}", entry.get(key)) for key in ("unit", "process", "source")}
    return Price(float(value), **texts)


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{path}: {key} must be a text, got {value!r}")
    return value
