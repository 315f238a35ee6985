"""LIF: binary spikes, a fixed-point leak, reset by subtraction or to zero."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import Floating, WindowModel, WindowProcess


class LIF(WindowProcess):
    """Leaky integrate-and-fire population."""


@implements(proc=LIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyLIFFixed(WindowModel):
    """Takes each step's current; a static input arrives once and is held for the window."""

    def receive(self, arriving, step):
        if self.arrival == "stream_down":
            self.current = self.scaled(arriving, extra=self.steps - 1 - step)
        elif self.arrival == "stream_up":
            self.current = self.scaled(arriving, extra=step)
        elif self.arrival == "stream" or step == 0:
            self.current = self.scaled(arriving)

    def advance(self, window, step):
        if step == 0 and (self.per_sample == 0 or window % self.per_sample == 0):
            self.u[:] = 0
        h = self.limited(self.leaked(self.u) + self.current + self.bias)
        spikes = np.where(h >= self.fire, 1, 0)
        self.u[:] = np.where(spikes == 1, 0, h) if self.zero_reset else h - spikes * self.amplitude
        return self.sent(spikes)


@implements(proc=LIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyLIFFloat(Floating, PyLIFFixed):
    """The same equations in float64."""
