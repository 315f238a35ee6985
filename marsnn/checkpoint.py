"""A Network in one safetensors file: its weights, and what it is made of as JSON beside them.

Reading executes nothing: layers are built from a list of known classes, by plain numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from marsnn import neurons
from marsnn import surrogate as surrogates
from marsnn.errors import FileError, InputError, MarsnnError
from marsnn.files import PathLike, write_bytes
from marsnn.gated import GatedLinear
from marsnn.network import LINEAR_MAPS, SEQUENCE_LAYERS, TOKEN_LAYERS, Network
from marsnn.neurons.base import Neuron
from marsnn.neurons.recurrent import Recurrent
from marsnn.ssm import SequenceLayer

FORMAT = "marsnn.network/1"

_CONV = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
_POOL = ("kernel_size", "stride", "padding", "ceil_mode")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Linear": ("in_features", "out_features"),
    "Conv1d": _CONV,
    "Conv2d": _CONV,
    "AvgPool1d": (*_POOL, "count_include_pad"),
    "AvgPool2d": (*_POOL, "count_include_pad", "divisor_override"),
    "MaxPool1d": (*_POOL, "dilation"),
    "MaxPool2d": (*_POOL, "dilation"),
    "Flatten": ("start_dim", "end_dim"),
    "Dropout": ("p",),
    "GELU": ("approximate",),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "RMSNorm": ("normalized_shape", "eps", "elementwise_affine"),
}
"""Constructor arguments that a torch layer keeps as attributes; a missing class has none."""
WITH_BIAS = ("Linear", "Conv1d", "Conv2d", "LayerNorm")
KNOWN = {kind.__name__: kind for kind in (*LINEAR_MAPS, *TOKEN_LAYERS, *SEQUENCE_LAYERS)}


def save_network(network: Network, path: PathLike) -> Path:
    """Write a network to `path`; `load_network` reads it back, equal in settings, weights and dtype.

    A layer that stands in two places is written, and read back, as two.

    Raises:
        InputError: a layer, a neuron or a surrogate that is not marsnn's own, by name.   FileError: no
        permission, no space; an older file at `path` is then left as it is.
    """
    described = {
        "format": FORMAT,
        "layers": [{"name": name, **_describe(name, layer)} for name, layer in network.layers.items()],
        "skips": {target: list(sources) for target, sources in network.skips.items()},
        "unrolled": network.unrolled,
    }
    tensors = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
    return write_bytes(path, save(tensors, metadata={"marsnn": json.dumps(described)}))


def load_network(path: PathLike) -> Network:
    """Read a network that `save_network` wrote.

    Raises:
        FileError: missing, truncated, or not such a file; nothing in it is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        described = json.loads(metadata["marsnn"])
        if described["format"] != FORMAT:
            raise FileError(f"{path}: format {described['format']!r}, this marsnn reads {FORMAT!r}")
        layers = {row["name"]: _build(row) for row in described["layers"]}
        network = Network(layers, described["skips"], described["unrolled"])
        dtype = next((value.dtype for value in tensors.values() if value.is_floating_point()), None)
        network.to(dtype).load_state_dict(tensors)
    except FileError:
        raise
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path}: not a readable safetensors file ({error}); save it again") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MarsnnError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__  # torch's has several lines
        raise FileError(f"{path}: not a network that marsnn saved ({reason}); save it again") from error
    network.eval()
    return network


def _describe(name: str, layer: nn.Module) -> dict[str, Any]:
    kind = type(layer).__name__
    if type(layer) is Recurrent:
        if type(layer.recurrent) is not nn.Linear:
            raise InputError(
                f"{name}: its recurrent map is a {type(layer.recurrent).__name__}, and a file holds a plain "
                "Linear; take its parametrization off, or put a Linear of the same weights there"
            )
        return {"recurrent": _describe(name, layer.neuron), "arguments": layer.constructor()}
    if isinstance(layer, Neuron):
        if type(layer) not in map(neurons.get, neurons.names()):
            raise InputError(
                f"{name}: {layer._get_name()} is no neuron of marsnn's own and can't be saved; keep "
                "network.state_dict(), build the network again and load it there"
            )
        if surrogates.to_settings(layer.surrogate) is None:
            raise InputError(
                f"{name}: its surrogate is another library's and can't be saved; give it one of ours first, "
                "say neuron.surrogate = marsnn.surrogate.atan()"
            )
        return {"neuron": kind, "arguments": layer.constructor()}
    if KNOWN.get(kind) is not type(layer):
        raise InputError(f"{name}: can't save a {kind}; known are {', '.join(KNOWN)} and marsnn's neurons")
    if isinstance(layer, SequenceLayer | GatedLinear):
        return {"layer": kind, "arguments": layer.constructor()}
    arguments = {key: _plain(getattr(layer, key)) for key in ARGUMENTS.get(kind, ())}
    if kind in WITH_BIAS:
        arguments["bias"] = layer.bias is not None
    return {"layer": kind, "arguments": arguments}


def _build(row: dict[str, Any]) -> nn.Module:
    if "recurrent" in row:
        return Recurrent(_build(row["recurrent"]), **row["arguments"])  # type: ignore[arg-type]
    if "neuron" in row:
        return neurons.get(row["neuron"])(**row["arguments"])
    return KNOWN[row["layer"]](**row["arguments"])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
