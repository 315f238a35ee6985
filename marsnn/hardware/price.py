"""What an integer run costs: operations counted from its own spikes, not from the float network's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marsnn.energy.counts import LayerCounts, OperationCounts
from marsnn.hardware.integer import IntegerGraph, IntegerRun, Stage


def counts_of(graph: IntegerGraph, inputs: NDArray[np.int64], run: IntegerRun) -> OperationCounts:
    """Operations of a run of W tokens, one row for each synapse matrix and each population.

    Graded inputs cost a multiply-accumulate for each non-zero weight, spikes an accumulate. A bias is one
    addition a token (at every step in LIF). The doubling of an accumulator and a leak by a power of two are
    shifts and cost nothing here. Bytes are those of the integers: 1 for a weight or spike, 3 for a state.

    A gate costs three multiplications a neuron and token (the place in the table, the share, the product);
    its look-ups are listed as unattributed.
    """
    counts = OperationCounts(tokens=len(inputs), steps=graph.steps)
    signal, graded = inputs[:, None, :], True
    for stage in graph.stages:
        if stage.arrival != "direct":
            counts.layers[stage.synapse] = _synapses(stage, signal, graded, graph.steps)
        if stage.kind == "readout":
            break
        if stage.kind == "gate":
            products = run.products[stage.name]
            counts.layers[stage.name] += LayerCounts(mul=3 * products.size, bytes_moved=3 * products.size)
            counts.leave_out(f"table look-up of {stage.name}", products.size)
            continue
        spikes = run.spikes[stage.name].astype(np.int64)
        counts.layers[stage.name] = _population(stage, spikes)
        signal, graded = spikes, False
    return counts


def _synapses(stage: Stage, signal: NDArray[np.int64], graded: bool, steps: int) -> LayerCounts:
    tokens, presented, _ = signal.shape
    met = (signal != 0).sum(axis=(0, 1))  # non-zero events of each sender
    effective = int(met @ (stage.weight != 0).sum(axis=0))
    dense = tokens * presented * stage.weight.size
    biased = int(np.count_nonzero(stage.bias)) * tokens * (steps if stage.kind == "lif" else 1)
    row = LayerCounts(
        add=biased,
        baseline_mac=tokens * stage.weight.size,
        bytes_moved=effective + int(met.sum()) + 3 * tokens * presented * len(stage.weight),
    )
    if graded:
        row.mac, row.dense_mac = effective, dense
    else:
        row.ac, row.dense_ac = effective, dense
    return row


def _population(stage: Stage, spikes: NDArray[np.int64]) -> LayerCounts:
    fired = int(np.count_nonzero(spikes))
    shifts = stage.decay & (stage.decay - 1) == 0  # 0 or a power of two
    return LayerCounts(
        mul=0 if shifts else spikes.size,
        add=(2 if stage.kind == "atmn" else 3) * spikes.size,
        spikes=fired,
        # An integer membrane is hardly ever exactly zero: every update is booked as an active one.
        neuron_updates_active=spikes.size,
        bytes_moved=spikes.size,
    )
