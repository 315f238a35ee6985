"""A small Llama from scratch, on text that is there: minutes on a CPU, a teacher whose every token is known.

OUT/work/                             settings, tokenizer, tokens, checkpoints; gone when all is done
OUT/model.safetensors, config.json, tokenizer files   an ordinary Hugging Face model
OUT/pretraining.json                  what was learnt on, for how long, and how well; written last
"""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from marsnn.checks import count, positive
from marsnn.errors import FileError, InputError
from marsnn.files import json_text, new_folder, probe, read_json, write_bytes, write_text
from marsnn.progress import say
from marsnn.refine.evaluation import EvaluationConfig, check_texts, evaluate
from marsnn.refine.loading import load_model, load_tokenizer, quietly
from marsnn.refine.loop import Loop, Rows, quiet_arguments, token_rows, wait_for_all
from marsnn.refine.texts import NAMES, read_text
from marsnn.refine.transfer import convert

DONE = "pretraining.json"
"""Written last: whoever finds it finds a whole model."""
FORMAT = "marsnn.pretraining/1"

PAD = "<pad>"
BYTES = 257
"""The least vocabulary: every byte, and the padding."""
PART = 100_000
"""Characters of a part that is cut into tokens by itself."""
HELD_OUT = 16_384
"""Tokens of each held-out text that are measured on."""


@dataclass(frozen=True)
class PretrainConfig:
    """What is learnt, and how; the sentences below are the command line's help too."""

    text: str | tuple[str, ...] = field(
        default="docstrings", metadata={"help": "what is learnt on: docstrings, or a text file; repeatable"}
    )
    held_out: str | tuple[str, ...] = field(
        default=("library", "topics"),
        metadata={"help": "what is measured on at the end: library, topics, stdlib, or a file; repeatable"},
    )
    vocabulary: int = field(default=2048, metadata={"help": "tokens of the tokenizer, bytes among them"})
    hidden_size: int = field(default=192, metadata={"help": "features of the residual stream"})
    layers: int = field(default=6, metadata={"help": "attentions, each with its feed-forward net"})
    heads: int = field(default=6, metadata={"help": "of an attention; they share the features"})
    kv_heads: int = field(default=2, metadata={"help": "heads of keys and values, each for several heads"})
    ffn: int = field(default=512, metadata={"help": "features inside a feed-forward net"})
    length: int = field(default=256, metadata={"help": "tokens of a training sequence"})
    context: int = field(default=2048, metadata={"help": "tokens that the model's configuration allows"})
    updates: int = field(default=4000, metadata={"help": "steps of AdamW"})
    batch: int = field(default=4, metadata={"help": "sequences of an update, in all processes together"})
    learning_rate: float = field(default=6e-3, metadata={"help": "peak rate of AdamW; a cosine follows"})
    warmup: int = field(default=100, metadata={"help": "updates until the peak"})
    weight_decay: float = field(default=0.1, metadata={"help": "of AdamW, on matrices only"})
    save_every: int = field(default=200, metadata={"help": "updates between checkpoints"})
    seed: int = field(default=0, metadata={"help": "of first weights and the order of sequences"})

    def __post_init__(self) -> None:
        for name in (
            "vocabulary", "hidden_size", "layers", "heads", "kv_heads", "ffn", "length", "context", "updates",
            "batch", "warmup", "save_every",
        ):  # fmt: skip
            count(name, getattr(self, name))
        positive("learning_rate", self.learning_rate)
        decay = self.weight_decay
        if not isinstance(decay, Real) or not math.isfinite(decay) or decay < 0:
            raise InputError(f"weight_decay must be finite and >= 0, got {decay!r}")
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise InputError(f"seed must be a whole number >= 0, got {self.seed!r}")
        self._check_sizes()
        for name in ("text", "held_out"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.text:
            raise InputError(f"text is empty; name {NAMES[0]}, or a file")
        if not self.held_out:
            raise InputError("held_out is empty; name library, topics, stdlib, or a file")
        both = [name for name in self.held_out if name in self.text]
        if both:
            raise InputError(f"{both[0]!r} can't be learnt on and held out; choose another held_out")

    def _check_sizes(self) -> None:
        if self.vocabulary < BYTES:
            raise InputError(f"vocabulary must be >= {BYTES}, all bytes and {PAD}, got {self.vocabulary}")
        if self.hidden_size % (2 * self.heads):
            raise InputError(
                f"{self.heads} heads can't share {self.hidden_size} features, an even number each; choose a "
                "hidden_size that is a multiple of 2 * heads"
            )
        if self.heads % self.kv_heads:
            raise InputError(f"{self.kv_heads} kv_heads can't serve {self.heads} heads; choose a divisor")
        if self.length < 2:
            raise InputError(f"length must be >= 2, got {self.length}: a token learns to foretell the next")
        if self.length > self.context:
            raise InputError(f"sequences of {self.length:,} tokens are beyond a context of {self.context:,}")


def pretrain(config: PretrainConfig, out: Path, progress: bool = False) -> LlamaForCausalLM:
    """Train a Llama and its tokenizer on text, and leave them in a folder.

    A run that was killed goes on where it was when the same is called again; one that is done is read. Under
    torchrun processes share each batch, and the first one writes. transformers seeds every global generator.

    Args:
        config: see `PretrainConfig`.
        out: the folder.
        progress: say what is being done.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: too little text, for the vocabulary too; another training in the folder; a batch that
            processes can't share.
        FileError: the folder can't be written, has no room or holds something else.
        DivergedError: the loss became NaN or infinite; the last good checkpoint is kept.
    """
    out, started = Path(out), time.perf_counter()
    work = out / "work"
    arguments = quiet_arguments(
        work, config.updates, config.batch, config.learning_rate, config.warmup, config.weight_decay,
        config.save_every, config.seed,
    )  # fmt: skip
    first = arguments.process_index == 0
    progress = progress and first
    with arguments.main_process_first(local=False):
        done = _done(config, out)
        if not done:
            _check_room(config, out)
            _prepare(config, out, progress)
    if done:
        say("trained already", progress)
        if first:
            shutil.rmtree(work, ignore_errors=True)
        return load_model(out)  # type: ignore[no-any-return]
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise InputError(
            "a Llama this small isn't sharded: pretrain it without FSDP, then go on from its folder"
        )
    ids = load_file(work / "tokens.safetensors")["ids"]
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(llama_config(config))
    parameters = sum(each.numel() for each in model.parameters())
    trained = convert(model, [])  # the same net under our classes, whose products go to the faster library
    loop = Loop(
        model=trained, args=arguments, train_dataset=Rows(token_rows(ids, config.length)), progress=progress
    )
    say(f"training {parameters:,} parameters on {_seen(config):,} tokens", progress)
    losses = loop.go_on()
    seconds = time.perf_counter() - started
    model.load_state_dict(trained.state_dict())
    model.eval()
    if first:
        tokenizer = load_tokenizer(work / "tokenizer")
        _save(model, tokenizer, out)
        say("measuring", progress)
        told = {
            "format": FORMAT,
            "settings": _settings(config),
            "parameters": parameters,
            "tokens": {"there": len(ids), "seen": _seen(config)},
            "loss": _curve(losses, 10)[-1],
            "curve": _curve(losses, 50),
            "bits_per_byte": _bits_per_byte(model, tokenizer, config),
            "device": str(trained.device),
            "processes": arguments.world_size,
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "began_at": loop.began_at,
        }
        write_text(out / DONE, json_text(told))
        shutil.rmtree(work, ignore_errors=True)
    wait_for_all()
    return model


def llama_config(config: PretrainConfig) -> LlamaConfig:
    """The model's shape; embeddings are tied, padding is the only special token.

    First weights have a variance of 1 / hidden_size: with transformers' deviation of 0.02 a model of 192
    features needed twice the tokens for the same loss.
    """
    return LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.context,
        initializer_range=config.hidden_size**-0.5,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def byte_tokenizer(text: str, vocabulary: int) -> PreTrainedTokenizerFast:
    """Bytes and their commonest pairs in a text: every string has tokens, and comes back from them.

    The same text gives the same tokens. Where it supports fewer, `len` of the tokenizer is smaller.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(_parts(text), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, clean_up_tokenization_spaces=False)


def _parts(text: str) -> list[str]:
    return [text[start : start + PART] for start in range(0, len(text), PART)]


# ---- before it trains -----------------------------------------------------------------------------------


def _done(config: PretrainConfig, out: Path) -> bool:
    """Whether this training is finished there; anything else that the folder holds is refused."""
    if (out / DONE).is_file():
        _check_same(config, read_json(out / DONE).get("settings", {}), out)
        return True
    begun = out / "work" / "settings.json"
    if begun.is_file():
        _check_same(config, read_json(begun), out)
    elif out.exists() and not out.is_dir():
        raise FileError(f"{out}: is a file, not a folder; choose another one")
    else:
        strange = [path for folder in (out, out / "work") for path in _visible(folder) if path.name != "work"]
        if strange:
            raise FileError(
                f"{out}: holds {strange[0].name}, which no pretraining left; choose another folder"
            )
    return False


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _settings(config: PretrainConfig) -> dict[str, Any]:
    """JSON-ready."""
    return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(config).items()}


def _check_same(config: PretrainConfig, there: dict[str, Any], out: Path) -> None:
    for name, wanted in _settings(config).items():
        if there.get(name) != wanted:
            raise InputError(
                f"{out}: holds a training with {name} {there.get(name)!r}, got {wanted!r}; repeat its "
                "settings, or choose another folder"
            )


def _check_room(config: PretrainConfig, out: Path) -> None:
    """Refuse a folder that can't be written or filled."""
    probe(out / "work" / "settings.json")
    with torch.device("meta"):
        parameters = sum(each.numel() for each in LlamaForCausalLM(llama_config(config)).parameters())
    wanted = 4 * parameters * (3 * 3 + 2)  # weights and two moments of three checkpoints, the result twice
    free = shutil.disk_usage(out).free
    if free < wanted:
        raise FileError(
            f"{out}: {free / 2**20:,.0f} MiB are free on this disk, training needs {wanted / 2**20:,.0f}; "
            "make room or choose another folder"
        )


def _prepare(config: PretrainConfig, out: Path, progress: bool) -> None:
    """Settings first, then tokenizer, then tokens: whoever finds tokens finds all of them."""
    work = out / "work"
    if (work / "tokens.safetensors").is_file():
        return
    for name in (*config.text, *config.held_out):
        if name not in NAMES:
            read_text(name)  # a missing file is told of before anything is parsed
    enough = 4 * _seen(config)  # characters; a token of these vocabularies is about 3
    say(f"reading {', '.join(config.text)}", progress)
    text = "\n\n".join(read_text(name, enough) for name in config.text)
    tokenizer = byte_tokenizer(text, config.vocabulary)
    parts = tokenizer.backend_tokenizer.encode_batch(_parts(text), add_special_tokens=False)
    ids = torch.tensor([token for part in parts for token in part.ids], dtype=torch.int32)
    _check_text(config, len(ids), len(tokenizer))
    check_texts(tokenizer, _held_out(config))
    write_text(work / "settings.json", json_text(_settings(config)))
    with quietly(), new_folder(work / "tokenizer") as beside:
        tokenizer.model_max_length = config.context
        tokenizer.save_pretrained(beside)
        llama_config(config).save_pretrained(beside)
    write_bytes(work / "tokens.safetensors", save({"ids": ids}))
    say(f"{len(ids):,} tokens of {len(text) / max(1, len(ids)):.2f} characters", progress)


def _check_text(config: PretrainConfig, tokens: int, vocabulary: int) -> None:
    needed = config.batch * config.length
    if tokens < needed:
        raise InputError(
            f"the text {', '.join(config.text)} has {tokens:,} tokens; {needed:,} are needed, one update of "
            f"{config.batch} x {config.length}. Give more text, or a smaller batch or length"
        )
    if vocabulary < config.vocabulary:
        raise InputError(
            f"the text {', '.join(config.text)} supports a vocabulary of {vocabulary:,}, got "
            f"{config.vocabulary:,}; choose a smaller vocabulary, or give more text"
        )


def _seen(config: PretrainConfig) -> int:
    return config.updates * config.batch * config.length


# ---- after it -------------------------------------------------------------------------------------------


def _save(model: LlamaForCausalLM, tokenizer: Any, out: Path) -> None:
    """Model and tokenizer, first beside their place."""
    part = out / "work" / "result"
    try:
        with quietly(), new_folder(part) as beside:
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
    except SafetensorError as error:
        raise FileError(f"{out}: can't write the model: {str(error).splitlines()[0]}; make room") from error
    for file in sorted(part.iterdir()):
        os.replace(file, out / file.name)


def _held_out(config: PretrainConfig) -> EvaluationConfig:
    return EvaluationConfig(
        texts=tuple(config.held_out), tokens=HELD_OUT, context=config.length, tasks=0, contexts=()
    )


def _bits_per_byte(model: LlamaForCausalLM, tokenizer: Any, config: PretrainConfig) -> dict[str, float]:
    """By text, in windows of a training sequence's length, each of which begins without a past."""
    found = evaluate({"dense": model}, tokenizer, _held_out(config)).rows["dense"]["texts"]
    return {name: found[name]["bits_per_byte"] for name in config.held_out}


def _curve(losses: list[float], points: int) -> list[float]:
    """Means of so many equal stretches of updates, or all where there are fewer; nats per token."""
    stretches = Tensor(losses).tensor_split(min(points, len(losses)))
    return [each.mean().item() for each in stretches]
