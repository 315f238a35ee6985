"""What a simulation leaves behind: the Recorder that listens, the Recording that keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marsnn.errors import FileError, InputError
from marsnn.files import PathLike, npz_bytes, read_npz, write_bytes
from marsnn.network import Signal, State
from marsnn.neurons.base import Neuron

RECORDABLE = ("spikes", "membrane")
FORMAT = "marsnn.recording/1"

EVENT = np.dtype(
    [("token", np.int64), ("step", np.int64), ("sample", np.int64), ("neuron", np.int64), ("sign", np.int8)]
)
"""One spike: its token and micro-step, its sample of the batch, its neuron (flat index), its value."""


class Recorder:
    """A listener that keeps spikes and membranes, token by token."""

    def __init__(self, record: Iterable[str]) -> None:
        wanted = (record,) if isinstance(record, str) else tuple(record or ())
        unknown = [what for what in wanted if what not in RECORDABLE]
        if unknown:
            raise InputError(f"can't record {unknown}; record may hold {', '.join(RECORDABLE)}")
        self.wanted = wanted
        self.membrane = "membrane" in wanted
        self.kept: dict[str, dict[str, list[np.ndarray]]] = {what: {} for what in wanted}

    def neuron(self, name: str, neuron: Neuron, spikes: Tensor, membrane: Tensor | None) -> None:
        if "spikes" in self.wanted and neuron.levels:
            small = max(abs(level) for level in neuron.levels) < 128
            kept = to_numpy(spikes.to(torch.int8) if small else spikes)
            self.kept["spikes"].setdefault(name, []).append(kept)
        if "membrane" in self.wanted and membrane is not None:
            self.kept["membrane"].setdefault(name, []).append(to_numpy(membrane))

    def layer(self, name: str, layer: nn.Module, source: Signal, output: Signal) -> None:
        """Only neurons are recorded."""

    def arrays(self, what: str) -> dict[str, np.ndarray]:
        """Layer name -> [L, T, B, *]."""
        return {name: np.concatenate(parts) for name, parts in self.kept.get(what, {}).items()}


@dataclass
class Recording:
    """What one simulation did.

    Attributes:
        output: [L, B, *C], the network's output.
        spikes: layer name -> [L, T, B, *N] of small integers.
        membrane: layer name -> [L, T, B, *N], the membrane after each step's reset, in the run's dtype.
        state: hand it to `simulate(network, more, state=...)` to go on.
    """

    output: np.ndarray
    spikes: dict[str, np.ndarray] = field(default_factory=dict)
    membrane: dict[str, np.ndarray] = field(default_factory=dict)
    state: State = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The recorded layers, in order."""
        return tuple(dict.fromkeys([*self.spikes, *self.membrane]))

    def rates(self) -> dict[str, float]:
        """Layer name -> mean number of spikes, either sign, per neuron and micro-step."""
        return {name: float(np.mean(array != 0)) for name, array in self._spikes().items()}

    def events(self) -> dict[str, np.ndarray]:
        """Layer name -> its spikes as a structured array (token, step, sample, neuron, sign), in time order.

        `neuron` is the flat index where a layer has more than one axis; see `EVENT` for the fields.
        """
        return {name: events_of(array) for name, array in self._spikes().items()}

    def _spikes(self) -> dict[str, np.ndarray]:
        if not self.spikes:
            raise InputError(
                'this Recording holds no spikes; simulate a network with neurons and record=("spikes",)'
            )
        return self.spikes

    def save(self, path: PathLike) -> Path:
        """Write all of it to one file, an .npz without pickle; `Recording.load` reads it back."""
        arrays = {"output": self.output}
        for what in RECORDABLE:
            for name, array in getattr(self, what).items():
                arrays[f"{what}/{name}"] = array
        for name, state in self.state.items():
            fields = state if isinstance(state, Mapping) else state._asdict()
            for key, tensor in fields.items():
                arrays[f"state/{name}/{key}"] = to_numpy(tensor)
        header = json.dumps({"format": FORMAT, "layers": self.names})
        arrays["header"] = np.frombuffer(header.encode(), dtype=np.uint8)
        return write_bytes(path, npz_bytes(arrays))

    @classmethod
    def load(cls, path: PathLike) -> Recording:
        """Read what `save` wrote. A truncated, pickled or foreign file is a FileError."""
        arrays = read_npz(path)
        try:
            header = json.loads(arrays.pop("header").tobytes())
            if header["format"] != FORMAT:
                raise FileError(f"{path}: format {header['format']!r}, this marsnn reads {FORMAT!r}")
            recording = cls(output=arrays.pop("output"))
            fields: dict[str, dict[str, Tensor]] = {}
            for key, array in arrays.items():
                what, name, *rest = key.split("/")
                if what == "state":
                    fields.setdefault(name, {})[rest[0]] = torch.from_numpy(array)
                elif what in RECORDABLE:
                    getattr(recording, what)[name] = array
                else:
                    raise KeyError(key)
            recording.state = dict(fields)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise FileError(f"{path}: not a Recording that marsnn saved; save it again") from error
        return recording


def events_of(spikes: np.ndarray) -> np.ndarray:
    """Spikes [L, T, B, *N] as events, ordered by token, step, sample, neuron."""
    flat = spikes.reshape(*spikes.shape[:3], -1)
    where = np.nonzero(flat)
    events = np.empty(len(where[0]), dtype=EVENT)
    for key, index in zip(("token", "step", "sample", "neuron"), where, strict=True):
        events[key] = index
    events["sign"] = flat[where]
    return events


def to_numpy(tensor: Any) -> np.ndarray:
    """A detached copy on the CPU; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
