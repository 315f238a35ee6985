"""Unit: who runs, what is counted, that a cache is put back; no timing is asserted."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from marsnn.bench import generation
from marsnn.errors import InputError
from marsnn.refine import convert, prepare, sparsify
from tests.refine.models import SIZES, some_tokens, teacher


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return generation.contestants({**SIZES, "tie_word_embeddings": True}, keep=0.5)


def test_contestants_are_of_one_shape(models):
    assert list(models) == [
        "dense", "dense, int8", "dense, prepared", "half SSM, sparse", "all SSM, sparse",
    ]  # fmt: skip
    assert models["half SSM, sparse"].config.ssm_layers == [1]
    assert models["all SSM, sparse"].config.ssm_layers == [0, 1, 2]
    assert {model.config.vocab_size for model in models.values()} == {61}
    for model in models.values():
        assert model(input_ids=some_tokens()).logits.shape == (2, 33, 61)


def test_int8_is_near_and_leaves_the_model_alone(models):
    tokens = some_tokens()
    dense, quantized = teacher(), generation.dynamic_int8(teacher())
    assert not isinstance(quantized.lm_head, torch.nn.Linear)
    assert isinstance(dense.lm_head, torch.nn.Linear)
    wanted = dense(tokens).logits
    assert (quantized(tokens).logits - wanted).abs().mean() < 0.2 * wanted.abs().mean()


def test_every_model_is_timed_at_every_context(models):
    result = generation.run(models, contexts=(5, 12), new=2, rounds=2, chunk=4)
    json.dumps(result)
    assert [(row["context"], row["model"]) for row in result["rows"]] == [
        (context, name) for context in (5, 12) for name in models
    ]
    for row in result["rows"]:
        assert row["decode_tokens_s"]["median"] > 0
        assert row["prefill_tokens_s"]["median"] > 0
        if row["model"] == "dense":
            assert row["decode_to_first"] == {"median": 1, "low": 1, "high": 1}
    assert result["machine"]["threads"] == torch.get_num_threads()
    table = generation.markdown(result)
    assert table.count("\n") == 3 + len(result["rows"])


def test_every_model_is_warm_and_each_begins_in_turn(models, monkeypatch):
    read = []
    usual, names = generation._filled, {id(model): name for name, model in models.items()}

    def filled(model, prompt, chunk):
        read.append((names[id(model)], prompt.shape[1]))
        return usual(model, prompt, chunk)

    monkeypatch.setattr(generation, "_filled", filled)
    monkeypatch.setattr(generation, "PROMPTED", 6)
    result = generation.run(models, contexts=(5, 7), new=1, rounds=1)
    warm, three, one = read[:5], read[5:20], read[20:]
    assert warm == [(name, generation.WARM) for name in models]
    order = list(models)
    assert [name for name, _ in three[::5]] == order[:3]
    assert all(sorted(name for name, _ in three[at : at + 5]) == sorted(order) for at in (0, 5, 10))
    assert [name for name, _ in one] == order[1:] + order[:1]
    assert [row["prefills"] for row in result["rows"]] == [3] * 5 + [1] * 5
    assert "one beyond 6 tokens" in generation.markdown(result)


@pytest.mark.parametrize("stack", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_cache_is_put_back(kind, stack):
    model = convert(teacher(kind), stack)
    with torch.no_grad():
        cache = generation._filled(model, some_tokens(1, 12), 5)
        assert cache.get_seq_length() == 12
        shapes = [getattr(layer, "keys", torch.zeros(0)).shape for layer in cache.layers]
        for _ in range(3):
            generation._write(model, cache, 4)
            assert {cache.get_seq_length(i) for i in range(3)} == {12}
            assert [getattr(layer, "keys", torch.zeros(0)).shape for layer in cache.layers] == shapes


def test_bytes_by_hand():
    """Vocabulary 61, D 24, F 40, 4 heads of 6 over 2: one layer has 1,728 + 2,880 weights and 2 norms."""
    model = teacher()
    with torch.no_grad():
        cache = generation._filled(model, some_tokens(1, 10), 64)
    weights = 3 * (24 * 24 * 2 + 24 * 12 * 2 + 3 * 24 * 40 + 2 * 24) + 24 + 24 * 61
    keys_and_values = 3 * 2 * 12 * 10
    assert generation.token_bytes(model, cache) == 4 * (weights + keys_and_values)
    int8 = generation.dynamic_int8(model)
    assert generation.token_bytes(int8, cache) == weights - 7 * 24 + 4 * (7 * 24 + keys_and_values)


def test_rows_that_are_passed_over_are_not_counted():
    model = convert(teacher(), [])
    sparsify(model, some_tokens(), [0.25, 0.5, 1.0])
    with torch.no_grad():
        cache = generation._filled(model, some_tokens(1, 10), 64)
    before = generation.token_bytes(model, cache)
    prepare(model, rounds=1)
    for layer in model.model.layers:
        layer.quick.worthwhile = 1.0
    assert before - generation.token_bytes(model, cache) == 4 * 24 * 40 * (0.75 + 0.5)


def test_what_cannot_be_timed_is_refused(models):
    for settings in ({"new": 0}, {"rounds": 0}, {"contexts": (0,)}, {"chunk": 0}, {"prefills": 0}):
        with pytest.raises(InputError, match="whole number"):
            generation.run(models, **{"contexts": (4,), "rounds": 1, **settings})
    with pytest.raises(InputError, match="nothing to time"):
        generation.run({})


def test_the_verb_prints_a_row_for_every_model_and_context(call, tmp_path):
    code, told, err = call(
        "bench", "generation", "--quick", "--rounds", 1, "--contexts", "8,16", "--save", tmp_path / "g.json"
    )
    assert code == 0, err
    rows = json.loads((tmp_path / "g.json").read_text())["rows"]
    assert [row["context"] for row in rows] == [8] * 5 + [16] * 5
    for row in rows:
        assert f"| {row['model']} |" in told
    code, _, err = call("bench", "generation", "--quick", "--contexts", "x")
    assert code == 2
    assert "whole numbers" in err
