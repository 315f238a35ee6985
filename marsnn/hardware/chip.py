"""A chip's limits and its mesh, read from a TOML profile that anyone can edit.

Tiles lie in `columns` x `rows`, counted by rows from the top left; core c lies in tile c // cores_per_tile.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import FileError
from marsnn.files import PathLike, read_toml

PROFILES = Path(__file__).parent / "profiles"
LARGEST = {"cores": 1024, "delay_bits": 30}


@dataclass(frozen=True)
class Chip:
    """Limits of one chip."""

    name: str
    source: str
    columns: int
    rows: int
    cores_per_tile: int
    cores: int  # usable ones, the first of the mesh
    neurons_per_core: int
    synapse_bytes_per_core: int
    input_axons_per_core: int
    output_axons_per_core: int
    delay_bits: int
    rails_per_ternary_spike: int
    hop_east_west: float  # what a hop counts for
    hop_north_south: float
    graded_spikes: bool
    rails_share_weights: bool
    verified: bool = False
    notes: tuple[str, ...] = ()

    @property
    def longest_wait(self) -> int:
        """Steps that a synapse can hold an event."""
        return 2**self.delay_bits - 1

    def tile(self, core: int) -> tuple[int, int]:
        """Column and row of the tile of a core."""
        tile = core // self.cores_per_tile
        return tile % self.columns, tile // self.columns

    def hops(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Hops between cores, east-west and north-south, [cores, cores] each."""
        x, y = np.array([self.tile(core) for core in range(self.cores)], dtype=np.int64).T
        return np.abs(x[:, None] - x), np.abs(y[:, None] - y)


def load_profile(profile: PathLike = "loihi1") -> Chip:
    """A chip's limits, by the name of a shipped profile or the path of a TOML file.

    Raises:
        FileError: no such profile, or one that lacks a limit.
    """
    shipped = PROFILES / f"{profile}.toml"
    path = shipped if shipped.is_file() else Path(profile)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.toml")))
        raise FileError(f"{path}: no such profile; shipped ones: {known}")
    raw = read_toml(path)
    raw.setdefault("name", path.stem)
    raw.setdefault("source", "not stated")
    chip = Chip(**{field.name: _checked(path, field.name, field.type, raw) for field in fields(Chip)})
    if chip.cores > chip.columns * chip.rows * chip.cores_per_tile:
        raise FileError(
            f"{path}: cores is {chip.cores}, more than columns x rows x cores_per_tile = "
            f"{chip.columns * chip.rows * chip.cores_per_tile}"
        )
    return chip


def _checked(path: Path, key: str, kind: object, raw: dict[str, Any]) -> Any:
    value = raw.get(key)
    if kind == "bool":
        if key == "verified" and value is None:
            return False
        fine, expected = isinstance(value, bool), "true or false"
    elif kind == "str":
        fine, expected = isinstance(value, str), "a text"
    elif kind == "float":
        fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12
        expected = "a number > 0"
    elif kind == "int":
        most = LARGEST.get(key, 2**31)
        fine = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        expected = f"a whole number >= 1 and <= {most}"
    else:
        value = [] if value is None else value
        fine = isinstance(value, list) and all(isinstance(each, str) for each in value)
        value, expected = (tuple(value) if fine else value), "a list of texts"
    if not fine:
        raise FileError(f"{path}: {key} is {value!r}, expected {expected}")
    return value
