"""Tables with sources, and reports whose numbers can be followed by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from marsnn import ATMN, Network
from marsnn.energy import EnergyReport, Hops, LayerCounts, OperationCounts, count, load_table, table_names
from marsnn.energy.tables import FOLDER as TABLES
from marsnn.errors import FileError, InputError


def spiking_counts() -> OperationCounts:
    """20 tokens; each 10 AC, 2 MAC, 1 graded, 3 mul, 4 add, 5 active and 6 idle updates, 7 spikes."""
    fc = LayerCounts(mac=40, ac=200, graded_ac=20, add=60, dense_ac=800, baseline_mac=400)
    neuron = LayerCounts(mul=60, add=20, spikes=140, neuron_updates_active=100, neuron_updates_idle=120)
    return OperationCounts({"fc": fc, "lif": neuron}, tokens=20, steps=4, unattributed={"exp": 12})


def test_the_tables_that_come_along():
    assert table_names() == ("45nm-fp32", "45nm-int8", "loihi1")
    for name in table_names():
        table = load_table(name)
        assert table.name == name
        assert table.notes
        assert all(price.source and price.unit and price.process for price in table.prices.values())


@pytest.mark.parametrize("name", [name for name in table_names() if load_table(name).kind == "arithmetic"])
def test_a_mac_is_a_multiply_and_an_add_of_the_same_precision(name):
    table = load_table(name)
    assert table["mac"] == pytest.approx(table["mul"] + table["add"])
    assert table["ac"] == table["add"]


def test_the_published_numbers():
    fp32, int8, loihi = (load_table(name) for name in table_names())
    assert (fp32["mac"], fp32["ac"], fp32["mul"], fp32["add"]) == (4.6, 0.9, 3.7, 0.9)
    assert (int8["mac"], int8["ac"], int8["mul"], int8["add"]) == (0.3, 0.1, 0.2, 0.1)
    assert (loihi["synop"], loihi["update_active"], loihi["update_idle"], loihi["spike"]) == (
        23.6,
        81,
        52,
        1.7,
    )


def test_totals_by_hand():
    report = EnergyReport(spiking_counts())
    # fp32: (2 + 1) * 4.6 + 10 * 0.9 + 3 * 3.7 + 4 * 0.9 = 13.8 + 9 + 11.1 + 3.6; dense 20 * 4.6
    fp32 = report.totals["45nm-fp32"]
    assert fp32.spiking_pj == pytest.approx(37.5)
    assert fp32.dense_pj == pytest.approx(92.0)
    assert fp32.ratio == pytest.approx(37.5 / 92)
    # int8: 3 * 0.3 + 10 * 0.1 + 3 * 0.2 + 4 * 0.1; dense 20 * 0.3
    int8 = report.totals["45nm-int8"]
    assert (int8.spiking_pj, int8.dense_pj) == (pytest.approx(2.9), pytest.approx(6.0))
    # Loihi: 13 synops * 23.6 + 5 * 81 + 6 * 52 + 7 * 1.7, no dense MAC; mul and add belong to the update
    loihi = report.totals["loihi1"]
    assert loihi.spiking_pj == pytest.approx(13 * 23.6 + 405 + 312 + 11.9)
    assert (loihi.dense_pj, loihi.ratio) == (None, None)


def placed(**hops):
    return SimpleNamespace(hops=hops, summary="a chip, 3 cores")


def test_hops_of_a_placement_by_hand():
    # 20 messages a token within tiles instead of 7 spikes, 5 hops east or west, 2 north or south.
    report = EnergyReport(spiking_counts(), placement=placed(lif=Hops(20, 5, 2)))
    loihi = report.totals["loihi1"]
    assert loihi.spiking_pj == pytest.approx(13 * 23.6 + 405 + 312 + 20 * 1.7 + 5 * 3.0 + 2 * 4.0)
    assert report.rows[0].energy["loihi1"].spiking_pj == pytest.approx(13 * 23.6)
    operations = report.rows[1].operations
    assert [operations[key] for key in ("messages", "hops_east_west", "hops_north_south")] == [20, 5, 2]
    without = EnergyReport(spiking_counts())
    for name in ("45nm-fp32", "45nm-int8"):  # arithmetic has no mesh
        assert report.totals[name] == without.totals[name]
    assert any(note.startswith("loihi1: hops by a placement on a chip, 3 cores;") for note in report.notes)
    assert "hops between tiles are left out of loihi1: no placement was given" in without.notes
    unfit = EnergyReport(
        spiking_counts(), placement=SimpleNamespace(hops=None, summary="a chip: it doesn't fit")
    )
    assert unfit.totals == without.totals
    assert any(
        "left out of loihi1: there is no placement on a chip: it doesn't fit" in n for n in unfit.notes
    )
    assert "messages" not in without.rows[1].operations
    assert "on the mesh" not in without.text()
    block = report.text().split("on the mesh, per token\n")[1].splitlines()
    assert [line.split() for line in block[:3]] == [
        ["layer", "messages", "hops", "E-W", "hops", "N-S"],
        ["lif", "20.00", "5.00", "2.00"],
        ["total", "20.00", "5.00", "2.00"],
    ]
    assert max(map(len, report.text().splitlines())) <= 100
    assert json.loads(report.to_json()) == report.to_dict()
    assert report.to_dict()["total"]["hops_north_south"] == 2


def test_hops_of_a_layer_without_counts_are_a_row_of_their_own():
    report = EnergyReport(spiking_counts(), placement=placed(lif=Hops(1, 0, 0), relay=Hops(10, 3, 1)))
    assert [row.name for row in report.rows] == ["fc", "lif", "relay"]
    assert report.rows[2].energy["loihi1"].spiking_pj == pytest.approx(10 * 1.7 + 3 * 3.0 + 4.0)
    for name in report.tables:
        assert sum(row.energy[name].spiking_pj for row in report.rows) == pytest.approx(
            report.totals[name].spiking_pj
        )


def test_a_table_of_events_prices_both_hops_or_neither(tmp_path):
    text = (TABLES / "loihi1.toml").read_text().replace('name = "loihi1"', 'name = "own"')
    (tmp_path / "own.toml").write_text(text.replace("[energy.hop_north_south]", "[energy.other]"))
    with pytest.raises(InputError, match="prices hop_east_west alone"):
        load_table(tmp_path / "own.toml")
    head, _, tail = text.partition("[energy.hop_east_west]")
    (tmp_path / "own.toml").write_text(head + tail[tail.index("[energy.static_power]") :])
    report = EnergyReport(
        spiking_counts(), tables=("45nm-fp32", tmp_path / "own.toml"), placement=placed(lif=Hops(20, 5, 2))
    )
    assert report.totals["own"].spiking_pj == pytest.approx(13 * 23.6 + 405 + 312 + 20 * 1.7)
    assert not any("hops by a placement" in note for note in report.notes)
    north = '[energy.hop_north_south]\nvalue = 4.0\nunit = "pJ"'
    assert north in text
    (tmp_path / "own.toml").write_text(text.replace(north, north.replace("pJ", "nJ")))
    with pytest.raises(InputError, match='hop_north_south must be in unit = "pJ"'):
        load_table(tmp_path / "own.toml")


def test_rows_add_up_to_the_total():
    report = EnergyReport(spiking_counts())
    for name in report.tables:
        assert sum(row.energy[name].spiking_pj for row in report.rows) == pytest.approx(
            report.totals[name].spiking_pj
        )
    fc = report.rows[0]
    assert (fc.name, fc.operations["ac"]) == ("fc", 10)
    assert fc.energy["45nm-fp32"].spiking_pj == pytest.approx(3 * 4.6 + 10 * 0.9 + 3 * 0.9)


def test_the_dense_side_can_win_and_is_shown_so():
    # 4 AC against 1 MAC: fp32 3.6 / 4.6 spiking wins, int8 0.4 / 0.3 dense wins.
    counts = OperationCounts({"fc": LayerCounts(ac=4, dense_ac=8, baseline_mac=1)})
    report = EnergyReport(counts)
    assert report.totals["45nm-fp32"].ratio == pytest.approx(3.6 / 4.6)
    assert report.totals["45nm-int8"].ratio == pytest.approx(4 / 3)
    assert "1.333" in report.text()


def test_a_dense_module_of_your_own():
    # A ReLU net 3 -> 2 -> 1 on (1, 2, 3): 6 + 2 MAC and 3 bias additions, zeros not skipped.
    dense = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        dense[0].weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]))
        dense[0].bias.zero_()
    measured = count(dense, torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))
    own = EnergyReport(measured).totals["45nm-fp32"]
    # its own zeros are skipped on the left: relu leaves (6, 0), so 6 + 1 MAC and 3 additions
    assert own.spiking_pj == pytest.approx(7 * 4.6 + 3 * 0.9)
    assert own.dense_pj == pytest.approx(8 * 4.6)
    against = EnergyReport(spiking_counts(), dense=measured)
    assert against.totals["45nm-fp32"].dense_pj == pytest.approx(8 * 4.6 + 3 * 0.9)
    assert against.totals["45nm-fp32"].ratio == pytest.approx(37.5 / (8 * 4.6 + 3 * 0.9))
    assert against.rows[0].energy["45nm-fp32"].dense_pj is None  # no layer of that name there


def test_the_text():
    network = Network({"fc1": nn.Linear(4, 6), "atmn": ATMN(6), "fc2": nn.Linear(6, 2)})
    report = EnergyReport(count(network, torch.randn(3, 2, 4)), name="tiny")
    lines = report.text().splitlines()
    assert lines[0] == "tiny: energy per token, ESTIMATED from counted operations, never measured"
    assert lines[1] == "T = 4 micro-steps a token; means over 6 tokens"
    assert max(map(len, lines)) <= 100
    for name in ("fc1", "atmn", "fc2", "total"):
        assert sum(line.startswith(name + " ") for line in lines) == 2  # operations, energies
    assert all(table in report.text() for table in table_names())
    assert "memory traffic is not charged" in report.text()
    assert "two rails" in report.text()
    assert "n/a" in report.text()
    assert str(report) == report.text()


def test_the_text_holds_the_numbers():
    text = EnergyReport(spiking_counts()).text()
    operations = next(line for line in text.splitlines() if line.startswith("total"))
    assert operations.split() == ["total", "2.00", "10.00", "1.00", "3.00", "4.00", "7.00", "11.00", "20.00"]
    energies = [line for line in text.splitlines() if line.startswith("total")][1]
    assert energies.split() == [
        *("total", "37.50", "92.00", "0.408"),
        *("2.90", "6.00", "0.483"),
        *("1,035.70", "n/a", "n/a"),
    ]
    assert "not charged, in elements of the whole run: exp 12" in text


def test_long_names_and_many_tables_stay_within_the_width(tmp_path):
    paths = []
    for i in range(3):
        path = tmp_path / f"own{i}.toml"
        path.write_text(OWN.replace('name = "own"', f'name = "own-{i}"'))
        paths.append(path)
    counts = OperationCounts(
        {"model.layers.0.mlp.down_projection": LayerCounts(mac=10**12, baseline_mac=10**13)}
    )
    report = EnergyReport(counts, tables=("loihi1", *paths))
    assert max(map(len, report.text().splitlines())) <= 100
    assert "own-2" in report.text()
    assert "down_projection" in report.text()


def test_to_dict_json_and_save(tmp_path):
    report = EnergyReport(spiking_counts(), name="net")
    told = json.loads(report.to_json())
    assert told == report.to_dict()
    assert (told["estimated"], told["measured"], told["per"]) == (True, False, "token")
    assert told["total"]["energy"]["45nm-fp32"]["spiking_pj"] == pytest.approx(37.5)
    assert told["layers"][0]["name"] == "fc"
    assert json.loads(report.save(tmp_path / "energy.json").read_text()) == told
    assert report.save(tmp_path / "energy.txt").read_text() == report.text()


def test_two_tables_at_least_and_always_both_precisions():
    for tables in ((), ("loihi1",), "loihi1", ("loihi1", "loihi1")):
        with pytest.raises(InputError, match="at least two"):
            EnergyReport(spiking_counts(), tables=tables)
    report = EnergyReport(spiking_counts(), tables=("loihi1", "45nm-fp32"))
    assert set(report.totals) == {"loihi1", "45nm-fp32", "45nm-int8"}


def test_what_is_not_counts_is_refused():
    with pytest.raises(InputError, match="count"):
        EnergyReport(LayerCounts())
    with pytest.raises(InputError, match="dense must be"):
        EnergyReport(spiking_counts(), dense=nn.Linear(1, 1))


OWN = """
name = "own"
title = "a chip of ours"
kind = "arithmetic"
precision = "fp16"
notes = ["arithmetic alone"]
[energy]
mac = {value = 1.5, unit = "pJ", process = "45 nm", source = "us"}
ac = {value = 0.4, unit = "pJ", process = "45 nm", source = "us"}
mul = {value = 1.1, unit = "pJ", process = "45 nm", source = "us"}
add = {value = 0.4, unit = "pJ", process = "45 nm", source = "us"}
"""


def test_a_table_of_your_own(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    report = EnergyReport(spiking_counts(), tables=("loihi1", path))
    assert report.totals["own"].spiking_pj == pytest.approx(3 * 1.5 + 10 * 0.4 + 3 * 1.1 + 4 * 0.4)
    assert EnergyReport(spiking_counts(), tables=(load_table(path), "loihi1")).totals == report.totals


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("ac = ", "nothing = ", "lacks ac"),  # a MAC without an AC
        ('kind = "arithmetic"', 'kind = "magic"', "kind must be"),
        ('kind = "arithmetic"', 'kind = "events"', "lacks synop"),
        ("value = 0.4", 'value = "0.4"', "value must be a finite number"),
        ("value = 0.4", "value = -0.4", "value must be a finite number"),
        ("value = 0.4", "value = nan", "value must be a finite number"),
        ('unit = "pJ"', 'unit = "nJ"', 'must be in unit = "pJ"'),
        ('source = "us"', 'source = ""', "source must be a text"),
        ('precision = "fp16"', "", "precision must be a text"),
        ('notes = ["arithmetic alone"]', "", "notes must be"),
    ],
)
def test_an_incomplete_table_is_refused_by_name(tmp_path, old, new, told):
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace("\n" + old, "\n" + new) if "\n" + old in OWN else OWN.replace(old, new))
    with pytest.raises(InputError, match=told) as caught:
        load_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        load_table(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("mac = = 3")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.toml", "binary.toml"):
        with pytest.raises(FileError, match="not valid TOML"):
            load_table(tmp_path / name)
    with pytest.raises(FileError, match="can't read"):
        load_table(f"{tmp_path}/")
    with pytest.raises(InputError, match="use one of 45nm-fp32"):
        load_table("loihi2")


def test_a_taken_name_is_refused(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace('name = "own"', 'name = "45nm-fp32"'))
    with pytest.raises(InputError, match="rename"):
        EnergyReport(spiking_counts(), tables=("loihi1", path))
