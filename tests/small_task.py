"""A task that trains in a moment, and neurons for it; in a module, so that other processes find them."""

import torch

from marsnn.data import Split
from marsnn.neurons import LIF
from marsnn.tasks import Task


def drawn(samples, seed):
    """x [2, B, 4] around the corner of the tetrahedron that the class y [B] of three names, noisy."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (samples,), generator=generator)
    return Split(torch.eye(4)[y] + 0.45 * torch.randn(2, samples, 4, generator=generator), y)


def corners():
    """90 / 60 / 60 samples."""
    return Task("corners", drawn(90, 0), drawn(60, 1), drawn(60, 2))


def greedy(features, steps, tau=2.0, threshold=1.0):
    """LIF that draws random numbers when it is made."""
    torch.rand(17)
    return LIF(features, steps=steps, tau=tau, threshold=threshold, carry="sequence")


def fragile(features, steps, tau=2.0):
    """LIF that can't be made for seed 1."""
    if torch.initial_seed() == 1:
        raise RuntimeError("seed 1 is unlucky")
    return LIF(features, steps=steps, tau=tau)


def changing(calls=[]):  # noqa: B006 (it shall remember)
    """Other data in every call."""
    calls.append(len(calls))
    return Task("changing", drawn(9, len(calls)), drawn(9, 1), drawn(9, 2))


def broken():
    """A task that fails."""
    return 1 / 0


def nothing():
    """Not a task."""
    return "nothing"
