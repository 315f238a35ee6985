"""What a model can still do, and what a token costs it: one row per checkpoint, all measured alike.

    texts      nats per token, perplexity, bits per byte; against a teacher KL and agreement of first choices
    tasks      `quality`: copy, needle, topic, continue
    layers     how far each layer's output is from the teacher's, of its mean square
    rates      spikes per neuron and step, by layer and site
    energy     estimated from counted operations, at 45 nm in fp32 and int8, by context
    positions  bits per byte by how much was read before, in windows of lengths that were asked for: by
               length, text and end of a range of positions; not of rows whose attentions are left out
    speed      of `marsnn bench generation`, where it was asked for

Quality is measured at the context that the row names.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from marsnn.checks import count
from marsnn.errors import InputError, NonFiniteError
from marsnn.progress import track
from marsnn.refine.calibration import firing_rates
from marsnn.refine.config import config_from
from marsnn.refine.loading import encoded, prefix_of
from marsnn.refine.model import MarForCausalLM
from marsnn.refine.positions import by_position, windows_of
from marsnn.refine.quality import tasks
from marsnn.refine.shapes import priced
from marsnn.refine.stages import View

FORMAT = "marsnn.evaluation/1"

LEAST = 33
"""Tokens of a text to measure on."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How much is looked at."""

    texts: tuple[str, ...] = field(
        default=("topics", "stdlib"), metadata={"help": "held-out texts: library, topics, stdlib, or files"}
    )
    tokens: int = field(default=8192, metadata={"help": "of each text"})
    context: int = field(default=1024, metadata={"help": "tokens of a window; each stands by itself"})
    tasks: int = field(default=16, metadata={"help": "samples of each task; 0 for none"})
    contexts: tuple[int, ...] = field(
        default=(256, 1024, 4096, 8192), metadata={"help": "for energy, as far as the model goes"}
    )
    positions: tuple[int, ...] = field(
        default=(), metadata={"help": "lengths of windows in which quality is told by position"}
    )
    windows: int = field(default=4, metadata={"help": "of each such length and text, where it has so many"})
    seed: int = field(default=0, metadata={"help": "of what is drawn"})

    def __post_init__(self) -> None:
        for name in ("tokens", "context", "windows"):
            count(name, getattr(self, name))
        for context in (*self.contexts, *self.positions):
            count("a context", context)
        if not self.texts:
            raise InputError("texts is empty; name library, topics, stdlib, or a file")


@dataclass
class Evaluation:
    """Rows of checkpoints, by name, and how they came to be.

    Attributes:
        rows: name -> what was measured.   settings: of the evaluation.   refinement: of the refined model.
    """

    rows: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    refinement: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, **asdict(self)}


def evaluate(
    models: Mapping[str, PreTrainedModel | View],
    tokenizer: Any,
    config: EvaluationConfig | None = None,
    teacher: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure every model on the same texts and tasks.

    Args:
        models: by the name of its row; a `View` for one that is looked at without some of its stages.
        tokenizer: theirs.
        config: see `EvaluationConfig`.
        teacher: the name of the row that the others are compared with, None for no comparison.
        progress: draw bars on a terminal.

    Raises:
        InputError: no such teacher, a text too short, a context beyond the model's own.
        NonFiniteError: a model predicts NaN.
    """
    config = config or EvaluationConfig()
    views = {name: each if isinstance(each, View) else View(each) for name, each in models.items()}
    prefix = prefix_of(tokenizer)
    _check(views, config, prefix, teacher)
    texts = {source: _windows(tokenizer, source, config) for source in config.texts}
    long = {length: _long(tokenizer, length, config) for length in config.positions}
    rows = {name: _Row() for name in views}
    work = [(source, window) for source, windows in texts.items() for window in windows]
    order = sorted(views, key=lambda name: name != teacher)  # whom others are compared with comes first
    with torch.no_grad():
        for source, window in track(work, "texts", progress):
            reference: _Seen | None = None
            for name in order:
                with views[name].shown() as model:
                    seen = _look(model, window, prefix, rows[name].rates)
                found = rows[name].add(source, seen, window, reference, tokenizer)
                if not math.isfinite(found):
                    raise NonFiniteError(f"{name} predicts NaN or infinity on {source}")
                if name == teacher:
                    reference = seen
        measured: dict[str, dict[str, Any]] = {}
        for name in track(list(views), "tasks", progress):
            with views[name].shown() as model:
                measured[name] = {
                    "plan": plan_of(model),
                    **rows[name].summary(config.context, compared=teacher not in (None, name)),
                    **_tasks(model, tokenizer, config),
                    **(_positions(model, tokenizer, long) if views[name].mixing else {}),
                    "energy": energy_rows(model, rows[name].mean_rates(), config.contexts)
                    if views[name].mixing
                    else {},
                }
    _add_recovered(measured, views, teacher)
    first = next(iter(views.values())).model
    settings = {
        **asdict(config),
        "windows": {source: [len(each) - 1 for each in windows] for source, windows in texts.items()},
        "position_windows": {
            str(length): {source: len(windows) for source, windows in each.items()}
            for length, each in long.items()
        },
        "begins_with": prefix.tolist(), "teacher": teacher,
        "device": str(first.device), "dtype": str(first.dtype),
    }  # fmt: skip
    told = (getattr(view.model, "refinement", None) for view in views.values())
    return Evaluation(measured, settings, next((each for each in told if each), None))


def _add_recovered(
    measured: dict[str, dict[str, Any]], views: Mapping[str, View], teacher: str | None
) -> None:
    """To state space layers' own row: how much of what leaving out their attentions costs they bring back."""
    zeroed = next((name for name, view in views.items() if not view.mixing), None)
    if teacher is None or zeroed is None:
        return
    stage = View(views[zeroed].model, sparse=False, spiking=False)
    own = next((name for name, view in views.items() if view == stage), None)
    if own is None:
        return
    nats = {
        name: {source: text["nats"] for source, text in measured[name]["texts"].items()}
        for name in (teacher, zeroed, own)
    }
    measured[own]["recovered"] = {
        source: (nats[zeroed][source] - nats[own][source]) / (nats[zeroed][source] - dense)
        for source, dense in nats[teacher].items()
        if nats[zeroed][source] > dense
    }


def _check(views: Mapping[str, View], config: EvaluationConfig, prefix: Tensor, teacher: str | None) -> None:
    if not views:
        raise InputError("no model to evaluate")
    if teacher is not None and teacher not in views:
        raise InputError(f"no model {teacher!r} to compare with; there are {', '.join(views)}")
    sizes = {name: view.model.config.vocab_size for name, view in views.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise InputError(f"models of different vocabularies can't be compared: {told}")
    for name, view in views.items():
        limit = view.model.config.max_position_embeddings
        if config.context >= limit + 1 - len(prefix):
            raise InputError(f"a context of {config.context:,} tokens is beyond {name}'s {limit:,}")


def check_texts(tokenizer: Any, config: EvaluationConfig) -> None:
    """Refuse texts that can't be measured on, before anything long begins.

    Raises:
        InputError: no such text, or one that is too short, for a window of `positions` too.
        FileError: a file that can't be read.
    """
    for source in config.texts:
        _windows(tokenizer, source, replace(config, tokens=LEAST))
    for length in config.positions:
        _long(tokenizer, length, replace(config, windows=1))


def _windows(tokenizer: Any, source: str, config: EvaluationConfig) -> list[Tensor]:
    ids = encoded(tokenizer, source, config.tokens + 1)
    if len(ids) < LEAST:
        raise InputError(f"the text {source!r} has {len(ids)} tokens; {LEAST} are the least to measure on")
    length = min(config.context, len(ids) - 1)
    return [ids[start : start + length + 1] for start in range(0, len(ids) - length, length)]


def _long(tokenizer: Any, length: int, config: EvaluationConfig) -> dict[str, list[Tensor]]:
    return {source: windows_of(tokenizer, source, length, config.windows) for source in config.texts}


def _tasks(model: PreTrainedModel, tokenizer: Any, config: EvaluationConfig) -> dict[str, Any]:
    if not config.tasks:
        return {}
    return tasks(model, tokenizer, config.texts[0], config.tasks, config.context, config.seed)


def _positions(
    model: PreTrainedModel, tokenizer: Any, long: Mapping[int, Mapping[str, list[Tensor]]]
) -> dict[str, Any]:
    if not long:
        return {}
    found = {
        str(length): {source: by_position(model, tokenizer, windows) for source, windows in each.items()}
        for length, each in long.items()
    }
    return {"positions": found}


# ---- one window of one model ----------------------------------------------------------------------------


@dataclass
class _Seen:
    logs: Tensor  # logarithms of probabilities [L, V] of the token behind each
    streams: list[Tensor]  # what leaves each layer [L, D]


def _look(model: PreTrainedModel, window: Tensor, prefix: Tensor, heard: dict[str, list[float]]) -> _Seen:
    """One window behind what the tokenizer begins texts with, which is not scored."""
    ids = torch.cat([prefix, window[:-1]])[None].to(model.device)
    begin = len(prefix)
    streams: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, args, out: streams.append(_stream(out)))
        for layer in model.model.layers
    ]
    try:
        if isinstance(model, MarForCausalLM):
            with firing_rates(model) as rates:
                logits = model(ids, use_cache=False).logits
            for (layer, site), each in rates.items():
                heard.setdefault(f"{layer}.{site}", []).extend(each)
        else:
            logits = model(ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    logs = logits[0, begin:].float().log_softmax(-1).cpu()
    return _Seen(logs, [stream[begin:] for stream in streams])


def _stream(out: Any) -> Tensor:
    found = out[0] if isinstance(out, tuple) else out
    return found[0].float().cpu()  # type: ignore[no-any-return]


class _Row:
    """Sums of one model over windows."""

    def __init__(self) -> None:
        self.sums: dict[str, Counter[str]] = {}
        self.errors: list[list[float]] = []
        self.rates: dict[str, list[float]] = {}

    def add(self, source: str, seen: _Seen, window: Tensor, reference: _Seen | None, tokenizer: Any) -> float:
        """Nats of the window, after it was added."""
        logs, wanted = seen.logs, window[1:]
        found: dict[str, float] = {
            "nats": F.nll_loss(logs, wanted, reduction="sum").item(),
            "tokens": len(wanted),
            "bytes": len(tokenizer.decode(wanted).encode()),
            "right": int((logs.argmax(-1) == wanted).sum()),
        }
        if reference is not None:
            found["kl"] = F.kl_div(logs, reference.logs, log_target=True, reduction="sum").item()
            found["same"] = int((logs.argmax(-1) == reference.logs.argmax(-1)).sum())
            pairs = zip(seen.streams, reference.streams, strict=False)
            self.errors.append([_far(own, theirs) for own, theirs in pairs])
        self.sums.setdefault(source, Counter()).update(found)
        return found["nats"]

    def summary(self, context: int, compared: bool) -> dict[str, Any]:
        """JSON-ready."""
        found: dict[str, Any] = {
            "context": context,
            "texts": {source: _means(total, compared) for source, total in self.sums.items()},
            "rates": self.mean_rates(),
        }
        if compared:
            found["layers"] = [sum(each) / len(each) for each in zip(*self.errors, strict=True)]
        return found

    def mean_rates(self) -> dict[str, float]:
        """Spikes per neuron and step by "layer.site"."""
        return {site: sum(each) / len(each) for site, each in self.rates.items()}


def _far(own: Tensor, teachers: Tensor) -> float:
    """Mean over tokens of the squared error in the square of the teacher's stream [L, D].

    The first token is left out: in many models its stream is a thousand times the others', and fixed.
    """
    own, teachers = own[1:], teachers[1:]
    share = (own - teachers).square().sum(-1) / teachers.square().sum(-1).clamp(min=1e-30)
    return share.mean().item() if len(share) else 0.0


def _means(total: Counter[str], compared: bool) -> dict[str, float]:
    nats = total["nats"] / total["tokens"]
    found = {
        "tokens": total["tokens"],
        "nats": nats,
        "perplexity": math.exp(min(nats, 700.0)),
        "bits_per_byte": total["nats"] / math.log(2) / max(1, total["bytes"]),
        "accuracy": total["right"] / total["tokens"],
    }
    if compared:
        found |= {"kl": total["kl"] / total["tokens"], "agreement": total["same"] / total["tokens"]}
    return found


# ---- energy, and what a row is --------------------------------------------------------------------------


def energy_rows(
    model: PreTrainedModel, rates: Mapping[str, float] | None, contexts: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Context -> `priced`, for contexts that the model can have."""
    config = config_from(model.config)
    limit = model.config.max_position_embeddings
    return {str(each): priced(config, each, rates or None) for each in contexts if each <= limit}


def plan_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a checkpoint is: which layers, how sparse, which spikes."""
    config = model.config
    ssm = list(getattr(config, "ssm_layers", ()))
    sparsity, spikes = getattr(config, "sparsity", None), getattr(config, "spikes", None)
    sparse = None
    if sparsity is not None:
        sparse = {"mode": sparsity["mode"], "mean_keep": sum(sparsity["keep"]) / len(sparsity["keep"])}
    return {
        "attention_layers": config.num_hidden_layers - len(ssm),
        "ssm_layers": ssm,
        "mixer": config.mixer if ssm else None,
        "sparsity": sparse,
        "spikes": None if spikes is None else {"neuron": spikes["neuron"], **spikes["settings"]},
    }
