"""Reference: without state space layers the model is the one it was made from. Contract: what users of
transformers do with a model (generate in all ways, save, load, train), for hybrid and pure stacks.
"""

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from marsnn.errors import InputError
from marsnn.refine import MarCache, MarConfig, MarForCausalLM, MarModel, convert
from marsnn.refine.config import ATTENTION, SITES, SLIDING, SSM, config_from
from tests.refine.models import KINDS, SIZES, some_tokens, teacher

STACKS = {"hybrid": (1,), "hybrid, first": (0, 2), "pure": (0, 1, 2)}
MIXERS = {
    "ssd": {"mixer": "ssd"},
    "ssd softmax": {
        "mixer": "ssd",
        "mixer_settings": {"feature_map": "softmax", "normalize": True, "scale_input": False, "gate": False},
    },
    "s4d": {"mixer": "s4d"},
}
stacks = pytest.mark.parametrize("stack", STACKS)
mixers = pytest.mark.parametrize("mixer", MIXERS)


def refined(stack="hybrid", mixer="ssd", kind="llama"):
    torch.manual_seed(1)
    model = convert(teacher(kind), STACKS[stack], **MIXERS[mixer])
    with torch.no_grad():  # leave the start, at which much is zero
        for name, parameter in model.named_parameters():
            if "self_attn.core" in name or "a_proj" in name or "z_proj" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def written(model, tokens, **settings):
    """The tokens that greedy generation adds, and their scores [new, B, vocabulary]."""
    settings = {
        "max_new_tokens": 12,
        "do_sample": False,
        "attention_mask": torch.ones_like(tokens),
        **settings,
    }
    made = model.generate(tokens, return_dict_in_generate=True, output_logits=True, **settings)
    return made.sequences[:, tokens.shape[1] :], torch.stack(made.logits)


# ---- the same model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_state_space_layers_nothing_changes(kind):
    model, tokens = convert(teacher(kind), ()), some_tokens()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, teacher(kind)(tokens).logits, rtol=0, atol=2e-5)
    ours, theirs = written(model, tokens), written(teacher(kind), tokens)
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-4)


def test_positions_are_exact_in_bfloat16(tmp_path):
    LlamaForCausalLM(LlamaConfig(**{**SIZES, "max_position_embeddings": 2048})).save_pretrained(tmp_path)
    source = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model, tokens = convert(source, []), some_tokens(1, 1000)
    assert model.dtype == torch.bfloat16
    assert dict(model.named_buffers())["model.rotary_emb.inv_freq"].dtype == torch.float32
    assert torch.equal(model(tokens).logits, source(tokens).logits)
    model.save_pretrained(tmp_path / "ours")
    again = MarForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_stay_keep_their_weights(kind):
    source, model = teacher(kind), convert(teacher(kind), (1,))
    own = model.state_dict()
    for name, weight in source.state_dict().items():
        if "layers.1.self_attn" not in name or "v_proj" in name:
            assert torch.equal(own[name], weight), name
    assert model.config.layer_types[1] == SSM
    assert SSM not in (model.config.layer_types[0], model.config.layer_types[2])


def test_a_window_is_that_of_its_layers():
    assert config_from(teacher("qwen2 with windows").config).layer_types == [ATTENTION, ATTENTION, SLIDING]
    assert config_from(teacher("mistral").config, (0,)).layer_types == [SSM, SLIDING, SLIDING]
    assert config_from(teacher("mistral without window").config).layer_types == [ATTENTION] * 3


def test_no_two_configurations_share_their_settings():
    given = {"steps": 4}
    first, second = MarConfig(spikes={"settings": given}), MarConfig(spikes={})
    first.spikes["settings"]["tau"] = 0.5
    second.spikes["settings"]["steps"] = 3
    second.spikes["sites"].pop()
    second.mixer_settings["gate"] = False
    assert given == {"steps": 4}
    assert MarConfig(spikes={}).spikes == {
        "neuron": "ATMN", "sites": list(SITES), "per_token": False, "settings": {},
    }  # fmt: skip
    assert MarConfig().mixer_settings["gate"] is True


# ---- generating -------------------------------------------------------------------------------------


@mixers
@stacks
def test_cached_generation_is_uncached(stack, mixer):
    model, tokens = refined(stack, mixer), some_tokens()
    cached, without = written(model, tokens), written(model, tokens, use_cache=False)
    assert torch.equal(cached[0], without[0])
    torch.testing.assert_close(cached[1], without[1], rtol=0, atol=2e-4)
    assert len(cached[0].unique()) > 3


@mixers
@stacks
def test_left_padding_changes_nothing(stack, mixer):
    model, tokens = refined(stack, mixer), some_tokens()
    padding = torch.zeros(2, 7, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(tokens)], 1)
    plain, padded = (
        written(model, tokens),
        written(model, torch.cat([padding, tokens], 1), attention_mask=mask),
    )
    assert torch.equal(plain[0], padded[0])
    torch.testing.assert_close(plain[1], padded[1], rtol=0, atol=2e-4)


@mixers
@stacks
@pytest.mark.parametrize(
    "how",
    [{"prefill_chunk_size": 10}, {"cache_implementation": "static", "disable_compile": True}],
    ids=["chunked prefill", "static cache"],
)
def test_other_ways_to_the_same_tokens(stack, mixer, how):
    model, tokens = refined(stack, mixer), some_tokens()
    plain, other = written(model, tokens), written(model, tokens, **how)
    assert torch.equal(plain[0], other[0])
    torch.testing.assert_close(plain[1], other[1], rtol=0, atol=2e-4)


@mixers
@stacks
def test_beam_search_takes_states_along(stack, mixer):
    model, tokens = refined(stack, mixer), some_tokens()
    settings = {
        "max_new_tokens": 10, "do_sample": False, "num_beams": 3, "attention_mask": torch.ones_like(tokens)
    }  # fmt: skip
    cached = model.generate(tokens, **settings)
    assert torch.equal(cached, model.generate(tokens, use_cache=False, **settings))


def test_sampling_repeats_with_its_seed():
    model, tokens = refined("pure"), some_tokens()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(
            model.generate(tokens, max_new_tokens=10, do_sample=True, attention_mask=torch.ones_like(tokens))
        )
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@mixers
def test_states_keep_their_size_and_place(mixer):
    model, tokens = refined("pure", mixer), some_tokens(length=40)
    cache = MarCache(model.config)
    with torch.no_grad():
        model(tokens[:, :20], past_key_values=cache)
        before = [
            (each.data_ptr(), each.shape)
            for layer in cache.layers
            for each in layer.recurrent_states.values()
        ]
        assert cache.get_seq_length() == 20
        for token in range(20, 40):
            model(tokens[:, token : token + 1], past_key_values=cache)
    after = [
        (each.data_ptr(), each.shape) for layer in cache.layers for each in layer.recurrent_states.values()
    ]
    assert before == after
    assert cache.get_seq_length() == 40
    cache.reset()
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        again = model(tokens[:, :20], past_key_values=cache).logits
        torch.testing.assert_close(again, model(tokens[:, :20]).logits, rtol=0, atol=1e-5)


def test_transformers_own_cache_serves_hybrids():
    model, tokens = refined("hybrid"), some_tokens()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in tokens.split(11, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens).logits, rtol=0, atol=1e-4)


@mixers
def test_samples_of_a_cache_are_repeated_and_chosen(mixer):
    model, tokens = refined("pure", mixer), some_tokens()
    cache = MarCache(model.config)
    with torch.no_grad():
        model(tokens[:, :-1], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        last = model(tokens[:, -1:].flip(0), past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(last, model(tokens).logits[:, -1].flip(0), rtol=0, atol=1e-4)


def test_s4d_refuses_padding_that_it_would_remember():
    model, tokens = refined("pure", "s4d"), some_tokens()
    mask = torch.ones_like(tokens)
    mask[0, -3:] = 0
    with pytest.raises(InputError, match="pad left"):
        model(tokens, attention_mask=mask)


# ---- saving, training -------------------------------------------------------------------------------


@mixers
@stacks
def test_a_saved_model_comes_back_by_the_auto_classes(stack, mixer, tmp_path):
    model, tokens = refined(stack, mixer), some_tokens()
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, MarConfig)
    assert config.layer_types == model.config.layer_types
    inner = AutoModel.from_pretrained(tmp_path)
    assert isinstance(inner, MarModel)
    with torch.no_grad():
        assert torch.equal(inner(tokens).last_hidden_state, model.model(tokens).last_hidden_state)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, MarForCausalLM)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_a_llamas_folder_loads_under_a_config_with_state_space_layers(tmp_path):
    source = teacher()
    source.save_pretrained(tmp_path)
    model = MarForCausalLM.from_pretrained(tmp_path, config=config_from(source.config, (1,)))
    assert torch.equal(model.mixer(1).v_proj.weight, source.model.layers[1].self_attn.v_proj.weight)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert model.mixer(1).core.decay_bias[0].item() == pytest.approx(0.0, abs=1e-6)  # SSDCore's own start


@mixers
@stacks
def test_checkpointed_gradients_are_gradients(stack, mixer):
    model, tokens = refined(stack, mixer), some_tokens()
    found = []
    for checkpointed in (False, True):
        model.train()
        if checkpointed:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.zero_grad()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-6)
        assert grad.abs().sum() > 0, name


@mixers
def test_bfloat16_is_close_to_float32(mixer):
    model, tokens = refined("hybrid", mixer), some_tokens()
    with torch.no_grad():
        wide = model(tokens).logits
        narrow = model.to(torch.bfloat16)(tokens).logits
    assert narrow.dtype == torch.bfloat16
    source = copy.deepcopy(teacher())  # what 16 bits do to the dense model
    with torch.no_grad():
        dense = source(tokens).logits
        rounded = source.to(torch.bfloat16)(tokens).logits
    lost = (rounded - dense).std() / dense.std()
    assert (narrow - wide).std() / wide.std() < 4 * lost < 0.2
    tokens, _ = written(model, tokens)
    assert tokens.shape == (2, 12)


@mixers
@pytest.mark.parametrize("placed", ["cpu", "auto", {"": "cpu"}], ids=["cpu", "auto", "by name"])
def test_a_device_map_places_it(mixer, placed, tmp_path):
    model, tokens = refined("hybrid", mixer), some_tokens()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=placed)
    assert torch.equal(again(tokens.to(again.device)).logits.cpu(), model(tokens).logits)


@pytest.mark.parametrize("stack", ["hybrid", "pure"])
def test_a_llamas_folder_loads_under_another_configuration(stack, tmp_path):
    teacher().save_pretrained(tmp_path)
    config = config_from(teacher().config, STACKS[stack])
    model = MarForCausalLM.from_pretrained(tmp_path, config=config)
    for name, weight in teacher().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert model(some_tokens()).logits.isfinite().all()


# ---- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: config_from(GPT2Config()), "can't refine a 'gpt2' model"),
        (lambda: config_from(teacher().config, (3,)), "no layer 3: the model has 0 to 2"),
        (lambda: MarConfig(**SIZES, mixer="lstm"), "mixer must be one of ssd, s4d, got 'lstm'"),
        (lambda: MarConfig(**SIZES, mixer_settings={"heads": 3}), "mixer 'ssd' has no setting 'heads'"),
        (lambda: MarConfig(**SIZES, layer_types=["conv"] * 3), "layer_types may be .* got 'conv'"),
        (lambda: MarConfig(**SIZES, layer_types=[SLIDING] * 3), "sliding_window must be a number"),
        (lambda: refined().mixer(0), r"layer 0 is no state space layer; those are \[1\]"),
        (lambda: refined()(None), "give either input_ids or inputs_embeds"),
    ],
)
def test_what_can_not_be_is_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
