"""Spikes in a refined model: sites, both ways to run, generation, files."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from marsnn.errors import InputError, NonFiniteError
from marsnn.refine import add_spikes, convert, firing_rates, sparsify
from marsnn.refine.config import SITES
from marsnn.refine.model import site_of
from marsnn.spiking import SpikingInput
from tests.refine.models import some_tokens, teacher


def spiking(kind="llama", layers=(1,), double=True, **settings):
    model = convert(teacher(kind), layers)
    model = model.double() if double else model
    settings = settings if settings else {"steps": 4, "fire_at": 0.5}
    return model, add_spikes(model, some_tokens(), **settings)


@pytest.mark.parametrize("mixer", ["ssd", "s4d"])
@pytest.mark.parametrize("per_token", [False, True])
def test_unrolled_steps_equal_one_matmul(mixer, per_token):
    model = convert(teacher("llama biases, head of 8, tied"), [0, 2], mixer=mixer).double()
    tokens = some_tokens()
    sparsify(model, tokens, 0.5, "mask")
    add_spikes(model, tokens, per_token=per_token, steps=5)
    once = model(tokens).logits
    for part in model.modules():
        if isinstance(part, SpikingInput):
            part.unrolled = True
    torch.testing.assert_close(model(tokens).logits, once, rtol=1e-8, atol=1e-8)


def test_every_site_of_every_layer_spikes_and_the_code_is_close():
    model, found = spiking(steps=12, tau=0.5)
    assert {(each.layer, each.site) for each in found} == {(i, site) for i in range(3) for site in SITES}
    tokens = some_tokens()
    dense = convert(teacher(), [1]).double()(tokens).logits
    far = (model(tokens).logits - dense).abs().max() / dense.abs().max()
    assert 0 < far < 0.1
    assert all(each.error < 1e-3 and 0 < each.rate < 1 for each in found)


def test_more_steps_come_closer():
    tokens = some_tokens()
    dense = convert(teacher(), [1]).double()(tokens).logits
    far = [(spiking(steps=T, fire_at=0.5)[0](tokens).logits - dense).square().mean() for T in (2, 4, 8)]
    assert far[0] > 4 * far[1] > 16 * far[2]


def test_rates_are_heard_inside_the_block_only():
    model, _ = spiking()
    with firing_rates(model) as rates:
        model(some_tokens())
        model(some_tokens())
    assert set(rates) == {(layer, site) for layer in range(3) for site in SITES}
    assert all(len(each) == 2 and 0 < each[0] < 1 for each in rates.values())
    model(some_tokens())
    assert all(len(each) == 2 for each in rates.values())


@pytest.mark.parametrize("neuron", ["ATMN", "TMN", "LIF", "PLIF", "TernaryLIF", "IntegerLIF"])
def test_files_keep_every_spike(neuron, tmp_path):
    model, _ = spiking(double=False, neuron=neuron, steps=4)
    tokens = some_tokens()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert set(again.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("layers", [(), (1,), (0, 1, 2)])
def test_cached_generation_equals_uncached(layers):
    model, _ = spiking(layers=layers)
    settings = {"max_new_tokens": 12, "do_sample": False}
    cached = model.generate(some_tokens(), **settings)
    assert torch.equal(cached, model.generate(some_tokens(), use_cache=False, **settings))


def test_sites_can_be_chosen():
    model, found = spiking(sites=["ffn_out"], steps=4)
    assert {each.site for each in found} == {"ffn_out"}
    block = model.model.layers[0]
    assert [getattr(site_of(block, site)[0], site) is None for site in SITES] == [True, True, True, False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"neuron": "Nobody"}, "no neuron named"),
        ({"sites": ["ears"]}, "there is no site 'ears'"),
        ({"stepz": 4}, "no setting 'stepz'"),
    ],
)
def test_bad_settings_leave_the_model_as_it_was(settings, said):
    model = convert(teacher(), [])
    before = model(some_tokens()).logits
    with pytest.raises(InputError, match=said):
        add_spikes(model, some_tokens(), **settings)
    assert model.config.spikes is None
    assert torch.equal(model(some_tokens()).logits, before)


def interrupted(model, tokens, monkeypatch):
    monkeypatch.setattr(SpikingInput, "calibrate", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    add_spikes(model, tokens, steps=4)


def of_one_axis(model, tokens, monkeypatch):
    add_spikes(model, tokens[0], steps=4)


def without_numbers(model, tokens, monkeypatch):
    hook = model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *args: args[-1] * torch.nan)
    try:
        add_spikes(model, tokens, steps=4)
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("calibration", "error"),
    [(interrupted, KeyboardInterrupt), (of_one_axis, InputError), (without_numbers, NonFiniteError)],
)
def test_a_calibration_that_fails_leaves_the_model_as_it_was(calibration, error, monkeypatch):
    model, tokens = convert(teacher(), [1]), some_tokens()
    before, names = model(tokens).logits, [name for name, _ in model.named_modules()]
    with pytest.raises(error):
        calibration(model, tokens, monkeypatch)
    assert model.config.spikes is None
    assert [name for name, _ in model.named_modules()] == names
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert torch.equal(model(tokens).logits, before)
    monkeypatch.undo()
    assert len(add_spikes(model, tokens, steps=4)) == 3 * len(SITES), "and can be given spikes"
