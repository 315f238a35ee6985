"""ATMN: ternary spikes, a leak that is a shift, reset by subtraction; and its count in one graded spike."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import Floating, Population, WindowModel


class ATMN(Population):
    """Adaptive Ternary Multi-step Neuron."""


@implements(proc=ATMN, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyATMNFixed(WindowModel):
    """Fires at or above `fire`, on both sides; a spike takes `amplitude` from the membrane."""

    def open(self, h):
        return self.spikes(h)

    def go_on(self, step, arrived):
        return self.spikes(self.limited(self.leaked(self.wide(self.u), self.decay)))

    def spikes(self, h):
        spikes = np.where(h >= self.fire, 1, np.where(h <= -self.fire, -1, 0))
        self.u[:] = h - spikes * self.amplitude
        return spikes


@implements(proc=ATMN, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyATMNFloat(Floating, PyATMNFixed):
    """The same equations in float64."""


class Count(Population):
    """What an ATMN says in T steps, in one graded spike."""


@implements(proc=Count, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyCountFixed(WindowModel):
    """The worth of all levels that the sum reaches, with its sign."""

    def open(self, h):
        reached = np.abs(h)[:, None] >= self.levels
        return np.sign(h) * (reached * self.worth).sum(1)
