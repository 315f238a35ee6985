"""Which networks have a form in stock LIFs, and the integers that fit it.

Refuses by name, all at once; then chooses 8-bit integers that are narrow enough (`marsnn.hardware.stock`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from marsnn.errors import ExportError
from marsnn.hardware.graph import SILENT, Graph, extract
from marsnn.hardware.linear_maps import Each, Reals
from marsnn.hardware.modes import as_counts
from marsnn.hardware.quantize import Narrow, Quantized, input_scale, quantize
from marsnn.hardware.stock import Lifs, as_lifs, excess, lifs_of, sizes, too_large
from marsnn.network import LINEAR_MAPS, Network
from marsnn.neurons import ATMN
from marsnn.neurons.base import Neuron

FEWER_LEVELS = (63, 31, 15, 7)
"""Levels of each sign that an input may have beside the finest."""

NARROW = "17-bit sums, 13-bit biases and 8-bit weights of stock LIFs"


def extract_stock(network: Network, inputs: tuple[int, ...]) -> Graph:
    """The real stages of a network that has a form in stock LIFs.

    Raises:
        ExportError: with every reason for which it has none.
    """
    refusals = [
        f"{target}: a skip from {', '.join(sources)}; a netx file is a chain, so remove it, or use count mode"
        for target, sources in network.skips.items()
    ]
    for name, layer in network.layers.items():
        if isinstance(layer, ATMN):
            refusals += [f"{name}: {reason}" for reason in _atmn_refusals(layer)]
        elif isinstance(layer, Neuron):
            refusals.append(
                f"{name}: {type(layer).__name__} takes a current at every step, so it is no count; export it "
                'to target "netx", or in window mode'
            )
        elif not isinstance(layer, (*LINEAR_MAPS, *SILENT)):
            refusals.append(f"{name}: {type(layer).__name__} has no form in stock LIFs; use count mode")
    graph = None
    try:
        graph = extract(network, inputs)
    except ExportError as error:
        known = {reason.split(":")[0] for reason in refusals}
        refusals += [reason for reason in error.refusals if reason.split(":")[0] not in known]
    if graph is not None and not refusals:
        for stage in graph.stages:
            if any(isinstance(synapse.map, Each) for synapse in stage.synapses):
                before = stage.synapses[0].source
                refusals.append(f"{stage.name}: stands on {before} directly; put a Linear before it")
        refusals += too_large(stock_sizes(graph))
    if refusals or graph is None:
        raise ExportError(refusals)
    return graph


def stock_sizes(graph: Graph) -> list[tuple[str, int, int]]:
    """Of each population: its name, how many LIFs it takes and how many synapses, zeros included."""
    populations = []
    for stage in graph.stages:
        if stage.kind == "atmn":
            worth = [int(stage.of["tau"]) ** step for step in range(graph.steps)]
            populations.append((stage.name, stage.neurons, lifs_of(worth)))
    return sizes(int(np.prod(graph.inputs)), populations)


def _atmn_refusals(neuron: ATMN) -> list[str]:
    reasons = []
    tau = neuron.tau.item()
    if tau == 0.5:
        reasons.append(
            "tau = 0.5; its spikes are the digits of a number, whose 2^T - 1 levels would be as many pairs "
            "of LIFs; use tau = 1 or 2, or count mode"
        )
    if neuron.fire_at != 1:
        reasons.append(
            f"fire_at = {neuron.fire_at:g}; its spikes may change sign, so they are no count; use fire_at=1, "
            "or window mode"
        )
    return reasons


def quantize_stock(
    graph: Graph,
    sample: Reals,
    tokens_per_sample: int,
    bits: int,
    distance: Callable[[Quantized], float],
) -> tuple[Quantized, Lifs]:
    """The integers, as a window graph, and the LIFs that give the same counts.

    17 bits hold the product of input and weight, so bits of the one may have to be given for bits of the
    other: the input takes so many levels as bring the integers nearest to the float network by `distance`.

    Args:
        sample: [W, D].

    Raises:
        ExportError: no number of levels leaves the weights enough bits; with what the finest input met.
    """
    finest = input_scale(sample)
    most = int(np.abs(np.round(sample / finest)).max())
    found: list[tuple[float, int, Quantized, Lifs]] = []
    refused: list[ExportError] = []
    for levels in (most, *(fewer for fewer in FEWER_LEVELS if fewer < most)):
        try:
            quantized = quantize(graph, sample, tokens_per_sample, bits, Narrow(NARROW, excess, levels))
            lifs = as_lifs(as_counts(quantized.graph))
        except ExportError as error:
            refused.append(error)
            continue
        found.append((distance(quantized), -levels, quantized, lifs))
    if not found:
        raise min(refused, key=lambda error: len(error.refusals))
    _, _, quantized, lifs = min(found, key=lambda each: each[:2])
    return quantized, lifs
