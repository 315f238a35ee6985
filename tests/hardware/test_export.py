"""Unit and property: what export refuses, what quantization keeps, and that the certificate is true."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from marsnn.errors import ExportError, FileError, InputError, NonFiniteError, ShapeError
from marsnn.hardware import export, integer
from marsnn.hardware.certificate import certify_stage
from marsnn.hardware.graph import extract
from marsnn.hardware.integer import STATE_MAX, UNITY, IntegerGraph, Stage
from marsnn.hardware.quantize import input_scale, quantize
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, TMN, LeakyIntegrator, get, names
from marsnn.simulator import simulate


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
            "uneven": LIF(6, beta=torch.linspace(0.1, 0.9, 6)),
            "last": nn.Linear(6, 6),
            "across": ATMN(1, feature_dim=-2),
        },
        skips={"leaky": "odd"},
    )
    with pytest.raises(ExportError) as caught:
        export(net, sample(B=1), tmp_path / "bundle")
    told = "\n".join(caught.value.refusals)
    for expected in ("leaky: a skip from odd", "second: follows first", "odd: tau = 0.7", "act: ReLU",
                     "leaky: LeakyIntegrator", "uneven: beta differs", "across: feature_dim"):  # fmt: skip
        assert expected in told
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", names())
def test_each_neuron_is_mapped_or_refused_by_name(name, tmp_path):
    """`tests/hardware/test_lava_parity.py` shows that those that are mapped are mapped rightly."""
    torch.manual_seed(0)
    net = Network({"fc": nn.Linear(6, 5), "own": get(name)(5, steps=4), "out": nn.Linear(5, 2)})
    if name in ("ATMN", "TMN", "LIF"):
        assert export(net, sample(), tmp_path / "bundle").golden.spikes["own"].any()
    else:
        with pytest.raises(ExportError, match=f"own: {name} has no integer form.* maps ATMN, TMN and LIF"):
            export(net, sample(), tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()


def test_tmn_is_exported_as_the_atmn_that_it_is(tmp_path):
    bundles = []
    for build in (
        lambda: TMN(10, threshold=0.5),
        lambda: ATMN(10, tau=0.5, fire_at=0.5, threshold=0.5, learn_threshold=False),
    ):
        torch.manual_seed(0)
        net = Network({"fc": nn.Linear(6, 10), "own": build(), "out": nn.Linear(10, 3)})
        bundles.append(export(net, sample(), tmp_path / str(len(bundles))))
    tmn, atmn = bundles
    assert np.array_equal(tmn.golden.spikes["own"], atmn.golden.spikes["own"])
    assert np.array_equal(tmn.outputs(), atmn.outputs())
    for ours, theirs in zip(tmn.graph.stages, atmn.graph.stages, strict=True):
        for field in fields(Stage):
            assert np.array_equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name


def test_a_subclass_with_another_step_is_refused(tmp_path):
    class Other(TMN):
        pass

    net = Network({"fc": nn.Linear(6, 10), "own": Other(10), "out": nn.Linear(10, 3)})
    with pytest.raises(ExportError, match="own: Other has no integer form"):
        export(net, sample(), tmp_path / "bundle")


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
        ({"mode": "count"}, InputError),
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
    small = quantize(extract(net, 6), sample().double().numpy().reshape(-1, 6), 1)
    with torch.no_grad():
        net["linear1"].weight[3] *= 1000
        net["linear1"].bias[3] *= 1000
        net["atmn1"].log_threshold[3] += np.log(1000)
        net["linear2"].weight[:, 3] /= 1000
    large = quantize(extract(net, 6), sample().double().numpy().reshape(-1, 6), 1)
    for a, b in zip(small.graph.stages, large.graph.stages, strict=True):
        assert np.array_equal(a.weight, b.weight)
        assert np.abs(a.amplitude - b.amplitude).max(initial=0) <= 1


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


# ---- the certificate ---------------------------------------------------------------------------------


def stage_of(rng, kind, arrival, decay, shift):
    weight = rng.integers(-127, 128, (3, 4))
    bias = rng.integers(-1000, 1001, 3)
    levels = rng.integers(1, 5000, 3)
    fire = np.maximum(1, (levels * rng.choice([0.5, 1.0, 1.5])).astype(int))
    return Stage("s", "w", kind, arrival, weight, bias, fire, levels, shift, decay)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    arrival=st.sampled_from(["once", "sum", "horner", "power"]),
    decay=st.sampled_from([UNITY // 2, UNITY, 2 * UNITY]),
    steps=st.integers(1, 8),
    shift=st.integers(0, 8),
)
def test_no_input_exceeds_the_bounds(seed, arrival, decay, steps, shift):
    rng = np.random.default_rng(seed)
    stage = stage_of(rng, "atmn", arrival, decay, shift)
    row = certify_stage(stage, steps, 1)
    # The worst input of each neuron follows the signs of its weights, at every step.
    largest = 127 if arrival == "once" else 1
    worst = np.sign(stage.weight)[:, None, :] * largest
    train = np.concatenate([worst, -worst]).repeat(1 if arrival == "once" else steps, axis=1)
    acc, clipped = integer.accumulate(stage, integer.arrive(stage, train))
    h = acc + stage.bias
    if row["saturation"] == "impossible" and row["safe"]:
        assert clipped == 0
    reached = np.abs(h).max()
    assert reached <= row["accumulator_bound"]
    if row["accumulator_bound"] <= STATE_MAX and clipped == 0:
        for _ in range(steps - 1):  # unclipped membranes, in exact arithmetic
            s = (h >= stage.fire).astype(int) - (h <= -stage.fire)
            h = integer.leak(h - s * stage.amplitude, decay)
            assert np.abs(h).max() <= row["membrane_bound"]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(2, 8))
def test_harmless_saturation_changes_no_spike(seed, steps):
    """What the certificate calls harmless: spikes with a 24-bit membrane equal those with an endless one."""
    rng = np.random.default_rng(seed)
    stage = stage_of(rng, "atmn", "once", 2 * UNITY, 0)
    stage = Stage(**{**stage.__dict__, "bias": rng.integers(-STATE_MAX // 2, STATE_MAX // 2, 3)})
    assert certify_stage(stage, steps, 1)["safe"]
    signal = rng.integers(-127, 128, (20, 1, 4))
    limited, _ = integer.run_stage(IntegerGraph(steps, (stage,)), stage, signal)
    h = integer.arrive(stage, signal)[:, 0] + stage.bias
    for t in range(steps):
        s = (h >= stage.fire).astype(int) - (h <= -stage.fire)
        assert np.array_equal(limited[:, t], s)
        h = integer.leak(h - s * stage.amplitude, stage.decay)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    decay=st.integers(0, UNITY),
    steps=st.integers(1, 8),
    tokens=st.integers(1, 6),
)
def test_lif_bound_holds_over_a_sequence(seed, decay, steps, tokens):
    rng = np.random.default_rng(seed)
    stage = stage_of(rng, "lif", "held", decay, 2)
    stage = Stage(**{**stage.__dict__, "carry": "sequence"})
    bound = certify_stage(stage, steps, tokens)["membrane_bound"]
    current = -(np.abs(stage.weight).sum(1) * 127 << 2) - np.abs(stage.bias)  # never fires, never resets
    v = np.zeros(3, dtype=np.int64)
    for _ in range(steps * tokens):
        v = integer.leak(v, decay) + current
        assert np.abs(v).max() <= bound


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


def test_counts_are_those_of_the_golden_spikes(tmp_path):
    bundle = export(network(), sample(), tmp_path / "bundle")
    layers = bundle.report("counts")["layers"]
    spikes = bundle.golden.spikes
    for synapse, sender, stage in (("linear2", "atmn1", 1), ("linear3", "atmn2", 2)):
        weight = bundle.graph.stages[stage].weight
        by_hand = sum(
            int(np.count_nonzero(weight[:, neuron]))
            for _, _, neuron in np.argwhere(spikes[sender])
        )  # fmt: skip
        assert layers[synapse]["ac"] == by_hand
        assert layers[synapse]["mac"] == 0
    events = np.count_nonzero(bundle.inputs, axis=0)
    by_hand = int(events @ np.count_nonzero(bundle.graph.stages[0].weight, axis=0))
    assert layers["linear1"]["mac"] == by_hand
    assert bundle.report("energy")
    assert bundle.report("placement")["fits"] is True
