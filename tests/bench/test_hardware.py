"""Unit: what each part holds, that wrong spikes abort the bench, and that tables say what the JSON holds."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.bench import hardware as benchmark
from marsnn.bench import parts, random_nets
from marsnn.errors import InputError, LavaError, MarsnnError
from marsnn.hardware import fast
from marsnn.hardware.graph import extract
from marsnn.hardware.stages import KINDS
from marsnn.ssm import S4D, SSDCore

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks" / "hardware.json"


# ---- random networks --------------------------------------------------------------------------------


def test_families_have_every_kind_of_stage_and_synapse_that_a_network_becomes():
    kinds, forms, arrivals = set(), set(), set()
    for _, (_, network, x) in zip(range(140), random_nets.draws(), strict=False):
        for stage in extract(network, tuple(x.shape[2:])).stages:
            kinds.add(stage.kind)
            arrivals |= {synapse.arrival for synapse in stage.synapses}
            forms |= {type(synapse.map).__name__ for synapse in stage.synapses}
    assert kinds == set(KINDS) - {"count"}  # that one is of another mode
    assert forms == {"Dense", "Kernel", "Each"}
    assert arrivals == {
        "value", "sum", "horner", "power", "held", "stream", "stream_down", "stream_up",
    }  # fmt: skip


def test_state_space_layers_are_drawn_with_and_without_a_gate():
    for family in ("s4d", "ssd"):
        layers = [layer for seed in range(12) for layer in random_nets.draw(family, seed)[0].layers.values()]
        biases = [layer.gate_bias for layer in layers if isinstance(layer, S4D | SSDCore)]
        assert len(biases) == 12
        assert 3 <= sum(bias is None for bias in biases) <= 9


@pytest.mark.parametrize("family", random_nets.FAMILIES)
def test_a_random_network_follows_from_its_seed(family):
    (first, x), (again, y) = random_nets.draw(family, 3), random_nets.draw(family, 3)
    assert torch.equal(x, y)
    assert torch.equal(first(x), again(y))
    assert not torch.equal(random_nets.draw(family, 4)[1].sum(), x.sum())


# ---- parts, tiny ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return benchmark.run(["digits", "export"], quick=True)


def test_quick_digits_and_export_have_their_figures(digits):
    assert json.loads(json.dumps(digits)) == digits
    assert digits["targets"] == []  # they are of the full size
    assert [(row["neuron"], row["seed"]) for row in digits["digits"]] == [("ATMN", 0), ("LIF", 0)]
    for row in digits["digits"]:
        assert set(row["rounded"]) == set(row["aware"]) == {"8", "6", "5", "4"}
        for accuracy in (row["float"], row["float_longer"], *row["rounded"].values(), *row["aware"].values()):
            assert 0 <= accuracy <= 1
        assert abs(row["rounded"]["8"] - row["float"]) < 0.1
    assert [row["shape"] for row in digits["export"]] == ["deep", "wide"]
    for row in digits["export"]:
        assert 18_000 < row["weights"] < 22_000
        assert row["weights"] < 1e6 * row["bundle_mb"] < 20 * row["weights"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_peak_memory_is_that_of_the_whole_process(digits):
    for row in digits["export"]:
        assert 0.1 < row["peak_gib"] < 1.5  # torch and its libraries alone


def test_an_export_that_fails_is_one_line():
    with pytest.raises(MarsnnError, match=r"bench hardware: exported .* failed"):
        parts.part("hardware", "exported", weights=-1, shape="deep")


def test_an_unknown_part_is_refused():
    with pytest.raises(InputError, match="no part named 'joules'; known: speed, export, digits, parity"):
        benchmark.run(["joules"])


# ---- speed ------------------------------------------------------------------------------------------


def test_contestants_that_are_missing_are_named(monkeypatch):
    monkeypatch.setenv("MARSNN_BRIAN2_PYTHON", "/nowhere/python")

    def no_lava():
        raise LavaError("Lava's environment was not found")

    peers = [benchmark.Peer("Lava", benchmark.NEURONS, Path("unused"), no_lava), benchmark.PEERS[1]]
    row = benchmark.speed("LIF", benchmark.QUICK, peers)
    assert set(row["missing"]) == {"Lava", "Brian 2"}
    assert "set MARSNN_BRIAN2_PYTHON to a Python that has it" in row["missing"]["Brian 2"]
    assert list(row["simulators"]) == [
        "marsnn", "marsnn, batch of 64", "marsnn, numpy alone", "marsnn, numpy alone, batch of 64",
    ]  # fmt: skip
    for each in row["simulators"].values():
        assert (
            0 < each["tokens_per_s"]["low"] <= each["tokens_per_s"]["median"] <= each["tokens_per_s"]["high"]
        )
        assert each["to_lava"] is None
    assert benchmark.targets({"speed": [row]}) == []
    assert "| Lava | not here: Lava's environment was not found | | | |" in benchmark._speed_table(row)


def test_wrong_spikes_of_ours_abort_the_bench(monkeypatch):
    run = fast.FastIntegers.run

    def wrong(self, inputs):
        result = run(self, inputs)
        result.spikes["atmn2"][-1, 2, 5] ^= 1
        return result

    monkeypatch.setattr(fast.FastIntegers, "run", wrong)
    with pytest.raises(
        MarsnnError, match=r"marsnn: 1 spikes or values differ .* first atmn2: token 3, step 2, neuron 5"
    ):
        benchmark.speed("ATMN", benchmark.QUICK, [])


PEER = """
import json, sys
import numpy as np
_, runtime, bundle, out = sys.argv
manifest = json.load(open(bundle + "/manifest.json"))
golden = np.load(bundle + "/golden.npz")
sent = {key.replace("spikes/", "sent/").replace("values/", "sent/"): golden[key] for key in golden.files}
sent["sent/atmn1"] = sent["sent/atmn1"] * SIGN
np.savez(out, clock=np.array([1.0, 0.5, 16.0]), **sent)
"""


def peer(tmp_path, sign):
    script = tmp_path / "peer.py"
    script.write_text(PEER.replace("SIGN", sign))
    return benchmark.Peer("Lava", ("ATMN",), script, lambda: sys.executable)


def test_a_peer_is_timed_without_its_start(tmp_path):
    row = benchmark.speed("ATMN", benchmark.QUICK, [peer(tmp_path, "1")])
    found = row["simulators"]["Lava"]
    assert found["tokens_per_s"]["median"] == pytest.approx(16 / 4 / 0.5)  # steps / T / seconds
    assert found["to_lava"]["median"] == 1.0
    ours = row["simulators"]["marsnn"]
    assert ours["to_lava"]["median"] == pytest.approx(ours["tokens_per_s"]["median"] / 8)
    first, batch = benchmark.targets({"speed": [row]})
    assert (first["limit"], batch["limit"]) == (100, 1000)


def test_wrong_spikes_of_a_peer_abort_the_bench(tmp_path):
    with pytest.raises(
        MarsnnError, match=r"Lava: .* differ from the golden run, first atmn1: .*nothing is timed"
    ):
        benchmark.speed("ATMN", benchmark.QUICK, [peer(tmp_path, "-1")])


def test_a_peer_that_fails_is_one_line(tmp_path):
    with pytest.raises(
        LavaError, match=r"Lava's run failed \(exit 1\): NameError: name 'nothing' is not defined"
    ):
        benchmark.speed("ATMN", benchmark.QUICK, [peer(tmp_path, "nothing")])


@pytest.mark.lava
@pytest.mark.xdist_group("lava")
def test_lava_says_the_same_and_is_timed(lava_python):
    row = benchmark.speed("LIF", benchmark.QUICK, benchmark.PEERS[:1])
    lava = row["simulators"]["Lava"]
    assert lava["start_s"]["median"] > 0
    assert row["simulators"]["marsnn"]["to_lava"]["median"] > 0


@pytest.mark.lava
@pytest.mark.xdist_group("lava")
def test_parity_counts_slots_by_family(lava_python):
    found = benchmark.parity(benchmark.QUICK)
    assert found["first"] is None
    (row,) = found["families"].values()
    assert row["networks"] == 1
    assert row["slots"] > 0
    assert row["mismatches"] == 0


@pytest.mark.sanafe
def test_brian2_says_the_same_where_it_is_installed():
    (each,) = (each for each in benchmark.PEERS if each.name == "Brian 2")
    try:
        each.python()
    except MarsnnError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    row = benchmark.speed("LIF", benchmark.QUICK, [each])
    assert row["simulators"]["Brian 2"]["tokens_per_s"]["median"] > 0


# ---- aims and tables --------------------------------------------------------------------------------


def made_up():
    row = {"neuron": "ATMN", "seed": 0, "float": 0.95, "float_longer": 0.96}
    other = {**row, "seed": 1, "float": 0.93}
    for each, lost in ((row, 0.01), (other, 0.03)):
        each["rounded"] = {str(bits): 0.9 for bits in benchmark.BITS}
        each["aware"] = {str(bits): each["float"] - lost for bits in benchmark.BITS}
    family = {"networks": 2, "slots": 600_000, "values": 7, "spikes": 9, "mismatches": 1}
    return {
        "machine": {"device": "a chip", "threads": 1, "torch": "2"},
        "config": {"seeds": 2},
        "digits": [row, other],
        "parity": {"seed": 0, "families": {"dense": family, "ssd": family}, "first": "there",
                   "layers": ["ATMN"]},
    }  # fmt: skip


def test_aims_are_judged_by_their_figures():
    rows = benchmark.targets(made_up())
    lost = [row for row in rows if "bits after training" in row["what"]]
    assert len(lost) == 4
    assert all(row["value"] == pytest.approx(2.0) and not row["met"] for row in lost)
    slots, wrong = rows[-2:]
    assert (slots["value"], slots["met"]) == (1_200_000, True)
    assert (wrong["value"], wrong["met"]) == (2, False)


def test_tables_say_the_aim_beside_the_result():
    result = {**made_up(), "targets": []}
    text = benchmark.markdown(result)
    assert "wanted: 0 mismatches of at least 1,000,000 spike slots" in text
    assert "| all | 4 | 1,200,000 | 18 | 14 | 2 |" in text
    assert "First mismatch: there" in text
    assert "| ATMN, trained with them | 94.00 +- 1.41 | 96.00 +- 0.00 | 92.00 +- 2.83 |" in text


def test_networks_are_those_that_the_text_names():
    for neuron in benchmark.NEURONS:
        made = benchmark.network(neuron, 32)
        assert [type(each).__name__ for each in made.neurons.values()] == [neuron] * 3
        assert made.steps == 4
        assert isinstance(made.layers[made.names[-1]], nn.Linear)


# ---- what is kept -----------------------------------------------------------------------------------


def test_the_kept_result_is_judged_by_its_figures():
    kept = json.loads(KEPT.read_text())
    assert benchmark.targets(kept) == kept["targets"]
    assert (
        f"`{kept['command']} --save benchmarks/hardware.json`"
        in (ROOT / "benchmarks" / "README.md").read_text()
    )
    assert kept["config"]["width"] == benchmark.WIDTH
    assert sum(row["mismatches"] for row in kept["parity"]["families"].values()) == 0
    for row in kept["speed"]:
        assert np.mean(list(row["spike_rates"].values())) > 0.02
