"""Continuing a text: what `marsnn generate` does."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from marsnn.checks import positive
from marsnn.errors import InputError
from marsnn.refine.decode import prepare
from marsnn.refine.job import load_refined
from marsnn.refine.latency import LatencyBudget
from marsnn.refine.loading import load_tokenizer, prefix_of
from marsnn.refine.model import MarForCausalLM


def continuation(
    folder: Path,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 0.95,
    repetition_penalty: float = 1.0,
    chat: bool = False,
    latency_ms: float | None = None,
    fast: bool = True,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Continue a prompt by the model in a folder.

    Args:
        folder: of a refined model, or of one that could be refined.
        prompt: text.   chat: put it into the tokenizer's chat template.
        temperature: 0 takes the likeliest token each time; else sampling from the nucleus `top_p`.
        latency_ms: time for a token; sparse layers keep less where it would take longer.
        fast: let each sparse layer decode the way that measures faster on this machine.
        dtype: of weights and activations.

    Returns:
        text (prompt and continuation), continuation, tokens, ms_per_token, and latency's report; `told` is a
        line for people.

    Raises:
        FileError: no model or tokenizer.   InputError: an empty prompt, one that is too long, a latency for
        a model that isn't sparse.
    """
    if latency_ms is not None:
        positive("--latency-ms", latency_ms)
    tokenizer = load_tokenizer(folder)
    if chat:
        if getattr(tokenizer, "chat_template", None) is None:
            raise InputError(f"{folder}: its tokenizer has no chat template; leave --chat out")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids.long()
    if ids.shape[-1] and not chat:
        ids = torch.cat([prefix_of(tokenizer)[None], ids], 1)  # a template says itself how it begins
    if not ids.shape[-1]:
        raise InputError("the prompt holds no tokens; say something to continue")
    model = load_refined(folder, dtype)
    limit = model.config.max_position_embeddings
    if ids.shape[1] + max_new_tokens > limit:
        raise InputError(
            f"a prompt of {ids.shape[1]:,} tokens and {max_new_tokens:,} new ones are beyond the model's "
            f"{limit:,}; shorten one of them"
        )
    if fast and isinstance(model, MarForCausalLM):
        prepare(model)
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": None}
    clock = _Clock()
    budget = None
    with ExitStack() as stack, torch.no_grad():
        if latency_ms is not None:
            if not isinstance(model, MarForCausalLM):
                raise InputError(f"{folder}: a latency budget needs a refined model with sparse layers")
            budget = stack.enter_context(LatencyBudget(model, latency_ms))
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, streamer=clock,
            repetition_penalty=repetition_penalty, pad_token_id=model.config.pad_token_id or 0, **sampling,
        )[0]  # fmt: skip
    new = made[ids.shape[1] :]
    found: dict[str, Any] = {
        "text": tokenizer.decode(made, skip_special_tokens=not chat),
        "continuation": tokenizer.decode(new, skip_special_tokens=True),
        "tokens": len(new),
        "first_token_ms": clock.first_ms,
        "ms_per_token": clock.ms_per_token,
    }
    told = f"{len(new)} tokens, first after {clock.first_ms:.0f} ms"
    if clock.ms_per_token is not None:
        told += f", then {clock.ms_per_token:.1f} ms a token ({1000 / clock.ms_per_token:.1f} a second)"
    if budget is not None and len(clock.times) > 1:  # the first token is the prompt's
        report = budget.report()
        found["latency"] = report.to_dict()
        told += f"; {report.text()}"
    return {**found, "told": told}


class _Clock(BaseStreamer):
    """When tokens came."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.times: list[float] = []
        self.prompted = False

    def put(self, value: Any) -> None:
        if not self.prompted:  # the prompt itself comes first
            self.prompted = True
            self.started = time.perf_counter()
            return
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def first_ms(self) -> float:
        return 1000 * (self.times[0] - self.started) if self.times else 0.0

    @property
    def ms_per_token(self) -> float | None:
        """The median, the first token left out."""
        gaps = [1000 * (b - a) for a, b in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(gaps) if gaps else None
