"""Readout: the last linear layer's sum of a token, sent when its window opens."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import Floating, SumModel, WindowProcess


class Readout(WindowProcess):
    """An accumulator without a neuron."""


@implements(proc=Readout, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyReadoutFixed(SumModel):
    """Sends sum + bias at the opening step, nothing at the others."""

    def advance(self, window, step):
        if step != 0:
            return np.zeros_like(self.acc)
        return self.sent(self.limited(self.wide(self.acc) + self.bias))


@implements(proc=Readout, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyReadoutFloat(Floating, PyReadoutFixed):
    """The same in float64."""
