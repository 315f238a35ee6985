"""Proof that no accumulator can overflow: worst-case bounds of a stage, over all inputs, neuron by neuron.

Exact integer arithmetic over the stage's own weights; numpy alone, so that a bundle is certified again
whenever it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.hardware.integer import (
    DECAY_BITS,
    INPUT_MAX,
    STATE_MAX,
    UNITY,
    IntegerGraph,
    Ints,
    Stage,
    toward_zero,
)

ARRIVING: dict[str, Callable[[int], int]] = {
    "once": lambda steps: INPUT_MAX,
    "direct": lambda steps: STATE_MAX,
    "held": lambda steps: INPUT_MAX,
    "sum": lambda steps: steps,
    "stream": lambda steps: 1,
    "horner": lambda steps: 2**steps - 1,
    "power": lambda steps: 2**steps - 1,
    "stream_down": lambda steps: 2 ** (steps - 1),
    "stream_up": lambda steps: 2 ** (steps - 1),
}
"""The largest multiple of a weight that one sender can bring: to a token's sum, or to one step's current.

A gate's product comes without a weight, and within 24 bits whatever it is: the gate's own row bounds it.
"""

LARGEST_DOUBLINGS = 23
"""T of a neuron with tau = 1/2 or 2 whose train is summed: more steps than bits can't be weighed."""

_BEYOND = 2**40  # bounds grow no further: already far outside 24 bits, and safe in 64


def bounds(stage: Stage, steps: int, tokens_per_sample: int) -> tuple[Ints, Ints]:
    """Largest magnitudes that any input can cause in each neuron.

    Returns:
        what enters, [N] ([2N] in a gate): a token's sum (or one step's current) with the bias.
        the membrane, [N]; for a readout and a gate the same as the first.
    """
    rows = np.ones_like(stage.bias) if stage.arrival == "direct" else np.abs(stage.weight).sum(axis=1)
    entering = (rows << stage.shift) * ARRIVING[stage.arrival](steps) + np.abs(stage.bias)
    if stage.kind == "lif":
        # An inhibited membrane never resets, and sums a geometric series of currents.
        flat = entering * steps * (tokens_per_sample if stage.carry == "sequence" else 1)
        if stage.decay >= UNITY:
            return entering, flat
        return entering, np.minimum(flat, entering * UNITY // (UNITY - stage.decay) + 1)
    membrane = h = entering
    if stage.kind == "atmn":
        for _ in range(steps - 1):
            # |u| is below fire without a spike, else |h| - amplitude, or amplitude - fire below zero.
            u = np.maximum(np.minimum(h, stage.fire - 1), h - stage.amplitude)
            u = np.maximum(u, stage.amplitude - stage.fire)
            h = np.minimum((u * stage.decay) >> DECAY_BITS, _BEYOND)
            membrane = np.maximum(membrane, h)
    return entering, membrane


def product_bound(stage: Stage, steps: int) -> Ints:
    """Largest magnitude that the product of each neuron of a gate can have before it is clipped, [N].

    The share of the table's largest entry, and both sums at their worst at once.
    """
    assert stage.gate is not None
    entering, _ = bounds(stage, steps, 1)
    g, u = np.minimum(entering, STATE_MAX).reshape(2, -1)
    return toward_zero(g * int(stage.gate.table.max()) * u, stage.gate.product_shift)


def excess(stage: Stage, steps: int, tokens_per_sample: int) -> NDArray[np.float64]:
    """By what factor each neuron's worst case exceeds 24 bits, [N] ([3N] in a gate); up to 1 is safe.

    A membrane that doubles may be clipped: at M = 2^23 - 1 >= 2 amplitude, fire it leaves at least M after
    each spike and doubling, so like one that is not clipped it fires with its sign to the end.
    """
    entering, membrane = bounds(stage, steps, tokens_per_sample)
    if stage.kind == "atmn" and stage.decay == 2 * UNITY:
        worst = np.maximum(entering, 2 * stage.amplitude)
    else:
        worst = np.maximum(entering, membrane)
    if stage.kind == "gate":
        if stage.gate is not None:  # while its weights are chosen it has none yet
            worst = np.concatenate([worst, product_bound(stage, steps)])
    elif stage.kind != "readout":
        worst = np.maximum(worst, np.maximum(stage.fire, stage.amplitude))
    return worst / STATE_MAX


def certify(graph: IntegerGraph) -> dict[str, Any]:
    """The certificate of a graph, JSON-ready; `safe` says whether it holds."""
    rows = [certify_stage(stage, graph.steps, graph.tokens_per_sample) for stage in graph.stages]
    return {
        "claim": "no accumulator and no product of a gate can overflow 24 bits, whatever arrives; weights "
        "and inputs are 8 bit",
        "safe": all(row["safe"] for row in rows),
        "state_max": STATE_MAX,
        "input_max": INPUT_MAX,
        "stages": rows,
    }


def certify_stage(stage: Stage, steps: int, tokens_per_sample: int) -> dict[str, Any]:
    """One row: the bounds, whether the membrane can saturate, and what the weights keep.

    `saturation` is "impossible", "harmless" (see `excess`) or "possible". `weight_bits` counts the bits of
    the largest weight of the coarsest neuron that has any weight, its sign included; 0 behind a gate.
    """
    entering, membrane = bounds(stage, steps, tokens_per_sample)
    safe = bool((excess(stage, steps, tokens_per_sample) <= 1).all())
    inside = int(membrane.max(initial=0)) <= STATE_MAX and (safe or stage.kind != "gate")
    largest = np.abs(stage.weight).max(axis=1, initial=0)
    coarsest = int(largest[largest > 0].min()) if largest.any() else 0
    product = {}
    if stage.gate is not None:
        product["product_bound"] = int(product_bound(stage, steps).max())
    return {
        "name": stage.name,
        "arrival": stage.arrival,
        "shift": stage.shift,
        "weight_bits": coarsest.bit_length() + 1 if stage.weight.size else 0,
        "accumulator_bound": int(entering.max(initial=0)),
        "membrane_bound": int(membrane.max(initial=0)),
        **product,
        "saturation": "impossible" if inside else "harmless" if safe else "possible",
        "safe": safe,
    }
