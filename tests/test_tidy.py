"""Golden and round trip: the table's columns, its sums over seeds worked out by hand, its files."""

import math

import pytest

from marsnn import tidy
from marsnn.errors import FileError, InputError, MissingDependencyError
from marsnn.tidy import columns, markdown, read_table, summarize, write_table


def row(neuron, steps, seed, accuracy, energy, **more):
    """As `ablate` writes them."""
    return {
        "task": "corners", "neuron": neuron, "steps": steps, "tau": 2.0, "surrogate": None, "seed": seed,
        "tuned": "learning_rate tau", "learning_rate": 0.01, "weight_decay": 0.01, "threshold": None,
        "validation_accuracy": 0.5, "accuracy": accuracy, "spikes_per_step": 0.25, "accumulates": 10.5,
        "graded_accumulates": 0.0, "macs": 4.0, "energy_pj_45nm-fp32": energy, "energy_pj_45nm-int8": 100.0,
        "energy_pj_loihi1": 9.0, "dense_pj_45nm-fp32": 2000.0, "dense_pj_45nm-int8": 50.0,
        "code_snr_db": 6.0, "diverged": False, "wall_s": 0.1, "peak_memory_mb": None, **more,
    }  # fmt: skip


ROWS = [
    row("ATMN", 1, 0, 0.10, 1000.0),
    row("ATMN", 1, 1, 0.20, 2000.0),
    row("ATMN", 1, 2, 0.30, 3000.0),
    row("ATMN", 4, 0, 0.90, 5000.0),
    row("LIF", 1, 2, 0.70, 1000.0),
    row("LIF", 1, 0, 0.30, 1000.0),
    row("LIF", 1, 1, 0.50, 1000.0),
]
HALF = 4.302653 / math.sqrt(3)  # of the interval of three values one apart: t of 2 degrees, deviation 1


def test_sums_over_seeds_by_hand():
    atmn, atmn4, lif = summarize(ROWS)
    assert (atmn.neuron, atmn.steps, atmn4.steps, lif.neuron) == ("ATMN", 1, 4, "LIF")
    assert atmn.accuracy.mean == pytest.approx(0.2)
    assert atmn.accuracy.half == pytest.approx(0.1 * HALF, abs=1e-7)
    assert atmn.energy_pj["45nm-fp32"].half == pytest.approx(1000 * HALF, abs=1e-2)
    assert atmn.difference is None
    # LIF - ATMN by seed: 0.20, 0.30, 0.40, although its rows come in another order
    assert lif.difference.mean == pytest.approx(0.3)
    assert lif.difference.half == pytest.approx(0.1 * HALF, abs=1e-7)
    assert atmn4.accuracy.half is None
    assert atmn.dense_pj == {"45nm-fp32": 2000.0, "45nm-int8": 50.0}
    assert (atmn.ratio("45nm-fp32"), atmn.ratio("45nm-int8"), atmn.ratio("loihi1")) == (1.0, 2.0, None)


def test_any_neuron_can_be_the_reference():
    atmn, atmn4, lif = summarize(ROWS, reference="LIF")
    assert atmn.difference.mean == pytest.approx(-0.3)
    assert atmn4.difference is None  # no LIF at T = 4
    assert lif.difference is None
    with pytest.raises(InputError, match="no rows of a neuron 'PLIF'; the table has ATMN, LIF"):
        summarize(ROWS, reference="PLIF")


def test_tau_is_an_axis_where_it_was_not_tuned():
    axis = [{**each, "tuned": "learning_rate", "tau": float(2 + i % 2)} for i, each in enumerate(ROWS)]
    assert [(group.neuron, group.steps, group.tau) for group in summarize(axis)] == [
        ("ATMN", 1, 2.0), ("ATMN", 1, 3.0), ("ATMN", 4, 3.0), ("LIF", 1, 2.0), ("LIF", 1, 3.0),
    ]  # fmt: skip
    # a tuned tau may differ between neurons: still one group each, still compared
    tuned = [{**each, "tau": 0.5 if each["neuron"] == "ATMN" else 4.0} for each in ROWS]
    assert [group.tau for group in summarize(tuned)] == [None, None, None]
    assert summarize(tuned)[2].difference.n == 3


def test_the_text_is_aligned_markdown():
    lines = markdown(summarize(ROWS)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == set("|-")
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])] == [
        ["neuron", "T", "accuracy %", "minus ATMN", "spikes / step", "code SNR dB", "energy, 45nm-fp32",
         "energy, 45nm-int8"],
        ["ATMN", "1", "20.00 +- 24.84", "", "0.250", "6.0", "2.00 nJ (1.00x)", "0.100 nJ (2.00x)"],
        ["ATMN", "4", "90.00", "", "0.250", "6.0", "5.00 nJ (2.50x)", "0.100 nJ (2.00x)"],
        ["LIF", "1", "50.00 +- 49.68", "+30.00 +- 24.84 *", "0.250", "6.0", "1.00 nJ (0.50x)",
         "0.100 nJ (2.00x)"],
    ]  # fmt: skip


def test_an_axis_of_several_values_is_a_column_of_the_text():
    axis = [{**each, "tuned": "learning_rate", "tau": 8.0 if each["seed"] else 2.0} for each in ROWS]
    head, _, *rows = markdown(summarize(axis)).splitlines()
    assert [cell.strip() for cell in head.split("|")][2:4] == ["T", "tau"]
    assert [row.split("|")[3].strip() for row in rows] == ["2", "8", "2", "8", "2"]


def test_a_difference_of_nothing_has_no_minus_sign():
    rows = [row("A", 1, 0, 0.5, 1.0), row("B", 1, 0, 0.5 - 1e-9, 1.0)]
    assert "+0.00" in markdown(summarize(rows))
    assert "-0.00" not in markdown(summarize(rows))


def test_columns_in_order_with_settings_of_any_name():
    rows = [row("A", 1, 0, 0.5, 1.0), row("B", 1, 0, 0.5, 1.0, fire_at=0.5)]
    assert columns(rows) == [
        "task", "neuron", "steps", "tau", "surrogate", "seed", "tuned", "fire_at", "learning_rate",
        "threshold", "weight_decay", "validation_accuracy", "accuracy", "spikes_per_step", "accumulates",
        "graded_accumulates", "macs", "energy_pj_45nm-fp32", "energy_pj_45nm-int8", "energy_pj_loihi1",
        "dense_pj_45nm-fp32", "dense_pj_45nm-int8", "code_snr_db", "diverged", "wall_s", "peak_memory_mb",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    rows = [*ROWS, row("LIF", 1, 3, 1 / 3, 0.1 + 0.2, fire_at=0.5, diverged=True, surrogate="erf")]
    path = write_table(rows, tmp_path / f"new/table{suffix}")
    back = read_table(path)
    assert back == [{"fire_at": None, **each} for each in rows]
    assert [type(back[0][name]) for name in ("steps", "accuracy", "diverged")] == [int, float, bool]
    assert markdown(summarize(back)) == markdown(summarize(rows))


def test_an_old_table_survives_a_failed_write(tmp_path):
    path = write_table(ROWS, tmp_path / "table.csv")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="unlucky"):
        write_table([{**ROWS[0], "accuracy": _Unlucky()}], path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


class _Unlucky:
    def __str__(self):
        raise RuntimeError("unlucky")


def test_bad_tables(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"table\.txt: a table ends in \.csv or \.parquet"):
        write_table(ROWS, tmp_path / "table.txt")
    with pytest.raises(FileError, match="no such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match=r"other\.csv: not the rows of an ablation: no column accuracy"):
        read_table(tmp_path / "other.csv")
    (tmp_path / "damaged.csv").write_text("task,neuron,steps,seed,accuracy\na,b,one,2,3\n")
    with pytest.raises(FileError, match="not a readable table"):
        read_table(tmp_path / "damaged.csv")
    (tmp_path / "damaged.parquet").write_text("PAR0")
    with pytest.raises(FileError, match="not a readable table"):
        read_table(tmp_path / "damaged.parquet")
    for rows in ([], [{"neuron": "LIF"}], ["LIF"]):
        with pytest.raises(InputError):
            summarize(rows)
    with pytest.raises(InputError, match="no groups"):
        markdown([])
    monkeypatch.setattr(tidy, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "marsnn\[parquet\]"'):
        tidy.check_table("table.parquet")
