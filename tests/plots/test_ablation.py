"""Unit: what accuracy_energy draws is what the table says."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

matplotlib.use("Agg")

from marsnn.errors import InputError
from marsnn.plots import accuracy_energy
from marsnn.plots.ablation import COLORS, DENSE, SHAPES, accuracy_energy_panels
from marsnn.tidy import summarize
from tests.test_tidy import ROWS, row


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def lines(ax):
    """Label -> (x, y) of the lines that the legend names."""
    return {
        line.get_label(): line.get_xydata() for line in ax.get_lines() if not line.get_label().startswith("_")
    }


def test_a_point_for_each_neuron_and_T():
    ax = accuracy_energy(ROWS)
    drawn = lines(ax)
    assert list(drawn) == ["ATMN", "LIF", DENSE]
    assert drawn["ATMN"].ravel().tolist() == pytest.approx(
        [2.0, 20.0, 5.0, 90.0]
    )  # nJ, %; mean of 1, 2, 3 nJ
    assert drawn["LIF"].ravel().tolist() == pytest.approx([1.0, 50.0])
    assert drawn[DENSE][:, 0].tolist() == [2.0, 2.0]
    assert [text.get_text() for text in ax.texts] == ["1", "4", "1"]  # T in the markers
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ATMN", "LIF", DENSE]


def test_bars_are_the_confidence_intervals():
    ax = accuracy_energy(ROWS)
    low, high = 100 * summarize(ROWS)[0].accuracy.low, 100 * summarize(ROWS)[0].accuracy.high
    _, _, (across, upright) = ax.containers[0]
    segments = upright.get_segments()
    assert segments[0][:, 1] == pytest.approx([low, high])
    assert segments[1][:, 1] == pytest.approx([90.0, 90.0])  # one seed: no spread to show
    assert across.get_segments()[0][:, 0] == pytest.approx([2.0 - 2.4841, 2.0 + 2.4841], abs=1e-3)


def test_lines_run_by_T_and_axes_have_names():
    axis = [
        row("LIF", 4, 0, 0.5, 4000.0, tau=2.0, tuned=""),
        row("LIF", 1, 0, 0.5, 1000.0, tau=2.0, tuned=""),
        row("LIF", 1, 0, 0.5, 900.0, tau=8.0, tuned="", surrogate="erf"),
    ]
    drawn = lines(accuracy_energy(axis))
    assert drawn["LIF, tau 2"][:, 0].tolist() == [1.0, 4.0]
    assert drawn["LIF, tau 8, erf"][:, 0].tolist() == [0.9]


def test_series_differ_in_colour_and_shape():
    names = [f"N{i}" for i in range(len(COLORS))]
    ax = accuracy_energy([row(name, 1, 0, 0.5, 1000.0) for name in names])
    own = [line for line in ax.get_lines() if line.get_label() in names]
    assert len({line.get_color() for line in own}) == len({line.get_marker() for line in own}) == len(names)
    assert len(SHAPES) == len(COLORS)


def test_panels_hold_one_table_each():
    first = accuracy_energy_panels(ROWS)
    left, right = first.figure.axes
    assert left is first
    assert lines(left)[DENSE][0, 0] == 2.0
    assert lines(right)[DENSE][0, 0] == 0.05
    assert "45nm-int8" in right.get_xlabel()
    assert [text.get_text() for text in first.figure.legends[0].get_texts()] == ["ATMN", "LIF", DENSE]


def test_on_the_callers_axes_and_bad_input():
    ax = plt.subplots()[1]
    assert accuracy_energy(ROWS, "loihi1", ax) is ax
    assert DENSE not in lines(ax)  # no dense figure there
    with pytest.raises(InputError, match="'3nm'; they have 45nm-fp32, 45nm-int8, loihi1"):
        accuracy_energy(ROWS, "3nm")
    with pytest.raises(InputError, match="several tasks"):
        accuracy_energy([*ROWS, row("LIF", 1, 0, 0.5, 1.0, task="digits")])
    with pytest.raises(InputError, match="no rows"):
        accuracy_energy([])
