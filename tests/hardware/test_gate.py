"""Gates without Lava: by hand, the table, quantization, export and its reports."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.errors import ExportError
from marsnn.gated import ACTIVATIONS, GatedLinear
from marsnn.hardware import export, integer, load, verify
from marsnn.hardware.arithmetic import look_up, toward_zero
from marsnn.hardware.certificate import certify
from marsnn.hardware.graph import extract
from marsnn.hardware.quantize import SHARES, TABLE_STEP, quantize, quantize_inputs, share_table
from marsnn.hardware.stages import (
    INPUT,
    LARGEST_TABLE,
    SHARE_MAX,
    STATE_MAX,
    WIDE_INPUT_MAX,
    IntegerGraph,
    Stage,
    Synapse,
)
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, TMN, IntegerLIF
from marsnn.simulator import simulate


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


def gate_of(rows, table, argument, factor):
    """Values of gates by (multiplier, its shift, product's shift, level) for two sums that are all bias."""
    names = ("multiplier", "argument_shift", "product_shift", "level")
    arrays = {name: np.array(each) for name, each in zip(names, zip(*rows, strict=True), strict=True)}
    size = len(rows)
    nothing = np.zeros((size, 1), dtype=np.int64)
    synapses = tuple(Synapse(port, INPUT, port, "dense", "value", nothing) for port in ("argument", "factor"))
    bias = {"argument": np.array(argument), "factor": np.array(factor)}
    stage = Stage("gate", "gate", (size,), synapses, bias, {**arrays, "table": np.array(table)})
    run = integer.run(IntegerGraph(1, (1,), (stage,)), np.ones((1, 1), dtype=np.int64))
    return run.values["gate"].tolist()[0], run.saturations["gate"]


TABLE = [0, 8192, 16384, 24576, SHARE_MAX]


def test_by_hand():
    # places: 21 * 3 >> 4 = 63 / 16 = 3.9 -> 3, beyond the middle + 2: the last entry, 2^15: 21 * 9 = 189
    #         -21 * 3 >> 4 = -3 -> the first entry, 0: nothing
    #         -9 * 3 >> 4 = -27 / 16 -> -1 (a floor gives -2): entry 1, 8192 = a quarter: -9 / 4 * 9 = -20.25
    assert gate_of([(3, 4, 15, 0)] * 3, TABLE, [21, -21, -9], [9, 9, 9]) == ([189, 0, -20], 0)
    # the same with a level of 20, and of 21
    for level, expected in ((20, -20), (21, 0)):
        assert gate_of([(3, 4, 15, level)], TABLE, [-9], [9]) == ([expected], 0)


def test_the_largest_product_is_exact_and_clipped():
    found, clipped = gate_of(
        [(0, 0, 15 + s, 0) for s in (22, 23, 24)], [SHARE_MAX], [STATE_MAX] * 3, [-STATE_MAX] * 3
    )
    assert found == [-STATE_MAX, -(STATE_MAX**2 >> 23), -(STATE_MAX**2 >> 24)]
    assert clipped == 1


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
    place = toward_zero(np.round(x.numpy() / TABLE_STEP * 2**20).astype(np.int64), np.int64(20))
    found = x.numpy() * look_up(table, place) / SHARE_MAX
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
    quantized = quantize(extract(network, (12,)), x.numpy().reshape(-1, 12), 1)
    spikes = simulate(network, x).spikes["ffn_in"]
    train = np.moveaxis(spikes, 1, 2).reshape(-1, 5, 12)  # of the floats, so that only the gate rounds
    stage = quantized.graph["gated"]
    products, clipped = integer.run_stage(quantized.graph, stage, {"ffn_in": train.astype(np.int64)})
    first, gate, *_ = network.layers.values()
    exact = gate(first.decode(torch.tensor(train).transpose(0, 1).double())).detach().numpy()
    found = products * quantized.units["gated"]
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
    plain = quantize(extract(network, (12,)), x, 1).graph
    with torch.no_grad():
        network["gated"].up.weight[3] *= scale
        network["gated"].up.bias[3] *= scale
        network["ffn_out"].log_threshold[3] += np.log(scale)
        network["down_proj"].weight[:, 3] /= scale
    scaled = quantize(extract(network, (12,)), x, 1).graph
    inputs = quantize_inputs(x, 0.02)
    ours, theirs = integer.run(plain, inputs), integer.run(scaled, inputs)
    assert np.array_equal(ours.values["gated"], theirs.values["gated"])
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
    products = bundle.golden.values["gated"] * np.array(bundle.manifest["stages"][1]["unit"])
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
    assert bundle.input_scale[0] == pytest.approx(x[..., 0].abs().max().item() / WIDE_INPUT_MAX)
    for name, spikes in bundle.golden.spikes.items():
        assert (spikes != plain[name]).mean() < 0.002


# ---- the certificate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_what_is_exported_is_certified(tau, steps, tmp_path):
    bundle = export(ffn(tau=tau, steps=steps), sample(), tmp_path / "bundle")
    gated, behind = bundle.report("certificate")["stages"][1:3]
    assert gated["saturation"] == "impossible"
    assert STATE_MAX / 4 < gated["inside"]["product"] <= STATE_MAX
    assert gated["arrivals"].keys() == {"gated.gate", "gated.up"}
    assert behind["saturation"] == ("impossible" if tau >= 1 or steps == 1 else "harmless")
    assert bundle.golden.saturations["gated"] == 0
    assert bundle.golden.values["gated"].any()
    graph, stage = bundle.graph, bundle.graph["gated"]
    finer = {**stage.arrays, "product_shift": stage.arrays["product_shift"] - 1}
    stages = tuple(replace(each, arrays=finer) if each is stage else each for each in graph.stages)
    unsafe = [row["name"] for row in certify(replace(graph, stages=stages))["stages"] if not row["safe"]]
    assert unsafe[0] == "gated"


# ---- export and its reports --------------------------------------------------------------------------


def test_realistic_width(tmp_path):
    bundle = export(ffn(D=64, F=160, steps=6), sample(D=64), tmp_path / "bundle")
    assert verify(bundle.path, simulator="integer").ok
    drift = bundle.report("drift")
    assert [row["name"] for row in drift["layers"]] == ["ffn_in", "ffn_out"]
    # most slots that differ are last digits, worth little: the output shows it
    assert all(row["teacher_forced"] < 0.08 and row["end_to_end"] < 0.15 for row in drift["layers"])
    assert drift["output"]["rms_error"] < 0.05 * drift["output"]["rms"]


@pytest.mark.parametrize("first", [ATMN, TMN, LIF])
def test_senders_of_every_kind(first, tmp_path):
    bundle = export(ffn(neuron=first), sample(), tmp_path / "bundle")
    assert bundle.golden.spikes["ffn_out"].any()
    output = bundle.report("drift")["output"]
    assert output["rms_error"] < 0.08 * output["rms"]


def test_a_gate_on_the_input_itself(tmp_path):
    network = Network({"gated": GatedLinear(12, 9), "own": ATMN(9, threshold=0.1), "out": nn.Linear(9, 2)})
    bundle = export(network, sample(), tmp_path / "bundle")
    arrivals = [[each.arrival for each in stage.synapses] for stage in bundle.graph.stages]
    assert arrivals == [["value", "value"], ["value"], ["horner"]]
    assert bundle.report("drift")["layers"][0]["end_to_end"] < 0.05
    assert bundle.golden.spikes["own"].any()


@pytest.mark.parametrize("behind", [LIF, IntegerLIF, None])
def test_what_takes_its_products(behind, tmp_path):
    """Neurons that hold the product as a current, or nothing: then the products are the output."""
    layers = {"a": ATMN(12), "gated": GatedLinear(12, 9)}
    if behind is not None:
        layers["b"] = behind(9, threshold=0.1)
    bundle = export(Network(layers), sample(), tmp_path / "bundle")
    assert verify(bundle.path, simulator="integer").ok
    if behind is None:
        output = bundle.report("drift")["output"]
        assert output["rms_error"] < 0.05 * output["rms"]
        assert bundle.outputs().shape == (40, 9)
    else:
        assert [each.arrival for each in bundle.graph["b"].synapses] == ["held"]
        assert bundle.golden.spikes["b"].any()
        assert bundle.report("drift")["layers"][1]["end_to_end"] < 0.03


def test_refusals_name_the_layer_and_what_to_do(tmp_path):
    class Other(GatedLinear):
        pass

    networks = {
        "out: takes the graded values of gated": {
            "a": ATMN(12), "gated": GatedLinear(12, 3), "out": nn.Linear(3, 2),
        },
        "gated.gate: follows fc with no neuron between; merge the two into one Linear": {
            "fc": nn.Linear(12, 12), "gated": GatedLinear(12, 3), "a": ATMN(3),
        },
        "again.up: takes the graded values of gated": {
            "a": ATMN(12), "gated": GatedLinear(12, 3), "again": GatedLinear(3, 3), "b": ATMN(3),
        },
        "other: Other has no exact integer form": {
            "a": ATMN(12), "other": Other(12, 3), "fc": nn.Linear(3, 3),
        },
    }  # fmt: skip
    for told, layers in networks.items():
        with pytest.raises(ExportError) as caught:
            export(Network(layers), sample(), tmp_path / "bundle")
        assert [refusal for refusal in caught.value.refusals if refusal.startswith(told)], told
        assert len(caught.value.refusals) == 1 + ("." in told.split(":")[0]), caught.value.refusals
    assert not (tmp_path / "bundle").exists()


def test_exact_round_trip(tmp_path):
    bundle = export(ffn(level=0.05), sample(), tmp_path / "bundle")
    again = load(bundle.path)
    for ours, theirs in zip(bundle.graph.stages, again.graph.stages, strict=True):
        assert (ours.name, ours.kind, ours.shape) == (theirs.name, theirs.kind, theirs.shape)
        assert all(np.array_equal(array, theirs.arrays[name]) for name, array in ours.arrays.items())
        assert all(np.array_equal(array, theirs.bias[port]) for port, array in ours.bias.items())
        for one, other in zip(ours.synapses, theirs.synapses, strict=True):
            assert one.arrival == other.arrival
            assert np.array_equal(one.weight, other.weight)
    run = integer.run(again.graph, again.inputs)
    assert np.array_equal(run.values["gated"], bundle.golden.values["gated"])
    verification = verify(bundle.path, simulator="integer")
    assert verification.values == 40 * 30
    assert "1200 graded values" in verification.text()
    with np.load(bundle.path / "tensors.npz", allow_pickle=False) as file:
        assert all(file[key].dtype.kind == "i" for key in file.files)
        assert file["stages/gated/table"].shape == (LARGEST_TABLE,)
        assert file["synapses/gated.up/weight"].dtype == np.int8


def test_counts_are_those_of_the_golden_spikes(tmp_path):
    bundle = export(ffn(bias=False), sample(), tmp_path / "bundle")
    counts = bundle.report("counts")
    met = np.count_nonzero(bundle.golden.spikes["ffn_in"], axis=(0, 1))
    for synapse in bundle.graph["gated"].synapses:
        row = counts["layers"][synapse.name]
        assert row["ac"] == int(met @ np.count_nonzero(synapse.weight, axis=0)) > 0
        assert (row["mac"], row["dense_ac"], row["baseline_mac"]) == (0, 40 * 5 * 360, 40 * 360)
    gated = counts["layers"]["gated"]
    assert (gated["mul"], gated["add"]) == (3 * 40 * 30, 0)
    assert counts["unattributed"] == {"table look-up of gated": 40 * 30}
    assert counts["layers"]["ffn_out.gated"]["ac"] == 0
    assert counts["layers"]["ffn_out"]["spikes"] == np.count_nonzero(bundle.golden.spikes["ffn_out"])
