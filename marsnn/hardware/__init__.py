"""From a trained Network to a chip: `export` writes a bundle, `verify` compares it with Lava.

Names load on first use: `verify` and `load` need numpy alone, `export` needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marsnn.hardware.bundle import Bundle, load
    from marsnn.hardware.exporter import export
    from marsnn.hardware.lava import Verification, find_python, verify
    from marsnn.hardware.qat import QuantizedNetwork

_HOMES = {
    "Bundle": "bundle",
    "QuantizedNetwork": "qat",
    "Verification": "lava",
    "export": "exporter",
    "find_python": "lava",
    "load": "bundle",
    "verify": "lava",
}

__all__ = ["Bundle", "QuantizedNetwork", "Verification", "export", "find_python", "load", "verify"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"marsnn.hardware.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'marsnn.hardware' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
