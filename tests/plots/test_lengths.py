"""Unit: what stands on the axes is what the result holds."""

import matplotlib.pyplot as plt
import pytest

from marsnn.errors import InputError
from marsnn.plots.lengths import length_panels, over_length
from tests.plots.test_plots import LENGTHS


def lines(ax):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}


def test_time_is_per_thousand_tokens():
    ax = over_length(LENGTHS)
    assert set(lines(ax)) == {"SSD", "attention", "projections"}
    assert lines(ax)["SSD"] == ([64, 128, 256], [1000.0] * 3)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    plt.close("all")


def test_memory_leaves_out_what_was_not_measured():
    assert lines(over_length(LENGTHS, "memory")) == {"SSD": ([128, 256], [128.0, 256.0])}
    plt.close("all")


def test_panels_have_both():
    left = length_panels(LENGTHS)
    assert [ax.get_ylabel() for ax in left.figure.axes] == [
        "ms per 1,000 tokens, forward + backward",
        "MB, forward + backward",
    ]
    plt.close("all")


@pytest.mark.parametrize(
    ("result", "what"), [({}, "time"), ({"whole": []}, "time"), (None, "memory"), (LENGTHS, "heat")]
)
def test_what_is_no_result_is_refused(result, what):
    with pytest.raises(InputError):
        over_length(result, what)
