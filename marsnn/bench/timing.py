"""Timing side by side: one round runs every contestant once, so that all meet the same machine.

A ratio is taken within each round and only then summarised; what slows a whole round slows both sides of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Summary = dict[str, float]
"""median, low and high: the quartiles."""


def rounds(
    contestants: dict[str, Callable[[], Any]], count: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each contestant in each of `count` rounds, after two that are not kept.

    The order turns by one from round to round, so that nobody always runs after the same other.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-2, count):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            _wait(device)
            started = time.perf_counter()
            result = contestants[name]()
            _wait(device)
            ended = time.perf_counter()
            del result
            if number >= 0:
                seconds[name].append(ended - started)
    return seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def summary(values: Sequence[float]) -> Summary:
    """The median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "low": low, "high": high}


def ratio(over: Sequence[float], under: Sequence[float]) -> Summary:
    """Of two contestants, round by round."""
    return summary([a / b for a, b in zip(over, under, strict=True)])


def forward(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What is timed as forward: no gradients."""
    with torch.no_grad():
        return call(x)


def both(call: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> None:
    """What is timed as forward + backward."""
    x.grad = None
    call(x).backward(upstream)


def again(times: int, call: Callable[[], Any]) -> None:
    """What is too short to be timed, several times."""
    for _ in range(times):
        call()
