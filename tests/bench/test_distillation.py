"""Unit: the paper's ablations in form; arms are tuned alike, shared cells run once, killed runs go on."""

import json

import pytest

from marsnn.bench import distillation, step
from marsnn.errors import InputError, MarsnnError
from tests.refine.folders import write_model, write_text

SMALL = {
    "seeds": 2, "updates": 3, "batch": 2, "length": 16, "align": 2, "tokens": 64, "places": 4, "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablations")
    text = str(write_text(folder))
    config = distillation.DistillationConfig(("features", "turns"), text=text, held_out=(text,), **SMALL)
    teacher = write_model(folder / "model")
    return folder, teacher, config, distillation.run(teacher, folder / "work", config)


def counted(monkeypatch):
    cells, real = [], distillation._cell
    monkeypatch.setattr(distillation, "_cell", lambda job: cells.append(job[2]) or real(job))
    return cells


def test_the_arms_are_those_of_the_paper():
    tables = distillation.TABLES
    assert list(tables) == ["ladder", "weights", "features", "code", "sites", "turns"]
    assert [tables["ladder"]["binary LIF"][name] for name in ("neuron", "alpha", "beta", "features")] == [
        "LIF", 1.0, 0.0, "none",
    ]  # fmt: skip
    assert tables["ladder"]["+ pre-norm features"] == distillation.MAR
    fewer = distillation.tables(2)
    assert fewer["code"] == tables["code"]
    assert {arm["steps"] for name, arms in fewer.items() if name != "code" for arm in arms.values()} == {2}
    pairs = {(arm["alpha"], arm["beta"]) for arm in tables["weights"].values()}
    assert pairs == {(1, 0), (0, 1), (0.7, 0.2), (0.2, 0.7)}
    code = {(arm["tau"], arm["steps"]) for arm in tables["code"].values()}
    assert code == {(0.5, 1)} | {(tau, T) for tau in (0.5, 1.0, 2.0) for T in (2, 4, 6)}
    assert [arm["sites"] for arm in list(tables["sites"].values())[1:]] == [
        ["mixer_in"], ["mixer_out"], ["ffn_in"], ["ffn_out"],
    ]  # fmt: skip


def test_cells_that_tables_share_run_once_and_every_arm_is_tuned_alike(ran):
    _, _, config, found = ran
    keys = [key for arms in found["tables"].values() for key in arms.values()]
    assert len(keys) == 3 + 2
    assert len(set(keys)) == len(found["cells"]) == 3 + 1
    for cell in found["cells"].values():
        assert list(cell["seeds"]) == ["0", "1"]
        assert cell["chosen"]["learning_rate"] in distillation.RATES
    offered = [distillation._offered(cell["arm"]) for cell in found["cells"].values()]
    assert {len(each) for each in offered} == {6}
    assert distillation.TUNING_SEED not in range(config.seeds)


def test_a_finished_run_runs_nothing_again_and_one_cell_less_only_that(ran, monkeypatch):
    folder, teacher, config, found = ran
    cells = counted(monkeypatch)
    again = distillation.run(teacher, folder / "work", config)
    assert cells == []
    assert again["cells"] == found["cells"]
    journal = folder / "work" / "cells.jsonl"
    lines = journal.read_text().splitlines()
    whole, last = lines[:-1], json.loads(lines[-1])
    journal.write_text("\n".join([*whole, lines[-1][:20]]))  # torn by a kill
    again = distillation.run(teacher, folder / "work", config)
    assert cells == [last["key"]]
    told = {**last["result"], "seconds": None}
    same = next(
        {**each, "seconds": None}
        for cell in again["cells"].values()
        if cell["arm"] == last["key"]["arm"]
        for seed, each in cell["seeds"].items()
        if int(seed) == last["key"]["seed"]
    )
    assert same == told  # to the bit


def test_another_configuration_is_refused_by_name(ran):
    folder, teacher, config, _ = ran
    from dataclasses import replace

    with pytest.raises(MarsnnError, match=r"another configuration: updates 3 \(now 4\)"):
        distillation.run(teacher, folder / "work", replace(config, updates=4))
    with pytest.raises(InputError, match="there is no ladders"):
        distillation.DistillationConfig(("ladders",))
    with pytest.raises(InputError, match="the next one is for tuning"):
        distillation.DistillationConfig(seeds=distillation.TUNING_SEED + 1)


def test_the_tables_say_means_intervals_and_differences(ran):
    *_, found = ran
    text = distillation.markdown(found)
    assert text.count("| teacher |") == 2
    for arms in found["tables"].values():
        for name in arms:
            assert f"| {name} |" in text
    first = found["settings"]["held_out"][0]
    cells = [found["cells"][key] for key in found["tables"]["features"].values()]
    a, b = (distillation.by_seed(cell, first, "bits_per_byte") for cell in cells[:2])
    mean = sum(b[seed] - a[seed] for seed in a) / len(a)
    line = next(line for line in text.splitlines() if line.startswith("| post |"))
    assert f"{mean:+.3f} +- " in line


def test_a_cell_that_fails_names_itself(ran, monkeypatch, tmp_path):
    folder, teacher, config, _ = ran
    monkeypatch.setattr(distillation, "add_spikes", lambda *_, **__: 1 / 0)
    (tmp_path / "start").symlink_to(folder / "work" / "start")
    with pytest.raises(MarsnnError, match=r"the cell .* failed: ZeroDivisionError"):
        distillation.run(teacher, tmp_path, config)


def test_seconds_of_an_update_stand_beside_a_plain_one(tmp_path):
    found = step.run(str(write_model(tmp_path / "model")), batch=2, length=16, rounds=2)
    assert list(found["seconds"]) == ["plain", "SBDS", "in turn"]
    assert found["ratio"]["plain"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    text = step.markdown(found)
    assert text.count("x (") == 3
    assert "| in turn |" in text
