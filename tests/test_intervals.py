"""Golden and reference: intervals worked out by hand, quantiles against scipy's."""

import math

import pytest
from scipy import stats

from marsnn.errors import InputError
from marsnn.intervals import interval, paired, student_quantile


def test_an_interval_by_hand():
    # 1, 2, 3: mean 2, sample deviation 1, t of 2 degrees 4.302653 (any table), half 4.302653 / sqrt(3)
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert (found.low, found.high) == (2 - found.half, 2 + found.half)
    assert found.n == 3
    assert interval([1.0, 2.0, 3.0], level=0.9).half == pytest.approx(2.919986 / math.sqrt(3), abs=1e-6)


def test_paired_differences_by_hand():
    # shared seeds 1, 2, 3: differences 2, 1, 3, so mean 2 and the half width of 1, 2, 3 above
    found = paired({1: 5.0, 2: 7.0, 3: 4.0, 9: 0.0}, {3: 1.0, 1: 3.0, 2: 6.0, 4: 8.0})
    assert found.mean == 2
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert found.n == 3
    assert paired({1: 5.0}, {2: 5.0}) is None


def test_what_all_seeds_share_cancels_in_the_differences():
    """Unpaired, the intervals overlap widely; paired, the difference is certain."""
    lucky = {seed: float(10 * seed) for seed in range(5)}
    better = {seed: value + 1.0 + 0.01 * (seed % 2) for seed, value in lucky.items()}
    assert interval(list(better.values())).low < interval(list(lucky.values())).high
    assert paired(better, lucky).excludes(0.0)
    assert not paired(lucky, {seed: -value for seed, value in lucky.items()}).excludes(40.0)


def test_a_single_value_tells_no_spread():
    alone = interval([0.5])
    assert (alone.mean, alone.half, alone.low, alone.high, alone.n) == (0.5, None, 0.5, 0.5, 1)
    assert not alone.excludes(0.0)
    with pytest.raises(InputError, match="at least one"):
        interval([])


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 8, 9, 30, 99, 1000])
@pytest.mark.parametrize("p", [0.5, 0.6, 0.95, 0.975, 0.9995])
def test_quantiles_are_those_of_scipy(df, p):
    assert student_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("p", "df"), [(0.4, 3), (1.0, 3), (0.9, 0), (0.9, 1.5), (0.9, True)])
def test_no_quantile_of_nonsense(p, df):
    with pytest.raises(InputError):
        student_quantile(p, df)
