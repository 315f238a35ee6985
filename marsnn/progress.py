"""Progress bars: drawn on a terminal, silent in pipes, logs and tests."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, enabled: bool = True, number: int | None = None) -> Iterator[T]:
    """Yield the items, with a bar on standard error that says what is being done and how long it takes.

    Args:
        number: of the items, where they have no length.
    """
    if not (enabled and sys.stderr.isatty()):
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=what, console=Console(stderr=True), transient=True, total=number)


def say(message: str, enabled: bool = True) -> None:
    """A line on standard error about what begins, in logs and pipes too."""
    if enabled:
        print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time for people: 40 s, 3 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
