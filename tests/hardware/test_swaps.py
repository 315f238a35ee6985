"""Reference: the search of cores against all permutations, against bounds by hand and against row by row."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from marsnn.hardware.chip import load_profile
from marsnn.hardware.place import place
from marsnn.hardware.swaps import anneal, cost_of, descend, lower_bound, search, starts
from tests.hardware.test_place import chain

LOIHI1 = load_profile("loihi1")


def distances(chip):
    east_west, north_south = chip.hops()
    return chip.hop_east_west * east_west + chip.hop_north_south * north_south


def test_a_mesh_by_hand():
    # Two tiles a row, two cores a tile: cores 0, 1 | 2, 3 over 4, 5 | 6, 7.
    chip = replace(LOIHI1, columns=2, rows=2, cores_per_tile=2, cores=7)
    assert [chip.tile(core) for core in (0, 1, 3, 4, 6)] == [(0, 0), (0, 0), (1, 0), (0, 1), (1, 1)]
    assert distances(chip)[0].tolist() == [0, 0, 3, 3, 4, 4, 7]
    rows, snake, columns = starts(chip, 7)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert snake.tolist() == [0, 1, 2, 3, 6, 4, 5]
    assert columns.tolist() == [0, 1, 4, 5, 6, 2, 3]
    flow = np.zeros((2, 2))
    flow[0, 1] = 5
    assert cost_of(flow, distances(chip), np.array([0, 6])) == 35


@pytest.mark.parametrize("shape", [(3, 2, 1), (2, 2, 2), (7, 1, 1)])
@pytest.mark.parametrize("seed", range(6))
def test_tiny_cases_end_at_the_optimum(shape, seed):
    columns, rows, per_tile = shape
    chip = replace(
        LOIHI1, columns=columns, rows=rows, cores_per_tile=per_tile, cores=columns * rows * per_tile
    )
    rng = np.random.default_rng(seed)
    flow = rng.random((5, 5)) * (rng.random((5, 5)) < 0.6)
    distance = distances(chip)
    optimum = min(cost_of(flow, distance, np.array(p)) for p in permutations(range(chip.cores), 5))
    found = search(flow, distance, starts(chip, 5), seed)
    assert len(set(found.tolist())) == 5
    assert cost_of(flow, distance, found) == pytest.approx(optimum)
    assert lower_bound(flow, distance) <= optimum + 1e-9


def test_a_bound_that_is_reached():
    # A star of 4 on a cross of tiles: the middle has two neighbours at 3 and two at 4.
    chip = replace(LOIHI1, columns=3, rows=3, cores_per_tile=1, cores=9)
    flow = np.zeros((5, 5))
    flow[0, 1:] = (4, 3, 2, 1)
    optimum = 3 * (4 + 3) + 4 * (2 + 1)
    found = search(flow, distances(chip), starts(chip, 5))
    assert cost_of(flow, distances(chip), found) == pytest.approx(optimum)
    # Each outer part at distance 3 from the middle, the middle as it is, halved.
    assert lower_bound(flow, distances(chip)) == pytest.approx((optimum + 3 * 10) / 2)


@pytest.mark.parametrize("layers", [4, 20, 32, 100, 128])
def test_chains_end_at_the_optimum(layers):
    """One core a layer, 4 a tile: ceil(n / 4) - 1 moves between tiles, one up for every further row of 8."""
    placed = place(chain(64, *[256] * layers), effort=0.2)
    assert placed.cores_used == layers
    tiles = -(-layers // 4)
    up = -(-tiles // 8) - 1
    optimum = 256 * (3.0 * (tiles - 1 - up) + 4.0 * up)
    assert placed.weighted_hops == pytest.approx(optimum)
    assert placed.bound <= placed.weighted_hops <= placed.naive


@pytest.mark.parametrize("sizes", [(1024, *[1024] * 6), (1024, 2048, 1600, 1024), (256, *[512] * 20)])
def test_never_worse_than_row_by_row_and_the_same_seed_is_the_same(sizes):
    runs = [place(chain(*sizes), seed=seed, effort=0.3) for seed in (0, 0, 1)]
    for placed in runs:
        assert placed.bound <= placed.weighted_hops <= placed.naive
        assert placed.weighted_hops < 0.95 * placed.naive
    assert runs[0] == runs[1]


def test_another_seed_searches_elsewhere():
    first, second = (place(chain(1024, *[1024] * 6), seed=seed, effort=0.1) for seed in (0, 1))
    assert first.cores != second.cores
    assert (first.seed, second.seed) == (0, 1)


def test_each_step_of_the_search_helps_from_anywhere():
    """From cores at random: descent, and an anneal before it, each cheaper than what it began with."""
    rng = np.random.default_rng(1)
    flow = np.diag(np.ones(59), 1) + 0.1 * (rng.random((60, 60)) < 0.05)
    distance = distances(LOIHI1)
    begin = rng.permutation(128)[:60]
    before = cost_of(flow, distance, begin)
    down = descend(flow, distance, begin)
    hot = anneal(flow, distance, begin, np.random.default_rng(0), 60_000, 0.5)
    both = search(flow, distance, [begin])
    assert cost_of(flow, distance, down) < 0.5 * before
    assert cost_of(flow, distance, hot) < 0.5 * before
    assert cost_of(flow, distance, both) <= min(cost_of(flow, distance, down), cost_of(flow, distance, hot))
    # After a descent no swap of two parts, or with an empty core, helps.
    least = cost_of(flow, distance, down)
    for i in range(0, 60, 7):
        for core in range(128):
            swapped = down.copy()
            swapped[down == core], swapped[i] = down[i], core
            assert cost_of(flow, distance, swapped) >= least - 1e-6


def test_nothing_to_say():
    for n in (0, 1, 3):
        found = search(np.zeros((n, n)), distances(LOIHI1), starts(LOIHI1, n))
        assert found.tolist() == list(range(n))
        assert lower_bound(np.zeros((n, n)), distances(LOIHI1)) == 0
