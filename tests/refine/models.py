"""Tiny models of the kinds that can be refined, with weights large enough for tokens to matter."""

import functools

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from marsnn.refine import alignment

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip

KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama biases, head of 8, tied": (
        LlamaConfig, LlamaForCausalLM,
        {"attention_bias": True, "mlp_bias": True, "head_dim": 8, "tie_word_embeddings": True},
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 5}),
    "mistral without window": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen2 with windows": (
        Qwen2Config, Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
}  # fmt: skip


@functools.cache
def _teacher(kind):
    config, model, more = KINDS[kind]
    torch.manual_seed(0)
    made = model(config(**SIZES, **more)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return made


def teacher(kind="llama"):
    """A model of that kind; never change it."""
    return _teacher(kind)


def some_tokens(batch=2, length=33, seed=0):
    """Ids [batch, length], none of which is padding."""
    return torch.randint(
        2, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed)
    )


def train_one_layer_then_interrupt(monkeypatch):
    """Have `align` be interrupted in its second layer; the layers trained until then, as they come."""
    learn, trained = alignment._learn, []

    def one_only(mixer, layer, *rest):
        if trained:
            raise KeyboardInterrupt
        trained.append(layer)
        return learn(mixer, layer, *rest)

    monkeypatch.setattr(alignment, "_learn", one_only)
    return trained


def watch_training(monkeypatch):
    """Have `align` go its whole way again; the layers that it trains, as they come."""
    monkeypatch.undo()
    learn, trained = alignment._learn, []
    monkeypatch.setattr(
        alignment, "_learn", lambda mixer, layer, *rest: trained.append(layer) or learn(mixer, layer, *rest)
    )
    return trained
