"""`refine`: a trained Transformer and a plan become a refined model, stage by stage."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from marsnn.errors import InputError
from marsnn.files import PathLike
from marsnn.progress import say
from marsnn.refine.alignment import AlignConfig, align
from marsnn.refine.calibration import add_spikes, sparsify
from marsnn.refine.config import SPIKES
from marsnn.refine.modality import modality
from marsnn.refine.model import MarPreTrainedModel
from marsnn.refine.planner import Plan
from marsnn.refine.transfer import convert

LENGTH = 1024
"""Tokens, at most, of a sequence for calibration."""


@dataclass(frozen=True)
class RefineConfig:
    """How a plan is carried out.

    Attributes:
        tokens: ids of running text [number], or images [number, C, H, W]; None for those that the plan was
            made from.
        align: how state space layers learn.
        calibration: tokens for sparsity and spikes, in sequences of at most 1,024, or images that hold them.
        folder: where finished layers are kept, so that an interrupted run goes on; None for nowhere.
        progress: say what is being done.
    """

    tokens: Tensor | None = None
    align: AlignConfig = field(default_factory=AlignConfig)
    calibration: int = 8192
    folder: PathLike | None = None
    progress: bool = False


def refine(model: PreTrainedModel, plan: Plan, config: RefineConfig | None = None) -> MarPreTrainedModel:
    """Convert attentions, align them, make feed-forward nets sparse, put spikes: what the plan says.

    Args:
        model: the one the plan was made for; left as it is.
        plan: from `marsnn.refine.plan`, or read and edited.
        config: see `RefineConfig`.

    Returns:
        The refined model; `refinement` on it says what each stage did, JSON-ready.

    Raises:
        InputError: a plan for another model, no tokens, a setting out of range.
        NonFiniteError: weights hold NaN.   DivergedError: a layer's training.
    """
    config = config or RefineConfig()
    plan.check(model)
    plan.validate()
    tokens = plan.tokens if config.tokens is None else config.tokens
    if tokens is None:
        raise InputError("a plan read from a file has no tokens; pass RefineConfig(tokens=...)")
    done: dict[str, Any] = {"plan": plan.to_dict(), "seconds": {}}
    before = set(getattr(model.config, "ssm_layers", ()))
    new = [layer for layer in plan.ssm_layers if layer not in before]
    changes = {"mixer": plan.mixer} if new else {}
    refined = convert(model, new, **changes)
    if new:
        say(
            f"stage 1: {len(new)} attention layers become {plan.mixer}, each learns by itself",
            config.progress,
        )
        with _timed(done, "align"):
            folder = None if config.folder is None else Path(config.folder) / "layers"
            teacher = convert(model, [])
            aligned = align(refined, teacher, tokens, config.align, new, folder, config.progress)
        done["align"] = [asdict(each) for each in aligned]
    sample = modality(model).for_calibration(tokens, config.calibration, LENGTH)
    if plan.sparsity is not None:
        say(f"stage 2: feed-forward nets keep {_told(plan.sparsity['keep'])}", config.progress)
        with _timed(done, "sparsity"):
            sparse = sparsify(refined, sample, plan.sparsity["keep"], plan.sparsity["mode"])
        done["sparsity"] = [asdict(each) for each in sparse]
    if plan.spikes is not None:
        spikes = {**SPIKES, **plan.spikes}
        say(f"stage 3: {spikes['neuron']} before the projections", config.progress)
        with _timed(done, "spikes"):
            spiked = add_spikes(
                refined, sample, spikes["neuron"], spikes["sites"], spikes["per_token"], **spikes["settings"]
            )
        done["spikes"] = [asdict(each) for each in spiked]
    refined.refinement = done
    return refined


def _told(keep: Any) -> str:
    return f"{keep:.0%} on average" if isinstance(keep, float) else "what the plan says"


class _timed:
    def __init__(self, done: dict[str, Any], stage: str) -> None:
        self.done, self.stage = done, stage

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.done["seconds"][self.stage] = time.perf_counter() - self.started
