"""The ablation's table: one row for each trained network, written, read back, and summed up over seeds.

    task, neuron, steps, seed  which cell; steps is T
    tau, surrogate             of an axis, or chosen (tau); empty where the neuron has none or its own default
    tuned                      names of the settings that were chosen on the validation part
    learning_rate, ...         the settings of this network, one column each
    validation_accuracy        of the chosen settings, mean over the tuning seeds
    accuracy                   share of the test part that is classified right
    spikes_per_step            spikes of either sign per neuron and micro-step
    accumulates                effective accumulates per inference (graded_accumulates: of spikes beyond +-1)
    macs                       effective multiply-accumulates per inference
    energy_pj_<table>          estimated, per inference
    dense_pj_<table>           of the dense twin at the same precision: one MAC a synapse and token
    code_snr_db                how well the code holds what it stands for, see `marsnn.trial.code_snr_db`
    diverged                   training met NaN; the weights of the last finite loss were tested
    wall_s                     training and measuring, in seconds
    peak_memory_mb             how far the process's memory rose in this cell; empty where untold (not Linux)

An inference is one sample: all its tokens.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from marsnn.errors import FileError, InputError, MissingDependencyError
from marsnn.files import PathLike, write_bytes, write_text
from marsnn.intervals import Interval, interval, paired

Row = Mapping[str, Any]

IDENTITY = ("task", "neuron", "steps", "tau", "surrogate", "seed", "tuned")
MEASURED = (
    "validation_accuracy", "accuracy", "spikes_per_step", "accumulates", "graded_accumulates", "macs",
)  # fmt: skip
COSTS = ("code_snr_db", "diverged", "wall_s", "peak_memory_mb")
VARYING = ("wall_s", "peak_memory_mb")
"""Columns that differ from run to run; all others repeat by their seeds."""

ENERGY, DENSE = "energy_pj_", "dense_pj_"
_WORDS = {"task", "neuron", "surrogate", "tuned"}
_WHOLE = {"steps", "seed"}


# ---- writing and reading ----------------------------------------------------------------------------


def columns(rows: Sequence[Row]) -> list[str]:
    """Every column of the rows in the order of the table: identity, settings, measured, energies, costs."""
    found = list(dict.fromkeys(name for row in rows for name in row))
    energies = [name for name in found if name.startswith((ENERGY, DENSE))]
    fixed = {*IDENTITY, *MEASURED, *COSTS, *energies}
    order = [*IDENTITY, *sorted(set(found) - fixed), *MEASURED, *energies, *COSTS]
    return [name for name in order if name in found]


def check_table(path: PathLike) -> None:
    """Refuse a path whose ending is not known or not installed."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: a table ends in .csv or .parquet")
    if suffix == ".parquet" and find_spec("pyarrow") is None:
        raise MissingDependencyError("pyarrow", "parquet")


def write_table(rows: Sequence[Row], path: PathLike) -> Path:
    """Write the rows as CSV or Parquet, whole or not at all; the same rows give the same bytes of CSV."""
    check_table(path)
    names = columns(rows)
    if Path(path).suffix.lower() == ".parquet":
        import pyarrow
        import pyarrow.parquet

        sink = io.BytesIO()
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        pyarrow.parquet.write_table(table, sink)
        return write_bytes(path, sink.getvalue())
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def read_table(path: PathLike) -> list[dict[str, Any]]:
    """The rows of a table that `write_table` wrote, empty cells as None.

    Raises:
        FileError: it is missing, or no such table.
    """
    check_table(path)
    path = Path(path)
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(io.BytesIO(path.read_bytes())).to_pylist()
        else:
            with path.open(encoding="utf-8", newline="") as file:
                rows = [
                    {name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)
                ]
        check_rows(rows)
    except FileNotFoundError as error:
        raise FileError(f"{path}: no such file") from error
    except InputError as error:
        raise FileError(f"{path}: {error}") from error
    except Exception as error:  # pyarrow and csv: each has its own complaint about a bad file
        raise FileError(f"{path}: not a readable table ({str(error).splitlines()[0]})") from error
    return rows


def _value(name: str, text: str) -> Any:
    if text == "":
        return None
    if name in _WORDS:
        return text
    if text in ("True", "False"):
        return text == "True"
    return int(text) if name in _WHOLE else float(text)


def check_rows(rows: Sequence[Row]) -> None:
    """Refuse what is no table of an ablation."""
    needed = {"task", "neuron", "steps", "seed", "accuracy"}
    if not rows:
        raise InputError("the table holds no rows")
    for row in rows:
        missing = sorted(needed - set(row)) if isinstance(row, Mapping) else sorted(needed)
        if missing:
            raise InputError(f"not the rows of an ablation: no column {', '.join(missing)}")


# ---- over the seeds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """One neuron at one T (and tau, surrogate, where they are axes): its networks summed up over seeds."""

    task: str
    neuron: str
    steps: int
    tau: float | None  # of the axis; None where it was chosen, or the neuron has none
    surrogate: str | None
    reference: str  # the neuron that the others are compared with
    accuracy: Interval
    difference: Interval | None  # accuracy minus the reference's, seed by seed; None where there is none
    spikes_per_step: Interval | None
    energy_pj: dict[str, Interval]  # table -> per inference
    dense_pj: dict[str, float]  # table -> per inference
    code_snr_db: Interval | None

    def ratio(self, table: str) -> float | None:
        """Mean energy by the dense twin's at equal precision; above 1 the dense side is cheaper."""
        if table not in self.energy_pj or not self.dense_pj.get(table):
            return None
        return self.energy_pj[table].mean / self.dense_pj[table]


def summarize(rows: Sequence[Row], reference: str | None = None) -> list[Group]:
    """Means with confidence intervals over the seeds of each group, in the order of the rows.

    Args:
        rows: of one table.
        reference: the neuron that the others are compared with, seed by seed at the same task, T, tau and
            surrogate; the first one if None.
    """
    check_rows(rows)
    reference = reference or str(rows[0]["neuron"])
    if reference not in {row["neuron"] for row in rows}:
        known = ", ".join(dict.fromkeys(str(row["neuron"]) for row in rows))
        raise InputError(f"no rows of a neuron {reference!r}; the table has {known}")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_group_of(row), []).append(row)
    return [
        _summed(key, own, reference, groups.get((key[0], reference, *key[2:]))) for key, own in groups.items()
    ]


def _group_of(row: Row) -> tuple[Any, ...]:
    tau = None if "tau" in str(row.get("tuned") or "").split() else row.get("tau")
    return row["task"], row["neuron"], row["steps"], tau, row.get("surrogate")


def _summed(key: tuple[Any, ...], own: list[Row], name: str, reference: list[Row] | None) -> Group:
    def over(name: str) -> Interval | None:
        values = [row[name] for row in own if row.get(name) is not None]
        return interval(values) if values else None

    def by_table(prefix: str) -> dict[str, Interval]:
        names = [name for name in own[0] if name.startswith(prefix)]
        found = {name.removeprefix(prefix): over(name) for name in names}
        return {table: value for table, value in found.items() if value is not None}

    accuracy = over("accuracy")
    assert accuracy is not None
    difference = None
    if reference is not None and reference is not own:
        difference = paired(_by_seed(own), _by_seed(reference))
    task, neuron, steps, tau, surrogate = key
    return Group(
        task=task,
        neuron=neuron,
        steps=steps,
        tau=tau,
        surrogate=surrogate,
        reference=name,
        accuracy=accuracy,
        difference=difference,
        spikes_per_step=over("spikes_per_step"),
        energy_pj=by_table(ENERGY),
        dense_pj={table: value.mean for table, value in by_table(DENSE).items()},
        code_snr_db=over("code_snr_db"),
    )


def _by_seed(rows: Sequence[Row]) -> dict[int, float]:
    return {row["seed"]: row["accuracy"] for row in rows}


# ---- as text ----------------------------------------------------------------------------------------


def markdown(groups: Sequence[Group], tables: Sequence[str] = ("45nm-fp32", "45nm-int8")) -> str:
    """The groups as an aligned Markdown table; read on a terminal as it is."""
    if not groups:
        raise InputError("no groups to show; summarize() some rows first")
    extra = [name for name in ("task", "tau", "surrogate") if len({getattr(g, name) for g in groups}) > 1]
    head = [
        "neuron", "T", *extra, "accuracy %", f"minus {groups[0].reference}", "spikes / step", "code SNR dB",
        *(f"energy, {table}" for table in tables),
    ]  # fmt: skip
    lines = [head]
    for group in groups:
        snr, spikes = group.code_snr_db, group.spikes_per_step
        lines.append(
            [
                group.neuron,
                str(group.steps),
                *(_plain(getattr(group, name)) for name in extra),
                _percent(group.accuracy),
                "" if group.difference is None else _percent(group.difference, sign=True),
                "" if spikes is None else f"{spikes.mean:.3f}",
                "" if snr is None else f"{snr.mean:.1f}",
                *(_energy(group, table) for table in tables),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([rows[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rows[1:]])


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def _percent(value: Interval, sign: bool = False) -> str:
    """97.22 +- 0.35, in percent; a difference whose interval excludes zero carries a star."""
    number = f"{round(100 * value.mean, 2) + 0.0:{'+' if sign else ''}.2f}"  # no -0.00
    half = "" if value.half is None else f" +- {100 * value.half:.2f}"
    return number + half + (" *" if sign and value.excludes(0.0) else "")


def _energy(group: Group, table: str) -> str:
    """nJ per inference, and the ratio to the dense twin."""
    if table not in group.energy_pj:
        return "n/a"
    ratio = group.ratio(table)
    mean = group.energy_pj[table].mean / 1000
    digits = max(0, 2 - math.floor(math.log10(mean))) if mean > 0 else 2
    return f"{mean:.{min(digits, 3)}f} nJ" + ("" if ratio is None else f" ({ratio:.2f}x)")
