"""Unit: rounds are interleaved, ratios are taken within a round, and the tables say what the JSON holds."""

import json
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from marsnn.bench import contestants, parts, timing
from marsnn.bench import neurons as benchmark
from marsnn.errors import InputError, MarsnnError
from marsnn.neurons import names
from tests.bench.few_processes import few_processes

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks" / "neurons.json"


# ---- timing -----------------------------------------------------------------------------------------


def test_rounds_turn_and_the_first_two_are_not_kept(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    order = []
    seconds = timing.rounds({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert "".join(order) == "bcacababcbcacababc"
    assert seconds == {name: [1] * 4 for name in "abc"}


def test_a_ratio_is_taken_within_each_round():
    assert timing.ratio([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == timing.summary([1.0, 2.0, 3.0])
    assert timing.summary([1.0, 2.0, 3.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert timing.summary([5.0]) == {"median": 5.0, "low": 5.0, "high": 5.0}


# ---- contestants ------------------------------------------------------------------------------------


def test_every_spiking_neuron_of_ours_runs():
    ours = {each.model for each in contestants.entries() if each.library == "marsnn"}
    assert ours == set(names()) - {"LeakyIntegrator"}


@pytest.mark.parametrize("each", contestants.entries(), ids=lambda each: f"{each.model}-{each.what}")
def test_contestants_spike_and_pass_gradients_back(each):
    if each.library != "marsnn":
        pytest.importorskip(each.library)
    run = each.make(40, 6)
    scale = 100 if "Izhikevich" in each.what else 5
    x = (scale * torch.rand(6, 1, 40, generator=torch.Generator().manual_seed(0))).requires_grad_()
    spikes = run(x)
    assert spikes.shape == x.shape
    assert spikes.abs().sum() > 0
    assert torch.equal(run(x), spikes)  # from rest each time
    spikes.backward(torch.randn_like(spikes))
    assert x.grad.abs().sum() > 0


# ---- the whole, small -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "part", few_processes("memory", "first_use"))
        return benchmark.run(quick=True)


def test_quick_run_has_every_part(result):
    assert json.loads(json.dumps(result)) == result
    assert {row["model"] for row in result["speed"]} == {"LIF", "ATMN"}
    for row in result["speed"]:
        for part in ("forward_ms", "both_ms", "forward_to_copy", "both_to_copies", "copy_ms", "copies_ms"):
            assert 0 < row[part]["low"] <= row[part]["median"] <= row[part]["high"]
    assert [row["T"] for row in result["over_T"]] == [1, 8, 64]
    assert [row["N"] for row in result["over_N"]] == [4096, 16384]
    assert [row["what"] for row in result["first_use"]] == ["build", "load"]
    assert result["targets"] == []  # they are of the full size


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_peak_memory_is_that_of_spikes_and_gradient(result):
    (ours,) = (row["extra_mb"] for row in result["memory"] if row["library"] == "marsnn")
    currents = 4 * benchmark.T * benchmark.N / 1e6
    assert 2 * currents * 0.9 < ours < 2 * currents + 3
    for row in result["memory"]:
        assert row["library"] == "marsnn" or row["extra_mb"] > ours


def test_first_use_was_fused_and_built_once(result):
    built, loaded = result["first_use"]
    assert built["fused"]
    assert loaded["fused"]
    assert loaded["seconds"] < built["seconds"]


def test_markdown_has_a_row_for_each(result):
    text = benchmark.markdown(result)
    assert len(re.findall(r"^\| .*(marsnn|`) ?.*\|$", text, flags=re.MULTILINE)) >= len(result["speed"])
    first = result["speed"][0]
    assert f"| {first['forward_ms']['median']:.2f} | {first['forward_to_copy']['median']:.2f} (" in text
    assert "not met" not in text
    assert f"{result['first_use'][0]['seconds']:.2f} s to build" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu_is_said_in_one_line():
    with pytest.raises(InputError, match="no CUDA device here; take --device cpu"):
        benchmark.run(quick=True, device="cuda")


def test_a_gpu_stands_below_the_cpu(result):
    both = {**result, "cuda": {**result, "first_use": None}}
    text = benchmark.markdown(both)
    assert text.startswith(benchmark.markdown(result))
    assert text.count("| model | library |") == 2


def test_a_part_that_fails_is_one_line():
    with pytest.raises(MarsnnError, match=r"first_use .* failed: StopIteration"):
        parts.part("neurons", "first_use", model="none")


# ---- what is kept -----------------------------------------------------------------------------------


def test_aims_are_judged_by_their_figures():
    kept = json.loads(KEPT.read_text())
    assert benchmark.targets(kept) == kept["targets"]
    assert len(kept["targets"]) == 7
    for row in kept["targets"]:
        good = row["value"] <= row["limit"] if row["sign"] == "<=" else row["value"] >= row["limit"]
        assert row["met"] == good
    worse = json.loads(KEPT.read_text())
    worse["speed"][0]["both_to_copies"]["median"] = 1.6
    assert [row["met"] for row in benchmark.targets(worse)].count(False) > [
        row["met"] for row in kept["targets"]
    ].count(False) - 1
    assert not benchmark.targets(worse)[1]["met"]


def test_page_is_what_the_command_prints(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_speed

    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert make_speed.page(text) == text, "run  python docs/make_speed.py"
    assert benchmark.markdown(json.loads(KEPT.read_text())) in text
    plt.close("all")


def test_readme_says_what_the_file_holds():
    kept = json.loads(KEPT.read_text())
    lif = kept["speed"][0]
    value = {row["what"]: row["value"] for row in kept["targets"]}
    peer = next(value[what] for what in value if "fastest peer" in what)
    atmn = next(value[what] for what in value if what.startswith("ATMN"))
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"take {lif['both_ms']['median']:.1f} ms on two cores, " in text
    assert f"{lif['both_to_copies']['median']:.2f} times as long as copying" in text
    assert f"norse takes {peer:.1f} times as long; ATMN is {atmn:.1f} times as fast" in text
