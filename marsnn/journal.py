"""Journal: finished pieces of a long run, a JSON line each, so that an interrupted run goes on.

    line 1          the header: what all pieces have in common; a run with another header is refused
    other lines     {"key": ..., "result": ...}, appended and flushed as each piece ends

Only ever appended to. A last line that was torn by a kill is cut off when the journal is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from marsnn.errors import FileError
from marsnn.files import PathLike

try:
    import fcntl
except ImportError:  # Windows: two runs on one journal are not told apart there
    fcntl = None  # type: ignore[assignment]


class Journal:
    """Results by key, kept in a file; in memory alone where `path` is None.

    Args:
        path: the journal; made where there is none.
        header: JSON-ready, what makes results comparable.

    Raises:
        FileError: it can't be written or read, another run writes it now, or its header differs.

    Example:
        >>> from marsnn.journal import Journal
        >>> with Journal(None, {"epochs": 3}) as journal:
        ...     journal.add({"seed": 0}, {"accuracy": 0.5})
        ...     print({"seed": 0} in journal, journal[{"seed": 0}])
        True {'accuracy': 0.5}
    """

    def __init__(self, path: PathLike | None, header: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.header = dict(header)
        self.results: dict[str, Any] = {}
        self.file: BinaryIO | None = None
        if self.path is not None:
            try:
                self._open(self.path)
            except BaseException:
                self.close()
                raise

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a+b")
        except OSError as error:
            raise FileError(f"{path}: can't write: {(error.strerror or str(error)).lower()}") from error
        self._lock(path)
        self.file.seek(0)
        content = self.file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._append({"header": self.header})
            return
        self._compare(path, self._parsed(path, 1, lines[0], ("header",))["header"])
        for number, line in enumerate(lines[1:], 2):
            entry = self._parsed(path, number, line, ("key", "result"))
            self.results[_canonical(entry["key"])] = entry["result"]

    def _lock(self, path: Path) -> None:
        """For as long as the file is open; the system lets go of it however the process ends."""
        assert self.file is not None
        if fcntl is not None:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FileError(f"{path}: another run is writing it; wait for its end") from error

    def _parsed(self, path: Path, number: int, line: bytes, fields: tuple[str, ...]) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or set(entry) != set(fields):
            raise FileError(
                f"{path}: line {number} is damaged or not of a journal; delete the line or the file"
            )
        return entry

    def _compare(self, path: Path, found: Any) -> None:
        own = json.loads(_canonical(self.header))
        found = found if isinstance(found, dict) else {}
        names = [name for name in {**own, **found} if own.get(name) != found.get(name)]
        if names:
            shown = ", ".join(f"{name} {found.get(name)!r} (now {own.get(name)!r})" for name in names)
            raise FileError(
                f"{path}: holds results of another configuration: {shown}; choose another file, or delete it"
            )

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return _canonical(key) in self.results

    def __getitem__(self, key: Mapping[str, Any]) -> Any:
        return self.results[_canonical(key)]

    def add(self, key: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keep one result: on disk before this returns."""
        self._append({"key": key, "result": result})
        self.results[_canonical(key)] = json.loads(_canonical(result))  # as it will be read again

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self.file is not None:
            try:
                self.file.write(f"{_canonical(entry)}\n".encode())
                self.file.flush()
                os.fsync(self.file.fileno())
            except OSError as error:
                raise FileError(
                    f"{self.path}: can't write: {(error.strerror or str(error)).lower()}"
                ) from error

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _canonical(value: Any) -> str:
    """The same text for equal JSON values; refuses NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
