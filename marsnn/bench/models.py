"""One teacher and what can be made of it, side by side: pruned, quantized, refined, spiking.

    dense               the model as it came
    LoRA-pruned         fewer features and heads (`prune`), then LoRA
    dynamic int8        integer weights and activations, nothing is learnt
    MAR                 state space layers for some attentions, sparse feed-forward nets, then SBDS
    MAR + ATMN          the same layers with spikes before every projection, then SBDS
    MAR + int8 weights  MAR with a byte for each weight (`int8_weights`), nothing more is learnt
    MAR + LoRA          MAR whose projections learn by LoRA alone

Rows that learn see the same batches of the same text from the same teacher. In WORK each has a folder, and
what is finished there isn't made again:

    WORK/models.json    the settings, and of which model
    WORK/refined        MAR with spikes before SBDS; without them it is MAR's start
    WORK/pruned, mar, mar-atmn, mar-lora    what was learnt
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from marsnn.bench import generation
from marsnn.bench.models_table import markdown
from marsnn.bench.parts import machine
from marsnn.checks import count, positive
from marsnn.energy import load_table
from marsnn.errors import FileError, InputError, MissingDependencyError
from marsnn.files import json_text, probe, read_json, write_text
from marsnn.progress import say
from marsnn.refine import MarForCausalLM, convert, int8_weights, prepare, prune
from marsnn.refine.config import MarConfig, config_from
from marsnn.refine.evaluation import EvaluationConfig, check_texts, evaluate
from marsnn.refine.job import DONE, load_refined, run_job
from marsnn.refine.learning import LEAST_ROWS, LearnConfig, learn
from marsnn.refine.loading import begun, digest, encoded, load_model, load_tokenizer, prefix_of
from marsnn.refine.loop import last_whole_checkpoint, step_of
from marsnn.refine.modality import modality
from marsnn.refine.pruning import sizes
from marsnn.refine.recipe import RefineSettings
from marsnn.refine.shapes import TABLES, head, projections, token_counts
from marsnn.refine.sparsity import checked_keep
from marsnn.refine.stages import View

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ModelsConfig", "as_run_nj", "markdown", "run"]

NEW = 16
"""Tokens that a round of the speed measurement writes."""

PRUNING = 8192
"""Tokens to find importance on, as many as calibrate sparsity and spikes."""


@dataclass(frozen=True)
class ModelsConfig:
    """How the rows are made, and how they are measured."""

    budget: str = field(default="half", metadata={"help": "attentions that become state space layers"})
    keep: float = field(
        default=0.4, metadata={"help": "mean share of activations in sparse feed-forward nets"}
    )
    steps: int = field(default=4, metadata={"help": "micro-steps T of ATMN"})
    pruned: float = field(default=0.75, metadata={"help": "share of the layers' weights that pruning keeps"})
    lora: int = field(default=8, metadata={"help": "rank of LoRA"})
    text: str = field(default="docstrings", metadata={"help": "learnt on: docstrings, or a text file"})
    updates: int = field(default=300, metadata={"help": "of each row that learns"})
    length: int = field(default=256, metadata={"help": "tokens of a sequence"})
    batch: int = field(default=4, metadata={"help": "sequences an update"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak rate where all weights learn"})
    lora_learning_rate: float = field(default=1e-3, metadata={"help": "peak rate where LoRA does"})
    features: str = field(
        default="pre", metadata={"help": "that SBDS compares in MAR: pre, post, both or none"}
    )
    align_updates: int = field(default=600, metadata={"help": "of each state space layer by itself, before"})
    align_length: int = field(default=1024, metadata={"help": "tokens of a sequence there"})
    align_sequences: int = field(default=60, metadata={"help": "sequences there"})
    texts: tuple[str, ...] = field(
        default=("topics", "stdlib"), metadata={"help": "held-out texts: library, topics, stdlib, or files"}
    )
    tokens: int = field(default=8192, metadata={"help": "of each held-out text"})
    context: int = field(default=1024, metadata={"help": "tokens of a window of it"})
    contexts: tuple[int, ...] = field(
        default=(256, 1024), metadata={"help": "tokens before the one whose energy and speed are told"}
    )
    rounds: int = field(default=5, metadata={"help": "of the speed measurement"})
    seed: int = field(default=0, metadata={"help": "of what is drawn"})

    def __post_init__(self) -> None:
        checked_keep(self.keep)
        if not 0 < self.pruned <= 1:
            raise InputError(
                f"pruned is the share of weights that stays, above 0 and at most 1; got {self.pruned!r}"
            )
        for name in ("steps", "lora", "align_updates", "align_length", "align_sequences", "rounds"):
            count(name, getattr(self, name))
        positive("lora_learning_rate", self.lora_learning_rate)
        if not self.contexts:
            raise InputError("no contexts; say some numbers of tokens")
        self.learning()  # refuses what it can't use, and so does
        self.evaluation(self.context + 1)

    def refining(self) -> RefineSettings:
        """Of the rows whose layers are refined, before SBDS."""
        return RefineSettings(
            budget=self.budget, keep=self.keep, steps=self.steps, text=self.text, updates=self.align_updates,
            length=self.align_length, sequences=self.align_sequences,
        )  # fmt: skip

    def learning(self, lora: bool = False, features: bool = True, spikes: bool = False) -> LearnConfig:
        """Of a row: the same tokens for each."""
        return LearnConfig(
            text=(self.text,), tokens=max(LEAST_ROWS, self.updates * self.batch) * self.length,
            length=self.length, batch=self.batch, updates=self.updates, lora=self.lora if lora else 0,
            learning_rate=self.lora_learning_rate if lora else self.learning_rate,
            features=self.features if features else "none", alternate=(1, 1) if spikes else (0, 1),
        )  # fmt: skip

    def evaluation(self, limit: int) -> EvaluationConfig:
        """Of a model that has so many positions."""
        return EvaluationConfig(
            self.texts,
            self.tokens,
            min(self.context, limit - 1),
            tasks=0,
            contexts=self.contexts,
            seed=self.seed,
        )


MEASURED = ("texts", "tokens", "context", "contexts", "rounds")
"""Settings that may change while rows stay as they are."""


def run(
    model: Path, work: Path, config: ModelsConfig | None = None, progress: bool = False
) -> dict[str, Any]:
    """Make every row, or go on with it, and measure all of them on the CPU.

    Args:
        model: folder of a dense Llama, Mistral or Qwen2 with its tokenizer.
        work: folder for the rows.   config: see `ModelsConfig`.   progress: say what is being done.

    Returns:
        JSON-ready: machine, libraries, settings, rows, and speeds.

    Raises:
        FileError: no model there, a work folder of other settings, one that can't be written.
        InputError: a setting, a text or a model that can't be used.   DivergedError: while a row learns.
        MissingDependencyError: peft, which has LoRA, isn't installed.
    """
    config = config or ModelsConfig()
    model, work = Path(model), Path(work)
    if find_spec("peft") is None:
        raise MissingDependencyError("peft", "hf")
    tokenizer, teacher = load_tokenizer(model), load_model(model)
    if getattr(teacher.config, "ssm_layers", None):
        raise InputError(f"{model}: has state space layers already; name the dense model that it came from")
    limit = int(teacher.config.max_position_embeddings)
    measuring = config.evaluation(limit)
    check_texts(tokenizer, measuring)
    contexts = generation.fitting(config.contexts, limit, NEW)
    sizes(config_from(teacher.config), config.pruned)
    _begin(teacher, work, config)
    rows, made = _made(model, work, teacher, tokenizer, config, progress)
    say("measuring", progress)
    found = evaluate(rows, tokenizer, measuring, "dense", progress).rows
    say("timing", progress)
    speed, prepared = _speed(rows, contexts, config.rounds)
    told = []
    for name, each in rows.items():
        row = found[name]
        told.append({
            "name": name,
            "parameters": sum(weight.numel() for weight in rows[BYTES_OF.get(name, name)].parameters()),
            "plan": row["plan"],
            "texts": row["texts"],
            "rates": row["rates"],
            "learnt": made.get(name),
            "cost": {
                str(context): {
                    **_energy(each.config, teacher.config, context, row["rates"], ARITHMETIC.get(name, "")),
                    **speed[name][str(context)],
                }
                for context in contexts
            },
        })  # fmt: skip
    return {
        "benchmark": "models", "model": model.name, "machine": machine(),
        "libraries": {name: version(name) for name in ("marsnn", "transformers", "peft")},
        "settings": asdict(config), "measured_context": measuring.context, "rows": told,
        "dense_prepared": prepared,
    }  # fmt: skip


# ---- making the rows ------------------------------------------------------------------------------------


def _begin(teacher: PreTrainedModel, work: Path, config: ModelsConfig) -> None:
    """Refuse a folder of other rows, and leave there what these are."""
    settings = {name: value for name, value in asdict(config).items() if name not in MEASURED}
    own = {"model": digest(teacher.get_input_embeddings().weight)[:16], **json.loads(json_text(settings))}
    path = work / "models.json"
    probe(path)
    if path.is_file():
        there = read_json(path)
        for name, value in own.items():
            if there.get(name) != value:
                raise FileError(
                    f"{work}: holds rows of other settings: {name} was {there.get(name)!r}, now {value!r}; "
                    "choose another --work"
                )
    elif any(work.iterdir()):
        raise FileError(f"{work}: holds something that no such benchmark left there; choose another --work")
    write_text(path, json_text(own))


def _made(
    folder: Path, work: Path, teacher: PreTrainedModel, tokenizer: Any, config: ModelsConfig, progress: bool
) -> tuple[dict[str, PreTrainedModel], dict[str, Any]]:
    """Rows by their names, the dense one first, and of those that learnt what it took."""
    start = work / "refined"
    if not (start / DONE).is_file():
        run_job(config.refining().job(folder, start, config.seed, progress))

    def learnt(name: str, student: Callable[[], MarForCausalLM], learning: LearnConfig) -> MarForCausalLM:
        out = work / name
        if not (out / DONE).is_file():
            last = last_whole_checkpoint(out / "work")
            write_text(out / "began.json", json_text({"update": 0 if last is None else step_of(last)}))
            say(f"{name}: {learning.updates} updates", progress)
            torch.manual_seed(config.seed)  # LoRA is drawn before the trainer seeds everything
            learn(student(), teacher, tokenizer, learning, out, config.seed, progress=progress)
        found = load_refined(out)
        assert isinstance(found, MarForCausalLM)
        return found

    rows: dict[str, PreTrainedModel] = {"dense": teacher}
    rows["LoRA-pruned"] = learnt(
        "pruned", lambda: _pruned(folder, tokenizer, config), config.learning(lora=True, features=False)
    )
    rows["dynamic int8"] = teacher  # in its place; learning may move it to a GPU until then
    rows["MAR"] = learnt("mar", lambda: _refined(start, spikes=False), config.learning())
    rows["MAR + ATMN"] = learnt(
        "mar-atmn", lambda: _refined(start, spikes=True), config.learning(spikes=True)
    )
    rows["MAR + int8 weights"] = int8_weights(rows["MAR"])
    rows["MAR + LoRA"] = learnt("mar-lora", lambda: _refined(start, spikes=False), config.learning(lora=True))
    rows["dynamic int8"] = generation.dynamic_int8(teacher.cpu())
    folders = {"LoRA-pruned": "pruned", "MAR": "mar", "MAR + ATMN": "mar-atmn", "MAR + LoRA": "mar-lora"}
    made = {name: _took(rows[name], work / inside, config) for name, inside in folders.items()}
    return rows, made | {"MAR + int8 weights": made["MAR"]}


def _pruned(folder: Path, tokenizer: Any, config: ModelsConfig) -> MarForCausalLM:
    teacher = load_model(folder)
    ids = begun(encoded(tokenizer, config.text, PRUNING), prefix_of(tokenizer), config.length)
    started = time.perf_counter()
    tokens = modality(teacher).for_calibration(ids, PRUNING, config.length)
    made = prune(teacher, tokens, config.pruned)
    made.refinement["prune"]["seconds"] = time.perf_counter() - started
    return made


def _refined(start: Path, spikes: bool) -> MarForCausalLM:
    whole = load_refined(start)
    assert isinstance(whole, MarForCausalLM)
    if spikes:
        return whole
    made = View(whole, spiking=False).alone()
    assert isinstance(made, MarForCausalLM)
    left = dict(whole.refinement)
    left.pop("spikes", None)
    left["seconds"] = {stage: s for stage, s in left["seconds"].items() if stage != "spikes"}
    made.refinement = left
    return made


def _took(model: PreTrainedModel, folder: Path, config: ModelsConfig) -> dict[str, Any]:
    """Tokens and seconds: of learning through the whole model, and of what came before."""
    done = model.refinement
    course = done["distillation"]["course"]
    session = next((each["train_runtime"] for each in reversed(course) if "train_runtime" in each), None)
    began = int(read_json(folder / "began.json")["update"])
    # a run that was interrupted has only timed its last part
    seconds = None if session is None else session * config.updates / max(1, config.updates - began)
    before: dict[str, Any] = {"seconds": done.get("prune", {}).get("seconds")}
    if "align" in done:
        layers = [each["seconds"] for each in done["align"]]
        rest = sum(s for stage, s in done["seconds"].items() if stage != "align")
        before = {
            "seconds": sum(layers) + rest, "layers": len(layers),
            "tokens_a_layer": config.align_updates * config.align_length,
        }  # fmt: skip
    return {
        "tokens": done["distillation"]["tokens"], "seconds": seconds, "began_at": began, "before": before,
        "kept": done.get("prune", {}).get("kept"),
    }  # fmt: skip


# ---- measuring them -------------------------------------------------------------------------------------

ARITHMETIC = {"dynamic int8": "dynamic", "MAR + int8 weights": "weights"}
"""Rows that don't run in float32 alone: see `as_run_nj`."""

BYTES_OF = {"dynamic int8": "dense", "MAR + int8 weights": "MAR"}
"""Rows whose weights are bytes, and the row that has the same weights."""


def as_run_nj(
    config: MarConfig, context: int, rates: Mapping[str, float] | None = None, int8: str = ""
) -> float:
    """Energy of a token at 45 nm in the precision in which each of its operations runs; estimated.

    Args:
        rates: of spikes, see `token_counts`.
        int8: "dynamic" for integer products of all projections, the rest, mixing and scales, in float32;
            "weights" for float32 throughout, beside a scale for each output; "" for float32 alone.
    """
    fp32, integer = (load_table(name) for name in TABLES)
    total = 0.0
    for name, each in token_counts(config, context, rates or None).layers.items():
        table = integer if int8 == "dynamic" and not name.endswith(".mixing") else fp32
        total += table.spiking_pj(each)
    maps = [head(config), *(each for kind in config.layer_types or [] for each in projections(config, kind))]
    scaled = {
        "dynamic": sum(each.inputs + each.outputs for each in maps),
        "weights": sum(m.outputs for m in maps),
    }
    return (total + scaled.get(int8, 0) * fp32["mul"]) / 1e3


def _energy(own: Any, dense: Any, context: int, rates: Mapping[str, float], int8: str) -> dict[str, Any]:
    """Of one row at one context, in nJ and in the dense model's: the counts by each table, and as it runs."""
    config, teacher = config_from(own), config_from(dense)
    row: dict[str, Any] = {}
    for name in TABLES:
        table = load_table(name)
        found = table.spiking_pj(token_counts(config, context, rates or None).total) / 1e3
        row[f"{name} nJ"] = found
        row[f"{name} ratio"] = found / (table.spiking_pj(token_counts(teacher, context).total) / 1e3)
    row["as run nJ"] = as_run_nj(config, context, rates, int8)
    row["as run ratio"] = row["as run nJ"] / as_run_nj(teacher, context)
    return row


def _speed(
    rows: Mapping[str, PreTrainedModel], contexts: list[int], rounds: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Row -> context -> decode; and that of the dense model prepared, which is what kernels alone bring."""
    prepared = "dense, prepared"
    timed = {**rows, prepared: convert(rows["dense"], [])}
    for each in timed.values():
        if isinstance(each, MarForCausalLM):
            prepare(each)
    found: dict[str, dict[str, Any]] = {name: {} for name in timed}
    for row in generation.run(timed, contexts, NEW, rounds)["rows"]:
        found[row["model"]][str(row["context"])] = {
            "decode": row["decode_tokens_s"], "decode_ratio": row["decode_to_first"],
            "token_mb": row["token_mb"],
        }  # fmt: skip
    kernels = found.pop(prepared)
    return found, kernels
