"""Round trip: a network and its file; bad files are refused in one line."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from marsnn import surrogate
from marsnn.checkpoint import load_network, save_network
from marsnn.errors import FileError, InputError
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, LeakyIntegrator
from marsnn.simulator import simulate


def every_kind():
    torch.manual_seed(0)
    return Network(
        {
            "in": nn.Linear(6, 8, bias=False),
            "a": ATMN(
                8, 3, tau=2.0, threshold=torch.rand(8) + 0.5, fire_at=0.5, surrogate=surrogate.erf(3.0)
            ),
            "mid": nn.Linear(8, 8),
            "norm": nn.LayerNorm(8),
            "act": nn.GELU(approximate="tanh"),
            "b": LIF(8, 3, beta=torch.linspace(0, 1, 8), threshold=0.3, reset="zero", carry="sequence"),
            "c": ATMN(8, 3, learn_tau=True, learn_threshold=False),
            "out": nn.Linear(8, 5),
            "d": LeakyIntegrator(None, 3, tau=3.0),
        },
        skips={"mid": ["a", "in"][:1], "out": "a"},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, dtype):
    network = every_kind().to(dtype)
    x = torch.randn(4, 2, 6, dtype=dtype)
    again = load_network(save_network(network, tmp_path / "n.safetensors"))
    assert again.names == network.names
    assert again.skips == network.skips
    before, after = simulate(network, x), simulate(again, x)
    assert np.array_equal(before.output, after.output)
    assert all(spikes.any() for spikes in before.spikes.values())
    for name, neuron in network.neurons.items():
        assert again.neurons[name].settings() == neuron.settings()
    assert again["c"].log_threshold.requires_grad is False
    assert again["a"].surrogate == surrogate.erf(3.0)


def test_convolutions(tmp_path):
    network = Network(
        [
            nn.Conv2d(1, 4, 3, padding=1),
            ATMN(4, feature_dim=-3),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 3),
        ]
    )
    x = torch.randn(2, 3, 1, 8, 8)
    again = load_network(save_network(network, tmp_path / "n.safetensors"))
    assert torch.equal(network.eval()(x), again(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool1d(3, 2, ceil_mode=True),
        nn.AvgPool1d(3, 2, padding=1, count_include_pad=False),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.AvgPool2d(3, 2, divisor_override=1),
        nn.MaxPool1d(3, 2, dilation=2),
        nn.MaxPool1d(3, 2, ceil_mode=True),
        nn.MaxPool2d(3, 2, dilation=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect", dilation=2, groups=2, bias=False),
        nn.LayerNorm((8, 8), bias=False),
        nn.LayerNorm(8, elementwise_affine=False, eps=0.5),
        nn.RMSNorm(8, eps=0.5),
        nn.Flatten(start_dim=2),
        nn.GELU("tanh"),
    ],
    ids=repr,
)
def test_every_setting_of_a_layer_is_read_back(layer, tmp_path):
    x = torch.randn(2, 3, 2, 8, *([] if "1d" in type(layer).__name__ else [8]))
    network = Network([layer]).eval()
    again = load_network(save_network(network, tmp_path / "n.safetensors"))
    assert torch.equal(network(x), again(x))
    assert again.layers[network.names[0]].extra_repr() == layer.extra_repr()


def test_unknown_layers_are_refused_before_anything_is_written(tmp_path):
    class Mine(nn.Module):
        clock = "token"

    with pytest.raises(InputError, match="mine1: can't save a Mine"):
        save_network(Network([Mine()]), tmp_path / "n.safetensors")
    assert not list(tmp_path.iterdir())


def described(**change):
    value = {
        "format": "marsnn.network/1",
        "layers": [{"name": "l", "layer": "Linear", "arguments": {"in_features": 2, "out_features": 2}}],
        "skips": {},
        "unrolled": False,
    } | change
    return {"marsnn": json.dumps(value)}


TENSORS = {"layers.l.weight": torch.zeros(2, 2), "layers.l.bias": torch.zeros(2)}
BAD = {
    "no metadata": ({}, TENSORS),
    "other format": (described(format="x"), TENSORS),
    "not a class we know": (
        described(layers=[{"name": "l", "layer": "os.system", "arguments": {}}]),
        TENSORS,
    ),
    "no such neuron": (described(layers=[{"name": "l", "neuron": "X", "arguments": {}}]), TENSORS),
    "bad arguments": (described(layers=[{"name": "l", "layer": "Linear", "arguments": {"x": 1}}]), TENSORS),
    "missing tensors": (described(), {"layers.l.weight": torch.zeros(2, 2)}),
    "wrong shapes": (described(), {**TENSORS, "layers.l.bias": torch.zeros(3)}),
    "metadata is no JSON": ({"marsnn": "{"}, TENSORS),
    "metadata is a list": ({"marsnn": "[]"}, TENSORS),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, tmp_path):
    metadata, tensors = BAD[name]
    save_file(tensors, tmp_path / "n.safetensors", metadata=metadata)
    with pytest.raises(FileError) as caught:
        load_network(tmp_path / "n.safetensors")
    assert "\n" not in str(caught.value)


def test_tensors_that_are_not_the_network_s_are_named(tmp_path):
    """torch says which in its second line."""
    path = save_network(Network([nn.Linear(3, 2)]), tmp_path / "n.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata, weight = file.metadata(), file.get_tensor("layers.linear1.weight")
    save_file({"layers.linear1.weight": weight}, path, metadata=metadata)
    with pytest.raises(FileError, match=r'Missing key\(s\) in state_dict: "layers\.linear1\.bias"') as caught:
        load_network(path)
    assert "\n" not in str(caught.value)


def test_missing_truncated_and_foreign_files(tmp_path):
    path = save_network(every_kind(), tmp_path / "n.safetensors")
    path.write_bytes(path.read_bytes()[:-50])
    (tmp_path / "text").write_text("hello")
    for bad in (path, tmp_path / "text", tmp_path / "none"):
        with pytest.raises(FileError, match=bad.name):
            load_network(bad)


def test_another_librarys_surrogate_is_refused_not_replaced(tmp_path):
    network = Network([nn.Linear(2, 3), LIF(3, surrogate=lambda x: (x > 0).float())])
    with pytest.raises(InputError, match="lif1: its surrogate is another library's"):
        save_network(network, tmp_path / "n.safetensors")
    network["lif1"].surrogate = surrogate.atan()
    assert save_network(network, tmp_path / "n.safetensors").is_file()


def test_a_layer_in_two_places_is_saved_as_two(tmp_path):
    linear, atmn = nn.Linear(4, 4), ATMN(4)
    network = Network([linear, atmn, linear, atmn, linear])
    x = torch.randn(1, 3, 4)
    again = load_network(save_network(network, tmp_path / "n.safetensors"))
    assert torch.equal(network(x), again(x))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("carry", "x"),
        ("reset", "foo"),
        ("detach_reset", "no"),
        ("feature_dim", 7),
        ("steps", 2.5),
        ("steps", 0),
    ],
)
def test_settings_in_a_file_face_the_constructors_checks(setting, value):
    lif = LIF(4)
    with pytest.raises(InputError):
        lif.apply_settings({**lif.settings(), setting: value})
    assert lif.settings() == LIF(4).settings()
