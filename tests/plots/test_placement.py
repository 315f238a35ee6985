"""Unit: the map's cores, fillings, lines and legend are the placement's numbers."""

from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PatchCollection

matplotlib.use("Agg")

from marsnn.errors import InputError
from marsnn.hardware.chip import load_profile
from marsnn.hardware.place import place
from marsnn.plots import core_map
from marsnn.plots.placement import COLORS, TILE, WIDEST
from tests.hardware.test_place import chain

PLACED = place(chain(784, 1024, 700, 10), effort=0.1)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def collections(ax, kind):
    return [each for each in ax.collections if isinstance(each, kind)]


def test_every_core_is_drawn_where_it_lies_and_as_full_as_it_is():
    ax = core_map(PLACED)
    (frames,) = collections(ax, PatchCollection)
    assert len(frames.get_paths()) == 128
    assert len(ax.patches) == 3 * PLACED.cores_used
    whole, filled = ax.patches[0::3], ax.patches[1::3]
    names = [cut.name for cut in PLACED.cuts]
    for core, around, inside, number in zip(PLACED.cores, whole, filled, ax.texts, strict=True):
        assert abs(around.get_x() + around.get_width() / 2 - core.column) < TILE / 2
        assert abs(around.get_y() + around.get_height() / 2 - core.row) < TILE / 2
        share = max(core.use.shares(PLACED.chip).values())
        assert inside.get_height() == pytest.approx(share * around.get_height())
        bottom = around.get_y() + around.get_height()
        assert inside.get_y() + inside.get_height() == pytest.approx(bottom)  # y grows downward
        assert number.get_text() == str(names.index(core.stage) + 1)
        color = matplotlib.colors.to_rgb(COLORS[names.index(core.stage)])
        assert inside.get_facecolor()[:3] == pytest.approx(color)
    corners = {(round(each.get_x(), 6), round(each.get_y(), 6)) for each in whole}
    assert len(corners) == PLACED.cores_used  # no two on one another
    assert ax.get_ylim() == (3.5, -0.5)


def test_lines_are_as_wide_as_their_messages():
    ax = core_map(PLACED)
    (lines,) = collections(ax, LineCollection)
    messages = np.array([link.messages for link in PLACED.links])
    assert len(messages) > 2
    assert lines.get_linewidths() == pytest.approx(np.maximum(WIDEST * messages / messages.max(), 0.4))
    ends = [segment.tolist() for segment in lines.get_segments()]
    assert ends == [[list(link.a), list(link.b)] for link in PLACED.links]


def test_the_legend_names_stages_cores_and_messages():
    ax = core_map(PLACED.to_dict())
    s0, s1, s2, busiest = (text.get_text() for text in ax.get_legend().get_texts())
    cores = [cut.cores for cut in PLACED.cuts]
    assert s0 == f"1  s0: {cores[0]} cores, sends {1024 * cores[1]:,}"
    assert s1 == f"2  s1: {cores[1]} cores, sends 700"
    assert s2 == "3  s2: 1 core"
    assert busiest == f"busiest link: {max(link.messages for link in PLACED.links):,.0f}"
    assert ax.get_xlabel().startswith(f"Loihi 1: {PLACED.cores_used} of 128 cores, 8 x 4 tiles of 4\n")


def test_many_stages_and_a_core_a_tile():
    chip = replace(load_profile("loihi2"), columns=5, rows=8, cores=39)
    ax = core_map(place(chain(8, *[8] * 30), chip, effort=0))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(labels) == 24
    assert labels[-2:] == ["and 8 more", "busiest link: 8"]
    colors = {each.get_facecolor()[:3] for each in ax.patches[1::3]}
    assert len(colors) == 30
    (frames,) = collections(ax, PatchCollection)
    assert len(frames.get_paths()) == 39


def test_one_tile_has_no_lines():
    ax = core_map(place(chain(8, 8, 8)))
    assert not collections(ax, LineCollection)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "1  s0: 1 core, sends 8",
        "2  s1: 1 core",
    ]


def test_what_has_no_cores_is_refused():
    with pytest.raises(InputError, match=r"no cores to draw: w1: 6,000 input axons .*split its inputs in 2"):
        core_map(place(chain(64, 3000, 10)))
    with pytest.raises(InputError, match=r"no cores to draw: expected what place\(\) gives"):
        core_map({})
    with pytest.raises(InputError, match="expected a Placement, got int; call place"):
        core_map(3)
    assert not plt.get_fignums()
