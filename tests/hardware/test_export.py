"""Unit: what export refuses, what quantization keeps, and how far the integers are from the floats."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.errors import ExportError, FileError, InputError, NonFiniteError, ShapeError
from marsnn.gated import GatedLinear
from marsnn.hardware import export, integer, verify
from marsnn.hardware.exporter import in_order, told_itself
from marsnn.hardware.graph import extract
from marsnn.hardware.quantize import input_scale, quantize
from marsnn.hardware.stages import INPUT
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, TMN, IntegerLIF, LeakyIntegrator, Recurrent, get, names
from marsnn.simulator import simulate
from marsnn.ssm import S4D, SSD, SSDCore
from tests.hardware.boundaries import loop_case
from tests.hardware.networks import BUILD, build


def network(tau=0.5, steps=4, **settings):
    torch.manual_seed(0)
    return Network(
        [
            nn.Linear(6, 10),
            ATMN(10, steps, tau=tau, threshold=0.5, **settings),
            nn.Linear(10, 8),
            ATMN(8, steps, tau=tau, threshold=0.3, **settings),
            nn.Linear(8, 3),
        ]
    )


def sample(L=3, B=4, D=6, seed=0):
    return torch.randn(L, B, D, generator=torch.Generator().manual_seed(seed))


# ---- refusals ----------------------------------------------------------------------------------------


def test_all_refusals_at_once_each_with_its_layer(tmp_path):
    net = Network(
        {
            "first": nn.Linear(6, 6),
            "second": nn.Linear(6, 6),
            "odd": ATMN(6, tau=0.7),
            "act": nn.ReLU(),
            "leaky": LeakyIntegrator(6),
            "last": nn.Linear(6, 6),
            "large": IntegerLIF(6, max_level=200),
        },
        skips={"leaky": "odd"},
    )
    with pytest.raises(ExportError) as caught:
        export(net, sample(B=1), tmp_path / "bundle")
    told = [refusal.split(": ")[0] for refusal in caught.value.refusals]
    assert told == ["second", "odd", "act", "leaky", "large"]
    told = "\n".join(caught.value.refusals)
    for expected in (
        "second: follows first with no neuron between; merge the two into one Linear",
        "odd: tau = 0.7; a chip can shift only for tau = 0.5, 1, 2",
        "act: ReLU has no exact integer form; mapped are",
        "leaky: LeakyIntegrator has no exact integer form; mapped are",
        "large: spikes up to 200; use max_level of at most 127",
    ):
        assert expected in told
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("5 parts of this network can't be exported exactly: ")
    assert not (tmp_path / "bundle").exists()


def core(**settings):
    return SSDCore(heads=2, head_dim=4, state_size=4, **settings)


def spiking(inputs, outputs):
    return {"atmn": ATMN(inputs), "fc": nn.Linear(inputs, outputs)}


REFUSED = {
    "two Linear": (
        {**spiking(6, 6), "again": nn.Linear(6, 3)},
        (6,),
        "again: follows fc with no neuron between",
    ),
    "a Linear between two": (
        {
            "a": ATMN(6),
            "fc": nn.Linear(6, 6),
            "idle": nn.Identity(),
            "off": nn.Dropout(),
            "b": nn.Linear(6, 2),
        },
        (6,),
        "b: follows fc with no neuron",
    ),
    "a recurrence of graded values": (
        {"fc": nn.Linear(6, 4), "own": Recurrent(LeakyIntegrator(4)), "out": nn.Linear(4, 2), "a": ATMN(2)},
        (6,),
        "own: LeakyIntegrator has no exact integer form",
    ),
    "a recurrence along the lines of an image": (
        {"conv": nn.Conv1d(1, 3, 3), "own": Recurrent(LIF(4)), "flat": nn.Flatten(), "out": nn.Linear(12, 2)},
        (1, 6),
        "own: its features are axis -1 of [3, 4]; put a Flatten before it",
    ),
    "a Linear behind S4D": (
        {"fc": nn.Linear(6, 4), "s4d": S4D(4, state_size=4), "out": nn.Linear(4, 2), "a": ATMN(2)},
        (6,),
        "out: takes the graded values of s4d, and a chip's weights meet spikes; put a neuron between them",
    ),
    "a Linear behind a norm": (
        {"norm": nn.LayerNorm(6), "out": nn.Linear(6, 2), "a": ATMN(2)},
        (6,),
        "out: takes the graded values of norm",
    ),
    "a Linear behind a gate": (
        {"a": ATMN(6), "gated": GatedLinear(6, 4), "out": nn.Linear(4, 2)},
        (6,),
        "out: takes the graded values of gated",
    ),
    "a gate behind a gate": (
        {"a": ATMN(6), "gated": GatedLinear(6, 4), "again": GatedLinear(4, 2)},
        (6,),
        "again.gate: takes the graded values of gated",
    ),
    "a gate behind a Linear": (
        {**spiking(6, 6), "gated": GatedLinear(6, 4), "b": ATMN(4)},
        (6,),
        "gated.gate: follows fc with no neuron",
    ),
    "an SSD with its projections": (
        {"a": ATMN(6), "ssd": SSD(6, heads=2, head_dim=4, state_size=4)},
        (6,),
        "ssd: its out_proj takes graded values",
    ),
    "an SSDCore with SiLU": (
        {**spiking(6, core().inputs), "core": core(activation="silu")},
        (6,),
        "core: activation = 'silu'; only products",
    ),
    "an SSDCore with features": (
        {**spiking(6, core().inputs), "core": core(feature_map="l2")},
        (6,),
        "core: feature_map = 'l2'; only",
    ),
    "an SSDCore that divides": (
        {**spiking(6, core().inputs), "core": core(feature_map="softmax", normalize=True)},
        (6,),
        "core: feature_map = 'softmax', normalize = True; only",
    ),
    "an SSDCore without a Linear": (
        {"a": ATMN(core().inputs), "core": core()},
        (core().inputs,),
        "core: wants a Linear to ",
    ),
    "S4D with a gate without a Linear": (
        {"a": ATMN(8), "s4d": S4D(4, state_size=4, gate=True), "b": ATMN(4)},
        (8,),
        "s4d: wants a Linear to 8 features before it, for its several inputs",
    ),
    "another class of gate": (
        {"a": ATMN(6), "other": type("Other", (GatedLinear,), {})(6, 4), "b": ATMN(4)},
        (6,),
        "other: Other has no exact integer form",
    ),
    "another class of neuron": (
        {"fc": nn.Linear(6, 4), "own": type("Other", (TMN,), {})(4)},
        (6,),
        "own: Other has no exact integer form",
    ),
    "a norm over pictures": (
        {"norm": nn.LayerNorm((2, 6)), "a": ATMN(2, feature_dim=-2)},
        (2, 6),
        "norm: normalises [2, 6] of [2, 6]",
    ),
    "a norm over a part": (
        {"norm": nn.RMSNorm(6), "a": ATMN(6)},
        (2, 6),
        "norm: normalises [6] of [2, 6]; only whole vectors",
    ),
    "a Linear on pictures": (
        {"fc": nn.Linear(6, 4), "a": ATMN(4)},
        (2, 6),
        "fc: a Linear on [2, 6]; put a Flatten",
    ),
    "two convolutions": (
        {"one": nn.Conv1d(2, 3, 3), "two": nn.Conv1d(3, 2, 3), "a": ATMN(2, feature_dim=-2)},
        (2, 9),
        "two: follows one with no neuron between; merge the two into one convolution",
    ),
    "a Linear behind a convolution": (
        {"conv": nn.Conv1d(2, 3, 3), "flat": nn.Flatten(), "fc": nn.Linear(21, 4), "a": ATMN(4)},
        (2, 9),
        "fc: follows conv with no neuron between",
    ),
    "circular padding": (
        {"conv": nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), "a": ATMN(3, feature_dim=-2)},
        (2, 9),
        "conv: padding_mode = 'circular'; only zeros",
    ),
    "uneven padding": (
        {"conv": nn.Conv1d(2, 3, 4, padding="same"), "a": ATMN(3, feature_dim=-2)},
        (2, 9),
        'conv: padding = "same"',
    ),
    "a pool that is cut": (
        {"pool": nn.AvgPool1d(2, ceil_mode=True), "a": ATMN(2, feature_dim=-2)},
        (2, 9),
        "pool: windows of an average",
    ),
    "a pool of other weights at the border": (
        {"pool": nn.AvgPool1d(3, padding=1, count_include_pad=False), "a": ATMN(2, feature_dim=-2)},
        (2, 9),
        "pool: windows of an average that are cut at the border",
    ),
    "padding behind a kernel": (
        {
            "conv": nn.Conv1d(2, 3, 3, padding=1),
            "pool": nn.AvgPool1d(3, stride=1, padding=1),
            "a": ATMN(3, feature_dim=-2),
        },
        (2, 9),
        "pool: pads what a kernel before it has made",
    ),
    "the largest of a window": (
        {"pool": nn.MaxPool1d(2), "a": ATMN(2, feature_dim=-2)},
        (2, 8),
        "pool: MaxPool1d has no exact integer form",
    ),
    "thresholds within a channel": (
        {
            "a": ATMN(8, threshold=torch.rand(8) + 0.5),
            "conv": nn.Conv1d(2, 3, 3),
            "b": ATMN(3, feature_dim=-2),
        },
        (2, 8),
        "a: thresholds differ within a channel",
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_form_is_refused_by_name(name, tmp_path):
    layers, shape, told = REFUSED[name]
    with pytest.raises(ExportError) as caught:
        export(Network(layers), torch.randn(2, 3, *shape), tmp_path / "bundle")
    assert caught.value.refusals[0].startswith(told)
    layer = told.split(":")[0].split(".")[0]  # a gate's two maps have the same reason
    assert {refusal.split(":")[0].split(".")[0] for refusal in caught.value.refusals} == {layer}
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh()])
def test_activations_are_refused(layer, tmp_path):
    with pytest.raises(ExportError, match=f"act: {type(layer).__name__} has no exact integer form"):
        export(Network({**spiking(6, 4), "act": layer, "b": ATMN(4)}), sample(), tmp_path / "bundle")


MAPPED = ("ATMN", "TMN", "LIF", "PLIF", "CubaLIF", "ALIF", "IntegerLIF", "TernaryLIF")


@pytest.mark.parametrize("name", names())
def test_each_neuron_is_mapped_or_refused_by_name(name, tmp_path):
    """`tests/hardware/test_lava_parity.py` shows that those that are mapped are mapped rightly."""
    torch.manual_seed(0)
    net = Network({"fc": nn.Linear(6, 5), "own": get(name)(5, steps=4), "out": nn.Linear(5, 2)})
    with torch.no_grad():
        net["fc"].weight *= 4
    if name in MAPPED:
        bundle = export(net, sample(), tmp_path / "bundle")
        assert bundle.golden.spikes["own"].any()
        assert bundle.report("drift")["layers"][0]["end_to_end"] < 0.05
        assert verify(bundle.path, simulator="integer").ok
    else:
        told = f"own: {name} has no exact integer form; mapped are .*{', '.join(MAPPED[:3])}"
        with pytest.raises(ExportError, match=told):
            export(net, sample(), tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("carry", ["token", "sequence"])
@pytest.mark.parametrize("image", [False, True])
def test_recurrent_connections_are_mapped(carry, image, tmp_path):
    """The integers spike as the floats do, which spike elsewhere without what comes back."""
    torch.manual_seed(0)
    settings = {"threshold": 0.5, "beta": 0.75, "carry": carry}
    own = Recurrent(LIF(4, 5, feature_dim=-2, **settings) if image else LIF(12, 5, **settings), bias=True)
    with torch.no_grad():
        own.recurrent.weight *= 6 if image else 3
    first = nn.Conv1d(1, 4, 3) if image else nn.Linear(6, 12)
    behind = [nn.Flatten(), nn.Linear(16, 3)] if image else [nn.Linear(12, 3)]
    net = Network({"in": first, "own": own, **{f"out{k}": layer for k, layer in enumerate(behind)}})
    x = 2 * torch.randn(3, 20, *((1, 6) if image else (6,)))
    bundle = export(net, x, tmp_path / "bundle")
    floats = in_order(np.swapaxes(simulate(net, x).spikes["own"], 1, 2)).reshape(
        bundle.golden.spikes["own"].shape
    )
    assert (bundle.golden.spikes["own"] != floats).mean() < 0.02
    own.recurrent.weight.data.zero_()
    alone = simulate(net, x).spikes["own"]
    alone = in_order(np.swapaxes(alone, 1, 2)).reshape(floats.shape)
    assert (alone != floats).mean() > 0.05
    (loop,) = bundle.graph["own"].loops
    assert (loop.form, loop.arrival) == ("conv" if image else "dense", "stream")
    assert verify(bundle.path, simulator="integer").ok


def test_a_stage_that_is_told_its_own_spikes_sends_them_again():
    """What the drift's teacher forcing rests on; told other ones it sends others."""
    graph = loop_case().graph
    inputs = loop_case().inputs
    run = integer.run(graph, inputs)
    changed = 0
    for stage in graph.stages:
        own = run.spikes[stage.name].astype(np.int64)
        again, _ = integer.run_stage(graph, *told_itself(graph, stage, {INPUT: inputs}, own))
        assert np.array_equal(again, own), stage.name
        others, _ = integer.run_stage(graph, *told_itself(graph, stage, {INPUT: inputs}, np.ones_like(own)))
        changed += not np.array_equal(others, own)
        assert np.array_equal(others[::2, 0], own[::2, 0])  # before the first step there is nothing to tell
    assert changed == len(graph.stages)


def test_those_that_are_mapped_are_registered():
    assert set(MAPPED) <= set(names())


def test_tmn_is_exported_as_the_atmn_that_it_is(tmp_path):
    bundles = []
    for make in (
        lambda: TMN(10, threshold=0.5),
        lambda: ATMN(10, tau=0.5, fire_at=0.5, threshold=0.5, learn_threshold=False),
    ):
        torch.manual_seed(0)
        net = Network({"fc": nn.Linear(6, 10), "own": make(), "out": nn.Linear(10, 3)})
        bundles.append(export(net, sample(), tmp_path / str(len(bundles))))
    tmn, atmn = bundles
    assert np.array_equal(tmn.golden.spikes["own"], atmn.golden.spikes["own"])
    assert np.array_equal(tmn.outputs(), atmn.outputs())
    for ours, theirs in zip(tmn.graph.stages, atmn.graph.stages, strict=True):
        assert ours.arrays.keys() == theirs.arrays.keys()
        assert all(np.array_equal(array, theirs.arrays[name]) for name, array in ours.arrays.items())
        for one, other in zip(ours.synapses, theirs.synapses, strict=True):
            for field in fields(one):
                if field.name not in ("name", "source"):
                    assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_a_network_without_neurons_is_refused(tmp_path):
    with pytest.raises(ExportError, match="no spiking neuron"):
        export(Network([nn.Linear(6, 3)]), sample(), tmp_path / "bundle")


def test_too_deep_a_sum_is_refused_with_a_remedy(tmp_path):
    net = Network([nn.Linear(6, 4), ATMN(4, steps=24, tau=0.5), nn.Linear(4, 2)])
    with pytest.raises(ExportError, match=r"atmn1: 24 steps .* use at most 23"):
        export(net, sample(), tmp_path / "bundle")
    net = Network([nn.Linear(6, 400), ATMN(400, steps=18, tau=0.5), nn.Linear(400, 2)])
    with pytest.raises(ExportError, match=r"linear2: .* use fewer inputs or steps"):
        export(net, sample(), tmp_path / "bundle")
    layers = [nn.Linear(700, 128), LIF(128, 1, carry="sequence", beta=0.99), nn.Linear(128, 10)]
    with pytest.raises(ExportError, match=r"lif1: .* fewer inputs or tokens a sample, or a smaller beta"):
        export(Network(layers), torch.rand(28, 2, 700), tmp_path / "bundle")
    with pytest.raises(ExportError, match="T = 2000 micro-steps"):
        export(Network([nn.Linear(6, 4), LIF(4, steps=2000)]), sample(), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


WIDE = {
    "mnist, T = 8": lambda: (
        [nn.Linear(784, 512), ATMN(512, 8), nn.Linear(512, 512), ATMN(512, 8), nn.Linear(512, 10)],
        torch.rand(1, 6, 784),
    ),
    "flat cifar": lambda: ([nn.Linear(3072, 64), ATMN(64), nn.Linear(64, 10)], torch.rand(1, 6, 3072)),
    "T = 10": lambda: (
        [nn.Linear(64, 128), ATMN(128, 10), nn.Linear(128, 128), ATMN(128, 10), nn.Linear(128, 10)],
        torch.rand(1, 6, 64),
    ),
    "LIF, T = 100": lambda: ([nn.Linear(4, 8), LIF(8, steps=100), nn.Linear(8, 3)], torch.rand(1, 3, 4)),
    "integrate and fire over 28 rows": lambda: (
        [nn.Linear(28, 128), LIF(128, carry="sequence", beta=1.0), nn.Linear(128, 10)],
        torch.rand(28, 2, 28),
    ),
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_networks_take_smaller_codes_instead_of_a_refusal(name, tmp_path):
    torch.manual_seed(0)
    layers, x = WIDE[name]()
    bundle = export(Network(layers), x, tmp_path / "bundle")
    certificate = bundle.report("certificate")
    assert certificate["safe"] is True
    assert all(row["weight_bits"] >= 5 for row in certificate["stages"])
    assert sum(bundle.golden.saturations.values()) == 0 or "harmless" in str(certificate)
    assert all(row["end_to_end"] < 0.15 for row in bundle.report("drift")["layers"])
    assert any(spikes.any() for spikes in bundle.golden.spikes.values())


def test_weights_too_small_to_matter_may_be_coarse(tmp_path):
    net = Network([nn.Linear(1, 1), ATMN(1, steps=1)])
    with torch.no_grad():
        net["linear1"].weight[:] = 0.0008
        net["linear1"].bias[:] = 0.9996
    x = torch.linspace(0, 1, 11).reshape(1, 11, 1)
    bundle = export(net, x, tmp_path / "bundle")
    assert bundle.report("drift")["layers"][0]["end_to_end"] <= 1 / 11


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"target": "teapot"}, InputError),
        ({"mode": "rate"}, InputError),
        ({"sample": torch.randn(4, 6)}, ShapeError),
        ({"sample": torch.full((1, 1, 6), torch.nan)}, NonFiniteError),
        ({"network": nn.Linear(6, 3)}, InputError),
    ],
)
def test_bad_arguments(tmp_path, change, error):
    arguments = {"network": network(), "sample": sample(), "path": tmp_path / "bundle"} | change
    with pytest.raises(error):
        export(**arguments)


def test_nan_weights_are_named(tmp_path):
    net = network()
    with torch.no_grad():
        net["linear2"].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"linear2\.weight"):
        export(net, sample(), tmp_path / "bundle")


def test_wrong_width_of_the_sample_names_the_layer(tmp_path):
    with pytest.raises(ShapeError, match="linear1"):
        export(network(), sample(D=5), tmp_path / "bundle")


# ---- an export that fails half-way loses nothing --------------------------------------------------------


def test_disk_full_leaves_the_old_bundle(tmp_path, monkeypatch):
    from marsnn.hardware import bundle

    export(network(), sample(), tmp_path / "bundle")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    real, written = bundle.write_text, []

    def full(path, text):
        written.append(path)
        if len(written) == 3:
            raise FileError(f"{path}: can't write: no space left on device; nothing was changed there")
        return real(path, text)

    monkeypatch.setattr(bundle, "write_text", full)
    with pytest.raises(FileError, match="no space left"):
        export(network(tau=1.0), sample(), tmp_path / "bundle")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_other_peoples_folders_are_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    with pytest.raises(FileError, match="other things in it"):
        export(network(), sample(), tmp_path / "photos")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="is a file"):
        export(network(), sample(), tmp_path / "file")
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"


# ---- quantization --------------------------------------------------------------------------------------


def test_a_network_of_small_integers_is_exact(tmp_path):
    """Weights on the grid, dyadic thresholds: the integers must give the float spikes, slot for slot."""
    torch.manual_seed(1)
    net = network(tau=0.5).double()
    with torch.no_grad():
        for layer in (net["linear1"], net["linear2"], net["linear3"]):
            layer.weight.copy_(torch.randint(-8, 9, layer.weight.shape) / 8)
            layer.weight[:, 0] = 127 / 64  # the largest of each row: 1/64 is its step
            layer.bias.copy_(torch.randint(-8, 9, layer.bias.shape) / 8)
        net["atmn1"].log_threshold.zero_()
        net["atmn2"].log_threshold.zero_()
    x = torch.randint(-16, 17, (2, 50, 6)).double() / 16
    bundle = export(net, x, tmp_path / "bundle")
    drift = bundle.report("drift")
    assert drift["input_max_error"] == 0
    assert [row["end_to_end"] for row in drift["layers"]] == [0, 0]
    assert all(row["float_spikes"] > 100 for row in drift["layers"])
    expected = simulate(net, x).output.swapaxes(0, 1).reshape(100, 3)
    np.testing.assert_allclose(bundle.outputs(), expected, atol=1e-9)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_per_channel_scales_make_rows_independent_of_their_size(tau):
    """ATMN is scale-invariant: a row, its bias and its threshold times 1000 give the same integers."""
    net = network(tau=tau).double()
    small = quantize(extract(net, (6,)), sample().double().numpy().reshape(-1, 6), 1)
    with torch.no_grad():
        net["linear1"].weight[3] *= 1000
        net["linear1"].bias[3] *= 1000
        net["atmn1"].log_threshold[3] += np.log(1000)
        net["linear2"].weight[:, 3] /= 1000
    large = quantize(extract(net, (6,)), sample().double().numpy().reshape(-1, 6), 1)
    for a, b in zip(small.graph.stages, large.graph.stages, strict=True):
        for one, other in zip(a.synapses, b.synapses, strict=True):
            assert np.array_equal(one.weight, other.weight)
        if a.kind == "atmn":
            assert np.abs(a.arrays["amplitude"] - b.arrays["amplitude"]).max() <= 1


def test_silent_and_extreme_rows_survive(tmp_path):
    net = network()
    with torch.no_grad():
        net["linear1"].weight[0] = 0  # a dead row
        net["linear1"].bias[1] = 1e4  # a row that is all bias
        net["atmn1"].log_threshold[2] = 20.0  # a neuron that never fires
        net["atmn1"].log_threshold[3] = -20.0  # one that always does
    bundle = export(net, sample(), tmp_path / "bundle")
    spikes = bundle.golden.spikes["atmn1"]
    assert not spikes[..., 2].any()
    assert (spikes[..., 3] != 0).all()
    assert (spikes[..., 1] == 1).all()


def test_a_sample_of_zeros_is_refused(tmp_path):
    with pytest.raises(InputError, match="all zeros"):
        export(network(), torch.zeros(1, 2, 6), tmp_path / "bundle")


def test_input_scale_is_exact_where_it_can_be():
    assert input_scale(np.array([[0.0, 1.0, 7 / 16]])) == 1 / 16
    assert input_scale(np.array([[0.1, -1.27]])) == pytest.approx(0.01)
    assert input_scale(np.array([[1000.0, -8.0]])) == 8.0


# ---- what the bundle says ----------------------------------------------------------------------------


def test_drift_is_reported_per_layer_and_is_not_parity(tmp_path):
    bundle = export(network(), sample(B=50), tmp_path / "bundle")
    drift = bundle.report("drift")
    assert "not parity" in drift["claim"]
    assert [row["name"] for row in drift["layers"]] == ["atmn1", "atmn2"]
    assert 0 < drift["layers"][0]["teacher_forced"] < 0.1
    assert drift["layers"][0]["teacher_forced"] == drift["layers"][0]["end_to_end"]
    assert drift["layers"][1]["end_to_end"] > 0
    assert drift["output"]["same_largest"] > 0.8


DRIFT = {
    "chain": (0.05, 0.1), "rates": (0.02, 0.01), "integers": (0.1, 0.1), "ternary": (0.03, 0.05),
    "channels": (0.03, 0.1), "skips": (0.03, 0.15), "pictures": (0.03, 0.01), "series": (0.05, 0.04),
    "s4d": (0.03, 0.05), "turned": (0.06, 0.01), "plain": (0.08, 0.01), "block": (0.06, 0.005),
    "normed": (0.01, 0.01), "direct": (0.03, 0.02), "recurrent": (0.12, 0.2),
}  # fmt: skip
"""Network -> share of spike slots that may differ from the floats', and error of the output by its size."""


def test_every_network_has_a_threshold():
    assert DRIFT.keys() == BUILD.keys()


@pytest.mark.parametrize("name", DRIFT)
def test_integers_stay_close_to_the_floats(name, tmp_path):
    slots, error = DRIFT[name]
    bundle = export(*build(name), tmp_path / "bundle")
    drift = bundle.report("drift")
    assert [row["name"] for row in drift["layers"]] == [
        s.name for s in bundle.graph.stages if s.sends == "train"
    ]
    assert all(row["end_to_end"] <= slots for row in drift["layers"])
    assert all(row["integer_spikes"] >= 20 for row in drift["layers"])
    assert drift["output"]["rms_error"] < error * drift["output"]["rms"]
    assert bundle.report("certificate")["safe"] is True
    assert verify(bundle.path, simulator="integer").ok


def test_a_network_may_end_with_neurons(tmp_path):
    bundle = export(Network([nn.Linear(6, 4), LIF(4, threshold=0.3)]), sample(), tmp_path / "bundle")
    assert bundle.golden.values == {}
    assert "output" not in bundle.report("drift")
    with pytest.raises(FileError, match="ends with neurons"):
        bundle.outputs()


def test_what_two_layers_take_is_run_once(tmp_path):
    """Of a Linear that is a skip's source: one stage, whose values two listen to."""
    net, x = build("skips")
    bundle = export(net, x, tmp_path / "bundle")
    sources = {stage.name: [each.source for each in stage.synapses] for stage in bundle.graph.stages}
    assert sources == {
        "l1": ["input"], "a1": ["l1"], "a2": ["a1", "l1"], "a3": ["a2", "a1"], "l4": ["a3"],
    }  # fmt: skip


def test_skips_equal_the_sum_in_floats(tmp_path):
    """On the grid of small integers, exactly: input around two layers, and spikes of other worth added."""
    layers = {"a": ATMN(4, threshold=1.0), "b": ATMN(4, tau=1.0, threshold=1.0), "out": nn.Identity()}
    net = Network(layers, skips={"out": ["input", "a"]}).double()
    x = torch.randint(-64, 65, (3, 5, 4)).double() / 16
    bundle = export(net, x, tmp_path / "bundle")
    expected = simulate(net, x).output.swapaxes(0, 1).reshape(15, 4)
    assert bundle.graph.last.kind == "sum"
    assert [synapse.arrival for synapse in bundle.graph.last.synapses] == ["sum", "value", "horner"]
    np.testing.assert_allclose(bundle.outputs(), expected, atol=1e-9)
    assert np.abs(expected).max() > 4


@pytest.mark.parametrize(("shape", "dim"), [((3, 5), -2), ((3, 4, 5), -3), ((4, 3), -1), ((3,), -1)])
def test_settings_go_along_the_feature_axis(shape, dim, tmp_path):
    """Thresholds of features that are not the last axis: the spikes are the floats', on small integers."""
    own = ATMN(3, threshold=torch.tensor([0.5, 1.0, 2.0]), feature_dim=dim)
    # odd numbers of 1/32, which no doubling brings to a threshold: its logarithm is stored, so it isn't exact
    x = (2 * torch.randint(-32, 32, (2, 6, *shape)) + 1).double() / 32
    net = Network({"own": own}).double()
    bundle = export(net, x, tmp_path / "bundle")
    assert bundle.report("drift")["layers"][0]["end_to_end"] == 0
    assert bundle.graph["own"].shape == shape
    assert (bundle.golden.spikes["own"] != 0).mean() > 0.2
    alike = np.moveaxis(bundle.graph["own"].arrays["amplitude"].reshape(shape), dim, 0).reshape(3, -1)
    assert (alike == alike[:, :1]).all()
    assert len(set(alike[:, 0])) == 3
