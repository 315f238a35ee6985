"""Tasks of the lm-evaluation-harness on a model at hand, from files alone.

The harness runs what its task files say, Python functions that they name included, so give it only tasks that
you trust. Nothing is downloaded: a task names its data as local JSON files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from marsnn.errors import FileError, InputError, MissingDependencyError
from marsnn.refine.stages import View

OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def harness(
    model: PreTrainedModel | View, tokenizer: Any, tasks: Sequence[str], known: Any
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value.

    Args:
        model, tokenizer: who is asked.
        tasks: names of tasks.   known: of `known_tasks`, which takes seconds: one does for many models.

    Raises:
        InputError: one that can't be run offline.
    """
    with _offline():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        view = model if isinstance(model, View) else View(model)
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        before = next((token for token in ends if token is not None), 0)
        with view.shown() as shown:
            try:
                found = simple_evaluate(
                    HFLM(pretrained=shown, tokenizer=tokenizer, batch_size=1, prefix_token_id=before),
                    tasks=list(tasks), task_manager=known, bootstrap_iters=0, log_samples=False,
                    verbosity="ERROR",
                )  # fmt: skip
            except Exception as error:  # a task's data and code are somebody else's
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise InputError(f"lm-eval could not run {', '.join(tasks)}: {reason}") from error
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and "stderr" not in name
        }
        for task, metrics in found["results"].items()
    }


def known_tasks(tasks: Sequence[str], folder: Path | None) -> Any:
    """The harness's TaskManager, if it knows all of these.

    Args:
        tasks: names of tasks.   folder: with their .yaml files; None for the harness's own alone.

    Raises:
        MissingDependencyError: lm-eval is not installed.   FileError: no such folder.
        InputError: no such task.
    """
    if folder is not None and not folder.is_dir():
        raise FileError(f"{folder}: no such folder of tasks")
    with _offline():
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise MissingDependencyError("lm-eval", "lm-eval") from error
        known = TaskManager(include_path=None if folder is None else str(folder))
    unknown = sorted(set(tasks) - set(known.all_tasks))
    if unknown:
        raise InputError(f"lm-eval knows no task {unknown[0]!r}; name the folder of its .yaml")
    return known


@contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants  # it has read its environment already

    before = {name: os.environ.get(name) for name in OFFLINE}
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    hub, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = hub
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
