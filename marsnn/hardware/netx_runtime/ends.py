"""Source and Sink: what goes into a netx network, and what came over its wires."""

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
    """Sends row w of the data at the steps 1 + w T to (w + 1) T, and nothing after the last row."""

    def __init__(self, *, data, steps):
        super().__init__(data=data, steps=steps)
        self.data = Var(shape=data.shape, init=data)
        self.s_out = OutPort(shape=data.shape[1:])


@implements(proc=Source, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySource(PyLoihiProcessModel):
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=8)
    data: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=8)

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.steps = proc_params["steps"]

    def run_spk(self):
        row = (self.time_step - 1) // self.steps
        self.s_out.send(self.data[row] if row < len(self.data) else np.zeros_like(self.data[0]))


class Sink(AbstractProcess):
    """Keeps all that arrives, and saves it as one array [steps, *N] at the last step."""

    def __init__(self, *, shape, total, path):
        super().__init__(shape=shape, total=total, path=path)
        self.a_in = InPort(shape=shape)


@implements(proc=Sink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySink(PyLoihiProcessModel):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.total = proc_params["total"]
        self.path = proc_params["path"]
        self.seen = []

    def run_spk(self):
        self.seen.append(self.a_in.recv().astype(np.int8))
        if self.time_step == self.total:
            np.save(self.path, np.stack(self.seen), allow_pickle=False)
