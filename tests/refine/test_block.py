"""A whole refined layer as a Network, in integers, and in Lava."""

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.errors import ExportError, InputError
from marsnn.hardware import export, verify
from marsnn.refine import add_spikes, block_inputs, block_network, convert, sparsify
from tests.refine.models import some_tokens, teacher

KINDS = ("llama", "llama biases, head of 8, tied")
MIXERS = {
    "ssd": {"mixer": "ssd"},
    "s4d": {"mixer": "s4d"},
    "s4d without gate": {
        "mixer": "s4d", "mixer_settings": {"gate": False, "state_size": 8, "init": "inv", "dt_min": 0.01},
    },
}  # fmt: skip


def refined(kind="llama", mode=None, steps=5, double=True, mixer="ssd", **spikes):
    torch.manual_seed(0)
    model = convert(teacher(kind), [1], **MIXERS[mixer])
    model = model.double() if double else model
    with torch.no_grad():  # gates, decays and norms that do something
        for name, parameter in model.model.layers[1].named_parameters():
            if name.endswith(("z_proj.weight", "a_proj.weight", "gate_bias", "decay_bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
            if name.endswith("layernorm.weight"):
                parameter.add_(0.5 * torch.randn_like(parameter))
    if mode is not None:
        sparsify(model, some_tokens(), 0.5, mode)
    add_spikes(model, some_tokens(), steps=steps, **spikes)
    return model


@pytest.mark.parametrize("neuron", ["ATMN", "LIF"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [None, "threshold", "mask"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_equals_the_models_own(kind, mode, neuron, mixer):
    model, tokens = refined(kind, mode, neuron=neuron, mixer=mixer), some_tokens(seed=1)
    seen = []
    layer = model.model.layers[1]
    layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    model(tokens)
    x = block_inputs(model, 1, tokens)
    assert torch.equal(x, seen[0][0].transpose(0, 1))
    expected = seen[0][1].transpose(0, 1)
    assert (expected - x).abs().max() > 0.1
    torch.testing.assert_close(block_network(model, 1)(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_part_moves_the_result(mixer):
    """A network that left out a part would be noticed: each of them changes what comes out."""
    model, tokens = refined(mode="threshold", mixer=mixer), some_tokens(seed=1)
    network, x = block_network(model, 1), block_inputs(model, 1, tokens)
    assert any(name.endswith("gate_bias") for name in network.state_dict()) == (mixer != "s4d without gate")
    before = network(x)
    for name, parameter in network.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.5).add_(0.3)
            assert not torch.allclose(network(x), before, atol=1e-4), name
            parameter.copy_(kept)


def test_refusals_say_what_to_do():
    model = refined()
    with pytest.raises(InputError, match=r"layer 0 is attention.* state space layers are 1"):
        block_network(model, 0)
    with pytest.raises(InputError, match="no layer 7"):
        block_inputs(model, 7, some_tokens())
    plain = convert(teacher("llama"), [1])
    with pytest.raises(InputError, match=r"no spikes at 'mixer_in'"):
        block_network(plain, 1)


@pytest.mark.parametrize("mixer", ["s4d", "s4d without gate"])
def test_the_model_is_left_as_it_is(mixer):
    """Its weights and their names, and nothing is shared: what changes the Network changes no model."""
    model, tokens = refined(mixer=mixer), some_tokens(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = {name for name in before if name.startswith("model.layers.1.self_attn.")}
    assert ("model.layers.1.self_attn.gate_bias" in own) == (mixer == "s4d")
    assert "model.layers.1.self_attn.core.gate_bias" not in own
    network, x = block_network(model, 1), block_inputs(model, 1, tokens)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(block_inputs(model, 1, tokens), x)


@pytest.mark.parametrize("mixer", MIXERS)
def test_integers_stay_near_the_floats(mixer, tmp_path):
    model, tokens = refined(mode="threshold", steps=6, double=False, mixer=mixer), some_tokens(seed=1)
    network, x = block_network(model, 1), block_inputs(model, 1, tokens)
    bundle = export(network, x, tmp_path / "bundle")
    kinds = {stage.kind for stage in bundle.graph.stages}
    assert kinds == {"norm", "atmn", mixer[:3], "gate", "sum"}
    drift = bundle.report("drift")
    assert [row["name"] for row in drift["layers"]] == ["mixer_in", "mixer_out", "ffn_in", "ffn_out"]
    assert all(row["teacher_forced"] < 0.05 for row in drift["layers"])
    with torch.no_grad():
        moved = np.moveaxis((network(x) - x).numpy(), 1, 0).reshape(len(bundle.inputs), -1)
    reals = np.moveaxis(x.numpy(), 1, 0).reshape(len(bundle.inputs), -1)
    error = bundle.outputs() - reals - moved
    assert np.sqrt(np.mean(error**2) / np.mean(moved**2)) < 0.15
    assert sum(bundle.golden.saturations.values()) == 0 or "harmless" in str(bundle.report("certificate"))
    # one process for each projection, state space layer, norm, gate and neuron: no stage is a block
    names = {synapse.name for stage in bundle.graph.stages for synapse in stage.synapses}
    inside = {
        "ssd": {f"in_proj.{part}" for part in ("gate", "values", "keys", "queries", "forgetting")},
        "s4d": {"in_proj.gate", "in_proj.values"},
        "s4d without gate": {"in_proj"},
    }[mixer]
    assert {name for name in names if name.startswith("in_proj")} == inside
    assert {"o_proj", "gated.gate", "gated.up", "down_proj"} <= names


@pytest.mark.lava
@pytest.mark.xdist_group("lava")
@pytest.mark.parametrize("mixer", ["ssd", "s4d"])
def test_a_block_in_lava(mixer, warm_lava, tmp_path):
    model, tokens = refined(KINDS[1], "threshold", double=False, mixer=mixer), some_tokens(seed=1)
    bundle = export(block_network(model, 1), block_inputs(model, 1, tokens), tmp_path / "bundle")
    verification = verify(bundle.path)
    assert verification.ok, verification.text()
    assert min(verification.positive, verification.negative) > 100
    assert verification.values > 1000


def test_topk_is_refused_by_name(tmp_path):
    model = refined(mode="topk")
    with pytest.raises(InputError, match="topk"):
        block_network(model, 1)
    network = block_network(refined(), 1)
    layers = dict(network.layers.items())
    layers["act"] = nn.SiLU()
    with pytest.raises(ExportError, match="act: SiLU has no exact integer form"):
        export(type(network)(layers), torch.randn(2, 1, 24).double(), tmp_path / "bundle")
