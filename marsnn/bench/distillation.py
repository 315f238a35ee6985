"""The paper's ablations in form, on a small teacher: `marsnn bench distillation`.

    ladder      binary LIF, then ATMN in its place, reverse KL, features before the neurons
    weights     alpha and beta of the logits' loss, without features
    features    pre, post, both
    code        tau x T of ATMN
    sites       spikes at one of the four sites alone
    turns       updates without spikes in between, or none

All arms begin with one student (state space layers and sparse feed-forward nets, aligned, no spikes) and get
the same updates on the same tokens, in the same order for a seed. Each arm chooses among the same number of
settings by a shorter training with a seed that is never reported, scored on text that is neither learnt nor
measured on. A cell that stands in several tables runs once. Source of the arms: MAR, arXiv 2601.21503, its
ablation tables.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from marsnn.checks import count
from marsnn.errors import DivergedError, InputError, MarsnnError
from marsnn.files import PathLike
from marsnn.intervals import Interval, interval, paired
from marsnn.journal import Journal
from marsnn.progress import say, track
from marsnn.refine.alignment import AlignConfig
from marsnn.refine.calibration import add_spikes, firing_rates
from marsnn.refine.config import SITES
from marsnn.refine.job import DONE, Job, load_refined, run_job
from marsnn.refine.loading import digest, encoded, load_tokenizer, quietly
from marsnn.refine.loop import Rows, quiet_arguments, token_rows
from marsnn.refine.model import MarForCausalLM
from marsnn.refine.quality import cloze
from marsnn.refine.texts import read_text
from marsnn.refine.trainer import MarTrainer, SbdsConfig
from marsnn.workers import Failed, engine

FORMAT = "marsnn.distillation/1"

NOT_OF_A_CELL = ("tables", "seeds", "workers")
"""Settings that a cell's result doesn't follow from."""

TUNING_SEED = 100
"""Never among those that are reported."""

Arm = Mapping[str, Any]

MAR: dict[str, Any] = {
    "neuron": "ATMN", "steps": 4, "tau": 0.5, "sites": list(SITES), "alpha": 0.2, "beta": 0.7,
    "features": "pre", "alternate": [1, 1],
}  # fmt: skip
"""The method: what every table varies."""


def tables(own_steps: int = 4) -> dict[str, dict[str, Arm]]:
    """Table -> arm -> its settings.

    Args:
        own_steps: T of all tables but `code`. The fewer, the further students are from their teacher, and
            the more a loss can make of it.
    """
    mar = {**MAR, "steps": own_steps}
    without = {**mar, "features": "none"}
    forward: Arm = {**without, "alpha": 1.0, "beta": 0.0}
    code: dict[str, Arm] = {}
    for steps in (1, 2, 4, 6):
        for tau in (0.5, 1.0, 2.0) if steps > 1 else (0.5,):  # with one step tau means nothing
            name = f"tau={tau:g}, T={steps}" if steps > 1 else "T=1, any tau"
            code[name] = {**MAR, "steps": steps, "tau": tau}
    return {
        "ladder": {
            "binary LIF": {**forward, "neuron": "LIF", "tau": None}, "+ ATMN": forward,
            "+ reverse KL": without, "+ pre-norm features": mar,
        },
        "weights": {
            f"alpha={alpha:g}, beta={beta:g}": {**without, "alpha": alpha, "beta": beta}
            for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (0.7, 0.2), (0.2, 0.7))
        },
        "features": {kind: {**mar, "features": kind} for kind in ("pre", "post", "both")},
        "code": code,
        "sites": {"all four": mar, **{site: {**mar, "sites": [site]} for site in SITES}},
        "turns": {"in turn": mar, "spikes always": {**mar, "alternate": [0, 1]}},
    }  # fmt: skip


TABLES: dict[str, dict[str, Arm]] = tables()

RATES = (1e-3, 3e-3, 1e-2)
"""Peak learning rates that every arm chooses among."""

SECOND: dict[str, tuple[str, tuple[float, ...]]] = {
    "ATMN": ("fire_at", (0.5, 1.0)),
    "LIF": ("tau", (2.0, 8.0)),
}
"""And two values of one setting of the neuron: the firing level of ATMN, the leak of LIF."""


@dataclass(frozen=True)
class DistillationConfig:
    """How much is trained and measured; equal for all arms."""

    tables: Sequence[str] = field(default=tuple(TABLES), metadata={"help": "which ablations"})
    steps: int = field(default=4, metadata={"help": "T of all tables but code"})
    seeds: int = field(default=3, metadata={"help": "trainings of each arm after tuning"})
    updates: int = field(default=100, metadata={"help": "of a training; tuning takes a third as many"})
    batch: int = field(default=4, metadata={"help": "sequences an update"})
    length: int = field(default=256, metadata={"help": "tokens of a sequence"})
    budget: str = field(default="half", metadata={"help": "attentions that are state space layers"})
    keep: float = field(default=0.4, metadata={"help": "share of activations in feed-forward nets"})
    align: int = field(default=300, metadata={"help": "updates of each state space layer before all begins"})
    feature_weight: float = field(default=0.01, metadata={"help": "of the features' distance"})
    text: str = field(default="docstrings", metadata={"help": "what is learnt on"})
    held_out: Sequence[str] = field(default=("library", "topics"), metadata={"help": "what is measured on"})
    tokens: int = field(default=4096, metadata={"help": "of each text that is measured on"})
    places: int = field(default=128, metadata={"help": "of the cloze task"})
    workers: int = field(default=2, metadata={"help": "processes at a time, one thread each"})

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tables) - set(TABLES))
        if unknown or not self.tables:
            raise InputError(
                f"tables are {', '.join(TABLES)}; there is no {' '.join(unknown) or 'empty choice'}"
            )
        for name in ("steps", "seeds", "updates", "batch", "length", "align", "tokens", "places", "workers"):
            count(name, getattr(self, name))
        if self.seeds > TUNING_SEED:
            raise InputError(
                f"seeds can be {TUNING_SEED} at most, got {self.seeds}: the next one is for tuning"
            )


def run(teacher: PathLike, work: PathLike, config: DistillationConfig | None = None) -> dict[str, Any]:
    """All cells of the tables, JSON-ready; what an interrupted run finished isn't run again.

    Args:
        teacher: a model's folder, say of `marsnn pretrain`.
        work: folder for the student that all begin with, and for the journal of finished cells.

    Raises:
        FileError: no model there, or a journal of another configuration.   MarsnnError: a cell failed.
    """
    config = config or DistillationConfig()
    source, folder = Path(teacher), Path(work)
    started = time.perf_counter()
    start = _start(source, folder / "start", config)
    model, tokenizer = load_refined(source), load_tokenizer(source)
    data = _data(tokenizer, config)
    header = {
        "format": FORMAT, "teacher": digest(*model.parameters())[:16],
        **{name: each for name, each in _plain(asdict(config)).items() if name not in NOT_OF_A_CELL},
    }  # fmt: skip
    known = tables(config.steps)
    arms = {_key(arm): arm for table in config.tables for arm in known[table].values()}
    with Journal(folder / "cells.jsonl", header) as journal, engine("local", config.workers) as pool:

        def finish(cells: Sequence[dict[str, Any]], what: str) -> None:
            missing = [cell for cell in cells if cell not in journal]
            say(f"{what}: {len(cells)} cells, {len(missing)} to run", True)
            jobs = [(str(source), str(start), cell, config, data) for cell in missing]
            for index, result in track(pool(_cell, jobs), what, number=len(jobs)):
                if isinstance(result, Failed):
                    raise MarsnnError(f"the cell {missing[index]} failed: {result.message}")
                journal.add(missing[index], result)

        candidates = {
            key: [{"arm": dict(arm), **each, "seed": TUNING_SEED} for each in _offered(arm)]
            for key, arm in arms.items()
        }
        finish([cell for each in candidates.values() for cell in each], "tuning")
        chosen = {key: min(each, key=lambda cell: _nats(journal[cell])) for key, each in candidates.items()}
        reported = {
            key: [{**cell, "seed": seed} for seed in range(config.seeds)] for key, cell in chosen.items()
        }
        finish([cell for each in reported.values() for cell in each], "training")
        measured = _reference(model, tokenizer, config, data)
        cells = {
            key: {
                "arm": dict(arms[key]),
                "chosen": {name: chosen[key][name] for name in chosen[key] if name not in ("arm", "seed")},
                "seeds": {str(cell["seed"]): journal[cell] for cell in each},
            }
            for key, each in reported.items()
        }
        seconds = [journal[cell]["seconds"] for each in reported.values() for cell in each]
    return {
        "format": FORMAT,
        "settings": _plain(asdict(config)),
        "teacher": measured,
        "tables": {table: {name: _key(arm) for name, arm in known[table].items()} for table in config.tables},
        "cells": cells,
        "seconds": {"longest_cell": max(seconds), "this_run": time.perf_counter() - started},
    }


@dataclass(frozen=True)
class _Data:
    """Tokens and words, read once for all cells."""

    learnt: torch.Tensor  # [rows, length]
    choosing: torch.Tensor  # [rows, length]
    held_out: dict[str, torch.Tensor]  # [rows, length] each
    words: list[str]


def _data(tokenizer: Any, config: DistillationConfig) -> _Data:
    learnt = config.updates * config.batch * config.length
    ids = encoded(tokenizer, config.text, learnt + config.tokens)
    held_out = {
        text: token_rows(encoded(tokenizer, text, config.tokens), config.length) for text in config.held_out
    }
    return _Data(
        token_rows(ids[:learnt], config.length), token_rows(ids[learnt:], config.length), held_out,
        read_text(config.held_out[0]).split()[: 8 * config.tokens],
    )  # fmt: skip


Work = tuple[str, str, dict[str, Any], DistillationConfig, _Data]


# ---- one cell -------------------------------------------------------------------------------------------


def _cell(job: Work) -> dict[str, Any]:
    """One training: put spikes, learn, measure; in a process of its own, by one thread."""
    source, start, cell, config, data = job
    began = time.perf_counter()
    arm, seed = cell["arm"], cell["seed"]
    tuning = seed == TUNING_SEED
    torch.manual_seed(seed)
    teacher, student = load_refined(Path(source)), load_refined(Path(start))
    assert isinstance(student, MarForCausalLM)
    tokenizer = load_tokenizer(source)
    updates = max(1, config.updates // 3) if tuning else config.updates
    settings = {"steps": arm["steps"]}
    if arm["tau"] is not None:
        settings["tau"] = arm["tau"]
    own, _ = SECOND[arm["neuron"]]
    settings[own] = cell[own]
    add_spikes(student, data.learnt[:16], arm["neuron"], arm["sites"], **settings)
    work = tempfile.mkdtemp(prefix="marsnn-")
    try:
        with quietly():
            trainer = MarTrainer(
                student, teacher,
                quiet_arguments(
                    work, updates, config.batch, cell["learning_rate"], max(1, updates // 10), 0.0,
                    updates + 1, seed, bf16=False,
                ),
                SbdsConfig(
                    alpha=arm["alpha"], beta=arm["beta"], features=arm["features"],
                    feature_weight=config.feature_weight, alternate=arm["alternate"],
                ),
                train_dataset=Rows(data.learnt),
            )  # fmt: skip
            trainer.train()
    except DivergedError:
        if not tuning:
            raise
        return {"nats": None, "seconds": time.perf_counter() - began}  # a setting that nobody chooses
    finally:
        shutil.rmtree(work, ignore_errors=True)
    student.eval()
    if tuning:
        found = _quality(student, teacher, data.choosing)
        return {"nats": found["nats"], "seconds": time.perf_counter() - began}
    measured: dict[str, Any] = {}
    heard: list[float] = []
    for text, rows in data.held_out.items():
        with firing_rates(student) as rates:
            measured[text] = _quality(student, teacher, rows, tokenizer)
        heard += [sum(each) / len(each) for each in rates.values()]
    with torch.no_grad():
        filled = cloze(student, tokenizer, data.words, config.places, 0)
    return {
        "texts": measured, "cloze": filled.get("accuracy"), "rate": sum(heard) / len(heard),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


@torch.no_grad()
def _quality(
    model: PreTrainedModel, teacher: PreTrainedModel, rows: torch.Tensor, tokenizer: Any = None
) -> dict[str, float]:
    """Nats and accuracy of the next token, and how often the first choice is the teacher's, row by row."""
    nats = right = same = 0.0
    for part in rows.split(8):
        logs, theirs = (each(part, use_cache=False).logits[:, :-1].float() for each in (model, teacher))
        wanted = part[:, 1:]
        nats += F.cross_entropy(logs.flatten(0, 1), wanted.flatten(), reduction="sum").item()
        right += (logs.argmax(-1) == wanted).sum().item()
        same += (logs.argmax(-1) == theirs.argmax(-1)).sum().item()
    number = rows.numel() - len(rows)
    found = {"nats": nats / number, "accuracy": right / number, "agreement": same / number}
    if tokenizer is not None:
        size = sum(len(tokenizer.decode(row[1:]).encode()) for row in rows)
        found["bits_per_byte"] = nats / math.log(2) / size
    return found


def _reference(
    model: PreTrainedModel, tokenizer: Any, config: DistillationConfig, data: _Data
) -> dict[str, Any]:
    """What the teacher itself reaches."""
    with torch.no_grad():
        filled = cloze(model, tokenizer, data.words, config.places, 0)
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "texts": {text: _quality(model, model, rows, tokenizer) for text, rows in data.held_out.items()},
        "cloze": filled.get("accuracy"),
    }


def _start(source: Path, out: Path, config: DistillationConfig) -> Path:
    """The student that all arms begin with, made once."""
    if not (out / DONE).is_file():
        run_job(
            Job(
                source, out, config.budget, sparsity={"mode": "threshold", "keep": config.keep},
                text=config.text, evaluation=None, resume=(out / "plan.json").is_file(), progress=True,
                align=AlignConfig(updates=config.align, length=config.length, sequences=120),
            )
        )  # fmt: skip
    return out


def _nats(result: Mapping[str, Any]) -> float:
    return math.inf if result["nats"] is None else float(result["nats"])


def _offered(arm: Arm) -> list[dict[str, float]]:
    """The settings that an arm chooses among."""
    name, values = SECOND[arm["neuron"]]
    return [{"learning_rate": rate, name: value} for rate in RATES for value in values]


def _key(arm: Arm) -> str:
    """What tells an arm from others, for people too."""
    told = {**arm, "sites": "+".join(arm["sites"]), "alternate": ":".join(map(str, arm["alternate"]))}
    return " ".join(f"{name}={value}" for name, value in told.items() if value is not None)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {name: list(each) if isinstance(each, tuple) else each for name, each in value.items()}


# ---- as text --------------------------------------------------------------------------------------------


def markdown(result: Mapping[str, Any]) -> str:
    """Every table: means over seeds with their 95 % intervals, and the paired difference to the first row."""
    return "\n\n".join(table(result, name) for name in result["tables"])


def table(result: Mapping[str, Any], name: str) -> str:
    """One of the tables in Markdown."""
    first, second = result["settings"]["held_out"][0], result["settings"]["held_out"][-1]
    heads = [
        name, f"{first}, bits per byte", "minus the first row", f"{second}, bits per byte",
        "accuracy, % of the teacher's", "same first choice %", "cloze %", "spikes / step", "chosen",
    ]  # fmt: skip
    arms = result["tables"][name]
    cells = {arm: result["cells"][key] for arm, key in arms.items()}
    reference = next(iter(cells.values()))
    teacher = result["teacher"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    told = teacher["texts"]
    bits = [f"{told[text]['bits_per_byte']:.3f}" for text in (first, second)]
    lines.append(f"| teacher | {bits[0]} | | {bits[1]} | 100 | 100 | {100 * teacher['cloze']:.1f} | | |")
    for arm, cell in cells.items():
        own, theirs = (by_seed(each, first, "bits_per_byte") for each in (cell, reference))
        right = by_seed(cell, first, "accuracy").values()
        told_by_seed = list(cell["seeds"].values())
        shown = [
            arm,
            _shown(interval(list(own.values())), 3),
            "" if cell is reference else _shown(paired(own, theirs), 3, True),
            _shown(interval(list(by_seed(cell, second, "bits_per_byte").values())), 3),
            _shown(interval([each / max(told[first]["accuracy"], 1e-9) for each in right]), 1, scale=100),
            _shown(interval(list(by_seed(cell, first, "agreement").values())), 1, scale=100),
            _shown(interval([each["cloze"] for each in told_by_seed]), 1, scale=100),
            f"{sum(each['rate'] for each in told_by_seed) / len(told_by_seed):.3f}",
            ", ".join(f"{name}={value:g}" for name, value in cell["chosen"].items()),
        ]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def by_seed(cell: Mapping[str, Any], text: str, name: str) -> dict[int, float]:
    """One figure of a cell, by seed."""
    return {int(seed): each["texts"][text][name] for seed, each in cell["seeds"].items()}


def _shown(found: Interval | None, digits: int, sign: bool = False, scale: float = 1.0) -> str:
    """0.123 +- 0.004; a difference whose interval excludes zero carries a star."""
    if found is None:
        return ""
    half = "" if found.half is None else f" +- {scale * found.half:.{digits}f}"
    star = " *" if sign and found.excludes(0.0) else ""
    return f"{scale * found.mean:{'+' if sign else ''}.{digits}f}{half}{star}"
