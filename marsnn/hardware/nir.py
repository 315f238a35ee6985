"""NIR: a Network to a file that other simulators and chips read, and their files as Networks.

    to_nir(network, sample)             a nir.NIRGraph
    write_nir(network, sample, path)    its file
    read_nir(path)                      a Network

What maps exactly and what is refused: `docs/nir.md`. The formulas are in `nir_units`, ATMN in `nir_atmn`. A
file is HDF5 and untrusted: it is read into memory and looked over before `nir` sees it, links out of it and
sizes beyond reason are refused, and nothing in it is executed. Needs `pip install "marsnn[nir]"`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from marsnn.checks import count, positive
from marsnn.errors import FileError, InputError, MarsnnError, MissingDependencyError, ShapeError
from marsnn.files import PathLike, write_bytes
from marsnn.hardware import nir_export, nir_import
from marsnn.hardware.nir_atmn import TAG
from marsnn.hardware.nir_units import DT, FiresAt
from marsnn.network import Network
from marsnn.neurons.base import Carry

if TYPE_CHECKING:
    import nir

ALLOWED = ("soft-reset",)
"""Changes that a caller may ask for by name."""

LARGEST_FILE = 4 * 2**30  # bytes, packed or unpacked
LARGEST_DEPTH = 16  # groups within groups

FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 32000: "lzf"}
"""HDF5 filters that unpack without a plug-in."""


def to_nir(
    network: Network,
    sample: Tensor | Sequence[int],
    *,
    dt: float = DT,
    fires_at: FiresAt = ">",
    unit_resistance: bool = False,
    allow: Sequence[str] = (),
) -> nir.NIRGraph:
    """A network as a NIR graph that gives the same spikes.

    Args:
        network: `Linear`, `Conv1d`, `Conv2d`, `AvgPool2d`, `Flatten`; `LIF`, `PLIF`, `CubaLIF` with
            reset="zero", `LeakyIntegrator`, `Recurrent` around one of these, or `ATMN` with tau >= 1; skips
            become edges.
        sample: x [L, B, *D], of which only the shape counts; or the shape [*D] itself.
        dt: seconds a step, to be the same in the reader; 1e-4 in those of snnTorch and SpikingJelly.
        fires_at: how the reader compares with a threshold: ">" as NIR says (snnTorch, norse), ">=" as
            SpikingJelly. Thresholds are moved so that the reader does as marsnn, ties included.
        unit_resistance: count the membranes of LIF so that r = 1, for readers that ignore r (norse).
            Thresholds are then rounded once more.
        allow: ("soft-reset",) writes neurons with reset="subtract" too, and readers reset them to zero.

    Raises:
        ExportError: with every layer that NIR can't say.   ShapeError, InputError: of the arguments.
        MissingDependencyError: without nir.
    """
    _needs_nir()
    if not isinstance(network, Network):
        raise InputError(f"to_nir() takes a marsnn Network, got {type(network).__name__}; wrap its layers")
    positive("dt", dt)
    _one_of("fires_at", fires_at, (">", ">="))
    for change in allow if not isinstance(allow, str) else (allow,):
        _one_of("allow", change, ALLOWED)
    if isinstance(sample, Tensor):
        if sample.ndim < 3:
            raise ShapeError(f"expected a sample x [L, B, *D], got {list(sample.shape)}")
        shape = tuple(sample.shape[2:])
    else:
        shape = tuple(count("each axis of the shape", axis) for axis in sample)
        if not shape:
            raise ShapeError("expected a shape [*D] of one element's features, got none")
    network.check_weights()
    return nir_export.graph_of(network, shape, float(dt), fires_at, unit_resistance, tuple(allow))


def write_nir(
    network: Network,
    sample: Tensor | Sequence[int],
    path: PathLike,
    *,
    dt: float = DT,
    fires_at: FiresAt = ">",
    unit_resistance: bool = False,
    allow: Sequence[str] = (),
) -> Path:
    """Write a network as a NIR file, whole or not at all; arguments and errors as of `to_nir`.

    Raises:
        FileError: it can't be written.
    """
    graph = to_nir(network, sample, dt=dt, fires_at=fires_at, unit_resistance=unit_resistance, allow=allow)
    import nir

    buffer = io.BytesIO()
    with _ordered():
        nir.write(buffer, graph)
    return write_bytes(path, buffer.getvalue())


def read_nir(
    path: PathLike,
    *,
    dt: float | None = None,
    fires_at: FiresAt | None = None,
    steps: int | None = None,
    carry: Carry | None = None,
) -> Network:
    """Read a NIR file, marsnn's or another's, as a Network in evaluation mode.

    A step of NIR is a token here unless the file or the caller says otherwise: then x [L, B, *D] are L steps,
    the output is that of each step, and `network.run` hands the state on.

    Args:
        path: the file.
        dt: seconds a step; None: what the file says if marsnn wrote it, else 1e-4.
        fires_at: how its writer compares with a threshold; None: as the file says, else ">" as NIR does.
            Files of SpikingJelly mean ">=".
        steps, carry: T and what happens to the state at the end of a token; None: as the file says, else 1
            and "sequence".

    Raises:
        FileError: no such file, no NIR file, or one with nodes that can't be read, each by its name.
        MissingDependencyError: without nir.
    """
    _needs_nir()
    path = Path(path)
    graph = _load(path)
    said = graph.metadata if TAG in graph.metadata else {}
    try:
        own = _conventions(
            said.get("dt", DT), said.get("fires_at", ">"), said.get("steps", 1), said.get("carry", "sequence")
        )
    except (InputError, TypeError, ValueError) as error:
        raise FileError(f"{path}: its metadata is damaged ({_line(error)}); write it again") from error
    conventions = _conventions(
        own.dt if dt is None else dt,
        own.fires_at if fires_at is None else fires_at,
        own.steps if steps is None else steps,
        own.carry if carry is None else carry,
    )
    try:
        network, refusals = nir_import.network_of(graph, conventions)
    except (MarsnnError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise FileError(f"{path}: not a graph that can be run ({_line(error)})") from error
    if network is None:
        raise FileError(f"{path}: {len(refusals)} of its nodes can't be read: " + "; ".join(refusals))
    return network


def _conventions(dt: Any, fires_at: Any, steps: Any, carry: Any) -> nir_import.Conventions:
    positive("dt", dt)
    _one_of("fires_at", fires_at, (">", ">="))
    _one_of("carry", carry, ("token", "sequence"))
    return nir_import.Conventions(float(dt), fires_at, count("steps", steps), carry)


# ---- the file ----------------------------------------------------------------------------------------


def _load(path: Path) -> nir.NIRGraph:
    """The graph in a file; a damaged, foreign or unsafe file is a FileError."""
    import h5py
    import nir

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise FileError(f"{path}: {path.stat().st_size} bytes; at most {LARGEST_FILE} are read")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FileError(f"{path}: no such file") from error
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: can't read it: {(error.strerror or str(error)).lower()}") from error
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            tree = _Tree().read(file["node"] if file.get("node", getlink=True) is not None else file)
        graph = nir.dict2NIRNode(_unchecked(tree))
    except Exception as error:  # h5py, nir and numpy: each has its own complaint about a bad file
        raise FileError(f"{path}: not a readable NIR file ({_line(error)})") from error
    with suppress(Exception):  # older writers give no types: what needs one is refused by its name
        graph.infer_types()
    return graph


@contextmanager
def _ordered() -> Iterator[None]:
    """Groups that are made within keep the order of what is put into them. nirtorch 2.6 runs a sub-graph only
    where it stands behind what leads to it; by name it might not."""
    import h5py

    settings = h5py.get_config()
    before = settings.track_order
    settings.track_order = True
    try:
        yield
    finally:
        settings.track_order = before


def _unchecked(tree: dict[str, Any]) -> dict[str, Any]:
    """A graph's tree such that nir takes it, and each graph within, without its own check of types."""
    if tree.get("type") != "NIRGraph" or "type_check" in tree:
        raise ValueError("it holds no NIR graph")
    nodes = {
        name: _unchecked(node) if node.get("type") == "NIRGraph" else node
        for name, node in tree["nodes"].items()
    }
    return {**tree, "nodes": nodes, "type_check": False}


class _Tree:
    """An HDF5 tree as dicts of plain arrays and strings; anything else in it is refused."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()
        self.bytes = 0

    def read(self, group: Any, depth: int = 0) -> dict[str, Any]:
        import h5py

        where = h5py.h5o.get_info(group.id).addr
        if where in self.seen or depth > LARGEST_DEPTH:
            raise ValueError(f"{group.name}: a group within itself")
        self.seen.add(where)
        found: dict[str, Any] = {}
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{group.name}/{key}: a link to somewhere else")
            item = group[key]
            if isinstance(item, h5py.Group):
                found[key] = self.read(item, depth + 1)
            elif isinstance(item, h5py.Dataset):
                found[key] = self._value(item)
            else:
                raise ValueError(f"{item.name}: neither group nor data")
        return found

    def _value(self, item: Any) -> Any:
        import h5py

        text = h5py.check_string_dtype(item.dtype) is not None
        properties = item.id.get_create_plist()
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        if item.is_virtual or item.external or any(kind not in FILTERS for kind in filters):
            raise ValueError(f"{item.name}: data outside the file, or packed by a plug-in")
        if item.shape is None or not (text or item.dtype.kind in "fiub"):
            raise ValueError(f"{item.name}: {item.dtype}, not numbers or text")
        self.bytes += item.nbytes
        if self.bytes > LARGEST_FILE:
            raise ValueError(f"{item.name}: unpacks to more than {LARGEST_FILE} bytes")
        value = item[()]
        return value.decode() if isinstance(value, bytes) else value


def _needs_nir() -> None:
    try:
        import nir  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("nir", "nir") from error


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name}: {value!r} is not known; use {' or '.join(map(repr, known))}")


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
