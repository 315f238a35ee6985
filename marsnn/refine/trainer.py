"""`MarTrainer`: a refined student learns from its frozen dense teacher by SBDS, on transformers' Trainer.

    each update     state space only, or state space and spikes, in turn
    each batch      teacher and student on the same tokens; `sbds_loss` of their logits and of their features
    now and then    masks or thresholds of sparse feed-forward nets are chosen anew

Source: MAR, arXiv 2601.21503, the section on SBDS and the training pipeline. Everything that a run depends on
follows from the number of the update, so a run that goes on from a checkpoint is the run that was never
stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from marsnn.checks import count, none_or_count, not_negative, positive
from marsnn.errors import InputError
from marsnn.refine.config import SITES
from marsnn.refine.features import KINDS, checked_sites, observed, places
from marsnn.refine.loop import Loop
from marsnn.refine.model import MarForCausalLM, layers_of, site_of
from marsnn.refine.refresh import Refresh
from marsnn.refine.sbds import SbdsLoss, sbds_head_loss, sbds_loss
from marsnn.refine.teacher_cache import TeacherCache
from marsnn.spiking import SpikingInput
from marsnn.training import IGNORED

TRAINED = ("all", "ffn", "spikes")


@dataclass(frozen=True)
class SbdsConfig:
    """How a student learns from its teacher; alpha, beta and the features are the paper's."""

    alpha: float = field(default=0.2, metadata={"help": "weight of KL(teacher || student)"})
    beta: float = field(default=0.7, metadata={"help": "weight of KL(student || teacher)"})
    features: str = field(
        default="pre", metadata={"help": "compared where spikes are inserted: pre, post, both or none"}
    )
    feature_weight: float = field(default=0.01, metadata={"help": "of the features' distance in the loss"})
    sites: Sequence[str] = field(default=SITES, metadata={"help": "where features are compared"})
    alternate: Sequence[int] = field(
        default=(1, 1), metadata={"help": "updates without spikes, then with spikes, in turn; 0,1 for never"}
    )
    steps_from: int | None = field(
        default=None, metadata={"help": "micro-steps T at the start, which come down to the model's own"}
    )
    anneal: float = field(default=0.5, metadata={"help": "share of the updates in which T comes down"})
    threshold_learning_rate: float | None = field(
        default=None, metadata={"help": "peak rate of the neurons' log V; without it that of the others"}
    )
    refresh_every: int = field(
        default=0, metadata={"help": "updates after which sparsity is chosen anew; 0 for never"}
    )
    trained: str = field(
        default="all", metadata={"help": "all weights, ffn (feed-forward nets and their spikes), or spikes"}
    )

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "feature_weight"):
            not_negative(name, getattr(self, name))
        for name, known in (("features", KINDS), ("trained", TRAINED)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        turns = tuple(self.alternate)
        if len(turns) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in turns):
            raise InputError(f"alternate must be two numbers of updates, such as 1,1; got {list(turns)}")
        if not turns[1]:
            raise InputError("alternate must have updates with spikes: its second number is 0")
        object.__setattr__(self, "alternate", turns)
        object.__setattr__(self, "sites", checked_sites(self.sites))
        if self.threshold_learning_rate is not None:
            positive("threshold_learning_rate", self.threshold_learning_rate)
        if self.steps_from is not None:
            count("steps_from", self.steps_from)
        not_negative("anneal", self.anneal)
        if self.anneal > 1:
            raise InputError(f"anneal must be a share from 0 to 1, got {self.anneal!r}")
        none_or_count("refresh_every", self.refresh_every)

    def spikes_in(self, update: int) -> bool:
        """Whether spikes take part in an update, the first of which is 0."""
        without, with_them = self.alternate
        return update % (without + with_them) >= without

    def steps_at(self, update: int, updates: int, own: int) -> int:
        """T in an update: from `steps_from` down to the model's own in equal parts."""
        if self.steps_from is None or self.steps_from <= own:
            return own
        length = self.anneal * updates
        if update >= length:
            return own
        return self.steps_from - int((self.steps_from - own) * update / length)


class MarTrainer(Loop):
    """transformers' Trainer with a teacher.

    Args:
        model: the student, a `MarForCausalLM`; `marsnn.refine.add_lora` may have been at it.
        teacher: the dense model, or what it said, kept by `TeacherCache`.
        args: transformers' TrainingArguments.
        sbds: see `SbdsConfig`.
        rest: of Trainer; `progress=True` tells how far it is. Rows of a dataset hold input_ids, and where
            tokens don't count attention_mask (0 for padding) or labels (-100 for prompts).

    Logs the loss and its two parts, loss_logits and loss_features. Loss and gradients are means over the
    tokens that count in an update, however it is cut into batches and processes.

    Raises:
        InputError: vocabularies that differ, a model without spikes of which spikes are to be trained,
            features of a teacher of another shape or that is only remembered, one process for several GPUs,
            FSDP 1.
        DivergedError: while training, a loss or gradient that is NaN or infinite; checkpoints hold none.

    Example:
        trainer = MarTrainer(student, teacher, TrainingArguments("out"), train_dataset=rows)
        trainer.train()
    """

    def __init__(
        self,
        model: MarForCausalLM,
        teacher: PreTrainedModel | TeacherCache,
        args: TrainingArguments,
        sbds: SbdsConfig | None = None,
        **rest: Any,
    ) -> None:
        self.sbds = sbds or SbdsConfig()
        if not isinstance(model, MarForCausalLM):
            raise InputError(
                "a student is a MarForCausalLM, which marsnn.refine.convert makes; got "
                f"{type(model).__name__}"
            )
        check_pair(teacher, model)
        if self.sbds.features != "none":
            _check_features(teacher, model)
        if args.n_gpu > 1:
            raise InputError(one_gpu_each(args.n_gpu))
        self.student, self.teacher = model, teacher
        self.spiking = spiking_inputs(model)
        self.steps = self.spiking[0].neuron.steps if self.spiking else 0
        choose_trained(model, self.sbds.trained)
        self.places = places(model, self.sbds.sites)
        self._parts: dict[str, Tensor] = {}
        self.updates_since = 0  # updates since they were logged
        super().__init__(model=model, args=args, **rest)
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version < 2:
            raise InputError(
                "FSDP 1 is out of date and not supported; set  fsdp_version: 2  (FSDP_VERSION=2)"
            )
        self.model_accepts_loss_kwargs = True  # compute_loss scales, so Trainer must not
        if not isinstance(teacher, TeacherCache):
            teacher.eval().requires_grad_(False).to(args.device)
        self.add_callback(_Course(self))

    # ---- the loss ---------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """SBDS of a batch; a mean over the tokens of the whole update, of which this batch has a share.

        Where several processes count together, it is multiplied by their number, for gradients and losses
        are averaged over them afterwards.
        """
        counts = counting(inputs)
        found = self._sbds(model, inputs, counts)
        share: Tensor | float = 1.0
        if num_items_in_batch is not None:
            share = counts.sum() / torch.as_tensor(num_items_in_batch).clamp(min=1)
            if self.args.average_tokens_across_devices:
                share = share * self.accelerator.num_processes
        if model.training:
            self._add_parts(found, share)
        loss = found.loss * share
        return (loss, {"loss": loss}) if return_outputs else loss

    def _sbds(self, model: nn.Module, inputs: Mapping[str, Any], counts: Tensor) -> SbdsLoss:
        settings = self.sbds
        seen = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        weights: dict[str, Any] = {
            "alpha": settings.alpha, "beta": settings.beta, "feature_weight": settings.feature_weight,
            "mask": counts,
        }  # fmt: skip
        with ExitStack() as stack:
            theirs: dict[Any, Tensor] = {}
            if isinstance(self.teacher, TeacherCache):
                hidden, head = self.teacher.read(inputs, counts.device), self.teacher.head(counts.device)
            else:
                theirs = stack.enter_context(observed(self.teacher, self.places, settings.features))
                with torch.no_grad():
                    hidden = self.teacher.model(**seen, use_cache=False).last_hidden_state
                head = self.teacher.get_output_embeddings().weight
            ours = stack.enter_context(observed(self.student, self.places, settings.features))
            sharded = self.is_fsdp_enabled
            last = stack.enter_context(last_hidden(self.student))
            # a model in processes must be called as a whole, or its gradients aren't gathered
            outputs = model(**seen, use_cache=False, logits_to_keep=0 if sharded else 1)
            pairs = [(theirs[key], own) for key, own in ours.items()]
            features = ([a for a, _ in pairs], [b for _, b in pairs])
            if sharded:
                return sbds_loss(nn.functional.linear(hidden, head), outputs.logits, *features, **weights)
            return sbds_head_loss(hidden, head, last[0], self.student.lm_head.weight, *features, **weights)

    def _add_parts(self, found: SbdsLoss, share: Tensor | float) -> None:
        for name in ("logits", "features"):
            part = (getattr(found, name).detach() * share).float()
            self._parts[name] = self._parts.get(name, torch.zeros_like(part)) + part

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        """As Trainer's, with the parts of the loss since the last time."""
        if "loss" in logs and self._parts:
            for name, total in self._parts.items():
                mean = self.accelerator.reduce(total / max(1, self.updates_since), "mean")
                logs[f"loss_{name}"] = mean.item()
            self._parts.clear()
            self.updates_since = 0
        super().log(logs, *rest, **more)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Trainer's hook: predictions that count in an update; Trainer itself would count padding, too."""
        found = sum((counting(each).sum() for each in batch_samples), torch.tensor(0)).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            found = self.accelerator.gather(found).sum()
        return found

    # ---- what belongs to an update ----------------------------------------------------------------------

    def set_update(self, update: int) -> None:
        """Spikes on or off, and T, as the number of the update says."""
        on = self.sbds.spikes_in(update)
        for each in self.spiking:
            each.enabled = on
        self._set_steps(self.sbds.steps_at(update, self.state.max_steps, self.steps))

    def set_final(self) -> None:
        """Spikes on, with the model's own T: what is evaluated and saved."""
        for each in self.spiking:
            each.enabled = True
        self._set_steps(self.steps)

    def _set_steps(self, steps: int) -> None:
        for each in self.spiking:
            each.neuron.steps = steps

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's, of the whole student: with spikes, and its own T."""
        self.set_final()
        return super().evaluate(*args, **kwargs)  # type: ignore[no-any-return]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; however it ends, the student then spikes with its own T."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.set_final()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As Trainer's, with the rate of log V where it has its own; thresholds never decay."""
        optimizer = super().create_optimizer(model)
        rate = self.sbds.threshold_learning_rate
        own = {id(p) for each in self.spiking for p in each.neuron.parameters() if p.requires_grad}
        if not own or any(group.get("spikes") for group in optimizer.param_groups):
            return optimizer
        taken = []
        for group in optimizer.param_groups:
            taken += [p for p in group["params"] if id(p) in own]
            group["params"] = [p for p in group["params"] if id(p) not in own]
        rate = self.args.learning_rate if rate is None else rate
        if taken:
            optimizer.add_param_group({"params": taken, "weight_decay": 0.0, "lr": rate, "spikes": True})
        return optimizer


class _Course(TrainerCallback):
    """Tells the trainer which update begins, and refreshes sparsity when its time has come."""

    def __init__(self, trainer: MarTrainer) -> None:
        self.trainer = trainer
        self.refresh: Refresh | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.set_update(state.global_step)
        every = self.trainer.sbds.refresh_every
        if every and (state.global_step + 1) % every == 0:
            self.refresh = Refresh(self.trainer.student)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.updates_since += 1
        if self.refresh is not None:
            self.refresh.finish(self.trainer.accelerator)
            self.refresh = None


def check_pair(teacher: PreTrainedModel | TeacherCache, student: PreTrainedModel) -> None:
    """Refuse a teacher and a student that don't speak of the same tokens.

    Raises:
        InputError: so.
    """
    theirs = teacher.vocabulary if isinstance(teacher, TeacherCache) else teacher.config.vocab_size
    own = student.config.vocab_size
    if theirs != own:
        raise InputError(
            f"the teacher tells {theirs:,} tokens apart, the student {own:,}: distillation needs one "
            "vocabulary; refine the student from this teacher"
        )


SHAPE = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")


def _check_features(teacher: PreTrainedModel | TeacherCache, student: PreTrainedModel) -> None:
    if isinstance(teacher, TeacherCache):
        raise InputError('a teacher that is only remembered has no features; set features="none"')
    for name in SHAPE:
        theirs, own = getattr(teacher.config, name), getattr(student.config, name)
        if theirs != own:
            raise InputError(
                f"the teacher's {name} is {theirs}, the student's {own}: they can't be compared inside; set "
                'features="none"'
            )


def one_gpu_each(gpus: int) -> str:
    """What to do where one process sees several GPUs."""
    return (
        f"one process sees {gpus} GPUs and distils on one; start one each by  torchrun --nproc-per-node "
        f"{gpus} -m marsnn ..., or show it one by CUDA_VISIBLE_DEVICES=0"
    )


def spiking_inputs(model: MarForCausalLM) -> list[SpikingInput]:
    """All sites of a model that spike, layer by layer."""
    found = []
    for layer in layers_of(model):
        for site in SITES:
            each = getattr(site_of(layer, site)[0], site, None)
            if each is not None:
                found.append(each)
    return found


def choose_trained(model: MarForCausalLM, trained: str) -> None:
    """Let gradients into a part of the weights only.

    Args:
        trained: one of `TRAINED`; "all" leaves them as they are.

    Raises:
        InputError: spikes of a model that has none.
    """
    if trained == "all":
        return
    parts: list[nn.Module] = list(spiking_inputs(model))
    if trained == "spikes" and not parts:
        raise InputError('trained="spikes", but the student has none; add_spikes(student, tokens) puts them')
    if trained == "ffn":
        parts = [layer.mlp for layer in layers_of(model)]
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)


def counting(inputs: Mapping[str, Any]) -> Tensor:
    """Which predictions count, [B, L]: those whose next token is there and is no prompt's or padding."""
    ids = inputs["input_ids"]
    wanted = inputs.get("labels")
    counts = torch.zeros_like(ids, dtype=torch.bool)
    counts[:, :-1] = True if wanted is None else wanted[:, 1:] != IGNORED
    there = inputs.get("attention_mask")
    if there is not None:
        counts[:, :-1] &= (there[:, 1:] != 0) & (there[:, :-1] != 0)
    return counts


@contextmanager
def last_hidden(model: MarForCausalLM) -> Iterator[list[Tensor]]:
    """Within the block: what the stack gave last, behind its norm."""
    found: list[Tensor] = []
    hook = model.model.register_forward_hook(lambda _, args, out: found.append(out.last_hidden_state))
    try:
        yield found
    finally:
        hook.remove()
