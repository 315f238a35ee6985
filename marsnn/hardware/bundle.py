"""The bundle: a folder with everything that runs a network on a chip's simulator, and the proof of it.

    manifest.json      what the stages are, what their numbers are worth, the SHA-256 of every other file
    tensors.npz        integers: weights, biases, and what else the stages' kinds have
    golden.npz         integers: the inputs, and the integer model's spikes and values for them
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from marsnn.errors import BundleError, FileError
from marsnn.files import (
    PathLike,
    json_text,
    new_folder,
    npz_bytes,
    read_json,
    write_bytes,
    write_text,
)
from marsnn.hardware.certificate import certify
from marsnn.hardware.stages import (
    FACTOR_MAX,
    INPUT,
    INPUT_MAX,
    KINDS,
    LARGEST_DOUBLINGS,
    LARGEST_SHIFT,
    LARGEST_STEPS,
    LARGEST_TABLE,
    OF_VALUES,
    STATE_MAX,
    STEP_ARRIVALS,
    SUM_ARRIVALS,
    WEIGHT_MAX,
    WIDE_INPUT_MAX,
    Convolution,
    IntegerGraph,
    IntegerRun,
    Stage,
    Synapse,
    schedule,
)

FORMAT = "marsnn.bundle/2"
RUNTIME = Path(__file__).parent / "lava_runtime"
REQUIRED = ("tensors.npz", "golden.npz", "certificate.json", "runtime_lava/run.py")
LARGEST_ARRAYS = 4 * 2**30  # bytes, unpacked
LARGEST_MANIFEST = 2**28  # bytes
LARGEST_STAGES = 4096
LARGEST_SYNAPSES = 16384
LARGEST_IMAGE = 2**28  # numbers of a padded image
LARGEST_WORK = 2**34  # products of one convolution, a token

WEIGHED = ("atmn", "lif", "count")
"""Kinds whose trains or values matrices and kernels may take, next to an input of 8 bits."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")

LARGEST_DELAY = 2**20
"""Steps that what arrives early may wait."""


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
        """The golden values of the last stage in real numbers, [W, C]."""
        name = self.graph.last.name
        if name not in self.golden.values:
            raise BundleError(f"{self.path}: ends with neurons, not with a readout")
        stage = next(row for row in self.manifest["stages"] if row["name"] == name)
        return self.golden.values[name] * np.asarray(stage["unit"])


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
        run |= {f"values/{name}": values for name, values in golden.values.items()}
        counted = np.array([golden.saturations[stage.name] for stage in graph.stages], dtype=np.int64)
        run |= {"inputs": inputs.astype(np.int16), "saturations": counted}
        write_bytes(folder / "golden.npz", npz_bytes(run))
        for stem, value in reports.items():
            write_text(folder / f"{stem}.json", json_text(value))
        for source in sorted(RUNTIME.glob("*.py")):
            write_bytes(folder / "runtime_lava" / source.name, source.read_bytes())
        manifest = {
            "format": FORMAT,
            **header,
            "steps": graph.steps,
            "input_max": graph.input_max,
            "inputs": list(graph.inputs),
            "tokens": len(inputs),
            "tokens_per_sample": graph.tokens_per_sample,
            "stages": [stage_row(stage, units[stage.name]) for stage in graph.stages],
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
    """The arrays of every stage and synapse as they are written: stages/NAME/ARRAY, synapses/NAME/ARRAY."""
    tensors: dict[str, NDArray[Any]] = {}
    for stage in graph.stages:
        tensors |= {f"stages/{stage.name}/bias/{port}": _narrow(array) for port, array in stage.bias.items()}
        tensors |= {f"stages/{stage.name}/{key}": _narrow(array) for key, array in stage.arrays.items()}
        for synapse in stage.synapses:
            tensors[f"synapses/{synapse.name}/weight"] = _narrow(synapse.weight)
            if synapse.right is not None:
                tensors[f"synapses/{synapse.name}/right"] = _narrow(synapse.right)
    return tensors


def stage_row(stage: Stage, unit: NDArray[np.float64]) -> dict[str, Any]:
    """What the manifest says of a stage."""
    return {
        "name": stage.name,
        "kind": stage.kind,
        "shape": list(stage.shape),
        "reset": stage.reset,
        "carry": stage.carry,
        "unit": [float(value) for value in unit],
        "synapses": [_synapse_row(synapse) for synapse in stage.synapses],
    }


def _synapse_row(synapse: Synapse) -> dict[str, Any]:
    names = ("name", "source", "port", "form", "arrival", "shift")
    row = {name: getattr(synapse, name) for name in names}
    return row if synapse.conv is None else {**row, "conv": asdict(synapse.conv)}


def _narrow(array: NDArray[np.int64]) -> NDArray[Any]:
    """In the least width that holds it."""
    largest = _magnitude(array)
    for kind in (np.int8, np.int16, np.int32):
        if largest <= np.iinfo(kind).max:
            return array.astype(kind)
    return array


# ---- reading -----------------------------------------------------------------------------------------


def load(path: PathLike) -> Bundle:
    """Read a bundle, trusting nothing.

    Raises:
        BundleError: naming the file or the entry that is missing, damaged, edited, too large or unsafe.
    """
    folder = Path(path)
    file = folder / "manifest.json"
    if not file.is_file():
        raise BundleError(f"{folder}: not a bundle (it has no manifest.json)")
    if file.is_symlink():
        raise BundleError(f"{file}: a link; a bundle's manifest is a file of its own; refused")
    try:
        if file.stat().st_size > LARGEST_MANIFEST:
            raise BundleError(f"{file}: is larger than {LARGEST_MANIFEST} bytes; refused")
        manifest = read_json(file)
    except FileError as error:
        raise BundleError(str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        shown = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"{folder}/manifest.json: format {_shown(shown)}, this marsnn reads {FORMAT!r}")
    try:
        _check_files(folder, manifest.get("files"))
        with _Arrays(folder / "tensors.npz") as tensors, _Arrays(folder / "golden.npz") as golden:
            graph = _empty(f"{folder}/manifest.json", manifest)
            inputs = _inputs(folder, manifest, graph, golden)  # first: then D is no larger than an array is
            graph = _graph(folder, manifest, graph, tensors)
            run = _golden(folder, graph, golden, len(inputs))
        _input_scale(f"{folder}/manifest.json", manifest["input"], graph.size(INPUT))
        bundle = Bundle(folder, manifest, graph, inputs, run)
        if not isinstance(bundle.report("certificate"), dict):
            raise BundleError(f"{folder}/certificate.json: is no certificate; export it again")
    except BundleError:
        raise
    except FileError as error:
        raise BundleError(str(error)) from error
    except MemoryError as error:
        raise BundleError(f"{folder}: needs more memory than there is; refused") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, OSError) as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
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


class _Arrays:
    """The integers of an .npz. What the headers say is known at once; data are read when they are taken."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.shapes: dict[str, tuple[int, ...]] = {}
        with self._told():
            self.archive = zipfile.ZipFile(file)
            try:
                self._survey()
            except BaseException:
                self.archive.close()
                raise

    def __enter__(self) -> _Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def _survey(self) -> None:
        entries = self.archive.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > LARGEST_ARRAYS:
            raise BundleError(f"{self.file}: unpacks to {size} bytes, more than {LARGEST_ARRAYS}; refused")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename or name in self.shapes:
                raise ValueError(f"{entry.filename!r} is no array, or there twice")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is compressed in a way that numpy does not use")
            with self.archive.open(entry) as stream:
                header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
                shape, _, dtype = header[npy.read_magic(stream)](stream)
                if dtype.kind != "i":
                    raise BundleError(
                        f"{self.file}: {name} holds {dtype}, a bundle holds signed integers only; refused"
                    )
                if (
                    min(shape, default=0) < 0
                    or math.prod(shape) * dtype.itemsize + stream.tell() != entry.file_size
                ):
                    raise ValueError(f"{name} says that it is {list(shape)}, which is not what follows")
            self.shapes[name] = shape

    def take(self, where: str, name: str, least: int, most: int) -> NDArray[Any]:
        """One array, whose numbers lie within bounds."""
        with self._told(), self.archive.open(f"{name}.npy") as stream:
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        if array.size and (int(array.min()) < least or int(array.max()) > most):
            raise BundleError(f"{where}: {name} leaves {least} to {most}")
        return array

    def shape(self, where: str, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise BundleError(f"{where}: {self.file.name} lacks {name}")
        return self.shapes[name]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Zip, zlib and numpy: each has its own complaint about a bad file."""
        try:
            yield
        except (BundleError, MemoryError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BundleError(
                f"{self.file}: not a readable .npz of plain arrays ({reason}); export it again"
            ) from error


def _empty(where: str, manifest: Mapping[str, Any]) -> IntegerGraph:
    """The graph before its stages."""
    return IntegerGraph(
        _whole(where, "steps", manifest["steps"], 1, LARGEST_STEPS),
        _shape(where, "inputs", manifest["inputs"]),
        (),
        _whole(where, "tokens_per_sample", manifest["tokens_per_sample"], 1, 2**31),
        _whole(where, "input_max", manifest["input_max"], 1, WIDE_INPUT_MAX),
    )


def _graph(folder: Path, manifest: Mapping[str, Any], graph: IntegerGraph, tensors: _Arrays) -> IntegerGraph:
    where = f"{folder}/manifest.json"
    rows = manifest["stages"]
    if not isinstance(rows, list) or not rows:
        raise BundleError(f"{where}: has no stages; export it again")
    _unique(where, "stage", [row["name"] for row in rows], LARGEST_STAGES)
    for row in rows:
        if not isinstance(row["synapses"], list) or not row["synapses"]:
            raise BundleError(f"{where}: {row['name']} has no synapses; export it again")
    _unique(where, "synapse", [each["name"] for row in rows for each in row["synapses"]], LARGEST_SYNAPSES)
    for row in rows:
        graph = replace(graph, stages=(*graph.stages, _stage(where, row, tensors, graph)))
    waiting = schedule(graph).delays
    if max(waiting.values(), default=0) > LARGEST_DELAY:
        raise BundleError(f"{where}: something waits for more than {LARGEST_DELAY} steps; refused")
    for stage_row in certify(graph)["stages"]:
        if not stage_row["safe"]:
            raise BundleError(f"{where}: {stage_row['name']} can overflow 24 bits; export it again")
    return graph


def _unique(where: str, what: str, labels: list[Any], most: int) -> None:
    """Names, before anything of that name is read."""
    if len(labels) > most:
        raise BundleError(f"{where}: has {len(labels)} {what}s, expected at most {most}")
    seen = {INPUT} if what == "stage" else set()
    for label in labels:
        if _name(where, label) in seen:
            raise BundleError(f"{where}: {what} {label} is there twice")
        seen.add(label)


def _stage(where: str, row: Mapping[str, Any], tensors: _Arrays, graph: IntegerGraph) -> Stage:
    name, kind = row["name"], row["kind"]
    if kind not in KINDS:
        raise BundleError(f"{where}: {name} is of unknown kind {_shown(kind)}")
    if row["reset"] not in ("subtract", "zero") or row["carry"] not in ("token", "sequence"):
        raise BundleError(f"{where}: {name} has an unknown reset or carry")
    shape = _shape(where, f"{name}.shape", row["shape"])
    neurons = int(np.prod(shape))
    axes = {"N": neurons}
    bias = {}
    for port, axis in KINDS[kind].ports.items():
        entry = f"stages/{name}/bias/{port}"
        _fit_axes(where, entry, tensors, axis, axes)
        bias[port] = _take(where, tensors, entry, -STATE_MAX, STATE_MAX)
    arrays = {}
    for key, of in KINDS[kind].arrays.items():
        entry = f"stages/{name}/{key}"
        _fit_axes(where, entry, tensors, of.axes, axes)
        arrays[key] = _take(where, tensors, entry, of.least, of.most)
    _consistent(where, name, kind, axes, arrays)
    if not isinstance(row["unit"], list) or len(row["unit"]) != neurons:
        raise BundleError(f"{where}: {name}.unit is no list of {neurons} values")
    for value in row["unit"]:
        _positive(where, f"{name}.unit", value)
    bare = Stage(name, kind, shape, (), bias, arrays, row["reset"], row["carry"])
    heard = replace(graph, stages=(*graph.stages, bare)) if KINDS[kind].hears_itself else graph
    synapses = tuple(_synapse(where, bare, each, tensors, heard) for each in row["synapses"])
    silent = sorted(set(bias) - {synapse.port for synapse in synapses if synapse.source != name})
    if silent:
        raise BundleError(f"{where}: no synapse ends at {name}.{silent[0]}; export it again")
    return replace(bare, synapses=synapses)


def _fit_axes(where: str, entry: str, tensors: _Arrays, names: str, axes: dict[str, int]) -> None:
    """An array's axes have to fit those of the same names that were there before; new ones are taken over."""
    wanted, shape = names.split(), tensors.shape(where, entry)
    if len(shape) != len(wanted):
        raise BundleError(f"{where}: {entry} is {list(shape)}, expected {len(wanted)} axes")
    for axis, size in zip(wanted, shape, strict=True):
        if axes.setdefault(axis, size) != size:
            raise BundleError(f"{where}: {entry} is {list(shape)}, its {axis} should be {axes[axis]}")
        if axis == "E" and (size % 2 == 0 or size > LARGEST_TABLE):
            raise BundleError(
                f"{where}: {entry} has {size} entries, expected an odd number up to {LARGEST_TABLE}"
            )


def _consistent(
    where: str, name: str, kind: str, axes: Mapping[str, int], arrays: Mapping[str, NDArray[np.int64]]
) -> None:
    """What the shapes of a kind's arrays have to do with each other."""
    if kind == "ssd":
        heads, groups, keys = axes["H"], int(arrays["groups"]), axes["G"]
        whole = axes["C"] == axes["N"] + 2 * keys and heads and axes["N"] % heads == 0 and axes["K"] >= 1
        if not whole:
            raise BundleError(f"{where}: {name} has {axes['C']} channels, which don't fit its heads")
        if heads % groups or keys % groups or not keys:
            raise BundleError(f"{where}: {name} has {groups} groups, which don't fit its heads or keys")
        if axes["R"] and 2 * axes["R"] * groups != keys:
            raise BundleError(f"{where}: {name} turns {axes['R']} pairs, which don't fit its keys")


def _synapse(
    where: str, stage: Stage, row: Mapping[str, Any], tensors: _Arrays, graph: IntegerGraph
) -> Synapse:
    kind, bias = stage.kind, stage.bias
    name = row["name"]
    source, port, form, arrival = row["source"], row["port"], row["form"], row["arrival"]
    if source != INPUT and source not in [each.name for each in graph.stages]:
        raise BundleError(f"{where}: {name} comes from {_shown(source)}, which is no stage before it")
    if port not in bias:
        raise BundleError(f"{where}: {name} ends at {_shown(port)}, expected one of {', '.join(bias)}")
    known = STEP_ARRIVALS if KINDS[kind].takes == "step" else SUM_ARRIVALS
    if (
        arrival not in known
        or (arrival in OF_VALUES) != (graph.sends(source) == "value")
        or (source == stage.name and arrival != "stream")
    ):
        raise BundleError(f"{where}: {name} can't have arrival {_shown(arrival)}")
    doubling = arrival in ("horner", "power", "stream_down", "stream_up")
    if doubling and graph.steps > LARGEST_DOUBLINGS:
        raise BundleError(f"{where}: {name} doubles {graph.steps} times, which leaves 24 bits")
    senders, size = graph.size(source), len(bias[port])
    narrow = graph.input_max <= INPUT_MAX if source == INPUT else graph[source].kind in WEIGHED
    if form != "each" and not narrow:
        raise BundleError(f"{where}: {name} has weights for the graded values of {source!r}; refused")
    most = FACTOR_MAX if form == "each" else WEIGHT_MAX
    shape = tensors.shape(where, f"synapses/{name}/weight")
    right, conv = None, None
    if form == "each":
        if {shape, tensors.shape(where, f"synapses/{name}/right")} != {(size,)} or senders != size:
            raise BundleError(f"{where}: {name} joins {senders} senders to {size} neurons one by one")
        right = _take(where, tensors, f"synapses/{name}/right", 0, LARGEST_SHIFT)
    elif form == "conv":
        conv = _convolution(where, name, row["conv"], shape, senders, size)
    elif form == "dense":
        if shape != (size, senders):
            raise BundleError(f"{where}: {name}/weight is {list(shape)}, expected {[size, senders]}")
    else:
        raise BundleError(f"{where}: {name} has unknown form {_shown(form)}")
    weight = _take(where, tensors, f"synapses/{name}/weight", -most, most)
    shift = _whole(where, f"{name}.shift", row["shift"], 0, 20)
    return Synapse(name, source, port, form, arrival, weight, shift, right, conv)


def _convolution(
    where: str, name: str, row: Mapping[str, Any], kernel: tuple[int, ...], senders: int, size: int
) -> Convolution:
    source, target = (_shape(where, f"{name}.{end}", row[end]) for end in ("source", "target"))
    rank = len(source) - 1
    moves = [
        tuple(_whole(where, f"{name}.{key}", each, least, 2**15) for each in row[key])
        for key, least in (("stride", 1), ("padding", 0), ("dilation", 1))
    ]
    groups = _whole(where, f"{name}.groups", row["groups"], 1, 2**20)
    fits = rank in (1, 2) and len(kernel) == rank + 2 and all(len(each) == rank for each in moves)
    fits = fits and kernel[0] % groups == 0 and kernel[1] * groups == source[0]
    if fits:
        stride, padding, dilation = moves
        image = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(source[1:], padding, dilation, kernel[2:], stride, strict=True)
        )
        fits = (kernel[0], *image) == target and min(image) >= 1 and min(kernel) >= 1
        padded = source[0] * math.prod(n + 2 * p for n, p in zip(source[1:], padding, strict=True))
        if padded > LARGEST_IMAGE or math.prod(image) * math.prod(kernel) > LARGEST_WORK:
            raise BundleError(f"{where}: {name} convolves an image of {padded} numbers; refused")
    if not fits or math.prod(source) != senders or math.prod(target) != size:
        raise BundleError(f"{where}: {name} is no convolution from {list(source)} to {list(target)}")
    stride, padding, dilation = moves
    return Convolution(source, target, stride, padding, dilation, groups)


def _inputs(
    folder: Path, manifest: Mapping[str, Any], graph: IntegerGraph, arrays: _Arrays
) -> NDArray[np.int64]:
    """The golden run's inputs [W, D]."""
    tokens = _whole(f"{folder}/manifest.json", "tokens", manifest["tokens"], 1, 2**31)
    if tokens % graph.tokens_per_sample:
        raise BundleError(f"{folder}/manifest.json: {tokens} tokens don't divide into whole samples")
    shape = (tokens, math.prod(graph.inputs))
    return _golden_array(folder, arrays, "inputs", shape, graph.input_max).astype(np.int64)


def _golden(folder: Path, graph: IntegerGraph, arrays: _Arrays, tokens: int) -> IntegerRun:
    run = IntegerRun()
    counted = _golden_array(folder, arrays, "saturations", (len(graph.stages),), 2**62)
    for stage, saturations in zip(graph.stages, counted, strict=True):
        name = stage.name
        if stage.sends == "train":
            shape = (tokens, graph.steps, stage.neurons)
            most = stage.number("most") if "most" in stage.arrays else 1
            spikes = _golden_array(folder, arrays, f"spikes/{name}", shape, most)
            run.spikes[name] = spikes.astype(np.int8)
        else:
            values = _golden_array(folder, arrays, f"values/{name}", (tokens, stage.neurons), STATE_MAX)
            run.values[name] = values.astype(np.int32)
        run.saturations[name] = int(saturations)
    return run


def _golden_array(
    folder: Path, arrays: _Arrays, name: str, shape: tuple[int, ...], largest: int
) -> NDArray[Any]:
    where = f"{folder}/golden.npz"
    if arrays.shape(where, name) != shape:
        raise BundleError(f"{where}: {name} is {list(arrays.shape(where, name))}, expected {list(shape)}")
    return arrays.take(where, name, -largest, largest)


def _name(where: str, label: Any) -> str:
    if not isinstance(label, str) or not _NAME.fullmatch(label):
        raise BundleError(f"{where}: {_shown(label)} is no name for a stage")
    return label


def _shape(where: str, name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 4:
        raise BundleError(f"{where}: {name} is {str(value)[:40]!r}, expected the sizes of 1 to 4 axes")
    found = tuple(_whole(where, name, each, 1, 2**31) for each in value)
    if math.prod(found) > 2**31:
        raise BundleError(f"{where}: {name} is {list(found)}, more than 2^31 values; refused")
    return found


def _take(where: str, tensors: _Arrays, entry: str, least: int, most: int) -> NDArray[np.int64]:
    return tensors.take(where, entry, least, most).astype(np.int64)


def _magnitude(array: NDArray[Any]) -> int:
    """Largest absolute value, exact for the least int64 too."""
    return max(-int(array.min()), int(array.max())) if array.size else 0


def _input_scale(where: str, entry: Mapping[str, Any], size: int) -> None:
    """One number, or one for each feature."""
    scales = entry["scale"] if isinstance(entry["scale"], list) else [entry["scale"]]
    if isinstance(entry["scale"], list) and len(scales) != size:
        raise BundleError(f"{where}: input.scale has {len(scales)} values, expected {size}")
    for value in scales:
        _positive(where, "input.scale", value)


def _positive(where: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < float(value) < math.inf:
        raise BundleError(f"{where}: {name} is {str(value)[:40]!r}, expected a finite number > 0")


def _shown(value: Any) -> str:
    """A value of the manifest in an error's line, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _whole(where: str, name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BundleError(
            f"{where}: {name} is {_shown(value)}, expected a whole number from {least} to {most}"
        )
    return value
