"""State space layers: what they remember of a sample's tokens, in 24 bits, and what they say of each."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import Population, WindowModel, divided

ONE_TURN = 20  # bits of a rotation's constants
ONE_SHARE = 15  # bits of a share
NARROW = 2**15 - 1


class S4D(Population):
    """A diagonal, time-invariant state space model for each feature."""


@implements(proc=S4D, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyS4DFixed(WindowModel):
    """Each mode is a complex number that turns and fades."""

    def clear(self):
        self.modes = np.zeros((2, *self.real.shape), dtype=np.int64)

    def open(self, x):
        enters = divided(x[:, None] * 2**self.enter_left, self.enter_right)
        a, b = self.modes
        a, b = (
            divided(self.real * a - self.imaginary * b, ONE_TURN) + enters,
            divided(self.imaginary * a + self.real * b, ONE_TURN),
        )
        self.modes = self.limited(np.stack([a, b]))
        read = self.out_real * self.modes[0] - self.out_imaginary * self.modes[1]
        return self.limited(divided(read.sum(1) + self.skip * x, self.out_shift))


class SSD(Population):
    """A selective state space model: a convolution, a decay from the token, a memory [N, P] for each head."""

    PORTS = {  # noqa: RUF012
        "values": "values_in",
        "keys": "keys_in",
        "queries": "queries_in",
        "forgetting": "forgetting_in",
    }


@implements(proc=SSD, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySSDFixed(WindowModel):
    """One head after the other."""

    a_in = None
    values_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    keys_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    queries_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    forgetting_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)

    def ports(self):
        return SSD.PORTS

    def clear(self):
        heads = len(self.multiplier)
        state_size = self.bias["keys"].size // int(self.groups)
        self.memory = np.zeros((heads, state_size, self.neurons // heads), dtype=np.int64)
        self.window = np.zeros_like(self.taps)  # [K, channels], newest first

    def open(self, values, keys, queries, forgetting):
        self.window = np.concatenate([[np.concatenate([values, keys, queries])], self.window[:-1]])
        mixed = divided((self.window * self.taps).sum(0) + self.tap_bias, self.tap_shift)
        mixed = self.limited(mixed, NARROW)
        values, keys, queries = np.split(mixed, [values.size, values.size + keys.size])
        heads, groups = len(self.multiplier), int(self.groups)
        values, keys, queries = (
            values.reshape(heads, -1),
            keys.reshape(groups, -1),
            queries.reshape(groups, -1),
        )
        middle = (len(self.table) - 1) // 2
        place = middle + divided(forgetting * self.multiplier, self.argument_shift)
        decay = self.table[np.minimum(np.maximum(place, 0), 2 * middle)]
        sent = []
        for head in range(heads):
            key, query = (each[head * groups // heads] for each in (keys, queries))
            enters = np.outer(key, values[head])
            if self.scaled:
                enters = enters * (2**ONE_SHARE - decay[head])
            enters = divided(enters * 2 ** self.enter_left[head], self.enter_right[head])
            self.memory[head] = self.limited(self.faded(self.memory[head], decay[head]) + enters)
            read = query @ self.memory[head] + self.skip[head] * values[head]
            sent.append(self.limited(divided(read, self.out_shift[head])))
        return np.concatenate(sent)

    def faded(self, memory, decay):
        if not self.cosine.size:
            return divided(memory * decay, ONE_SHARE)
        half = len(memory) // 2
        a, b = memory[:half], memory[half:]
        c, s = self.cosine[:, None], self.sine[:, None]
        return divided(np.concatenate([c * a - s * b, c * b + s * a]) * decay, ONE_SHARE + ONE_TURN)
