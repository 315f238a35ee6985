"""Accuracy on scikit-learn's digits: ATMN, LIF, a dense ReLU net of the same size, and an SVM.

Every arm gets the same number of settings, tried on the validation split; the best one is then trained with
other seeds and looked at once on the test split (`marsnn.ablation.tune`).
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from marsnn.ablation import Trial, check_seeds, grid, tune
from marsnn.data import Digits, Form, load_digits
from marsnn.errors import MarsnnError
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF
from marsnn.progress import track
from marsnn.training import TrainConfig, accuracy, train
from marsnn.trial import Settings
from marsnn.workers import Failed, Run, engine

HIDDEN = 128
STEPS = 4
CLASSES = 10


@dataclass(frozen=True)
class Arm:
    """One model and the settings it may choose from."""

    name: str
    grid: tuple[Settings, ...]


NETWORKS = (
    Arm("ATMN", grid(learning_rate=(3e-3, 1e-2), code=((0.5, 0.5), (0.5, 1.0), (1.0, 0.5)))),
    Arm("LIF", grid(learning_rate=(3e-3, 1e-2), code=((2.0, 0.5), (2.0, 1.0), (4.0, 1.0)))),
    Arm("ReLU", grid(learning_rate=(3e-3, 1e-2), weight_decay=(1e-3, 1e-2, 1e-1))),
)
"""`code` is (tau, threshold)."""

MACHINE = Arm("SVM", grid(C=(1.0, 10.0, 100.0), gamma=(0.05, 0.25)))
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


def _job(job: tuple[Trial[str], str, Form, int]) -> float:
    """One training in a worker: accuracy on the named split."""
    (arm, settings, seed), part, form, epochs = job
    digits = load_digits(form)
    split = getattr(digits, part)
    return accuracy(fit(arm, settings, seed, digits, epochs), split.x, split.y)


def _scores(run_jobs: Run, part: str, trials: Sequence[Trial[str]], form: Form, epochs: int) -> list[float]:
    """Accuracies on one part, in the order of the trials."""
    scores: dict[int, float] = {}
    results = run_jobs(_job, [(trial, part, form, epochs) for trial in trials])
    for _ in track(range(len(trials)), f"{'tuning' if part == 'validation' else 'testing'} on {form} digits"):
        index, score = next(results)
        if isinstance(score, Failed):
            raise MarsnnError(f"{trials[index]}: {score.message}")
        scores[index] = score
    return [scores[index] for index in range(len(trials))]


def run(
    form: Form = "flat", seeds: Sequence[int] = (0, 1, 2, 3, 4), epochs: int = 40, workers: int = 2
) -> dict[str, Any]:
    """Tune, train and test every arm.

    Returns:
        JSON-ready: for each arm the chosen settings, its mean validation accuracy, and mean, standard
        deviation and list of test accuracies over the seeds (the support vector machine has no seed).
    """
    check_seeds(seeds)
    digits = load_digits(form)
    with engine("local", workers) as run_jobs:
        score = partial(_scores, run_jobs, form=form, epochs=epochs)
        chosen = tune({arm.name: arm.grid for arm in NETWORKS}, partial(score, "validation"))
        final = [Trial(name, choice.settings, seed) for name, choice in chosen.items() for seed in seeds]
        tested = score("test", final)
    machine = tune(
        {MACHINE.name: MACHINE.grid},
        lambda trials: [_fit_machine(trial.settings, digits, "validation") for trial in trials],
        seeds=(0,),  # its fit is not random
    )
    tests = {
        name: [score for trial, score in zip(final, tested, strict=True) if trial.arm == name]
        for name in chosen
    }
    tests[MACHINE.name] = [_fit_machine(machine[MACHINE.name].settings, digits, "test")]
    arms = {
        name: {
            "settings": choice.settings,
            "validation": choice.validation,
            "test": statistics.mean(tests[name]),
            "spread": statistics.stdev(tests[name]) if len(tests[name]) > 1 else 0.0,
            "tests": tests[name],
        }
        for name, choice in {**chosen, **machine}.items()
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
