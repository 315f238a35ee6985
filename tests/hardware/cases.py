"""Integer graphs to try: random ones that are kept busy, directed ones that sit on boundaries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marsnn.hardware import integer
from marsnn.hardware.bundle import _narrow, _row
from marsnn.hardware.integer import INPUT_MAX, STATE_MAX, UNITY, WEIGHT_MAX, IntegerGraph, Stage

NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Case:
    """A graph and its inputs [W, D]."""

    name: str
    graph: IntegerGraph
    inputs: np.ndarray


def random_case(seed: int) -> Case:
    """1 to 5 layers, T from 1 to 8, every arrival, zero and negative weights, at times saturating."""
    rng = np.random.default_rng(seed)
    layers = 1 + seed % 5
    steps = 1 + (seed // 2) % 8
    per_sample = int(rng.integers(1, 4))
    tokens = per_sample * int(rng.integers(1, 4))
    width = int(rng.integers(2, 9))
    inputs = rng.integers(-INPUT_MAX, INPUT_MAX + 1, (tokens, width))
    inputs[rng.random(inputs.shape) < 0.2] = 0
    saturating = seed % 4 == 3
    signal, sender = inputs[:, None, :], None
    stages: list[Stage] = []
    for index in range(layers):
        last = index == layers - 1
        kinds = ["atmn", "atmn", "lif"] + (["readout"] * 2 if last and layers > 1 else [])
        kind = str(rng.choice(kinds))
        neurons = int(rng.integers(2, 13))
        weight = rng.integers(-WEIGHT_MAX, WEIGHT_MAX + 1, (neurons, width))
        weight[rng.random(weight.shape) < 0.25] = 0
        decay = int(rng.choice([2 * UNITY, UNITY, UNITY // 2]))
        if kind == "lif":
            decay = int(rng.integers(0, UNITY + 1))
        shift = int(rng.integers(8, 13)) if saturating else int(rng.integers(0, 5))
        draft = Stage(
            f"stage{index}", f"linear{index}", kind, _arrival(kind, sender), weight,
            rng.integers(-60, 61, neurons) << shift, NONE, NONE, shift, decay,
            str(rng.choice(["subtract", "zero"])), str(rng.choice(["token", "sequence"])),
        )  # fmt: skip
        # Levels at a quantile of what really arrives, so that neurons fire, but not always.
        arriving = integer.arrive(draft, signal)
        if kind != "lif":
            arriving, _ = integer.accumulate(draft, arriving)
        typical = np.maximum(1, np.quantile(np.abs(arriving), rng.uniform(0.1, 0.6)))
        level = np.clip(rng.uniform(0.5, 1.5, neurons) * typical, 1, STATE_MAX).astype(np.int64)
        ratio = float(rng.choice([0.5, 1.0, 1.0, 1.3]))
        fire = np.clip(level * ratio, 1, STATE_MAX).astype(np.int64)
        levels = {} if kind == "readout" else {"fire": fire, "amplitude": level}
        stage = Stage(**{**draft.__dict__, **levels})
        stages.append(stage)
        graph = IntegerGraph(steps, tuple(stages), per_sample)
        signal, _ = integer.run_stage(graph, stage, signal)
        sender, width = stage, neurons
        if kind == "readout":
            break
    return Case(f"random{seed}", IntegerGraph(steps, tuple(stages), per_sample), inputs)


def _arrival(kind: str, sender: Stage | None) -> str:
    step = kind == "lif"
    if sender is None:
        return "held" if step else "once"
    if sender.kind == "lif" or sender.decay == UNITY:
        return "stream" if step else "sum"
    if sender.decay == 2 * UNITY:
        return "stream_down" if step else "horner"
    return "stream_up" if step else "power"


def boundary_case(decay: int, steps: int) -> Case:
    """One ATMN neuron per boundary: inputs at, just below and just above every level a spike can need.

    The weight is 1 and a bias brings each neuron to its exact current; the input is only 0, 1 or -1.
    """
    level = 1001  # odd, so that halving rounds
    currents = set()
    for m in range(1, steps + 1):
        exact = {
            UNITY // 2: level * (2**m - 1),
            UNITY: level * m,
            2 * UNITY: -(-level * m // 2 ** (steps - 1)),
        }[decay]
        currents |= {exact + offset for offset in (-2, -1, 0, 1, 2)}
    currents |= {0, 1, level - 1, level, level + 1, 2 * level, STATE_MAX - 1, STATE_MAX}
    both = sorted({sign * min(current, STATE_MAX) for current in currents for sign in (1, -1)})
    bias = np.array(both, dtype=np.int64)
    neurons = len(bias)
    stage = Stage(
        "atmn", "linear", "atmn", "once", np.eye(neurons, dtype=np.int64), bias,
        np.full(neurons, level), np.full(neurons, level), 0, decay,
    )  # fmt: skip
    inputs = np.stack([np.zeros(neurons, int), np.ones(neurons, int), -np.ones(neurons, int)])
    return Case(f"boundary-decay{decay}-T{steps}", IntegerGraph(steps, (stage,), 1), inputs)


def lif_boundary_case(decay: int, reset: str) -> Case:
    """One LIF neuron per current around the values at which it fires first in step 1, 2, ..."""
    steps, level = 6, 1001
    currents = sorted(
        {sign * (level // m + offset) for m in range(1, 8) for offset in (-1, 0, 1) for sign in (1, -1)}
    )
    neurons = len(currents)
    stage = Stage(
        "lif", "linear", "lif", "held", np.eye(neurons, dtype=np.int64), np.array(currents),
        np.full(neurons, level), np.full(neurons, level), 0, decay, reset, "sequence",
    )  # fmt: skip
    inputs = np.stack([np.zeros(neurons, int), np.ones(neurons, int), -np.ones(neurons, int)])
    return Case(f"lif-decay{decay}-{reset}", IntegerGraph(steps, (stage,), 3), inputs)


def all_cases() -> list[Case]:
    """Every case that Lava is asked about."""
    boundaries = [
        boundary_case(decay, steps) for decay in (UNITY // 2, UNITY, 2 * UNITY) for steps in (1, 4, 8)
    ]
    lifs = [lif_boundary_case(decay, reset) for decay in (3001, UNITY) for reset in ("subtract", "zero")]
    return boundaries + lifs + [random_case(seed) for seed in range(48)]


def write_case(case: Case, folder: Path) -> None:
    """The files that the runtime reads, without the golden run."""
    folder.mkdir(parents=True)
    manifest = {
        "steps": case.graph.steps,
        "tokens": len(case.inputs),
        "tokens_per_sample": case.graph.tokens_per_sample,
        "stages": [_row(stage, np.ones(len(stage.weight))) for stage in case.graph.stages],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    arrays = {
        f"{stage.name}/{key}": _narrow(getattr(stage, key))
        for stage in case.graph.stages
        for key in ("weight", "bias", "fire", "amplitude")
    }
    np.savez(folder / "tensors.npz", inputs=case.inputs, **arrays)
