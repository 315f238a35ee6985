"""Training with the chip's integers: forward what the integer model says, backward what the floats say.

    quantized = QuantizedNetwork(network, sample, bits=4)
    ...                                                     train `quantized` as any Network
    marsnn.export(quantized.plain(), sample, "bundle", bits=4)

At every neuron and at the output the floats' result is replaced by that of `marsnn.hardware.integer` on the
very integers that an export would write: rounded weights, biases, thresholds and leaks, 8-bit inputs, 24-bit
states. Gradients pass as if nothing had been replaced (a straight-through estimator; Bengio, Leonard,
Courville 2013, arXiv 1308.3432), through the surrogates of the float neurons on the integers' spikes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from marsnn.errors import InputError
from marsnn.hardware.fast import FastIntegers
from marsnn.hardware.graph import extract
from marsnn.hardware.quantize import Quantized, quantize, quantize_inputs
from marsnn.network import Listener, Network, Signal, State, Train


class QuantizedNetwork(Network):
    """A Network that computes in an export's integers; it shares its layers with `network`.

    Args:
        network: what can be exported, see `marsnn.hardware.export`.
        sample: x [L, B, *D], inputs that set the scales, as at the export.
        bits: of a weight with its sign, 4 to 8.

    Calls are a Network's, from rest. Integers are chosen anew from the weights at every call.

    Raises:
        ExportError: with every part of the network that has no exact image.

    Example:
        >>> import torch
        >>> from marsnn import ATMN, Network
        >>> from marsnn.hardware import QuantizedNetwork
        >>> x = torch.randn(3, 16, 8)
        >>> network = Network([torch.nn.Linear(8, 16), ATMN(16), torch.nn.Linear(16, 4)])
        >>> QuantizedNetwork(network, x, bits=4)(x).shape
        torch.Size([3, 16, 4])
    """

    def __init__(self, network: Network, sample: Tensor, bits: int = 8) -> None:
        super().__init__(
            dict(network.layers.items()), network.skips, network.unrolled, network.checkpoint_tokens
        )
        if not isinstance(sample, Tensor) or sample.ndim < 3:
            raise InputError("sample must be a tensor x [L, B, *D] of inputs")
        self.sample = in_order(sample.detach().cpu().double().numpy())
        self.bits = bits
        self._inputs = tuple(sample.shape[2:])
        self._sent: dict[str, Tensor] = {}
        self.integers(len(sample))

    def plain(self) -> Network:
        """The float network, of the same layers."""
        return Network(dict(self.layers.items()), self.skips, self.unrolled, self.checkpoint_tokens)

    def integers(self, tokens_per_sample: int) -> Quantized:
        """What an export would write now."""
        flat = self.sample.reshape(len(self.sample), -1)
        whole = len(flat) // tokens_per_sample * tokens_per_sample  # of other samples than the sample's own
        if not whole:
            flat = np.concatenate([flat] * -(-tokens_per_sample // len(flat)))
            whole = tokens_per_sample
        return quantize(extract(self.plain(), self._inputs), flat[:whole], tokens_per_sample, self.bits)

    def run(
        self,
        x: Tensor,
        state: State | None = None,
        listeners: Iterable[Listener] = (),
        final_state: bool = True,
    ) -> tuple[Tensor, State]:
        if state:
            raise InputError("a QuantizedNetwork runs from rest; simulate its bundle, or quantized.plain()")
        self.check_input(x)
        found = self.integers(len(x))
        flat = in_order(x.detach().cpu().double().numpy()).reshape(x.shape[0] * x.shape[1], -1)
        inputs = quantize_inputs(flat, found.input_scale, found.graph.input_max)
        done = FastIntegers(found.graph).run(inputs)
        self._sent = {name: self._as_train(spikes, x) for name, spikes in done.spikes.items()}
        output, state = super().run(x, None, listeners, final_state)
        self._sent = {}
        last = found.graph.last.name
        if last in done.values:
            exact = torch.from_numpy(done.values[last] * found.units[last]).to(output)
            exact = exact.reshape(x.shape[1], x.shape[0], *output.shape[2:]).transpose(0, 1)
            output = exact + (output - output.detach())  # the floats' gradient, and nothing else
        return output, state

    def _as_train(self, spikes: NDArray[np.int8], x: Tensor) -> Tensor:
        """Spikes [W, T, N] of the integers as [T, L, B, N]."""
        tensor = torch.from_numpy(spikes).to(x)
        return tensor.reshape(x.shape[1], x.shape[0], *tensor.shape[1:]).permute(2, 1, 0, 3)

    def _run_layer(self, name: str, layer: nn.Module, *rest: Any) -> tuple[Signal, Any]:
        signal, after = super()._run_layer(name, layer, *rest)
        if isinstance(signal, Train) and name in self._sent:
            exact = self._sent[name].reshape(signal.spikes.shape)
            signal = replace(signal, spikes=exact + (signal.spikes - signal.spikes.detach()))
        return signal, after


def in_order(x: NDArray[Any]) -> NDArray[Any]:
    """x [L, B, *] as the chip receives it, [B L, *]: the tokens of a sample, then the next sample."""
    return np.ascontiguousarray(np.moveaxis(x, 1, 0)).reshape(-1, *x.shape[2:])
