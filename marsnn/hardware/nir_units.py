"""Between marsnn's micro-steps and NIR's continuous time: the few formulas that writer and reader share.

NIR's neurons are differential equations. Whoever runs one steps it by forward Euler with some dt, which is
not in the file; 1e-4 is what the importers of snnTorch and SpikingJelly assume:

    NIR     tau dv/dt = (v_leak - v) + r I     so     h = v + dt/tau (v_leak - v) + dt r/tau I
    marsnn                                            h = beta v + I,   beta = 1 - dt/tau

Hence tau = dt / (1 - beta) and r = tau / dt, with which a current is unscaled. NIR fires at >, marsnn at >=:
a threshold moves to the float beside it, and the two say the same of every float.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.floating[Any]]
FiresAt = Literal[">", ">="]

DT = 1e-4
"""Seconds a step, as the importers assume."""

NEAR_ONE = 1e-6
"""A gain this near to 1 is 1: the rounding of constants that were stored as float32."""


def time_constant(beta: Reals, dt: float) -> Reals:
    """tau in seconds of a decay per step, 0 <= beta < 1."""
    return dt / (1 - np.asarray(beta, dtype=np.float64))


def resistance(tau: Reals, dt: float) -> Reals:
    """r with which a membrane of time constant tau takes its current unscaled: dt r / tau = 1."""
    return tau / dt


def decay(tau: Reals, dt: float) -> Reals:
    """beta per step of a time constant in seconds."""
    return 1 - dt / np.asarray(tau, dtype=np.float64)


def gain(tau: Reals, r: Reals, dt: float) -> Reals:
    """What a current of 1 adds to the membrane in one step."""
    found = dt * np.asarray(r, dtype=np.float64) / np.asarray(tau, dtype=np.float64)
    return np.where(np.abs(found - 1) <= NEAR_ONE, 1.0, found)


def to_file(threshold: Reals, fires_at: FiresAt) -> Reals:
    """The threshold that a reader which fires at `fires_at` needs to do as marsnn does at >=."""
    return np.nextafter(threshold, -np.inf, dtype=threshold.dtype) if fires_at == ">" else threshold


def from_file(threshold: Reals, fires_at: FiresAt) -> Reals:
    """marsnn's threshold for one that was meant for a reader which fires at `fires_at`."""
    return np.nextafter(threshold, np.inf, dtype=threshold.dtype) if fires_at == ">" else threshold
