"""Decoding on a CPU by kernels: `prepare` a model, and tokens that come one at a time go through them.

A feed-forward net passes over the rows of W_down whose activation was set to zero where that is faster, which
`prepare` measures, layer by layer, on this machine.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from marsnn import native
from marsnn.checks import count
from marsnn.errors import InputError
from marsnn.refine import kernel
from marsnn.refine.int8 import Int8Linear
from marsnn.refine.model import MarDecoderLayer, MarForCausalLM, layers_of
from marsnn.refine.quick import QuickHead, QuickLayer, idle

Path = Literal["rows", "dense", "plain"]

LOOKED_AT = 64
"""Random tokens whose activations `prepare` measures on, where it is given none."""


@dataclass(frozen=True)
class Choice:
    """How one layer's tokens run."""

    layer: int
    path: Path
    """"rows": rows of W_down whose activation is zero are passed over; "dense": it is read whole; "plain": by
    torch, because of `reason`."""
    share: float
    """Of activations before W_down that stay."""
    dense_ms: float | None = None
    """Of W_down's product, read whole."""
    rows_ms: float | None = None
    """Of the same, rows passed over; None where nothing is."""
    reason: str = ""


def reason_against(layer: MarDecoderLayer) -> str:
    """Why kernels can't run a layer; empty where they can."""
    mixer, mlp = layer.self_attn, layer.mlp
    if any(isinstance(part, Int8Linear) for part in layer.modules()):
        return "its weights are int8"
    weights = list(layer.parameters())
    dtypes = {weight.dtype for weight in weights}
    if any(weight.device.type != "cpu" for weight in weights):
        return "its weights are not on a CPU"
    if len(dtypes) > 1 or not dtypes <= set(kernel.DTYPES):
        return "its weights are not all float32 or all bfloat16"
    if not all(weight.is_contiguous() for weight in weights):
        return "its weights have gaps"
    if any(weight.is_inference() for weight in weights):
        return "its weights were made in torch.inference_mode(), where changes can't be seen"
    config = layer.self_attn.config
    if config.norm != "rms" or not config.gated_ffn or not config.causal or not config.rope:
        return "it is not Llama's: its norm, its net, its direction or its positions are others"
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}, not silu"
    if any((mixer.mixer_in, mixer.mixer_out, mlp.ffn_in, mlp.ffn_out)):
        return "it spikes"
    parts = [part for part in layer.modules() if part is not layer]
    if not idle(hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)):
        return "its parts have hooks, which kernels would pass by"
    return ""


def prepare(
    model: MarForCausalLM, tokens: Tensor | None = None, rounds: int = 9, seed: int = 0
) -> list[Choice]:
    """Have tokens that come one at a time, of at most `kernel.MOST` samples, run through kernels.

    Layers are measured in shuffled order, all of them in every round, so that each finds its weights in
    memory, as it does while decoding, and not in the cache. Weights, files and every other call stay as they
    are; sparse layers hold a second, transposed copy of W_down. Preparing again measures again.

    Args:
        model: on a CPU, in float32 or bfloat16.
        tokens: ids [B, L] on whose activations it is measured; random ones by default.
        rounds: how often each path of each layer is timed.
        seed: of the random tokens and orders.

    Returns:
        What each layer does. A layer whose weights, parts or hooks change afterwards runs by torch until the
        model is prepared again, and so does an attention in a call that asks for its weights; a write through
        `.data` alone goes unseen.

    Raises:
        InputError: a model without layers of this package, or fewer than one round.
    """
    if not isinstance(model, MarForCausalLM):
        raise InputError(f"prepare takes a MarForCausalLM, got a {type(model).__name__}; convert it first")
    count("rounds", rounds)
    release(model)
    layers = layers_of(model)
    reasons = [reason_against(layer) for layer in layers]
    inner = _activations(model, tokens, seed)
    try:
        quick = {i: QuickLayer(layer) for i, layer in enumerate(layers) if not reasons[i]}
    except native.BuildError as error:
        reasons, quick = [str(error)] * len(layers), {}
    times = _measured(quick, inner, rounds, random.Random(seed))
    found = []
    for i, layer in enumerate(layers):
        sparse = layer.mlp.sparsifier
        share = 1.0 if sparse is None else float((sparse(inner[i]) != 0).float().mean())
        if i not in quick:
            found.append(Choice(i, "plain", share, reason=reasons[i]))
            continue
        whole, passing = times[i]
        dense, rows = statistics.median(whole), statistics.median(passing) if passing else None
        if rows is not None and sparse is not None:
            # rows take time as there are many of them: where keep is changed, up to here they win
            quick[i].worthwhile = sparse.keep * dense / rows
        path: Path = "dense" if rows is None or rows > dense else "rows"
        found.append(Choice(i, path, share, dense, rows))
        layer.quick = quick[i]
    head = model.lm_head.weight
    if quick and head.dtype == model.dtype and head.is_contiguous() and not head.is_inference():
        model.lm_head.quick = QuickHead(model)
    return found


def release(model: MarForCausalLM) -> None:
    """Undo `prepare`."""
    for layer in layers_of(model):
        layer.quick = None
    model.lm_head.quick = None


def _activations(model: MarForCausalLM, tokens: Tensor | None, seed: int) -> list[Tensor]:
    """What each layer's sparsifier, or W_down, takes: [tokens, N]."""
    if tokens is None:
        own = torch.Generator().manual_seed(seed)
        tokens = torch.randint(model.config.vocab_size, (1, LOOKED_AT), generator=own)
    found: dict[int, Tensor] = {}
    hooks = []
    for i, layer in enumerate(layers_of(model)):
        part = layer.mlp.down_proj if layer.mlp.sparsifier is None else layer.mlp.sparsifier

        def look(_: Any, args: Any, i: int = i) -> None:
            found[i] = args[0].flatten(0, -2)[-LOOKED_AT:].contiguous()

        hooks.append(part.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            model.model(tokens.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[i] for i in range(len(found))]


def _measured(
    quick: dict[int, QuickLayer], inner: list[Tensor], rounds: int, draw: random.Random
) -> dict[int, tuple[list[float], list[float]]]:
    """Layer -> milliseconds of W_down's product read whole, and with rows passed over, in each round."""
    times: dict[int, tuple[list[float], list[float]]] = {i: ([], []) for i in quick}
    with torch.no_grad():
        for number in range(rounds + 1):
            for skipping in draw.sample((False, True), 2):
                for i in draw.sample(sorted(quick), len(quick)):
                    if skipping and quick[i].sparsifier is None:
                        continue
                    x = inner[i][number % len(inner[i])].unsqueeze(0)
                    quick[i].choose(skipping)
                    started = time.perf_counter()
                    quick[i].down(x)
                    ended = time.perf_counter()
                    if number:  # the first round wakes threads
                        times[i][skipping].append(1e3 * (ended - started))
    return times
