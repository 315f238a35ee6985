"""The window schedule: what every stage shares, whatever its neuron.

A token is a window of T steps. A stage opens at step `open_at + w T` for token w: it takes its sum (or its
first current) then. A synapse delivers one step after the spike. So a stage that sums a whole train opens T
steps after its sender, one that takes each step's current, or a gate's products, opens one step after it,
and the first stage opens at step 2, since the input of token w is sent at step 1 + w T.
"""

import numpy as np
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var

LIMIT = 2**23 - 1


class WindowProcess(AbstractProcess):
    """Synaptic input in, spikes or sums out, in windows of T steps.

    Parameters
    ----------
    bias, fire, amplitude : arrays [N], in the units of the state
    steps : T
    tokens : number of tokens, after which the stage is silent again
    open_at : first opening step
    arrival, shift, decay : see the manifest
    per_sample : tokens after which a carried state is cleared (0: after every token)
    zero_reset : whether a spike clears the membrane
    """

    def __init__(self, *, bias, fire, amplitude, **settings):
        super().__init__(bias=bias, fire=fire, amplitude=amplitude, **settings)
        shape = np.shape(bias)
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.bias = Var(shape=shape, init=bias)
        self.fire = Var(shape=shape, init=fire)
        self.amplitude = Var(shape=shape, init=amplitude)
        self.acc = Var(shape=shape, init=0)
        self.u = Var(shape=shape, init=0)
        self.n_sat = Var(shape=(1,), init=0)


class WindowModel(PyLoihiProcessModel):
    """Bit-accurate arithmetic and the clock; a neuron adds `open_window` and `go_on`."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    bias: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    fire: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    amplitude: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    acc: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    u: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    n_sat: np.ndarray = LavaPyType(np.ndarray, np.int32)

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.steps = proc_params["steps"]
        self.tokens = proc_params["tokens"]
        self.open_at = proc_params["open_at"]
        self.arrival = proc_params["arrival"]
        self.shift = proc_params["shift"]
        self.decay = proc_params["decay"]
        self.per_sample = proc_params["per_sample"]
        self.zero_reset = proc_params["zero_reset"]

    # the clock

    def run_spk(self):
        arriving = self.arriving()
        window, step = divmod(self.time_step - self.open_at, self.steps)
        self.receive(arriving, step)
        silent = window < 0 or window >= self.tokens
        self.s_out.send(self.nothing() if silent else self.advance(window, step))
        if step == 0:
            self.acc[:] = 0

    def arriving(self):
        """What every accumulator gets at this step."""
        return self.a_in.recv()

    def nothing(self):
        """What a silent stage sends."""
        return np.zeros_like(self.acc)

    def receive(self, arriving, step):
        """Add what arrives at `step` of the window: the last arrival of a train meets the opening step."""
        raise NotImplementedError

    def advance(self, window, step):
        """One step of the population: what it sends."""
        raise NotImplementedError

    # the arithmetic of the chip: 24-bit states, 12-bit fractions, rounding toward zero

    def wide(self, array):
        return array.astype(np.int64)

    def sent(self, array):
        return array.astype(np.int32)

    def limited(self, wide):
        kept = np.minimum(np.maximum(wide, -LIMIT), LIMIT)
        self.n_sat += np.int32((kept != wide).sum())
        return kept

    def scaled(self, arriving, extra=0):
        return self.wide(arriving) * (1 << (self.shift + extra))

    def leaked(self, state):
        product = self.wide(state) * self.decay
        return np.where(product < 0, -(-product // 4096), product // 4096)


class SumModel(WindowModel):
    """A stage that sums its train before it opens."""

    def receive(self, arriving, step):
        total = self.wide(self.acc)
        if self.arrival == "horner":
            total = 2 * total + self.scaled(arriving)
        elif self.arrival == "power":
            # Sent one step ago, so at the sender's step (step - 1) mod T.
            total = total + self.scaled(arriving, extra=(step - 1) % self.steps)
        else:
            total = total + self.scaled(arriving)
        self.acc[:] = self.limited(total)


class Floating:
    """The same stage in float64, without widths or rounding: for checking the schedule, not the chip."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    bias: np.ndarray = LavaPyType(np.ndarray, float)
    fire: np.ndarray = LavaPyType(np.ndarray, float)
    amplitude: np.ndarray = LavaPyType(np.ndarray, float)
    acc: np.ndarray = LavaPyType(np.ndarray, float)
    u: np.ndarray = LavaPyType(np.ndarray, float)

    def wide(self, array):
        return array

    def sent(self, array):
        return array.astype(float)

    def limited(self, wide):
        return wide

    def leaked(self, state):
        return state * (self.decay / 4096)
