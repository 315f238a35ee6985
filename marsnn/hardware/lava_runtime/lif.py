"""LIF: binary spikes, a fixed-point leak, reset by subtraction or to zero."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import WindowModel, WindowProcess


class LIF(WindowProcess):
    """Leaky integrate-and-fire population."""


@implements(proc=LIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyLIFFixed(WindowModel):
    """Takes each step's current; `acc` is the current of this step, or of the whole window when held."""

    def receive(self, arriving, step):
        if self.arrival == "held":
            if step == 0:
                self.held = self.scaled(arriving)
        elif self.arrival == "stream_down":
            self.held = self.scaled(arriving, extra=self.steps - 1 - step)
        elif self.arrival == "stream_up":
            self.held = self.scaled(arriving, extra=step)
        else:
            self.held = self.scaled(arriving)

    def advance(self, window, step):
        if step == 0 and (self.per_sample == 0 or window % self.per_sample == 0):
            self.u[:] = 0
        h = self.limited(self.leaked(self.u) + self.held + self.bias)
        spikes = (h >= self.fire).astype(np.int32)
        self.u[:] = np.where(spikes == 1, 0, h) if self.zero_reset else h - spikes * self.amplitude
        return spikes
