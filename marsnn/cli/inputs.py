"""What the verbs read: a network's file and the inputs to run it on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from marsnn.checkpoint import load_network
from marsnn.data import load_digits
from marsnn.errors import FileError, InputError, ShapeError
from marsnn.network import Network


def seeded(seed: int) -> None:
    """Make everything random follow from one number."""
    torch.manual_seed(seed)


def load_input(network: Path, source: str, samples: int) -> tuple[Network, Tensor]:
    """A saved network, and x [L, B, D] in its dtype.

    Args:
        source: "digits" or "digits-rows" (the test split), or the path of a .npy file.
        samples: keep the first so many of the batch; 0 keeps all.
    """
    net = load_network(network)
    if source in ("digits", "digits-rows"):
        x = load_digits("flat" if source == "digits" else "rows").test.x
    else:
        x = _array(Path(source))
    if samples:
        x = x[:, :samples]
    parameter = next(net.parameters(), x)
    return net, x.to(parameter.dtype)


def _array(path: Path) -> Tensor:
    if not path.is_file():
        raise FileError(f'{path}: no such file; --input takes "digits", "digits-rows" or a .npy file')
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy has many complaints about a bad file
        raise FileError(f"{path}: not a plain .npy array ({str(error).splitlines()[0]})") from error
    if not isinstance(array, np.ndarray):
        raise FileError(f"{path}: holds several arrays; save x alone with numpy.save")
    if array.ndim < 3:
        raise ShapeError(f"{path}: expected x [L, B, *D], got {list(array.shape)}")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: holds {array.dtype}, expected numbers")
    return torch.as_tensor(array.astype(np.float64))
