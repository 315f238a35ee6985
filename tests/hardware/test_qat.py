"""Training with the chip's integers: forward equal to an export's own run, backward that of the floats."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.data import load_digits
from marsnn.errors import ExportError, InputError
from marsnn.hardware import QuantizedNetwork, export
from marsnn.hardware.exporter import in_order
from marsnn.network import Network
from marsnn.neurons import ALIF, ATMN, LIF, IntegerLIF, Recurrent
from marsnn.ssm import S4D
from marsnn.training import TrainConfig, accuracy, train

NETWORKS = {
    "atmn": lambda: [
        nn.Linear(6, 10), ATMN(10, threshold=0.5), nn.Linear(10, 8), ATMN(8, threshold=0.3), nn.Linear(8, 3),
    ],
    "lif": lambda: [
        nn.Linear(6, 10), LIF(10, threshold=0.5), nn.Linear(10, 8), ALIF(8, threshold=0.1), nn.Linear(8, 3),
    ],
    "carried": lambda: [
        nn.Linear(6, 10), LIF(10, threshold=0.3, carry="sequence"), nn.Linear(10, 4),
        IntegerLIF(4, threshold=0.2),
    ],
    "recurrent": lambda: [
        nn.Linear(6, 10), Recurrent(LIF(10, threshold=0.3, carry="sequence"), bias=True), nn.Linear(10, 3),
    ],
    "ssm": lambda: [nn.Linear(6, 8), S4D(8, 4), ATMN(8, threshold=0.3), nn.Linear(8, 3)],
    "conv": lambda: [
        nn.Conv1d(1, 3, 3), LIF(3, feature_dim=-2, threshold=0.2), nn.Flatten(), nn.Linear(12, 3),
    ],
}  # fmt: skip


def made(name):
    torch.manual_seed(0)
    return Network(NETWORKS[name]())


def inputs(name, L=3, B=12):
    x = torch.randn(L, B, 6, generator=torch.Generator().manual_seed(1))
    return x.unsqueeze(2) if name == "conv" else x


@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_is_the_exported_integers(name, bits, tmp_path):
    network, x = made(name), inputs(name)
    quantized = QuantizedNetwork(network, x, bits)
    bundle = export(network, x, tmp_path / "bundle", bits=bits)
    seen = {}

    class Listener:
        membrane = False

        def neuron(self, name, neuron, spikes, membrane):
            pass

        def layer(self, name, layer, source, output):
            seen[name] = source

    output, _ = quantized.run(x, listeners=[Listener()])
    for spikes_of, follower in _followers(network):
        ours = seen[follower].spikes.permute(2, 1, 0, *range(3, seen[follower].spikes.ndim))
        ours = ours.flatten(0, 1).flatten(2).detach().numpy()
        assert np.array_equal(ours, bundle.golden.spikes[spikes_of]), spikes_of
        assert ours.any()
    if bundle.golden.values.get(bundle.graph.last.name) is not None:
        exact = bundle.outputs().astype(np.float32)
        assert np.array_equal(in_order(output.detach().numpy()).reshape(len(exact), -1), exact)
    largest = max(np.abs(s.weight).max() for g in bundle.graph.stages for s in g.synapses if s.form != "each")
    assert largest == 2 ** (bits - 1) - 1


def _followers(network):
    """Neurons and the layer behind each, where that is no neuron."""
    pairs = pairwise(network.layers)
    return [
        (name, after) for name, after in pairs if name in network.neurons and after not in network.neurons
    ]


def test_gradients_are_those_of_the_floats_on_the_integers_spikes():
    """Of the last Linear exactly: its input is the integers' decoded spikes."""
    network, x = made("atmn"), inputs("atmn")
    quantized = QuantizedNetwork(network, x, bits=4)
    weights = torch.randn(3, 12, 3)
    (quantized(x) * weights).sum().backward()
    grads = {name: p.grad.clone() for name, p in network.named_parameters()}
    assert all(
        grad.abs().sum() > 0 for name, grad in grads.items() if "weight" in name or "threshold" in name
    )
    train_of = quantized._as_train
    sent = {}
    quantized._as_train = lambda spikes, like: sent.setdefault(len(sent), train_of(spikes, like))
    quantized(x)
    decoded = network["atmn2"].decode(sent[1])
    expected = torch.einsum("lbc,lbn->cn", weights, decoded)
    torch.testing.assert_close(grads["layers.linear3.weight"], expected)


def test_it_shares_its_layers_and_gives_them_back():
    network, x = made("lif"), inputs("lif")
    quantized = QuantizedNetwork(network, x)
    assert quantized["linear1"] is network["linear1"]
    assert type(quantized.plain()) is Network
    assert torch.equal(quantized.plain()(x), network(x))


def test_learning_mends_what_few_bits_cost():
    data = load_digits()
    torch.manual_seed(0)
    network = Network([nn.Linear(64, 32), LIF(32), nn.Linear(32, 24), LIF(24), nn.Linear(24, 10)])
    train(network, data.train.x, data.train.y, TrainConfig(epochs=8))
    floats = accuracy(network, data.test.x, data.test.y)
    sample = data.train.x[:, :64]
    rounded = accuracy(QuantizedNetwork(copy.deepcopy(network), sample, 4), data.test.x, data.test.y)
    quantized = QuantizedNetwork(network, sample, 4)
    history = train(quantized, data.train.x, data.train.y, TrainConfig(epochs=4, learning_rate=1e-3))
    learnt = accuracy(quantized, data.test.x, data.test.y)
    assert history.loss[-1] < history.loss[0]
    assert learnt >= rounded
    assert learnt > floats - 0.01


def test_refusals():
    network, x = made("atmn"), inputs("atmn")
    with pytest.raises(InputError, match="4 to 8 bits, got 3"):
        QuantizedNetwork(network, x, bits=3)
    with pytest.raises(InputError, match="tensor x"):
        QuantizedNetwork(network, x[0])
    with pytest.raises(ExportError, match="relu1: ReLU"):
        QuantizedNetwork(Network([nn.Linear(6, 4), nn.ReLU(), LIF(4)]), x)
    quantized = QuantizedNetwork(made("carried"), x)
    with pytest.raises(InputError, match="from rest"):
        quantized.run(x, {"lif1": None})
