"""LIF and its kin: a current that may decay, a threshold that may rise, spikes of one level or several."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import Floating, Population, WindowModel


class LIF(Population):
    """Leaky integrate-and-fire population.

    CubaLIF has a `current_decay` above 0, ALIF an `adaptation`, IntegerLIF a `most` above 1, TernaryLIF is
    `signed`.
    """

    def __init__(self, *, neurons, **settings):
        super().__init__(neurons=neurons, **settings)
        self.current = Var(shape=(neurons,), init=0)
        self.adapted = Var(shape=(neurons,), init=0)


@implements(proc=LIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyLIFFixed(WindowModel):
    """Takes each step's current."""

    current: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    adapted: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)

    def taken(self, total):
        return total

    def clear(self):
        self.u[:], self.current[:], self.adapted[:] = 0, 0, 0

    def open(self, driven):
        return self.advanced(driven)

    def go_on(self, step, arrived):
        return self.advanced(arrived["in"])

    def advanced(self, driven):
        current = self.limited(self.leaked(self.wide(self.current), self.current_decay) + driven)
        h = self.limited(self.leaked(self.wide(self.u), self.decay) + current)
        spikes = self.levels_of(h) - (self.levels_of(-h) if self.signed else 0)
        rest = h * (spikes == 0) if self.zero_reset else h - spikes * self.amplitude
        risen = self.leaked(self.wide(self.adapted), self.adaptation_decay) + np.abs(spikes) * self.adaptation
        self.current[:], self.u[:], self.adapted[:] = current, rest, self.limited(risen)
        return spikes

    def levels_of(self, h):
        over = h - self.fire - self.wide(self.adapted)
        return np.where(over < 0, 0, np.minimum(over // self.amplitude + 1, self.most))


@implements(proc=LIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyLIFFloat(Floating, PyLIFFixed):
    """The same equations in float64."""

    current: np.ndarray = LavaPyType(np.ndarray, float)
    adapted: np.ndarray = LavaPyType(np.ndarray, float)
