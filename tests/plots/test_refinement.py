"""Unit: what is drawn of a plan and of a report is what they hold."""

import matplotlib
import numpy as np
import pytest

from marsnn import plots
from marsnn.errors import InputError
from marsnn.plots.refinement import pictures
from tests.plots.test_plots import PLAN, REPORT

matplotlib.use("Agg")


def test_bars_of_a_plan_are_its_scores():
    ax = plots.plan_bars(PLAN)
    bars = {round(bar.get_x() + bar.get_width() / 2): bar for bar in ax.patches}
    assert bars[0].get_height() == 0.5
    assert bars[1].get_height() == 0.1
    assert bars[0].get_facecolor() != bars[1].get_facecolor() == bars[2].get_facecolor()
    (marks,) = [line for line in ax.lines if line.get_label().startswith("times")]
    np.testing.assert_allclose(marks.get_ydata(), [0.125, 0.1])  # a fit that misses more than all misses all


def test_bars_of_quality_are_bits():
    ax = plots.quality_bars(REPORT)
    widths = sorted(bar.get_width() for bar in ax.patches)
    assert widths == sorted([1.0, 2.0, 2.0, 4.0, 1.1, 2.2])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]


def test_curves_of_energy_are_shares_and_leave_out_who_has_none():
    ax = plots.energy_curves(REPORT)
    drawn = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert set(drawn) == {"dense", "spiking"}
    np.testing.assert_allclose(drawn["spiking"].get_ydata(), [0.4, 0.2])
    assert len(ax.lines) == 4


def test_layers_and_rates():
    ax = plots.layer_curves(REPORT)
    assert len(ax.lines) == 2
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [1e-12, 0.2])
    (image,) = plots.rate_map(REPORT["rows"]["spiking"]["rates"]).images
    np.testing.assert_allclose(image.get_array(), [[0.5, 0.25]])


def test_all_pictures_of_a_report_are_svg():
    drawn = pictures(REPORT)
    assert len(drawn) == 5
    assert all(picture.startswith("<svg") for picture in drawn)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    "draw", [plots.plan_bars, plots.quality_bars, plots.energy_curves, plots.layer_curves]
)
def test_something_else_is_refused(draw):
    with pytest.raises(InputError):
        draw({})


def test_nothing_to_compare_and_no_rates_are_refused():
    with pytest.raises(InputError, match="against a teacher"):
        plots.layer_curves({**REPORT, "rows": {"dense": REPORT["rows"]["dense"]}})
    with pytest.raises(InputError, match="no spikes"):
        plots.rate_map({})
