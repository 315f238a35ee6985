"""Gates without Lava: by hand, against plain integers, their mutants, quantization, certificate, reports."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from marsnn.errors import ExportError
from marsnn.gated import ACTIVATIONS, GatedLinear
from marsnn.hardware import export, integer, load, verify
from marsnn.hardware.certificate import certify_stage, excess, product_bound
from marsnn.hardware.graph import extract
from marsnn.hardware.integer import LARGEST_TABLE, SHARE_MAX, STATE_MAX, UNITY, Gate, IntegerGraph, Stage
from marsnn.hardware.quantize import SHARES, TABLE_STEP, quantize, quantize_inputs, share_table
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, TMN
from marsnn.simulator import simulate
from tests.hardware import pure_int
from tests.hardware.cases import NONE, gate_cases
from tests.hardware.gate_mutants import GATE_MUTANTS

CASES = gate_cases()


def ffn(D=12, F=30, steps=5, tau=0.5, neuron=ATMN, wide=3.0, **gated):
    """A feed-forward net whose sums are of the size of trained ones."""
    torch.manual_seed(0)
    layers = {
        "ffn_in": neuron(D, steps, tau=tau, threshold=torch.rand(D) + 0.5)
        if neuron is ATMN
        else neuron(D, steps),
        "gated": GatedLinear(D, F, **gated),
        "ffn_out": ATMN(F, steps, tau=tau, threshold=torch.rand(F) * 0.6 + 0.2),
        "down_proj": nn.Linear(F, D),
    }
    with torch.no_grad():
        for part in (layers["gated"].gate, layers["gated"].up):
            part.weight.mul_(wide)
    return Network(layers)


def sample(L=4, B=10, D=12):
    return torch.randn(L, B, D, generator=torch.Generator().manual_seed(1))


# ---- integers ----------------------------------------------------------------------------------------


def gate_of(rows, table, bias):
    """Gates with the given (multiplier, its shift, product's shift, level) on one input, weights 0."""
    multiplier, argument_shift, product_shift, level = (np.array(each) for each in zip(*rows, strict=True))
    gate = Gate(multiplier, argument_shift, product_shift, level, np.array(table))
    weight = np.zeros((2 * len(rows), 1), dtype=np.int64)
    return Stage("gate", "gate", "gate", "once", weight, np.array(bias), NONE, NONE, gate=gate)


def test_by_hand():
    # places: 21 * 3 >> 4 = 63 / 16 = 3.9 -> 3, beyond the middle + 2: the last entry, 2^15: 21 * 9 = 189
    #         -21 * 3 >> 4 = -3 -> the first entry, 0: nothing
    #         -9 * 3 >> 4 = -27 / 16 -> -1 (a floor gives -2): entry 1, 8192 = a quarter: -9 / 4 * 9 = -20.25
    stage = gate_of([(3, 4, 15, 0)] * 3, [0, 8192, 16384, 24576, SHARE_MAX], [21, -21, -9, 9, 9, 9])
    products, clipped = integer.run_stage(IntegerGraph(1, (stage,)), stage, np.zeros((1, 1, 1), int))
    assert products.tolist() == [[[189, 0, -20]]]
    assert clipped == 0
    # the same with a level of 20, and of 21
    for level, expected in ((20, -20), (21, 0)):
        stage = gate_of([(3, 4, 15, level)], [0, 8192, 16384, 24576, SHARE_MAX], [-9, 9])
        products, _ = integer.run_stage(IntegerGraph(1, (stage,)), stage, np.zeros((1, 1, 1), int))
        assert products.item() == expected


def test_the_largest_product_is_exact_and_clipped():
    stage = gate_of(
        [(0, 0, 15 + s, 0) for s in (22, 23, 24)], [SHARE_MAX], [STATE_MAX] * 3 + [-STATE_MAX] * 3
    )
    products, clipped = integer.run_stage(IntegerGraph(1, (stage,)), stage, np.zeros((1, 1, 1), int))
    assert products.ravel().tolist() == [-STATE_MAX, -(STATE_MAX**2 >> 23), -(STATE_MAX**2 >> 24)]
    assert clipped == 1


def test_the_cases_reach_what_they_are_for():
    graphs = [case.graph for case in CASES]
    gates = [stage for graph in graphs for stage in graph.stages if stage.kind == "gate"]
    assert {stage.arrival for stage in gates} == {"once", "sum", "horner", "power"}
    behind = [stage for graph in graphs for stage in graph.stages if stage.arrival == "direct"]
    assert {stage.decay for stage in behind} == {UNITY // 2, UNITY, 2 * UNITY}
    assert {graph.steps for graph in graphs} == set(range(1, 9))
    runs = [integer.run(case.graph, case.inputs) for case in CASES]
    products = np.concatenate([array.ravel() for run in runs for array in run.products.values()])
    assert min((products > 0).sum(), (products < 0).sum(), (products == 0).sum()) > 100
    assert (np.abs(products) == STATE_MAX).sum() > 5
    assert sum(run.saturations["gate"] > 0 for run in runs) >= 8
    spikes = np.concatenate([run.spikes["behind"].ravel() for run in runs])
    assert min((spikes == 1).sum(), (spikes == -1).sum(), (spikes == 0).sum()) > 300


@pytest.mark.parametrize("name", GATE_MUTANTS)
def test_plain_integers_catch_every_mutant(name, monkeypatch):
    monkeypatch.setattr(integer, *GATE_MUTANTS[name])
    for case in CASES:
        run = integer.run(case.graph, case.inputs)
        seen, saturated = pure_int.run(case.graph, case.inputs)
        if run.products["gate"].tolist() != seen["gate"] or run.saturations != saturated:
            return
    pytest.fail(f"no case notices the mutant {name!r}")


# ---- the table ---------------------------------------------------------------------------------------


def test_every_activation_has_a_table():
    assert set(SHARES) == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", SHARES)
def test_the_table_is_the_activation(activation):
    """Through the integers' own rounding, over the whole range and beyond it, small arguments included."""
    table = share_table(activation)
    assert len(table) == LARGEST_TABLE
    assert (table[0], table[LARGEST_TABLE // 2], table[-1]) == (0, SHARE_MAX // 2, SHARE_MAX)
    x = torch.cat([torch.linspace(-40, 40, 80_001), torch.logspace(-6, 1, 1001)]).double()
    place = integer.toward_zero(np.round(x.numpy() / TABLE_STEP * 2**20).astype(np.int64), np.int64(20))
    found = x.numpy() * integer.look_up(table, place) / SHARE_MAX
    exact = ACTIVATIONS[activation](x).numpy()
    error = np.abs(found - exact)
    assert error.max() < 0.002
    # a share is off by half a step, or a whole one at zero where it moves half as fast, and by rounding
    inside = np.abs(x.numpy()) < 16 - TABLE_STEP
    assert (error <= np.abs(exact) / 250 + np.abs(x.numpy()) / SHARE_MAX)[inside].all()


# ---- quantization ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("gated", [{}, {"bias": False, "level": 0.05}])
def test_products_are_those_of_the_floats(tau, gated):
    network, x = ffn(tau=tau, **gated).double(), sample().double()
    quantized = quantize(extract(network, 12), x.numpy().reshape(-1, 12), 1)
    spikes = simulate(network, x).spikes["ffn_in"]
    train = np.moveaxis(spikes, 1, 2).reshape(-1, 5, 12)  # of the floats, so that only the gate rounds
    stage = quantized.graph.stages[1]
    products, clipped = integer.run_stage(quantized.graph, stage, train.astype(np.int64))
    first, gate, *_ = network.layers.values()
    exact = gate(first.decode(torch.tensor(train).transpose(0, 1).double())).detach().numpy()
    found = products[:, 0] * quantized.units["gated"]
    assert clipped == 0
    assert np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)) < 0.03
    if "level" in gated:
        same = (found == 0) == (exact == 0)
        assert (exact == 0).mean() > 0.1
        assert same.mean() > 0.95


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_units_follow_the_weights(scale):
    """The other factor, and the levels of the neurons behind it, times anything: the same integers."""
    network, x = ffn().double(), sample().double().numpy().reshape(-1, 12)
    plain = quantize(extract(network, 12), x, 1).graph
    with torch.no_grad():
        network["gated"].up.weight[3] *= scale
        network["gated"].up.bias[3] *= scale
        network["ffn_out"].log_threshold[3] += np.log(scale)
        network["down_proj"].weight[:, 3] /= scale
    scaled = quantize(extract(network, 12), x, 1).graph
    inputs = quantize_inputs(x, 0.02)
    ours, theirs = integer.run(plain, inputs), integer.run(scaled, inputs)
    assert np.array_equal(ours.products["gated"], theirs.products["gated"])
    assert (ours.spikes["ffn_out"] != theirs.spikes["ffn_out"]).mean() < 0.002


def test_rows_of_every_size_survive(tmp_path):
    network = ffn()
    gated, neurons = network["gated"], network["ffn_out"]
    with torch.no_grad():
        gated.gate.weight[0] = 0  # an argument that is all bias
        gated.gate.bias[0] = 0.3
        gated.up.weight[1] = 0  # a factor that is all bias
        gated.up.bias[1] = -2.0
        gated.gate.weight[2] = gated.gate.bias[2] = 0  # nothing
        gated.gate.weight[3] *= 1e4  # an argument far beyond the table
        gated.gate.weight[4] *= 1e-4
        gated.gate.bias[4] *= 1e-4
        neurons.log_threshold[5] = 40.0  # never fires
        neurons.log_threshold[6] = -40.0  # fires whatever comes
    x = sample(B=40)
    bundle = export(network, x, tmp_path / "bundle")
    assert bundle.report("certificate")["safe"] is True
    products = bundle.golden.products["gated"] * np.array(bundle.manifest["stages"][1]["unit"])
    first, gate, *_ = network.layers.values()
    exact = gate(first.decode(first.encode(x.transpose(0, 1).reshape(-1, 12)))).detach().numpy()
    assert not products[:, 2].any()
    for row in (0, 1, 3, 4):
        error = np.sqrt(np.mean((products[:, row] - exact[:, row]) ** 2) / np.mean(exact[:, row] ** 2))
        assert error < 0.1, row
    spikes = bundle.golden.spikes["ffn_out"]
    assert not spikes[..., 5].any()
    assert (spikes[..., 6] != 0).mean() > 0.9


def test_features_on_the_input_have_scales_of_their_own(tmp_path):
    network, x = ffn(), sample()
    plain = export(network, x, tmp_path / "plain").golden.spikes
    x[..., 0] *= 1000
    with torch.no_grad():
        network["ffn_in"].log_threshold[0] += np.log(1000)
        network["gated"].gate.weight[:, 0] /= 1000
        network["gated"].up.weight[:, 0] /= 1000
    bundle = export(network, x, tmp_path / "bundle")
    assert bundle.input_scale.shape == (12,)
    assert bundle.input_scale[0] == pytest.approx(x[..., 0].abs().max().item() / 127)
    for name, spikes in bundle.golden.spikes.items():
        assert (spikes != plain[name]).mean() < 0.002


# ---- the certificate ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    arrival=st.sampled_from(["once", "sum", "horner", "power"]),
    steps=st.integers(1, 8),
)
def test_no_product_exceeds_its_bound(seed, arrival, steps):
    rng = np.random.default_rng(seed)
    gate = Gate(
        rng.integers(0, 2**24, 3), rng.integers(0, 40, 3), rng.integers(0, 40, 3), np.zeros(3, int),
        rng.integers(0, SHARE_MAX + 1, 21),
    )  # fmt: skip
    weight, bias = rng.integers(-127, 128, (6, 4)), rng.integers(-1000, 1001, 6)
    stage = Stage("g", "g", "gate", arrival, weight, bias, NONE, NONE, int(rng.integers(0, 6)), gate=gate)
    largest = 127 if arrival == "once" else 1
    worst = np.sign(weight)[:, None, :] * largest
    train = np.concatenate([worst, -worst]).repeat(1 if arrival == "once" else steps, axis=1)
    products, clipped = integer.run_stage(IntegerGraph(steps, (stage,)), stage, train)
    bound = product_bound(stage, steps)
    assert (np.abs(products[:, 0]) <= np.minimum(bound, STATE_MAX)).all()
    row = certify_stage(stage, steps, 1)
    assert row["product_bound"] == bound.max()
    assert row["safe"] == bool((excess(stage, steps, 1) <= 1).all())
    if row["safe"]:
        assert clipped == 0
        assert row["saturation"] == "impossible"


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_what_is_exported_is_certified(tau, steps, tmp_path):
    bundle = export(ffn(tau=tau, steps=steps), sample(), tmp_path / "bundle")
    gated, behind = bundle.report("certificate")["stages"][1:3]
    assert gated["saturation"] == "impossible"
    assert STATE_MAX / 4 < gated["product_bound"] <= STATE_MAX
    assert behind["saturation"] == ("impossible" if tau >= 1 or steps == 1 else "harmless")
    assert bundle.golden.saturations["gated"] == 0
    assert bundle.golden.products["gated"].any()
    finer = replace(bundle.graph.stages[1].gate, product_shift=bundle.graph.stages[1].gate.product_shift - 1)
    assert not certify_stage(replace(bundle.graph.stages[1], gate=finer), steps, 1)["safe"]


# ---- export and its reports --------------------------------------------------------------------------


def test_realistic_width(tmp_path):
    bundle = export(ffn(D=64, F=160, steps=6), sample(D=64), tmp_path / "bundle")
    assert verify(bundle.path, simulator="integer").ok
    drift = bundle.report("drift")
    assert [row["name"] for row in drift["layers"]] == ["ffn_in", "ffn_out"]
    # most slots that differ are last digits, worth little: the output shows it
    assert all(row["teacher_forced"] < 0.08 and row["end_to_end"] < 0.15 for row in drift["layers"])
    assert drift["output"]["rms_error"] < 0.05 * drift["output"]["rms"]
    assert bundle.report("placement")["fits"] is True


@pytest.mark.parametrize("first", [ATMN, TMN, LIF])
def test_senders_of_every_kind(first, tmp_path):
    bundle = export(ffn(neuron=first), sample(), tmp_path / "bundle")
    assert bundle.golden.spikes["ffn_out"].any()
    output = bundle.report("drift")["output"]
    assert output["rms_error"] < 0.06 * output["rms"]


def test_a_gate_on_the_input_itself(tmp_path):
    network = Network({"gated": GatedLinear(12, 9), "own": ATMN(9, threshold=0.1), "out": nn.Linear(9, 2)})
    bundle = export(network, sample(), tmp_path / "bundle")
    assert [stage.arrival for stage in bundle.graph.stages] == ["once", "direct", "horner"]
    assert bundle.report("drift")["layers"][0]["end_to_end"] < 0.05
    assert bundle.golden.spikes["own"].any()


def test_refusals_name_the_layer_and_what_to_do(tmp_path):
    class Other(GatedLinear):
        pass

    networks = {
        "lif: follows gated, whose products only an ATMN takes": {"gated": GatedLinear(12, 3), "lif": LIF(3)},
        "out: follows gated, whose products": {
            "a": ATMN(12), "gated": GatedLinear(12, 3), "out": nn.Linear(3, 2),
        },
        "gated: is last, and only an ATMN takes its products": {"a": ATMN(12), "gated": GatedLinear(12, 3)},
        "gated: follows fc with no neuron between; merge fc into both maps": {
            "fc": nn.Linear(12, 12), "gated": GatedLinear(12, 3), "a": ATMN(3),
        },
        "again: follows gated, whose products": {
            "a": ATMN(12), "gated": GatedLinear(12, 3), "again": GatedLinear(3, 3), "b": ATMN(3),
        },
        "other: Other has no exact form": {"a": ATMN(12), "other": Other(12, 3), "fc": nn.Linear(3, 3)},
    }  # fmt: skip
    for told, layers in networks.items():
        with pytest.raises(ExportError) as caught:
            export(Network(layers), sample(), tmp_path / "bundle")
        assert [refusal for refusal in caught.value.refusals if refusal.startswith(told)], told
        assert len(caught.value.refusals) == 1, caught.value.refusals
    assert not (tmp_path / "bundle").exists()


def test_exact_round_trip(tmp_path):
    bundle = export(ffn(level=0.05), sample(), tmp_path / "bundle")
    again = load(bundle.path)
    for ours, theirs in zip(bundle.graph.stages, again.graph.stages, strict=True):
        assert (ours.neurons, ours.inputs, ours.kind) == (theirs.neurons, theirs.inputs, theirs.kind)
    run = integer.run(again.graph, again.inputs)
    assert np.array_equal(run.products["gated"], bundle.golden.products["gated"])
    verification = verify(bundle.path, simulator="integer")
    assert verification.products == 40 * 30
    assert "1200 products" in verification.text()
    with np.load(bundle.path / "tensors.npz", allow_pickle=False) as file:
        assert all(file[key].dtype.kind == "i" for key in file.files)
        assert file["gated/table"].shape == (LARGEST_TABLE,)
        assert file["gated/weight"].dtype == np.int8


def test_counts_are_those_of_the_golden_spikes(tmp_path):
    bundle = export(ffn(bias=False), sample(), tmp_path / "bundle")
    counts = bundle.report("counts")
    weight = bundle.graph.stages[1].weight
    assert len(weight) == 60
    met = np.count_nonzero(bundle.golden.spikes["ffn_in"], axis=(0, 1))
    gated = counts["layers"]["gated"]
    assert gated["ac"] == int(met @ np.count_nonzero(weight, axis=0)) > 0
    assert (gated["mac"], gated["dense_ac"], gated["baseline_mac"]) == (0, 40 * 5 * 720, 40 * 720)
    assert (gated["mul"], gated["add"]) == (3 * 40 * 30, 0)
    assert counts["unattributed"] == {"table look-up of gated": 40 * 30}
    assert "ffn_out.input" not in counts["layers"]
    assert counts["layers"]["ffn_out"]["spikes"] == np.count_nonzero(bundle.golden.spikes["ffn_out"])
