"""From a Network to the chain of layers that a netx file holds, still in real numbers.

Reads the network, refuses what netx or Lava's LIF has not, and lists all refusals at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from marsnn.errors import ExportError
from marsnn.hardware.loihi import UNITY, Layer, conv_shape
from marsnn.hardware.stages import LARGEST_STEPS
from marsnn.network import Network
from marsnn.neurons import LIF, PLIF, CubaLIF, Recurrent
from marsnn.neurons.base import Neuron

Reals = NDArray[np.float64]

SILENT = (nn.Identity, nn.Dropout)
MAPPED = (LIF, PLIF, CubaLIF)


@dataclass(frozen=True)
class NetxStage:
    """A layer in real numbers, its states counted in thresholds."""

    name: str
    layer: Layer  # geometry and decays; its integers are still to be chosen
    weight: Reals
    bias: Reals
    alpha: float
    beta: float
    recurrent: Reals | None = None  # [N, N], of its own spikes; their bias is in `bias`


def extract(
    network: Network, image: tuple[int, ...], tokens: int
) -> tuple[tuple[int, ...], list[NetxStage], int]:
    """The input's shape, the stages in units of their thresholds, and the steps from clearing to clearing.

    Args:
        network: to be read.
        image: of the sample, (D,) or (C, H, W).
        tokens: of a sample.

    Raises:
        ExportError: with every reason for which it can't be mapped.
    """
    refusals = [
        f"{target}: a skip from {', '.join(sources)}; remove it" for target, sources in network.skips.items()
    ]
    if network.steps > LARGEST_STEPS:
        refusals.append(f"T = {network.steps} micro-steps a token; use at most {LARGEST_STEPS}")
    stages: list[NetxStage] = []
    shape = input_shape = image
    worth: Reals = np.ones(1)  # of a spike of each sender: [1], [M] or [C]
    pending: tuple[str, nn.Linear | nn.Conv2d] | None = None
    last, seen = "", False  # the last layer, and whether there was a neuron yet
    for name, layer in network.layers.items():
        if isinstance(layer, SILENT):
            continue
        last = name
        if type(layer) is nn.Flatten:
            if pending is not None or layer.start_dim != 1 or layer.end_dim != -1:
                refusals.append(
                    f"{name}: netx flattens (C, H, W) only between neurons and a Linear, by nn.Flatten()"
                )
            if len(shape) == 3:
                worth = worth if worth.size == 1 else np.repeat(worth, shape[1] * shape[2])
                shape = (shape[0] * shape[1] * shape[2],)
                input_shape = input_shape if seen else shape
        elif type(layer) in (nn.Linear, nn.Conv2d):
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            if pending is not None:
                refusals.append(
                    f"{name}: follows {pending[0]} with no neuron between; merge the two into one"
                )
            refusals.extend(f"{name}: {reason}" for reason in _map_refusals(layer, shape))
            pending = (name, layer)
        elif isinstance(layer, Neuron):
            behind = _shape_behind(pending[1] if pending else None, shape)
            reasons = _neuron_refusals(layer, behind)
            inner = _inner(layer)
            if isinstance(inner, CubaLIF) and bool((inner.alpha > 0).any()):
                before = dict([pending]) if pending else {}
                own = {name: layer.recurrent} if isinstance(layer, Recurrent) else {}
                refusals.extend(
                    f"{where}: its bias enters the current of {name} and lasts there; Lava adds a bias "
                    "to the voltage alone, so train with bias=False"
                    for where, linear in (before | own).items()
                    if _biased(linear)
                )
            if pending is None and seen:
                reasons.append("follows a neuron directly; put a Linear between them")
            elif pending is None and len(shape) == 3:
                reasons.append("stands on an image with no map before it; put a Conv2d before it")
            refusals.extend(f"{name}: {reason}" for reason in reasons)
            if not refusals:  # else the rest is only looked at for what is refused too
                stages.append(_stage(name, pending[1] if pending else None, layer, shape, worth))
                worth = _threshold(layer)
            shape, pending, seen = behind, None, True
        else:
            refusals.append(
                f"{name}: {type(layer).__name__} has no place in netx, which holds Linear, Conv2d, Flatten, "
                "LIF, PLIF, CubaLIF and Recurrent"
            )
    if pending is not None:
        refusals.append(f"{pending[0]}: is last, and netx has no layer without neurons; end with a neuron")
    elif last and type(network.layers[last]) is nn.Flatten and network.neurons:
        refusals.append(f"{last}: is last; remove it, or put a Linear and neurons behind it")
    if not network.neurons:
        refusals.append("the network has no spiking neuron, so there is nothing for netx to hold")
    interval, reasons = _interval(network, tokens)
    refusals.extend(reasons)
    if refusals:
        raise ExportError(refusals)
    return input_shape, stages, interval


def _biased(linear: nn.Linear | nn.Conv2d) -> bool:
    return linear.bias is not None and bool((linear.bias != 0).any())


def _map_refusals(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> list[str]:
    if isinstance(layer, nn.Linear):
        return ["acts on the last axis of an image; put nn.Flatten() before it"] if len(shape) == 3 else []
    if layer.padding_mode != "zeros" or layer.padding == "same":
        return [f"padding {layer.padding!r} of {layer.padding_mode}; give numbers, and zeros"]
    return [] if len(shape) == 3 else ["a Conv2d needs an image (C, H, W); there is none here any more"]


def _inner(neuron: Neuron) -> Neuron:
    """The neuron itself, or the one that hears itself."""
    return neuron.neuron if type(neuron) is Recurrent else neuron


def _neuron_refusals(layer: Neuron, shape: tuple[int, ...]) -> list[str]:
    """Why a population of neurons of that shape does not map."""
    neuron = _inner(layer)
    if type(neuron) not in MAPPED:
        who, or_else = type(neuron).__name__, ""
        if neuron is not layer:
            who, or_else = f"Recurrent({who})", ', or export to target "lava"'
        return [f"{who} has no form in netx; use LIF, PLIF or CubaLIF{or_else}"]
    assert isinstance(neuron, LIF | PLIF | CubaLIF)
    reasons = []
    if neuron is not layer and len(shape) == 3:
        reasons.append(
            "hears itself on an image; netx has that for neurons behind a Linear only, so use one, or "
            'export to target "lava"'
        )
    if neuron.reset != "zero":
        reasons.append(
            'reset="subtract"; Lava\'s LIF resets to zero, so train with reset="zero" '
            '(or export to target "lava", which subtracts)'
        )
    decays = {"beta": neuron.beta} | ({"alpha": neuron.alpha} if isinstance(neuron, CubaLIF) else {})
    for name, decay in decays.items():
        if len(decay.flatten().unique()) > 1:
            reasons.append(f"{name} differs between neurons; use one {name} a layer")
    if len(_threshold(neuron)) > 1 and neuron.feature_dim != -len(shape):
        reasons.append(
            f"thresholds along axis {neuron.feature_dim} of {list(shape)}; only those of the first axis fold "
            "into weights"
        )
    return reasons


def _interval(network: Network, tokens: int) -> tuple[int, list[str]]:
    """Every how many steps all states are cleared; neurons without a memory don't mind.

    A neuron that hears itself has one, for a step: its spikes on their way back.
    """
    lasting = {}
    for name, layer in network.neurons.items():
        neuron = _inner(layer)
        if isinstance(neuron, MAPPED):
            decays = [neuron.beta, neuron.alpha] if isinstance(neuron, CubaLIF) else [neuron.beta]
            if neuron is not layer or any(bool((decay > 0).any()) for decay in decays):
                lasting[name] = neuron.carry
    carries = set(lasting.values()) or {"token"}
    if len(carries) > 1 and tokens > 1:
        return 0, [
            f'{name}: carry="token" where others have carry="sequence"; netx clears all layers together, so '
            "use one for all"
            for name, carry in lasting.items()
            if carry == "token"
        ]
    return network.steps * (tokens if "sequence" in carries else 1), []


def _threshold(neuron: Neuron) -> Reals:
    """[1], [N] or [C]."""
    threshold = _inner(neuron).threshold.detach().cpu().double().reshape(-1).numpy()  # type: ignore[operator, union-attr]
    return threshold[:1] if (threshold == threshold[0]).all() else threshold


def _shape_behind(linear: nn.Linear | nn.Conv2d | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(linear, nn.Linear):
        return (linear.out_features,)
    if isinstance(linear, nn.Conv2d) and len(shape) == 3 and not isinstance(linear.padding, str):
        return conv_shape(_bare("", np.zeros(linear.weight.shape), linear), shape)
    return shape


def _bare(name: str, weight: Reals, linear: nn.Linear | nn.Conv2d | None) -> Layer:
    """A layer with the geometry of a map, and no numbers yet."""
    whole = np.zeros(weight.shape, dtype=np.int64)
    layer = Layer(name, whole, np.zeros(len(weight), dtype=np.int64), 1, UNITY, UNITY, (len(weight),))
    if not isinstance(linear, nn.Conv2d):
        return layer
    (sy, sx), (dy, dx) = linear.stride, linear.dilation
    padding = (0, 0) if isinstance(linear.padding, str) else (int(linear.padding[0]), int(linear.padding[1]))
    return replace(layer, stride=(sy, sx), padding=padding, dilation=(dy, dx), groups=linear.groups)


def _stage(
    name: str, linear: nn.Linear | nn.Conv2d | None, of: Neuron, shape: tuple[int, ...], worth: Reals
) -> NetxStage:
    neuron = _inner(of)
    assert isinstance(neuron, LIF | PLIF | CubaLIF)
    weight = np.eye(shape[0]) if linear is None else _numbers(linear.weight)  # None: on the input itself
    bias = np.zeros(len(weight)) if linear is None or linear.bias is None else _numbers(linear.bias)
    layer = _bare(name, weight, linear)
    groups = layer.groups
    if layer.kind == "conv":
        layer = replace(layer, shape=conv_shape(layer, shape))
    # [groups, rows of a group, senders of a group, ...] times what a spike of each sender is worth
    split = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    ones = [1] * (weight.ndim - 2)
    per_sender = worth if worth.size == 1 else worth.reshape(groups, 1, -1, *ones)
    weight = (split * per_sender).reshape(weight.shape)
    threshold = _threshold(neuron)
    recurrent = None
    if isinstance(of, Recurrent):
        bias = bias if of.recurrent.bias is None else bias + _numbers(of.recurrent.bias)
        recurrent = _numbers(of.recurrent.weight) * threshold / threshold.reshape(-1, 1)
    alpha = neuron.alpha.flatten()[0].item() if isinstance(neuron, CubaLIF) else 0.0
    beta = neuron.beta.flatten()[0].item()
    layer = replace(
        layer,
        current_decay=round((1 - alpha) * UNITY),
        voltage_decay=round((1 - beta) * UNITY),
    )
    weight = weight / threshold.reshape(-1, *[1] * (weight.ndim - 1))
    return NetxStage(name, layer, weight, bias / threshold, alpha, beta, recurrent)


def _numbers(tensor: Tensor) -> Reals:
    return np.asarray(tensor.detach().cpu().double().numpy())
