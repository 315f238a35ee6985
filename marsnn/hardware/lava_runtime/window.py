"""The window schedule: what every population shares, whatever it computes.

A token is a window of T steps. A population opens at step `open_at + w T` for token w: it takes its sums, or its
first current, then. A synapse delivers one step after the spike. So a population that sums a whole train opens T
steps after its sender, one that takes each step's current, or a value, opens one step after it; the input of
token w is sent at step 1 + w T. What arrives before the slowest sender waits in a delay line.
"""

import numpy as np
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var

LIMIT = 2**23 - 1


class Population(AbstractProcess):
    """Sums or currents in at one port or several, spikes or values out, in windows of T steps.

    Parameters
    ----------
    neurons : N
    bias : dict, port -> array
    numbers : dict, what the kind needs; see the manifest
    steps : T
    tokens : number of tokens, after which it is silent again
    open_at : first opening step
    per_sample : tokens after which what is remembered is cleared
    zero_reset : whether a spike clears the membrane
    """

    PORTS = {"in": "a_in"}  # noqa: RUF012

    def __init__(self, *, neurons, bias, **settings):
        super().__init__(neurons=neurons, bias=bias, **settings)
        for port, attribute in self.PORTS.items():
            setattr(self, attribute, InPort(shape=bias[port].shape))
        self.s_out = OutPort(shape=(neurons,))
        self.u = Var(shape=(neurons,), init=0)
        self.n_sat = Var(shape=(1,), init=0)


class WindowModel(PyLoihiProcessModel):
    """The clock, and the arithmetic of the chip; a kind adds `open` and, if it sends a train, `go_on`."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    u: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    n_sat: np.ndarray = LavaPyType(np.ndarray, np.int32)

    def __init__(self, proc_params):
        super().__init__(proc_params)
        for name in ("neurons", "bias", "steps", "tokens", "open_at", "per_sample", "zero_reset"):
            setattr(self, name, proc_params[name])
        for name, array in proc_params["numbers"].items():
            setattr(self, name, self.wide(array))

    # the clock

    def run_spk(self):
        arrived = {port: getattr(self, name).recv() for port, name in self.ports().items()}
        window, step = divmod(self.time_step - self.open_at, self.steps)
        if not 0 <= window < self.tokens:
            sent = np.zeros(self.neurons)
        elif step == 0:
            if window % self.per_sample == 0:
                self.clear()
            taken = {port: self.taken(self.wide(each) + self.bias[port]) for port, each in arrived.items()}
            sent = self.open(**taken) if len(taken) > 1 else self.open(*taken.values())
        else:
            sent = self.go_on(
                step, {port: self.wide(each) + self.bias[port] for port, each in arrived.items()}
            )
        self.s_out.send(self.narrow(sent))

    def ports(self):
        return {"in": "a_in"}

    def taken(self, total):
        """A token's sum and its bias, as the chip holds it."""
        return self.limited(total)

    def clear(self):
        """Forget what is remembered: a sample has ended."""

    def go_on(self, step, arrived):
        """What is sent at the later steps of a window."""
        return np.zeros(self.neurons)

    # the arithmetic: 24-bit states, 12-bit fractions, rounding toward zero

    def wide(self, array):
        return np.asarray(array).astype(np.int64)

    def narrow(self, array):
        return array.astype(np.int32)

    def limited(self, wide, largest=LIMIT):
        kept = np.minimum(np.maximum(wide, -largest), largest)
        self.n_sat += np.int32((kept != wide).sum())
        return kept

    def leaked(self, state, decay):
        return divided(state * decay, 12)


class Floating:
    """The same population in float64, without widths or rounding: for checking the schedule, not the chip."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    u: np.ndarray = LavaPyType(np.ndarray, float)

    def wide(self, array):
        return np.asarray(array, dtype=float)

    def narrow(self, array):
        return array.astype(float)

    def limited(self, wide, largest=LIMIT):
        return wide

    def leaked(self, state, decay):
        return state * (decay / 4096)


def divided(wide, shift):
    """By 2^shift, rounding toward zero."""
    by = np.int64(1) << np.asarray(shift).astype(np.int64)
    return np.where(wide < 0, -(-wide // by), wide // by)
