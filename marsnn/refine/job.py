"""A refinement from folder to folder: what `marsnn refine` does, and what an interrupted one leaves behind.

    OUT/plan.json, plan.txt, plan.png     what becomes of each layer, and why
    OUT/work/                             layers that are done; gone when all are
    OUT/model.safetensors, config.json, tokenizer files   an ordinary Hugging Face model
    OUT/refinement.json                   what each stage did
    OUT/report.json, report.txt, report.html

Nothing that stands in OUT is written over unless a resumed job made it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from marsnn.errors import FileError, InputError
from marsnn.files import json_text, new_folder, probe, read_json, write_text
from marsnn.plots.files import save_figure
from marsnn.plots.refinement import plan_bars
from marsnn.progress import say
from marsnn.refine.alignment import AlignConfig
from marsnn.refine.config import checked_spikes
from marsnn.refine.evaluation import Evaluation, EvaluationConfig, check_texts, evaluate
from marsnn.refine.loading import (
    begun,
    checked_folder,
    encoded,
    load_model,
    load_tokenizer,
    prefix_of,
    quietly,
    usual_device,
)
from marsnn.refine.model import MarForCausalLM
from marsnn.refine.pipeline import RefineConfig, refine
from marsnn.refine.planner import Plan, plan
from marsnn.refine.report import save_report
from marsnn.refine.sparsity import checked_sparsity
from marsnn.refine.stages import View, stages

COPIES = 3
"""Of the weights in memory: the model, its copy under our classes, the refined one."""

DONE = "refinement.json"
"""Written last: whoever finds it finds a whole model."""


@dataclass(frozen=True)
class Job:
    """What to refine, and how far.

    Attributes:
        model: folder of a model with its tokenizer.   out: folder for the result.
        budget, policy, layers, mixer, sparsity, spikes: of `plan`.
        plan: a plan's file instead of them.
        context: tokens that an energy budget is meant for.
        text: what is learnt on, of `read_text`.
        align: how state space layers learn.   calibration: tokens for sparsity and spikes.
        dtype: of the result; layers learn in float32.
        evaluation: what is measured at the end, None for nothing.
        resume: go on with what an interrupted job left in `out`.
        progress: say what is being done.
    """

    model: Path
    out: Path
    budget: str = "half"
    policy: str = "sensitivity"
    layers: tuple[int, ...] | None = None
    mixer: str = "ssd"
    sparsity: Mapping[str, Any] | None = None
    spikes: Mapping[str, Any] | None = None
    plan: Path | None = None
    context: int = 1024
    text: str = "docstrings"
    align: AlignConfig = field(default_factory=AlignConfig)
    calibration: int = 8192
    dtype: torch.dtype = torch.float32
    evaluation: EvaluationConfig | None = field(default_factory=EvaluationConfig)
    resume: bool = False
    progress: bool = False


def plan_only(job: Job) -> Plan:
    """Write the plan, and nothing else.

    Raises:
        as `run_job`.
    """
    _check_room(job, plan_only=True)
    tokenizer = load_tokenizer(job.model)
    model = load_model(job.model, job.dtype).to(usual_device())  # type: ignore[arg-type]
    made = _planned(job, model, tokenizer)
    _write_plan(made, job.out)
    return made


def run_job(job: Job) -> tuple[MarForCausalLM, Evaluation | None]:
    """Plan, convert, align, sparsify, spike, save, evaluate.

    Returns:
        The refined model, and its evaluation: the model it came from, and one row for every stage.

    Raises:
        FileError: no model or tokenizer there, damaged weights, a folder that can't be written or has no
            room, one that holds something already.
        InputError: a plan of another model, a setting out of range, too little memory or text.
        NonFiniteError, DivergedError: weights or losses that are NaN.
    """
    if job.sparsity is not None:
        checked_sparsity(job.sparsity, 1, spread=False)
    checked_spikes(dict(job.spikes) if job.spikes is not None else None)
    _check_room(job)
    tokenizer = load_tokenizer(job.model)
    if job.evaluation is not None:
        check_texts(tokenizer, job.evaluation)
    teacher = load_model(job.model, job.dtype, copies=COPIES).to(usual_device())  # type: ignore[arg-type]
    made = _planned(job, teacher, tokenizer)
    _write_plan(made, job.out)
    say(made.summary(), job.progress)
    if job.resume and (job.out / DONE).is_file():
        say("refined already", job.progress)
        refined = load_refined(job.out, job.dtype).to(teacher.device)  # type: ignore[arg-type]
        assert isinstance(refined, MarForCausalLM)
    else:
        refined = _refined(job, teacher, tokenizer, made)
    if job.evaluation is None:
        return refined, None
    say("evaluating", job.progress)
    evaluation = evaluate(
        {"dense": teacher, **stages(refined)}, tokenizer,
        replace(job.evaluation, context=min(job.evaluation.context, _limit(teacher))),
        teacher="dense", progress=job.progress,
    )  # fmt: skip
    save_report(evaluation, job.out)
    return refined, evaluation


def _refined(job: Job, teacher: PreTrainedModel, tokenizer: Any, made: Plan) -> MarForCausalLM:
    """The plan carried out, and saved."""
    work = job.out / "work"
    config = RefineConfig(
        tokens=made.tokens, align=job.align, calibration=job.calibration, folder=work, progress=job.progress
    )
    work.mkdir(parents=True, exist_ok=True)
    refined = refine(teacher, made, config)
    assert isinstance(refined, MarForCausalLM)
    save_refined(refined, tokenizer, job.out)
    shutil.rmtree(work, ignore_errors=True)
    return refined


def save_refined(model: MarForCausalLM, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer into a folder, `refinement.json` last.

    Raises:
        FileError: it can't be written; what was written before is left as it was.
    """
    (folder / DONE).unlink(missing_ok=True)
    for torn in folder.glob("..part.*"):  # of a run that was killed while it wrote
        shutil.rmtree(torn, ignore_errors=True)
    try:
        with quietly(), new_folder(folder / ".part") as beside:
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
    except SafetensorError as error:
        raise FileError(
            f"{folder}: can't write the model: {str(error).splitlines()[0]}; make room"
        ) from error
    for file in sorted((folder / ".part").iterdir()):
        file.replace(folder / file.name)
    (folder / ".part").rmdir()
    write_text(folder / DONE, json_text(getattr(model, "refinement", {})))


def load_refined(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model's folder, refined or not; a refined one knows its `refinement`.

    Raises:
        FileError, InputError: as `load_model`.
    """
    model = load_model(folder, dtype)
    if isinstance(model, MarForCausalLM) and (folder / DONE).is_file():
        model.refinement = read_json(folder / DONE)
    return model


def rows_of(model: PreTrainedModel, name: str) -> dict[str, PreTrainedModel | View]:
    """The rows that a model is evaluated in: every stage of a refined one."""
    return dict(stages(model)) if isinstance(model, MarForCausalLM) else {name: model}


# ---- before it starts -----------------------------------------------------------------------------------


def _check_room(job: Job, plan_only: bool = False) -> None:
    """Refuse a folder that holds something, or has no room, before anything is computed."""
    if job.model.resolve() == job.out.resolve():
        raise InputError(f"{job.out}: the model would be written over itself; choose another --out")
    checked_folder(job.model)
    weights = (job.out / "config.json").is_file() or any(job.out.glob("*.safetensors"))
    ours = (job.out / "plan.json").is_file() and ((job.out / DONE).is_file() or (job.out / "work").is_dir())
    if job.resume and weights and not ours:
        raise FileError(f"{job.out}: holds a model that no refinement left there; choose another --out")
    if not job.resume:
        if (job.out / DONE).is_file() or weights:
            raise FileError(f"{job.out}: holds a model already; choose another --out")
        if (job.out / "work").exists():
            raise FileError(
                f"{job.out}: holds an interrupted refinement; add --resume to go on, or choose another --out"
            )
        there = job.out / "plan.json"
        same = job.plan is not None and there.resolve() == job.plan.resolve()
        if there.exists() and not same:
            raise FileError(
                f"{there}: a plan is there already; use it by --plan {there}, or choose another --out"
            )
    probe(job.out / "plan.json")
    if plan_only:
        return
    stored = sum(file.stat().st_size for file in job.model.glob("*.safetensors"))
    wanted = 3 * stored  # the result beside its parts, and layers that are done
    free = shutil.disk_usage(job.out).free
    if free < wanted:
        raise FileError(
            f"{job.out}: {free / 2**30:.2f} GiB are free on this disk, refining needs up to "
            f"{wanted / 2**30:.2f}; make room or choose another --out"
        )


def _planned(job: Job, model: PreTrainedModel, tokenizer: Any) -> Plan:
    """The plan that was given, that an interrupted job had, or a new one; with its tokens."""
    wanted = (job.align.sequences + job.align.held_out) * job.align.length
    tokens = begun(encoded(tokenizer, job.text, wanted), prefix_of(tokenizer), job.align.length)[:wanted]
    key = _key(job)
    kept = job.out / "plan.json"
    if job.plan is not None:
        made = Plan.load(job.plan)
    elif job.resume and kept.is_file():
        made = Plan.load(kept)
        if made.made_by not in (None, key):
            raise InputError(
                f"{kept}: was made with other settings; repeat them, say --plan {kept} to keep it, or choose "
                "another --out"
            )
    else:
        say(f"planning {job.budget} by {job.policy}", job.progress)
        made = plan(
            model, tokens, job.budget, job.policy, job.layers, job.mixer,
            dict(job.sparsity) if job.sparsity else None, dict(job.spikes) if job.spikes else None,
            job.context, job.progress,
        )  # fmt: skip
        made.made_by = key
    made.check(model)
    made.tokens = tokens
    return made


def _key(job: Job) -> str:
    """A digest of what a plan follows from, but for the model, which the plan itself remembers."""
    names = ("budget", "policy", "layers", "mixer", "sparsity", "spikes", "context", "text")
    settings = {name: value for name, value in asdict(job).items() if name in names}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _write_plan(made: Plan, out: Path) -> None:
    made.save(out / "plan.json")
    write_text(out / "plan.txt", made.text())
    if any(each.scores for each in made.layers):
        save_figure(plan_bars(made.to_dict()), out / "plan.png")


def _limit(model: PreTrainedModel) -> int:
    found = model.config.max_position_embeddings
    assert isinstance(found, int)
    return found
