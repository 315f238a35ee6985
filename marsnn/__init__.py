"""marsnn: ternary multi-step spiking networks, simulated, counted and exported to Lava bit for bit.

The names below load on first use, so that `import marsnn` is quick and sets up nothing.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("marsnn")
except PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from marsnn import energy, hardware, neurons, plots, ssm, surrogate
    from marsnn.ablation import ablate
    from marsnn.energy.report import EnergyReport
    from marsnn.errors import MarsnnError
    from marsnn.hardware import export, verify
    from marsnn.network import Network
    from marsnn.neurons import ATMN, LIF, LeakyIntegrator, Neuron
    from marsnn.record import Recording
    from marsnn.simulator import simulate
    from marsnn.ssm import S4D, SSD
    from marsnn.training import TrainConfig, train

_HOMES = {
    "ATMN": "marsnn.neurons",
    "EnergyReport": "marsnn.energy.report",
    "LIF": "marsnn.neurons",
    "LeakyIntegrator": "marsnn.neurons",
    "MarsnnError": "marsnn.errors",
    "Network": "marsnn.network",
    "Neuron": "marsnn.neurons",
    "Recording": "marsnn.record",
    "S4D": "marsnn.ssm",
    "SSD": "marsnn.ssm",
    "TrainConfig": "marsnn.training",
    "ablate": "marsnn.ablation",
    "export": "marsnn.hardware",
    "simulate": "marsnn.simulator",
    "train": "marsnn.training",
    "verify": "marsnn.hardware",
}
_MODULES = ("energy", "hardware", "neurons", "plots", "ssm", "surrogate")

__all__ = [
    "ATMN",
    "LIF",
    "S4D",
    "SSD",
    "EnergyReport",
    "LeakyIntegrator",
    "MarsnnError",
    "Network",
    "Neuron",
    "Recording",
    "TrainConfig",
    "ablate",
    "energy",
    "export",
    "hardware",
    "neurons",
    "plots",
    "simulate",
    "ssm",
    "surrogate",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"marsnn.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'marsnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
