"""Gate: two sums of a token, the activation of one times the other, sent when the window opens."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import Floating, SumModel


class Gate(AbstractProcess):
    """Sums of two matrices of synapses in, one graded product per neuron out.

    Parameters
    ----------
    bias : array [2N], of the activation's argument and of the other factor
    multiplier, argument_shift, product_shift, level : arrays [N]
    table : array [entries], what share of the argument passes, over 32768
    The others are those of window.WindowProcess.
    """

    def __init__(self, *, bias, multiplier, argument_shift, product_shift, level, table, **settings):
        super().__init__(bias=bias, table=table, **settings)
        shape = np.shape(level)
        self.a_in = InPort(shape=shape)
        self.up_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.bias = Var(shape=np.shape(bias), init=bias)
        self.multiplier = Var(shape=shape, init=multiplier)
        self.argument_shift = Var(shape=shape, init=argument_shift)
        self.product_shift = Var(shape=shape, init=product_shift)
        self.level = Var(shape=shape, init=level)
        self.table = Var(shape=np.shape(table), init=table)
        self.acc = Var(shape=np.shape(bias), init=0)
        self.n_sat = Var(shape=(1,), init=0)


@implements(proc=Gate, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyGateFixed(SumModel):
    """24-bit sums, an exact product of 64 bits, rounding toward zero, a 24-bit result."""

    # a gate has no membrane and no level to fire at
    fire = amplitude = u = None
    up_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    multiplier: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    argument_shift: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=8)
    product_shift: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=8)
    level: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    table: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)

    def arriving(self):
        return np.concatenate([self.a_in.recv(), self.up_in.recv()])

    def nothing(self):
        return np.zeros_like(self.level)

    def advance(self, window, step):
        if step != 0:
            return self.nothing()
        argument, factor = np.split(self.limited(self.wide(self.acc) + self.bias), 2)
        y = self.limited(self.product(argument, factor))
        y[np.abs(y) < self.level] = 0
        return self.sent(y)

    def product(self, argument, factor):
        place = divided(argument * self.wide(self.multiplier), self.argument_shift)
        middle = (len(self.table) - 1) // 2
        place = np.minimum(np.maximum(place + middle, 0), 2 * middle)
        return divided(argument * self.wide(self.table)[place] * factor, self.product_shift)


@implements(proc=Gate, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyGateFloat(Floating, PyGateFixed):
    """The product itself, by SiLU in float64."""

    fire = amplitude = u = None
    up_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    multiplier: np.ndarray = LavaPyType(np.ndarray, float)
    argument_shift: np.ndarray = LavaPyType(np.ndarray, float)
    product_shift: np.ndarray = LavaPyType(np.ndarray, float)
    level: np.ndarray = LavaPyType(np.ndarray, float)
    table: np.ndarray = LavaPyType(np.ndarray, float)

    def product(self, argument, factor):
        return argument / (1 + np.exp(-argument)) * factor


def divided(wide, shift):
    """By 2^shift, rounding toward zero."""
    by = np.int64(1) << shift.astype(np.int64)
    return np.where(wide < 0, -(-wide // by), wide // by)
