"""Window graphs of ATMN for the other modes: random ones that are kept busy, others on every boundary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from marsnn.hardware import integer
from marsnn.hardware.modes import step_worth
from marsnn.hardware.stages import INPUT, UNITY, IntegerGraph, Stage, Synapse

DECAYS = {0.5: 2 * UNITY, 1: UNITY, 2: UNITY // 2}
ARRIVALS = {0.5: "horner", 1: "sum", 2: "power"}


@dataclass(frozen=True)
class ModeCase:
    """A window graph and its inputs [W, D]."""

    name: str
    graph: IntegerGraph
    inputs: np.ndarray


def population(name, source, arrival, weight, bias, level, decay, shift=0):
    """One ATMN stage behind a dense map."""
    weight = np.array(weight, dtype=np.int64)
    bias, level = (np.broadcast_to(np.array(x, dtype=np.int64), (len(weight),)).copy() for x in (bias, level))
    synapse = Synapse(f"{name}.weight", source, "in", "dense", arrival, weight, shift)
    arrays = {"fire": level, "amplitude": level, "decay": np.array(decay)}
    return Stage(name, "atmn", (len(weight),), (synapse,), {"in": bias}, arrays)


def readout(name, source, arrival, weight, bias, shift=0):
    """A sum behind a dense map."""
    weight = np.array(weight, dtype=np.int64)
    synapse = Synapse(f"{name}.weight", source, "in", "dense", arrival, weight, shift)
    return Stage(name, "sum", (len(weight),), (synapse,), {"in": np.array(bias, dtype=np.int64)}, {})


def random_mode_case(seed: int, taus=(1, 2)) -> ModeCase:
    """1 to 3 populations, T from 1 to 6, biases that fire alone, shifts; every other one has a readout."""
    rng = np.random.default_rng(seed)
    steps = 1 + seed % 6
    width, tokens = int(rng.integers(2, 7)), 40
    inputs = rng.integers(-9, 10, (tokens, width))
    inputs[rng.random(inputs.shape) < 0.2] = 0
    graph = IntegerGraph(steps, (width,), (), 1, 9)
    source, arrival = INPUT, "value"
    sent = {INPUT: inputs}
    for index in range(1 + seed % 3):
        tau = taus[int(rng.integers(len(taus)))]
        neurons, shift = int(rng.integers(2, 8)), int(rng.integers(0, 4))
        weight = rng.integers(-31, 32, (neurons, width))
        weight[rng.random(weight.shape) < 0.2] = 0
        weight[0, 0] = weight[0, 0] or 1
        made = population(f"atmn{index}", source, arrival, weight, 0, 1, DECAYS[tau], shift)
        reached, _ = integer.arrive(graph, made, "in", sent)
        typical = max(int(np.quantile(np.abs(reached), 0.9)), 2 << shift)
        bias = rng.integers(-typical // 2, typical // 2 + 1, neurons)
        bias[rng.random(neurons) < 0.3] = 0
        # some fire without an input, by their bias alone
        spread = {0.5: 2.0, 1: steps, 2: 2.0**steps - 1}[tau]
        level = np.maximum(1, (typical * rng.uniform(0.3, 1.2, neurons) / spread).astype(np.int64))
        made = replace(made, bias={"in": bias}, arrays={**made.arrays, "fire": level, "amplitude": level})
        graph = replace(graph, stages=(*graph.stages, made))
        sent[made.name], _ = integer.run_stage(graph, made, sent)
        source, arrival, width = made.name, ARRIVALS[tau], neurons
    if seed % 2:
        last = readout(
            "out", source, arrival, rng.integers(-127, 128, (3, width)), rng.integers(-99, 99, 3), 2
        )
        graph = replace(graph, stages=(*graph.stages, last))
    return ModeCase(f"random{seed}", graph, inputs)


def swept_case(tau, steps, level, bias, shift=0) -> ModeCase:
    """One neuron whose sum takes every value from -127 to 127 times 2^shift, and one behind it.

    So each level is met, missed by one, and passed by one, on both rails.
    """
    first = population("first", INPUT, "value", [[1], [-1]], bias, level, DECAYS[tau], shift)
    weight = [[1, 0], [2, 3]]
    second = population("second", "first", ARRIVALS[tau], weight, [0, 1], [1, 2], DECAYS[tau])
    graph = IntegerGraph(steps, (1,), (first, second))
    return ModeCase(f"swept-{tau}-{steps}-{level}-{bias}-{shift}", graph, np.arange(-127, 128)[:, None])


def swept_cases() -> list[ModeCase]:
    """Both taus, several T, levels and biases; with low bits that the sums don't have."""
    return [
        swept_case(*case)
        for case in (
            (1, 1, 20, 0), (1, 4, 20, 0), (1, 6, 17, 5), (1, 4, 20, -33), (1, 3, 21, 40), (1, 4, 21, 3, 1),
            (1, 4, 83, -7, 2), (2, 1, 9, 0), (2, 2, 9, 0), (2, 4, 8, 0), (2, 5, 4, 3), (2, 6, 2, -5),
            (2, 3, 37, 6, 2), (2, 4, 9, 1, 1),
        )
    ]  # fmt: skip


def numbers(graph: IntegerGraph, run) -> dict[str, np.ndarray]:
    """What each population's trains in window mode are worth, [W, N]."""
    return {
        name: np.einsum("wtn,t->wn", train.astype(np.int64), step_worth(graph[name], graph.steps))
        for name, train in run.spikes.items()
    }
