"""verify_netx: a netx file in Lava's simulator, through lava-dl's own netx, compared spike for spike.

Lava needs Python 3.10 and its own packages, so it runs beside marsnn as another process. Needs numpy, h5py.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import FileError, InputError, LavaError
from marsnn.files import PathLike, read_npz
from marsnn.hardware import beside
from marsnn.hardware.lava import Verification, find_python
from marsnn.hardware.netx_file import read_file

RUNTIME = Path(__file__).parent / "netx_runtime"


def verify_netx(
    path: PathLike,
    inputs: NDArray[np.integer] | None = None,
    simulator: Literal["lava", "integer"] = "lava",
) -> Verification:
    """Run a netx file in Lava and compare every spike of every layer, step and token.

    Args:
        path: the file.
        inputs: tokens [W, *D] in integers to compare on, against our integer model; None takes the golden run
            in the file, inputs and spikes.
        simulator: "lava" runs Lava's CPU simulator, "integer" only the integer model.

    Raises:
        FileError: the file is damaged, or has no golden run and no inputs were given.
        LavaError: Lava or lava-dl is missing, or failed.
    """
    if simulator not in ("lava", "integer"):
        raise InputError(f'simulator must be "lava" or "integer", got {simulator!r}')
    model, _, stored, golden = read_file(path)
    if inputs is None:
        if stored is None or golden is None:
            raise FileError(f"{path}: has no golden run; give the inputs to compare on")
        data = stored
    else:
        data = np.asarray(inputs)
        golden = model.run(data)
    started = time.perf_counter()
    if simulator == "lava":
        trains = run_in_lava(Path(path), data)
        sent = [
            train[1 + index : 1 + index + len(data) * model.steps].reshape(
                len(data), model.steps, *train.shape[1:]
            )
            for index, train in enumerate(trains)
        ]
    else:
        sent = list(model.run(data).spikes.values())
    seconds = time.perf_counter() - started
    mismatches, first = 0, None
    for (name, expected), got in zip(golden.spikes.items(), sent, strict=True):
        if got.shape != expected.shape:
            raise LavaError(f"{path}: {name} sent {list(got.shape)}, expected {list(expected.shape)}")
        differs = got != expected
        mismatches += int(np.count_nonzero(differs))
        if first is None and differs.any():
            token, step, *neuron = (int(index) for index in np.argwhere(differs)[0])
            place = neuron[0] if len(neuron) == 1 else tuple(neuron)
            value = expected[(token, step, *neuron)]
            first = f"{name}: token {token}, step {step}, neuron {place}: sent {1 - value}, expected {value}"
    return Verification(
        mismatches=mismatches,
        slots=sum(array.size for array in golden.spikes.values()),
        sums=0,
        positive=sum(int(array.sum(dtype=np.int64)) for array in golden.spikes.values()),
        negative=0,
        first=first,
        simulator=simulator,
        seconds=seconds,
    )


def run_in_lava(path: Path, inputs: NDArray[np.integer]) -> list[NDArray[np.int8]]:
    """What every layer sent in Lava at its own steps, [S, *N], for tokens [W, *D]."""
    python = find_python()
    with tempfile.TemporaryDirectory() as folder:
        given, saved = Path(folder) / "inputs.npy", Path(folder) / "sent.npz"
        np.save(given, inputs, allow_pickle=False)
        beside.run(
            python, RUNTIME / "run.py", [path.resolve(), "--inputs", given, "--save", saved], saved,
            f"Lava's run of {path}", LavaError,
        )  # fmt: skip
        arrays = read_npz(saved)
    return [arrays[str(index)] for index in range(len(arrays))]
