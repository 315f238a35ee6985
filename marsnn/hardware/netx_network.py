"""From a LoihiModel, such as a netx file holds, to a Network in floats with the very same spikes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from marsnn.errors import InputError
from marsnn.hardware.loihi import THRESHOLD_MAX, UNITY, Layer, LoihiModel, excess, keeps
from marsnn.network import Network
from marsnn.neurons import LIF, CubaLIF, Recurrent
from marsnn.neurons.base import Neuron


def network_of(model: LoihiModel) -> Network:
    """A float64 Network that gives the spikes of `model.run` on the same integers, as x [L, B, *D].

    A layer is exact in floats where a decay keeps all or nothing: its states are then whole codes, and where
    the integers fire above V the floats fire at V + 1/2, which no rounding of theirs comes near. Spikes are
    worth that threshold, so the weights behind are divided by it. With carry="sequence" a sample may have at
    most `reset_interval / steps` tokens.

    Raises:
        InputError: with every reason for which the spikes could differ.
    """
    reasons = _reasons(model)
    if reasons:
        raise InputError("not the same in floats: " + "; ".join(reasons))
    carry = "token" if model.reset_interval == model.steps else "sequence"
    layers: dict[str, nn.Module] = {}
    shape, worth = model.input_shape, 1.0
    for layer in model.layers:
        if layer.kind == "dense" and len(shape) == 3:
            layers[f"{layer.name}_flatten"] = nn.Flatten()
        layers[f"{layer.name}_map"] = _map(layer, worth)
        worth = layer.threshold + 0.5
        layers[layer.name] = _neuron(layer, worth, model.steps, carry)
        shape = layer.shape
    return Network(layers).double()


def _map(layer: Layer, worth: float) -> nn.Module:
    made: nn.Linear | nn.Conv2d
    if layer.kind == "dense":
        made = nn.Linear(layer.weight.shape[1], len(layer.weight))
    else:
        made = nn.Conv2d(
            layer.weight.shape[1] * layer.groups, len(layer.weight), tuple(layer.weight.shape[2:]),
            stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups,
        )  # fmt: skip
    made = made.double()
    assert made.bias is not None
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(layer.weight / worth))
        made.bias.copy_(torch.from_numpy(layer.bias.astype(np.float64)))
    return made


def _neuron(layer: Layer, threshold: float, steps: int, carry: str) -> Neuron:
    features = None if layer.recurrent is None else len(layer.recurrent)
    settings: dict[str, Any] = {
        "steps": steps,
        "beta": 1 - layer.voltage_decay / UNITY,
        "threshold": threshold,
        "reset": "zero",
        "carry": carry,
    }
    neuron: Neuron
    if layer.current_decay == UNITY:
        neuron = LIF(features, **settings)
    else:
        neuron = CubaLIF(features, alpha=1 - layer.current_decay / UNITY, **settings)
    if layer.recurrent is None:
        return neuron
    made = Recurrent(neuron).double()
    with torch.no_grad():
        made.recurrent.weight.copy_(torch.from_numpy(layer.recurrent / threshold))
    return made


def _reasons(model: LoihiModel) -> list[str]:
    reasons = []
    interval = model.reset_interval
    lasting = any(
        layer.current_decay < UNITY or layer.voltage_decay < UNITY or layer.recurrent is not None
        for layer in model.layers
    )
    if lasting and interval is None:
        reasons.append(
            "states are never cleared, so a sample meets what came before it; give the model a reset_interval"
        )
    elif lasting and interval is not None and (interval % model.steps or (model.reset_offset - 1) % interval):
        reasons.append(
            f"states are cleared every {interval} steps from step {model.reset_offset + 1} on, which is not "
            f"where tokens of {model.steps} steps start"
        )
    for layer in model.layers:
        name = layer.name
        if {layer.current_decay, layer.voltage_decay} - {0, UNITY}:
            reasons.append(
                f"{name}: decays {layer.current_decay} and {layer.voltage_decay} of 4096 round at every step"
            )
        if layer.threshold > THRESHOLD_MAX:
            reasons.append(f"{name}: its threshold lies above 24 bits, so it never fires")
        if layer.current_decay < UNITY and layer.bias.any():
            reasons.append(f"{name}: its bias enters the voltage past a current that lasts")
        if not keeps(layer):
            reasons.append(f"{name}: Lava does not sum these weights as they are written")
        if layer.recurrent is not None and not model.drops:
            reasons.append(f"{name}: its spikes on their way back outlive the clearing of its states")
        if excess(layer, *model.arrives(layer is not model.layers[0]), interval or np.inf) > 1:
            reasons.append(f"{name}: its states can outgrow 24 bits")
    return reasons
