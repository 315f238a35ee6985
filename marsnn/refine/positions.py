"""How well a model foretells by how much it has read: bits per byte of tokens by their position in a window.

What a model makes of the first few hundred tokens is alike in every window; whether it still knows where
it is at 8,000 shows here alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from marsnn.checks import count
from marsnn.errors import InputError
from marsnn.refine.loading import encoded, prefix_of

PART = 512
"""Tokens whose logits are held at once."""


def bands(length: int, first: int = 256) -> list[int]:
    """Ends of the ranges of positions: 256, 512, 1,024, ... and the length itself."""
    ends = [first]
    while ends[-1] * 2 < length:
        ends.append(ends[-1] * 2)
    return [*(end for end in ends if end < length), length]


def windows_of(tokenizer: Any, text: str, length: int, most: int = 1) -> list[Tensor]:
    """Windows of a text, one behind the other: ids [length + 1] each, the last id foretold but not read.

    Args:
        text: of `read_text`.   length: tokens of a window.   most: windows, where the text has so many.

    Raises:
        InputError: the text is shorter than a window.
    """
    count("length", length)
    count("windows", most)
    ids = encoded(tokenizer, text, most * length + 1)
    number = (len(ids) - 1) // length
    if not number:
        raise InputError(f"the text {text!r} has {len(ids):,} tokens, a window takes {length + 1:,}")
    return [ids[start : start + length + 1] for start in range(0, number * length, length)]


@torch.no_grad()
def by_position(model: PreTrainedModel, tokenizer: Any, windows: Sequence[Tensor]) -> dict[str, float]:
    """Bits per byte of the tokens up to each of `bands(length)`, from the end of the one before.

    Args:
        windows: of `windows_of`, of one length; beyond the model's own, too, where its positions go on.
            Each stands by itself: what was read in one is forgotten in the next.
    """
    prefix = prefix_of(tokenizer)
    ends = bands(len(windows[0]) - 1)
    nats, size = [0.0] * len(ends), [0] * len(ends)
    for window in windows:
        read = torch.cat([prefix, window[:-1]])[None].to(model.device)
        hidden = model.model(read, use_cache=False).last_hidden_state[0, len(prefix) :]
        lost = _lost(model, hidden, window[1:])
        for place, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            nats[place] += sum(lost[begin:end])
            size[place] += len(tokenizer.decode(window[1 + begin : 1 + end]).encode())
    return {str(end): each / math.log(2) / max(1, of) for end, each, of in zip(ends, nats, size, strict=True)}


def _lost(model: PreTrainedModel, hidden: Tensor, wanted: Tensor) -> Sequence[float]:
    """Nats of each token [L], logits made part by part."""
    found: list[float] = []
    for part, right in zip(hidden.split(PART), wanted.split(PART), strict=True):
        logits = model.get_output_embeddings()(part).float()
        found += F.cross_entropy(logits, right.to(logits.device), reduction="none").tolist()
    return found
