"""`distill`: the whole road from text to a spiking model, as one file that can be run again.

    [pretrain] or [teacher]    a small Llama from scratch, or the folder of a model       OUT/teacher
    [refine]                   state space layers, sparse feed-forward nets, spikes       OUT/refined
    [distill]                  SBDS through the whole model                               OUT/distilled
    [sparse]                   feed-forward nets once more, sparsity chosen anew          OUT/sparse
    [evaluate]                 quality and energy of every stage, a row each              OUT/report.*

A stage that is finished isn't run again; one that was interrupted goes on. Source of the pipeline: MAR,
arXiv 2601.21503.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from marsnn.checks import count
from marsnn.errors import FileError, InputError
from marsnn.files import json_text, probe, read_json, read_toml, write_text
from marsnn.progress import say
from marsnn.refine.alignment import AlignConfig
from marsnn.refine.config import MIXERS, checked_spikes
from marsnn.refine.evaluation import Evaluation, EvaluationConfig, check_texts, evaluate
from marsnn.refine.features import checked_sites
from marsnn.refine.job import DONE, Job, load_refined, run_job
from marsnn.refine.learning import LearnConfig, clear, learn
from marsnn.refine.loading import checked_folder, load_tokenizer, usual_device
from marsnn.refine.model import MarForCausalLM
from marsnn.refine.planner import POLICIES, Budget
from marsnn.refine.pretraining import PretrainConfig, pretrain
from marsnn.refine.report import load_report, save_report
from marsnn.refine.sparsity import checked_sparsity
from marsnn.refine.stages import View, stages
from marsnn.refine.trainer import one_gpu_each

WAIT = timedelta(hours=12)
"""That processes wait for the one that refines."""


@dataclass(frozen=True)
class RefineSettings:
    """Of the section [refine]: the choices of `marsnn refine`."""

    budget: str | int = "half"
    policy: str = "sensitivity"
    mixer: str = "ssd"
    plan: str | None = None
    keep: float = 0.4
    sparsity: str = "threshold"
    spikes: bool = True
    neuron: str = "ATMN"
    steps: int = 4
    tau: float | None = None
    fire_at: float | None = None
    sites: tuple[str, ...] = ("mixer_in", "mixer_out", "ffn_in", "ffn_out")
    per_token: bool = False
    text: str = "docstrings"
    updates: int = 600
    length: int = 1024
    sequences: int = 60
    learning_rate: float = 3e-3
    calibration: int = 8192

    def __post_init__(self) -> None:
        if self.policy not in POLICIES or self.policy == "manual":
            raise InputError(
                f"policy must be one of {', '.join(POLICIES[:-1])}, got {self.policy!r}; layers by hand go "
                "through a plan"
            )
        if self.mixer not in MIXERS:
            raise InputError(f"mixer must be one of {', '.join(MIXERS)}, got {self.mixer!r}")
        Budget.parse(self.budget, sys.maxsize)
        count("calibration", self.calibration)
        object.__setattr__(self, "sites", checked_sites(self.sites))
        made = self.job(Path(), Path(), 0, False)
        checked_sparsity(made.sparsity, 1, spread=False)
        checked_spikes(None if made.spikes is None else dict(made.spikes))

    def job(self, model: Path, out: Path, seed: int, progress: bool) -> Job:
        """What `marsnn refine` would do."""
        said = {"tau": self.tau, "fire_at": self.fire_at}
        chosen = {name: value for name, value in said.items() if value is not None}
        usual = {"tau": 0.5, "fire_at": 0.5} if self.neuron == "ATMN" else {}
        spikes = {
            "neuron": self.neuron, "sites": list(self.sites), "per_token": self.per_token,
            "settings": {"steps": self.steps, **usual, **chosen},
        }  # fmt: skip
        return Job(
            model, out, str(self.budget), self.policy, None, self.mixer,
            None if self.keep == 1 else {"mode": self.sparsity, "keep": self.keep},
            spikes if self.spikes else None,
            None if self.plan is None else Path(self.plan), text=self.text,
            align=AlignConfig(
                updates=self.updates, length=self.length, sequences=self.sequences,
                learning_rate=self.learning_rate, seed=seed,
            ),
            calibration=self.calibration, evaluation=None, resume=(out / "plan.json").is_file(),
            progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked.

    Attributes:
        out: folder for everything.   seed: of all that is drawn.
        teacher: folder of a model, or `pretrain` says how one is made.
        refine: None where `student`, the folder of a refined model, is there already.
        distill, sparse: stages of learning, None for none.
        evaluate: what is measured at the end, and on the way.
    """

    out: Path
    seed: int = 0
    teacher: Path | None = None
    student: Path | None = None
    pretrain: PretrainConfig | None = None
    refine: RefineSettings | None = None
    distill: LearnConfig | None = None
    sparse: LearnConfig | None = None
    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without `out`, which may be moved."""
        return dataclasses.asdict(
            self, dict_factory=lambda pairs: {name: _plain(value) for name, value in pairs if name != "out"}
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


SECTIONS: dict[str, Any] = {
    "pretrain": PretrainConfig, "refine": RefineSettings, "distill": LearnConfig, "sparse": LearnConfig,
    "evaluate": EvaluationConfig,
}  # fmt: skip
TOP = ("out", "seed", "teacher", "student")

SPARSE = {"trained": "ffn", "refresh_every": 50}
"""What [sparse] has where it doesn't say: feed-forward nets only, masks and levels chosen anew."""


def load_recipe(path: Path, out: Path | None = None, seed: int | None = None) -> Recipe:
    """Read a recipe's TOML file.

    Args:
        path: of the file; paths in it are taken from where the command runs.
        out, seed: in place of its own.

    Raises:
        FileError: it can't be read, or is no TOML.
        InputError: an unknown key, with the nearest that is known; a value that can't be; no teacher, or two.
    """
    table = read_toml(path)
    _known(path, "", table, (*TOP, *SECTIONS))
    made: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        if name not in table:
            continue
        section = table[name]
        if not isinstance(section, Mapping):
            raise InputError(f"{path}: {name} must be a section, [{name}]")
        _known(path, name, section, [each.name for each in fields(kind)])
        values = {**(SPARSE if name == "sparse" else {}), **section}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        try:
            made[name] = kind(**values)
        except InputError as error:
            raise InputError(f"{path}: [{name}]: {error}") from error
        except TypeError as error:
            raise InputError(f"{path}: [{name}] holds a value of the wrong type: {error}") from error
    for name in ("teacher", "student"):
        if name in table:
            made[name] = Path(str(table[name]))
    where = out if out is not None else table.get("out")
    if not where:
        raise InputError(f'{path}: says nowhere to write to; add  out = "runs/first"')
    drawn = table.get("seed", 0) if seed is None else seed
    if isinstance(drawn, bool) or not isinstance(drawn, int):
        raise InputError(f"{path}: seed must be a whole number, got {drawn!r}")
    recipe = Recipe(out=Path(str(where)), seed=drawn, **made)
    if (recipe.teacher is None) == (recipe.pretrain is None):
        raise InputError(f'{path}: needs a teacher, either  teacher = "FOLDER"  or a section [pretrain]')
    if recipe.refine is None and recipe.student is None:
        raise InputError(f'{path}: needs a student, either a section [refine] or  student = "FOLDER"')
    if recipe.refine is not None and recipe.student is not None:
        raise InputError(f"{path}: student and [refine] are there, of which one is meant; delete the other")
    if recipe.distill is None and recipe.sparse is None:
        raise InputError(f"{path}: nothing is learnt; add a section [distill]")
    return recipe


def _known(path: Path, section: str, table: Mapping[str, Any], names: Any) -> None:
    for key in table:
        if key in names:
            continue
        near = difflib.get_close_matches(key, list(names), 1)
        meant = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"
        where = f"[{section}] has no key" if section else "no key"
        raise InputError(f"{path}: {where} {key!r}{meant}")


def distill(recipe: Recipe, progress: bool = False) -> Evaluation | None:
    """Run a recipe, or go on with it.

    Started by torchrun or accelerate, learning is shared by all processes; one of them does the rest.

    Returns:
        The evaluation: the teacher and every stage; None in processes that don't write.

    Raises:
        FileError: the folder is of another recipe, can't be written, or what lies there is damaged.
        InputError, DivergedError: of the stages.
    """
    here = _processes()
    alone = here.is_main_process
    if here.num_processes == 1 and torch.cuda.device_count() > 1:
        raise InputError(one_gpu_each(torch.cuda.device_count()))
    for each in (recipe.teacher, recipe.student):
        if each is not None:
            checked_folder(each)
    if alone:
        _begin(recipe)
    here.wait_for_everyone()
    folder = _teacher(recipe, progress and alone)  # all processes train it together
    with here.main_process_first():
        tokenizer = load_tokenizer(folder)
        check_texts(tokenizer, recipe.evaluate)
    with here.main_process_first():
        start = recipe.student
        if recipe.refine is not None:
            start = recipe.out / "refined"
            if not (start / DONE).is_file():
                run_job(recipe.refine.job(folder, start, recipe.seed, progress and alone))
    assert start is not None
    teacher = load_refined(folder).to(usual_device())  # type: ignore[arg-type]
    found: dict[str, Path] = {"refined": start}
    for name, config in (("distilled", recipe.distill), ("sparse", recipe.sparse)):
        if config is None:
            continue
        out = recipe.out / name
        if not (out / DONE).is_file():
            say(f"{name}: {config.updates} updates", progress and alone)
            learn(
                _student(start), teacher, tokenizer, config, out, recipe.seed,
                _within(recipe.evaluate, teacher), progress and alone,
            )  # fmt: skip
        elif alone:
            clear(out)  # where a run was killed when it was done
        found[name] = start = out
    if not alone:
        return None
    if (recipe.out / "report.json").is_file():
        return load_report(recipe.out)
    return _measured(recipe, teacher, tokenizer, found, progress)


def _processes() -> PartialState:
    """This process among those that torchrun started, if it did."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)


def _begin(recipe: Recipe) -> None:
    """Refuse a folder that another recipe made, and leave there what this one says."""
    path = recipe.out / "recipe.json"
    own = recipe.to_dict()
    probe(path)
    if path.is_file():
        there = read_json(path)
        for section, value in own.items():
            before = there.get(section) if isinstance(there, dict) else None
            if before == value:
                continue
            shown = section
            if isinstance(before, dict) and isinstance(value, dict):
                key = next(key for key in {**before, **value} if before.get(key) != value.get(key))
                shown, before, value = f"[{section}] {key}", before.get(key), value.get(key)
            raise FileError(
                f"{recipe.out}: holds a run of another recipe: {shown} was {before!r}, now {value!r}; "
                "choose another out, or delete it"
            )
    elif any(not each.name.startswith(".") for each in recipe.out.iterdir()):
        raise FileError(f"{recipe.out}: holds something that no recipe left there; choose another out")
    write_text(path, json_text(own))


def _teacher(recipe: Recipe, progress: bool) -> Path:
    if recipe.teacher is not None:
        return recipe.teacher
    assert recipe.pretrain is not None
    pretrain(replace(recipe.pretrain, seed=recipe.seed), recipe.out / "teacher", progress)
    return recipe.out / "teacher"


def _student(folder: Path) -> MarForCausalLM:
    found = load_refined(folder)
    if not isinstance(found, MarForCausalLM):
        raise InputError(f"{folder}: not a refined model; marsnn refine makes one")
    return found


def _within(config: EvaluationConfig, model: PreTrainedModel) -> EvaluationConfig:
    """For the curve: texts alone, in what the model can read at once."""
    limit = int(model.config.max_position_embeddings)
    return replace(config, tasks=0, contexts=(), positions=(), context=min(config.context, limit - 1))


def _measured(
    recipe: Recipe, teacher: PreTrainedModel, tokenizer: Any, found: Mapping[str, Path], progress: bool
) -> Evaluation:
    """A row for the teacher, for each stage of the refined student, and for what learning made of it."""
    say("evaluating", progress)
    rows: dict[str, PreTrainedModel | View] = {"dense": teacher}
    last = None
    for name, folder in found.items():
        last = _student(folder).to(teacher.device)
        steps = stages(last)
        if name == "refined":
            rows |= {f"refined, {step}": view for step, view in steps.items()}
        else:
            whole = list(steps.values())[-1]
            if last.config.spikes is not None:
                rows[f"{name}, without spikes"] = replace(whole, spiking=False)
            rows[name] = whole
    config = replace(recipe.evaluate, context=_within(recipe.evaluate, teacher).context)
    evaluation = evaluate(rows, tokenizer, config, "dense", progress)
    evaluation.refinement = getattr(last, "refinement", None)
    save_report(evaluation, recipe.out)
    return evaluation
