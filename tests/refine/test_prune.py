"""Golden: features and heads that are known to matter. Property: what is kept is the dense model's own."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from marsnn.bench.generation import SMOLLM2_135M
from marsnn.errors import InputError, NonFiniteError
from marsnn.refine import MarConfig, convert, prepare, prune, pruning, sparsify
from marsnn.refine.config import config_from
from marsnn.refine.pruning import MEASURES, sizes
from marsnn.refine.shapes import priced
from tests.refine.models import KINDS, SIZES, some_tokens, teacher


def logits(model, tokens=None):
    with torch.no_grad():
        return model(some_tokens() if tokens is None else tokens).logits


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_kept_is_the_model(kind, by):
    dense = teacher(kind)
    assert torch.equal(logits(prune(dense, some_tokens(), 1.0, by)), logits(dense))


def places(part, whole, axis):
    """Where in a matrix the lines of a smaller one stand, each once."""
    own, all_lines = part.movedim(axis, 0), whole.movedim(axis, 0)
    found = [int((all_lines == line).flatten(1).all(1).nonzero().item()) for line in own]
    assert found == sorted(set(found))
    return found


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("kind", ["llama", "llama biases, head of 8, tied", "mistral", "qwen2"])
def test_smaller_matrices_are_lines_of_the_dense_ones(kind, by):
    dense = convert(teacher(kind), [])
    small = prune(teacher(kind), some_tokens(), 0.6, by, kv_heads=1)
    width = dense.config.head_dim
    told = small.refinement["prune"]
    assert (told["kv_heads"], small.config.num_key_value_heads) == (1, 1)
    assert small.config.num_attention_heads == 2
    assert small.config.intermediate_size == told["features"] < 40
    chosen = []
    for own, theirs in zip(small.model.layers, dense.model.layers, strict=True):
        features = places(own.mlp.up_proj.weight, theirs.mlp.up_proj.weight, 0)
        assert places(own.mlp.gate_proj.weight, theirs.mlp.gate_proj.weight, 0) == features
        assert places(own.mlp.down_proj.weight, theirs.mlp.down_proj.weight, 1) == features
        keys = places(own.self_attn.k_proj.weight, theirs.self_attn.k_proj.weight, 0)
        assert places(own.self_attn.v_proj.weight, theirs.self_attn.v_proj.weight, 0) == keys
        group = keys[0] // width
        assert keys == list(range(group * width, (group + 1) * width))
        queries = list(range(2 * group * width, 2 * (group + 1) * width))  # two heads share one
        assert places(own.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight, 0) == queries
        assert places(own.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight, 1) == queries
        if own.self_attn.q_proj.bias is not None:
            assert torch.equal(own.self_attn.q_proj.bias, theirs.self_attn.q_proj.bias[queries])
        if own.mlp.up_proj.bias is not None:
            assert torch.equal(own.mlp.up_proj.bias, theirs.mlp.up_proj.bias[features])
            assert torch.equal(own.mlp.down_proj.bias, theirs.mlp.down_proj.bias)
        chosen.append((group, tuple(features)))
    assert len(set(chosen)) > 1  # each layer chooses for itself
    assert torch.equal(small.model.norm.weight, dense.model.norm.weight)


MATTER = [(0, [3, 7, 21, 39]), (1, [0, 1, 2, 3]), (1, [10, 20, 30, 38])]
"""Of each layer the head of keys and values and the features that reach the output."""


def hand_made(matter=MATTER):
    """A Llama of which all other heads and features are read by nobody; head None for both."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    with torch.no_grad():
        for layer, (head, features) in zip(model.model.layers, matter, strict=True):
            other = [each for each in range(40) if each not in features]
            layer.mlp.down_proj.weight[:, other] = 0
            if head is not None:
                layer.self_attn.o_proj.weight[:, 12 * (1 - head) : 12 * (2 - head)] = 0
    return model


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize(("head", "features"), [(None, 4), (1, 16)])
def test_heads_are_left_where_they_matter_more_than_features(by, head, features):
    """2 heads and 4 features are as many weights as 1 head and 16 features: 864 = 12 * 72."""
    model = hand_made([(head, list(range(features)))] * 3)
    small = prune(model, some_tokens(), 2016 / 4608, by)
    wanted = (2 if head is None else 1, features)
    assert (small.config.num_key_value_heads, small.config.intermediate_size) == wanted
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by", MEASURES)
def test_exactly_what_matters_is_kept(by):
    model = hand_made()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    # a layer has 24 * (24 + 24 + 12 + 12) = 1,728 weights of attention and 24 * 3 * 40 = 2,880 of its net
    small = prune(model, some_tokens(), (1728 / 2 + 3 * 24 * 4) / (1728 + 2880), by)
    told = small.refinement["prune"]
    assert (told["kv_heads"], told["features"], told["kept"]) == (1, 4, pytest.approx(1152 / 4608))
    assert json.loads(json.dumps(told))["by"] == by
    for number, (layer, (head, features)) in enumerate(zip(small.model.layers, MATTER, strict=True)):
        theirs = model.model.layers[number]
        assert torch.equal(layer.mlp.up_proj.weight, theirs.mlp.up_proj.weight[features])
        rows = theirs.self_attn.k_proj.weight[6 * head : 6 * head + 6]
        assert torch.equal(layer.self_attn.k_proj.weight, rows)
        assert told["layers"][number] == {"layer": number, "features": 1.0, "heads": 1.0}
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None and each.requires_grad for each in model.parameters())
    assert all(each.requires_grad for each in small.parameters())


def test_importance_is_weight_times_gradient():
    """The largest of 40 features by autograd on the original itself."""
    model, tokens = teacher(), some_tokens()
    weights = [model.model.layers[1].mlp.get_parameter(f"{n}_proj.weight") for n in ("gate", "up", "down")]
    loss = F.cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    gate, up, down = ((w * g).abs() for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True))
    wanted = (gate.sum(1) + up.sum(1) + down.sum(0)).topk(26).indices.sort().values
    small = prune(model, tokens, 0.6, kv_heads=1)
    assert small.config.intermediate_size == 26
    assert torch.equal(small.model.layers[1].mlp.up_proj.weight, weights[1][wanted])


@pytest.mark.parametrize("by", MEASURES)
def test_important_ones_serve_better_than_others(monkeypatch, by):
    tokens = some_tokens(4, 64)
    dense = logits(teacher(), tokens).log_softmax(-1)

    def lost(model):
        own = logits(model, tokens).log_softmax(-1)
        return F.kl_div(own, dense, log_target=True, reduction="sum").item()

    best = prune(teacher(), tokens, 0.75, by)
    usual = pruning._largest
    monkeypatch.setattr(pruning, "_largest", lambda scores, number: usual(-scores, number))
    assert 1.5 * lost(best) < lost(prune(teacher(), tokens, 0.75, by))


def test_sizes_by_hand():
    """SmolLM2-135M: 884,736 weights of attention, 3 heads of keys, 1,728 a feature; 3 / 4 of 3,538,944."""
    config = config_from(LlamaConfig(**SMOLLM2_135M))
    assert sizes(config, 0.75) == {heads: round((2654208 - heads * 294912) / 1728) for heads in (1, 2, 3)}
    assert sizes(config, 0.75, kv_heads=3) == {3: 1024}
    assert sizes(config, 0.9) == {2: 1502, 3: 1331}  # 1 head would take 1,673 features
    assert sizes(config, 1) == {3: 1536}
    assert sizes(config, 0.1) == {1: 34}
    with pytest.raises(
        InputError, match=r"3 heads of keys and values and 1 to 1,536 features can't make up 0\.2"
    ):
        sizes(config, 0.2, kv_heads=3)
    with pytest.raises(
        InputError, match=r"^heads of keys and values and 1 to 1,536 features can't make up 0\.05"
    ):
        sizes(config, 0.05)
    with pytest.raises(InputError, match="at most the model's 3"):
        sizes(config, 0.75, kv_heads=4)


def test_heads_that_no_longer_divide_the_features_travel(tmp_path):
    torch.manual_seed(0)
    sizes_of = {**SIZES, "hidden_size": 32, "num_key_value_heads": 4}
    small = prune(LlamaForCausalLM(LlamaConfig(**sizes_of)), some_tokens(), 0.75, kv_heads=3)
    assert (small.config.num_attention_heads, small.config.head_dim) == (3, 8)
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(small))
    prompt = some_tokens(1, 9)
    written = small.generate(prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(small.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=False), written)
    prepare(small, rounds=1)
    assert torch.equal(small.generate(prompt, max_new_tokens=8, do_sample=False), written)
    with pytest.raises(InputError, match="3 heads can't share 32 features; say head_dim"):
        MarConfig(**{**sizes_of, "num_attention_heads": 3, "num_key_value_heads": 3})


def test_energy_counts_the_smaller_matrices():
    config = prune(teacher(), some_tokens(), 0.6, kv_heads=1).config
    told = priced(config, 1)
    head = 24 * 61
    assert told["mac"] == 3 * (24 * 6 * (2 + 1 + 1 + 2) + 3 * 24 * 26 + 2 * 2 * 6) + head


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": 0}, "share of the layers' weights that stays"),
        ({"keep": 1.5}, "above 0 and at most 1; got 1.5"),
        ({"keep": True}, "got True"),
        ({"keep": float("nan")}, "got nan"),
        ({"by": "luck"}, "gradient or activation, got 'luck'"),
        ({"kv_heads": 0}, "kv_heads must be a whole number"),
        ({"tokens": torch.zeros(5, dtype=torch.long)}, r"expected tokens \[B, L\]"),
        ({"tokens": torch.zeros((2, 1), dtype=torch.long)}, "L of at least 2"),
        ({"tokens": torch.full((1, 4), 61)}, "token ids must be 0 to 60"),
    ],
)
def test_what_cannot_be_pruned_so_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        prune(teacher(), **{"tokens": some_tokens(), **settings})


def test_a_refined_or_damaged_model_is_refused():
    with pytest.raises(InputError, match="state space layers already; prune the dense model"):
        prune(convert(teacher(), [1]), some_tokens())
    sparse = convert(teacher(), [])
    sparsify(sparse, some_tokens(), 0.5)
    with pytest.raises(InputError, match="sparsity already"):
        prune(sparse, some_tokens())
    damaged = hand_made()
    damaged.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="up_proj"):
        prune(damaged, some_tokens())
