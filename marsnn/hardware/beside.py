"""Another Python beside ours: found, tried, and run as a process of its own.

Lava, SANA-FE and Brian 2 can't share an environment with torch, so each is asked through a file. Needs
nothing but Python.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from marsnn.errors import MarsnnError

_WORKED: set[tuple[str, str]] = set()
"""Pythons and the probes that they ran, in this process."""


def find(
    setting: str,
    probe: str,
    candidates: Callable[[], Iterable[str]],
    what: str,
    missing: str,
    error: type[MarsnnError],
) -> str:
    """The Python that a setting names, or the first candidate; each is run before it is trusted.

    Args:
        setting: environment variable.   probe: Python code that exits with 0 in the right one.
        what: of the right one, after "is not".   missing: said where there is none.

    Raises:
        error: there is none, or the setting names another.
    """
    chosen = os.environ.get(setting)
    if chosen:
        if not works(chosen, probe):
            raise error(f"{setting}={chosen} is not {what}; correct or unset it")
        return chosen
    for python in dict.fromkeys(candidates()):
        if works(python, probe):
            return python
    raise error(missing)


def works(python: str, probe: str) -> bool:
    """Whether a Python is there and runs the probe without complaint; one that did isn't asked again."""
    if (python, probe) in _WORKED:
        return True
    try:
        done = subprocess.run([python, "-c", probe], capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode == 0:
        _WORKED.add((python, probe))
    return done.returncode == 0


def run(
    python: str,
    script: Path,
    arguments: Sequence[str | Path],
    written: Path,
    who: str,
    error: type[MarsnnError],
    fine: Sequence[int] = (0,),
) -> None:
    """Run a script under another Python, without what ours has in its environment.

    Args:
        written: the file that it leaves.   who: what ran, for the error.   fine: exit codes that are none.

    Raises:
        error: another exit code, or no file; with the last line that the script said, of errors if it named
            any.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [python, "-B", str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode not in fine or not written.is_file():
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise error(f"{who} failed (exit {done.returncode}): {(errors or lines)[-1]}")
