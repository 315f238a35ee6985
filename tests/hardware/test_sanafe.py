"""Reference: SANA-FE's Loihi 1 against our counts and energy, to the unit; what it is told, by hand."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.energy import EnergyReport, load_table
from marsnn.errors import InputError, SanafeError
from marsnn.files import json_text
from marsnn.hardware import export, integer, sanafe, sanafe_process, validate_energy
from marsnn.hardware.chip import load_profile
from marsnn.hardware.place import events_of, place
from marsnn.hardware.price import counts_of
from marsnn.hardware.sanafe import validate_run
from marsnn.hardware.sanafe_replay import in_order, meetings, on_their_chip, replay
from marsnn.hardware.stages import Convolution, IntegerGraph, Stage, Synapse
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF

T = 4


# ---- graphs ------------------------------------------------------------------------------------------


def lif(name, *synapses, n, signed=0):
    each = {
        "fire": 60,
        "amplitude": 60,
        "decay": 3000,
        "current_decay": 0,
        "adaptation": 0,
        "adaptation_decay": 0,
    }
    arrays = {key: np.full(n, value) for key, value in each.items()}
    arrays |= {"most": np.array(1), "signed": np.array(signed)}
    return Stage(name, "lif", (n,), synapses, {"in": np.zeros(n, dtype=int)}, arrays)


def atmn(name, *synapses, shape):
    n = int(np.prod(shape))
    arrays = {"fire": np.full(n, 50), "amplitude": np.full(n, 60), "decay": np.array(8192)}
    return Stage(name, "atmn", shape, synapses, {"in": np.zeros(n, dtype=int)}, arrays)


def summed(name, *synapses, n):
    return Stage(name, "sum", (n,), synapses, {"in": np.zeros(n, dtype=int)}, {})


def gate(name, *synapses, n):
    arrays = {key: np.full(n, 1) for key in ("multiplier", "argument_shift", "product_shift", "level")}
    arrays["table"] = np.linspace(0, 2**15, 65).astype(int)
    bias = {"argument": np.zeros(n, dtype=int), "factor": np.zeros(n, dtype=int)}
    return Stage(name, "gate", (n,), synapses, bias, arrays)


def dense(rng, name, source, n, m, arrival, port="in"):
    weight = rng.integers(-20, 21, (n, m)) * (rng.random((n, m)) < 0.7)
    return Synapse(name, source, port, "dense", arrival, weight)


def graphs():
    """Name -> a graph: binary and, behind convolutions, ternary trains with a skip; a gate and signed LIF."""
    rng = np.random.default_rng(0)
    binary = (
        lif("lif1", dense(rng, "fc1", "input", 30, 12, "held"), n=30),
        lif("lif2", dense(rng, "fc2", "lif1", 20, 30, "stream"), n=20),
        summed("out", dense(rng, "fc3", "lif2", 5, 20, "sum"), dense(rng, "skip", "lif1", 5, 30, "sum"), n=5),
    )
    padded = Convolution((2, 5, 4), (4, 3, 4), (2, 1), (1, 1), (1, 1), groups=2)
    kernel = rng.integers(-9, 10, (4, 1, 3, 3)) * (rng.random((4, 1, 3, 3)) < 0.7)
    wide = Convolution((4, 3, 4), (3, 2, 2), (1, 2), (0, 0), (1, 1))
    ternary = (
        atmn("atmn1", Synapse("conv1", "input", "in", "conv", "value", kernel, conv=padded), shape=(4, 3, 4)),
        atmn(
            "atmn2",
            Synapse("conv2", "atmn1", "in", "conv", "horner", rng.integers(-9, 10, (3, 4, 2, 2)), conv=wide),
            shape=(3, 2, 2),
        ),
        summed(
            "out",
            dense(rng, "fc", "atmn2", 5, 12, "horner"),
            dense(rng, "skip", "atmn1", 5, 48, "horner"),
            n=5,
        ),
    )
    gated = (
        atmn("atmn", dense(rng, "fc1", "input", 16, 6, "value"), shape=(16,)),
        gate(
            "gate",
            dense(rng, "left", "atmn", 10, 16, "horner", "argument"),
            dense(rng, "right", "atmn", 10, 16, "horner", "factor"),
            n=10,
        ),
        atmn(
            "behind",
            Synapse("each", "gate", "in", "each", "value", np.full(10, 3), right=np.full(10, 1)),
            shape=(10,),
        ),
        lif("signed", dense(rng, "fc2", "behind", 8, 10, "stream_down"), n=8, signed=1),
        summed("out", dense(rng, "fc3", "signed", 3, 8, "sum"), n=3),
    )
    back = (
        lif("lif1", dense(rng, "fc1", "input", 30, 12, "held"), dense(rng, "own1", "lif1", 30, 30, "stream"),
            n=30, signed=1),
        lif("lif2", dense(rng, "fc2", "lif1", 20, 30, "stream"), dense(rng, "own2", "lif2", 20, 20, "stream"),
            n=20),
    )  # fmt: skip
    return {
        "back": IntegerGraph(T, (12,), back),
        "binary": IntegerGraph(T, (12,), binary),
        "ternary": IntegerGraph(T, (2, 5, 4), ternary),
        "gated": IntegerGraph(T, (6,), gated),
    }


def ran(graph, tokens=20):
    rng = np.random.default_rng(1)
    size = graph.size("input")
    inputs = rng.integers(-20, 21, (tokens, size)) * (rng.random((tokens, size)) < 0.8)
    return inputs, integer.run(graph, inputs)


def placed(graph, run, **limits):
    """A placement on a chip with other limits, such as cores that hold few neurons."""
    return place(graph, replace(load_profile("loihi1"), **limits), events_of(run), effort=0)


# ---- in SANA-FE --------------------------------------------------------------------------------------

with_sanafe = pytest.mark.sanafe
LIMITS = {"whole": {}, "spread": {"neurons_per_core": 2}, "relayed": {"neurons_per_core": 2, "delay_bits": 1}}


@with_sanafe
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("case", graphs())
def test_every_count_is_equal_and_energy_to_twelve_digits(case, limits, sanafe_python):
    graph = graphs()[case]
    inputs, run = ran(graph)
    placement = placed(graph, run, **LIMITS[limits])
    result = validate_run(graph, inputs, run, placement)
    assert result.ok, result.text()
    assert result.largest_difference < 1e-12
    found = {(row.layer, row.what): row.sanafe for row in result.counts}
    for stage in graph.stages:
        if stage.sends == "train":
            spikes = run.spikes[stage.name]
            assert found[stage.name, "spikes"] == np.count_nonzero(spikes) > 0
            assert found[stage.name, "neuron updates"] == spikes.size
            assert (stage.name in result.rails) == bool((spikes < 0).any())
        assert (found.get((stage.name, "synaptic events"), 0) > 0) is (stage.name != "behind")
    total = {row.what: row.sanafe for row in result.energy}
    counts = counts_of(graph, inputs, run)
    if case == "gated":  # a gate's values are no spikes of Loihi 1
        assert "gate: Loihi 1 sends no graded spikes" in result.unplaced
        assert total["all, pJ"] == pytest.approx(load_table("loihi1").spiking_pj(counts.total), rel=1e-12)
        return
    report = EnergyReport(counts, placement=placement)
    assert total["all, pJ"] == pytest.approx(len(inputs) * report.totals["loihi1"].spiking_pj, rel=1e-12)
    assert (placement.relays > 0) is (limits == "relayed" and case == "ternary")
    ways = {what for _, what in found if what.startswith("hops")}
    assert ways == (set() if limits == "whole" else {"hops east-west", "hops north-south"})


@with_sanafe
def test_a_bundle_agrees_with_its_own_counts(sanafe_python, tmp_path):
    torch.manual_seed(0)
    layers = {
        "fc1": nn.Linear(12, 20),
        "atmn": ATMN(20),
        "fc2": nn.Linear(20, 20),
        "lif": LIF(20, carry="sequence"),
        "fc3": nn.Linear(20, 4),
    }
    bundle = export(Network(layers, skips={"fc3": "atmn"}), 2 * torch.randn(5, 2, 12), tmp_path / "bundle")
    result = validate_energy(tmp_path / "bundle")
    assert result.ok, result.text()
    assert (result.tokens, result.unplaced, result.rails) == (10, "", ("atmn",))
    total, energy = bundle.report("counts")["total"], bundle.report("energy")["total"]["energy"]["loihi1"]
    events = sum(row.sanafe for row in result.counts if row.what == "synaptic events")
    assert events == total["ac"] + total["mac"] > 0
    assert sum(row.sanafe for row in result.counts if row.what == "spikes") == total["spikes"] > 0
    (whole,) = (row.sanafe for row in result.energy if row.what == "all, pJ")
    assert whole == pytest.approx(10 * energy["spiking_pj"], rel=1e-12)  # the placement's hops in both


@with_sanafe
def test_a_core_hears_a_neuron_whose_weights_there_are_all_zero(sanafe_python):
    graph = small()
    inputs, run = ran(graph)
    result = validate_run(graph, inputs, run)
    found = {(row.layer, row.what): row.sanafe for row in result.counts}
    # neuron 1 has a weight of 0 to the sum: messages, and no events
    assert found["atmn", "messages"] == np.count_nonzero(run.spikes["atmn"])
    assert found["out", "synaptic events"] == np.count_nonzero(run.spikes["atmn"][..., 0])
    assert result.ok


@with_sanafe
def test_a_wrong_count_is_seen_where_it_is(sanafe_python, monkeypatch):
    graph = graphs()["ternary"]
    inputs, run = ran(graph)
    fewer = integer.IntegerRun(dict(run.spikes), dict(run.values))
    train = fewer.spikes["atmn1"] = run.spikes["atmn1"].copy()
    train[tuple(np.argwhere(train)[0])] = 0
    monkeypatch.setattr(sanafe, "counts_of", lambda graph, inputs, run: counts_of(graph, inputs, fewer))
    monkeypatch.setattr(sanafe, "events_of", lambda run: events_of(fewer))
    result = validate_run(graph, inputs, run)
    wrong = {(row.layer, row.what) for row in result.counts if row.difference}
    events = {("atmn2", "synaptic events"), ("out", "synaptic events")}
    assert wrong == {("atmn1", "spikes"), ("atmn1", "messages"), *events}
    assert not result.ok
    assert 0 < result.largest_difference < 0.01


@with_sanafe
def test_wrong_hops_are_seen(sanafe_python):
    """A part that says it lies elsewhere than its hops were counted for."""
    graph = graphs()["binary"]
    inputs, run = ran(graph)
    placement = placed(graph, run, neurons_per_core=7)
    assert validate_run(graph, inputs, run, placement).ok
    first, *others = placement.cores
    moved = replace(placement, cores=(replace(first, column=7, row=3), *others))
    result = validate_run(graph, inputs, run, moved)
    assert {row.what for row in result.counts if row.difference} == {"hops east-west", "hops north-south"}
    assert not result.ok


@with_sanafe
def test_the_text_is_one_table_and_the_dict_is_json(sanafe_python):
    graph = graphs()["ternary"]
    result = validate_run(graph, *ran(graph))
    text = result.text()
    assert "20 tokens x 4 steps" in text
    assert "two axons a neuron, one for each sign: atmn1, atmn2" in text
    assert all(f"{row.ours:,.0f}" in text for row in result.counts)
    assert result.to_dict()["ok"] is True
    assert json_text(result.to_dict())


@with_sanafe
def test_a_run_that_fails_is_one_line(sanafe_python, monkeypatch, tmp_path):
    broken = tmp_path / "run.py"
    broken.write_text("raise ValueError('no such unit')")
    monkeypatch.setattr(sanafe_process, "RUNTIME", broken)
    graph = graphs()["binary"]
    with pytest.raises(SanafeError, match=r"exit 1\): ValueError: no such unit"):
        validate_run(graph, *ran(graph))


# ---- what it is told ---------------------------------------------------------------------------------


def small():
    """2 inputs -> 2 ATMN -> 1 sum; T = 4."""
    first = Synapse("fc1", "input", "in", "dense", "value", np.array([[60, 0], [-50, 1]]))
    last = Synapse("fc2", "atmn", "in", "dense", "horner", np.array([[3, 0]]))
    return IntegerGraph(T, (2,), (atmn("atmn", first, shape=(2,)), summed("out", last, n=1)))


def test_a_replay_by_hand():
    graph = small()
    inputs = np.array([[1, 0], [0, -7]])
    # Token 0: sums (60, -50) fire +1 and -1 at t = 0 (fire 50, amplitude 60), leaving (0, 10), which doubles:
    # 20, 40, 80 fires +1 at t = 3. Token 1: sums (0, -7), then -14, -28, -56 fires -1 at t = 3.
    run = integer.run(graph, inputs)
    spikes = [[[1, -1], [0, 0], [0, 0], [0, 1]], [[0, 0], [0, 0], [0, 0], [0, -1]]]
    assert run.spikes["atmn"].tolist() == spikes
    placement = placed(graph, run, neurons_per_core=1)  # a core for each neuron
    cores = on_their_chip(graph, placement)
    first, second = cores["atmn"].tolist()
    groups = {group.name: group for group in replay(graph, inputs, run, cores, placement)}
    assert {group.name: group.soma for group in groups.values()} == {
        **{f"input:{core}": "free" for core in (first, second)},
        **{"atmn:heard": "free", "atmn:+": "neuron", "atmn:-": "rail", "out:heard": "free", "out": "free"},
    }
    # S = 8 timesteps; the input once a token, where it is not zero, on both cores
    for core, taken in ((first, [[0, 0]]), (second, [[0, 1], [1, 1]])):
        group = groups[f"input:{core}"]
        assert np.argwhere(group.fires).tolist() == [[0, 0], [4, 1]]
        assert group.cores.tolist() == [core, core]
        assert [(each.taker, each.pairs.tolist()) for each in group.edges] == [("atmn:+", taken)]
    assert np.argwhere(groups["atmn:+"].fires).tolist() == [[0, 0], [3, 1]]
    assert np.argwhere(groups["atmn:-"].fires).tolist() == [[0, 1], [7, 1]]
    for sign in "+-":
        edges = [(each.taker, each.pairs.tolist()) for each in groups[f"atmn:{sign}"].edges]
        assert edges == [("out", [[0, 0]]), ("out:heard", [[1, 0]])]  # neuron 1 is heard, by a weight of 0


def test_taps_of_a_convolution_by_hand():
    # 4 inputs, kernel (2, 0, 1), padding 1: output n takes inputs n - 1 by 2 and n + 1 by 1.
    conv = Convolution((1, 4), (1, 4), (1,), (1,), (1,))
    synapse = Synapse("conv", "input", "in", "conv", "value", np.array([[[2, 0, 1]]]), conv=conv)
    graph = IntegerGraph(T, (1, 4), (atmn("atmn", synapse, shape=(1, 4)),))
    assert sorted(meetings(graph, synapse).tolist()) == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]


def test_cores_are_filled_in_order():
    found = in_order(small(), load_profile("loihi1"))
    assert {name: cores.tolist() for name, cores in found.items()} == {"atmn": [0, 0], "out": [1]}


def test_their_tiles_are_numbered_down_the_columns():
    graph = small()
    placement = placed(graph, integer.run(graph, np.array([[1, 0]])))
    core = placement.cores[0]
    moved = replace(core, core=4 * (3 * 8 + 6) + 2, column=6, row=3)  # ours: tile 30 by rows, its third core
    cores = on_their_chip(graph, replace(placement, cores=(moved, *placement.cores[1:])))
    assert cores[core.stage].tolist() == [4 * (6 * 4 + 3) + 2] * 2


def test_a_placement_of_something_else_is_one_line():
    graph, other = small(), graphs()["binary"]
    inputs, run = ran(graph)
    with pytest.raises(InputError, match="placement: has a part of lif1, which this graph lacks"):
        validate_run(graph, inputs, run, placed(other, ran(other)[1]))
    placement = placed(graph, run)
    with pytest.raises(InputError, match="placement: has no place for all of atmn"):
        validate_run(graph, inputs, run, replace(placement, cores=placement.cores[1:]))
    with pytest.raises(InputError, match="placement: its events are a guess"):
        validate_run(graph, inputs, run, place(graph, effort=0))
    with pytest.raises(
        InputError, match=r"Loihi 2 has \d+ x \d+ tiles of 1 cores, SANA-FE's Loihi 1 8 x 4 of 4"
    ):
        validate_run(graph, inputs, run, place(graph, "loihi2", events_of(run), effort=0))


def test_what_fills_more_than_the_chip_is_one_line():
    wide = Synapse("fc", "input", "in", "dense", "value", np.ones((129, 1)))
    graph = IntegerGraph(T, (1,), (summed("out", wide, n=129),))
    with pytest.raises(InputError, match="needs 129 cores, SANA-FE's Loihi 1 has 128"):
        in_order(graph, replace(load_profile("loihi1"), neurons_per_core=1))


def test_graded_numbers_are_refused():
    levels = Stage(
        "count",
        "count",
        (2,),
        (Synapse("fc", "input", "in", "dense", "value", np.ones((2, 2), dtype=int)),),
        {"in": np.zeros(2, dtype=int)},
        {"levels": np.array([[50, 100], [50, 100]]), "worth": np.array([1, 2])},
    )
    graph = IntegerGraph(T, (2,), (levels,))
    with pytest.raises(InputError, match="count: sends numbers, and Loihi 1 has binary spikes"):
        validate_run(graph, *ran(graph))
    stage = lif("lif", Synapse("fc", "input", "in", "dense", "held", np.ones((2, 2), dtype=int)), n=2)
    graph = IntegerGraph(T, (2,), (replace(stage, arrays={**stage.arrays, "most": np.array(3)}),))
    with pytest.raises(InputError, match="lif: sends up to 3 spikes at once"):
        validate_run(graph, *ran(graph))


# ---- its process -------------------------------------------------------------------------------------


def test_a_missing_environment_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv(sanafe_process.SETTING, str(tmp_path / "python"))
    with pytest.raises(SanafeError, match="is not a Python that imports sanafe and numpy"):
        sanafe_process.find_sanafe()
    monkeypatch.delenv(sanafe_process.SETTING)
    monkeypatch.setattr(sanafe_process, "candidates", lambda: [str(tmp_path / "python")])
    with pytest.raises(SanafeError, match="make sanafe"):
        sanafe_process.find_sanafe()


def test_sanafe_is_imported_by_its_own_runtime_alone():
    """It is GPL-3: nothing that runs in marsnn's process may import it."""
    package, importers = Path(sanafe.__file__).parents[1], set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("sanafe", "sanafecpp") for name in names):
                importers.add(path.relative_to(package).as_posix())
    assert importers == {"hardware/sanafe_runtime/run.py"}
