"""Counts without a process of ours: each level of a neuron becomes two memoryless LIFs of stock Lava.

An ATMN with tau = 1 or 2 says one number a token: the levels that its sum h reaches, with the sum's sign
(`marsnn.hardware.modes`). A level is a LIF that keeps neither current nor voltage. There are two of them for
each, on two rails: the one sees the weights, the other one their negatives.

    rail +   spikes where  h >= level      rail -   spikes where  -h >= level
    count    sum of worth (s+ - s-)        worth: 1 for tau = 1, and 2^m of level m for tau = 2

A layer of netx has one threshold, and levels differ; so each LIF has a bias of its own. With the synaptic sum
a, h = (a << shift) + b, and

    h >= level          where  a >= A,   A = ceil((level - b) / 2^shift)      of -h: a is negative, b too
    Lava's LIF spikes   where  (a << 6) + (bias << 6) > threshold << 6
    so                  bias = threshold + 1 - A

which is exact: no weight and no level is rounded. A sum that no input brings is written as the next one
beyond what inputs can bring. The weights of the next layer take the counts apart again: worth * weight from a
LIF of rail +, -worth * weight from one of rail -, and the negatives of both into rail -.

| has to fit               | width                                                                   |
|--------------------------|-------------------------------------------------------------------------|
| worth * weight           | -127 to 127                                                             |
| synaptic sum a           | 17 bits and a sign: Lava's current has 24, and a << 6 enters it         |
| A of a layer's LIFs      | 8,192 numbers in a row: a bias has 13 bits                              |

A worth above `LARGEST_WORTH` would leave weights too few bits, so such a level has several LIFs that share
it: K = T for tau = 1; K = 1, 2, 3, 5, 9, 17 for tau = 2 and T = 1 to 6. A layer of N neurons is 2 K N LIFs in
the order [rail, level, neuron]; a weight between two such layers is 4 K K' synapses. A layer takes one step,
and a token one step. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import ExportError
from marsnn.hardware.certificate import ARRIVING, all_bounds, reach_bound
from marsnn.hardware.integer import reach
from marsnn.hardware.loihi import ALIGN, BIAS_MAX, UNITY, WIDTH, Layer, LoihiModel, lava_weights
from marsnn.hardware.modes import step_worth
from marsnn.hardware.stages import INPUT, STATE_MAX, IntegerGraph, Ints, Stage, Synapse

WEIGHT_MAX = 127
SUM_MAX = (WIDTH >> ALIGN) - 1
"""Of a synaptic sum: above it, Lava's current wraps around."""
BIASES = 2 * (BIAS_MAX + 1)
"""How many biases there are."""
HIGHEST = BIAS_MAX + 2
"""The largest A with a threshold of 0: its bias is the least that there is."""
LARGEST_WORTH = 4
"""Of a LIF's spike: leaves 6 of 8 bits to the weights."""
LARGEST_SYNAPSES = 2**22
"""Entries of all matrices together."""


@dataclass(frozen=True)
class Rails:
    """The LIFs that stand for one population.

    Attributes:
        name: of the population, and of its layer in the file.
        neurons: N.
        worth: [K], what each LIF of a neuron's rail counts.
    """

    name: str
    neurons: int
    worth: tuple[int, ...]

    @property
    def lifs(self) -> int:
        """2 K N."""
        return 2 * len(self.worth) * self.neurons

    def counts(self, spikes: NDArray[np.integer]) -> Ints:
        """Counts [*, N] of the LIFs' spikes [*, 2 K N]."""
        by_level = spikes.astype(np.int64).reshape(*spikes.shape[:-1], 2, len(self.worth), self.neurons)
        signed = by_level[..., 0, :, :] - by_level[..., 1, :, :]
        return np.einsum("...kn,k->...n", signed, np.array(self.worth, dtype=np.int64))

    def spread(self, weight: Ints) -> Ints:
        """Weights [*, N] that take counts as weights [*, 2 K N] that take spikes."""
        worth = np.array(self.worth, dtype=np.int64)[:, None]
        positive = (weight[..., None, :] * worth).reshape(*weight.shape[:-1], -1)
        return np.concatenate([positive, -positive], axis=-1)


@dataclass(frozen=True)
class Readout:
    """The linear map behind the last population. netx has no layer without neurons, so the host sums it.

    Attributes:
        weight: [C, N], of counts.   bias: [C].   shift: left, of the sums before the bias.
    """

    name: str
    weight: Ints
    bias: Ints
    shift: int

    def sums(self, counts: Ints) -> Ints:
        """Sums [*, C] of counts [*, N]."""
        return ((counts @ self.weight.T) << self.shift) + self.bias


@dataclass(frozen=True)
class Lifs:
    """A graph of counts as stock LIFs."""

    model: LoihiModel
    rails: tuple[Rails, ...]
    readout: Readout | None


def as_lifs(graph: IntegerGraph) -> Lifs:
    """A graph whose trains are counts (`as_counts`) as a chain of layers of stock LIFs.

    Raises:
        ExportError: with every stage that does not fit.
    """
    refusals = [reason for index in range(len(graph.stages)) for reason in _chain(graph, index)]
    if not refusals:
        populations = [
            (stage.name, stage.neurons, lifs_of(stage.arrays["worth"].tolist()))
            for stage in graph.stages
            if stage.kind == "count"
        ]
        refusals = too_large(sizes(graph.size(INPUT), populations))
    if refusals:
        raise ExportError(refusals)
    graph = replace(graph, stages=tuple(_shared(stage) for stage in graph.stages))
    bounds = all_bounds(graph)
    senders = {INPUT: np.full(graph.size(INPUT), graph.input_max, dtype=np.int64)}
    senders |= {name: each.sent for name, each in bounds.items()}
    layers: list[Layer] = []
    rails: list[Rails] = []
    readout = None
    for stage in graph.stages:
        (synapse,) = stage.synapses
        weight = matrix(synapse, len(senders[synapse.source]))
        if any(int(each.max(initial=0)) > STATE_MAX for each in bounds[stage.name].entering.values()):
            refusals.append(f"{stage.name}: its sums can outgrow 24 bits")
        elif stage.kind == "sum":
            readout = Readout(stage.name, weight, stage.bias["in"], synapse.shift)
        else:
            largest = reach_bound(replace(synapse, shift=0), senders[synapse.source])
            layer, complaint = _layer(stage, synapse, weight, largest, rails[-1] if rails else None)
            if complaint:
                refusals.append(f"{stage.name}: {complaint}")
            layers.append(layer)
            rails.append(_rails(stage))
    if refusals:
        raise ExportError(refusals)
    model = LoihiModel(tuple(layers), (graph.size(INPUT),), 8, graph.input_max)
    return Lifs(model, tuple(rails), readout)


def lifs_of(worth: Sequence[int]) -> int:
    """How many LIFs of a rail share the levels that are worth that."""
    return sum(-(-each // LARGEST_WORTH) for each in worth)


def shared(worth: Ints) -> tuple[Ints, Ints]:
    """Of levels that are worth [K]: what each of their LIFs counts, [K'], and whose it is, [K']."""
    parts = [
        (min(LARGEST_WORTH, int(each) - taken), level)
        for level, each in enumerate(worth)
        for taken in range(0, int(each), LARGEST_WORTH)
    ]
    by_lif = np.array(parts, dtype=np.int64)
    return by_lif[:, 0], by_lif[:, 1]


def _shared(stage: Stage) -> Stage:
    if stage.kind != "count":
        return stage
    worth, level = shared(stage.arrays["worth"])
    return replace(stage, arrays={"levels": stage.arrays["levels"][:, level], "worth": worth})


def matrix(synapse: Synapse, senders: int) -> Ints:
    """A synapse's weights [N, M], without its shift; convolutions are written out."""
    return reach(replace(synapse, shift=0), np.eye(senders, dtype=np.int64)).T


def _rails(stage: Stage) -> Rails:
    return Rails(stage.name, stage.neurons, tuple(stage.arrays["worth"].tolist()))


def _chain(graph: IntegerGraph, index: int) -> list[str]:
    """Why a stage has no place in a chain of matrices and counts."""
    stage = graph.stages[index]
    if stage.kind != "count" and not (stage.kind == "sum" and 0 < index == len(graph.stages) - 1):
        return [f"{stage.name}: a {stage.kind} has no form in stock LIFs"]
    before = graph.stages[index - 1].name if index else INPUT
    if [synapse.source for synapse in stage.synapses] != [before]:
        return [
            f"{stage.name}: takes {', '.join(s.source for s in stage.synapses)}; a chain takes {before} alone"
        ]
    if stage.synapses[0].form == "each":
        return [f"{stage.name}: follows {before} directly; put a Linear between them"]
    return []


def _layer(
    stage: Stage, synapse: Synapse, weight: Ints, largest: Ints, before: Rails | None
) -> tuple[Layer, str]:
    """The layer of a stage, and why it can't be written.

    Args:
        weight: [N, M].   largest: [N], the magnitude of the synaptic sum that inputs can bring.
        before: the population that sends, None for the input.
    """
    reached = needed(stage, synapse, stage.arrays["levels"])
    A = np.clip(reached, -largest, largest + 1).reshape(-1)  # [2 K N]
    threshold = max(int(A.max()) - HIGHEST, 0)
    bias = threshold + 1 - A
    each = weight if before is None else before.spread(weight)
    K = stage.arrays["levels"].shape[1]
    rows = np.concatenate([np.tile(each, (K, 1)), np.tile(-each, (K, 1))])
    layer = Layer(stage.name, rows, bias, threshold, UNITY, UNITY, (len(rows),))
    if not weight.any():
        return layer, "all its weights are zero, which netx can't load; remove the layer"
    if np.abs(rows).max() > WEIGHT_MAX:
        return (
            layer,
            f"weights times worth reach {np.abs(rows).max()} of {WEIGHT_MAX}; use tau=1 or fewer bits",
        )
    if largest.max() > SUM_MAX:
        return layer, f"sums reach {largest.max()} of {SUM_MAX}; use fewer inputs or bits"
    if bias.max() > BIAS_MAX:
        span = max(int(A.max()), HIGHEST) - int(A.min()) + 1
        return layer, f"levels and bias span {span} of {BIASES} sums; use fewer steps or bits"
    codes, exponent = lava_weights(rows)
    assert exponent <= 0, exponent
    assert np.array_equal(codes, rows << -exponent)  # both signs are there, so Lava keeps each weight
    return layer, ""


def needed(stage: Stage, synapse: Synapse, levels: Ints) -> Ints:
    """A [2, K, N]: the least synaptic sum of each rail that reaches each of the levels [N, K]."""
    b = stage.bias["in"][:, None]
    by_rail = np.stack([levels - b, levels + b])
    return np.swapaxes(-(-by_rail >> synapse.shift), 1, 2)


# ---- sizes -------------------------------------------------------------------------------------------


def sizes(inputs: int, populations: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Of a chain of populations, each with its name, N and K: the name, LIFs and synapses, zeros included."""
    rows, before = [], inputs
    for name, neurons, K in populations:
        lifs = 2 * K * neurons
        rows.append((name, lifs, lifs * before))
        before = lifs
    return rows


def too_large(rows: Sequence[tuple[str, int, int]]) -> list[str]:
    """Of names, LIFs and synapses: why they are too many, or nothing."""
    total = sum(synapses for _, _, synapses in rows)
    if total <= LARGEST_SYNAPSES:
        return []
    name, lifs, most = max(rows, key=lambda row: row[2])
    return [
        f"{name}: takes {lifs:,} LIFs and {most:,} synapses, the network {total:,} of at most "
        f"{LARGEST_SYNAPSES:,} (2 K LIFs a neuron, 4 K^2 synapses a weight, K = T for tau = 1); use fewer "
        'steps or neurons, or mode="count"'
    ]


# ---- integers that fit -------------------------------------------------------------------------------


def excess(graph: IntegerGraph, stage: Stage, senders: Mapping[str, Ints]) -> NDArray[np.float64]:
    """By what factor [N] a stage of a window graph exceeds the widths above; up to 1 fits.

    Args:
        senders: sender -> [M], the largest magnitude of what it sends.
    """
    over = np.zeros(stage.neurons)
    if stage.kind != "atmn":
        return over
    (synapse,) = stage.synapses
    source = synapse.source
    sender = 1 if source == INPUT else min(int(step_worth(graph[source], graph.steps).max()), LARGEST_WORTH)
    codes = np.abs(synapse.weight).reshape(len(synapse.weight), -1).max(1)
    over = np.maximum(over, np.repeat(codes, stage.neurons // len(codes)) * sender / WEIGHT_MAX)
    largest = reach_bound(replace(synapse, shift=0), senders[source]) * ARRIVING[synapse.arrival](graph.steps)
    over = np.maximum(over, largest / SUM_MAX)
    numbers = np.cumsum(step_worth(stage, graph.steps))
    A = np.clip(needed(stage, synapse, stage.arrays["fire"][:, None] * numbers), -largest, largest + 1)
    highest = max(int(A.max()), HIGHEST)
    span = np.maximum(A.max((0, 1)) - A.min(), highest - A.min((0, 1))) + 1
    return np.maximum(over, span / BIASES)
