"""netx files: a LoihiModel to HDF5 as lava-dl's netx reads it, and back.

    layer/0           type "input", shape
    layer/i           type "dense": shape, inFeatures, outFeatures, weight, bias where there is one
                      type "dense_rec": the same, and weight_rec of the layer's own spikes
                      type "conv": shape, weight, stride, padding, dilation, groups, bias; axes (C, H, W)
                      type "flatten", between a conv and a dense
    layer/i/neuron    type "CUBA", iDecay, vDecay, vThMant, refDelay, gradedSpike
    simulation        Ts, tSample
    marsnn            what netx takes as arguments, and the golden run; netx does not look at it

A file from elsewhere is untrusted. Only the names above are looked up; a link out of the file, data kept
outside of it, a shape beyond the limits or a number out of range is refused by one line before it is read.
Needs h5py, and numpy.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import FileError, InputError, MissingDependencyError
from marsnn.files import PathLike, write_bytes
from marsnn.hardware.loihi import (
    BIAS_MAX,
    INPUT_MAX,
    UNITY,
    Layer,
    LoihiModel,
    LoihiRun,
    conv_shape,
    lava_weights,
)
from marsnn.hardware.stages import LARGEST_STEPS

FORMAT = "marsnn.netx/1"
LARGEST_ARRAY = 2**26  # entries of one dataset
LARGEST_LAYERS = 256
SILENT_THRESHOLD = 2**18 - 1  # what lava-dl writes for a layer that is to sum and never to fire
LARGEST_HEADER = 2**20  # bytes

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_NUMBERS = "iubf"


def h5py_module() -> Any:
    """h5py, or the line that says how to install it."""
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError("h5py", "netx") from None
    return h5py


# ---- writing -----------------------------------------------------------------------------------------


def write_model(
    path: PathLike,
    model: LoihiModel,
    inputs: NDArray[np.integer] | None = None,
    golden: LoihiRun | None = None,
    header: dict[str, Any] | None = None,
    arrays: Mapping[str, NDArray[np.integer]] | None = None,
) -> Path:
    """Write a model, with a golden run, more JSON for the header and integers beside it; replaces the file.

    Args:
        arrays: name, in the group marsnn -> integers; `read_arrays` reads them.
    """
    h5py = h5py_module()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        _write_layers(file, model)
        file["simulation/Ts"] = 1
        file["simulation/tSample"] = model.reset_interval or model.steps
        values = {
            **(header or {}),
            "format": FORMAT,
            "names": list(model.names),
            "steps": model.steps,
            "message_bits": model.message_bits,
            "input_max": model.input_max,
            "reset_interval": model.reset_interval,
            "reset_offset": model.reset_offset,
            "drops": model.drops,
        }
        group = file.create_group("marsnn")
        text = json.dumps(values, allow_nan=False).encode()
        group["header"] = np.frombuffer(text, dtype=np.uint8)
        if inputs is not None and golden is not None:
            _packed(group, "inputs", inputs.astype(np.int8))
            for index, spikes in enumerate(golden.spikes.values()):
                _packed(group, f"spikes/{index}", spikes.astype(np.uint8))
        for name, array in (arrays or {}).items():
            _packed(group, name, array)
    return write_bytes(path, buffer.getvalue())


def _write_layers(file: Any, model: LoihiModel) -> None:
    first = file.create_group("layer/0")
    _write_type(first, "input")
    first["shape"] = np.array(model.input_shape)
    position, shape = 1, model.input_shape
    for layer in model.layers:
        if layer.kind == "dense" and len(shape) == 3:
            _write_type(file.create_group(f"layer/{position}"), "flatten")
            position += 1
        group = file.create_group(f"layer/{position}")
        _write_type(group, layer.kind if layer.recurrent is None else "dense_rec")
        group["shape"] = np.array(layer.shape)
        _packed(group, "weight", layer.weight.astype(np.int32))
        if layer.recurrent is not None:
            _packed(group, "weight_rec", layer.recurrent.astype(np.int32))
        if layer.bias.any():
            group["bias"] = layer.bias.astype(np.int32)
        if layer.kind == "dense":
            group["outFeatures"], group["inFeatures"] = layer.weight.shape
        else:
            group["outChannels"], group["inChannels"] = layer.shape[0], shape[0]
            group["kernelSize"] = np.array(layer.weight.shape[2:])
            for key in ("stride", "padding", "dilation"):
                group[key] = np.array(getattr(layer, key))
            group["groups"] = layer.groups
        neuron = group.create_group("neuron")
        _write_type(neuron, "CUBA")
        neuron["iDecay"], neuron["vDecay"] = layer.current_decay, layer.voltage_decay
        neuron["vThMant"], neuron["refDelay"], neuron["gradedSpike"] = layer.threshold, 1, False
        position, shape = position + 1, layer.shape


def _write_type(group: Any, name: str) -> None:
    group.create_dataset("type", (1,), "S10", [name.encode()])


def _packed(group: Any, name: str, array: NDArray[Any]) -> None:
    group.create_dataset(name, data=array, compression="gzip", compression_opts=4)


# ---- reading -----------------------------------------------------------------------------------------


class _Tree:
    """The groups and datasets of an open file, each looked at before it is read."""

    def __init__(self, where: str, group: Any) -> None:
        self.where, self.group = where, group
        self.h5py = h5py_module()

    def __contains__(self, name: str) -> bool:
        return name in self.group.keys()  # noqa: SIM118, a Group's own `in` would follow a link

    def told(self, name: str, complaint: str) -> FileError:
        return FileError(f"{self.where}: {self.group.name.rstrip('/')}/{name} {complaint}")

    def _own(self, name: str, kind: type) -> Any:
        if name not in self:
            raise self.told(name, "is missing; this is no netx file, or it is damaged")
        if type(self.group.get(name, getlink=True)) is not self.h5py.HardLink:
            raise self.told(name, "is a link to another place; links are not followed")
        found = self.group[name]
        if not isinstance(found, kind):
            raise self.told(name, f"is no {kind.__name__.lower()}")
        return found

    def sub(self, name: str) -> _Tree:
        return _Tree(self.where, self._own(name, self.h5py.Group))

    def text(self, name: str) -> str:
        """A string of up to 100 bytes, alone or as an array of one."""
        found = self._dataset(name)
        fixed = found.dtype.kind == "S" and found.dtype.itemsize <= 100
        if found.size != 1 or not (fixed or self.h5py.check_string_dtype(found.dtype)):
            raise self.told(name, f"is no string, but {found.dtype} {list(found.shape)}")
        value = np.asarray(found[()]).reshape(-1)[0]
        raw = value if isinstance(value, bytes) else str(value).encode()
        return raw[:100].decode("ascii", "replace")

    def array(
        self,
        name: str,
        axes: Sequence[int],
        low: int,
        high: int,
        largest: int = LARGEST_ARRAY,
    ) -> NDArray[np.int64]:
        """Whole numbers from `low` to `high` in an array whose number of axes is one of `axes`."""
        found = self._dataset(name)
        if found.dtype.kind not in _NUMBERS or found.dtype.itemsize > 8:
            raise self.told(name, f"is {found.dtype}, expected whole numbers")
        if found.shape is None or found.ndim not in axes:
            shape = None if found.shape is None else list(found.shape)
            raise self.told(name, f"has the shape {shape}, expected {' or '.join(map(str, axes))} axes")
        if found.size < 1 or found.size > largest:
            raise self.told(name, f"has {found.size} entries, expected 1 to {largest}")
        values = np.asarray(found[()])
        whole = np.asarray(values, dtype=np.float64)
        if not np.isfinite(whole).all() or (whole != np.floor(whole)).any():
            raise self.told(name, "holds numbers that are not whole")
        if whole.min() < low or whole.max() > high:
            raise self.told(
                name, f"holds {whole.min():g} to {whole.max():g}, expected numbers from {low} to {high}"
            )
        return values.astype(np.int64)

    def number(self, name: str, low: int, high: int) -> int:
        """A whole number, alone or as an array of one."""
        return int(self.array(name, (0, 1), low, high, largest=1).reshape(-1)[0])

    def pair(self, name: str, low: int, high: int) -> tuple[int, int]:
        """(y, x), or one number for both."""
        values = self.array(name, (0, 1), low, high, largest=2).reshape(-1)
        return int(values[0]), int(values[-1])

    def _dataset(self, name: str) -> Any:
        found = self._own(name, self.h5py.Dataset)
        if found.is_virtual or found.external:
            raise self.told(name, "keeps its data outside of the file")
        return found


def read_file(path: PathLike) -> tuple[LoihiModel, dict[str, Any], NDArray[np.int64] | None, LoihiRun | None]:
    """As `read_netx`; and the header, golden inputs [W, *D] and golden run, if marsnn wrote the file."""
    with _opened(path) as tree:
        return _read(tree)


def read_arrays(path: PathLike, wanted: Mapping[str, tuple[int, int, int]]) -> dict[str, NDArray[np.int64]]:
    """Integers beside a model, by their name in the group marsnn.

    Args:
        wanted: name -> its number of axes, its least and its largest value.

    Raises:
        FileError: one is missing, or other than that.
    """
    with _opened(path) as tree:
        group = tree.sub("marsnn")
        return {name: group.array(name, (axes,), low, high) for name, (axes, low, high) in wanted.items()}


@contextmanager
def _opened(path: PathLike) -> Iterator[_Tree]:
    """An open file; whatever is wrong with it becomes one line."""
    h5py = h5py_module()
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield _Tree(str(path), file)
    except FileError:
        raise
    except InputError as error:
        raise FileError(f"{path}: {error}") from error
    except Exception as error:  # HDF5 has many complaints about a bad file, and h5py a class for each
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(f"{path}: not a readable netx file ({reason}); make it again") from error


def read_netx(path: PathLike) -> LoihiModel:
    """The integer model in a netx file, ours or another's: it runs in numpy, spike for spike as Lava does.

    netx keeps neither T nor when states are cleared: in a file from elsewhere a token is one step, states are
    never cleared (nor spikes on their way back dropped) and the input is spikes;
    `dataclasses.replace(model, message_bits=8, input_max=127)` says otherwise.

    Raises:
        FileError: it is no netx file, is damaged, or asks for what the model has not.
        MissingDependencyError: h5py is not installed.
    """
    return read_file(path)[0]


def _read(file: _Tree) -> tuple[LoihiModel, dict[str, Any], NDArray[np.int64] | None, LoihiRun | None]:
    header = _header(file)
    input_shape, layers = _layers(file.sub("layer"))
    names = header.get("names", [layer.name for layer in layers])
    valid = isinstance(names, list) and all(isinstance(n, str) and _NAME.fullmatch(n) for n in names)
    if not valid or len(names) != len(layers) or len(set(names)) != len(names):
        raise file.told("marsnn/header", f"does not name the {len(layers)} layers")
    layers = [Layer(**{**layer.__dict__, "name": name}) for layer, name in zip(layers, names, strict=True)]
    interval = header.get("reset_interval")
    model = LoihiModel(
        layers=tuple(layers),
        input_shape=input_shape,
        message_bits=_whole(file, header, "message_bits", 0, 8, 0),
        input_max=_whole(file, header, "input_max", 1, INPUT_MAX, 1),
        steps=_whole(file, header, "steps", 1, LARGEST_STEPS, 1),
        reset_interval=None if interval is None else _whole(file, header, "reset_interval", 1, 2**31, 1),
        reset_offset=_whole(file, header, "reset_offset", 0, 2**31, 1),
        drops=header.get("drops", False),
    )
    if type(model.drops) is not bool:
        raise file.told("marsnn/header", f"has drops = {model.drops!r:.100}, expected true or false")
    if model.message_bits not in (0, 8) or (model.message_bits == 0 and model.input_max != 1):
        raise file.told(
            "marsnn/header",
            f"has message_bits = {model.message_bits} and input_max = {model.input_max}, "
            "expected 0 and 1, or 8 and up to 127",
        )
    if "marsnn" not in file or "inputs" not in file.sub("marsnn"):
        return model, header, None, None
    return model, header, *_golden(file.sub("marsnn"), model)


def _header(file: _Tree) -> dict[str, Any]:
    if "marsnn" not in file:
        return {}
    group = file.sub("marsnn")
    raw = group.array("header", (1,), 0, 255, LARGEST_HEADER).astype(np.uint8).tobytes()
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise group.told("header", "is no JSON") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise group.told("header", f"is of another format than {FORMAT}")
    return header


def _whole(file: _Tree, header: dict[str, Any], key: str, low: int, high: int, default: int) -> int:
    value = header.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise file.told("marsnn/header", f"has {key} = {value!r:.100}, expected {low} to {high}")
    return value


def _layers(tree: _Tree) -> tuple[tuple[int, ...], list[Layer]]:
    count = len(tree.group)
    if not 1 <= count <= LARGEST_LAYERS:
        raise tree.told("", f"has {count} layers, expected 1 to {LARGEST_LAYERS}")
    layers: list[Layer] = []
    shape: tuple[int, ...] | None = None
    input_shape: tuple[int, ...] | None = None
    for index in range(count):
        group = tree.sub(str(index))
        kind = group.text("type")
        if kind == "input" and index == 0:
            if "neuron" in group:
                raise group.told("neuron", "encodes the input on the chip; only an input without is read")
            shape = input_shape = tuple(group.array("shape", (1,), 1, 2**24, largest=3).tolist())
        elif kind == "flatten" and shape is not None and len(shape) == 3:
            shape = (int(np.prod(shape)),)
            input_shape = input_shape if layers else shape
        elif kind in ("dense", "dense_rec"):
            layers.append(_dense(group, index, shape, recurrent=kind == "dense_rec"))
            input_shape = (layers[0].weight.shape[1],) if input_shape is None else input_shape
            shape = layers[-1].shape
        elif kind == "conv":
            layers.append(_conv(group, index, shape))
            shape = layers[-1].shape
        else:
            raise group.told(
                "type", f"is {kind!r} as layer {index}; read are input, dense, dense_rec, conv, flatten"
            )
    if input_shape is None or not layers:
        raise tree.told("", "has no dense and no conv layer")
    return input_shape, layers


def _dense(group: _Tree, index: int, senders: tuple[int, ...] | None, recurrent: bool) -> Layer:
    _no_more(group, *() if recurrent else ("weight_rec",))
    neurons = int(np.prod(group.array("shape", (1,), 1, 2**24, largest=3)))
    weight = group.array("weight", (1, 2), -256, 255)
    if weight.ndim == 1 and weight.size % neurons == 0:
        weight = weight.reshape(neurons, -1)
    arriving = weight.shape[-1] if senders is None else senders[0]
    if weight.shape != (neurons, arriving) or (senders is not None and len(senders) != 1):
        came = "" if senders is None else f" of {list(senders)}"
        raise group.told("weight", f"is {list(weight.shape)}, expected {neurons} rows for an input{came}")
    own = None
    if recurrent:
        own = group.array("weight_rec", (1, 2), -256, 255)
        own = own.reshape(neurons, -1) if own.ndim == 1 and own.size % neurons == 0 else own
        if own.shape != (neurons, neurons):
            raise group.told("weight_rec", f"is {list(own.shape)}, expected {[neurons, neurons]}")
    lava_weights(weight, own)
    return Layer(
        f"dense{index}", weight, _bias(group, neurons), *_neuron(group), shape=(neurons,), recurrent=own
    )


def _conv(group: _Tree, index: int, senders: tuple[int, ...] | None) -> Layer:
    _no_more(group, "weight_rec")
    if senders is None or len(senders) != 3:
        raise group.told("type", "is 'conv', which needs an input of three axes before it")
    weight = group.array("weight", (4, 5), -256, 255)
    weight = weight.reshape(weight.shape[:4]) if weight.shape[4:] in ((), (1,)) else weight
    groups = group.number("groups", 1, 2**16)
    if weight.ndim != 4 or senders[0] != weight.shape[1] * groups or len(weight) % groups:
        raise group.told("weight", f"is {list(weight.shape)}, which does not fit an input {list(senders)}")
    bias = _bias(group, len(weight))
    layer = Layer(
        f"conv{index}", weight, bias, *_neuron(group), shape=(),
        stride=group.pair("stride", 1, 2**10), padding=group.pair("padding", 0, 2**10),
        dilation=group.pair("dilation", 1, 2**10), groups=groups,
    )  # fmt: skip
    shape = conv_shape(layer, senders)
    told = tuple(group.array("shape", (1,), 1, 2**24, largest=3).tolist())
    if told != shape or min(shape) < 1 or np.prod(shape) > LARGEST_ARRAY:
        raise group.told("shape", f"is {list(told)}, but the convolution gives {list(shape)}")
    return Layer(**{**layer.__dict__, "shape": shape})


def _no_more(group: _Tree, *names: str) -> None:
    for name in ("delay", *names):
        if name in group:
            raise group.told(name, "is not in the model of such a layer")


def _bias(group: _Tree, neurons: int) -> NDArray[np.int64]:
    if "bias" not in group:
        return np.zeros(neurons, dtype=np.int64)
    bias = group.array("bias", (1,), -BIAS_MAX - 1, BIAS_MAX)
    if len(bias) != neurons:
        raise group.told("bias", f"is {list(bias.shape)}, expected [{neurons}]")
    return bias


def _neuron(group: _Tree) -> tuple[int, int, int]:
    """Threshold, current decay, voltage decay."""
    neuron = group.sub("neuron")
    kind = neuron.text("type")
    if kind not in ("CUBA", "LOIHI"):
        raise neuron.told("type", f"is {kind!r}; read are CUBA and LOIHI")
    if "messageBits" in neuron:
        raise neuron.told("messageBits", "asks for graded spikes, which a LIF of netx does not send")
    if "refDelay" in neuron and neuron.number("refDelay", 0, 64) > 1:
        raise neuron.told("refDelay", "asks for a refractory time, which Lava's LIF has not")
    return (
        neuron.number("vThMant", 0, SILENT_THRESHOLD),
        neuron.number("iDecay", 0, UNITY),
        neuron.number("vDecay", 0, UNITY),
    )


def _golden(group: _Tree, model: LoihiModel) -> tuple[NDArray[np.int64], LoihiRun]:
    axes = len(model.input_shape) + 1
    inputs = group.array("inputs", (axes,), *model.arrives())
    if inputs.shape[1:] != model.input_shape:
        raise group.told("inputs", f"is {list(inputs.shape)}, expected W of {list(model.input_shape)}")
    trains = group.sub("spikes")
    run = LoihiRun()
    for index, layer in enumerate(model.layers):
        spikes = trains.array(str(index), (len(layer.shape) + 2,), 0, 1)
        if spikes.shape != (len(inputs), model.steps, *layer.shape):
            raise trains.told(
                str(index),
                f"is {list(spikes.shape)}, expected {[len(inputs), model.steps, *layer.shape]}",
            )
        run.spikes[layer.name] = spikes.astype(np.int8)
    return inputs, run
