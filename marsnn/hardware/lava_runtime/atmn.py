"""ATMN: ternary spikes, a leak that is a shift, reset by subtraction."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import Floating, SumModel, WindowProcess


class ATMN(WindowProcess):
    """Adaptive Ternary Multi-step Neuron."""


@implements(proc=ATMN, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyATMNFixed(SumModel):
    """Fires at or above `fire`, on both sides; a spike takes `amplitude` from the membrane."""

    def advance(self, window, step):
        h = self.limited(self.wide(self.acc) + self.bias if step == 0 else self.leaked(self.u))
        spikes = np.where(h >= self.fire, 1, np.where(h <= -self.fire, -1, 0))
        self.u[:] = h - spikes * self.amplitude
        return self.sent(spikes)


@implements(proc=ATMN, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyATMNFloat(Floating, PyATMNFixed):
    """The same equations in float64."""
