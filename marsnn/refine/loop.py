"""A Trainer that is quiet, stops at NaN, and goes on after a kill as if it had never been stopped.

transformers writes a checkpoint file by file, so a kill can leave half of one. `Seal` writes a last file with
the sizes of all others: `last_whole_checkpoint` takes only what agrees with it. Two checkpoints are kept, so
that one is whole while the next is written.
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from marsnn.errors import DivergedError, FileError, InputError, MarsnnError, NonFiniteError
from marsnn.files import PathLike, json_text, read_json, write_text
from marsnn.progress import duration, say
from marsnn.refine.loading import quietly
from marsnn.training import warmup_cosine

Kind = TypeVar("Kind", bound=nn.Module)

SEAL = "whole.json"
"""In a checkpoint: name -> [bytes, CRC-32] of every other file, written last."""


# ---- data -----------------------------------------------------------------------------------------------


def token_rows(ids: Tensor, length: int) -> Tensor:
    """Running text [number] cut into rows [R, length]; what doesn't fill a row is left out.

    Raises:
        InputError: not one row.
    """
    if len(ids) < length:
        raise InputError(f"{len(ids):,} tokens are there, a row takes {length:,}; give more text")
    return ids[: len(ids) // length * length].view(-1, length)


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of tokens [R, L] as a causal language model's inputs and labels."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index].long()
        return {"input_ids": row, "labels": row, "index": torch.tensor(index)}


# ---- settings -------------------------------------------------------------------------------------------


def quiet_arguments(
    folder: PathLike,
    updates: int,
    batch: int,
    learning_rate: float,
    warmup: int,
    weight_decay: float,
    save_every: int,
    seed: int,
    tensorboard: bool = False,
    together: int | None = None,
    clip: float = 1.0,
    bf16: bool | None = None,
) -> TrainingArguments:
    """Arguments of a Trainer that tells no hub, draws nothing, and saves what it needs to go on.

    float32 on a CPU; on a GPU bfloat16 where it has that, beside float32 weights. AdamW (0.9, 0.95), which
    decays matrices only; the gradient's norm is clipped.

    Args:
        folder: for checkpoints, of which two are kept.
        batch: sequences of an update, in all processes together.
        warmup: updates until the peak rate; a cosine follows.
        save_every: updates between checkpoints; the last update always has one.
        tensorboard: write losses to `folder`/runs.
        together: sequences at most that a process runs at once; None for all of its share.
        clip: largest norm of the gradient.
        bf16: products in bfloat16; None where there is a GPU that has it.

    Raises:
        InputError: a batch that processes can't share, more processes than GPUs, no tensorboard.
    """
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard is not installed: run  pip install tensorboard")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    share = _share(batch, gpus)
    at_once = max(size for size in range(1, min(share, together or share) + 1) if share % size == 0)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=updates,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=share // at_once,
        dataloader_drop_last=True,
        dataloader_pin_memory=gpus > 0,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup,
        optim="adamw_torch",
        adam_beta2=0.95,
        weight_decay=weight_decay,
        max_grad_norm=clip,
        seed=seed,
        use_cpu=gpus == 0,
        ddp_backend="gloo" if not gpus and _processes() > 1 else None,
        ddp_find_unused_parameters=False,
        bf16=gpus > 0 and torch.cuda.is_bf16_supported() if bf16 is None else bf16,
        save_steps=save_every,
        save_total_limit=2,
        logging_steps=1,  # a NaN is seen before it is saved
        logging_nan_inf_filter=False,
        report_to="tensorboard" if tensorboard else "none",
        push_to_hub=False,
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def _share(batch: int, gpus: int) -> int:
    """Sequences of an update for each process, or for each GPU that one process drives."""
    processes = _processes()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus and here > gpus:
        raise InputError(
            f"{here} processes, {gpus} GPUs; start as many as there are GPUs, or hide them by "
            'CUDA_VISIBLE_DEVICES=""'
        )
    parts = processes if processes > 1 else max(1, gpus)
    if batch % parts:
        raise InputError(f"{parts} processes can't share a batch of {batch}; give a multiple of {parts}")
    return batch // parts


def _processes() -> int:
    """As many as torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_all() -> None:
    """Until every process is here; alone, not at all."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


# ---- the loop -------------------------------------------------------------------------------------------


class Loop(Trainer):
    """A Trainer with our schedule and callbacks; override `compute_loss` to teach something else."""

    def __init__(self, *args: Any, progress: bool = False, **kwargs: Any) -> None:
        own = [StopOnNaN(), Seal(), Tell(progress), *(kwargs.pop("callbacks", None) or ())]
        with quietly():
            super().__init__(*args, callbacks=own, **kwargs)
        self.remove_callback(PrinterCallback)
        self._matrices = {name for name, each in self.model.named_parameters() if each.ndim > 1}
        self.began_at = 0  # the update that this run went on from

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices; Trainer's own rule goes by Llama's names. Names are those before a model was wrapped."""
        plain = {name: name.replace("_fsdp_wrapped_module.", "") for name, _ in model.named_parameters()}
        return [name for name, own in plain.items() if own.removeprefix("module.") in self._matrices]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """For a cosine the house's, whose first update is not lost; others are Trainer's."""
        if self.args.lr_scheduler_type != "cosine":
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[no-any-return]
        if self.lr_scheduler is None:
            chosen = self.optimizer if optimizer is None else optimizer
            warmup = max(1, self.args.get_warmup_steps(num_training_steps))
            schedule = warmup_cosine(chosen, warmup, num_training_steps)
            self.lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = schedule
            self._created_lr_scheduler = True
        assert self.lr_scheduler is not None
        return self.lr_scheduler

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's; a layer that refuses what isn't finite stops the run as a loss would."""
        try:
            return super().training_step(*args, **kwargs)  # type: ignore[no-any-return]
        except NonFiniteError as error:
            raise diverged("activations", self.args, self.state.global_step + 1) from error

    def whole(self, make: Callable[[], Kind]) -> Kind:
        """The trained model; where its weights lie in parts (FSDP), one that has all of them.

        Every process must call it; under FSDP the first one gets the weights.

        Args:
            make: the same model anew.
        """
        if not self.is_fsdp_enabled:
            return self.model  # type: ignore[no-any-return]
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        made = make()
        if weights:
            made.load_state_dict(weights)
        return made

    def go_on(self) -> list[float]:
        """Train to the end, from the last whole checkpoint if there is one: the loss of every update.

        On one CPU, with as many processes and threads, an interrupted run ends at the same bits.

        Raises:
            DivergedError: a loss or gradient became NaN or infinite.
            FileError: a checkpoint can't be written.
        """
        # weights that lie in parts are only loaded to train on: go back to where that is due
        end = self.args.max_steps if self.is_fsdp_enabled else None
        last = last_whole_checkpoint(self.args.output_dir, before=end)
        self.began_at = 0 if last is None else step_of(last)
        try:
            with quietly():
                if last is not None and self.began_at >= self.args.max_steps:
                    self._load_from_checkpoint(str(last))  # to train on here would add an update
                    self.state = TrainerState.load_from_json(str(last / "trainer_state.json"))
                else:
                    self.train(resume_from_checkpoint=None if last is None else str(last))
        except MarsnnError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _while_writing(error):
                raise
            raise FileError(
                f"{self.args.output_dir}: can't write a checkpoint: {_reason(error)}; make room, and the "
                "same again goes on from the last whole one"
            ) from error
        return [entry["loss"] for entry in self.state.log_history if "loss" in entry]


TORN = "inline_container"
"""What torch.save names when a file takes less than it was given, as on a full disk."""


def _while_writing(error: Exception) -> bool:
    return isinstance(error, OSError | SafetensorError) or TORN in str(error)


def _reason(error: Exception) -> str:
    if TORN in str(error):
        return "a file could not be written whole"
    return (getattr(error, "strerror", None) or str(error)).strip().splitlines()[0].lower()


class StopOnNaN(TrainerCallback):
    """Raises DivergedError in the update whose loss or gradient is no number, before it can do any harm."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        fine = torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm).float()
        if args.world_size > 1:  # whoever stops, all do
            torch.distributed.all_reduce(fine, torch.distributed.ReduceOp.MIN)
        if not bool(fine):
            raise diverged("gradient", args, state.global_step + 1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise diverged("loss", args, state.global_step)


def diverged(said: str, args: Any, update: int) -> DivergedError:
    """What to raise when something is no number any more."""
    last = last_whole_checkpoint(args.output_dir)
    kept = "nothing was saved before" if last is None else f"{last} is the last good checkpoint"
    return DivergedError(
        f"the {said} became NaN or infinite in update {update}; {kept}. Try a learning_rate below "
        f"{args.learning_rate:g}, in another folder"
    )


class Tell(TrainerCallback):
    """A line on standard error at each tenth of the updates."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first = time.perf_counter(), state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if "loss" not in (logs or {}):
            return
        self.losses.append((logs or {})["loss"])
        done, of = state.global_step, state.max_steps
        if done % max(1, of // 10) and done != of:
            return
        usual = (time.perf_counter() - self.started) / (done - self.first)
        say(
            f"  update {done:,} of {of:,}: loss {sum(self.losses) / len(self.losses):.3f}, about "
            f"{duration(usual * (of - done))} left",
            self.enabled and state.is_world_process_zero,
        )
        self.losses.clear()


# ---- checkpoints ----------------------------------------------------------------------------------------


class Seal(TrainerCallback):
    """Marks a checkpoint as whole when every process has written its part."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for_all()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def seal(checkpoint: Path) -> None:
    """Write down what a whole checkpoint consists of."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)
    write_text(
        checkpoint / SEAL, json_text({str(path.relative_to(checkpoint)): _sums(path) for path in files})
    )


def last_whole_checkpoint(folder: PathLike, before: int | None = None) -> Path | None:
    """The checkpoint of the most updates in a folder that is as it was sealed; None where there is none.

    Args:
        before: less updates than that.
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    found = [path for path in found if before is None or step_of(path) < before]
    return next((path for path in sorted(found, key=step_of, reverse=True) if _whole(path)), None)


def step_of(checkpoint: Path) -> int:
    """The update after which it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _whole(checkpoint: Path) -> bool:
    try:
        sealed = read_json(checkpoint / SEAL)
        return all(_sums(checkpoint / name) == sums for name, sums in sealed.items())
    except (OSError, AttributeError):
        return False


def _sums(path: Path) -> list[int]:
    """Bytes and CRC-32 of a file."""
    size = total = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            size, total = size + len(block), zlib.crc32(block, total)
    return [size, total]
