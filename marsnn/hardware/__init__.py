"""From a trained Network to a chip: `export` writes a bundle, `verify` compares it with Lava, `validate_energy`
with SANA-FE.

Names load on first use: `verify`, `validate_energy` and `load` need numpy alone, `export` needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marsnn.hardware.bundle import Bundle, load
    from marsnn.hardware.exporter import export
    from marsnn.hardware.lava import Verification, find_python, verify
    from marsnn.hardware.loihi import LoihiModel
    from marsnn.hardware.netx import NetxExport, write_netx
    from marsnn.hardware.netx_file import read_netx
    from marsnn.hardware.netx_lava import verify_netx
    from marsnn.hardware.netx_network import network_of
    from marsnn.hardware.nir import read_nir, to_nir, write_nir
    from marsnn.hardware.qat import QuantizedNetwork
    from marsnn.hardware.sanafe import EnergyValidation, validate_energy

_HOMES = {
    "Bundle": "bundle",
    "EnergyValidation": "sanafe",
    "LoihiModel": "loihi",
    "NetxExport": "netx",
    "QuantizedNetwork": "qat",
    "Verification": "lava",
    "export": "exporter",
    "find_python": "lava",
    "load": "bundle",
    "network_of": "netx_network",
    "read_netx": "netx_file",
    "read_nir": "nir",
    "to_nir": "nir",
    "validate_energy": "sanafe",
    "verify": "lava",
    "verify_netx": "netx_lava",
    "write_netx": "netx",
    "write_nir": "nir",
}

__all__ = [
    "Bundle",
    "EnergyValidation",
    "LoihiModel",
    "NetxExport",
    "QuantizedNetwork",
    "Verification",
    "export",
    "find_python",
    "load",
    "network_of",
    "read_netx",
    "read_nir",
    "to_nir",
    "validate_energy",
    "verify",
    "verify_netx",
    "write_netx",
    "write_nir",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"marsnn.hardware.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'marsnn.hardware' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
