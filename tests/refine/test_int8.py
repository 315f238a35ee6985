"""Golden: bytes and scales by hand. Reference: products in blocks against the whole weight."""

import pytest
import torch
from torch import nn

from marsnn.bench.generation import _filled, token_bytes
from marsnn.errors import NonFiniteError
from marsnn.refine import add_spikes, convert, int8, int8_weights, prepare, sparsify
from marsnn.refine.int8 import Int8Linear
from tests.refine.models import some_tokens, teacher


def test_bytes_by_hand():
    linear = nn.Linear(3, 3)
    linear.weight.data = torch.tensor([[1.27, -0.02, 0.5], [-254.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    made = Int8Linear(linear)
    assert made.weight.tolist() == [[127, -2, 50], [-127, 2, 0], [0, 0, 0]]  # 1.5 rounds to the even 2
    assert made.weight.dtype == torch.int8
    assert made.scale.tolist() == pytest.approx([0.01, 2.0, 0.0], abs=1e-9)
    y = made(torch.tensor([[1.0, 1.0, 2.0]]))
    wanted = torch.tensor([[1.27 - 0.02 + 1.0, -254.0 + 4.0, 0.0]]) + linear.bias
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("block", [1, 50, 100, 1 << 20])
@pytest.mark.parametrize("bias", [False, True])
def test_blocks_are_the_whole_product(monkeypatch, block, bias):
    linear = nn.Linear(37, 23, bias=bias)
    made = Int8Linear(linear)
    monkeypatch.setattr(int8, "BLOCK", block)
    x = torch.randn(2, 5, 37)
    torch.testing.assert_close(made(x), nn.functional.linear(x, made.effective_weight, linear.bias))
    assert ((made.effective_weight - linear.weight).abs() <= made.scale[:, None] * 0.5001).all()


def test_every_projection_of_a_copy(monkeypatch):
    model = convert(teacher(), [1])
    sparsify(model, some_tokens(), 0.5, "mask")
    mask = model.model.layers[0].mlp.down_proj.mask
    made = int8_weights(model)
    assert not any(isinstance(each, nn.Linear) for each in made.modules())
    assert isinstance(made.lm_head, Int8Linear)
    assert bool((made.model.layers[0].mlp.down_proj.weight[~mask] == 0).all())
    assert any(isinstance(each, nn.Linear) for each in model.modules())
    with torch.no_grad():
        wanted, found = model(some_tokens()).logits, made(some_tokens()).logits
    assert 0 < (found - wanted).abs().mean() < 0.1 * wanted.abs().mean()


def test_spikes_meet_bytes_step_by_step_as_at_once():
    model = convert(teacher(), [1])
    add_spikes(model, some_tokens(), steps=3, tau=0.5)
    made = int8_weights(model)
    with torch.no_grad():
        at_once = made(some_tokens()).logits
        for layer in made.model.layers:
            layer.mlp.ffn_in.unrolled = layer.self_attn.mixer_in.unrolled = True
        torch.testing.assert_close(made(some_tokens()).logits, at_once, rtol=1e-3, atol=1e-3)


def test_decoding_reads_a_byte_a_weight_and_leaves_kernels_alone():
    """Vocabulary 61, D 24, F 40, 4 heads of 6 over 2; 7 norms stay in float32."""
    made = int8_weights(teacher())
    with torch.no_grad():
        cache = _filled(made, some_tokens(1, 10), 64)
    weights = 3 * (24 * 24 * 2 + 24 * 12 * 2 + 3 * 24 * 40) + 24 * 61
    assert token_bytes(made, cache) == weights + 4 * (7 * 24 + 3 * 2 * 12 * 10)
    mar = int8_weights(convert(teacher(), [1]))
    prompt = some_tokens(1, 9)
    written = mar.generate(prompt, max_new_tokens=4, do_sample=False)
    assert {choice.reason for choice in prepare(mar, rounds=1)} == {"its weights are int8"}
    assert torch.equal(mar.generate(prompt, max_new_tokens=4, do_sample=False), written)


def test_nan_is_refused():
    linear = nn.Linear(2, 2)
    linear.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="the weight holds 1 NaN"):
        Int8Linear(linear)
