"""Builds the C++ kernels of `kernels/` on first use, and keeps them in the user's cache.

A kernel is one neuron in one dtype with one surrogate: a translation unit of two includes and a few macros,
which a plain C++ compiler turns into a shared library in about a second. It is loaded by ctypes; nothing of
torch is compiled in. Without a compiler there are no kernels, and neurons run step by step.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marsnn.errors import MarsnnError

SOURCES = Path(__file__).parent / "kernels"
PATIENCE_S = 2.0
"""A build that takes longer says what is being waited for."""

_EXACT = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
_TRIES = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
"""Flags by preference: not every compiler has OpenMP, or names its own machine."""


_INT, _LONG, _ARRAY, _TENSOR = ctypes.c_int, ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p
_PROBLEM: list[Any] = [_LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _INT, _ARRAY, _ARRAY, _INT]
_INPUTS: list[Any] = [_TENSOR, _ARRAY, _ARRAY]
_FORWARD = [*_PROBLEM, *_INPUTS, _TENSOR, _TENSOR, _ARRAY]
_BACKWARD = [*_PROBLEM, *_INPUTS, _TENSOR, _LONG, _TENSOR, _ARRAY, _TENSOR, _ARRAY, _ARRAY]
"""Arguments of unroll.h's functions; arrays of numbers and pointers are packed bytes."""


class BuildError(MarsnnError):
    """No compiler, or it could not build a kernel."""


@functools.cache
def compiler() -> str | None:
    """The C++ compiler: $CXX, c++, g++ or clang++; None where there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


@functools.cache
def library(header: str, macros: tuple[str, ...]) -> ctypes.CDLL:
    """The loaded kernel of `kernels/<header>.h` under these macros: `forward` and `backward` of unroll.h.

    Raises:
        BuildError: with the compiler's first message.
    """
    try:
        loaded = ctypes.CDLL(str(_built(header, macros)))
    except OSError as error:
        raise BuildError(f"can't load the kernel {header}: {error}") from error
    loaded.forward.argtypes, loaded.backward.argtypes = _FORWARD, _BACKWARD
    loaded.backward.restype = None
    return loaded


def source(header: str, macros: tuple[str, ...], loop: str = "unroll.h") -> str:
    """The translation unit of one kernel; its includes lie in `SOURCES`."""
    lines = [f"#define {macro.replace('=', ' ', 1)}" for macro in macros]
    return "\n".join([*lines, f'#include "{header}.h"', f'#include "{loop}"', ""])


def _built(header: str, macros: tuple[str, ...]) -> Path:
    found = compiler()
    if found is None:
        raise BuildError("no C++ compiler found (CXX, c++, g++, clang++); install one, e.g. g++")
    text = source(header, macros)
    machine = (found, str(os.stat(found).st_mtime_ns), platform.platform(), _processor())
    return kept(header, fingerprint(text, *machine) + ".so", lambda made: _build(found, header, text, made))


def kept(header: str, name: str, build: Callable[[Path], None]) -> Path:
    """A kernel's file in the cache; where there is none yet, `build` writes it."""
    path = cache_folder() / f"{header}-{name}"
    if not path.exists():
        waiting = threading.Timer(PATIENCE_S, _say_waiting, (header,))
        waiting.start()
        try:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / "made"
                build(made)
                made.replace(path)  # whole or not at all, whoever else builds the same
        finally:
            waiting.cancel()
    return path


def _build(found: str, header: str, text: str, made: Path) -> None:
    unit = made.with_name("kernel.cpp")
    unit.write_text(text)
    complaint = ""
    for flags in _TRIES:
        command = [found, *_EXACT, *flags, f"-I{SOURCES}", str(unit), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        complaint = complaint or next(iter(done.stderr.splitlines()), "no message")
    raise BuildError(f"{found} could not build the kernel {header}: {complaint}")


def _say_waiting(header: str) -> None:
    print(f"marsnn: compiling the {header} kernel, once for this machine", file=sys.stderr, flush=True)


def fingerprint(*parts: str) -> str:
    """What a built kernel depends on: the sources, and what else its builder names."""
    parts += tuple(path.read_text() for path in sorted(SOURCES.glob("*.h")))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


@functools.cache
def cache_folder() -> Path:
    """$MARSNN_CACHE, else marsnn/kernels in the user's cache folder; a temporary one where that can't be.

    Kernels are loaded from it, so it must belong to the user, and no one else may write there.
    """
    chosen = os.environ.get("MARSNN_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "kernels" if chosen else base / "marsnn" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        private = not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if private and status.st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    except (OSError, AttributeError):  # no home, read-only, or a system without user ids
        pass
    return Path(tempfile.mkdtemp(prefix="marsnn-kernels-"))
