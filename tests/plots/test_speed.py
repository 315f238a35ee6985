"""Unit: the bars and lines of speed are the numbers of the benchmark."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

matplotlib.use("Agg")

from marsnn.errors import InputError
from marsnn.plots import speed_bars, speed_scaling
from marsnn.plots.speed import OURS, PEER, STEPWISE, speed_panels

RESULT = json.loads((Path(__file__).parents[2] / "benchmarks" / "neurons.json").read_text())


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_a_bar_for_each_contestant():
    ax = speed_bars(RESULT)
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([row["both_to_copies"]["median"] for row in RESULT["speed"]])
    colors = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
    for row, color in zip(RESULT["speed"], colors, strict=True):
        stepwise = "step by step" in row["what"]
        assert color == (PEER if row["library"] != "marsnn" else STEPWISE if stepwise else OURS)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0] == "LIF"
    assert "spikingjelly LIFNode" in labels
    assert ax.get_xscale() == "log"


@pytest.mark.parametrize("axis", ["T", "N"])
def test_lines_over_sizes(axis):
    ax = speed_scaling(RESULT, axis)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    rows = [row for row in RESULT[f"over_{axis}"] if row["model"] == "ATMN"]
    assert drawn["ATMN fwd + bwd"] == [[row[axis], row["both_ns"]["median"]] for row in rows]
    assert set(drawn) == {"LIF forward", "LIF fwd + bwd", "ATMN forward", "ATMN fwd + bwd", "one copy"}


def test_panels_are_one_figure():
    ax = speed_panels(RESULT)
    assert len(ax.figure.axes) == 3


def test_refusals():
    with pytest.raises(InputError, match="marsnn bench neurons --save"):
        speed_bars({})
    with pytest.raises(InputError, match='axis must be "T" or "N"'):
        speed_scaling(RESULT, "L")
