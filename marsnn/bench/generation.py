"""Speed of language models that write: tokens of a prompt, and tokens one by one, over the context's length.

Every model runs in every round, its projection to the vocabulary included. Beside what a token takes stands
what it takes to read as many bytes of memory as the token must: weights, and keys and values or states.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from marsnn.bench import timing
from marsnn.bench.parts import machine, milliseconds
from marsnn.checks import count
from marsnn.errors import InputError
from marsnn.progress import track

CONTEXTS = (256, 1024, 4096, 8192)
"""Tokens seen before those that are timed."""

CHUNK = 512
"""Tokens of a prompt that go through a model at once."""

PROMPTED = 1024
"""The longest prompt that is timed more than once."""

WARM = 32
"""Tokens of the prompt that every model reads before any is timed."""

READS = 4
"""How often memory is read in a round."""

SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192,
    "rope_theta": 100000.0, "tie_word_embeddings": True,
}  # fmt: skip
"""The shape of a LlamaConfig; the source is the model's own configuration, HuggingFaceTB/SmolLM2-135M."""

SMALL: dict[str, Any] = {
    **SMOLLM2_135M, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
"""For a look at whether all of it runs."""

Model = Callable[..., Any]


# ---- contestants ----------------------------------------------------------------------------------------


def contestants(shape: Mapping[str, Any] = SMOLLM2_135M, keep: float = 0.4) -> dict[str, Any]:
    """Models of one shape with random weights, for speed is no matter of what they hold.

    Args:
        shape: fields of a LlamaConfig.   keep: of activations, where the feed-forward nets are sparse.

    Returns:
        The dense model of transformers; the same in dynamic int8; the dense model prepared, which is what
        kernels alone bring; every second layer a state space layer, and all of them, sparse by "topk" and
        prepared.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from marsnn.refine import MarForCausalLM, prepare
    from marsnn.refine.config import config_from

    config = LlamaConfig(**shape)
    layers = range(config.num_hidden_layers)
    dense = LlamaForCausalLM(config).eval()
    sparse = {"mode": "topk", "keep": keep}
    made: dict[str, Any] = {"dense": dense, "dense, int8": dynamic_int8(dense)}
    for name, ssm, changes in (
        ("dense, prepared", [], {}),
        ("half SSM, sparse", list(layers)[1::2], {"sparsity": sparse}),
        ("all SSM, sparse", list(layers), {"sparsity": sparse}),
    ):
        made[name] = MarForCausalLM(config_from(config, ssm, **changes)).eval()
        prepare(made[name])
    return made


def dynamic_int8(model: nn.Module) -> nn.Module:
    """A copy whose nn.Linear layers hold int8 weights and quantize each activation as it comes.

    Weights have a scale for each output, activations one for each call: torch's dynamic quantization.
    A projection to the vocabulary that shares its weight with the embedding gets one of its own; the
    embedding stays as it is.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
        return torch.ao.quantization.quantize_dynamic(  # type: ignore[no-any-return]
            copy.deepcopy(model), {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        )


# ---- measurement ----------------------------------------------------------------------------------------


def run(
    models: Mapping[str, Model],
    contexts: Sequence[int] = CONTEXTS,
    new: int = 16,
    rounds: int = 5,
    prefills: int = 3,
    vocabulary: int | None = None,
    chunk: int = CHUNK,
) -> dict[str, Any]:
    """Time every model at every context; ratios are to the first model, round by round.

    Args:
        models: name -> a model of transformers, or what is called like one.
        contexts: tokens of random prompts.
        new: tokens that a round writes, the largest logit each; then the cache is put back.
        rounds: of writing, after two that are not kept.
        prefills: of prompts up to `PROMPTED` tokens, of longer ones one; who begins turns from one to the
            next. Before all of them every model reads `WARM` tokens, which is not kept.
        vocabulary: ids to draw from; by default the first model's.
        chunk: tokens of a prompt at once: few enough that memory stays small.

    Returns:
        JSON-ready: machine, libraries, settings, and a row for each model and context.
    """
    for name, value in (("new", new), ("rounds", rounds), ("prefills", prefills), ("chunk", chunk)):
        count(name, value)
    if not models or not contexts:
        raise InputError("nothing to time: give at least one model and one context")
    if vocabulary is None:
        vocabulary = int(next(iter(models.values())).config.vocab_size)  # type: ignore[attr-defined]
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for model in models.values():
            _filled(model, torch.zeros((1, WARM), dtype=torch.long), chunk)
        for place, context in enumerate(track(contexts, "contexts")):
            times = prefills if count("context", context) <= PROMPTED else 1
            rows += _at(models, context, new, rounds, range(place, place + times), vocabulary, chunk)
    return {
        "benchmark": "generation",
        "machine": machine(),
        "libraries": {name: version(name) for name in ("marsnn", "transformers")},
        "new": new,
        "rounds": rounds,
        "prefills": prefills,
        "warm_tokens": WARM,
        "rows": rows,
    }


def fitting(contexts: Sequence[int], limit: int, new: int = 16) -> list[int]:
    """Those contexts that a model of so many positions can have, the last ones short of what is written.

    Raises:
        InputError: none is left.
    """
    found = [min(context, limit - new) for context in contexts if context <= limit]
    if not found or min(found) < 1:
        raise InputError(f"no context to measure speed at: the model has {limit:,} positions")
    return found


def measured(views: Mapping[str, Any], contexts: Sequence[int], rounds: int = 5) -> dict[str, Any]:
    """Speed of the rows of an evaluation: name -> context -> decode, prefill and their ratios to the first.

    Every refined model is prepared, each stage as a model of its own; spikes are simulated, so the speed of a
    row with spikes says nothing of a chip's.

    Args:
        views: models, or `marsnn.refine.stages.View`s; those that leave attentions out are passed over.
        contexts: tokens; those beyond a model's own are left out.   rounds: of `run`.
    """
    from marsnn.refine import MarForCausalLM, prepare
    from marsnn.refine.stages import View

    new = 16
    models: dict[str, Any] = {}
    for name, each in views.items():
        if isinstance(each, View) and not each.mixing:
            continue
        models[name] = each.alone() if isinstance(each, View) else each
        if isinstance(models[name], MarForCausalLM):
            prepare(models[name])
    limit = min(model.config.max_position_embeddings for model in models.values())
    result = run(models, fitting(contexts, limit, new), new, rounds)
    found: dict[str, Any] = {name: {} for name in models}
    for row in result["rows"]:
        found[row["model"]][str(row["context"])] = {
            "decode": row["decode_tokens_s"], "decode_ratio": row["decode_to_first"],
            "prefill": row["prefill_tokens_s"], "prefill_ratio": row["prefill_to_first"],
            "token_mb": row["token_mb"], "limit_to_token": row["limit_to_token"],
        }  # fmt: skip
    return found


def _at(
    models: Mapping[str, Model],
    context: int,
    new: int,
    rounds: int,
    prefills: Sequence[int],
    vocabulary: int,
    chunk: int,
) -> list[dict[str, Any]]:
    """The rows of one context; prefills are numbers that say who begins."""
    draw = torch.Generator().manual_seed(context)
    prompt = torch.randint(vocabulary, (1, context), generator=draw)
    read: dict[str, list[float]] = {name: [] for name in models}
    caches: dict[str, Any] = {}
    names = list(models)
    for number in prefills:
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            caches.pop(name, None)
            started = time.perf_counter()
            caches[name] = _filled(models[name], prompt, chunk)
            read[name].append(time.perf_counter() - started)
    sizes = {name: token_bytes(models[name], caches[name]) for name in names}
    memory = torch.ones(max(sizes.values()) // 4 + 1)  # zeros would be one page, read over and over
    calls: dict[str, Callable[[], Any]] = {}
    for name in names:
        calls[name] = partial(_write, models[name], caches[name], new)
        calls[f"bytes of {name}"] = partial(timing.again, READS, memory[: sizes[name] // 4].sum)
    seconds = timing.rounds(calls, rounds)
    rows = []
    for name in names:
        token = [each / new for each in seconds[name]]
        first = seconds[names[0]]
        bytes_s = [each / READS for each in seconds[f"bytes of {name}"]]
        rows.append({
            "model": name,
            "context": context,
            "prefills": len(prefills),
            "prefill_tokens_s": timing.summary([context / each for each in read[name]]),
            "prefill_to_first": timing.ratio(read[names[0]], read[name]),
            "decode_tokens_s": timing.summary([1 / each for each in token]),
            "decode_to_first": timing.ratio(first, seconds[name]),
            "token_ms": milliseconds(token),
            "token_mb": sizes[name] / 1e6,
            "memory_ms": milliseconds(bytes_s),
            "limit_to_token": timing.ratio(bytes_s, token),
        })  # fmt: skip
    return rows


def _filled(model: Model, prompt: Tensor, chunk: int) -> Any:
    """The cache of a prompt [1, L]."""
    cache = None
    for part in prompt.split(chunk, 1):
        out = model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
    return cache


def _write(model: Model, cache: Any, new: int) -> None:
    """So many tokens behind a cache, which then is as long as before."""
    token = torch.zeros((1, 1), dtype=torch.long)
    for _ in range(new):
        out = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
    rewind(cache, new)


def rewind(cache: Any, tokens: int) -> None:
    """Make a cache so many tokens shorter; a state, and a window that is full, stay as they are."""
    for layer in cache.layers:
        if hasattr(layer, "recurrent_states"):
            if hasattr(layer, "tokens"):
                layer.tokens -= tokens
        elif layer.is_sliding and layer.get_seq_length() >= layer.sliding_window:
            layer.cumulative_length -= tokens
        else:
            layer.crop(-tokens)


def token_bytes(model: Any, cache: Any) -> int:
    """Bytes of weights, keys and values that one token reads, and of states that it reads and writes.

    An embedding counts where it is the projection to the vocabulary, too; rows of W_down that are passed over
    don't, nor do scales and biases of int8 layers.
    """
    seen: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            continue
        for weight in module._parameters.values():
            if weight is not None:
                seen[weight.data_ptr()] = weight.nbytes
        packed = getattr(module, "weight", None)
        if callable(packed):  # dynamic int8
            seen[id(module)] = packed().numel()
        elif isinstance(packed, Tensor) and packed.dtype == torch.int8:  # weight-only
            seen[packed.data_ptr()] = packed.nbytes
        quick: Any = getattr(module, "quick", None)
        if hasattr(quick, "passed_bytes"):
            seen[-id(module)] = -quick.passed_bytes()
    total = sum(seen.values())
    for layer in cache.layers:
        if hasattr(layer, "recurrent_states"):
            for states in (layer.conv_states, layer.recurrent_states):
                total += sum(2 * state.nbytes for state in states.values() if state is not None)
        else:
            total += layer.keys.nbytes + layer.values.nbytes
    return total


# ---- table ----------------------------------------------------------------------------------------------


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    here = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in result["libraries"].items())
    lines = [
        f"{here['device']}, {here['threads']} threads; torch {here['torch']}, {versions}. One sample, "
        f"{result['new']} tokens a round; medians of {result['rounds']} rounds, quartiles in brackets; of "
        f"prompts the median of {result['prefills']}, one beyond {PROMPTED:,} tokens.",
        "",
        "| context | model | prompt, tokens/s | written, tokens/s | to the first | ms a token | MB a token | "
        "ms to read them | reading / token |",
        "|---" * 9 + "|",
    ]
    for row in result["rows"]:
        written, ratio = row["decode_tokens_s"], row["decode_to_first"]
        lines.append(
            f"| {row['context']:,} | {row['model']} | {row['prefill_tokens_s']['median']:.0f} | "
            f"{written['median']:.1f} ({written['low']:.1f}, {written['high']:.1f}) | "
            f"{ratio['median']:.2f} ({ratio['low']:.2f}, {ratio['high']:.2f}) | "
            f"{row['token_ms']['median']:.1f} | {row['token_mb']:.0f} | {row['memory_ms']['median']:.1f} | "
            f"{row['limit_to_token']['median']:.2f} |"
        )
    return "\n".join(lines)
