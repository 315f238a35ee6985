"""The chip's arithmetic on arrays of integers: each of these is a place where a wrong chip would differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marsnn.hardware.stages import DECAY_BITS, STATE_MAX, Ints


def saturate(x: Ints, largest: int = STATE_MAX) -> tuple[Ints, int]:
    """Clip to the 24-bit state (or another width) and say how many values were clipped."""
    clipped = np.clip(x, -largest, largest)
    return clipped, int(np.count_nonzero(clipped != x))


def leak(state: Ints, decay: Ints) -> Ints:
    """Multiply by decay / 4096, rounding toward zero."""
    return np.sign(state) * ((np.abs(state) * decay) >> DECAY_BITS)


def toward_zero(x: Ints, shift: Ints | int) -> Ints:
    """Shift right, rounding toward zero."""
    return np.sign(x) * (np.abs(x) >> shift)


def ratio(x: Ints, by: Ints | int) -> Ints:
    """A quotient by a positive number, rounded toward zero."""
    return np.sign(x) * (np.abs(x) // by)


def root(x: Ints) -> Ints:
    """The largest integer whose square is at most x, for x from 0 to 9 * 10^18."""
    found = np.sqrt(x.astype(np.float64)).astype(np.int64)
    found = np.where(found * found > x, found - 1, found)
    return np.where((found + 1) * (found + 1) <= x, found + 1, found)


def look_up(table: Ints, place: Ints) -> Ints:
    """The entry `place` steps from the middle one, the ends standing for what lies beyond."""
    middle = len(table) // 2
    return table[middle + np.clip(place, -middle, middle)]


def passes(y: Ints, level: Ints) -> NDArray[np.bool_]:
    """At or above the level, in magnitude."""
    return np.abs(y) >= level


def fires(h: Ints, fire: Ints) -> NDArray[np.bool_]:
    """At or above the threshold."""
    return h >= fire
