"""netx without Lava: values by hand, the chain and its refusals, round trips, and files that mean harm."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from marsnn.errors import ExportError, FileError, InputError, MissingDependencyError, ShapeError
from marsnn.hardware import loihi, network_of, read_netx, verify_netx, write_netx
from marsnn.hardware.loihi import STATE_MAX, UNITY, LoihiModel, excess, run_layer
from marsnn.hardware.netx_file import write_model
from marsnn.hardware.netx_lava import RUNTIME
from marsnn.network import Network
from marsnn.neurons import ALIF, ATMN, LIF, PLIF, CubaLIF, Recurrent
from marsnn.simulator import simulate
from tests.hardware.netx_cases import (
    directed_netx_cases,
    layer,
    looping_netx_cases,
    random_netx_case,
    tied_network,
    write_netx_case,
)

ZERO = {"reset": "zero"}


# ---- golden: by hand -------------------------------------------------------------------------------------


def test_one_neuron_by_hand():
    """iDecay 2048 (half), vDecay 1024 (three quarters), 3 codes at the first step, threshold 4 = 256 steps.

    u: 192, 96, 48      v: 192, 144 + 96 = 240, 180 + 48 = 228      no spike
    with 4 codes:  u: 256, 128    v: 256 (not above 256), 192 + 128 = 320: a spike, v = 0
    then u: 64, 32, 16, 8  v: 64, 48 + 32 = 80, 60 + 16 = 76, 57 + 8 = 65
    """
    neuron = layer("a", [[3], [4]], 4, 2048, 1024)
    arriving = np.zeros((6, 1), dtype=np.int64)
    arriving[0] = 1
    spikes, wraps, clips = run_layer(neuron, arriving)
    assert spikes.T.tolist() == [[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert (wraps, clips) == (0, 0)


def test_leaks_round_toward_zero():
    assert loihi.leak(np.array([-3, 3, -4096, 1]), 2048).tolist() == [-1, 1, -2048, 0]


@pytest.mark.parametrize(
    ("weight", "summed"),
    [
        ([[127, -128]], [[127, -128]]),
        ([[201, -1]], [[201, -1]]),
        ([[255, 1]], [[255, 1]]),
        ([[-127, -1]], [[-127, -1]]),
        ([[-64, -3]], [[-63, -3]]),  # -256 -12 at 2^-2; -255 -12; six bits: -252 -12
        ([[-64, -32]], [[-32, -32]]),  # one bit is left of -255
        ([[-1, -1]], [[0, 0]]),  # none is
        ([[-128, 0]], [[-64, 0]]),
    ],
)
def test_what_netx_makes_of_weights(weight, summed):
    codes, exponent = loihi.lava_weights(np.array(weight))
    assert (codes * 2.0**exponent).tolist() == summed


@pytest.mark.parametrize(
    ("weight", "beside", "summed"),
    [
        ([[50, 3]], [[-64, 1]], [[50, 3]]),
        ([[-64, 1]], [[50, 3]], [[-64, 1]]),  # by itself it has a positive weight, too
        ([[-64, -64]], [[50, 3]], [[-63.5, -63.5]]),  # shifted by 2 to -256, held as -255, cut to -254
        ([[-100, -100]], [[50, 3]], [[-100, -100]]),
        ([[0, 0]], [[50, 3]], [[0, 0]]),
    ],
)
def test_what_netx_makes_of_two_matrices(weight, beside, summed):
    codes, exponent = loihi.lava_weights(np.array(weight), np.array(beside))
    assert (codes * 2.0**exponent).tolist() == summed


@pytest.mark.parametrize(
    ("drops", "spikes"),
    [
        (False, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]),
        (True, [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_a_chain_by_hand(drops, spikes):
    """Neuron 0 is driven once, 1 hears 0 and 2 hears 1 a step later; what is cleared at step 2 is u and v."""
    links = np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0]])
    chain = layer("a", np.diag([5, 0, 0]), 4, recurrent=links)
    arriving = np.zeros((4, 3), dtype=np.int64)
    arriving[0, 0] = 1
    assert run_layer(chain, arriving, 2, 1, drops)[0].tolist() == spikes
    own = np.array(spikes)
    assert run_layer(chain, arriving, 2, 1, drops, told=own)[0].tolist() == spikes
    assert run_layer(chain, arriving, 2, 1, drops, told=0 * own)[0].tolist() != spikes
    assert run_layer(replace(chain, threshold=5), arriving + 0, 2, 1, drops)[0].sum() == 0


def test_the_delays_are_taken_out():
    """Two layers that pass every spike on at once answer in the same step of the token."""
    relay = layer("a", [[5]], 4)
    model = LoihiModel((relay, replace(relay, name="b")), (1,), steps=2)
    inputs = np.array([[1], [0], [1]])
    assert model.run(inputs).spikes["b"][:, :, 0].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert model.run_chip(inputs).spikes["b"][:, 0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_a_convolution_is_torch_s():
    rng = np.random.default_rng(0)
    conv = nn.Conv2d(
        4, 6, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2, bias=False
    ).double()
    weight = rng.integers(-9, 10, conv.weight.shape)
    conv.weight.data = torch.tensor(weight, dtype=torch.float64)
    x = rng.integers(0, 2, (3, 4, 5, 7))
    made = layer("a", weight, 1, stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2)
    expected = conv(torch.tensor(x, dtype=torch.float64)).detach().numpy()
    assert np.array_equal(loihi.synapse(made, x), expected)
    assert loihi.conv_shape(made, (4, 5, 7)) == expected.shape[1:]


def test_the_bound_is_reached_and_not_passed():
    """Worst inputs of a layer at its bound: no wrap; one code more: a wrap."""
    worst = np.full((40, 2), [127, -127])
    quiet = layer("a", [[127, -127]], 1, 1000, UNITY)
    neuron = replace(quiet, current_decay=1009)
    assert excess(neuron, -127, 127, 40) < 1 < excess(replace(quiet, current_decay=60), -127, 127, 40)
    assert run_layer(neuron, worst)[1] == 0
    assert run_layer(replace(quiet, current_decay=60), worst)[1] > 0
    inhibited = layer("a", [[-100]], 1, UNITY, 0)
    steps = STATE_MAX // 6400
    assert excess(inhibited, 0, 1, steps) <= 1 < excess(inhibited, 0, 1, steps + 1)
    assert run_layer(inhibited, np.ones((steps, 1), dtype=np.int64))[2] == 0
    assert run_layer(inhibited, np.ones((steps + 1, 1), dtype=np.int64))[2] == 1
    # 127 from outside and 70 of its own spikes: currents that leak by 1/20 reach 20 times that
    heard = layer("a", [[127], [127]], 1, 205, UNITY, recurrent=np.array([[70, 0], [70, 0]]))
    alone = replace(heard, recurrent=0 * heard.weight)
    assert excess(heard, -127, 127, 99) == pytest.approx(
        (127 * 127 + 70) / (127 * 127) * excess(alone, -127, 127, 99)
    )
    apart = replace(heard, recurrent=-heard.recurrent)
    assert excess(apart, 0, 1, 99) == pytest.approx(127 / 197 * excess(heard, 0, 1, 99))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 3), dtype=int), r"expected tokens \[W, 2\], got \[2, 3\]"),
        (np.zeros((0, 2), dtype=int), "expected tokens"),
        (np.zeros((2, 2)), "expected tokens of integers, got float64"),
        (np.full((2, 2), 2), "tokens must lie in 0 to 1, got 2 to 2"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(InputError, match=message):
        LoihiModel((layer("a", [[1, 1]], 1),), (2,)).run(inputs)


# ---- a network as integers -------------------------------------------------------------------------------


def test_a_tie_fires_in_both(tmp_path):
    """0.5 + 0.5 meets the threshold 1; Lava fires above it, so the threshold is one code lower."""
    linear = nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.tensor([[0.5, 0.5, 0.25], [0.75, 0.0, 0.25]])
    network = Network([linear, LIF(2, 3, beta=0.0, threshold=1.0, **ZERO)])
    x = torch.tensor([[1.0, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]])[:, None]
    export = write_netx(network, x, tmp_path / "a.net")
    (report,) = export.reports
    assert report.exact
    assert (report.end_to_end, report.float_spikes) == (0.0, 12)
    (made,) = export.model.layers
    assert (made.weight * 4).tolist() == (linear.weight.detach().numpy() * 4 * (made.threshold + 1)).tolist()


def test_every_spike_of_an_exact_network(tmp_path):
    """Quarters for weights, powers of two for thresholds, one a channel: groups, Flatten and senders fold."""
    quarters = np.random.default_rng(0)

    def dyadic(layer):
        layer.weight.data = torch.tensor(quarters.integers(-4, 5, layer.weight.shape)) / 4.0
        if layer.bias is not None:
            layer.bias.data = torch.tensor(quarters.integers(-1, 2, layer.bias.shape)) / 4.0
        return layer

    powers = torch.tensor([0.5, 1.0, 2.0, 0.25])
    neurons = {"steps": 5, **ZERO}
    network = Network([
        dyadic(nn.Conv2d(2, 4, 3, stride=2, padding=1)),
        LIF(4, beta=0.0, threshold=powers, feature_dim=-3, **neurons),
        dyadic(nn.Conv2d(4, 4, (2, 3), groups=2, dilation=(2, 1))),
        LIF(4, beta=1.0, threshold=powers.flip(0), feature_dim=-3, **neurons),
        nn.Flatten(), dyadic(nn.Linear(24, 6, bias=False)),
        CubaLIF(6, alpha=1.0, beta=0.0, threshold=torch.tensor([1.0, 2, 1, 2, 1, 1]), **neurons),
    ])  # fmt: skip
    x = torch.tensor(quarters.integers(-2, 3, (2, 3, 2, 8, 9)), dtype=torch.float32)
    for report in write_netx(network, x, tmp_path / "a.net").reports:
        assert report.exact
        assert (report.teacher_forced, report.end_to_end) == (0.0, 0.0)
        assert report.float_spikes > 20


def test_the_firing_level_is_exact_elsewhere(tmp_path):
    """s = V + 1/64: the weights are rounded, by half a code at most, and the decays to 12 bits."""
    network = Network([nn.Linear(6, 5), LIF(5, 4, beta=0.9, threshold=0.37, **ZERO)])
    export = write_netx(network, torch.randn(3, 4, 6), tmp_path / "a.net")
    (made,), (report,) = export.model.layers, export.reports
    scale = (made.threshold + 1 / 64) / 0.37
    weight = network["linear1"].weight.detach().numpy() * export.input_scale
    assert np.abs(weight * scale - made.weight).max() < 0.51
    assert np.abs(network["linear1"].bias.detach().numpy() * scale - made.bias).max() < 0.51
    assert (made.voltage_decay, made.current_decay) == (410, UNITY)
    assert report.beta_used == 1 - 410 / 4096
    assert not report.exact


def test_thresholds_of_neurons_and_of_senders_fold(tmp_path):
    """Scaling a row with its threshold, and the columns behind against it, changes no integer."""
    first, second = nn.Linear(6, 5), nn.Linear(5, 3)
    x = (torch.rand(3, 4, 6) > 0.5).float()
    plain = Network([first, LIF(5, 4, threshold=0.25, **ZERO), second, LIF(3, 4, threshold=0.5, **ZERO)])
    exported = write_netx(plain, x, tmp_path / "a.net").model
    factor = torch.tensor([1.0, 2, 4, 0.5, 0.25])
    scaled, behind = nn.Linear(6, 5), nn.Linear(5, 3)
    scaled.weight.data, scaled.bias.data = first.weight.data * factor[:, None], first.bias.data * factor
    behind.weight.data, behind.bias.data = second.weight.data / factor, second.bias.data
    other = Network(
        [scaled, LIF(5, 4, threshold=factor / 4, **ZERO), behind, LIF(3, 4, threshold=0.5, **ZERO)]
    )
    for ours, theirs in zip(
        exported.layers, write_netx(other, x, tmp_path / "b.net").model.layers, strict=True
    ):
        assert np.array_equal(ours.weight, theirs.weight)
        assert np.array_equal(ours.bias, theirs.bias)
        assert ours.threshold == theirs.threshold


@pytest.mark.parametrize(
    ("carry", "interval"), [(["token"] * 2, 4), (["sequence"] * 2, 12), (["token", "sequence"], 12)]
)
def test_when_states_are_cleared(carry, interval, tmp_path):
    """Every T steps or every T L; a neuron without a memory does not mind which."""
    betas = [0.0, 0.9] if carry[0] != carry[1] else [0.9, 0.9]
    neurons = [LIF(5, 4, beta=b, threshold=0.4, carry=c, **ZERO) for b, c in zip(betas, carry, strict=True)]
    network = Network([nn.Linear(6, 5), neurons[0], nn.Linear(5, 5), neurons[1]])
    export = write_netx(network, torch.randn(3, 2, 6), tmp_path / "a.net")
    assert export.model.reset_interval == interval
    assert export.reports[1].end_to_end < 0.1
    assert export.reports[1].float_spikes > 20
    if interval == 12:  # and clearing by the token is another network
        again = replace(export.model, reset_interval=4).run(export.inputs)
        assert not np.array_equal(again.spikes["lif2"], export.golden.spikes["lif2"])


@pytest.mark.parametrize("carry", ["token", "sequence"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_chain_of_ties_is_the_float_network_s(carry, tokens, tmp_path):
    """Each link meets a threshold; tokens and samples end with spikes on their way, which are dropped."""
    network, x = tied_network(carry, tokens)
    export = write_netx(network, x, tmp_path / "a.net")
    for report in export.reports:
        assert (report.exact, report.end_to_end, report.teacher_forced) == (True, 0.0, 0.0)
        assert report.float_spikes >= 15
    assert export.model.drops
    assert export.model.reset_interval == 3 * (tokens if carry == "sequence" else 1)
    for other in (
        replace(export.model, drops=False),
        replace(export.model, layers=tuple(replace(each, recurrent=None) for each in export.model.layers)),
    ):
        assert not np.array_equal(other.run(export.inputs).spikes["chain"], export.golden.spikes["chain"])
    if carry == "sequence":  # a sample in a run of its own meets nothing that is on its way
        for sample in range(3):
            own = slice(sample * tokens, (sample + 1) * tokens)
            alone = replace(export.model, drops=False).run(export.inputs[own])
            for name, spikes in export.golden.spikes.items():
                assert np.array_equal(alone.spikes[name], spikes[own])
    told = export.text().splitlines()[2:]
    assert [line.split(":")[0] for line in told] == ["chain", "behind"]
    assert all("write 0 to its synapse_rec.a_buff" in line for line in told)


def test_a_layer_that_hears_itself_has_one_scale(tmp_path):
    """Both matrices and both biases, each by the threshold of its row; spikes are worth their own."""
    torch.manual_seed(0)
    thresholds = 0.3 + torch.rand(5)
    own = Recurrent(PLIF(5, 4, threshold=thresholds, **ZERO), bias=True)
    network = Network({"in": nn.Linear(6, 5), "own": own})
    with torch.no_grad():
        own.recurrent.weight.mul_(4)
    export = write_netx(network, torch.randn(3, 4, 6), tmp_path / "a.net")
    (made,), (report,) = export.model.layers, export.reports
    scale = (made.threshold + 1 / 64) / thresholds.double().numpy()[:, None]
    weight, bias = (each.detach().double().numpy() for each in network["in"].parameters())
    loop, more = (each.detach().double().numpy() for each in own.recurrent.parameters())
    assert np.abs(weight * export.input_scale * scale - made.weight).max() < 0.501
    assert np.abs(loop * thresholds.double().numpy() * scale - made.recurrent).max() < 0.501
    assert np.abs((bias + more) * scale[:, 0] - made.bias).max() < 0.501
    assert np.abs(made.recurrent).max() == report.largest_code > np.abs(made.weight).max()
    assert report.end_to_end < 0.1
    assert report.float_spikes > 40


def test_a_neuron_that_hears_itself_remembers(tmp_path):
    """beta = 0, yet cleared as its carry says, and not as another's."""

    def network(carry):
        return Network([
            nn.Linear(6, 5), Recurrent(LIF(5, 4, beta=0.0, threshold=0.4, carry=carry, **ZERO)),
            nn.Linear(5, 5), LIF(5, 4, beta=0.9, threshold=0.4, carry="sequence", **ZERO),
        ])  # fmt: skip

    x = torch.randn(3, 2, 6)
    assert write_netx(network("sequence"), x, tmp_path / "a.net").model.reset_interval == 12
    with pytest.raises(ExportError, match='recurrent1: carry="token" where others have carry="sequence"'):
        write_netx(network("token"), x, tmp_path / "a.net")


def test_binary_inputs_are_spikes_and_others_graded(tmp_path):
    network = Network([nn.Linear(6, 5), LIF(5, 4, threshold=0.2, **ZERO)])
    x = 0.3 * (torch.rand(3, 4, 6) > 0.5).float()
    export = write_netx(network, x, tmp_path / "a.net")
    assert (export.model.message_bits, export.model.input_max) == (0, 1)
    assert export.input_scale == pytest.approx(0.3)
    assert set(np.unique(export.inputs)) == {0, 1}
    export = write_netx(network, x - 0.1, tmp_path / "a.net")
    assert export.model.message_bits == 8
    assert np.abs(export.inputs).max() == export.model.input_max > 1


def test_many_graded_inputs_are_held_within_24_bits(tmp_path):
    """784 inputs: no worst case fits with 5 bits, so the sample decides, with as much again to spare."""
    network = Network([nn.Linear(784, 16), LIF(16, 4, beta=0.9, threshold=0.3, **ZERO)])
    export = write_netx(network, torch.rand(2, 5, 784), tmp_path / "a.net")
    (report,) = export.reports
    assert report.overflow == "not on the sample"
    assert report.largest_code >= 16
    assert report.end_to_end < 0.1
    assert export.golden.wraps["lif1"] == export.golden.clips["lif1"] == 0
    few = Network([nn.Linear(8, 16), LIF(16, 4, beta=0.9, threshold=0.3, **ZERO)])
    (report,) = write_netx(few, torch.rand(2, 5, 8), tmp_path / "b.net").reports
    assert report.overflow == "impossible"


def test_a_weight_matrix_that_netx_would_change_is_written_otherwise(tmp_path):
    """Weights and bias that put the least weight at a power of two: -64, which Lava would sum as -63."""
    linear = nn.Linear(2, 1)
    linear.weight.data, linear.bias.data = torch.tensor([[-1 / 64, -1 / 128]]), torch.tensor([1.0 - 2**-12])
    network = Network([linear, LIF(1, 8, beta=0.0, threshold=1.0, **ZERO)])
    export = write_netx(network, torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]), tmp_path / "a.net")
    (made,) = export.model.layers
    codes, exponent = loihi.lava_weights(made.weight)
    assert np.array_equal(codes * 2.0**exponent, made.weight)


def test_the_report_is_a_line_a_layer(tmp_path):
    network = Network([nn.Linear(6, 5), LIF(5, 4, threshold=0.2, **ZERO)])
    text = write_netx(network, torch.randn(3, 4, 6), tmp_path / "a.net").text()
    assert re.fullmatch(
        r"lif1: threshold \d+, weights to \d+, beta 0.5 as 0.5, alpha 0 as 0, overflow impossible; "
        r"\d+\.\d\d% of spike slots differ from the floats, \d+\.\d\d% by itself",
        text,
    )


# ---- refusals --------------------------------------------------------------------------------------------


def test_all_refusals_at_once(tmp_path):
    network = Network(
        {
            "a": nn.Linear(6, 5),
            "soft": LIF(5, 4),
            "b": nn.Linear(5, 5),
            "c": nn.Linear(5, 5),
            "uneven": LIF(5, 4, beta=torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), **ZERO),
            "again": LIF(5, 4, carry="sequence", **ZERO),
            "relu": nn.ReLU(),
            "d": nn.Linear(5, 5),
            "lasting": CubaLIF(5, 4, **ZERO),
            "e": nn.Linear(5, 5),
            "other": ALIF(5, 4, **ZERO),
            "f": nn.Linear(5, 5),
            "atmn": ATMN(5, 4),
            "last": nn.Linear(5, 2),
        },
        skips={"d": "uneven"},
    )
    with pytest.raises(ExportError) as error:
        write_netx(network, torch.randn(2, 2, 6), tmp_path / "a.net")
    told = [refusal.split(":")[0] for refusal in error.value.refusals]
    assert told == [
        "d", "soft", "c", "uneven", "again", "relu", "d", "other", "atmn", "last",
        "soft", "uneven", "lasting",
    ]  # fmt: skip
    text = str(error.value)
    for part in (
        "a skip from uneven",
        'train with reset="zero"',
        "merge the two into one",
        "beta differs between neurons",
        "follows a neuron directly",
        "ReLU has no place in netx",
        "train with bias=False",
        "ALIF has no form in netx",
        "ATMN has no form in netx",
        "end with a neuron",
        'carry="token" where others have carry="sequence"',
    ):
        assert part in text
    assert not (tmp_path / "a.net").exists()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Conv2d(2, 3, 3, padding="same"), LIF(**ZERO)], "padding 'same' of zeros"),
        ([nn.Conv2d(2, 3, 3, padding_mode="circular", padding=1), LIF(**ZERO)], "of circular; give numbers"),
        ([nn.Conv2d(2, 3, 3), LIF(**ZERO), nn.AvgPool2d(2)], "AvgPool2d has no place"),
        ([LIF(**ZERO), nn.Flatten(), nn.Linear(98, 3), LIF(**ZERO)], "stands on an image with no map"),
        ([nn.Linear(7, 3), LIF(**ZERO)], r"acts on the last axis of an image; put nn.Flatten\(\) before it"),
        (
            [nn.Conv2d(2, 3, 3), LIF(5, threshold=torch.arange(1.0, 6), **ZERO)],
            r"thresholds along axis -1 of \[3, 5, 5\]",
        ),
        (
            [nn.Conv2d(2, 3, 3), Recurrent(LIF(3, feature_dim=-3, **ZERO))],
            "recurrent1: hears itself on an image; netx has that for neurons behind a Linear only",
        ),
        ([nn.Conv2d(2, 3, 3), nn.Flatten(), LIF(**ZERO)], "flattens .* only between neurons and a Linear"),
        ([nn.Conv2d(2, 3, 3), LIF(**ZERO), nn.Flatten()], "is last; remove it"),
        ([nn.Flatten(), nn.Linear(98, 3)], "no spiking neuron"),
    ],
)
def test_images_that_are_refused(layers, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        write_netx(Network(layers), torch.randn(2, 2, 2, 7, 7), tmp_path / "a.net")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            Recurrent(ALIF(2, 4, **ZERO)),
            r"own: Recurrent\(ALIF\) has no form in netx; .* or export to target ",
        ),
        (Recurrent(LIF(2, 4)), 'own: reset="subtract"; Lava\'s LIF resets to zero'),
        (Recurrent(LIF(2, 4, beta=torch.tensor([0.1, 0.2]), **ZERO)), "own: beta differs between neurons"),
        (
            Recurrent(CubaLIF(2, 4, **ZERO), bias=True),
            "own: its bias enters the current of own and lasts there",
        ),
    ],
)
def test_what_can_not_hear_itself(own, message, tmp_path):
    network = Network({"in": nn.Linear(2, 2, bias=False), "own": own})
    with pytest.raises(ExportError, match=message) as error:
        write_netx(network, torch.ones(1, 1, 2), tmp_path / "a.net")
    assert len(error.value.refusals) == 1


def made_of(weight, bias=0.0, **settings):
    linear = nn.Linear(2, 2)
    linear.weight.data, linear.bias.data = torch.tensor(weight), torch.full((2,), bias)
    return Network([linear, LIF(2, 4, **ZERO, **settings)])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (made_of([[0.0, 0], [0, 0]]), "all weights are zero"),
        (made_of([[90.0, 1], [0, 0.3]]), "largest weight is 90 times the threshold"),
        (made_of([[1e-5, 0.3e-5], [0, 2e-6]]), "too small beside its threshold"),
        (made_of([[0.001, 0.0003], [0, 0.0007]], bias=1.1), "its bias is 1100 times its largest weight"),
    ],
)
def test_numbers_that_do_not_fit(network, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        write_netx(network, torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]), tmp_path / "a.net")


def test_arguments_that_do_not_fit(tmp_path):
    network = Network([nn.Linear(2, 2), LIF(2, 4, **ZERO)])
    with pytest.raises(InputError, match="takes a marsnn Network, got Linear"):
        write_netx(nn.Linear(2, 2), torch.ones(1, 1, 2), tmp_path / "a.net")
    with pytest.raises(ShapeError, match=r"expected a sample x \[L, B, D\]"):
        write_netx(network, torch.ones(1, 2), tmp_path / "a.net")
    with pytest.raises(InputError, match="all zeros"):
        write_netx(network, torch.zeros(1, 1, 2), tmp_path / "a.net")
    with pytest.raises(InputError, match='simulator must be "lava" or "integer"'):
        verify_netx(tmp_path / "a.net", simulator="loihi")


def test_without_h5py_the_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "marsnn\[netx\]"'):
        read_netx(tmp_path / "a.net")


def test_the_runtime_says_what_it_lacks(tmp_path):
    """Under a Python without Lava: one line, exit 2."""
    path = write_netx_case(directed_netx_cases()[0], tmp_path)
    run = subprocess.run(
        [sys.executable, "-B", RUNTIME / "run.py", path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr == f"error: {path}: No module named 'lava'\n"


# ---- round trips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [*map(random_netx_case, range(12)), random_netx_case(2, loops=True), *directed_netx_cases()],
    ids=lambda c: c.name,
)
def test_what_is_written_is_read(case, tmp_path):
    model = read_netx(write_netx_case(case, tmp_path))
    for ours, theirs in zip(case.model.layers, model.layers, strict=True):
        for key, value in vars(ours).items():
            assert np.array_equal(value, getattr(theirs, key)), key
    assert replace(model, layers=()) == replace(case.model, layers=())
    result = verify_netx(tmp_path / f"{case.name}.net", simulator="integer")
    assert result.ok
    assert result.slots > 0


def test_the_same_model_gives_the_same_bytes(tmp_path):
    case = random_netx_case(3)
    paths = [write_netx_case(replace(case, name=name), tmp_path) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_file_as_lava_dl_writes_it_is_read(tmp_path):
    """Scalars and arrays of one, kernels of five axes, strings of variable length, no group of ours."""
    with h5py.File(tmp_path / "a.net", "w") as file:
        file["layer/0/type"] = "input"
        file["layer/0/shape"] = np.array([2, 4, 4])
        file["layer/1/type"] = np.array([b"conv"])
        file["layer/1/shape"] = np.array([3, 3, 3])
        file["layer/1/weight"] = np.arange(24, dtype=np.int8).reshape(3, 2, 2, 2, 1) - 12
        for key, value in {"stride": 1, "padding": [0, 0], "dilation": [1, 1], "groups": 1}.items():
            file[f"layer/1/{key}"] = value
        file["layer/2/type"] = np.array([b"flatten"])
        file["layer/3/type"] = np.array([b"dense"])
        file["layer/3/shape"] = np.array([2])
        file["layer/3/weight"] = np.arange(54.0)
        for index in (1, 3):
            neuron = file.create_group(f"layer/{index}/neuron")
            neuron["type"] = np.array([b"LOIHI"])
            neuron["iDecay"], neuron["vDecay"], neuron["vThMant"], neuron["refDelay"] = 1024, [128], 80, 1
        file["layer/3/neuron/vThMant"][()] = (1 << 18) - 1  # of a layer that only sums
    with h5py.File(tmp_path / "b.net", "w") as file:
        file["layer/0/type"] = np.array([b"dense_rec"])
        file["layer/0/shape"] = np.array([2])
        file["layer/0/weight"], file["layer/0/weight_rec"] = np.arange(6.0), np.array([[0.0, 1], [0, 0]])
        neuron = file.create_group("layer/0/neuron")
        neuron["type"] = np.array([b"CUBA"])
        neuron["iDecay"], neuron["vDecay"], neuron["vThMant"], neuron["refDelay"] = 4096, 4096, 0, 1
    (looped,) = read_netx(tmp_path / "b.net").layers
    assert looped.recurrent.tolist() == [[0, 1], [0, 0]]
    assert looped.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not read_netx(tmp_path / "b.net").drops
    model = read_netx(tmp_path / "a.net")
    assert model.names == ("conv1", "dense3")
    assert model.input_shape == (2, 4, 4)
    assert (model.steps, model.reset_interval, model.message_bits) == (1, None, 0)
    assert model.layers[0].weight.shape == (3, 2, 2, 2)
    assert model.layers[1].weight.shape == (2, 27)
    run = model.run(np.ones((5, 2, 4, 4), dtype=int))
    assert run.spikes["conv1"].any()
    assert run.spikes["dense3"].shape == (5, 1, 2)
    assert not run.spikes["dense3"].any()
    with pytest.raises(FileError, match="has no golden run; give the inputs"):
        verify_netx(tmp_path / "a.net", simulator="integer")
    assert verify_netx(tmp_path / "a.net", np.ones((5, 2, 4, 4), dtype=int), simulator="integer").ok


# ---- back to floats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [4, 12])
def test_floats_with_the_same_spikes(interval, tmp_path):
    """Decays that keep all or nothing: every spike is the same, ties and all."""
    rng = np.random.default_rng(interval)
    weights = [rng.integers(-9, 10, shape) for shape in ((3, 2, 2, 3), (6, 3 * 4 * 3), (5, 6))]
    layers = (
        layer("a", weights[0], 14, UNITY, 0, bias=1, shape=(3, 4, 3)),
        layer("b", weights[1], 20, 0, UNITY),
        layer("c", weights[2], 7, 0, 0),
    )
    model = LoihiModel(layers, (2, 5, 5), 8, 3, 4, interval)
    inputs = rng.integers(-3, 4, (6, 2, 5, 5))
    path = write_model(tmp_path / "a.net", model, inputs, model.run(inputs))
    network = network_of(read_netx(path))
    x = torch.tensor(inputs, dtype=torch.float64).reshape(2, 3, 2, 5, 5).transpose(0, 1)
    recording = simulate(network, x)
    golden = model.run(inputs)
    for name, spikes in golden.spikes.items():
        ours = np.moveaxis(recording.spikes[name], 2, 0).reshape(spikes.shape)
        assert np.array_equal(ours, spikes), name
        assert 0.05 < spikes.mean() < 0.95, name


@pytest.mark.parametrize("interval", [3, 6])
def test_floats_that_hear_themselves(interval):
    rng = np.random.default_rng(interval)
    layers = tuple(
        layer(name, rng.integers(-9, 10, (6, 6)), 14, decay, 0, recurrent=rng.integers(-19, 20, (6, 6)))
        for name, decay in (("a", UNITY), ("b", 0))
    )
    model = LoihiModel(layers, (6,), 8, 3, 3, interval, drops=True)
    inputs = rng.integers(-3, 4, (6, 6))
    x = torch.tensor(inputs, dtype=torch.float64).reshape(3, 2, 6).transpose(0, 1)
    recording, golden = simulate(network_of(model), x), model.run(inputs)
    for name, spikes in golden.spikes.items():
        assert np.array_equal(np.moveaxis(recording.spikes[name], 2, 0).reshape(spikes.shape), spikes), name
        assert 0.05 < spikes.mean() < 0.95, name
    with pytest.raises(InputError, match=r"a: its spikes on their way back outlive .*; b: its spikes"):
        network_of(replace(model, drops=False))


def test_what_floats_can_not_do_is_refused():
    odd = layer("a", [[-64, -3]], 3, 2048, 0, bias=1)
    large = layer("b", [[-127]], 3, UNITY, 0)
    with pytest.raises(InputError) as error:
        network_of(LoihiModel((odd, large), (2,), 8, 127, 4, 6))
    text = str(error.value)
    for part in (
        "not the same in floats: states are cleared every 6 steps from step 2 on",
        "a: decays 2048 and 0 of 4096 round at every step",
        "a: its bias enters the voltage past a current that lasts",
        "a: Lava does not sum these weights as they are written",
    ):
        assert part in text
    with pytest.raises(InputError, match=r"states are never cleared.*b: its states can outgrow 24 bits"):
        network_of(LoihiModel((large,), (1,)))
    with pytest.raises(InputError, match="not the same in floats: b: its states can outgrow 24 bits"):
        network_of(LoihiModel((large,), (1,), reset_interval=1100))
    assert network_of(LoihiModel((large,), (1,), reset_interval=1000)).steps == 1
    silent = replace(large, threshold=2**18 - 1)
    with pytest.raises(InputError, match="b: its threshold lies above 24 bits, so it never fires"):
        network_of(LoihiModel((silent,), (1,), reset_interval=1000))


# ---- files that are damaged, or mean harm ----------------------------------------------------------------


@pytest.fixture
def good(tmp_path):
    """A file with a convolution and a dense layer, graded, with a golden run."""
    return write_netx_case(
        next(c for c in map(random_netx_case, range(3, 99, 6)) if len(c.model.layers) > 2), tmp_path
    )


def replaced(name, value):
    def edit(file):
        if name in file:
            del file[name]
        file[name] = value

    return edit


def header(**changes):
    def edit(file):
        values = json.loads(bytes(file["marsnn/header"][()])) | changes
        del file["marsnn/header"]
        file["marsnn/header"] = np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)

    return edit


def removed(name):
    def edit(file):
        del file[name]

    return edit


def huge(file):
    del file["layer/1/weight"]
    file.create_dataset("layer/1/weight", (2**20, 2**20, 2, 2), "i1", chunks=(1024, 1024, 1, 1))


def outside(file):
    del file["layer/1/weight"]
    file.create_dataset("layer/1/weight", (4, 4), "u1", external=[("/etc/passwd", 0, 16)])


def virtual(file):
    del file["layer/1/weight"]
    layout = h5py.VirtualLayout((4, 4), "i4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "a", (4, 4))
    file.create_virtual_dataset("layer/1/weight", layout)


def many(file):
    for index in range(3, 300):
        file.create_group(f"layer/{index + 10}")


EDITS = {
    "layer/1/weight is a link to another place": replaced("layer/1/weight", h5py.SoftLink("/layer/1/bias")),
    "/layer/1 is a link to another place": replaced("layer/1", h5py.ExternalLink("/etc/passwd", "/a")),
    "/marsnn is a link": replaced("marsnn", h5py.ExternalLink("/etc/passwd", "/a")),
    "layer/1/weight keeps its data outside of the file": outside,
    "layer/1/weight keeps its data outside of the file.": virtual,
    "weight has 4398046511104 entries, expected 1 to": huge,
    "layers, expected 1 to 256": many,
    "/layer is missing": removed("layer"),
    "/layer/1/type is missing": removed("layer/1/type"),
    "/layer/1/neuron is missing": removed("layer/1/neuron"),
    "/layer/1/neuron/vThMant is missing": removed("layer/1/neuron/vThMant"),
    "/layer/1 is missing": lambda file: file.move("layer/1", "layer/77"),
    "/layer/1/weight is no dataset": lambda file: (
        removed("layer/1/weight")(file),
        file.create_group("layer/1/weight"),
    ),
    "/layer is no group": replaced("layer", 1),
    "is 'pool' as layer 1": replaced("layer/1/type", np.array([b"pool"])),
    "type is no string": replaced("layer/1/type", 7),
    "type is 'RF'": replaced("layer/1/neuron/type", np.array([b"RF"])),
    "weight holds -1000 to 0": replaced("layer/1/weight", np.diag([0, -1000])[None, None]),
    "weight holds numbers that are not whole": replaced("layer/1/weight", np.full((4, 2, 2, 3), 0.5)),
    "holds numbers that are not whole.": replaced("layer/1/weight", np.full((4, 2, 2, 3), np.nan)),
    "weight is complex128, expected whole numbers": replaced(
        "layer/1/weight", np.ones((4, 2, 2, 3), complex)
    ),
    "weight has the shape None": replaced("layer/1/weight", h5py.Empty("i4")),
    "which does not fit an input": replaced("layer/1/weight", np.ones((4, 7, 2, 3), int)),
    "but the convolution gives": replaced("layer/1/shape", np.array([4, 9, 9])),
    "bias is [9], expected [4]": replaced("layer/1/bias", np.ones(9, int)),
    "vThMant holds -1 to -1": replaced("layer/1/neuron/vThMant", -1),
    "iDecay holds 4097": replaced("layer/1/neuron/iDecay", 4097),
    "refDelay asks for a refractory time": replaced("layer/1/neuron/refDelay", 3),
    "delay is not in the model": replaced("layer/1/delay", 3),
    "messageBits asks for graded spikes": replaced("layer/1/neuron/messageBits", 8),
    "weight_rec is not in the model": replaced("layer/1/weight_rec", np.ones((4, 4), int)),
    "has drops = 1, expected true or false": header(drops=1),
    "header is no JSON": replaced("marsnn/header", np.frombuffer(b"{", np.uint8)),
    "header is of another format": header(format="marsnn.netx/9"),
    "does not name": header(names=["a", "a", "b"]),
    "has steps = 0, expected 1": header(steps=0),
    "has steps = True": header(steps=True),
    "has reset_interval = -3": header(reset_interval=-3),
    "has reset_offset = 'a'": header(reset_offset="a"),
    "has message_bits = 3": header(message_bits=3),
    "expected W of": replaced("marsnn/inputs", np.ones((2, 2, 5, 7), int)),
    "spikes/0 is [1, 1, 1, 1, 1], expected": replaced("marsnn/spikes/0", np.ones((1, 1, 1, 1, 1), int)),
    "spikes/0 is missing": removed("marsnn/spikes/0"),
}


@pytest.mark.parametrize("message", EDITS)
def test_a_bad_file_is_refused_by_one_line(message, good):
    read_netx(good)
    with h5py.File(good, "r+") as file:
        EDITS[message](file)
    with pytest.raises(FileError, match=re.escape(message.rstrip("."))) as error:
        read_netx(good)
    assert str(error.value).startswith(f"{good}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (removed("layer/1/weight_rec"), "/layer/1/weight_rec is missing"),
        (replaced("layer/1/weight_rec", np.ones((2, 5), int)), "weight_rec is [2, 5], expected [5, 5]"),
        (replaced("layer/1/weight_rec", np.full((5, 5), 999)), "weight_rec holds 999 to 999"),
        (replaced("layer/1/weight_rec", h5py.SoftLink("/layer/1/weight")), "weight_rec is a link"),
        (replaced("layer/1/delay", 1), "delay is not in the model"),
    ],
)
def test_a_bad_loop_is_refused_by_one_line(edit, message, tmp_path):
    path = write_netx_case(looping_netx_cases()[0], tmp_path)
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(FileError, match=re.escape(message)):
        read_netx(path)


def test_weights_of_zero_are_refused(tmp_path):
    case = directed_netx_cases()[0]
    path = write_netx_case(case, tmp_path)
    with h5py.File(path, "r+") as file:
        file["layer/1/weight"][...] = 0
    with pytest.raises(FileError, match="all weights are zero, which netx can't load"):
        read_netx(path)


@pytest.mark.parametrize("cut", [0, 10, 600, -100])
def test_no_hdf5_and_half_of_it(cut, good):
    good.write_bytes(good.read_bytes()[:cut] if cut else b"not HDF5 at all, but some text")
    with pytest.raises(FileError, match="not a readable netx file"):
        read_netx(good)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.net", tmp_path):
        with pytest.raises(FileError, match="no such file"):
            read_netx(path)


def test_any_byte_may_be_wrong(good):
    """Flipped bytes are refused, or change nothing but numbers: never another error."""
    whole = good.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(whole), 150):
        broken = bytearray(whole)
        broken[place] ^= int(rng.integers(1, 256))
        good.write_bytes(broken)
        with suppress(FileError):  # any other error fails the test
            read_netx(good)
            refused -= 1
        refused += 1
    assert refused > 15
