"""Progress bars: drawn on a terminal, silent in pipes, logs and tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T], what: str, enabled: bool = True) -> Iterator[T]:
    """Yield the items, with a bar on standard error that says what is being done and how long it takes."""
    if not (enabled and sys.stderr.isatty()):
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=what, console=Console(stderr=True), transient=True)


def say(message: str, enabled: bool = True) -> None:
    """A line on standard error about what begins, in logs and pipes too."""
    if enabled:
        print(message, file=sys.stderr, flush=True)
