"""From a trained Network to a chip: `export` writes a bundle, `verify` compares it with Lava.

`validate_energy` compares its counts with SANA-FE. Names load on first use: all but `export`, which needs
torch, need numpy alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marsnn.hardware.bundle import Bundle, load
    from marsnn.hardware.exporter import export
    from marsnn.hardware.lava import Verification, find_python, verify
    from marsnn.hardware.sanafe import EnergyValidation, validate_energy

_HOMES = {
    "Bundle": "bundle",
    "EnergyValidation": "sanafe",
    "Verification": "lava",
    "export": "exporter",
    "find_python": "lava",
    "load": "bundle",
    "validate_energy": "sanafe",
    "verify": "lava",
}

__all__ = [
    "Bundle",
    "EnergyValidation",
    "Verification",
    "export",
    "find_python",
    "load",
    "validate_energy",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"marsnn.hardware.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'marsnn.hardware' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
