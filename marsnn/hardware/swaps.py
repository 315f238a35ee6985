"""Which core each part takes: parts that talk much lie near each other, found by swaps.

A quadratic assignment problem: part i at core c(i), messages F from part to part, distances D between cores,

    cost = sum over i, j of F[i, j] D[c(i), c(j)]

Starts: parts in their order row by row, along a snake by rows and along one by columns. From the best of
these two anneals over random swaps, a hot one that lays everything anew and a cool one that keeps its shape;
then from the best ever seen the best swap, until none helps. A part may also be swapped with an empty core.

A robust tabu search (Taillard 1991) was tried instead: from the same starts it ended 0 to 9 % dearer on
chains of 40 to 100 cores, as equal parts give it endless swaps that change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from marsnn.hardware.chip import Chip

Floats = NDArray[np.float64]
Cores = NDArray[np.int64]

SWAPS_A_PART = 1200
"""Of each anneal, tried."""
HOT, COOL = 1.0, 0.05
"""Where an anneal begins, in the cost of a part at the start; it ends at a thousandth of that."""
COLDER = 1e-3
METHOD = "snakes, then two anneals over swaps, then the best swaps while they help"


def cost_of(flow: Floats, distance: Floats, cores: Cores) -> float:
    """Messages times distance, of parts [n] on cores [n]."""
    return float((flow * distance[np.ix_(cores, cores)]).sum())


def starts(chip: Chip, parts: int) -> list[Cores]:
    """Row by row, and two snakes: the first `parts` cores along each."""
    tiles = [chip.tile(core) for core in range(chip.cores)]
    orders = [
        sorted(range(chip.cores), key=lambda core: (tiles[core][1], tiles[core][0])),
        sorted(
            range(chip.cores),
            key=lambda core: (tiles[core][1], tiles[core][0] * (-1) ** tiles[core][1]),
        ),
        sorted(
            range(chip.cores),
            key=lambda core: (tiles[core][0], tiles[core][1] * (-1) ** tiles[core][0]),
        ),
    ]
    return [np.array(order[:parts], dtype=np.int64) for order in orders]


def search(
    flow: Floats, distance: Floats, begin: Sequence[Cores], seed: int = 0, effort: float = 1.0
) -> Cores:
    """Cores of the parts, no dearer than the best of `begin`; the same seed gives the same cores.

    Args:
        flow: messages from part to part [n, n].   distance: between cores [C, C], symmetric.
        begin: cores [n] to begin from.   effort: anneals as many times as long; 0 leaves them out.
    """
    best = min(begin, key=lambda cores: cost_of(flow, distance, cores))
    if not flow.any():
        return best
    rng = np.random.default_rng(seed)
    tried = int(effort * SWAPS_A_PART * len(flow))
    found = [best, *(anneal(flow, distance, best, rng, tried, heat) for heat in (HOT, COOL) if tried)]
    descended = [best, *(descend(flow, distance, cores) for cores in found)]
    return min(descended, key=lambda cores: cost_of(flow, distance, cores))


def with_empty(flow: Floats, cores: Cores, count: int) -> tuple[Floats, Cores]:
    """Messages both ways [C, C] and cores [C], where empty cores hold parts that say nothing."""
    both = np.zeros((count, count))
    both[: len(flow), : len(flow)] = flow + flow.T
    np.fill_diagonal(both, 0.0)  # to itself no part goes far
    return both, np.concatenate([cores, np.setdiff1d(np.arange(count), cores)])


def anneal(
    flow: Floats, distance: Floats, cores: Cores, rng: np.random.Generator, tried: int, heat: float
) -> Cores:
    """The best cores that simulated annealing saw, swap after random swap, `cores` included."""
    n, C = len(flow), len(distance)
    both, at = with_empty(flow, cores, C)
    best, cost = cores, cost_of(flow, distance, cores)
    least, warm = cost, heat * cost / n
    first, second = rng.integers(0, n, tried), rng.integers(0, C, tried)
    luck = -np.log1p(-rng.random(tried))
    for swap, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        a, b = at[i], at[j]
        if distance[a, b] == 0:
            continue  # one tile, or the part itself
        change = (both[i] - both[j]) @ (distance[b, at] - distance[a, at]) + 2 * both[i, j] * distance[a, b]
        if change <= 0 or change < luck[swap] * warm * COLDER ** (swap / tried):
            at[i], at[j] = b, a
            cost += float(change)
            if cost < least * (1 - 1e-9):
                least, best = cost, at[:n].copy()
    return best


def descend(flow: Floats, distance: Floats, cores: Cores) -> Cores:
    """The best swap, again and again, until none makes it cheaper."""
    n, C = len(flow), len(distance)
    both, at = with_empty(flow, cores, C)
    reach = both @ distance[at]  # [part, core]: what the part would cost there
    everyone, too_little = np.arange(C), -1e-9 * (1.0 + cost_of(flow, distance, cores))
    while True:
        there = reach[:, at]  # [part, the other's core]
        own = there[everyone, everyone]
        change = there[:n] - own[:n, None] + there.T[:n] - own
        change += 2 * both[:n] * distance[np.ix_(at[:n], at)]
        i, j = divmod(int(change.argmin()), C)
        if change[i, j] >= too_little:
            return at[:n].copy()
        a, b = at[i], at[j]
        at[i], at[j] = b, a
        reach += np.outer(both[:, i] - both[:, j], distance[b] - distance[a])


def lower_bound(flow: Floats, distance: Floats) -> float:
    """No assignment costs less: each part's largest flows at its core's smallest distances, the best core.

    The first step of Gilmore and Lawler's bound, without its assignment problem.
    """
    if len(flow) < 2:
        return 0.0
    both = flow + flow.T
    np.fill_diagonal(both, 0.0)
    largest = -np.sort(-both, axis=1)[:, : len(flow) - 1]
    others = np.sort(distance + np.diag(np.full(len(distance), -1.0)), axis=1)[:, 1 : len(flow)]
    return float((largest @ others.T).min(axis=1).sum() / 2)
