"""How long an update by SBDS takes, beside a plain distillation of the same student: `marsnn bench step`.

    plain      logits of both, KL(teacher || student) by torch, spikes in every update
    SBDS       the loss of this package with features, spikes in every update
    in turn    the same, every other update without spikes: the method as it is

The three take turns batch by batch; an update is forward, backward and AdamW.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from marsnn.progress import track
from marsnn.refine.calibration import add_spikes, sparsify
from marsnn.refine.features import observed, places
from marsnn.refine.loading import load_model, usual_device
from marsnn.refine.model import MarForCausalLM
from marsnn.refine.sbds import sbds_head_loss
from marsnn.refine.trainer import SbdsConfig, last_hidden, spiking_inputs
from marsnn.refine.transfer import convert

FORMAT = "marsnn.step/1"

SMALL = LlamaConfig(
    vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
)  # fmt: skip
"""The small teacher's shape; weights don't matter for the time."""


def run(
    model: str | None = None, batch: int = 4, length: int = 256, steps: int = 4, rounds: int = 10
) -> dict[str, Any]:
    """Seconds of an update, and ratios to the plain one, JSON-ready.

    Args:
        model: a folder; None for random weights of the small teacher's shape.
        batch: sequences of `length` tokens.   steps: T of ATMN.   rounds: how often all take their turn.
    """
    torch.manual_seed(0)
    teacher = (LlamaForCausalLM(SMALL) if model is None else load_model(model)).to(usual_device()).eval()  # type: ignore[arg-type]
    teacher.requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, teacher.config.vocab_size, (batch, length), generator=draw).to(teacher.device)
    layers = teacher.config.num_hidden_layers
    student = convert(teacher, range(layers // 4, layers // 4 + layers // 2))
    assert isinstance(student, MarForCausalLM)
    sparsify(student, ids, 0.4, "threshold")
    add_spikes(student, ids, steps=steps, tau=0.5, fire_at=0.5)
    student.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    turn = {"SBDS": SbdsConfig(alternate=(0, 1)), "in turn": SbdsConfig()}

    def update(loss: Callable[[], Tensor]) -> float:
        begin = _now()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        return _now() - begin

    seconds: dict[str, list[float]] = {"plain": [], "SBDS": [], "in turn": []}
    for each in spiking_inputs(student):
        each.enabled = True
    update(lambda: _plain(teacher, student, ids))  # kernels are built
    for _ in track(range(rounds), "rounds"):
        seconds["plain"].append(update(lambda: _plain(teacher, student, ids)))
        for name, config in turn.items():
            took = []
            for number in range(2):  # with two updates, both turns are in
                on = config.spikes_in(number)
                for each in spiking_inputs(student):
                    each.enabled = on
                took.append(update(lambda config=config: _sbds(teacher, student, ids, config)))  # type: ignore[misc]
            seconds[name].append(statistics.fmean(took))
            for each in spiking_inputs(student):
                each.enabled = True
    ratios = {
        name: [own / plain for own, plain in zip(each, seconds["plain"], strict=True)]
        for name, each in seconds.items()
    }
    return {
        "format": FORMAT,
        "model": model or "random weights of the small teacher's shape",
        "tokens": batch * length, "steps": steps, "rounds": rounds,
        "threads": torch.get_num_threads(), "device": str(teacher.device),
        "seconds": {name: _spread(each) for name, each in seconds.items()},
        "ratio": {name: _spread(each) for name, each in ratios.items()},
    }  # fmt: skip


def markdown(result: Mapping[str, Any]) -> str:
    """One row a way to learn."""
    lines = [
        f"an update of {result['tokens']:,} tokens, T = {result['steps']}, {result['rounds']} rounds, "
        f"{result['device']}, {result['threads']} threads; {result['model']}",
        "",
        "| update | s | of a plain one (least to most) |",
        "|---|---|---|",
    ]
    for name, each in result["seconds"].items():
        ratio = result["ratio"][name]
        told = f"{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append(f"| {name} | {each['median']:.3f} | {told} |")
    return "\n".join(lines)


def _plain(teacher: PreTrainedModel, student: MarForCausalLM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        theirs = teacher(ids, use_cache=False).logits.log_softmax(-1)
    own = student(ids, use_cache=False).logits.log_softmax(-1)
    return F.kl_div(own, theirs, reduction="sum", log_target=True) / ids.numel()


def _sbds(teacher: PreTrainedModel, student: MarForCausalLM, ids: Tensor, config: SbdsConfig) -> Tensor:
    where = places(student)
    with observed(teacher, where) as theirs, torch.no_grad():
        hidden = teacher.model(ids, use_cache=False).last_hidden_state
    with observed(student, where) as own, last_hidden(student) as last:
        student(ids, use_cache=False, logits_to_keep=1)
    return sbds_head_loss(
        hidden, teacher.lm_head.weight, last[0], student.lm_head.weight, [theirs[key] for key in own],
        list(own.values()), config.alpha, config.beta, config.feature_weight,
    ).loss  # fmt: skip


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
