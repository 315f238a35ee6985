"""What sends one integer a neuron and token: a sum, a gate's product, a norm's quotient."""

import math

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import Floating, Population, WindowModel, divided


class Sum(Population):
    """A token's sum: a residual stream, or what comes out at the end."""


@implements(proc=Sum, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySumFixed(WindowModel):
    """An accumulator without a neuron."""

    def open(self, total):
        return total


@implements(proc=Sum, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PySumFloat(Floating, PySumFixed):
    """The same in float64."""


class Gate(Population):
    """The activation of one sum times another, each neuron by itself."""

    PORTS = {"argument": "argument_in", "factor": "factor_in"}  # noqa: RUF012


@implements(proc=Gate, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyGateFixed(WindowModel):
    """24-bit sums, an exact product of 64 bits, rounding toward zero, a 24-bit result."""

    a_in = None
    argument_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    factor_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)

    def ports(self):
        return Gate.PORTS

    def open(self, argument, factor):
        y = self.limited(self.product(argument, factor))
        return np.where(np.abs(y) < self.level, 0, y)

    def product(self, argument, factor):
        place = divided(argument * self.multiplier, self.argument_shift)
        middle = (len(self.table) - 1) // 2
        place = np.minimum(np.maximum(place + middle, 0), 2 * middle)
        return divided(argument * self.table[place] * factor, self.product_shift)


@implements(proc=Gate, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyGateFloat(Floating, PyGateFixed):
    """The product itself, by SiLU in float64."""

    a_in = None
    argument_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    factor_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)

    def product(self, argument, factor):
        return argument / (1 + np.exp(-argument)) * factor


class Norm(Population):
    """Every sum over the root of their mean square: one number of all neurons, and a division."""


@implements(proc=Norm, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyNormFixed(WindowModel):
    """Python's own integers have no width, so the root is exact."""

    def open(self, x):
        if self.center:
            mean = abs(int(x.sum())) // len(x)
            x = self.limited(x - (mean if x.sum() >= 0 else -mean))
        square = -(-sum(int(each) ** 2 for each in x) // len(x))
        size = max(math.isqrt((square + int(self.epsilon)) * 2**16), 1)
        quotient = np.sign(x) * ((np.abs(x) * 2**22) // size)
        return self.limited(self.sign * quotient + self.offset)
