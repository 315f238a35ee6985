"""From a Network to the chain of stages that a chip runs, still in real numbers.

Reads the network, refuses what has no exact image, and lists all refusals at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from marsnn.errors import ExportError
from marsnn.gated import GatedLinear
from marsnn.hardware.certificate import LARGEST_DOUBLINGS
from marsnn.hardware.integer import ATMN_DECAYS, LARGEST_STEPS, Arrival, Kind
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, TMN
from marsnn.neurons.base import Neuron

Reals = NDArray[np.float64]

SILENT = (nn.Identity, nn.Dropout)
"""Layers that do nothing at inference."""


@dataclass(frozen=True)
class Population:
    """A linear map and the neurons that it drives (or a readout, or a gate), in real numbers.

    A gate's weight and bias are those of its two maps, one below the other. What follows a gate takes the
    products themselves: it has no weight.
    """

    name: str
    synapse: str
    kind: Kind
    arrival: Arrival
    weight: Reals  # [N, M], with what a spike of each sender is worth folded into its column; [2N, M]; [N, 0]
    bias: Reals  # [N] or [2N]
    threshold: Reals  # [N] amplitude of a spike; empty for a readout and a gate
    fire_at: float = 1.0
    tau: float = 1.0  # ATMN
    beta: float = 1.0  # LIF
    reset: Literal["subtract", "zero"] = "subtract"
    carry: Literal["token", "sequence"] = "token"
    activation: str = ""  # gate
    level: float = 0.0  # gate


@dataclass(frozen=True)
class Graph:
    """The chain that a network becomes."""

    steps: int
    inputs: int
    populations: tuple[Population, ...]


def extract(network: Network, inputs: int) -> Graph:
    """The chain of a network whose input has `inputs` features.

    Raises:
        ExportError: with every reason for which it can't be mapped exactly.
    """
    refusals = [
        f"{target}: a skip from {', '.join(sources)}; remove it" for target, sources in network.skips.items()
    ]
    pairs = _pairs(network, inputs, refusals)
    refusals.extend(_too_long(pairs, network.steps))
    for name, _, _, neuron in pairs:
        refusals.extend(f"{name}: {reason}" for reason in _unmappable(neuron))
    if not refusals and not any(isinstance(neuron, Neuron) for *_, neuron in pairs):
        refusals.append("the network has no spiking neuron, so there is nothing for the chip to time")
    if refusals:
        raise ExportError(refusals)

    steps = network.steps
    populations: list[Population] = []
    sender: Neuron | None = None
    for name, synapse, linear, receiver in pairs:
        if populations and populations[-1].kind == "gate":
            assert isinstance(receiver, ATMN)
            populations.append(_behind_gate(name, synapse, populations[-1], receiver))
        else:
            weight, bias = _affine(linear, inputs)
            populations.append(_population(name, synapse, weight, bias, sender, receiver, steps))
        if isinstance(linear, GatedLinear):
            populations[-1] = replace(
                populations[-1], kind="gate", activation=linear.activation, level=linear.level or 0.0
            )
        sender = receiver
    return Graph(steps=steps, inputs=inputs, populations=tuple(populations))


Pair = tuple[str, str, nn.Linear | GatedLinear | None, Neuron | None]


def _pairs(network: Network, inputs: int, refusals: list[str]) -> list[Pair]:
    """(name, synapse's name, map or None for the identity, neuron or None for a readout and a gate)."""
    pairs: list[Pair] = []
    pending: tuple[str, nn.Linear] | None = None
    gate = ""  # the one that still waits for its neuron
    for name, layer in network.layers.items():
        if isinstance(layer, SILENT):
            continue
        behind, gate = gate, ""
        if behind and not isinstance(layer, ATMN):
            refusals.append(f"{name}: follows {behind}, whose products only an ATMN takes; put one between")
        if type(layer) is GatedLinear:
            if pending is not None:
                refusals.append(
                    f"{name}: follows {pending[0]} with no neuron between; merge {pending[0]} into both maps"
                )
                pending = None
            pairs.append((name, name, layer, None))
            gate = name
        elif isinstance(layer, nn.Linear):
            if pending is not None:
                refusals.append(
                    f"{name}: follows {pending[0]} with no neuron between; merge the two into one Linear"
                )
            pending = (name, layer)
        elif isinstance(layer, Neuron):
            if pending is None and pairs and not behind:
                refusals.append(f"{name}: follows a neuron directly; put a Linear between them")
            synapse, linear = pending if pending is not None else (f"{name}.input", None)
            pairs.append((name, synapse, linear, layer))
            pending = None
        else:
            refusals.append(
                f"{name}: {type(layer).__name__} has no exact form in this mode; "
                "window mode maps Linear, GatedLinear, ATMN, TMN and LIF"
            )
    if gate:
        refusals.append(f"{gate}: is last, and only an ATMN takes its products; put one behind it")
    if pending is not None:
        pairs.append((pending[0], pending[0], pending[1], None))
    return pairs


def _too_long(pairs: list[Pair], steps: int) -> list[str]:
    """T beyond what a manifest or the weights tau^t of a summed train can hold."""
    refusals = []
    if steps > LARGEST_STEPS:
        refusals.append(f"T = {steps} micro-steps a token; use at most {LARGEST_STEPS}")
    for name, _, _, neuron in pairs[:-1]:
        if isinstance(neuron, ATMN) and neuron.tau.item() != 1.0 and steps > LARGEST_DOUBLINGS:
            refusals.append(
                f"{name}: {steps} steps with tau = {neuron.tau.item():g} outweigh 24 bits; use at most "
                f"{LARGEST_DOUBLINGS}"
            )
    return refusals


def _unmappable(neuron: Neuron | None) -> list[str]:
    if neuron is None:
        return []
    if neuron.feature_dim != -1:
        return [f"feature_dim = {neuron.feature_dim}; this mode maps [L, B, N], with N last"]
    if isinstance(neuron, ATMN) and type(neuron) in (ATMN, TMN):  # TMN is a setting of the same equation
        tau = neuron.tau.item()
        if tau not in ATMN_DECAYS:
            known = ", ".join(f"{value:g}" for value in ATMN_DECAYS)
            return [f"tau = {tau:g}; a chip can shift only for tau = {known}"]
        return []
    if isinstance(neuron, LIF) and type(neuron) is LIF:
        if len(neuron.beta.flatten().unique()) > 1:
            return ["beta differs between neurons; use one beta a layer"]
        return []
    return [f"{type(neuron).__name__} has no integer form in this mode; window mode maps ATMN, TMN and LIF"]


def _affine(linear: nn.Linear | GatedLinear | None, inputs: int) -> tuple[Reals, Reals]:
    if linear is None:  # a neuron on the input itself
        return np.eye(inputs), np.zeros(inputs)
    if isinstance(linear, GatedLinear):
        (gate, gate_bias), (up, up_bias) = _affine(linear.gate, inputs), _affine(linear.up, inputs)
        return np.concatenate([gate, up]), np.concatenate([gate_bias, up_bias])
    weight = _real(linear.weight)
    return weight, np.zeros(len(weight)) if linear.bias is None else _real(linear.bias)


def _population(
    name: str,
    synapse: str,
    weight: Reals,
    bias: Reals,
    sender: Neuron | None,
    receiver: Neuron | None,
    steps: int,
) -> Population:
    """Fold what the sender's spikes are worth into the columns, and say how they arrive."""
    steps_of_receiver = receiver is not None and receiver.integrates == "step"
    senders = weight.shape[1]
    arrival: Arrival
    if sender is None:
        arrival = "held" if steps_of_receiver else "once"
    else:
        worth = _wide(sender.threshold, senders)  # type: ignore[arg-type]
        tau = sender.tau.item() if isinstance(sender, ATMN) else 1.0
        if steps_of_receiver:
            # A receiver that takes every step sees the train at unit mean: T times what a sum would.
            worth = worth * (steps if isinstance(sender, ATMN) else 1)
            arrival = {0.5: "stream_down", 1.0: "stream", 2.0: "stream_up"}[tau]  # type: ignore[assignment]
        else:
            worth = worth / (1 if isinstance(sender, ATMN) else steps)
            arrival = {0.5: "horner", 1.0: "sum", 2.0: "power"}[tau]  # type: ignore[assignment]
        weight = weight * worth
    if receiver is None:
        return Population(name, synapse, "readout", arrival, weight, bias, np.zeros(0))
    threshold = _wide(receiver.threshold, len(weight))  # type: ignore[arg-type]
    if isinstance(receiver, ATMN):
        return Population(
            name, synapse, "atmn", arrival, weight, bias, threshold,
            fire_at=receiver.fire_at, tau=receiver.tau.item(),
        )  # fmt: skip
    assert isinstance(receiver, LIF)
    return Population(
        name, synapse, "lif", arrival, weight, bias, threshold,
        beta=receiver.beta.flatten()[0].item(), reset=receiver.reset, carry=receiver.carry,
    )  # fmt: skip


def _behind_gate(name: str, synapse: str, gate: Population, receiver: ATMN) -> Population:
    neurons = len(gate.bias) // 2
    return Population(
        name, synapse, "atmn", "direct", np.zeros((neurons, 0)), np.zeros(neurons),
        _wide(receiver.threshold, neurons), fire_at=receiver.fire_at, tau=receiver.tau.item(),
    )  # fmt: skip


def _real(tensor: torch.Tensor) -> Reals:
    return tensor.detach().cpu().double().numpy()


def _wide(tensor: torch.Tensor, size: int) -> Reals:
    """A setting, [], [1] or [N], as [N]."""
    return np.broadcast_to(_real(tensor).reshape(-1), (size,)).copy()
