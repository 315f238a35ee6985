"""Reference: the integer model against plain Python integers, and against numbers worked out by hand."""

import numpy as np
import pytest

from marsnn.hardware import integer
from marsnn.hardware.integer import STATE_MAX, UNITY, IntegerGraph, Stage
from tests.hardware import pure_int
from tests.hardware.cases import all_cases

CASES = all_cases()
NONE = np.zeros(0, dtype=np.int64)


def population(kind, arrival, weight, bias, level, **settings):
    weight = np.array(weight)
    levels = np.full(len(weight), level)
    return Stage("n", "w", kind, arrival, weight, np.array(bias), levels, levels, **settings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_plain_integers(case):
    run = integer.run(case.graph, case.inputs)
    seen, saturated = pure_int.run(case.graph, case.inputs)
    for name, array in {**run.spikes, **run.products, **run.outputs}.items():
        assert array.tolist() == seen[name], name
    assert run.saturations == saturated


def test_the_cases_reach_what_they_are_for():
    stages = [stage for case in CASES for stage in case.graph.stages]
    assert {stage.arrival for stage in stages} == {*integer.SUM_ARRIVALS, *integer.STEP_ARRIVALS}
    assert {stage.kind for stage in stages} == {"atmn", "lif", "readout", "gate"}
    assert {case.graph.steps for case in CASES} == set(range(1, 9))
    assert {len(case.graph.stages) for case in CASES} == {1, 2, 3, 4, 5}
    runs = [integer.run(case.graph, case.inputs) for case in CASES]
    values = np.concatenate([a.ravel() for run in runs for a in run.spikes.values()])
    assert min((values == 1).sum(), (values == -1).sum(), (values == 0).sum()) > 1000
    assert sum(sum(run.saturations.values()) > 0 for run in runs) >= 5
    busy = [name for run in runs for name, a in run.spikes.items() if name == "stage3" and a.any()]
    assert len(busy) >= 5  # spikes reach the fourth layer


def test_atmn_by_hand_tau_half():
    # h: 110 -> spike, u = 10; leak 8192/4096 = 2: h = 20, u = 20; h = 40; h = 80; four steps: 1 0 0 0
    # 175 -> 1, u 75; 150 -> 1, u 50; 100 -> 1, u 0; 0 -> 0
    stage = population("atmn", "once", [[1], [1]], [10, 75], 100, decay=2 * UNITY)
    run = integer.run(IntegerGraph(4, (stage,)), np.array([[100]]))
    assert run.spikes["n"][0].T.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_atmn_by_hand_tau_two_rounds_toward_zero():
    # tau = 2 halves: 7 is below 9, then 7 >> 1 = 3, 1, 0; and -7 gives -3, -1, 0 (a floor would give -4)
    stage = population("atmn", "once", [[1], [-1]], [0, 0], 9, decay=UNITY // 2)
    trace, _ = integer.atmn(stage, np.array([[[7, -7]]]), 4)
    assert trace.any() == np.False_
    assert integer.leak(np.array([7, -7, -1, 1]), UNITY // 2).tolist() == [3, -3, 0, 0]


def test_readout_weighs_each_step_by_its_power():
    # train of one sender: 1, 0, -1 with weight 3; horner: ((3) * 2 + 0) * 2 - 3 = 9; power: 3 - 3 * 4 = -9
    train = np.array([[[1], [0], [-1]]])
    for arrival, expected in (("horner", 9), ("power", -9), ("sum", 0)):
        stage = Stage("r", "w", "readout", arrival, np.array([[3]]), np.array([5]), NONE, NONE)
        sums, _ = integer.run_stage(IntegerGraph(3, (stage,)), stage, train)
        assert sums.tolist() == [[expected + 5]]


def test_lif_by_hand():
    # decay 2048 = 1/2, current 60, level 100, held: h 60; 90; 105 spike -> 5; 62 (5 // 2 = 2)
    stage = population("lif", "held", [[1]], [0], 100, decay=2048)
    run = integer.run(IntegerGraph(4, (stage,)), np.array([[60]]))
    assert run.spikes["n"][0].ravel().tolist() == [0, 0, 1, 0]


def test_states_saturate_and_are_counted():
    stage = population("atmn", "once", [[127]], [STATE_MAX], 5, decay=UNITY, shift=4)
    run = integer.run(IntegerGraph(1, (stage,)), np.array([[127], [-127]]))
    assert run.saturations == {"n": 1}  # only the positive sum leaves 24 bits
    assert run.spikes["n"].ravel().tolist() == [1, 1]


def test_tokens_must_fill_samples():
    stage = population("atmn", "once", [[1]], [0], 5)
    with pytest.raises(ValueError, match="don't divide"):
        integer.run(IntegerGraph(1, (stage,), tokens_per_sample=2), np.array([[1]]))
