"""A tiny Llama and its tokenizer in a folder, as `marsnn refine` takes them."""

import functools

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 0, "eos_token_id": None,
}  # fmt: skip

TEXT = "the cat sat on the mat and the dog ran to the cat, 12345 times; why? Because it could.\n" * 40


@functools.cache
def tokenizer():
    """Bytes and their commonest pairs, trained on a few lines."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")


@functools.cache
def model(seed=0):
    """Random weights, large enough for tokens to matter; never change it."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer()), **SIZES)).eval()


def write_model(folder, seed=0):
    """Model and tokenizer as save_pretrained leaves them."""
    model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_text(folder):
    """A file to learn and to be measured on."""
    path = folder / "text.txt"
    path.write_text(TEXT)
    return path
