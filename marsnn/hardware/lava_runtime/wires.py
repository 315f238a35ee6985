"""What lies between populations: source, delay line, synapse to one neuron, accumulator, sink."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from window import LIMIT, divided


class Source(AbstractProcess):
    """Sends the graded input of token w at step 1 + w T, and nothing at the other steps."""

    def __init__(self, *, data, steps):
        super().__init__(data=data, steps=steps)
        self.s_out = OutPort(shape=data.shape[1:])


class SourceModel(PyLoihiProcessModel):
    s_out = None

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.steps, self.data = proc_params["steps"], proc_params["data"]

    def run_spk(self):
        token, step = divmod(self.time_step - 1, self.steps)
        live = step == 0 and token < len(self.data)
        self.s_out.send(self.data[token] if live else np.zeros_like(self.data[0]))


@implements(proc=Source, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySourceFixed(SourceModel):
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=16)


@implements(proc=Source, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PySourceFloat(SourceModel):
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)


class Wire(AbstractProcess):
    """One number per neuron in, one out; what happens between is said by `settings`."""

    def __init__(self, *, size, **settings):
        super().__init__(size=size, **settings)
        self.s_in = InPort(shape=(size,))
        self.a_out = OutPort(shape=(size,))
        self.n_sat = Var(shape=(1,), init=0)


class WireModel(PyLoihiProcessModel):
    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    n_sat: np.ndarray = LavaPyType(np.ndarray, np.int32)
    number = np.int64

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.own = proc_params._parameters
        self.nothing = np.zeros(proc_params["size"], dtype=self.number)
        self.prepare()

    def prepare(self):
        pass

    def send(self, array):
        self.a_out.send(array.astype(np.int32))

    def limited(self, wide):
        kept = np.minimum(np.maximum(wide, -LIMIT), LIMIT)
        self.n_sat += np.int32((kept != wide).sum())
        return kept


class FloatWire:
    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    number = float

    def send(self, array):
        self.a_out.send(array.astype(float))

    def limited(self, wide):
        return wide


class Delay(Wire):
    """Hands on what came `delay` steps ago."""


@implements(proc=Delay, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyDelayFixed(WireModel):
    def prepare(self):
        self.waiting = [self.nothing] * self.own["delay"]

    def run_spk(self):
        self.waiting.append(self.s_in.recv().astype(self.number))
        self.send(self.waiting.pop(0))


@implements(proc=Delay, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyDelayFloat(FloatWire, PyDelayFixed):
    pass


class Each(Wire):
    """A synapse from each sender to one neuron: times `factor`, over 2^right toward zero, one step later."""


@implements(proc=Each, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyEachFixed(WireModel):
    def prepare(self):
        self.held = self.nothing

    def run_spk(self):
        self.send(self.held)
        self.held = self.weighted(self.s_in.recv().astype(self.number))

    def weighted(self, spikes):
        return divided(spikes * self.own["factor"].astype(np.int64), self.own["right"])


@implements(proc=Each, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyEachFloat(FloatWire, PyEachFixed):
    def weighted(self, spikes):
        return spikes * self.own["factor"]


class Accumulator(Wire):
    """What a synapse brings, as the population behind it takes it.

    Where that takes a token's sum, it is summed here by the arrival's rule and handed on when the window
    opens. Where it takes each step's current, that is weighed here by the step's own power of two.

    Of a population's own spikes, what arrives every `dropped` steps was sent before it was cleared, and is
    dropped; 0 is never.
    """


@implements(proc=Accumulator, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyAccumulatorFixed(WireModel):
    def prepare(self):
        self.total = self.nothing
        self.arrival, self.steps = self.own["arrival"], self.own["steps"]

    def run_spk(self):
        since = self.time_step - self.own["open_at"]
        step = since % self.steps
        a = self.s_in.recv().astype(self.number) * (1 << self.own["shift"])
        if self.own["dropped"] and since % self.own["dropped"] == 0:
            a = self.nothing
        if self.arrival == "held":
            self.total = a if step == 0 else self.total
            self.send(self.total)
        elif self.arrival == "stream":
            self.send(a)
        elif self.arrival == "stream_down":
            self.send(a * (1 << (self.steps - 1 - step)))
        elif self.arrival == "stream_up":
            self.send(a * (1 << step))
        else:
            self.sum(a, step)

    def sum(self, a, step):
        if self.arrival == "horner":
            self.total = self.limited(2 * self.total + a)
        elif self.arrival == "power":  # sent one step ago, so at the sender's step (step - 1) mod T
            self.total = self.limited(self.total + a * (1 << ((step - 1) % self.steps)))
        else:
            self.total = self.limited(self.total + a)
        self.send(self.total if step == 0 else self.nothing)
        if step == 0:
            self.total = self.nothing


@implements(proc=Accumulator, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyAccumulatorFloat(FloatWire, PyAccumulatorFixed):
    pass


class Sink(AbstractProcess):
    """Keeps all that arrives, and saves it as one array [steps, N] at the last step.

    Reading a Var back from a running network goes element by element; a file does not.
    """

    def __init__(self, *, shape, total, path):
        super().__init__(shape=shape, total=total, path=path)
        self.a_in = InPort(shape=shape)


class SinkModel(PyLoihiProcessModel):
    a_in = None

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.total, self.path = proc_params["total"], proc_params["path"]
        self.seen = []

    def run_spk(self):
        self.seen.append(self.a_in.recv().copy())
        if self.time_step == self.total:
            np.save(self.path, np.stack(self.seen), allow_pickle=False)


@implements(proc=Sink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySinkFixed(SinkModel):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)


@implements(proc=Sink, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PySinkFloat(SinkModel):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
