"""Means with confidence intervals, and paired differences: what a handful of seeds can say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from marsnn.errors import InputError

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and how far the true mean may lie from it."""

    mean: float
    half: float | None  # half the width of the interval; None for a single value, which tells no spread
    n: int

    @property
    def low(self) -> float:
        """The lower end; the mean itself where there is no spread to tell."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + (self.half or 0.0)

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside; never true of a single value."""
        return self.half is not None and not self.low <= value <= self.high


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of independent values, with Student's confidence interval.

        mean +- t s / sqrt(n),   s over n - 1,   t = student_quantile((1 + level) / 2, n - 1)

    Args:
        values: one for each seed, at least one.
        level: the share of such intervals that hold the true mean, if the values are normal.

    Example:
        >>> from marsnn.intervals import interval
        >>> found = interval([1.0, 2.0, 3.0])
        >>> found.mean, round(found.half, 3)
        (2.0, 2.484)
    """
    if not values:
        raise InputError("an interval needs at least one value, got none")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Interval(mean, None, 1)
    t = student_quantile((1 + level) / 2, n - 1)
    return Interval(mean, t * statistics.stdev(values) / math.sqrt(n), n)


def paired(
    values: Mapping[int, float], reference: Mapping[int, float], level: float = LEVEL
) -> Interval | None:
    """The mean of values[seed] - reference[seed] over the seeds that both have, with its interval.

    What a seed does to both (initial weights, shuffling) cancels, so the interval is often narrower than
    those of the two means. None where no seed is shared.
    """
    shared = sorted(set(values) & set(reference))
    return interval([values[seed] - reference[seed] for seed in shared], level) if shared else None


def student_quantile(p: float, df: int) -> float:
    """The t with P(T <= t) = p for Student's distribution with `df` degrees of freedom, p >= 1/2.

    By bisection of the finite sums for whole `df` of Abramowitz and Stegun 1964, equations 26.7.3 and 26.7.4.
    """
    if not 0.5 <= p < 1:
        raise InputError(f"p must lie in [0.5, 1), got {p!r}")
    if isinstance(df, bool) or not isinstance(df, int) or df < 1:
        raise InputError(f"df must be a whole number >= 1, got {df!r}")
    low, high = 0.0, math.pi / 2
    while (angle := (low + high) / 2) not in (low, high):
        if _central(angle, df) < 2 * p - 1:
            low = angle
        else:
            high = angle
    return math.sqrt(df) * math.tan(angle)


def _central(angle: float, df: int) -> float:
    """P(abs(T) <= t), where angle = atan(t / sqrt(df))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(2, df, 2):
        total += term
        over, under = (k, k + 1) if odd else (k - 1, k)
        term *= cosine**2 * over / under
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * (total + term)
