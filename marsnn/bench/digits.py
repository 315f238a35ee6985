"""Accuracy on scikit-learn's digits: ATMN, LIF, a dense ReLU net of the same size, and an SVM.

Every arm gets the same number of settings, tried on the validation split; the best one is then trained with
other seeds and looked at once on the test split.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn

from marsnn.data import Digits, Form, load_digits
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF
from marsnn.progress import track
from marsnn.training import TrainConfig, accuracy, train

HIDDEN = 128
STEPS = 4
CLASSES = 10
TUNING_SEEDS = (100, 101)  # never among the seeds that are reported

Settings = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One model and the settings it may choose from."""

    name: str
    grid: tuple[Settings, ...]


def _grid(**choices: Sequence[Any]) -> tuple[Settings, ...]:
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


NETWORKS = (
    Arm("ATMN", _grid(learning_rate=(3e-3, 1e-2), code=((0.5, 0.5), (0.5, 1.0), (1.0, 0.5)))),
    Arm("LIF", _grid(learning_rate=(3e-3, 1e-2), code=((2.0, 0.5), (2.0, 1.0), (4.0, 1.0)))),
    Arm("ReLU", _grid(learning_rate=(3e-3, 1e-2), weight_decay=(1e-3, 1e-2, 1e-1))),
)
"""`code` is (tau, threshold)."""

MACHINE = Arm("SVM", _grid(C=(1.0, 10.0, 100.0), gamma=(0.05, 0.25)))
"""scikit-learn's own classifier of its digits example: SVC with an RBF kernel."""


def build(arm: str, settings: Settings, inputs: int, seed: int) -> Network:
    """Linear-X-Linear-X-Linear with `HIDDEN` units, X the arm's neuron, weights from the seed."""
    torch.manual_seed(seed)

    def hidden() -> nn.Module:
        if arm == "ReLU":
            return nn.ReLU()
        tau, threshold = settings["code"]
        if arm == "ATMN":
            return ATMN(HIDDEN, steps=STEPS, tau=tau, threshold=threshold)
        return LIF(HIDDEN, steps=STEPS, tau=tau, threshold=threshold, carry="sequence")

    return Network(
        [nn.Linear(inputs, HIDDEN), hidden(), nn.Linear(HIDDEN, HIDDEN), hidden(), nn.Linear(HIDDEN, CLASSES)]
    )


def fit(arm: str, settings: Settings, seed: int, digits: Digits, epochs: int) -> Network:
    """Train one network of an arm."""
    network = build(arm, settings, digits.train.x.shape[-1], seed)
    config = TrainConfig(
        epochs=epochs,
        learning_rate=settings["learning_rate"],
        weight_decay=settings.get("weight_decay", TrainConfig.weight_decay),
        seed=seed,
    )
    train(network, digits.train.x, digits.train.y, config)
    return network


def _fit_machine(settings: Settings, digits: Digits, part: str) -> float:
    from sklearn.svm import SVC

    def features(split: Any) -> Any:
        return split.x.transpose(0, 1).flatten(1).numpy()

    machine = SVC(kernel="rbf", C=settings["C"], gamma=settings["gamma"])
    machine.fit(features(digits.train), digits.train.y.numpy())
    split = getattr(digits, part)
    return float(machine.score(features(split), split.y.numpy()))


def _job(job: tuple[str, Settings, int, str, Form, int]) -> float:
    """One training in a worker: accuracy on the named split."""
    torch.set_num_threads(1)
    arm, settings, seed, part, form, epochs = job
    digits = load_digits(form)
    split = getattr(digits, part)
    return accuracy(fit(arm, settings, seed, digits, epochs), split.x, split.y)


def run(
    form: Form = "flat", seeds: Sequence[int] = (0, 1, 2, 3, 4), epochs: int = 40, workers: int = 2
) -> dict[str, Any]:
    """Tune, train and test every arm.

    Returns:
        JSON-ready: for each arm the chosen settings, its mean validation accuracy, and mean, standard
        deviation and list of test accuracies over the seeds (the support vector machine has no seed).
    """
    digits = load_digits(form)
    arms: dict[str, Any] = {}
    # Workers start afresh (spawn), so that a caller's threads can't deadlock them.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tuning = [
            (arm.name, settings, seed, "validation", form, epochs)
            for arm in NETWORKS
            for settings in arm.grid
            for seed in TUNING_SEEDS
        ]
        scores = _mapped(pool.map(_job, tuning), tuning, f"tuning on {form} digits")
        for arm in NETWORKS:
            best, validated = _best(arm, tuning, scores)
            arms[arm.name] = {"settings": best, "validation": validated}
        final = [
            (arm.name, arms[arm.name]["settings"], seed, "test", form, epochs)
            for arm in NETWORKS
            for seed in seeds
        ]
        tested = _mapped(pool.map(_job, final), final, f"testing on {form} digits")
    for arm in NETWORKS:
        own = [score for job, score in zip(final, tested, strict=True) if job[0] == arm.name]
        arms[arm.name] |= {
            "test": statistics.mean(own),
            "spread": statistics.stdev(own) if len(own) > 1 else 0.0,
            "tests": own,
        }
    score_of: Callable[[Settings], float] = partial(_fit_machine, digits=digits, part="validation")
    best = max(MACHINE.grid, key=score_of)
    result = _fit_machine(best, digits, "test")
    arms[MACHINE.name] = {
        "settings": best,
        "validation": score_of(best),
        "test": result,
        "spread": 0.0,
        "tests": [result],
    }
    return {
        "benchmark": "digits",
        "command": f"marsnn bench digits --form {form} --seed {seeds[0]} --seeds {len(seeds)} "
        f"--epochs {epochs}",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "form": form,
        "hidden": HIDDEN,
        "steps": STEPS,
        "epochs": epochs,
        "seeds": list(seeds),
        "images": {part: len(getattr(digits, part)) for part in ("train", "validation", "test")},
        "arms": arms,
    }


def _best(arm: Arm, jobs: Sequence[Any], scores: Sequence[float]) -> tuple[Settings, float]:
    def mean(settings: Settings) -> float:
        return statistics.mean(
            score
            for job, score in zip(jobs, scores, strict=True)
            if job[0] == arm.name and job[1] == settings
        )

    best = max(arm.grid, key=mean)
    return best, mean(best)


def _mapped(results: Any, jobs: Sequence[Any], what: str) -> list[float]:
    return [next(results) for _ in track(jobs, what)]


def table(result: dict[str, Any]) -> str:
    """The result as a plain text table."""
    images = result["images"]
    lines = [
        f"Accuracy on {images['test']} held-out digits ({result['form']}), mean +- standard deviation of "
        f"{len(result['seeds'])} seeds",
        f"{'model':<8}{'test':>16}{'validation':>13}  settings chosen on the validation split",
    ]
    for name, row in result["arms"].items():
        settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        spread = f"+- {100 * row['spread']:.2f}" if len(row["tests"]) > 1 else ""
        lines.append(
            f"{name:<8}{100 * row['test']:>7.2f} {spread:<8}{100 * row['validation']:>13.2f}  {settings}"
        )
    return "\n".join(lines)
