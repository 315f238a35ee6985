"""Every exception that marsnn raises on purpose.

    MarsnnError
    |-- InputError (ValueError)         a setting, a tensor or an argument is wrong
    |   |-- ShapeError                  ... its shape
    |   |-- NonFiniteError              ... it holds NaN or infinity
    |   `-- UnknownLayerError           ... a layer that nobody has taught marsnn
    |-- ExportError (ValueError)        a network can't be mapped exactly; lists every refusal
    |-- FileError (OSError)             a file can't be written, read or trusted
    |   `-- BundleError                 ... and that file belongs to a hardware bundle
    |-- DivergedError (ArithmeticError)  a training met NaN or infinity
    |-- MissingDependencyError (ImportError)   an optional package is not installed
    |-- MeterError (RuntimeError)       an energy meter that is not there, or failed while it measured
    |-- LavaError (RuntimeError)        Lava's environment is missing or its run failed
    `-- SanafeError (RuntimeError)      the same of SANA-FE

Messages are one line: where, what arrived, what was expected, what to do. The command line prints
that line and exits with 2; no error class changes this.
"""

from __future__ import annotations

from collections.abc import Sequence


class MarsnnError(Exception):
    """Base of all errors raised on purpose; catch this to catch them all."""


class InputError(MarsnnError, ValueError):
    """A setting, a tensor or an argument that can't be used."""


class ShapeError(InputError):
    """A tensor whose shape does not fit the layer that received it."""


class NonFiniteError(InputError):
    """A tensor that holds NaN or infinity."""


class UnknownLayerError(InputError):
    """A layer whose meaning in a spiking network is not known."""


class ExportError(MarsnnError, ValueError):
    """A network that can't be mapped exactly.

    Attributes:
        refusals: every reason, one per entry, each naming its layer.
    """

    def __init__(self, refusals: Sequence[str]) -> None:
        self.refusals = list(refusals)
        count = len(self.refusals)
        head = "1 part of this network" if count == 1 else f"{count} parts of this network"
        super().__init__(f"{head} can't be exported exactly: " + "; ".join(self.refusals))


class FileError(MarsnnError, OSError):
    """A file that can't be written, read or trusted."""


class BundleError(FileError):
    """A hardware bundle that is damaged, edited or unsafe."""


class DivergedError(MarsnnError, ArithmeticError):
    """A training whose loss or gradient left the finite numbers."""


class MissingDependencyError(MarsnnError, ImportError):
    """An optional package that this call needs."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'{package} is not installed: run  pip install "marsnn[{extra}]"')


class MeterError(MarsnnError, RuntimeError):
    """An energy meter that is not there, can't be read, or failed while it measured."""


class LavaError(MarsnnError, RuntimeError):
    """Lava's own environment is missing, or its simulator did not finish."""


class SanafeError(MarsnnError, RuntimeError):
    """SANA-FE's own environment is missing, or its simulator did not finish."""
