"""From real stages to integer ones: 8-bit weights with a scale per output channel, 24-bit states.

Every output channel j has its own unit: one integer step of its accumulator is worth `unit[j]`. The unit
cancels, because threshold, bias and weights of a channel are all counted in it; what is left of it is
rounding. The certificate shows by worst-case arithmetic that no accumulator can overflow.

The units of a gate's two sums meet in its product, whose unit is theirs times a power of two: the least one
with which the worst case, and the levels of the neurons that follow, fit in 24 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import ExportError, InputError
from marsnn.hardware.certificate import ARRIVING, bounds, certify, excess
from marsnn.hardware.graph import Graph, Population, Reals
from marsnn.hardware.integer import (
    ATMN_DECAYS,
    INPUT_MAX,
    LARGEST_SHIFT,
    LARGEST_TABLE,
    MULTIPLIER_MAX,
    SHARE_MAX,
    STATE_MAX,
    UNITY,
    WEIGHT_MAX,
    Gate,
    IntegerGraph,
    Ints,
    Stage,
)

LEAST_LARGEST = 16
"""A channel whose largest weight has a smaller code keeps fewer than 5 bits with its sign: too coarse."""

MAX_SHIFT = 8
"""Extra low bits for the membrane: the leak of tau = 2 and of LIF rounds in them instead of in the code."""

TABLE_STEP = 1 / 128
"""Of the argument: with `LARGEST_TABLE` entries the table spans -16 to 16, at whose ends SiLU's share is 0
and 1 to 15 bits. A step moves a share by at most 1/256 of itself, less than 8-bit weights move x."""

SHARES: dict[str, Callable[[Reals], Reals]] = {"silu": lambda x: 1 / (1 + np.exp(-x))}
"""f of an activation x f(x)."""


@dataclass(frozen=True)
class Quantized:
    """An integer graph and what its numbers are worth."""

    graph: IntegerGraph
    input_scale: float | Reals  # real value of an input of 1; [D] where each feature has its own
    units: dict[str, Reals]  # stage -> [N], real value of a state of 1
    certificate: dict[str, Any]


def quantize(graph: Graph, sample: Reals, tokens_per_sample: int) -> Quantized:
    """Choose integers for a graph whose inputs look like `sample` [W, D].

    Where neurons stand on the input itself each feature has a scale of its own, which is free there.

    Raises:
        ExportError: a stage whose worst case needs more than 24 bits, with what would make it fit.
    """
    scale: float | Reals = input_scale(sample)
    if np.array_equal(graph.populations[0].weight, np.eye(graph.inputs)):
        scale = feature_scales(sample)
    stages: list[Stage] = []
    units: dict[str, Reals] = {}
    refusals = []
    for index, population in enumerate(graph.populations):
        if population.arrival == "direct":
            unit = units[stages[-1].name]
            stage, coarse = _behind_gate(population, unit), 0
        else:
            weight = population.weight * (scale if index == 0 else 1.0)
            stage, unit, coarse = _stage(population, weight, graph.steps, tokens_per_sample)
        if population.kind == "gate":
            stage, unit = _gate(population, graph.populations[index + 1], stage, unit, graph.steps)
        stages.append(stage)
        units[population.name] = unit
        if coarse:
            knobs = "tokens a sample, or a smaller beta" if population.kind == "lif" else "steps"
            refusals.append(
                f"{population.name}: the worst case of {coarse} of its channels fits 24 bits only with "
                f"weights of fewer than 5 bits; use fewer inputs or {knobs}"
            )
    if refusals:
        raise ExportError(refusals)
    integers = IntegerGraph(graph.steps, tuple(stages), tokens_per_sample)
    certificate = certify(integers)
    assert certificate["safe"], "the stages were chosen to be safe"
    return Quantized(integers, scale, units, certificate)


def input_scale(sample: Reals) -> float:
    """The real value of an input of 1: a power of two if that is exact in 8 bits, else max / 127.

    Raises:
        InputError: nothing in the sample says how large inputs are.
    """
    largest = float(np.abs(sample).max())
    if largest < 1e-30:
        raise InputError("the sample is all zeros, so it can't set the input's scale; give real inputs")
    for exponent in range(-24, 25):
        step = 2.0**-exponent
        if largest / step > INPUT_MAX:
            break
        if np.array_equal(np.round(sample / step) * step, sample):
            return step
    return largest / INPUT_MAX


def feature_scales(sample: Reals) -> Reals:
    """`input_scale` of each feature, [D]; a feature without any value takes that of all.

    Raises:
        InputError: nothing in the sample says how large inputs are.
    """
    common = input_scale(sample)
    silent = np.abs(sample).max(axis=0) < 1e-30
    return np.array([
        common if nothing else input_scale(column)
        for column, nothing in zip(sample.T, silent, strict=True)
    ])  # fmt: skip


def quantize_inputs(sample: Reals, scale: float | Reals) -> Ints:
    """Inputs [W, D] as integers, clipped to 8 bits."""
    return np.clip(np.round(sample / scale), -INPUT_MAX, INPUT_MAX).astype(np.int64)


def _gain(population: Population, steps: int) -> int:
    """By what the arrivals are scaled up, so that tau^t is an integer at every step."""
    return 2 ** (steps - 1) if population.arrival in ("horner", "stream_down") else 1


def _stage(
    population: Population, weight: Reals, steps: int, tokens_per_sample: int
) -> tuple[Stage, Reals, int]:
    """The finest stage that provably fits, its units, and how many channels became too coarse for that.

    A channel starts with its largest weight at 127, and takes a larger scale (smaller codes) only as far as
    its own worst case asks for. Low bits for the membrane are then added for all, never at the price of
    weight bits, but in channels whose weights don't matter.
    """
    matters = _weights_matter(population, weight, steps, tokens_per_sample)
    scale = np.abs(weight).max(axis=1, initial=0.0) / WEIGHT_MAX
    blank: float | Reals = 1.0
    if population.kind == "gate":  # a sum that is all bias is still multiplied, so it needs its bits
        largest = np.where(population.bias == 0, 1.0, np.abs(population.bias))
        blank = largest * _gain(population, steps) / 2**20
    scale = np.where(scale > 0, scale, blank)

    def fitted(scale: Reals, shift: int, may_change: NDArray[np.bool_]) -> tuple[Reals, bool]:
        for _ in range(12):
            stage, _ = _with_scale(population, weight, steps, scale, shift)
            over = excess(stage, steps, tokens_per_sample)
            if not (over > 1).any():
                return scale, True
            if ((over > 1) & ~may_change).any():
                return scale, False
            scale = np.where(over > 1, scale * over * 1.01, scale)
        return scale, False

    scale, _ = fitted(scale, 0, np.ones_like(matters))
    stage, unit = _with_scale(population, weight, steps, scale, 0)
    for shift in range(0 if population.kind == "gate" else MAX_SHIFT, 0, -1):
        finer, fits = fitted(scale, shift, ~matters)
        if fits:
            stage, unit = _with_scale(population, weight, steps, finer, shift)
            break
    coarse = matters & _coarse(population, weight, steps, scale, tokens_per_sample)
    return stage, unit, int(np.count_nonzero(coarse))


def _coarse(
    population: Population, weight: Reals, steps: int, scale: Reals, tokens_per_sample: int
) -> NDArray[np.bool_]:
    """Channels [N] with codes below `LEAST_LARGEST` whose rounding shows against their threshold."""
    few = np.abs(weight).max(axis=1, initial=0.0) / scale < LEAST_LARGEST - 0.5
    if population.kind in ("readout", "gate"):
        return few
    # Rounding errors are uniform and independent: the sum over n weights has sqrt(n / 12) of one step.
    arriving = ARRIVING[population.arrival](steps) / _gain(population, steps)
    error = scale * arriving * np.sqrt(np.count_nonzero(weight, axis=1) / 12)
    if population.kind == "lif":  # a membrane sums the same error until it has leaked away
        lasting = steps * (tokens_per_sample if population.carry == "sequence" else 1)
        error = error * min(lasting, 1 / max(1 - population.beta, 1e-9))
    return few & (error > population.fire_at * population.threshold / 8)


def _weights_matter(
    population: Population, weight: Reals, steps: int, tokens_per_sample: int
) -> NDArray[np.bool_]:
    """Channels [N] whose input can change a spike, or the output: not those that are all bias or asleep."""
    drive = np.abs(weight).sum(axis=1) * ARRIVING[population.arrival](steps) / _gain(population, steps)
    if population.kind in ("readout", "gate"):
        return drive > 0
    growth = 2 ** (steps - 1) if population.tau < 1 else 1
    if population.kind == "lif":
        growth = steps * (tokens_per_sample if population.carry == "sequence" else 1)
    # How far the bias alone is from a change: below the firing level, or above it with all T spikes given.
    level, bias = population.fire_at * population.threshold, np.abs(population.bias)
    away = np.where(bias < level, level - bias, bias - level - 2**steps * population.threshold)
    return (drive > 0) & (drive * growth >= away)


def _with_scale(
    population: Population, weight: Reals, steps: int, scale: Reals, shift: int
) -> tuple[Stage, Reals]:
    """Round everything to the units that a scale [N] of the weights and a shift of the states give."""
    gain = _gain(population, steps) << shift
    unit = scale / gain
    codes = np.clip(np.round(weight / scale[:, None]), -WEIGHT_MAX, WEIGHT_MAX)
    none = np.zeros(0, dtype=np.int64)
    amplitude = fire = none
    decay = UNITY
    if population.kind not in ("readout", "gate"):
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


def _gate(
    population: Population, following: Population, stage: Stage, unit: Reals, steps: int
) -> tuple[Stage, Reals]:
    """A gate's stage with its numbers, and the units [N] of its products.

    Args:
        following: the neurons behind it, whose levels are counted in the same units.
        stage: with its weights.   unit: [2N], of its sums.
    """
    of_g, of_u = unit.reshape(2, -1)
    multiplier, argument_shift = _as_multiplier(of_g / TABLE_STEP)
    finest = of_g * of_u / SHARE_MAX  # the unit of a product before its shift
    entering, _ = bounds(stage, steps, 1)
    g, u = entering.reshape(2, -1).astype(np.float64)
    levels = following.threshold * max(2.0, following.fire_at)  # see `certificate.excess`
    largest = np.maximum(g * u * SHARE_MAX, levels / finest) / (STATE_MAX - 1)
    shift = np.clip(np.ceil(np.log2(np.maximum(largest, 1.0))), 0, LARGEST_SHIFT).astype(np.int64)
    products = finest * 2.0**shift
    level = np.clip(np.round(population.level / products), 0, STATE_MAX).astype(np.int64)
    gate = Gate(multiplier, argument_shift, shift, level, share_table(population.activation))
    return replace(stage, gate=gate), products


def share_table(activation: str) -> Ints:
    """f of an activation x f(x), times 2^15, at the middle of each of the table's steps.

    A place counts whole steps toward zero, so place k > 0 stands for k to k + 1 steps, and place 0 for both
    sides of zero. The two ends stand for all that lies beyond them.
    """
    middle = LARGEST_TABLE // 2
    places = np.arange(-middle, middle + 1)
    shares = SHARES[activation]((places + np.sign(places) / 2) * TABLE_STEP)
    shares[0], shares[-1] = 0, 1
    return np.round(shares * SHARE_MAX).astype(np.int64)


def _as_multiplier(factor: Reals) -> tuple[Ints, Ints]:
    """Factors [N] >= 0 as multiplier / 2^shift, the multiplier with 23 bits where the shift allows it."""
    exponent = np.frexp(factor)[1]
    shift = np.clip(23 - exponent, 0, LARGEST_SHIFT)
    scaled = np.round(np.minimum(factor, MULTIPLIER_MAX) * 2.0**shift)
    return np.minimum(scaled, MULTIPLIER_MAX).astype(np.int64), shift.astype(np.int64)


def _behind_gate(population: Population, unit: Reals) -> Stage:
    """ATMN that counts in the units [N] of the products it takes; no weights, so nothing to choose."""
    stage, _ = _with_scale(population, population.weight, 1, unit, 0)
    return replace(
        stage,
        fire=np.minimum(stage.fire, STATE_MAX),
        amplitude=np.minimum(stage.amplitude, STATE_MAX // 2),
    )


def _at_least_one(x: Reals) -> Ints:
    return np.maximum(np.round(x), 1).astype(np.int64)
