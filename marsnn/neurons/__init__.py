"""Neuron models under one contract: see `marsnn.neurons.base`, and `docs/equations.md` for the table."""

from marsnn.neurons.atmn import ATMN, ATMNParams, ATMNState, atmn_step
from marsnn.neurons.base import Neuron, get, names, register
from marsnn.neurons.leaky_integrator import (
    LeakyIntegrator,
    LeakyIntegratorState,
    leaky_integrator_step,
)
from marsnn.neurons.lif import LIF, LIFParams, LIFState, lif_step

__all__ = [
    "ATMN",
    "LIF",
    "ATMNParams",
    "ATMNState",
    "LIFParams",
    "LIFState",
    "LeakyIntegrator",
    "LeakyIntegratorState",
    "Neuron",
    "atmn_step",
    "get",
    "leaky_integrator_step",
    "lif_step",
    "names",
    "register",
]
