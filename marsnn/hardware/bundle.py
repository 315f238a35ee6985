"""The bundle: a folder with everything that runs a network on a chip's simulator, and the proof of it.

    manifest.json      what the stages are, what their numbers are worth, the SHA-256 of every other file
    tensors.npz        integers: weights, biases, levels, a gate's numbers and table
    golden.npz         integers: the inputs, and the integer model's spikes, products and outputs for them
    certificate.json   why no accumulator can overflow
    drift.json         how far the integers are from the trained floats (this is not parity)
    counts.json        operations per token     energy.json  what they cost by the named tables
    placement.json     cores that each layer needs
    runtime_lava/      the program that runs it in Lava without marsnn: `python runtime_lava/run.py`

A bundle from elsewhere is untrusted: reading it executes nothing of it, and what is damaged, edited or
points outside the folder is refused by name. Needs numpy alone.
"""

from __future__ import annotations

import hashlib
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import BundleError, FileError
from marsnn.files import (
    PathLike,
    json_text,
    new_folder,
    npz_bytes,
    read_json,
    read_npz,
    write_bytes,
    write_text,
)
from marsnn.hardware.certificate import certify
from marsnn.hardware.integer import (
    INPUT_MAX,
    LARGEST_SHIFT,
    LARGEST_STEPS,
    LARGEST_TABLE,
    MULTIPLIER_MAX,
    SHARE_MAX,
    STATE_MAX,
    STEP_ARRIVALS,
    SUM_ARRIVALS,
    UNITY,
    WEIGHT_MAX,
    Gate,
    IntegerGraph,
    IntegerRun,
    Stage,
)

FORMAT = "marsnn.bundle/1"
RUNTIME = Path(__file__).parent / "lava_runtime"
REQUIRED = ("tensors.npz", "golden.npz", "certificate.json", "runtime_lava/run.py")
LARGEST_ARRAYS = 4 * 2**30  # bytes, unpacked

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_ARRAYS = ("weight", "bias", "fire", "amplitude")
_GATE_ARRAYS = {
    "multiplier": MULTIPLIER_MAX,
    "argument_shift": LARGEST_SHIFT,
    "product_shift": LARGEST_SHIFT,
    "level": STATE_MAX,
    "table": SHARE_MAX,
}
"""A gate's arrays -> their largest value; the least is 0."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are whole and consistent in form."""

    path: Path
    manifest: dict[str, Any]
    graph: IntegerGraph
    inputs: NDArray[np.int64]  # [W, D]
    golden: IntegerRun

    @property
    def steps(self) -> int:
        """T."""
        return self.graph.steps

    @property
    def input_scale(self) -> float | NDArray[np.float64]:
        """Real value of an input of 1; [D] where each feature has its own."""
        scale = self.manifest["input"]["scale"]
        return np.asarray(scale, dtype=np.float64) if isinstance(scale, list) else float(scale)

    def report(self, name: str) -> Any:
        """One of the JSON files by its stem: "certificate", "drift", "counts", "energy", "placement"."""
        return read_json(self.path / f"{name}.json")

    def outputs(self) -> NDArray[np.float64]:
        """The readout's golden sums in real numbers, [W, C]."""
        if not self.golden.outputs:
            raise BundleError(f"{self.path}: ends with neurons, not with a readout")
        ((name, sums),) = self.golden.outputs.items()
        stage = next(row for row in self.manifest["stages"] if row["name"] == name)
        return sums * np.asarray(stage["unit"])


# ---- writing -----------------------------------------------------------------------------------------


def write(
    path: PathLike,
    graph: IntegerGraph,
    inputs: NDArray[np.int64],
    golden: IntegerRun,
    header: Mapping[str, Any],
    units: Mapping[str, NDArray[np.float64]],
    reports: Mapping[str, Any],
) -> Bundle:
    """Write a bundle whole, or not at all.

    Args:
        path: the folder; an older bundle there is replaced when the new one is complete.
        header: what else the manifest says: version, mode, input.
        units: stage -> real value of a state of 1.
        reports: stem -> JSON value of each further file.
    """
    target = Path(path)
    if target.is_dir() and not (target / "manifest.json").is_file() and any(target.iterdir()):
        raise FileError(f"{target}: is a folder with other things in it; choose another one")
    with new_folder(path) as folder:
        write_bytes(folder / "tensors.npz", npz_bytes(tensors_of(graph)))
        run: dict[str, NDArray[Any]] = {f"spikes/{name}": spikes for name, spikes in golden.spikes.items()}
        run |= {f"products/{name}": products for name, products in golden.products.items()}
        run |= {f"outputs/{name}": sums for name, sums in golden.outputs.items()}
        counted = np.array([golden.saturations[stage.name] for stage in graph.stages], dtype=np.int64)
        run |= {"inputs": inputs.astype(np.int8), "saturations": counted}
        write_bytes(folder / "golden.npz", npz_bytes(run))
        for stem, value in reports.items():
            write_text(folder / f"{stem}.json", json_text(value))
        for source in sorted(RUNTIME.glob("*.py")):
            write_bytes(folder / "runtime_lava" / source.name, source.read_bytes())
        manifest = {
            "format": FORMAT,
            **header,
            "steps": graph.steps,
            "tokens": len(inputs),
            "tokens_per_sample": graph.tokens_per_sample,
            "stages": [_row(stage, units[stage.name]) for stage in graph.stages],
            "files": {
                file.relative_to(folder).as_posix(): {
                    "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                    "bytes": file.stat().st_size,
                }
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            },
        }
        write_text(folder / "manifest.json", json_text(manifest))
        bundle = load(folder)  # what can't be read back must not replace what can
    return replace(bundle, path=target)


def tensors_of(graph: IntegerGraph) -> dict[str, NDArray[Any]]:
    """The arrays of every stage as they are written, by "stage/array"."""
    tensors: dict[str, NDArray[Any]] = {}
    for stage in graph.stages:
        tensors |= {f"{stage.name}/{key}": _narrow(getattr(stage, key)) for key in _ARRAYS}
        if stage.gate is not None:
            tensors |= {f"{stage.name}/{key}": _narrow(getattr(stage.gate, key)) for key in _GATE_ARRAYS}
    return tensors


def _row(stage: Stage, unit: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "name": stage.name,
        "synapse": stage.synapse,
        "kind": stage.kind,
        "arrival": stage.arrival,
        "inputs": stage.inputs,
        "neurons": stage.neurons,
        "shift": stage.shift,
        "decay": stage.decay,
        "reset": stage.reset,
        "carry": stage.carry,
        "unit": [float(value) for value in unit],
    }


def _narrow(array: NDArray[np.int64]) -> NDArray[Any]:
    return array.astype(np.int8 if array.ndim == 2 else np.int32)


# ---- reading -----------------------------------------------------------------------------------------


def load(path: PathLike) -> Bundle:
    """Read a bundle, trusting nothing.

    Raises:
        BundleError: naming the file or the entry that is missing, damaged, edited, too large or unsafe.
    """
    folder = Path(path)
    if not (folder / "manifest.json").is_file():
        raise BundleError(f"{folder}: not a bundle (it has no manifest.json)")
    try:
        manifest = read_json(folder / "manifest.json")
    except FileError as error:
        raise BundleError(str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        shown = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"{folder}/manifest.json: format {shown!r}, this marsnn reads {FORMAT!r}")
    try:
        _check_files(folder, manifest.get("files"))
        tensors = _arrays(folder / "tensors.npz")
        golden = _arrays(folder / "golden.npz")
        graph = _graph(folder, manifest, tensors)
        inputs, run = _golden(folder, manifest, graph, golden)
        _input_scale(f"{folder}/manifest.json", manifest["input"])
        bundle = Bundle(folder, manifest, graph, inputs, run)
        if not isinstance(bundle.report("certificate"), dict):
            raise BundleError(f"{folder}/certificate.json: is no certificate; export it again")
    except BundleError:
        raise
    except FileError as error:
        raise BundleError(str(error)) from error
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, OSError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{folder}/manifest.json: lacks or misuses {what}; export it again") from error
    return bundle


def _check_files(folder: Path, files: Any) -> None:
    if not isinstance(files, dict):
        raise BundleError(f"{folder}/manifest.json: lists no files; export it again")
    for required in REQUIRED:
        if required not in files:
            raise BundleError(f"{folder}/manifest.json: does not list {required}; export it again")
    root = folder.resolve()
    present = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_symlink() or not file.is_dir()
    }
    unlisted = sorted(present - {"manifest.json", *files})
    if unlisted:
        raise BundleError(f"{folder}: holds {unlisted[0]!r}, which its manifest does not list; remove it")
    for name, entry in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or not name:
            raise BundleError(f"{folder}/manifest.json: {name!r} points outside the bundle; refused")
        file = folder / name
        if not file.resolve().is_relative_to(root):
            raise BundleError(f"{file}: a link that points outside the bundle; refused")
        if not file.is_file():
            raise BundleError(f"{file}: is missing; export it again")
        try:
            size, digest = file.stat().st_size, _sha256(file)
        except OSError as error:
            raise BundleError(f"{file}: can't read it: {(error.strerror or str(error)).lower()}") from error
        if not isinstance(entry, dict) or digest != entry.get("sha256"):
            truncated = (
                isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and size < entry["bytes"]
            )
            what = "is truncated" if truncated else "was changed after the export"
            raise BundleError(f"{file}: {what} (SHA-256 differs from the manifest's); export it again")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise BundleError(f"{file}: not a readable .npz ({error}); export it again") from error
    if size > LARGEST_ARRAYS:
        raise BundleError(f"{file}: unpacks to {size} bytes, more than {LARGEST_ARRAYS}; refused")
    try:
        arrays = read_npz(file)
    except FileError as error:
        raise BundleError(str(error)) from error
    for name, array in arrays.items():
        if array.dtype.kind != "i":
            raise BundleError(
                f"{file}: {name} holds {array.dtype}, a bundle holds signed integers only; refused"
            )
    return arrays


def _graph(folder: Path, manifest: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> IntegerGraph:
    where = f"{folder}/manifest.json"
    steps = _whole(where, "steps", manifest["steps"], 1, LARGEST_STEPS)
    per_sample = _whole(where, "tokens_per_sample", manifest["tokens_per_sample"], 1, 2**31)
    stages: list[Stage] = []
    width = _whole(where, "input.size", manifest["input"]["size"], 1, 2**31)
    rows = manifest["stages"]
    if not isinstance(rows, list) or not rows:
        raise BundleError(f"{where}: has no stages; export it again")
    for index, row in enumerate(rows):
        stage = _stage(where, row, tensors)
        if stage.inputs != width:
            raise BundleError(f"{where}: {stage.name} takes {stage.inputs} inputs, gets {width}")
        if any(stage.name == other.name for other in stages):
            raise BundleError(f"{where}: two stages are named {stage.name}")
        if stage.kind == "readout" and index < len(rows) - 1:
            raise BundleError(f"{where}: {stage.name} is a readout, and not the last stage")
        if stage.kind == "gate" and index == len(rows) - 1:
            raise BundleError(f"{where}: {stage.name} is a gate, and can't be the last stage")
        behind_gate = index > 0 and stages[-1].kind == "gate"
        fits = (stage.arrival in ("once", "held")) == (index == 0)
        if not fits or (stage.arrival == "direct") != behind_gate:
            raise BundleError(
                f"{where}: {stage.name} can't have arrival {stage.arrival!r} as stage {index + 1}"
            )
        stages.append(stage)
        width = stage.neurons
    graph = IntegerGraph(steps, tuple(stages), per_sample)
    for stage_row in certify(graph)["stages"]:
        if not stage_row["safe"]:
            raise BundleError(f"{where}: {stage_row['name']} can overflow 24 bits; export it again")
    return graph


def _stage(where: str, row: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Stage:
    name = row["name"]
    for label in (name, row["synapse"]):
        if not isinstance(label, str) or not _NAME.fullmatch(label):
            raise BundleError(f"{where}: {label!r} is no name for a stage")
    kind, arrival = row["kind"], row["arrival"]
    if kind not in ("atmn", "lif", "readout", "gate"):
        raise BundleError(f"{where}: {name} is of unknown kind {kind!r}")
    known = STEP_ARRIVALS if kind == "lif" else SUM_ARRIVALS
    if arrival not in known:
        raise BundleError(f"{where}: {name} has arrival {arrival!r}, expected one of {', '.join(known)}")
    if row["reset"] not in ("subtract", "zero") or row["carry"] not in ("token", "sequence"):
        raise BundleError(f"{where}: {name} has an unknown reset or carry")
    arrays = {}
    for key in _ARRAYS:
        if f"{name}/{key}" not in tensors:
            raise BundleError(f"{where}: tensors.npz lacks {name}/{key}")
        arrays[key] = tensors[f"{name}/{key}"].astype(np.int64)
    neurons = _whole(where, f"{name}.neurons", row["neurons"], 1, 2**31)
    inputs = _whole(where, f"{name}.inputs", row["inputs"], 1, 2**31)
    levels = 0 if kind in ("readout", "gate") else neurons
    sums = 2 * neurons if kind == "gate" else neurons
    synapses = 0 if arrival == "direct" else inputs
    if arrival == "direct" and (kind != "atmn" or inputs != neurons):
        raise BundleError(f"{where}: {name} can't have arrival 'direct'; only as many ATMN neurons can")
    expected = {"weight": (sums, synapses), "bias": (sums,), "fire": (levels,), "amplitude": (levels,)}
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise BundleError(f"{where}: {name}/{key} is {list(arrays[key].shape)}, expected {list(shape)}")
        largest = WEIGHT_MAX if key == "weight" else STATE_MAX
        if _magnitude(arrays[key]) > largest:
            raise BundleError(f"{where}: {name}/{key} exceeds {largest}")
    if levels and min(arrays["fire"].min(), arrays["amplitude"].min()) < 1:
        raise BundleError(f"{where}: {name} has a threshold below 1")
    if not isinstance(row["unit"], list) or len(row["unit"]) != neurons:
        raise BundleError(f"{where}: {name}.unit is no list of {neurons} values")
    for value in row["unit"]:
        _positive(where, f"{name}.unit", value)
    return Stage(
        name=name,
        synapse=row["synapse"],
        kind=kind,
        arrival=arrival,
        shift=_whole(where, f"{name}.shift", row["shift"], 0, 16),
        decay=_whole(where, f"{name}.decay", row["decay"], 0, 2 * UNITY),
        reset=row["reset"],
        carry=row["carry"],
        gate=_gate(where, name, neurons, tensors) if kind == "gate" else None,
        **arrays,
    )


def _gate(where: str, name: str, neurons: int, tensors: Mapping[str, NDArray[Any]]) -> Gate:
    arrays = {}
    for key, largest in _GATE_ARRAYS.items():
        entry = f"{name}/{key}"
        if entry not in tensors:
            raise BundleError(f"{where}: tensors.npz lacks {entry}")
        array = tensors[entry].astype(np.int64)
        if key == "table":
            if array.ndim != 1 or len(array) % 2 == 0 or len(array) > LARGEST_TABLE:
                raise BundleError(
                    f"{where}: {entry} is {list(array.shape)}, expected an odd number of entries up to "
                    f"{LARGEST_TABLE}"
                )
        elif array.shape != (neurons,):
            raise BundleError(f"{where}: {entry} is {list(array.shape)}, expected [{neurons}]")
        if array.min() < 0 or array.max() > largest:
            raise BundleError(f"{where}: {entry} leaves 0 to {largest}")
        arrays[key] = array
    return Gate(**arrays)


def _golden(
    folder: Path, manifest: Mapping[str, Any], graph: IntegerGraph, arrays: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.int64], IntegerRun]:
    where = f"{folder}/golden.npz"
    tokens = _whole(f"{folder}/manifest.json", "tokens", manifest["tokens"], 1, 2**31)
    if tokens % graph.tokens_per_sample:
        raise BundleError(f"{folder}/manifest.json: {tokens} tokens don't divide into whole samples")

    def take(name: str, shape: tuple[int, ...], largest: int) -> NDArray[Any]:
        if name not in arrays:
            raise BundleError(f"{where}: lacks {name}")
        if arrays[name].shape != shape:
            raise BundleError(f"{where}: {name} is {list(arrays[name].shape)}, expected {list(shape)}")
        if _magnitude(arrays[name]) > largest:
            raise BundleError(f"{where}: {name} exceeds {largest}")
        return arrays[name]

    inputs = take("inputs", (tokens, graph.stages[0].inputs), INPUT_MAX)
    run = IntegerRun()
    counted = take("saturations", (len(graph.stages),), 2**62)
    for stage, saturations in zip(graph.stages, counted, strict=True):
        neurons = stage.neurons
        if stage.kind == "readout":
            sums = take(f"outputs/{stage.name}", (tokens, neurons), STATE_MAX)
            run.outputs[stage.name] = sums.astype(np.int32)
        elif stage.kind == "gate":
            products = take(f"products/{stage.name}", (tokens, neurons), STATE_MAX)
            run.products[stage.name] = products.astype(np.int32)
        else:
            spikes = take(f"spikes/{stage.name}", (tokens, graph.steps, neurons), 1)
            run.spikes[stage.name] = spikes.astype(np.int8)
        run.saturations[stage.name] = int(saturations)
    return inputs.astype(np.int64), run


def _magnitude(array: NDArray[Any]) -> int:
    """Largest absolute value, exact for the least int64 too."""
    return max(-int(array.min()), int(array.max())) if array.size else 0


def _input_scale(where: str, entry: Mapping[str, Any]) -> None:
    """One number, or one for each feature."""
    scales = entry["scale"] if isinstance(entry["scale"], list) else [entry["scale"]]
    if isinstance(entry["scale"], list) and len(scales) != entry["size"]:
        raise BundleError(f"{where}: input.scale has {len(scales)} values, expected {entry['size']}")
    for value in scales:
        _positive(where, "input.scale", value)


def _positive(where: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < float(value) < math.inf:
        raise BundleError(f"{where}: {name} is {str(value)[:40]!r}, expected a finite number > 0")


def _whole(where: str, name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BundleError(f"{where}: {name} is {value!r}, expected a whole number from {least} to {most}")
    return value
