"""simulate: a network, token by token. The only loop over L in the package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marsnn.checks import finite
from marsnn.errors import InputError
from marsnn.network import Network, State, evaluating
from marsnn.neurons.base import Neuron
from marsnn.progress import track
from marsnn.record import Recorder, Recording, to_numpy
from marsnn.ssm import SequenceLayer


def simulate(
    network: Network,
    x: Tensor,
    record: Iterable[str] = ("spikes", "membrane"),
    progress: bool = False,
    state: State | None = None,
) -> Recording:
    """Run a network over the tokens of x, one after the other, and keep what it did.

    Each token is the same call, whatever came before and comes after, so 60 tokens and then 40 with
    `state=recording.state` equal 100 bit for bit. Nothing is trained: no gradients, dropout off.

    Args:
        network: a `Network`.
        x: [L, B, *D], finite, in the network's dtype and on its device.
        record: any of "spikes", "membrane"; () keeps the output alone.
        progress: draw a progress bar on a terminal.
        state: the `state` of an earlier Recording of the same network and batch size.

    Returns:
        Recording with arrays [L, T, B, *N] by layer name.

    Raises:
        ShapeError, NonFiniteError, InputError: naming the layer and what to do.

    Example:
        >>> import torch
        >>> from marsnn import LIF, Network, simulate
        >>> network = Network([torch.nn.Linear(8, 16), LIF(16, carry="sequence")])
        >>> x = torch.randn(10, 2, 8)
        >>> first = simulate(network, x[:6])
        >>> second = simulate(network, x[6:], state=first.state)
        >>> first.spikes["lif1"].shape
        (6, 4, 2, 16)
    """
    if not isinstance(network, Network):
        raise InputError(f"simulate() runs a marsnn Network, got {type(network).__name__}; wrap its layers")
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a tensor [L, B, D], got {type(x).__name__}; try torch.as_tensor(x)")
    network.check_input(x)
    finite("x", x)
    network.check_weights()
    recorder = Recorder(record)
    state = _restored(network, state, x)
    outputs: list[np.ndarray] = []
    with evaluating(network), torch.no_grad():
        for token in track(range(len(x)), "simulating", enabled=progress):
            output, state = network.run(x[token : token + 1], state, (recorder,))
            outputs.append(to_numpy(output))
    return Recording(
        output=np.concatenate(outputs),
        spikes=recorder.arrays("spikes"),
        membrane=recorder.arrays("membrane"),
        state=state,
    )


def _restored(network: Network, state: State | None, x: Tensor) -> State:
    """States as the layers know them, whether they come from a run or from a file."""
    restored: State = {}
    if state is not None and not isinstance(state, Mapping):
        raise InputError(f"state must be the .state of a Recording, got {type(state).__name__}")
    for name, fields in (state or {}).items():
        if name not in network.names:
            raise InputError(f"the state has a layer {name!r} that this network lacks: {network.names}")
        layer: Any = network[name]
        values = dict(fields) if isinstance(fields, Mapping) else getattr(fields, "_asdict", dict)()
        keeps = isinstance(layer, SequenceLayer) or (isinstance(layer, Neuron) and layer.carry == "sequence")
        if not keeps or set(values) != set(layer.state_fields()):
            carry = f" with carry={layer.carry!r}" if isinstance(layer, Neuron) else ""
            raise InputError(
                f"{name}: the state holds {sorted(values)}, but this {type(layer).__name__}{carry} is "
                "another layer; pass the state of a run of this network"
            )
        if isinstance(layer, Neuron):
            values = {key: value.to(device=x.device, dtype=x.dtype) for key, value in values.items()}
        restored[name] = layer.state_from(values)
    return restored
