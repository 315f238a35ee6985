"""A layer's spiking feed-forward net as a Network, and on to Lava."""

import pytest
import torch

from marsnn.energy import count
from marsnn.errors import InputError
from marsnn.gated import GatedLinear
from marsnn.hardware import export, verify
from marsnn.refine import add_spikes, convert, ffn_inputs, ffn_network, sparsify
from tests.refine.models import some_tokens, teacher

BIASED = "llama biases, head of 8, tied"


def refined(kind="llama", mode=None, keep=0.5, double=True, **settings):
    model = convert(teacher(kind), [1])
    model = model.double() if double else model
    if mode is not None:
        sparsify(model, some_tokens(), keep, mode)
    add_spikes(model, some_tokens(), **(settings or {"steps": 4}))
    return model


@pytest.mark.parametrize("neuron", ["ATMN", "TMN", "LIF"])
@pytest.mark.parametrize("kind", ["llama", BIASED])
@pytest.mark.parametrize("mode", [None, "threshold", "mask"])
def test_equals_the_models_own(kind, mode, neuron):
    model, tokens = refined(kind, mode, neuron=neuron, steps=5), some_tokens(seed=1)
    for layer in range(3):
        network = ffn_network(model, layer)
        assert network.names == ("ffn_in", "gated", "ffn_out", "down_proj")
        assert isinstance(network["gated"], GatedLinear)
        x = ffn_inputs(model, layer, tokens)
        assert x.shape == (33, 2, 24)
        expected = model.model.layers[layer].mlp(x)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)
        assert (network["gated"].level is not None) == (mode == "threshold")


def test_the_inputs_are_those_of_the_run():
    model, tokens = refined(), some_tokens(seed=1)
    x = ffn_inputs(model, 2, tokens)
    inside = []
    model.model.layers[2].mlp.register_forward_hook(lambda _, args, out: inside.append((args[0], out)))
    model(tokens)
    assert torch.equal(x.transpose(0, 1), inside[0][0])
    torch.testing.assert_close(ffn_network(model, 2)(x).transpose(0, 1), inside[0][1], rtol=0, atol=1e-12)


def test_it_is_a_copy():
    model = refined(mode="mask")
    x = ffn_inputs(model, 0, some_tokens())
    network = ffn_network(model, 0)
    before = network(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(network(x), before)


def test_masked_weights_are_no_synapses():
    model = refined(mode="mask")
    counts = count(ffn_network(model, 0), ffn_inputs(model, 0, some_tokens()))
    down = model.model.layers[0].mlp.down_proj
    assert 0 < counts.layers["down_proj"].ac < counts.layers["down_proj"].dense_ac
    assert (ffn_network(model, 0)["down_proj"].weight == 0).sum() == (~down.mask).sum() > 0


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: convert(teacher(), [1]), r"layer 0 has no spikes at 'ffn_in': add_spikes"),
        (lambda: refined(sites=("ffn_in",), steps=4), r"layer 0 has no spikes at 'ffn_out': add_spikes"),
        (lambda: refined(mode="topk"), "layer 0 is sparse by 'topk', a sort .* mode='threshold'"),
        (lambda: refined(per_token=True, steps=4), r"ffn_in scales each token.*per_token=False"),
        (lambda: refined(neuron="IntegerLIF", steps=4), "has IntegerLIF neurons.*neuron='ATMN'"),
        (lambda: refined(neuron="LIF", carry="sequence", steps=4), "carry='sequence'; .*carry='token'"),
    ],
)
def test_what_has_no_exact_form_is_refused_in_one_line(build, told):
    with pytest.raises(InputError, match=told) as caught:
        ffn_network(build(), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [-1, 3, True, "0"])
def test_no_such_layer(layer):
    model = refined()
    with pytest.raises(InputError, match="the model has 0 to 2"):
        ffn_network(model, layer)
    with pytest.raises(InputError, match="the model has 0 to 2"):
        ffn_inputs(model, layer, some_tokens())


def test_another_activation_is_refused():
    model = refined()
    model.config.hidden_act = "relu"
    with pytest.raises(InputError, match="no activation 'relu'; known: 'silu'"):
        ffn_network(model, 0)


@pytest.mark.parametrize("mode", [None, "threshold", "mask"])
def test_on_to_a_bundle(mode, tmp_path):
    model = refined(BIASED, mode, double=False, steps=6)
    bundle = export(ffn_network(model, 1), ffn_inputs(model, 1, some_tokens()), tmp_path / "bundle")
    assert [stage.kind for stage in bundle.graph.stages] == ["atmn", "gate", "atmn", "sum"]
    assert bundle.report("certificate")["safe"] is True
    output = bundle.report("drift")["output"]
    assert output["rms_error"] < 0.1 * output["rms"]
    if mode == "threshold":
        assert (bundle.golden.values["gated"] == 0).mean() > 0.3
    assert verify(bundle.path, simulator="integer").ok


@pytest.mark.lava
@pytest.mark.xdist_group("lava")
@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        (None, {"steps": 4}),
        ("threshold", {"steps": 6, "fire_at": 0.5}),
        ("mask", {"steps": 5, "tau": 1.0}),
        (None, {"steps": 3, "tau": 2.0}),
    ],
)
def test_lava_agrees_on_everything(mode, settings, tmp_path, warm_lava):
    model = refined(BIASED, mode, double=False, **settings)
    bundle = export(ffn_network(model, 1), ffn_inputs(model, 1, some_tokens()), tmp_path / "bundle")
    verification = verify(bundle.path)
    assert verification.ok, verification.first
    assert verification.simulator == "lava"
    assert verification.slots == 66 * settings["steps"] * (24 + 40)
    assert (verification.values, verification.sums) == (66 * 40, 66 * 24)
    assert min(verification.positive, verification.negative) > 100
