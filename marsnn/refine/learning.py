"""One stage of distillation from models to a folder: text, trainer, checkpoints, the curve, the result.

OUT/work/settings.json     what the run follows from: settings, seed, text, the student that it began with
OUT/work/checkpoint-N/     where an interrupted run goes on; gone at the end
OUT/runs/                  for TensorBoard, where it was asked for
OUT/                       the student as `save_refined` writes it, refinement.json last
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from marsnn.checks import count, none_or_count, not_negative, positive
from marsnn.errors import FileError, InputError
from marsnn.files import json_text, probe, read_json, write_text
from marsnn.progress import say
from marsnn.refine.config import MarConfig
from marsnn.refine.evaluation import EvaluationConfig, evaluate
from marsnn.refine.job import DONE, save_refined
from marsnn.refine.loading import begun, digest, encoded, prefix_of, usual_device
from marsnn.refine.loop import Rows, quiet_arguments, token_rows
from marsnn.refine.lora import add_lora, merge_lora
from marsnn.refine.model import MarForCausalLM
from marsnn.refine.teacher_cache import TeacherCache
from marsnn.refine.trainer import MarTrainer, SbdsConfig, check_pair

LEAST_ROWS = 8
"""Sequences to learn from."""


@dataclass(frozen=True)
class LearnConfig(SbdsConfig):
    """How a student is trained, beside what `SbdsConfig` says of its loss."""

    text: Sequence[str] = field(
        default=("docstrings",),
        metadata={"help": "learnt on: docstrings, or text files, one after the other"},
    )
    tokens: int | None = field(
        default=None, metadata={"help": "of the text, at most; without it all of them"}
    )
    length: int = field(default=512, metadata={"help": "tokens of a sequence"})
    batch: int = field(default=8, metadata={"help": "sequences an update, of all processes together"})
    together: int = field(default=8, metadata={"help": "sequences at most that a process runs at once"})
    updates: int = field(default=500, metadata={"help": "of the weights"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak rate of AdamW, annealed by a cosine"})
    warmup: int = field(default=20, metadata={"help": "updates until the peak"})
    weight_decay: float = field(default=0.0, metadata={"help": "of AdamW, on matrices only"})
    clip: float = field(default=1.0, metadata={"help": "largest norm of the gradient"})
    precision: str = field(
        default="float32", metadata={"help": "of products: float32 or bfloat16; weights stay in float32"}
    )
    lora: int = field(default=0, metadata={"help": "rank of LoRA on the projections; 0 trains them whole"})
    remember_teacher: bool = field(
        default=False, metadata={"help": "keep what the teacher says on disk; without features only"}
    )
    save_every: int = field(default=100, metadata={"help": "updates between checkpoints"})
    curve_every: int = field(
        default=0, metadata={"help": "updates between looks at held-out text; 0 for none"}
    )
    tensorboard: bool = field(
        default=False, metadata={"help": "write the course of the losses for TensorBoard"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        text = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        if not text:
            raise InputError("text is empty; name docstrings, or a text file")
        object.__setattr__(self, "text", text)
        for name in ("length", "batch", "together", "updates", "warmup", "save_every"):
            count(name, getattr(self, name))
        if self.tokens is not None:
            count("tokens", self.tokens)
        for name in ("learning_rate", "clip"):
            positive(name, getattr(self, name))
        not_negative("weight_decay", self.weight_decay)
        for name in ("lora", "curve_every"):
            none_or_count(name, getattr(self, name))
        if self.length < 2:
            raise InputError(f"length must be >= 2, got {self.length}: a token learns to foretell the next")
        if self.remember_teacher and self.features != "none":
            raise InputError('a teacher that is only remembered has no features; set features = "none"')
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision must be float32 or bfloat16, got {self.precision!r}")

    def loss(self) -> SbdsConfig:
        """The part of it that the trainer asks for."""
        return SbdsConfig(**{each.name: getattr(self, each.name) for each in fields(SbdsConfig)})


def learn(
    student: MarForCausalLM,
    teacher: PreTrainedModel,
    tokenizer: Any,
    config: LearnConfig,
    out: Path,
    seed: int = 0,
    evaluation: EvaluationConfig | None = None,
    progress: bool = False,
) -> MarForCausalLM:
    """Train a student and write it; go on where an interrupted run of the same settings was.

    Args:
        student: changed in place.   teacher: frozen.   tokenizer: theirs.
        out: folder for the student.
        seed: of the order of the text.
        evaluation: held-out texts for the curve.

    Returns:
        The student; its `refinement["distillation"]` holds settings and course, JSON-ready.

    Raises:
        InputError: vocabularies that differ, too little text, a batch that doesn't divide.
        FileError: `out` holds a student or another run, it or a checkpoint in it can't be written or read.
        DivergedError: NaN on the way.
    """
    check_pair(teacher, student)
    limit = min(each.config.max_position_embeddings for each in (teacher, student))
    if config.length > limit:
        raise InputError(f"sequences of {config.length:,} tokens are beyond the models' {limit:,}")
    rows = rows_of_text(tokenizer, config)
    say(f"learning from {rows.numel():,} tokens of {', '.join(config.text)}", progress)
    arguments = quiet_arguments(
        out / "work", config.updates, config.batch, config.learning_rate, config.warmup, config.weight_decay,
        config.save_every, seed, config.tensorboard, config.together, config.clip,
        config.precision == "bfloat16",
    )  # fmt: skip
    here = PartialState()
    with here.main_process_first():
        _begin(out, config, seed, rows, student)
    if config.lora:
        torch.manual_seed(seed)  # of their first values
        add_lora(student, config.lora)
    data = Rows(rows)
    said: PreTrainedModel | TeacherCache = teacher
    if config.remember_teacher:
        teacher.eval().to(usual_device())  # type: ignore[arg-type]
        with here.main_process_first():
            said = TeacherCache.build(out / "work" / "teacher", teacher, data, config.together, progress)
    trainer = MarTrainer(student, said, arguments, config.loss(), train_dataset=data, progress=progress)
    if config.curve_every and evaluation is not None:
        trainer.add_callback(_Curve(trainer, teacher, tokenizer, config, evaluation))
    trainer.go_on()
    before = getattr(student, "refinement", {})
    student = trainer.whole(lambda: _anew(student.config, config.lora))
    if config.lora:
        merge_lora(student)
    student.refinement = {**before, "distillation": _told(trainer, config, rows)}
    if here.is_main_process:
        save_refined(student, tokenizer, out)
        clear(out)
    here.wait_for_everyone()
    return student.eval()


def clear(out: Path) -> None:
    """Take away what a finished run needs no more, but for what it wrote for TensorBoard."""
    for events in sorted((out / "work" / "runs").glob("*")):
        (out / "runs").mkdir(exist_ok=True)
        events.replace(out / "runs" / events.name)
    shutil.rmtree(out / "work", ignore_errors=True)


def _anew(config: MarConfig, lora: int) -> MarForCausalLM:
    made = MarForCausalLM(config)
    if lora:
        add_lora(made, lora)
    return made


def _begin(out: Path, config: LearnConfig, seed: int, rows: Tensor, student: MarForCausalLM) -> None:
    """Refuse a folder where another run is, and leave there what this one follows from."""
    path = out / "work" / "settings.json"
    if (out / DONE).is_file():
        raise FileError(f"{out}: holds a student already; choose another folder")
    own = {
        **asdict(config),
        "seed": seed,
        "text's digest": digest(rows),
        "student": digest(*student.parameters()),
    }
    own = json.loads(json_text(own))
    probe(path)
    if path.is_file():
        there = read_json(path)
        for name, wanted in own.items():
            before = there.get(name) if isinstance(there, dict) else None
            if before != wanted:
                raise FileError(
                    f"{out}: holds a run of other settings: {name} was {before!r}, now {wanted!r}; repeat "
                    "them, or choose another folder"
                )
    write_text(path, json_text(own))


def rows_of_text(tokenizer: Any, config: LearnConfig) -> Tensor:
    """The text as sequences [rows, length], as many as make whole updates.

    Raises:
        InputError: too little of it.
    """
    parts = []
    most = config.tokens
    for source in config.text:
        parts.append(encoded(tokenizer, source, most))
        if most is not None:
            most -= len(parts[-1])
            if most <= 0:
                break
    ids = begun(torch.cat(parts), prefix_of(tokenizer), config.length)
    least = max(LEAST_ROWS, config.batch)
    if len(ids) < least * config.length:
        raise InputError(
            f"{', '.join(config.text)}: {len(ids):,} tokens are too few to learn from; {least} sequences of "
            f"{config.length:,} are the least. Name more text, or set a smaller length or batch"
        )
    rows = token_rows(ids, config.length)
    return rows[: len(rows) // config.batch * config.batch]


def _told(trainer: MarTrainer, config: LearnConfig, rows: Tensor) -> dict[str, Any]:
    """What a stage did."""
    course = [
        {name: value for name, value in entry.items() if name not in ("epoch",)}
        for entry in trainer.state.log_history
    ]
    return {
        "settings": asdict(config),
        "text": digest(rows)[:16],
        "tokens": config.updates * config.batch * config.length,
        "processes": trainer.args.world_size,
        "course": course,
    }


class _Curve(TrainerCallback):
    """Looks at held-out text every so many updates; what it sees goes where the losses go."""

    def __init__(
        self,
        trainer: MarTrainer,
        teacher: PreTrainedModel,
        tokenizer: Any,
        config: LearnConfig,
        evaluation: EvaluationConfig,
    ) -> None:
        self.trainer, self.teacher, self.tokenizer = trainer, teacher, tokenizer
        self.every, self.a_batch = config.curve_every, config.batch * config.length
        self.evaluation = evaluation

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.look(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            due = control.should_log
            self.look(state)
            control.should_log = due  # who logs takes it back, and the update's own loss is still to come

    def look(self, state: Any) -> None:
        if self.trainer.is_fsdp_enabled:
            return  # weights lie in parts
        self.trainer.set_final()
        model = self.trainer.student.eval()
        rows = {"dense": self.teacher, "student": model}
        found = evaluate(rows, self.tokenizer, self.evaluation, "dense").rows["student"]
        told = {
            f"{text}_{name}": value
            for text, each in found["texts"].items()
            for name, value in each.items()
            if name in ("bits_per_byte", "accuracy", "agreement", "kl")
        }
        self.trainer.log({"seen_tokens": state.global_step * self.a_batch, **told})
