"""Neuron models under one contract: see `marsnn.neurons.base`, and `docs/equations.md` for the table."""

from marsnn.neurons.alif import ALIF, ALIFParams, ALIFState, alif_step
from marsnn.neurons.atmn import ATMN, ATMNParams, ATMNState, atmn_step
from marsnn.neurons.base import Neuron, get, names, register
from marsnn.neurons.cuba_lif import CubaLIF, CubaLIFParams, CubaLIFState, cuba_lif_step
from marsnn.neurons.integer_lif import (
    IntegerLIF,
    IntegerLIFParams,
    IntegerLIFState,
    integer_lif_step,
)
from marsnn.neurons.izhikevich import (
    Izhikevich,
    IzhikevichParams,
    IzhikevichState,
    izhikevich_step,
)
from marsnn.neurons.leaky_integrator import (
    LeakyIntegrator,
    LeakyIntegratorParams,
    LeakyIntegratorState,
    leaky_integrator_step,
)
from marsnn.neurons.lif import LIF, LIFParams, LIFState, lif_step
from marsnn.neurons.plif import PLIF
from marsnn.neurons.recurrent import Recurrent
from marsnn.neurons.ternary_lif import TernaryLIF
from marsnn.neurons.tmn import TMN

__all__ = [
    "ALIF",
    "ATMN",
    "LIF",
    "PLIF",
    "TMN",
    "ALIFParams",
    "ALIFState",
    "ATMNParams",
    "ATMNState",
    "CubaLIF",
    "CubaLIFParams",
    "CubaLIFState",
    "IntegerLIF",
    "IntegerLIFParams",
    "IntegerLIFState",
    "Izhikevich",
    "IzhikevichParams",
    "IzhikevichState",
    "LIFParams",
    "LIFState",
    "LeakyIntegrator",
    "LeakyIntegratorParams",
    "LeakyIntegratorState",
    "Neuron",
    "Recurrent",
    "TernaryLIF",
    "alif_step",
    "atmn_step",
    "cuba_lif_step",
    "get",
    "integer_lif_step",
    "izhikevich_step",
    "leaky_integrator_step",
    "lif_step",
    "names",
    "register",
]
