"""SANA-FE's own process: find its Python, run a job there.

SANA-FE is GPL-3: it is never imported by marsnn. It is optional and stands in an environment of its own, with
Brian 2, which the tests ask. Needs numpy alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from marsnn.errors import SanafeError
from marsnn.files import json_text, npz_bytes
from marsnn.hardware import beside

SETTING = "MARSNN_SANAFE_PYTHON"
MISSING = (
    f"SANA-FE's environment was not found: run  make sanafe , or set {SETTING} to a Python that imports "
    "sanafe and numpy (pip install sanafe numpy)"
)
PROBE = "import numpy, sanafe"
RUNTIME = Path(__file__).parent / "sanafe_runtime" / "run.py"


def candidates() -> Iterator[str]:
    """Pythons that `make sanafe` may have made."""
    # Never the current folder: it may be a bundle from elsewhere, and nothing in one is executed.
    for folder in (Path(sys.prefix).parent, Path(__file__).resolve().parents[2]):
        yield str(folder / ".venv-sanafe" / "bin" / "python")


def find_sanafe() -> str:
    """A Python that imports sanafe; each candidate is run before it is trusted.

    Raises:
        SanafeError: none works; the message says how to get one.
    """
    what = "a Python that imports sanafe and numpy"
    return beside.find(SETTING, PROBE, candidates, what, MISSING, SanafeError)


def ask(job: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What SANA-FE counted of a job, and its energy in pJ: see the head of `sanafe_runtime/run.py`.

    Raises:
        SanafeError: SANA-FE is missing, or its run failed.
    """
    python = find_sanafe()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.json").write_text(json_text(job), encoding="utf-8")
        Path(folder, "job.npz").write_bytes(npz_bytes(arrays))
        told = Path(folder, "told.json")
        beside.run(python, RUNTIME, [folder], told, "SANA-FE's run", SanafeError)
        return dict(json.loads(told.read_text(encoding="utf-8")))
