"""The threads that share the kernels for one token, built from `kernels/pool.h`."""

from __future__ import annotations

import ctypes
import functools

from marsnn.ssm import fused


@functools.cache
def runner() -> int:
    """Where the function is that shares a kernel's pieces out, for kernels that take one.

    Raises:
        BuildError: it can't be built or loaded.
    """
    library = fused.load("pool", "float32", [])
    address = ctypes.cast(library.forward, ctypes.c_void_p).value
    assert address is not None
    return address
