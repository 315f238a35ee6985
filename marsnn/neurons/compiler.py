"""The kernels of `kernels/` for the CPU: which functions they have, and how they are called.

A kernel is one neuron in one dtype with one surrogate: its header, the loop of unroll.h and a few macros.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from marsnn import native
from marsnn.native import BuildError

SOURCES = Path(__file__).parent / "kernels"

_INT, _LONG, _ARRAY, _TENSOR = ctypes.c_int, ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p
_PROBLEM: list[Any] = [_LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _INT, _ARRAY, _ARRAY, _INT]
_INPUTS: list[Any] = [_TENSOR, _ARRAY, _ARRAY]
_FORWARD = [*_PROBLEM, *_INPUTS, _TENSOR, _TENSOR, _ARRAY]
_BACKWARD = [*_PROBLEM, *_INPUTS, _TENSOR, _LONG, _TENSOR, _ARRAY, _TENSOR, _ARRAY, _ARRAY]
"""Arguments of unroll.h's functions; arrays of numbers and pointers are packed bytes."""


@functools.cache
def library(header: str, macros: tuple[str, ...]) -> ctypes.CDLL:
    """The loaded kernel of `kernels/<header>.h` under these macros: `forward` and `backward` of unroll.h.

    Raises:
        BuildError: with the compiler's first message.
    """
    try:
        loaded = ctypes.CDLL(str(native.built(SOURCES, header, native.source(header, macros, "unroll.h"))))
    except OSError as error:
        raise BuildError(f"can't load the kernel {header}: {error}") from error
    loaded.forward.argtypes, loaded.backward.argtypes = _FORWARD, _BACKWARD
    loaded.backward.restype = None
    return loaded
