"""A chain of stock LIFs as stages, so that `place` can lay it out. For its room alone: it runs by `loihi`.

Stock Lava's LIF fires above its threshold, wraps and clips as ours does not (`marsnn.hardware.loihi`), so the
stages here have the sizes, the weights and the clock of the layers, and are not meant to be run.
"""

from __future__ import annotations

from math import prod

import numpy as np

from marsnn.hardware.loihi import UNITY, Layer, LoihiModel
from marsnn.hardware.stages import INPUT, Arrival, Convolution, IntegerGraph, Ints, Stage, Synapse


def stages_of(model: LoihiModel) -> IntegerGraph:
    """The layers of a model, each a stage of kind "lif" behind the one before it."""
    stages: list[Stage] = []
    source, image = INPUT, model.input_shape
    for layer in model.layers:
        stages.append(_stage(layer, source, image))
        source, image = layer.name, layer.shape
    return IntegerGraph(model.steps, model.input_shape, tuple(stages), input_max=model.input_max)


def _stage(layer: Layer, source: str, image: tuple[int, ...]) -> Stage:
    arrival: Arrival = "held" if source == INPUT else "stream"
    moves = None
    if layer.kind == "conv":
        moves = Convolution(image, layer.shape, layer.stride, layer.padding, layer.dilation, layer.groups)
    weight = Synapse(f"{layer.name}.weight", source, "in", layer.kind, arrival, layer.weight, conv=moves)
    synapses = [weight]
    if layer.recurrent is not None:
        loop = Synapse(f"{layer.name}.recurrent", layer.name, "in", "dense", "stream", layer.recurrent)
        synapses.append(loop)
    bias = {"in": _each(layer.bias, layer)}
    return Stage(layer.name, "lif", layer.shape, tuple(synapses), bias, _arrays(layer))


def _each(numbers: Ints, layer: Layer) -> Ints:
    """Of channels, or of neurons, for every neuron [N]."""
    return np.repeat(numbers, prod(layer.shape) // len(numbers))


def _arrays(layer: Layer) -> dict[str, Ints]:
    size = prod(layer.shape)
    level = np.full(size, layer.threshold)
    none = np.zeros(size, dtype=np.int64)
    return {
        "fire": level,
        "amplitude": level,
        "decay": np.full(size, UNITY - layer.voltage_decay),
        "current_decay": np.full(size, UNITY - layer.current_decay),
        "adaptation": none,
        "adaptation_decay": none,
        "most": np.array(1),
        "signed": np.array(0),
    }
