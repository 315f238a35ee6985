"""From real stages to integer ones: 8-bit weights with a scale per output channel, 24-bit states.

Every output channel j has its own unit: one integer step of its accumulator is worth `unit[j]`. The unit
cancels, because threshold, bias and weights of a channel are all counted in it; what is left of it is
rounding. The certificate shows by worst-case arithmetic that no accumulator can overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import ExportError
from marsnn.hardware.graph import Graph, Population, Reals
from marsnn.hardware.integer import (
    ATMN_DECAYS,
    DECAY_BITS,
    INPUT_MAX,
    STATE_MAX,
    UNITY,
    WEIGHT_MAX,
    IntegerGraph,
    Ints,
    Stage,
)

ARRIVING: dict[str, Callable[[int], int]] = {
    "once": lambda steps: INPUT_MAX,
    "held": lambda steps: INPUT_MAX,
    "sum": lambda steps: steps,
    "stream": lambda steps: 1,
    "horner": lambda steps: 2**steps - 1,
    "power": lambda steps: 2**steps - 1,
    "stream_down": lambda steps: 2 ** (steps - 1),
    "stream_up": lambda steps: 2 ** (steps - 1),
}
"""The largest multiple of a weight that one sender can bring: to a token's sum, or to one step's current."""

LEAST_LARGEST = 16
"""A channel whose largest weight has a smaller code keeps fewer than 5 bits with its sign: too coarse."""

MAX_SHIFT = 8
"""Extra low bits for the membrane: the leak of tau = 2 and of LIF rounds in them instead of in the code."""


@dataclass(frozen=True)
class Quantized:
    """An integer graph and what its numbers are worth."""

    graph: IntegerGraph
    input_scale: float  # real value of an input of 1
    units: dict[str, Reals]  # stage -> [N], real value of a state of 1
    certificate: dict[str, Any]


def quantize(graph: Graph, sample: Reals, tokens_per_sample: int) -> Quantized:
    """Choose integers for a graph whose inputs look like `sample` [W, D].

    Raises:
        ExportError: a stage whose worst case needs more than 24 bits, with what would make it fit.
    """
    scale = input_scale(sample)
    stages, units, rows, refusals = [], {}, [], []
    sender_scale: float | None = scale
    for population in graph.populations:
        weight = population.weight if sender_scale is None else population.weight * sender_scale
        stage, unit, row = _stage(population, weight, graph.steps, tokens_per_sample)
        stages.append(stage)
        units[population.name] = unit
        rows.append(row)
        if not row["safe"]:
            refusals.append(
                f"{population.name}: its worst case is {row['accumulator_bound']} (membrane "
                f"{row['membrane_bound']}), beyond 24 bits ({STATE_MAX}); use fewer inputs or fewer steps"
            )
        if row["coarse_channels"]:
            refusals.append(
                f"{population.name}: in {row['coarse_channels']} channels 24 bits hold bias and threshold "
                "only with weights of fewer than 5 bits; use fewer steps, or smaller biases and thresholds"
            )
        sender_scale = None
    if refusals:
        raise ExportError(refusals)
    certificate = {
        "claim": "no accumulator can overflow 24 bits, whatever arrives; weights and inputs are 8 bit",
        "state_max": STATE_MAX,
        "input_max": INPUT_MAX,
        "stages": rows,
    }
    integers = IntegerGraph(graph.steps, tuple(stages), tokens_per_sample)
    return Quantized(integers, scale, units, certificate)


def input_scale(sample: Reals) -> float:
    """The real value of an input of 1: a power of two if that is exact in 8 bits, else max / 127."""
    largest = float(np.abs(sample).max())
    if largest == 0:
        return 1.0
    for exponent in range(-24, 25):
        step = 2.0**-exponent
        if largest / step > INPUT_MAX:
            break
        if np.array_equal(np.round(sample / step) * step, sample):
            return step
    return largest / INPUT_MAX


def quantize_inputs(sample: Reals, scale: float) -> Ints:
    """Inputs [W, D] as integers, clipped to 8 bits."""
    return np.clip(np.round(sample / scale), -INPUT_MAX, INPUT_MAX).astype(np.int64)


def _gain(population: Population, steps: int) -> int:
    """By what the arrivals are scaled up, so that tau^t is an integer at every step."""
    return 2 ** (steps - 1) if population.arrival in ("horner", "stream_down") else 1


def _stage(
    population: Population, weight: Reals, steps: int, tokens_per_sample: int
) -> tuple[Stage, Reals, dict[str, Any]]:
    """The stage with the finest states that provably fit."""
    matters = _weights_matter(population, weight, steps, tokens_per_sample)
    for shift in range(MAX_SHIFT, -1, -1):
        stage, unit = _with_shift(population, weight, steps, shift, matters)
        row = certify(stage, steps, tokens_per_sample)
        if row["safe"]:
            break
    largest = np.abs(stage.weight).max(axis=1, initial=0)
    row["coarse_channels"] = int(np.count_nonzero(matters & (largest < LEAST_LARGEST)))
    return stage, unit, row


def _weights_matter(
    population: Population, weight: Reals, steps: int, tokens_per_sample: int
) -> NDArray[np.bool_]:
    """Channels [N] whose input can change a spike, or the output: not those that are all bias or asleep."""
    drive = np.abs(weight).sum(axis=1) * ARRIVING[population.arrival](steps) / _gain(population, steps)
    if population.kind == "readout":
        return drive > 0
    growth = 2 ** (steps - 1) if population.tau < 1 else 1
    if population.kind == "lif":
        growth = steps * (tokens_per_sample if population.carry == "sequence" else 1)
    # How far the bias alone is from a change: below the firing level, or above it with all T spikes given.
    level, bias = population.fire_at * population.threshold, np.abs(population.bias)
    away = np.where(bias < level, level - bias, bias - level - 2**steps * population.threshold)
    return (drive > 0) & (drive * growth >= away)


def _with_shift(
    population: Population, weight: Reals, steps: int, shift: int, matters: NDArray[np.bool_]
) -> tuple[Stage, Reals]:
    gain = _gain(population, steps) << shift
    # The weight scale of a channel: its largest weight becomes 127, unless bias and threshold would then
    # not fit into a quarter of the state's range. Extra low bits are never bought with weight bits, but in
    # channels whose weights don't matter.
    scale = np.abs(weight).max(axis=1, initial=0.0) / WEIGHT_MAX
    level = np.abs(population.bias)
    if population.kind != "readout":
        level = level + population.threshold * max(1.0, population.fire_at)
    scale = np.maximum(scale, level * np.where(matters, gain >> shift, gain) / (STATE_MAX / 4))
    scale = np.where(scale > 0, scale, 1.0)
    unit = scale / gain
    codes = np.clip(np.round(weight / scale[:, None]), -WEIGHT_MAX, WEIGHT_MAX)
    none = np.zeros(0, dtype=np.int64)
    amplitude = fire = none
    decay = UNITY
    if population.kind != "readout":
        # A level is at least one step, also where it lies below the resolution of its channel.
        amplitude = _at_least_one(population.threshold / unit)
        fire = _at_least_one(population.fire_at * population.threshold / unit)
        decay = ATMN_DECAYS[population.tau] if population.kind == "atmn" else round(population.beta * UNITY)
    stage = Stage(
        name=population.name,
        synapse=population.synapse,
        kind=population.kind,
        arrival=population.arrival,
        weight=codes.astype(np.int64),
        bias=np.round(population.bias / unit).astype(np.int64),
        fire=fire,
        amplitude=amplitude,
        shift=shift,
        decay=decay,
        reset=population.reset,
        carry=population.carry,
    )
    return stage, unit


def _at_least_one(x: Reals) -> Ints:
    return np.maximum(np.round(x), 1).astype(np.int64)


# ---- the certificate ---------------------------------------------------------------------------------


def certify(stage: Stage, steps: int, tokens_per_sample: int) -> dict[str, Any]:
    """Worst-case bounds of one stage, by exact integer arithmetic over its weights.

    Returns:
        Row with `accumulator_bound`, `membrane_bound` (largest magnitudes that any input can cause),
        `saturation` ("impossible"; "harmless": a doubling membrane that is clipped fires the same spikes
        as one that is not; "possible") and `safe`.
    """
    rows = [sum(abs(int(w)) for w in row) for row in stage.weight]
    per_event = max(rows, default=0) << stage.shift
    bias = int(np.abs(stage.bias).max(initial=0))
    largest = ARRIVING[stage.arrival](steps)
    arriving = per_event * largest
    entering = arriving + bias
    fire, least_fire = _largest_and_least(stage.fire)
    amplitude, least_amplitude = _largest_and_least(stage.amplitude)
    levels_fit = max(fire, amplitude) <= STATE_MAX
    saturation = "impossible"
    membrane = 0
    if stage.kind == "atmn":
        membrane = h = entering
        for _ in range(steps - 1):
            # |u| is below fire without a spike, else |h| - amplitude, or amplitude - fire below zero.
            u = max(min(h, fire - 1), h - least_amplitude, amplitude - least_fire)
            h = (u * stage.decay) >> DECAY_BITS
            membrane = max(membrane, h)
        if membrane > STATE_MAX:
            # Clipped at M = 2^23 - 1 >= 2 amplitude and >= fire, the membrane leaves at least M after each
            # spike and doubling: like the one that is not clipped it fires with its sign to the end.
            doubling = stage.decay == 2 * UNITY
            harmless = doubling and 2 * amplitude <= STATE_MAX and fire <= STATE_MAX
            saturation = "harmless" if harmless and entering <= STATE_MAX else "possible"
    elif stage.kind == "lif":
        tokens = tokens_per_sample if stage.carry == "sequence" else 1
        membrane = _lif_bound(entering, stage.decay, steps * tokens)
        saturation = "impossible" if membrane <= STATE_MAX else "possible"
    safe = entering <= STATE_MAX and levels_fit and saturation != "possible"
    return {
        "name": stage.name,
        "arrival": stage.arrival,
        "shift": stage.shift,
        "largest_weight_row": max(rows, default=0),
        "accumulator_bound": entering,
        "membrane_bound": membrane,
        "saturation": saturation,
        "safe": safe,
    }


def _largest_and_least(levels: Ints) -> tuple[int, int]:
    return int(levels.max(initial=0)), int(levels.min()) if levels.size else 0


def _lif_bound(current: int, decay: int, steps: int) -> int:
    """Largest |h|: an inhibited membrane never resets, and sums a geometric series of `steps` currents."""
    flat = current * steps
    return flat if decay >= UNITY else min(flat, current * UNITY // (UNITY - decay) + 1)
