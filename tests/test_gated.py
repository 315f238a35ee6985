"""Unit: GatedLinear by hand, in a Network on both clocks, in its file, and counted from the spikes."""

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.checkpoint import load_network, save_network
from marsnn.energy import count
from marsnn.errors import InputError, ShapeError
from marsnn.gated import GatedLinear
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF
from marsnn.simulator import simulate


def gated_network(unrolled=False, neuron=ATMN, **settings):
    torch.manual_seed(0)
    layers = {
        "ffn_in": neuron(6, 4, threshold=torch.rand(6) + 0.2),
        "gated": GatedLinear(6, 10, **settings),
        "ffn_out": ATMN(10, 4, threshold=0.1),
        "down_proj": nn.Linear(10, 6),
    }
    with torch.no_grad():
        for part in (layers["gated"].gate, layers["gated"].up):
            part.weight.mul_(4)
    return Network(layers, unrolled=unrolled).double()


def test_by_hand():
    layer = GatedLinear(1, 3, level=0.5)
    with torch.no_grad():
        for part, weight, bias in ((layer.gate, [2.0, 0.0, -2.0], 0.0), (layer.up, [1.0, 1.0, 1.0], 1.0)):
            part.weight.copy_(torch.tensor(weight)[:, None])
            part.bias.fill_(bias)
    # x = 1: gate 2, 0, -2; silu 2 / (1 + e^-2) = 1.7616, 0, -0.2384; up 2: 3.5232, 0, -0.4768 below 0.5
    torch.testing.assert_close(layer(torch.ones(1)), torch.tensor([3.5231884, 0.0, 0.0]))
    layer.level = 0.4
    torch.testing.assert_close(layer(torch.ones(1)), torch.tensor([3.5231884, 0.0, -0.4768117]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"activation": "relu6"}, "GatedLinear has no activation 'relu6'; known: 'silu'"),
        ({"level": 0.0}, "level must be finite and > 0"),
        ({"level": float("nan")}, "level must be finite"),
        ({"in_features": 0}, "in_features must be a whole number"),
    ],
)
def test_settings_that_are_refused(settings, told):
    with pytest.raises(InputError, match=told):
        GatedLinear(**{"in_features": 2, "out_features": 3, **settings})


@pytest.mark.parametrize("neuron", [ATMN, LIF])
@pytest.mark.parametrize("settings", [{}, {"bias": False, "level": 0.2}])
def test_once_a_token_on_the_decoded_value(neuron, settings):
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    network = gated_network(neuron=neuron, **settings)
    first, gated, second, last = network.layers.values()
    product = gated(first.decode(first.encode(x)))
    assert product.any()
    torch.testing.assert_close(network(x), last(second.decode(second.encode(product))), rtol=0, atol=1e-12)
    recording = simulate(network, x)
    expected = second.encode(product).transpose(0, 1).detach().numpy()
    np.testing.assert_array_equal(recording.spikes["ffn_out"], expected)
    assert recording.spikes["ffn_out"].any()
    torch.testing.assert_close(gated_network(True, neuron, **settings)(x), network(x), rtol=0, atol=1e-12)


def test_the_unrolled_form_runs_the_maps_at_every_step():
    network, seen = gated_network(unrolled=True), []
    network["gated"].up.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    network(torch.randn(5, 3, 6, dtype=torch.float64))
    assert seen == [(4 * 5 * 3, 6)]


def test_gradients_reach_both_maps():
    network = gated_network()
    network(torch.randn(5, 3, 6, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network["gated"].parameters())


@pytest.mark.parametrize("settings", [{}, {"bias": False, "level": 0.2}])
def test_round_trip(tmp_path, settings):
    network, x = gated_network(**settings), torch.randn(5, 3, 6, dtype=torch.float64)
    again = load_network(save_network(network, tmp_path / "n.safetensors"))
    assert again["gated"].constructor() == network["gated"].constructor()
    assert torch.equal(again(x), network(x))


def test_a_wrong_width_names_the_layer():
    with pytest.raises(ShapeError, match="gated"):
        Network({"gated": GatedLinear(6, 10)})(torch.randn(2, 1, 5))


@pytest.mark.parametrize("unrolled", [False, True])
def test_counts_by_hand(unrolled):
    network = Network({"atmn": ATMN(2, steps=2), "gated": GatedLinear(2, 3)}, unrolled=unrolled)
    with torch.no_grad():
        network["gated"].gate.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
        network["gated"].up.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))
    # x = (1.5, -0.5): spikes 1 1 and 0 -1. Gate: 2 spikes meet 3 weights, 1 meets 1: 7.
    # Up: 2 spikes meet 1 weight, 1 meets 2: 4.
    counts = count(network, torch.tensor([[[1.5, -0.5]]]))
    gated = counts.layers["gated"]
    assert (gated.ac, gated.mac, gated.dense_ac, gated.dense_mac) == (7 + 4, 0, 2 * 2 * 6, 0)
    assert gated.baseline_mac == 2 * 6
    # 3 products; two biases of 3; silu is nothing that a table prices
    assert (gated.mul, gated.add) == (3, 6)
    assert counts.unattributed == {"silu": 3}


def test_a_gate_on_the_input_is_counted_as_macs_and_alone_as_any_module():
    network = Network({"gated": GatedLinear(2, 3), "atmn": ATMN(3)})
    x = torch.rand(1, 1, 2) + 0.1
    within, alone = count(network, x).layers["gated"], count(network["gated"], x[0])
    assert (within.mac, within.ac, within.mul) == (12, 0, 3)
    assert (alone.total.mac, alone.total.mul) == (12, 3)
    assert alone.layers["gate"].mac == alone.layers["up"].mac == 6


def test_a_skip_into_the_gate_is_added_once():
    layers = {
        "a": ATMN(3),
        "fc": nn.Linear(3, 3, bias=False),
        "b": ATMN(3),
        "gated": GatedLinear(3, 5, False),
    }
    network, x = Network(layers, skips={"gated": "input"}), torch.rand(2, 1, 3) + 0.1
    gated = count(network, x).layers["gated"]
    assert gated.mac == gated.dense_mac == 2 * 2 * 15  # the static input at both maps
    assert gated.dense_ac == 2 * 4 * 2 * 15
