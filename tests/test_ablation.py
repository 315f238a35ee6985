"""Contract: an ablation is fair, paired, repeatable, and goes on where it was interrupted."""

import csv
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import marsnn
from marsnn import ablation, neurons, trial
from marsnn.ablation import TUNING_SEEDS, AblationConfig, ablate, candidates_of, grid, tune
from marsnn.data import Split
from marsnn.energy import EnergyReport, count
from marsnn.errors import FileError, InputError, MarsnnError
from marsnn.neurons import ATMN, LIF
from marsnn.tasks import Task
from marsnn.tidy import VARYING, read_table
from marsnn.trial import Cell, Setup, build, code_snr_db, network_snr_db, run_cell
from tests import small_task
from tests.helpers import same
from tests.small_task import corners

ROOT = Path(__file__).parent.parent
TASK = f"{ROOT}/tests/small_task.py:corners"
SMALL = {"steps": [2], "seeds": 2, "epochs": 8, "batch_size": 8, "hidden": 6, "workers": 1}
SHORT = {**SMALL, "epochs": 2}
"""Where nothing depends on what is learned."""


def lasting(rows):
    """The rows without the columns that differ from run to run."""
    return [{name: value for name, value in row.items() if name not in VARYING} for row in rows]


@pytest.fixture(scope="module")
def small():
    return ablate(corners, ["ATMN", "LIF"], **SMALL)


@pytest.fixture(scope="module")
def short():
    return ablate(corners, ["ATMN", "LIF"], **SHORT)


# ---- what each neuron chooses among -----------------------------------------------------------------


def test_every_registered_neuron_chooses_among_as_many_settings_that_it_takes():
    assert {"ATMN", "LIF", "LeakyIntegrator"} <= set(neurons.names())
    for name in neurons.names():
        factory = neurons.get(name)
        for tau in (None, 2.0):
            offered = candidates_of(factory, tau)
            assert len({tuple(sorted(settings.items())) for settings in offered}) == 6
            assert {settings["learning_rate"] for settings in offered} == {3e-3, 1e-2}
            for settings in offered:
                own = {key: value for key, value in settings.items() if key not in trial.TRAINING}
                assert "tau" not in own or tau in (None, own["tau"])
                if tau is None or "tau" in trial.arguments(factory):
                    factory(4, steps=2, **own)


def test_the_settings_follow_from_the_constructor():
    def threshold_only(features, steps, threshold): ...
    def tau_only(features, steps, tau=2.0): ...
    def neither(features, steps): ...
    def anything(features, steps, **settings): ...

    def names(factory, tau=None):
        return {
            name: len({s[name] for s in candidates_of(factory, tau)})
            for name in candidates_of(factory, tau)[0]
        }

    assert names(LIF) == {"learning_rate": 2, "tau": 2, "threshold": 2}
    assert names(LIF, 3.0) == {"learning_rate": 2, "threshold": 3, "tau": 1}
    assert {settings["tau"] for settings in candidates_of(ATMN)} == {0.5, 1.0}
    assert {settings["tau"] for settings in candidates_of(LIF)} == {2.0, 4.0}
    assert names(threshold_only) == {"learning_rate": 2, "threshold": 3}
    assert names(tau_only) == {"learning_rate": 2, "tau": 3}
    assert names(tau_only, 3.0) == {"learning_rate": 2, "weight_decay": 3, "tau": 1}
    assert names(neither) == {"learning_rate": 2, "weight_decay": 3}
    assert names(anything) == {"learning_rate": 2, "tau": 2, "threshold": 2}


def test_tune_takes_the_best_mean_and_of_equals_the_first():
    scores = {
        ("A", 1, 100): 0.9, ("A", 1, 101): 0.1, ("A", 2, 100): 0.6, ("A", 2, 101): 0.6,  # means 0.5, 0.6
        ("B", 1, 100): 0.2, ("B", 1, 101): 0.4, ("B", 2, 100): 0.4, ("B", 2, 101): 0.2,  # means 0.3, 0.3
        ("C", 1, 100): None, ("C", 1, 101): 1.0, ("C", 2, 100): 1.0, ("C", 2, 101): 1.0,  # a trial failed
    }  # fmt: skip
    asked = []

    def score(trials):
        asked.extend(trials)
        return [scores[arm, settings["x"], seed] for arm, settings, seed in trials]

    chosen = tune({arm: grid(x=(1, 2)) for arm in "ABC"}, score)
    assert chosen == {"A": ({"x": 2}, 0.6), "B": ({"x": 1}, pytest.approx(0.3))}
    assert {trial.seed for trial in asked} == set(TUNING_SEEDS)
    assert len(asked) == 12


def test_unequal_chances_are_refused():
    with pytest.raises(InputError, match="as many settings, at least one; got A: 2, B: 1"):
        tune({"A": grid(x=(1, 2)), "B": grid(x=(1,))}, lambda trials: [0.0] * len(trials))
    with pytest.raises(InputError, match="at least one"):
        tune({"A": ()}, lambda trials: [])
    with pytest.raises(InputError, match="as many settings"):
        ablate(corners, ["ATMN", "LIF"], grids={"LIF": grid(learning_rate=(1e-2,))}, **SMALL)


def test_reported_seeds_are_no_tuning_seeds():
    with pytest.raises(InputError, match="seed 101 chooses the settings"):
        AblationConfig(seeds=[0, 101])
    from marsnn.bench import digits

    with pytest.raises(InputError, match="seed 100 chooses the settings"):
        digits.run(seeds=(100,))


# ---- fairness ---------------------------------------------------------------------------------------


def relabelled(part):
    """The small task with wrong labels in one part."""
    task = corners()
    split = getattr(task, part)
    return replace(task, **{part: Split(split.x, (split.y + 1) % 3)})


def wrong_test():
    return relabelled("test")


def wrong_validation():
    return relabelled("validation")


def test_tuning_cant_see_the_test_part(small):
    """Other test labels change what is reported and nothing of what is chosen; validation labels do."""
    other = ablate(wrong_test, ["ATMN", "LIF"], **SMALL)
    assert other.tuning == small.tuning
    assert statistics.mean(row["accuracy"] for row in small.rows) > 0.6
    assert statistics.mean(row["accuracy"] for row in other.rows) < 0.4
    assert ablate(wrong_validation, ["ATMN", "LIF"], **SMALL).tuning != small.tuning


def test_neither_validation_nor_test_are_fitted(monkeypatch):
    fitted = []

    def watched(network, x, y, config):
        fitted.append(x)
        return train(network, x, y, config)

    train = trial.train
    monkeypatch.setattr(trial, "train", watched)
    ablate(corners, ["LIF"], **{**SMALL, "seeds": 1, "epochs": 1})
    assert len(fitted) == 6 * 2 + 1
    assert all(same(x, corners().train.x) for x in fitted)


def cell(name="LIF", seed=0, steps=2, part="test", **settings):
    settings = {"learning_rate": 1e-2, **settings}
    return Cell(part, name, steps, None, tuple(sorted(settings.items())), seed)


def setup(factory):
    """As `SMALL` has it."""
    return Setup(corners, corners().fingerprint, {"LIF": factory}, epochs=8, batch_size=8, hidden=6)


def test_equal_seeds_start_from_equal_weights_whatever_the_neuron():
    def weights(factory, seed):
        network = build(corners(), factory, cell(seed=seed), 6)
        return [layer.weight.detach() for layer in network.layers.values() if isinstance(layer, nn.Linear)]

    factories = [*map(neurons.get, neurons.names()), small_task.greedy]
    first = weights(LIF, 3)
    assert len(first) == 3
    assert all(same(weights(factory, 3), first) for factory in factories)
    assert not same(weights(LIF, 4), first)


def test_equal_neurons_give_equal_rows_however_they_draw_random_numbers():
    """Weights, shuffling and scores: LIF and a LIF that draws when it is made can't be told apart."""
    results = [
        run_cell((setup(factory), cell(tau=2.0, threshold=0.5))) for factory in (LIF, small_task.greedy)
    ]
    one, other = ({k: v for k, v in result.items() if k not in VARYING} for result in results)
    assert one == other
    assert one != {
        k: v
        for k, v in run_cell((setup(LIF), cell(seed=1, tau=2.0, threshold=0.5))).items()
        if k not in VARYING
    }


# ---- what is measured -------------------------------------------------------------------------------


def test_a_row_is_what_measuring_the_network_by_hand_gives(small):
    row = small.rows[-1]
    assert (row["task"], row["neuron"], row["steps"], row["seed"]) == ("corners", "LIF", 2, 1)
    task = corners()
    settings = {name: row[name] for name in row["tuned"].split()}
    assert set(settings) == {"learning_rate", "tau", "threshold"}
    own = cell(seed=1, **settings)
    network = build(task, LIF, own, 6)
    trial.fit(network, task.train, own, setup(LIF))
    x, y = task.test.x, task.test.y
    assert row["accuracy"] == pytest.approx((network(x).mean(0).argmax(-1) == y).double().mean().item())
    counts = count(network, x)  # per token; a sample has two
    report = EnergyReport(counts)
    for table in ("45nm-fp32", "45nm-int8", "loihi1"):
        assert row[f"energy_pj_{table}"] == pytest.approx(2 * report.totals[table].spiking_pj)
    for table in ("45nm-fp32", "45nm-int8"):
        assert row[f"dense_pj_{table}"] == pytest.approx(2 * report.totals[table].dense_pj)
    assert "dense_pj_loihi1" not in row
    assert row["accumulates"] == pytest.approx(counts.total.ac / 60)
    assert row["macs"] == pytest.approx(counts.total.mac / 60)
    assert row["macs"] > 0
    assert row["spikes_per_step"] == pytest.approx(counts.total.spikes / (2 * 60 * 2 * 12))  # L B T N
    assert row["code_snr_db"] == pytest.approx(network_snr_db(network, x))
    assert row["wall_s"] > 0
    assert row["peak_memory_mb"] is None or 0 <= row["peak_memory_mb"] < 500
    assert row["diverged"] is False


def test_the_choices_are_kept(small):
    assert len(small.tuning) == 2 * 6
    for name in ("ATMN", "LIF"):
        own = [row for row in small.tuning if row["neuron"] == name]
        best = max(row["validation_accuracy"] for row in own)
        reported = [row for row in small.rows if row["neuron"] == name]
        assert {row["validation_accuracy"] for row in reported} == {best}
        chosen = next(row for row in own if row["validation_accuracy"] == best)
        assert all(
            row[key] == chosen[key] for row in reported for key in ("learning_rate", "tau", "threshold")
        )
    assert json.loads(json.dumps(small.to_dict(), allow_nan=False))["groups"][1]["ratio"]["45nm-fp32"] > 0
    assert "minus ATMN" in small.text()


def test_signal_to_noise_by_hand():
    # x = -3, -1, 1, 3: variance 5. Decoded 0, 0, 1, 1: the best line is 4 d - 2, what is left is 1 each.
    x = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]])
    decoded = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert code_snr_db(x, decoded) == pytest.approx(6.9897, abs=1e-4)  # 10 log10 5
    assert code_snr_db(x, -7 * decoded + 3) == pytest.approx(6.9897, abs=1e-4)  # gain and offset are free
    assert code_snr_db(x, torch.zeros(4, 1)) == 0  # a code that says nothing
    assert code_snr_db(x, x) == pytest.approx(150)
    assert code_snr_db(torch.ones(4, 1), decoded) is None
    # a second neuron of variance 5 that says nothing: 10 over 1 + 5
    two = torch.cat([x, x], 1), torch.cat([decoded, torch.zeros(4, 1)], 1)
    assert code_snr_db(*two) == pytest.approx(2.2185, abs=1e-4)


def test_signal_to_noise_of_known_codes():
    x = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    assert code_snr_db(x, x.clamp(min=0)) == pytest.approx(5.74, abs=0.05)  # ReLU of a Gaussian
    gain = [code_snr_db(x, ATMN(1, steps=T).decode(ATMN(1, steps=T).encode(x))) for T in (2, 4)]
    assert gain[1] > gain[0] + 6  # binary digits: more of them, less noise
    lif = LIF(1, steps=128, tau=1e6, threshold=4.0)  # hardly leaks: a fine rate, of the positive half
    assert code_snr_db(x, lif.decode(lif.encode(x))) == pytest.approx(5.7, abs=0.3)


def test_the_networks_signal_to_noise_is_the_mean_over_what_its_neurons_receive():
    task = corners()
    for name, factory in (("ATMN", ATMN), ("LIF", LIF)):
        network = build(task, factory, cell(name), 6)
        x = task.test.x
        first = network["linear1"](x)
        neuron = network[network.names[1]]
        second = network["linear2"](neuron.decode(neuron(neuron.present(first))[0]))
        if name == "LIF":  # it runs on over the tokens, so the second layer receives another train
            signal = neuron(first.repeat_interleave(2, 0))[0].unflatten(0, (2, 2))
            second = network["linear2"](neuron.decode(signal.transpose(0, 1)))
        expected = [
            code_snr_db(a, layer.decode(layer.encode(a)))
            for a, layer in ((first, neuron), (second, network[network.names[3]]))
        ]
        assert network_snr_db(network, x) == pytest.approx(statistics.mean(expected), abs=1e-4)
        assert "forward" not in vars(neuron)


def test_a_divergence_is_a_result():
    wild = grid(learning_rate=(1e30, 1e31))
    found = ablate(corners, ["LIF"], grids={"LIF": wild}, **SMALL)
    assert [row["diverged"] for row in found.rows] == [True, True]
    assert all(0 <= row["accuracy"] <= 1 for row in found.rows)


# ---- axes and neurons -------------------------------------------------------------------------------


def test_axes_apply_to_those_that_have_them():
    without = [name for name in neurons.names() if "tau" not in trial.arguments(neurons.get(name))]
    factories = {"LIF": LIF, "bare": bare, **{name: neurons.get(name) for name in without}}
    config = {**SMALL, "seeds": 1, "epochs": 1, "steps": [3], "tau": [2, 3.0], "surrogates": ["atan", "erf"]}
    found = ablate(corners, factories, **config)
    points = [(row["neuron"], row["tau"], row["surrogate"]) for row in found.rows]
    assert points[:4] == [("LIF", tau, name) for tau in (2.0, 3.0) for name in ("atan", "erf")]
    assert points[4] == ("bare", None, None)
    assert {(tau, name) for neuron, tau, name in points[5:]} <= {(None, "atan"), (None, "erf")}
    assert {row["tuned"] for row in found.rows[:4]} == {"learning_rate threshold"}
    assert [group.tau for group in found.groups][:4] == [2.0, 2.0, 3.0, 3.0]
    assert len({row["code_snr_db"] for row in found.rows[:4]}) == 4  # every axis makes a difference


def bare(features, steps):
    """A neuron without any setting."""
    return LIF(features, steps=steps)


def test_the_surrogate_reaches_the_neuron():
    own = replace(cell(), surrogate="triangular")
    network = build(corners(), LIF, own, 6)
    assert {neuron.surrogate.name for neuron in network.neurons.values()} == {"triangular"}
    assert {neuron.carry for neuron in network.neurons.values()} == {"sequence"}


def test_a_neuron_of_another_library():
    snntorch = pytest.importorskip("snntorch")
    interop = pytest.importorskip("marsnn.neurons.interop")

    def leaky(features, steps, tau, threshold):
        theirs = snntorch.Leaky(beta=1 - 1 / tau, threshold=threshold)
        return interop.adopt(theirs, steps, features, carry="sequence")

    found = ablate(corners, {"LIF": LIF, "snntorch": leaky}, **SHORT)
    assert [row["neuron"] for row in found.rows] == ["LIF", "LIF", "snntorch", "snntorch"]
    assert all(row["spikes_per_step"] > 0 and row["accumulates"] > 0 for row in found.rows)
    with pytest.raises(InputError, match=r"can't be sent to another process .* or workers=1"):
        ablate(corners, {"snntorch": leaky}, **{**SMALL, "workers": 2})


def test_factories_are_told_apart():
    assert trial.identity(LIF) == "marsnn.neurons.lif:LIF"
    assert trial.identity(small_task.greedy) == "tests.small_task:greedy"
    short, long = partial(small_task.greedy, tau=2.0), partial(small_task.greedy, tau=3.0)
    assert trial.identity(short) != trial.identity(long)
    assert trial.identity(short) == trial.identity(partial(small_task.greedy, tau=2.0))
    assert trial.arguments(short)["tau"] == 2.0


BAD = {
    "unknown neuron": ({"neurons": ["ATNM"]}, r"ATNM.*ATMN, .*LIF"),
    "no neuron": ({"neurons": []}, "at least one neuron; known: "),
    "twice": ({"neurons": ["LIF", "LIF"]}, "neurons must be different, got LIF, LIF"),
    "not a factory": ({"neurons": {"LIF": 3}}, "maps names to factories"),
    "not a neuron": ({"neurons": {"mine": lambda features, steps: nn.ReLU()}}, "mine at T = 2: .* not a"),
    "factory fails": ({"neurons": {"mine": lambda features: LIF(4)}}, "mine at T = 2: TypeError: .*steps"),
    "tau refused": ({"tau": [0.5]}, r"LIF at T = 2, tau = 0\.5: "),
    "no such setting": ({"step": [1]}, "no setting 'step'; known: steps, tau"),
    "steps": ({"steps": [0]}, "steps must be a whole number >= 1"),
    "no steps": ({"steps": []}, "steps must be one or more"),
    "same steps": ({"steps": [2, 2]}, "one or more different values"),
    "no seeds": ({"seeds": 0}, "seeds must be one or more"),
    "negative": ({"seeds": [-1]}, "seeds must be whole numbers >= 0"),
    "epochs": ({"epochs": 0}, "epochs must be"),
    "surrogate": ({"surrogates": ["tan"]}, "no surrogate named 'tan'; known: atan, "),
    "table": ({"tables": ["3nm"]}, "3nm"),
    "engine": ({"engine": "dask"}, "no engine named 'dask'; known: local, ray"),
    "address": ({"address": "auto"}, 'add engine="ray"'),
    "extension": ({"out": "table.txt"}, r"a table ends in \.csv or \.parquet"),
    "grid of a stranger": ({"grids": {"PLIF": []}}, "grids has settings of 'PLIF'"),
    "grid of tensors": ({"grids": {"LIF": [{"tau": torch.ones(2)}]}}, "the setting tau must be a number"),
    "learning rate": ({"grids": {"LIF": [{"learning_rate": -1.0}]}}, "learning_rate must be finite and > 0"),
    "grid against axis": ({"grids": {"LIF": [{"tau": 2.0}]}, "tau": [2.0]}, "tau is an axis here"),
    "task": ({"task": "digit"}, "no task named 'digit'"),
    "changing task": ({"task": small_task.changing, "seeds": 1, "epochs": 1}, "make it deterministic"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_before_anything_is_trained(name, tmp_path, monkeypatch):
    change, match = BAD[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "train", lambda *args: pytest.fail("trained"))
    with pytest.raises(MarsnnError, match=match) as caught:
        ablate(**{"task": corners, "neurons": ["LIF"], **SMALL, **change})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_too_few_outputs_are_told():
    task = corners()

    def narrow():
        return Task(
            "narrow",
            task.train,
            task.validation,
            task.test,
            build=lambda neuron: marsnn.Network([nn.Linear(4, 2)]),
        )

    with pytest.raises(InputError, match="narrow: its network tells 2 classes apart, y has 3"):
        ablate(narrow, ["LIF"], **SMALL)


# ---- going on ---------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch):
    """The cells that are really run, in order."""
    cells = []

    def watched(job):
        cells.append(job[1])
        return run_cell(job)

    monkeypatch.setattr(ablation, "run_cell", watched)
    return cells


def test_what_is_finished_is_never_run_again(short, trained, tmp_path):
    out = tmp_path / "a.csv"
    journal = tmp_path / "a.csv.journal.jsonl"
    ablate(corners, ["ATMN"], **{**SHORT, "seeds": 1}, out=out)
    assert len(trained) == 6 * 2 + 1
    before, table = journal.read_bytes(), out.read_bytes()
    ablate(corners, ["ATMN"], **{**SHORT, "seeds": 1}, out=out)
    assert len(trained) == 13
    assert (journal.read_bytes(), out.read_bytes()) == (before, table)
    found = ablate(corners, ["ATMN", "LIF"], **SHORT, out=out)  # a neuron more, a seed more
    assert [cell.neuron for cell in trained[13:]] == ["LIF"] * 12 + ["ATMN", "LIF", "LIF"]
    assert journal.read_bytes().startswith(before)
    assert lasting(found.rows) == lasting(short.rows)
    assert found.tuning == short.tuning
    assert read_table(out) == found.rows
    fewer = ablate(corners, ["LIF"], **SHORT, out=out)
    assert len(trained) == 13 + 15
    assert lasting(fewer.rows) == lasting(short.rows[2:])


def test_a_journal_of_another_configuration_is_refused(tmp_path, trained):
    out = tmp_path / "a.csv"
    ablate(corners, ["LIF"], **{**SMALL, "epochs": 3}, out=out)
    done = len(trained)
    with pytest.raises(FileError, match=r"a\.csv\.journal\.jsonl: .*epochs 3 \(now 8\)"):
        ablate(corners, ["LIF"], **SMALL, out=out)
    with pytest.raises(FileError, match=r"data '\w+' \(now '\w+'\)"):
        ablate(wrong_test, ["LIF"], **{**SMALL, "epochs": 3}, out=out)
    assert len(trained) == done


def test_a_failing_cell_loses_no_other(tmp_path, trained):
    out = tmp_path / "a.csv"
    config = {**SHORT, "seeds": 3}
    with pytest.raises(
        MarsnnError, match=r"1 cells failed.*mine, T = 2, .*seed 1 \(test\): RuntimeError: seed 1 is"
    ) as caught:
        ablate(corners, {"mine": small_task.fragile, "LIF": LIF}, **config, out=out)
    assert "a.csv.journal.jsonl" in str(caught.value)
    assert not out.exists()
    done = len(trained)
    assert [cell.seed for cell in trained[-6:]] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(MarsnnError, match="seed 1 is unlucky"):
        ablate(corners, {"mine": small_task.fragile, "LIF": LIF}, **config, out=out)
    assert [cell.seed for cell in trained[done:]] == [1]


def test_failing_while_tuning_loses_that_neuron_only(tmp_path, trained, monkeypatch):
    def unlucky(features, steps, tau=2.0):
        if torch.initial_seed() in TUNING_SEEDS and tau == 4.0:
            raise RuntimeError("no tau of 4")
        return LIF(features, steps=steps, tau=tau)

    with pytest.raises(
        MarsnnError, match=r"4 cells failed.*tau 4\.0, seed 100 \(validation\): RuntimeError: no tau"
    ):
        ablate(corners, {"mine": unlucky, "LIF": LIF}, **SHORT, out=tmp_path / "a.csv")
    assert [cell.neuron for cell in trained if cell.part == "test"] == ["LIF", "LIF"]


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    """Whether a process runs; one that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_half_way_and_run_again(small, tmp_path):
    """kill -9 on the command and its two workers; run again, what was finished stays as it is, and the end is
    that of an unbroken run in one process."""
    out, journal = tmp_path / "a.csv", tmp_path / "a.csv.journal.jsonl"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "marsnn", "ablate", "--task", TASK, "--out", str(out), "--steps", "2",
            "--seeds", "2", "--epochs", "8", "--batch-size", "8", "--hidden", "6", "--workers", "2",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(lines_of(journal)) < 6 and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = lines_of(journal)
    assert 6 <= len(kept) < 1 + 2 * (12 + 2), "the run was to be killed half way"
    assert not out.exists()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) >= 2
    assert not any(map(alive, workers)), "workers outlive their parent"
    journal.write_bytes(b"".join(kept) + b'{"key":{"torn')  # the worst moment for it

    ablate(TASK, ["ATMN", "LIF"], **SMALL, out=out)
    after = lines_of(journal)
    assert after[: len(kept)] == kept
    assert len(after) == 1 + 2 * (12 + 2)
    assert lasting(read_table(out)) == lasting(small.rows)


def test_two_ray_workers_give_the_same_table(short, tmp_path, recwarn):
    found = ablate(
        "tests.small_task:corners",
        ["ATMN", "LIF"],
        **{**SHORT, "workers": 2, "engine": "ray"},
        out=tmp_path / "a.csv",
    )
    assert lasting(found.rows) == lasting(short.rows)
    assert found.tuning == short.tuning
    import ray

    assert not ray.is_initialized()  # it was ours to end
    recwarn.clear()


def test_no_cluster_is_one_line(monkeypatch):
    import ray

    def refuse(**settings):
        assert settings["address"] == "10.0.0.1:6379"
        raise ConnectionError("Could not find any running Ray instance.\nMore lines.")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(MarsnnError, match=r"no Ray cluster at 10\.0\.0\.1:6379: Could not find") as caught:
        ablate(corners, ["LIF"], **{**SMALL, "engine": "ray"})
    assert "\n" not in str(caught.value)


# ---- the command line and the page ------------------------------------------------------------------


def test_the_command_lines_help_is_the_configs():
    import typing

    from marsnn.cli import ablate as verb

    hints = typing.get_type_hints(verb.ablate, include_extras=True)
    shown = {name: hint.__metadata__[0].help for name, hint in hints.items() if hasattr(hint, "__metadata__")}
    compared = 0
    for name, each in AblationConfig.__dataclass_fields__.items():
        if name != "tables":  # on the command line: further ones
            assert shown[name] == each.metadata["help"]
            compared += 1
    assert compared > 8


def test_python_on_the_page_runs(tmp_path, monkeypatch):
    """As printed, but for a smaller ablation."""
    text = (ROOT / "docs" / "ablation.md").read_text(encoding="utf-8")
    first, own_task, own_neuron = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    little = {"steps": [1], "seeds": 2, "epochs": 1, "hidden": 4, "workers": 1}
    monkeypatch.setattr(marsnn, "ablate", lambda *args, **changes: ablate(*args, **{**changes, **little}))
    exec(compile(first, "ablation.md", "exec"), {})
    assert len(read_table("ablation.csv")) == 4
    Path("my_task.py").write_text(own_task)
    assert len(ablate("my_task.py:parity", ["LIF"], **little).rows) == 2
    exec(compile(own_neuron, "ablation.md", "exec"), {"marsnn": marsnn})


def test_the_page_shows_the_kept_results_and_the_commands_that_made_them():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make_ablation
    finally:
        sys.path.pop(0)
    text = (ROOT / "docs" / "ablation.md").read_text(encoding="utf-8")
    assert make_ablation.page(text) == text, "run  python docs/make_ablation.py"
    assert text.count("<!-- ablation: ") == len(make_ablation.COMMANDS) == 3
    for name in make_ablation.COMMANDS:
        with (ROOT / "benchmarks" / f"ablation-{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        options = dict(re.findall(r"--(\S+) (\S+)", make_ablation.COMMANDS[name]))
        assert list(dict.fromkeys(row["neuron"] for row in rows)) == options["neurons"].split(",")
        assert list(dict.fromkeys(row["steps"] for row in rows)) == options["steps"].split(",")
        assert {row["seed"] for row in rows} == {str(seed) for seed in range(int(options["seeds"]))}
        assert {row["task"] for row in rows} == {name}
