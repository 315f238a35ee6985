"""Golden: what a converted layer starts as. Reference: the fit against lstsq. Unit: training, resuming."""

import copy
import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from marsnn.errors import DivergedError, FileError, InputError, NonFiniteError
from marsnn.refine import AlignConfig, align, alignment, convert
from marsnn.refine.alignment import cut, observed
from marsnn.refine.transfer import fit, relative_error
from tests.refine.models import SIZES, some_tokens, teacher

CONFIG = AlignConfig(updates=30, length=16, sequences=6, held_out=2, warmup=5)
TOKENS = some_tokens(1, 8 * 16)[0]


def taught(layer=1):
    return observed(teacher(), TOKENS.view(-1, 16), [layer])[layer]


def test_a_converted_layer_is_linear_attention_that_forgets():
    # by hand: S = decay S + (1 - decay) k v^T, y = q S / sqrt(P), keys and values shared by two heads each
    source = teacher()
    model = convert(source, (1,), mixer_settings={"feature_map": "none", "rope": False})
    x = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    attention = source.model.layers[1].self_attn
    q, k, v = (getattr(attention, f"{name}_proj")(x[0]).view(5, -1, 6).double() for name in ("q", "k", "v"))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    decay = torch.sigmoid(-model.mixer(1).core.decay_bias.double())
    state, rows = torch.zeros(4, 6, 6, dtype=torch.float64), []
    for token in range(5):
        entering = (1 - decay)[:, None, None] * k[token].unsqueeze(-1) * v[token].unsqueeze(-2)
        state = decay[:, None, None] * state + entering
        rows.append((q[token].unsqueeze(-2) @ state).flatten() / 6**0.5)
    wanted = torch.stack(rows).float() @ attention.o_proj.weight.t()
    with torch.no_grad():
        torch.testing.assert_close(model.mixer(1)(x)[0][0], wanted, rtol=1e-4, atol=1e-5)


def test_the_fit_is_least_squares():
    model, (x, y) = convert(teacher(), (1,)), taught()
    mixer, seen = model.mixer(1), []
    mixer.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    before = relative_error(mixer, x, y)
    seen.clear()
    fit(mixer, x, y)
    features = torch.cat([each.transpose(0, 1).flatten(0, 1) for each in seen]).double()
    best = torch.linalg.lstsq(features, y.flatten(0, 1).double()).solution
    residual = (features @ best - y.flatten(0, 1).double()).square().sum() / y.double().square().sum()
    after = relative_error(mixer, x, y)
    assert residual <= after < 1.05 * residual + 1e-3
    assert after < min(before, 1.0)


def test_a_fit_of_nan_is_refused():
    model, (x, y) = convert(teacher(), (1,)), taught()
    with pytest.raises(NonFiniteError, match="can't be fitted"):
        fit(model.mixer(1), x, y * torch.nan)


def test_training_lowers_the_error_on_what_it_has_not_seen():
    longer = dataclasses.replace(CONFIG, updates=150, sequences=60, held_out=4)
    tokens = some_tokens(1, 64 * 16)[0]
    model = convert(teacher(), (0, 2))
    found = align(model, teacher(), tokens, longer)
    assert [each.layer for each in found] == [0, 2]
    for each in found:
        assert each.trained < 0.8 * each.fitted < 0.8
        inputs, targets = observed(teacher(), cut(tokens, longer), [each.layer])[each.layer]
        again = relative_error(model.mixer(each.layer), inputs[-4:], targets[-4:])
        assert again == pytest.approx(each.trained, rel=1e-5)


def test_other_layers_and_the_teacher_stay_as_they_are():
    before = {name: weight.clone() for name, weight in teacher().state_dict().items()}
    model = convert(teacher(), (0, 1))
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.requires_grad_(False)
    align(model, teacher(), TOKENS, CONFIG, layers=[1])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, own[name]) == ("layers.1.self_attn" not in name), name
    assert all(torch.equal(weight, before[name]) for name, weight in teacher().state_dict().items())


def test_groups_and_whole_give_the_same():
    found = []
    for memory in (2.0, 1e-9):
        model = convert(teacher(), (0, 1, 2))
        align(model, teacher(), TOKENS, dataclasses.replace(CONFIG, memory_gib=memory))
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = convert(teacher(), (0, 1, 2))
    wanted = align(whole, teacher(), TOKENS, CONFIG)
    learn, learnt, killed = alignment._learn, [], []

    def until_the_second(mixer, layer, *rest):
        if layer == 2 and not killed:
            killed.append(layer)
            raise ChildProcessError
        learnt.append(layer)
        return learn(mixer, layer, *rest)

    monkeypatch.setattr(alignment, "_learn", until_the_second)
    with pytest.raises(ChildProcessError):
        align(convert(teacher(), (0, 1, 2)), teacher(), TOKENS, CONFIG, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "layer-000.safetensors",
        "layer-001.safetensors",
    ]
    (tmp_path / "layer-001.safetensors").write_bytes(b"half")  # damaged: trained again
    learnt[:] = [0]
    model = convert(teacher(), (0, 1, 2))
    found = align(model, teacher(), TOKENS, CONFIG, folder=tmp_path)
    assert learnt == [0, 1, 2]
    assert [(each.layer, each.trained) for each in found] == [(each.layer, each.trained) for each in wanted]
    own = model.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in whole.state_dict().items())


@pytest.mark.parametrize("change", [{"updates": 31}, {"seed": 1}, {"learning_rate": 1e-3}])
def test_a_layer_of_other_settings_is_trained_again(change, tmp_path):
    align(convert(teacher(), (1,)), teacher(), TOKENS, CONFIG, folder=tmp_path)
    before = (tmp_path / "layer-001.safetensors").read_bytes()
    align(convert(teacher(), (1,)), teacher(), TOKENS, CONFIG, folder=tmp_path)
    assert (tmp_path / "layer-001.safetensors").read_bytes() == before
    other = dataclasses.replace(CONFIG, **change)
    align(convert(teacher(), (1,)), teacher(), TOKENS, other, folder=tmp_path)
    assert (tmp_path / "layer-001.safetensors").read_bytes() != before


def test_a_layer_that_diverges_keeps_its_fit():
    model = convert(teacher(), (1,))
    with pytest.raises(DivergedError, match="loss of layer 1 became NaN or infinite in update"):
        align(model, teacher(), TOKENS, dataclasses.replace(CONFIG, learning_rate=1e30))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert relative_error(model.mixer(1), *taught()) < 1


def test_what_can_not_be_aligned_is_refused():
    model = convert(teacher(), (1,))
    with pytest.raises(InputError, match="20 tokens are too few for 2 sequences of 16"):
        align(model, teacher(), TOKENS[:20], CONFIG)
    with pytest.raises(InputError, match=r"expected token ids \[number\], got torch.float32 \[128\]"):
        align(model, teacher(), TOKENS.float(), CONFIG)
    with pytest.raises(InputError, match="layer 0 is no state space layer"):
        align(model, teacher(), TOKENS, CONFIG, layers=[0])


def test_weights_with_nan_are_refused_by_name():
    broken = copy.deepcopy(teacher())
    with torch.no_grad():
        broken.model.layers[2].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"model.layers.2.mlp.up_proj.weight holds 1 NaN or infinite values of 960"
    ):
        convert(broken, (1,))


def test_a_teacher_or_tokens_of_another_size_are_refused():
    model = convert(teacher(), (1,))
    other = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 2}))
    with pytest.raises(InputError, match=r"the teacher has \(layers, features, tokens\) \(2, 24, 61\)"):
        align(model, other, TOKENS, CONFIG)
    with pytest.raises(InputError, match="token ids must be 0 to 60, got 2 to 61"):
        align(model, teacher(), torch.cat([TOKENS[:-1], torch.tensor([61])]), CONFIG)


def test_a_folder_that_can_not_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "taken").write_text("a file")
    model = convert(teacher(), (1,))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(FileError, match="taken"):
        align(model, teacher(), TOKENS, CONFIG, folder=tmp_path / "taken")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_layer_taught_by_another_teacher_is_trained_again(tmp_path):
    align(convert(teacher(), (1,)), teacher(), TOKENS, CONFIG, folder=tmp_path)
    before = (tmp_path / "layer-001.safetensors").read_bytes()
    other = copy.deepcopy(teacher())
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(1.1)  # neither embedding nor the layer's own attention
    align(convert(other, (1,)), other, TOKENS, CONFIG, folder=tmp_path)
    assert (tmp_path / "layer-001.safetensors").read_bytes() != before


def test_what_fails_leaves_dtype_and_weights():
    model, (x, y) = convert(copy.deepcopy(teacher()).bfloat16(), (1,)), taught()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match="can't be fitted"):
        alignment._learn(model.mixer(1), 1, x, y * torch.nan, CONFIG)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_another_mixer_does_not_drop_trained_layers():
    model = convert(teacher(), (1,))
    assert convert(model, (2,)).config.ssm_layers == [1, 2]
    with pytest.raises(InputError, match=r"mixer can't change: layers \[1\] are 'ssd' mixers already"):
        convert(model, (), mixer="s4d", mixer_settings=None)
