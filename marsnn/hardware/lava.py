"""Lava's simulator as a second opinion: find its Python, run a bundle there, compare every spike.

Lava needs Python 3.10 and its own packages, so it runs beside marsnn as another process. Needs numpy alone.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import InputError, LavaError
from marsnn.files import PathLike, read_npz
from marsnn.hardware import beside, integer
from marsnn.hardware.bundle import RUNTIME, Bundle, load

SETTING = "MARSNN_LAVA_PYTHON"
MISSING = (
    f"Lava's environment was not found: run  make lava  (needs any Python 3.10), or set {SETTING} to a "
    "Python 3.10 that imports lava (pip install lava-nc)"
)
PROBE = "import sys, lava.magma.core.process.process; sys.exit(sys.version_info[:2] != (3, 10))"


def candidates() -> Iterator[str]:
    """Pythons that may have Lava, the most explicit first."""
    # Never the current folder: it may be a bundle from elsewhere, and nothing in one is executed.
    for folder in (Path(sys.prefix).parent, Path(__file__).resolve().parents[2]):
        yield str(folder / ".venv-lava" / "bin" / "python")
    found = shutil.which("python3.10")
    if found:
        yield found
    for version in sorted((Path.home() / ".pyenv" / "versions").glob("3.10*")):
        yield str(version / "bin" / "python")


def find_python() -> str:
    """A Python 3.10 that imports Lava; each candidate is run before it is trusted.

    Raises:
        LavaError: none works; the message says how to get one.
    """
    what = "a Python 3.10 that imports lava"
    return beside.find(SETTING, PROBE, candidates, what, MISSING, LavaError)


@dataclass(frozen=True)
class Verification:
    """The result of comparing a bundle's golden run with a simulator's, slot by slot.

    Attributes:
        mismatches: slots, values and output sums that differ, and counts of saturation that differ.
        slots: spike slots compared: tokens x T x neurons, summed over the layers.
        values: graded values between stages compared: sums, products, quotients, states' outputs.
        sums: output sums compared.
        positive, negative: golden spikes of each sign.
        first: where the first mismatch is, or None.
        simulator: "lava" or "integer".
        seconds: how long the simulator took.
    """

    mismatches: int
    slots: int
    sums: int
    positive: int
    negative: int
    first: str | None
    simulator: Literal["lava", "integer"]
    seconds: float
    values: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything is the same."""
        return self.mismatches == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with `ok`."""
        return {"ok": self.ok, **asdict(self)}

    def text(self) -> str:
        """One line for people: `0 mismatches of N spike slots ...`."""
        label = {
            "lava": "Lava's simulator",
            "integer": "the integer model against itself; Lava was not asked",
        }[self.simulator]
        told = [f"{self.slots} spike slots ({self.positive} spikes +1, {self.negative} spikes -1)"]
        told += [f"{self.values} graded values"] if self.values else []
        told += [f"{self.sums} output sums"] if self.sums else []
        told = told[1:] if not self.slots and len(told) > 1 else told
        listed = told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
        line = f"{self.mismatches} mismatches of {listed}; {label}, {self.seconds:.1f} s"
        return line if self.first is None else f"{line}\nfirst mismatch: {self.first}"


def verify(path: PathLike, simulator: Literal["lava", "integer"] = "lava") -> Verification:
    """Run a bundle again and compare every spike of every layer, step and token with the golden ones.

    The runtime installed with marsnn is used; the copy in the bundle is never executed.

    Args:
        path: the bundle's folder.
        simulator: "lava" runs Lava's CPU simulator, "integer" only repeats the integer model.

    Raises:
        BundleError: the bundle is damaged.   LavaError: Lava is missing or failed.
    """
    if simulator not in ("lava", "integer"):
        raise InputError(f'simulator must be "lava" or "integer", got {simulator!r}')
    bundle = load(path)
    started = time.perf_counter()
    if simulator == "lava":
        sent, saturations = run_in_lava(bundle)
    else:
        result = integer.run(bundle.graph, bundle.inputs)
        sent, saturations = {**result.spikes, **result.values}, result.saturations
    seconds = time.perf_counter() - started
    return compare(bundle, sent, saturations, simulator, seconds)


def run_in_lava(bundle: Bundle) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """What every stage sent in Lava's simulator, and its saturations, by stage name."""
    python = find_python()
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "sent.npz"
        beside.run(
            python, RUNTIME / "run.py", [bundle.path.resolve(), "--save", saved], saved,
            f"Lava's run of {bundle.path}", LavaError, fine=(0, 1),
        )  # fmt: skip
        arrays = read_npz(saved)
    names = [stage.name for stage in bundle.graph.stages]
    counted = arrays["saturations"]
    return (
        {name: arrays[f"sent/{name}"] for name in names},
        {name: int(value) for name, value in zip(names, counted, strict=True)},
    )


def compare(
    bundle: Bundle,
    sent: dict[str, NDArray[Any]],
    saturations: dict[str, int],
    simulator: Literal["lava", "integer"],
    seconds: float,
) -> Verification:
    """Compare a run, stage by stage, with the bundle's golden one."""
    run = bundle.golden
    # in the order of the stages, so that the first mismatch is the one nearest to the input
    golden: dict[str, NDArray[Any]] = {stage.name: run.of(stage.name) for stage in bundle.graph.stages}
    mismatches, first = 0, None
    for name, expected in golden.items():
        differs = sent[name] != expected
        wrong = int(np.count_nonzero(differs)) if np.shape(differs) == expected.shape else expected.size
        if wrong and first is None:
            first = _first(name, expected, sent[name], differs)
        mismatches += wrong
    for name, expected_count in run.saturations.items():
        if saturations[name] != expected_count:
            mismatches += 1
            first = first or f"{name}: {saturations[name]} saturations, golden {expected_count}"
    spikes = run.spikes.values()
    sizes = {name: array.size for name, array in run.values.items()}
    sums = sizes.pop(bundle.graph.last.name, 0)
    return Verification(
        mismatches=mismatches,
        slots=sum(array.size for array in spikes),
        sums=sums,
        positive=sum(int(np.count_nonzero(array > 0)) for array in spikes),
        negative=sum(int(np.count_nonzero(array < 0)) for array in spikes),
        first=first,
        simulator=simulator,
        seconds=seconds,
        values=sum(sizes.values()),
    )


def _first(name: str, expected: NDArray[Any], sent: NDArray[Any], differs: NDArray[np.bool_]) -> str:
    if np.shape(differs) != expected.shape:
        return f"{name}: sent {list(np.shape(sent))}, golden {list(expected.shape)}"
    place = tuple(int(index) for index in np.argwhere(differs)[0])
    axes = ("token", "step", "neuron") if len(place) == 3 else ("token", "neuron")
    where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=True))
    return f"{name}: {where}: sent {int(sent[place])}, golden {int(expected[place])}"
