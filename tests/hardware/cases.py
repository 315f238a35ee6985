"""Integer graphs to try: random ones that are kept busy, directed ones that sit on boundaries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marsnn.hardware import integer
from marsnn.hardware.bundle import _row, tensors_of
from marsnn.hardware.integer import (
    INPUT_MAX,
    LARGEST_TABLE,
    SHARE_MAX,
    STATE_MAX,
    UNITY,
    WEIGHT_MAX,
    Gate,
    IntegerGraph,
    Stage,
)

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


def random_gate_case(seed: int) -> Case:
    """[ATMN or LIF ->] gate -> ATMN -> readout or ATMN: T from 1 to 8, every tau, with and without a level.

    The table is random, so that each of its places can be told from the next. Every fourth case saturates.
    """
    rng = np.random.default_rng(1000 + seed)
    steps, tokens = 1 + seed % 8, int(rng.integers(2, 6))
    saturating = seed % 4 == 3
    width, neurons = int(rng.integers(2, 9)), int(rng.integers(2, 10))
    inputs = rng.integers(-INPUT_MAX, INPUT_MAX + 1, (tokens, width))
    stages: list[Stage] = []
    sender = None
    if seed % 5:  # else the gate stands on the input itself
        kind = "lif" if seed % 5 == 4 else "atmn"
        decay = int(rng.integers(0, UNITY + 1)) if kind == "lif" else _decay(rng)
        level = rng.integers(500, 8000, width)
        sender = Stage(
            "stage0", "linear0", kind, _arrival(kind, None), _weights(rng, width, width),
            rng.integers(-60, 61, width), level, level, 0, decay,
        )  # fmt: skip
        stages.append(sender)
    shift = int(rng.integers(14, 18)) if saturating else int(rng.integers(0, 4))
    draft = Stage(
        "gate", "gate", "gate", _arrival("gate", sender), _weights(rng, 2 * neurons, width),
        rng.integers(-60, 61, 2 * neurons) << shift, NONE, NONE, shift,
    )  # fmt: skip
    signal, _ = _signal(IntegerGraph(steps, tuple(stages)), inputs)
    acc, _ = integer.accumulate(draft, integer.arrive(draft, signal))
    g, u = np.split(np.maximum(np.abs(acc + draft.bias).max(axis=0), 1), 2)
    entries = int(rng.choice([3, 101, 511, LARGEST_TABLE]))
    # The largest argument comes to rest somewhat inside the table, or beyond it; the largest product above
    # 24 bits, or far below.
    argument_shift = rng.integers(0, 16, neurons)
    multiplier = entries // 2 * rng.uniform(0.3, 2.0, neurons) * 2.0**argument_shift / g
    bits = np.floor(np.log2(g.astype(float) * u * SHARE_MAX)).astype(np.int64)
    product_shift = np.clip(bits - rng.integers(8, 26, neurons), 0, 62)
    largest = np.minimum(g * u * SHARE_MAX >> product_shift, STATE_MAX)
    gate = Gate(
        np.clip(multiplier, 1, 2**24 - 1).astype(np.int64), argument_shift, product_shift,
        (largest * rng.uniform(0, 0.2, neurons)).astype(np.int64) * int(rng.integers(0, 2)),
        rng.integers(0, SHARE_MAX + 1, entries),
    )  # fmt: skip
    stages.append(Stage(**{**draft.__dict__, "gate": gate}))
    signal, _ = _signal(IntegerGraph(steps, tuple(stages)), inputs)
    typical = np.maximum(1, np.quantile(np.abs(signal[:, 0]), 0.6, axis=0)).astype(np.int64)
    amplitude = np.clip(typical * rng.uniform(0.5, 1.5, neurons), 1, STATE_MAX // 2).astype(np.int64)
    fire = np.maximum(1, (amplitude * rng.choice([0.5, 1.0])).astype(np.int64))
    behind = Stage(
        "behind", "behind.input", "atmn", "direct", np.zeros((neurons, 0), int), np.zeros(neurons, int),
        fire, amplitude, 0, _decay(rng),
    )  # fmt: skip
    stages.append(behind)
    outputs, kind = int(rng.integers(2, 6)), ("readout", "atmn", "lif")[seed % 3]
    level = NONE if kind == "readout" else rng.integers(50, 900, outputs)
    last = Stage(
        "last", "down", kind, _arrival(kind, behind), _weights(rng, outputs, neurons),
        rng.integers(-60, 61, outputs), level, level, 0, UNITY if kind == "lif" else _decay(rng),
    )  # fmt: skip
    stages.append(last)
    return Case(f"gate{seed}", IntegerGraph(steps, tuple(stages)), inputs)


def gate_boundary_case(steps: int) -> Case:
    """One gate per boundary, its two sums brought to exact values by biases; the input is only 0, 1 or -1.

    Places at, before and behind both ends of the table and around zero; quotients that rounding down, to
    nearest and toward zero give differently; products at, below and above 24 bits; products at the level.
    """
    middle = 2
    table = np.array([0, 3000, 20000, 27001, SHARE_MAX])
    rows = [
        # argument, multiplier, its shift, factor, product's shift, level
        *[(sign * (8 * k + d), 1, 3, sign * 1001, 9, 0)
          for k in range(middle + 2) for d in (-2, -1, 0, 1, 2) for sign in (1, -1)],
        *[(7, 5, 4, u, 15, 0) for u in (-3, -1, 1, 3)],
        *[(STATE_MAX, 2**24 - 1, s, u, 38, 0) for s in (0, 41, 44) for u in (-STATE_MAX, STATE_MAX)],
        *[(-STATE_MAX, 2**24 - 1, s, STATE_MAX, 38, 0) for s in (0, 45, 46, 47, 62)],
        # share 2^15 over 2^15: the product of the sums itself, around 2^23 - 1 = 47 * 178481
        *[(sign * (47 + d), 0, 0, 178481, 14, 0) for d in (-1, 0, 1) for sign in (1, -1)],
        *[(47 + d, 2**20, 0, sign * (178481 + e), 15, 0)
          for d in (0, 1) for e in (-1, 0, 1) for sign in (1, -1)],
        *[(100 + d, 2**20, 0, sign * 10, 15, 1000) for d in (-1, 0, 1) for sign in (1, -1)],
        *[(5, 1, 0, 7, s, 0) for s in (0, 1, 15, 40, 62)],
    ]  # fmt: skip
    g, multiplier, argument_shift, u, product_shift, level = (
        np.array(each) for each in zip(*rows, strict=True)
    )
    neurons = len(rows)
    weight = np.concatenate([np.eye(neurons, dtype=np.int64), -np.eye(neurons, dtype=np.int64)])
    gate = Gate(multiplier, argument_shift, product_shift, level, table)
    bias = np.concatenate([g, u])
    first = Stage("gate", "gate", "gate", "once", weight, bias, NONE, NONE, gate=gate)
    levels = np.full(neurons, 500)
    behind = Stage(
        "behind", "behind.input", "atmn", "direct", np.zeros((neurons, 0), int), np.zeros(neurons, int),
        levels, levels, 0, 2 * UNITY,
    )  # fmt: skip
    inputs = np.stack([np.zeros(neurons, int), np.ones(neurons, int), -np.ones(neurons, int)])
    return Case(f"gate-boundary-T{steps}", IntegerGraph(steps, (first, behind)), inputs)


def _signal(graph: IntegerGraph, inputs: np.ndarray) -> tuple[np.ndarray, int]:
    """What the last stage of a chain that isn't whole yet sends."""
    signal, clipped = inputs[:, None, :], 0
    for stage in graph.stages:
        signal, clipped = integer.run_stage(graph, stage, signal)
    return signal, clipped


def _weights(rng: np.random.Generator, neurons: int, width: int) -> np.ndarray:
    weight = rng.integers(-WEIGHT_MAX, WEIGHT_MAX + 1, (neurons, width))
    weight[rng.random(weight.shape) < 0.25] = 0
    return weight


def _decay(rng: np.random.Generator) -> int:
    return int(rng.choice([2 * UNITY, UNITY, UNITY // 2]))


def gate_cases() -> list[Case]:
    """Those with a gate."""
    return [gate_boundary_case(steps) for steps in (1, 4)] + [random_gate_case(seed) for seed in range(24)]


def all_cases() -> list[Case]:
    """Every case that Lava is asked about."""
    boundaries = [
        boundary_case(decay, steps) for decay in (UNITY // 2, UNITY, 2 * UNITY) for steps in (1, 4, 8)
    ]
    lifs = [lif_boundary_case(decay, reset) for decay in (3001, UNITY) for reset in ("subtract", "zero")]
    return boundaries + lifs + [random_case(seed) for seed in range(48)] + gate_cases()


def write_case(case: Case, folder: Path) -> None:
    """The files that the runtime reads, without the golden run."""
    folder.mkdir(parents=True)
    manifest = {
        "steps": case.graph.steps,
        "tokens": len(case.inputs),
        "tokens_per_sample": case.graph.tokens_per_sample,
        "stages": [_row(stage, np.ones(stage.neurons)) for stage in case.graph.stages],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    np.savez(folder / "tensors.npz", inputs=case.inputs, **tensors_of(case.graph))
