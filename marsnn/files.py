"""Writing so that nothing is lost: beside the target, then renamed over it.

An interrupted or failed write leaves the old file, or none. Used for every file that marsnn writes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from marsnn.errors import FileError

PathLike = str | os.PathLike[str]


def _told(path: Path, error: OSError) -> FileError:
    reason = error.strerror or str(error)
    return FileError(f"{path}: can't write: {reason.lower()}; nothing was changed there")


def write_bytes(path: PathLike, data: bytes) -> Path:
    """Replace the file at `path` by `data`, or leave it as it is. Folders are made on the way."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _told(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~_umask())
        os.replace(beside, path)
    except OSError as error:
        Path(beside).unlink(missing_ok=True)
        raise _told(path, error) from error
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return path


def probe(path: PathLike) -> None:
    """Before long work: refuse a file or folder `path` that could not be written at its end."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path if path.is_dir() else path.parent):
            pass
    except OSError as error:
        raise _told(path, error) from error


def write_text(path: PathLike, text: str) -> Path:
    """As `write_bytes`, in UTF-8."""
    return write_bytes(path, text.encode())


def json_text(value: Any) -> str:
    """Readable JSON with a final newline; refuses NaN."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as a compressed .npz, the same bytes for the same arrays; never pickles."""
    buffer = io.BytesIO()
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(buffer, allow_pickle=False, **plain)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_npz(path: PathLike) -> dict[str, np.ndarray]:
    """All arrays of an .npz; a pickled, truncated or foreign file is a FileError."""
    path = Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
            strange = [name for name, value in found.items() if not isinstance(value, np.ndarray)]
            if strange:
                raise ValueError(f"{strange[0]!r} is no array")
            return found
    except FileNotFoundError as error:
        raise FileError(f"{path}: no such file") from error
    except PermissionError as error:
        raise FileError(f"{path}: no permission to read it") from error
    except Exception as error:  # zipfile, zlib, numpy: each has its own complaint about a bad file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(f"{path}: not a readable .npz of plain arrays ({reason}); make it again") from error


def read_json(path: PathLike) -> Any:
    """The value in a JSON file; anything else is a FileError."""
    return _parsed(Path(path), json.loads, "JSON")


def read_toml(path: PathLike) -> dict[str, Any]:
    """The table in a TOML file; anything else is a FileError."""
    return _parsed(Path(path), tomllib.loads, "TOML")


def _parsed(path: Path, parse: Callable[[str], Any], kind: str) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"{path}: no such file") from error
    except OSError as error:
        raise FileError(f"{path}: can't read it: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8
        raise FileError(f"{path}: not valid {kind} ({str(error).splitlines()[0]}); make it again") from error


@contextmanager
def new_folder(path: PathLike) -> Iterator[Path]:
    """A folder to fill, which takes its name `path` only when all went well.

    Within the block the folder lies beside the target. An older folder at `path` is replaced at the end;
    after an error it is left as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        beside.chmod(0o777 & ~_umask())
    except OSError as error:
        raise _told(path, error) from error
    try:
        yield beside
        _swap(beside, path)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, FileError):
            raise
        raise _told(path, error) from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _swap(beside: Path, path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise FileError(f"{path}: is a file, not a folder; choose another name")
    if not path.exists():
        os.replace(beside, path)
        return
    old = beside.with_name(beside.name + ".old")
    os.replace(path, old)
    try:
        os.replace(beside, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
