"""Small tasks, made on the spot, that a language model solves without being trained on them.

    copy       a list of random tokens is given twice: share of the second that is predicted
    needle     a number is told amid a text: share of its tokens that are predicted when it is asked for
    topic      which of four titles fits a section of Python's language reference
    continue   greedy continuations against the text itself: BLEU, ROUGE-L
    cloze      which of four words of the text stands next; of the ablations, not of `tasks`

None of them is a public benchmark, and none is called by the name of one.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from marsnn.refine.loading import encoded, prefix_of


def tasks(
    model: PreTrainedModel, tokenizer: Any, text: str, number: int, context: int, seed: int
) -> dict[str, Any]:
    """All of them, by name.

    Args:
        model, tokenizer: who is asked, with `torch.no_grad`.
        text: of `read_text`, for needle and continue.
        number: samples of each.   context: tokens that a sample has at most.   seed: of what is drawn.
    """
    return {
        "copy": copying(model, number, context, seed),
        "needle": needle(model, tokenizer, text, number, context, seed),
        "topic": topic(model, tokenizer, number, seed),
        "continue": continued(model, tokenizer, text, number),
    }


def copying(model: PreTrainedModel, number: int, context: int, seed: int) -> dict[str, float]:
    """Share of a repeated list of random tokens that is predicted, by the list's length."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for length in (32, 128, 512):
        if 2 * length > min(context, model.config.max_position_embeddings):
            continue
        rows = max(1, min(number, 2048 // length))
        lists = torch.randint(0, model.config.vocab_size, (rows, length), generator=draw)
        twice = torch.cat([lists, lists], 1).to(model.device)
        right = model(twice, use_cache=False).logits[:, length:-1].argmax(-1) == twice[:, length + 1 :]
        found[str(length)] = right.float().mean().item()
    return found


def needle(
    model: PreTrainedModel, tokenizer: Any, text: str, number: int, context: int, seed: int
) -> dict[str, float]:
    """Share of a told number's tokens that are predicted behind a text, by where in it it was told."""
    draw = random.Random(seed)
    prefix = prefix_of(tokenizer)
    filler = encoded(tokenizer, text, context)
    room = min(context, len(filler) + 64, model.config.max_position_embeddings) - 64
    found: dict[str, float] = {}
    if room < 64:
        return found
    for depth in (0.1, 0.5, 0.9):
        right: list[float] = []
        for _ in range(max(1, number // 4)):
            city = draw.choice(("Paris", "London", "Tokyo", "Rome", "Berlin", "Madrid"))
            secret = str(draw.randrange(10_000, 100_000))
            said = f"\n\nThe secret number of {city} is {secret}.\n\n"
            asked = f"\n\nThe secret number of {city} is"
            at = int(depth * room)
            parts = [prefix, filler[:at], _ids(tokenizer, said), filler[at:room], _ids(tokenizer, asked)]
            answer = _ids(tokenizer, f" {secret}")
            if not len(answer):  # a tokenizer without digits
                return found
            ids = torch.cat([*parts, answer]).to(model.device)
            best = model(ids[None], use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].argmax(-1)
            right += (best.cpu() == answer).float().tolist()
        found[f"{depth:g}"] = sum(right) / len(right)
    return found


def topic(model: PreTrainedModel, tokenizer: Any, number: int, seed: int) -> dict[str, float]:
    """Share of sections of Python's reference whose title is the likeliest of four."""
    from pydoc_data.topics import topics

    draw = random.Random(seed)
    titles = sorted(topics)
    right = 0.0
    prefix = prefix_of(tokenizer)
    for title in draw.sample(titles, min(number, len(titles))):
        choices = [title, *draw.sample([other for other in titles if other != title], 3)]
        text = topics[title].split("\n", 3)[-1].strip()[:400]
        before = _ids(tokenizer, f"{text}\n\nKeyword:")
        scores = []
        for choice in choices:
            after = _ids(tokenizer, f" {choice}")
            if not len(before) or not len(after):  # a tokenizer without letters
                return {}
            ids = torch.cat([prefix, before, after])[None].to(model.device)
            logits = model(ids, use_cache=False, logits_to_keep=len(after) + 1).logits[0, :-1].float()
            scores.append(-F.cross_entropy(logits, after.to(model.device)).item())
        if scores[0] == max(scores):
            right += 1 / scores.count(scores[0])  # a tie is a guess
    return {"accuracy": right / min(number, len(titles)), "chance": 0.25}


def cloze(
    model: PreTrainedModel, tokenizer: Any, words: Sequence[str], number: int, seed: int, before: int = 64
) -> dict[str, float]:
    """Share of places in a text at which its own next word is the likeliest of four, by its tokens' mean.

    The three others are words of the same text, drawn; words have four letters at least.

    Args:
        words: of the text.   number: of places.   before: words that are given.
    """
    draw = random.Random(seed)
    places = [i for i in range(before, len(words)) if words[i].isalpha() and len(words[i]) >= 4]
    if len(places) < 4:
        return {}
    known = sorted({words[i] for i in places})
    prefix = prefix_of(tokenizer)
    right = 0.0
    chosen = draw.sample(places, min(number, len(places)))
    for place in chosen:
        others = [word for word in draw.sample(known, min(4, len(known))) if word != words[place]][:3]
        own = _ids(tokenizer, " ".join(words[place - before : place]))
        ends = [_ids(tokenizer, f" {word}") for word in (words[place], *others)]
        length = max(map(len, ends))
        rows = torch.stack([F.pad(torch.cat([prefix, own, end]), (0, length - len(end))) for end in ends])
        logits = model(rows.to(model.device), use_cache=False, logits_to_keep=length + 1).logits
        logs = logits[:, :-1].float().log_softmax(-1).cpu()
        scores = [
            row[: len(end)].gather(1, end[:, None]).mean().item() for row, end in zip(logs, ends, strict=True)
        ]
        if scores[0] == max(scores):
            right += 1 / scores.count(scores[0])
    return {"accuracy": right / len(chosen), "chance": 0.25}


def continued(
    model: PreTrainedModel, tokenizer: Any, text: str, number: int, prompt: int = 64, new: int = 32
) -> dict[str, Any]:
    """BLEU and ROUGE-L of greedy continuations against the text itself, and the first of them."""
    ids = encoded(tokenizer, text, number * (prompt + new))
    rows = ids[: len(ids) // (prompt + new) * (prompt + new)].view(-1, prompt + new)
    if not len(rows):
        return {}
    prefix = prefix_of(tokenizer)
    prompts = torch.cat([prefix.expand(len(rows), -1), rows[:, :prompt]], 1).to(model.device)
    made = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, min_new_tokens=new,
        do_sample=False, pad_token_id=model.config.pad_token_id or 0,
    ).cpu()  # fmt: skip
    written = [tokenizer.decode(row[prompts.shape[1] :], skip_special_tokens=True) for row in made]
    wanted = [tokenizer.decode(row[prompt:], skip_special_tokens=True) for row in rows]
    own, reference = ([text.split() for text in texts] for texts in (written, wanted))
    return {
        "bleu": bleu(own, reference),
        "rouge_l": sum(map(rouge_l, own, reference)) / len(rows),
        "example": written[0],
    }


def bleu(written: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU of up to four words, one added to counts beyond one word.

    Source: Papineni et al. 2002; smoothing of Lin and Och 2004.
    """
    logs = 0.0
    for n in range(1, 5):
        met = there = 0
        for own, reference in zip(written, wanted, strict=True):
            grams = [Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (own, reference)]
            met += sum((grams[0] & grams[1]).values())
            there += sum(grams[0].values())
        met, there = (met, there) if n == 1 else (met + 1, there + 1)
        if not met or not there:
            return 0.0
        logs += math.log(met / there) / 4
    lengths = [sum(map(len, texts)) for texts in (written, wanted)]
    return math.exp(logs + min(0.0, 1 - lengths[1] / lengths[0]))


def rouge_l(written: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004)."""
    row = [0] * (len(wanted) + 1)
    for word in written:
        before = 0
        for i, other in enumerate(wanted, 1):
            kept = row[i]
            row[i] = before + 1 if word == other else max(row[i], row[i - 1])
            before = kept
    return 2 * row[-1] / (len(written) + len(wanted)) if written and wanted else 0.0


def _ids(tokenizer: Any, text: str) -> Tensor:
    return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]  # type: ignore[no-any-return]
