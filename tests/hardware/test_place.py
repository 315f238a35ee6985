"""Unit: cores by the limits of a profile, worked out by hand, and profiles that can't be used."""

from itertools import pairwise

import numpy as np
import pytest

from marsnn.errors import FileError
from marsnn.hardware.integer import IntegerGraph, Stage
from marsnn.hardware.place import PROFILES, assign_cores


def graph(*sizes):
    stages = []
    for index, (senders, neurons) in enumerate(pairwise(sizes)):
        ones = np.ones(neurons, dtype=np.int64)
        arrival = "sum" if index else "once"
        weight = np.ones((neurons, senders), dtype=np.int64)
        stages.append(Stage(f"s{index}", f"w{index}", "atmn", arrival, weight, ones, ones, ones))
    return IntegerGraph(4, tuple(stages))


def test_by_hand():
    # 64 senders: 131072 // 64 = 2048 neurons by memory, 1024 by the limit: 3000 need 3 cores.
    # 3000 ternary senders are 6000 axons, more than 4096: the second layer does not fit.
    placed = assign_cores(graph(64, 3000, 10))
    assert [row["cores"] for row in placed["stages"]] == [3, 1]
    assert placed["stages"][1]["input_axons_per_core"] == 6000
    assert placed["fits"] is False
    assert placed["refusals"][0].startswith("s1: needs 6000 input axons")
    # 1024 senders: 128 neurons a core by memory, so 600 need 5; 2048 axons fit.
    placed = assign_cores(graph(8, 1024, 600))
    assert [row["cores"] for row in placed["stages"]] == [1, 5]
    assert placed["fits"] is True


def test_own_profiles_and_bad_ones(tmp_path):
    text = (PROFILES / "loihi1.toml").read_text()
    own = tmp_path / "own.toml"
    own.write_text(text.replace("cores = 128", "cores = 2"))
    placed = assign_cores(graph(64, 3000), own)
    assert placed["fits"] is False
    assert "needs 3 cores of 2" in placed["refusals"][0]
    own.write_text(text.replace("cores = 128", "cores = 0"))
    with pytest.raises(FileError, match="cores is 0"):
        assign_cores(graph(4, 4), own)
    own.write_text("= [")
    with pytest.raises(FileError, match="not valid TOML"):
        assign_cores(graph(4, 4), own)
    with pytest.raises(FileError, match="no such profile; shipped ones: loihi1"):
        assign_cores(graph(4, 4), "loihi9")
