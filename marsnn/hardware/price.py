"""What an integer run costs: operations counted from its own spikes, not from the float network's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marsnn.energy.counts import LayerCounts, OperationCounts
from marsnn.hardware.integer import reach
from marsnn.hardware.stages import INPUT, IntegerGraph, IntegerRun, Ints, Stage, Synapse, schedule


def counts_of(graph: IntegerGraph, inputs: NDArray[np.int64], run: IntegerRun) -> OperationCounts:
    """Operations of a run of W tokens, one row for each synapse and each population.

    Graded values cost a multiply-accumulate for each non-zero weight, spikes of one level an accumulate,
    integer spikes as many as they are worth. A bias is one addition a token (at every step in LIF). The doubling
    of an accumulator and a leak by a power of two are shifts and cost nothing here. Bytes are those of the
    integers: 1 for a weight or spike, 3 for a state. Look-ups, roots and divisions are listed as unattributed.
    """
    counts = OperationCounts(tokens=len(inputs), steps=graph.steps)
    for stage in graph.stages:
        for synapse in stage.synapses:
            sent = inputs if synapse.source == INPUT else run.of(synapse.source)
            signal = np.asarray(sent, dtype=np.int64)
            if signal.ndim == 2:
                signal = signal[:, None]
            graded = graph.sends(synapse.source) == "value"
            _book(counts, synapse.name, _synapse(synapse, signal, graded))
        biased = sum(int(np.count_nonzero(bias)) for bias in stage.bias.values()) * len(inputs)
        _book(counts, stage.name, LayerCounts(add=biased * (graph.steps if stage.takes == "step" else 1)))
        sent = np.asarray(run.of(stage.name), dtype=np.int64)
        _book(counts, stage.name, POPULATIONS[stage.kind](graph, stage, sent))
        for what, times in UNATTRIBUTED.get(stage.kind, {}).items():
            size = (
                stage.neurons
                if times == "neuron"
                else len(stage.arrays["multiplier"])
                if times == "head"
                else 1
            )
            counts.leave_out(f"{what} of {stage.name}", size * len(inputs))
    for name, steps in schedule(graph).delays.items():
        if steps:
            counts.leave_out(f"delay line of {steps} steps before {name}", len(inputs))
    return counts


def _book(counts: OperationCounts, name: str, row: LayerCounts) -> None:
    counts.layers[name] = counts.layers.get(name, LayerCounts()) + row


def _synapse(synapse: Synapse, signal: Ints, graded: bool) -> LayerCounts:
    tokens, presented, _ = signal.shape
    unit = np.abs(signal)
    met = (unit != 0) if graded else unit  # an integer spike of k is k unit spikes
    if synapse.form == "each":
        nonzero = synapse.weight != 0
        effective, weights, outputs = int((met.sum((0, 1)) * nonzero).sum()), len(nonzero), len(nonzero)
    elif synapse.form == "dense":
        fan_out = (synapse.weight != 0).sum(axis=0)
        effective = int(met.sum(axis=(0, 1)) @ fan_out)
        weights, outputs = synapse.weight.size, len(synapse.weight)
    else:
        assert synapse.conv is not None
        ones = Synapse(**{**synapse.__dict__, "weight": (synapse.weight != 0).astype(np.int64), "shift": 0})
        effective = int(reach(ones, met.sum(axis=(0, 1))[None].astype(np.int64)).sum())
        outputs = int(np.prod(synapse.conv.target))
        weights = outputs * int(np.prod(synapse.weight.shape[1:]))
    dense = tokens * presented * weights
    row = LayerCounts(
        baseline_mac=tokens * weights if synapse.form != "each" else 0,
        bytes_moved=effective + int(np.count_nonzero(signal)) + 3 * tokens * presented * outputs,
    )
    if synapse.form == "each" and graded:
        if not (synapse.weight == 1).all() or (synapse.right != 0).any():
            row.mul, row.add = effective, effective
    elif graded:
        row.mac, row.dense_mac = effective, dense
    else:
        row.ac, row.dense_ac = effective, dense
    return row


def _train(graph: IntegerGraph, stage: Stage, spikes: Ints) -> LayerCounts:
    """Neurons that spike: leaks that are no shifts multiply; an integer membrane is always updated."""
    size = spikes.size
    if stage.kind == "atmn":
        mul, add = int(_leaks(stage.arrays["decay"])) * size, 2 * size
    else:
        per_token = len(spikes) * graph.steps
        decays = ("decay", "current_decay", "adaptation_decay")
        mul = sum(int(_leaks(stage.arrays[name]).sum()) for name in decays) * per_token
        extra = int(np.count_nonzero(stage.arrays["current_decay"])) * per_token
        extra += 2 * int(np.count_nonzero(stage.arrays["adaptation"])) * per_token
        add = (2 + stage.number("most")) * size + extra
    return LayerCounts(
        mul=mul, add=add, spikes=int(np.abs(spikes).sum()), neuron_updates_active=size, bytes_moved=size
    )


def _leaks(decay: Ints) -> NDArray[np.bool_]:
    """Where a leak is neither nothing nor a shift."""
    return (decay & (decay - 1)) != 0


def _count(graph: IntegerGraph, stage: Stage, values: Ints) -> LayerCounts:
    """One comparison for each level; the event carries a number, so it isn't booked as a spike."""
    return LayerCounts(
        add=values.size * stage.arrays["levels"].shape[1],
        neuron_updates_active=values.size,
        bytes_moved=values.size,
    )


def _values(graph: IntegerGraph, stage: Stage, values: Ints) -> LayerCounts:
    return LayerCounts(bytes_moved=3 * values.size)


def _gate(graph: IntegerGraph, stage: Stage, values: Ints) -> LayerCounts:
    """Three multiplications a neuron and token: the place in the table, the share, the product."""
    return LayerCounts(mul=3 * values.size, bytes_moved=3 * values.size)


def _norm(graph: IntegerGraph, stage: Stage, values: Ints) -> LayerCounts:
    """A square and a quotient for each neuron."""
    centered = stage.number("center")
    return LayerCounts(mul=values.size, add=(2 + 2 * centered) * values.size, bytes_moved=3 * values.size)


def _s4d(graph: IntegerGraph, stage: Stage, values: Ints) -> LayerCounts:
    """Four products for a mode's turn, two for what is read of it, one for the skip."""
    modes = stage.arrays["real"].size * len(values)
    return LayerCounts(
        mul=6 * modes + values.size, add=5 * modes + values.size, bytes_moved=12 * modes + 3 * values.size
    )


def _ssd(graph: IntegerGraph, stage: Stage, values: Ints) -> LayerCounts:
    """Taps; and for each number of the memory what turns, fades, enters and is read."""
    of, tokens = stage.arrays, len(values)
    state_size = len(stage.bias["keys"]) // stage.number("groups")
    memory = stage.neurons * state_size * tokens
    turns = 3 if len(of["cosine"]) else 1
    enters = 2 if stage.number("scaled") else 1
    taps = of["taps"].size * tokens
    return LayerCounts(
        mul=taps + memory * (turns + enters + 1) + values.size,
        add=taps + memory * (turns + 1) + values.size,
        bytes_moved=6 * memory + 3 * taps + 3 * values.size,
    )


POPULATIONS = {
    "atmn": _train, "lif": _train, "count": _count, "sum": _values, "gate": _gate, "norm": _norm, "s4d": _s4d,
    "ssd": _ssd,
}  # fmt: skip

UNATTRIBUTED = {
    "gate": {"table look-up": "neuron"},
    "norm": {"root": "token", "division": "neuron"},
    "ssd": {"table look-up": "head"},
}
"""Kind -> what isn't counted, and how often it happens."""
