"""Builds C++ kernels on first use, and keeps them in the user's cache.

A kernel is one translation unit, a few macros and an include, which a plain C++ compiler turns into a shared
library in a second or two. It is loaded by ctypes; nothing of torch is compiled in. Without a compiler there
are no kernels, and what they would do runs in torch.
"""

from __future__ import annotations

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
import warnings
from collections.abc import Callable
from pathlib import Path

from marsnn.errors import MarsnnError

PATIENCE_S = 2.0
"""A build that takes longer says what is being waited for."""

EXACT = "-ffp-contract=off"
"""Each operation rounds by itself, as torch's eager operators do."""
CONTRACTED = "-ffp-contract=fast"
"""A product and a sum may round once."""

_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-shared")
_TRIES = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
"""Flags by preference: not every compiler has OpenMP, or names its own machine."""


class BuildError(MarsnnError):
    """No compiler, or it could not build a kernel."""


_SAID: set[str] = set()


def say_once(message: str) -> None:
    """Warn, the first time in a process."""
    if message not in _SAID:
        _SAID.add(message)
        warnings.warn(f"marsnn: {message}", stacklevel=2)


@functools.cache
def compiler() -> str | None:
    """The C++ compiler: $CXX, c++, g++ or clang++; None where there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def source(header: str, macros: tuple[str, ...], loop: str | None = None) -> str:
    """The translation unit of one kernel: macros, and one or two headers."""
    lines = [f"#define {macro.replace('=', ' ', 1)}" for macro in macros]
    includes = [f'#include "{header}.h"', *([f'#include "{loop}"'] if loop else [])]
    return "\n".join([*lines, *includes, ""])


def built(sources: Path, header: str, text: str, rounding: str = EXACT, *more: Path) -> Path:
    """The shared library of a translation unit whose includes lie in `sources`, or in the folders after it.

    Raises:
        BuildError: with the compiler's first message.
    """
    found = compiler()
    if found is None:
        raise BuildError("no C++ compiler found (CXX, c++, g++, clang++); install one, e.g. g++")
    changed = str(os.stat(found).st_mtime_ns)
    machine = (found, changed, platform.platform(), _processor(), *_FLAGS, rounding)
    folders = (sources, *more)
    others = [path.read_text() for folder in more for path in sorted(folder.glob("*.h"))]
    name = fingerprint(sources, text, *machine, *others) + ".so"
    flags = [*_FLAGS, rounding, *(f"-I{folder}" for folder in folders)]
    return kept(header, name, lambda made: _build(found, flags, header, text, made))


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


def _build(found: str, flags: list[str], header: str, text: str, made: Path) -> None:
    unit = made.with_name("kernel.cpp")
    unit.write_text(text)
    complaint = ""
    for optional in _TRIES:
        command = [found, *flags, *optional, str(unit), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        complaint = complaint or next(iter(done.stderr.splitlines()), "no message")
    raise BuildError(f"{found} could not build the kernel {header}: {complaint}")


def _say_waiting(header: str) -> None:
    print(f"marsnn: compiling the {header} kernel, once for this machine", file=sys.stderr, flush=True)


def fingerprint(sources: Path, *parts: str) -> str:
    """What a built kernel depends on: the headers in `sources`, and what else its builder names."""
    parts += tuple(path.read_text() for path in sorted(sources.glob("*.h")))
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
