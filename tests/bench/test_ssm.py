"""Unit: who runs, that all mixers are causal mixers of one shape, and that tables say what the JSON holds."""

import json
from pathlib import Path

import pytest
import torch

from marsnn.bench import ssm as benchmark
from marsnn.bench import timing
from marsnn.linear import Linear
from tests.bench.few_processes import few_processes

ROOT = Path(__file__).parents[2]


def names(length=64):
    return list(benchmark.mixers(length))


def test_every_library_that_is_here_takes_part():
    pytest.importorskip("transformers")
    pytest.importorskip("mambapy")
    chunks = {f"Mamba2Mixer {chunk}" for chunk in (32, 64, 128, 256)}
    ours = {"SSD", "SSD, torch", "SSD, nn.Linear"}
    assert set(names()) == ours | {"SSD, steps", "attention", "mambapy"} | chunks
    assert set(names(32768)) == ours


@pytest.mark.parametrize(
    "name",
    ["SSD", "SSD, torch", "SSD, nn.Linear", "SSD, steps", "attention", "Mamba2Mixer 64", "mambapy"],
)
def test_mixers_are_causal_and_pass_gradients_back(name):
    if name not in names():
        pytest.skip(f"{name} is not installed")
    mixer = benchmark._made(benchmark.mixers(64)[name])
    x, upstream = benchmark._tensors(40)
    y = mixer(x)
    assert y.shape == x.shape
    timing.both(mixer, x, upstream)
    assert x.grad.abs().sum() > 0
    (slope,) = torch.autograd.grad(mixer(x)[20].sum(), x)
    assert slope[20].abs().sum() > 0
    assert slope[21:].abs().max() < 1e-6


def test_the_three_forms_of_ssd_are_one_layer():
    x, _ = benchmark._tensors(70)
    forms = [benchmark._made(benchmark.mixers(64)[name]) for name in ("SSD", "SSD, torch", "SSD, steps")]
    first, *others = (timing.forward(mixer, x) for mixer in forms)
    for other in others:
        assert torch.allclose(other, first, rtol=0, atol=1e-4)


def test_attention_with_a_cache_is_attention():
    torch.manual_seed(0)
    attention = benchmark.Attention()
    x = torch.randn(9, 2, benchmark.D)
    _, *cached = attention.qkv(x).split(256, -1)
    k, v = (each.unflatten(-1, (-1, 64)).permute(1, 2, 0, 3) for each in cached)
    last = attention.step(x[8], (k[:, :, :8], v[:, :, :8]))
    assert torch.allclose(last, attention(x)[8], rtol=0, atol=1e-5)


@pytest.mark.parametrize("torchs", [False, True])
def test_projections_do_the_products_of_both_linear_layers(torchs):
    torch.manual_seed(0)
    floor = benchmark.Projections(torchs)
    assert {type(floor.into), type(floor.out)} == {torch.nn.Linear if torchs else Linear}
    x, upstream = benchmark._tensors(5)
    timing.both(floor, x, upstream)
    between, given = (each.expand(5, -1, -1).flatten(0, 1) for each in (floor.between, floor.upstream))
    assert torch.allclose(x.grad.flatten(0, 1), given @ floor.into.weight, atol=1e-5)
    assert torch.allclose(floor.into.weight.grad, given.t() @ x.detach().flatten(0, 1), atol=1e-5)
    assert torch.allclose(floor.out.weight.grad, upstream.flatten(0, 1).t() @ between, atol=1e-5)
    assert timing.forward(floor, x).shape == x.shape


def test_the_products_of_the_scan_are_counted_in_whole_chunks():
    """L = 100: 2 chunks of 64, 8 heads of 64, N = 64, one group; each of two gradients costs the same."""
    products = benchmark._products(100, torch.randn)
    forward, backward = (
        sum(a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2] for a, b in products[part])
        for part in ("forward", "backward")
    )
    assert sum(map(benchmark._multiplications, products["forward"])) == forward
    assert forward == 2 * 64**3 + 2 * 8 * 64**3 + 2 * (2 * 64 * 64 * 512)
    assert backward == 2 * forward
    for a, b in products["forward"] + products["backward"]:
        assert a.shape[2] == b.shape[1]


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "part", few_processes())
        return benchmark.run(quick=True)


def test_quick_run_has_every_part(result):
    assert json.loads(json.dumps(result)) == result
    assert {row["L"] for row in result["whole"]} == {64, 128}
    assert {"SSD", "SSD, torch", "SSD, nn.Linear", "SSD, steps", "attention", "projections", "nn.Linear"} <= {
        r["what"] for r in result["whole"]
    }
    assert {row["what"] for row in result["scan"]} == {"kernel", "torch", "GEMMs", "best GEMM"}
    assert {(row["tokens"], row["what"]) for row in result["decode"]} == {
        (seen, what) for seen in (1, 1024) for what in ("SSD", "state update", "attention")
    }
    assert {row["what"] for row in result["memory"]} == {"SSD", "SSD, torch"}
    assert result["targets"] == []


def test_tables_hold_the_figures(result):
    text = benchmark.markdown(result)
    own = next(row for row in result["whole"] if row["what"] == "attention" and row["L"] == 64)
    ratio = own["both_to_ours"]
    assert f"| {ratio['median']:.2f} ({ratio['low']:.2f}, {ratio['high']:.2f}) |" in text
    assert text.count("\n| SSD |") == 5
    assert "after 1,024" in text


def test_the_mixer_reported_is_the_fastest_of_its_chunks(monkeypatch):
    """Of several Mamba2Mixers the one with the smallest median stands in the row."""
    times = {"SSD": 2.0, "SSD, torch": 3.0, "Mamba2Mixer 64": 5.0, "Mamba2Mixer 32": 4.0}
    times |= {"projections": 1.0, "nn.Linear": 1.5}
    monkeypatch.setattr(
        benchmark, "mixers", lambda *_: dict.fromkeys(list(times)[:-2], benchmark.Projections)
    )
    monkeypatch.setattr(
        benchmark.timing,
        "rounds",
        lambda runs, count: {name: [times[name.rsplit(" ", 1)[0]]] * 3 for name in runs},
    )
    rows = {row["what"]: row for row in benchmark.whole(64, 3, False)}
    assert set(rows) == {"SSD", "SSD, torch", "Mamba2Mixer", "projections", "nn.Linear"}
    assert rows["Mamba2Mixer"]["as"] == "Mamba2Mixer 32"
    assert rows["Mamba2Mixer"]["both_to_ours"]["median"] == 2.0
    assert rows["Mamba2Mixer"]["both_to_torch"]["median"] == pytest.approx(4 / 3)


# ---- what is kept -----------------------------------------------------------------------------------

KEPT = ROOT / "benchmarks" / "ssm.json"


def test_aims_are_judged_by_their_figures():
    kept = json.loads(KEPT.read_text())
    assert benchmark.targets(kept) == kept["targets"]
    assert len(kept["targets"]) == 19
    worse = json.loads(KEPT.read_text())
    for row in worse["whole"]:
        row["both_to_ours"]["median"] /= 100
    assert sum(row["met"] for row in benchmark.targets(worse)) < sum(row["met"] for row in kept["targets"])


def test_the_page_is_what_the_commands_print(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_ssm

    text = (ROOT / "docs" / "ssm.md").read_text(encoding="utf-8")
    assert make_ssm.page(text) == text, "run  python docs/make_ssm.py"
    assert benchmark.markdown(json.loads(KEPT.read_text())) in text
    assert "| SSM + ATMN |" in make_ssm.memories()
