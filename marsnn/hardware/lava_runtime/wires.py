"""Source, Line and Sink: what goes into the network, what is passed on, and what came over its wires."""

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


class Source(AbstractProcess):
    """Sends the graded input of token w at step 1 + w T, and nothing at the other steps."""

    def __init__(self, *, data, steps):
        super().__init__(data=data, steps=steps)
        self.data = Var(shape=data.shape, init=data)
        self.s_out = OutPort(shape=data.shape[1:])


class SourceModel(PyLoihiProcessModel):
    s_out = None
    data = None

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.steps = proc_params["steps"]

    def run_spk(self):
        token, step = divmod(self.time_step - 1, self.steps)
        live = step == 0 and token < len(self.data)
        self.s_out.send(self.data[token] if live else np.zeros_like(self.data[0]))


@implements(proc=Source, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySourceFixed(SourceModel):
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=8)
    data: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=8)


@implements(proc=Source, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PySourceFloat(SourceModel):
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    data: np.ndarray = LavaPyType(np.ndarray, float)


class Line(AbstractProcess):
    """Passes graded integers on as they are, one step later, as a synapse would."""

    def __init__(self, *, shape):
        super().__init__(shape=shape)
        self.s_in = InPort(shape=shape)
        self.a_out = OutPort(shape=shape)


class LineModel(PyLoihiProcessModel):
    s_in = a_out = None
    number = np.int32

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.held = np.zeros(proc_params["shape"], dtype=self.number)

    def run_spk(self):
        self.a_out.send(self.held)
        self.held = self.s_in.recv().copy()


@implements(proc=Line, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyLineFixed(LineModel):
    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)


@implements(proc=Line, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyLineFloat(LineModel):
    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    number = float


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
        self.total = proc_params["total"]
        self.path = proc_params["path"]
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
