"""Modes: other forms of the same integers, that give the same counts.

    window    T steps a token, each spike an event: the faithful train
    count     one step a layer, one graded event a neuron and token: its payload is what the train adds up to

An ATMN's train is a number: with tau >= 1 a run of equal spikes, with tau = 1/2 the binary digits of a quotient.
`as_counts` finds, for every neuron, the sums at which the train of the integer model is worth one more; so
rounding of the leak and all, the numbers are the same. The price is T thresholds a neuron (2^T - 1 for tau = 1/2)
and events that are multiplied, not accumulated.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from marsnn.errors import ExportError
from marsnn.hardware.integer import atmn
from marsnn.hardware.stages import KINDS, NARROW_MAX, STATE_MAX, UNITY, IntegerGraph, Ints, Stage

MOST_LEVELS = 255
"""Thresholds of a neuron."""


def as_counts(graph: IntegerGraph) -> IntegerGraph:
    """The graph with one graded event in the place of each train; T becomes 1.

    Raises:
        ExportError: with every stage that has no such form.
    """
    refusals = [reason for stage in graph.stages for reason in _refused(graph, stage)]
    if refusals:
        raise ExportError(refusals)
    return replace(graph, steps=1, stages=tuple(_counting(graph, stage) for stage in graph.stages))


def _refused(graph: IntegerGraph, stage: Stage) -> list[str]:
    if stage.sends == "value":
        return []
    if stage.kind != "atmn":
        return [
            f"{stage.name}: only an ATMN's train is one number; its neurons take a current at every step. "
            "Use window mode"
        ]
    if (stage.arrays["fire"] != stage.arrays["amplitude"]).any():
        return [
            f"{stage.name}: fires at another level than a spike takes away, so its spikes may change sign; "
            "use fire_at=1, or window mode"
        ]
    if _worth(stage, graph.steps).sum() > NARROW_MAX or len(_worth(stage, graph.steps)) > MOST_LEVELS:
        return [f"{stage.name}: {graph.steps} steps need too many levels; use fewer steps, or window mode"]
    return []


def _worth(stage: Stage, steps: int) -> Ints:
    """What each level [K] adds to the number, the first first."""
    decay = int(stage.arrays["decay"])
    if decay > UNITY:
        return np.ones(2 ** min(steps, 20) - 1, dtype=np.int64)
    if decay == UNITY:
        return np.ones(steps, dtype=np.int64)
    return 2 ** np.arange(min(steps, 40), dtype=np.int64)


def step_worth(stage: Stage, steps: int) -> Ints:
    """What a spike of each step [T] is worth, in whole numbers: tau^t, over its least."""
    decay = int(stage.arrays["decay"])
    if decay == UNITY:
        return np.ones(steps, dtype=np.int64)
    powers = 2 ** np.arange(steps, dtype=np.int64)
    return powers[::-1] if decay > UNITY else powers


def _counting(graph: IntegerGraph, stage: Stage) -> Stage:
    taken = tuple(
        replace(synapse, arrival="value" if KINDS[stage.kind].takes == "token" else synapse.arrival)
        for synapse in stage.synapses
    )
    if stage.kind != "atmn":
        return replace(stage, synapses=taken)
    worth = _worth(stage, graph.steps)
    arrays = {"levels": levels_of(graph, stage, np.cumsum(worth)), "worth": worth}
    return replace(stage, kind="count", synapses=taken, arrays=arrays)


def levels_of(graph: IntegerGraph, stage: Stage, numbers: Ints) -> Ints:
    """The least sums [N, K] whose trains are worth `numbers` [K]; 2^23 where none is.

    By bisection over the integer model itself, in which a larger sum is never worth less.
    """
    weight = step_worth(stage, graph.steps)[:, None]
    low = np.ones((stage.neurons, len(numbers)), dtype=np.int64)
    high = np.full_like(low, STATE_MAX + 1)
    while (low < high).any():
        middle = (low + high) // 2
        spikes, _ = atmn(graph, stage, {"in": np.minimum(middle, STATE_MAX).T})
        reached = (numbers <= (spikes * weight).sum(1).T) & (middle <= STATE_MAX)
        high = np.where(reached, middle, high)
        low = np.where(reached, low, np.minimum(middle + 1, high))
    return high
