"""Reference: the integer model against plain Python integers, and against numbers worked out by hand."""

from collections import Counter

import numpy as np
import pytest

from marsnn.hardware import integer, mixers
from marsnn.hardware.arithmetic import leak, look_up, ratio, root, toward_zero
from marsnn.hardware.stages import (
    INPUT,
    KINDS,
    STATE_MAX,
    STEP_ARRIVALS,
    SUM_ARRIVALS,
    TURN_MAX,
    UNITY,
    Convolution,
    IntegerGraph,
    Stage,
    Synapse,
    schedule,
)
from tests.hardware import pure_int
from tests.hardware.boundaries import lif_arrays, whole
from tests.hardware.cases import all_cases, large_cases, random_cases

CASES = all_cases()


def dense(weight, arrival="value", source=INPUT, port="in", name="w", shift=0):
    return Synapse(name, source, port, "dense", arrival, np.array(weight), shift)


def one_stage(kind, synapses, bias, arrays, T=1, inputs=1, per_sample=1, **settings):
    """A graph of one stage with one port."""
    bias = np.array(bias)
    stage = Stage("n", kind, (len(bias),), tuple(synapses), {"in": bias}, whole(arrays), **settings)
    return IntegerGraph(T, (inputs,), (stage,), per_sample)


def levels(N, level, **others):
    return {"fire": np.full(N, level), "amplitude": np.full(N, level), **others}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_plain_integers(case):
    run = integer.run(case.graph, case.inputs)
    seen, saturated = pure_int.run(case.graph, case.inputs)
    for stage in case.graph.stages:
        assert np.array_equal(run.of(stage.name), seen[stage.name]), stage.name
    assert run.saturations == saturated


def test_the_cases_reach_what_they_are_for():
    for cases in (random_cases(), large_cases()):
        stages = [stage for case in cases for stage in case.graph.stages]
        assert {stage.kind for stage in stages} == set(KINDS)
        assert {synapse.form for stage in stages for synapse in stage.synapses} == {"dense", "conv", "each"}
    stages = [stage for case in CASES for stage in case.graph.stages]
    synapses = [synapse for stage in stages for synapse in stage.synapses]
    arrivals = Counter(synapse.arrival for synapse in synapses)
    assert set(arrivals) == {*SUM_ARRIVALS, *STEP_ARRIVALS}
    assert min(arrivals.values()) >= 10
    forms = {(synapse.form, synapse.arrival) for synapse in synapses}
    assert len(forms) == 3 * len(arrivals)  # each form with each arrival
    assert {case.graph.steps for case in random_cases()} == set(range(1, 9))
    assert {len(case.graph.stages) for case in random_cases()} == set(range(2, 8))
    assert {len(stage.shape) for stage in stages} == {1, 2, 3}
    of_lif = [stage.arrays for stage in stages if stage.kind == "lif"]
    for name in ("current_decay", "adaptation", "adaptation_decay", "signed"):
        assert sum(bool(np.any(arrays[name])) for arrays in of_lif) >= 10, name
    assert {int(arrays["most"]) for arrays in of_lif} >= {1, 2, 3, 4, 5}
    settings = Counter((stage.reset, stage.carry) for stage in stages if stage.kind == "lif")
    assert len(settings) == 4
    assert min(settings.values()) >= 3
    ssd = [stage.arrays for stage in stages if stage.kind == "ssd"]
    assert {(len(arrays["cosine"]) > 0, int(arrays["scaled"])) for arrays in ssd} == {
        (turns, scaled) for turns in (False, True) for scaled in (0, 1)
    }
    assert {len(arrays["taps"]) for arrays in ssd} == {1, 2, 3, 4}
    assert any(1 < int(arrays["groups"]) < len(arrays["multiplier"]) for arrays in ssd)
    delays = [delay for case in CASES for delay in schedule(case.graph).delays.values()]
    assert sum(delay > 0 for delay in delays) >= 50
    # several synapses to a port, and several stages that take what one sends
    ports = Counter(
        (id(case), stage.name, s.port)
        for case in CASES
        for stage in case.graph.stages
        for s in stage.synapses
    )
    senders = Counter(
        (id(case), s.source) for case in CASES for stage in case.graph.stages for s in stage.synapses
    )
    assert sum(count > 1 for count in ports.values()) >= 50
    assert sum(count > 1 for count in senders.values()) >= 50


def test_the_cases_are_busy():
    runs = [(case, integer.run(case.graph, case.inputs)) for case in CASES]
    spikes = np.concatenate([a.ravel() for _, run in runs for a in run.spikes.values()])
    assert min((spikes == 1).sum(), (spikes == -1).sum(), (spikes == 0).sum()) > 50_000
    assert (np.abs(spikes) > 1).sum() > 1000
    trains = [a for _, run in runs for a in run.spikes.values()]
    silent = [a for a in trains if not a.any()]
    assert len(silent) <= len(trains) / 20
    saturated: Counter = Counter()
    for case, run in runs:
        for stage in case.graph.stages:
            saturated[stage.kind] += run.saturations[stage.name] > 0
    assert set(saturated) == set(KINDS)
    assert min(saturated.values()) >= 1, saturated
    assert sum(not any(run.saturations.values()) for _, run in runs) >= 20
    values = [a for _, run in runs for a in run.values.values()]
    assert sum(a.any() for a in values) >= 0.95 * len(values)


def test_the_cases_are_new_ones_for_every_seed():
    made = {tuple(case.inputs.ravel().tolist()) for case in random_cases()}
    assert len(made) == len(random_cases())


# ---- by hand -----------------------------------------------------------------------------------------


def test_atmn_by_hand_tau_half():
    # h: 110 -> spike, u = 10; leak 8192/4096 = 2: h = 20, u = 20; h = 40; h = 80; four steps: 1 0 0 0
    # 175 -> 1, u 75; 150 -> 1, u 50; 100 -> 1, u 0; 0 -> 0
    graph = one_stage("atmn", [dense([[1], [1]])], [10, 75], levels(2, 100, decay=2 * UNITY), T=4)
    run = integer.run(graph, np.array([[100]]))
    assert run.spikes["n"][0].T.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_atmn_by_hand_tau_two_rounds_toward_zero():
    # tau = 2 halves: 7 is below 9, then 7 >> 1 = 3, 1, 0; and -7 gives -3, -1, 0 (a floor would give -4)
    graph = one_stage("atmn", [dense([[1], [-1]])], [0, 0], levels(2, 9, decay=UNITY // 2), T=4)
    assert not integer.run(graph, np.array([[7]])).spikes["n"].any()
    assert leak(np.array([7, -7, -1, 1]), UNITY // 2).tolist() == [3, -3, 0, 0]


def test_a_count_says_what_an_atmn_says_in_one_number():
    # levels 100, 200, 300 worth 1, 2, 4
    arrays = {"levels": [[100, 200, 300]] * 4, "worth": [1, 2, 4]}
    graph = one_stage("count", [dense([[1], [-1], [0], [1]])], [100, -100, 99, 200], arrays)
    assert integer.run(graph, np.array([[100]])).values["n"].tolist() == [[3, -3, 0, 7]]


def test_a_sum_weighs_each_step_by_its_power():
    # train of one sender: 1, 0, -1 with weight 3; horner: ((3) * 2 + 0) * 2 - 3 = 9; power: 3 - 3 * 4 = -9
    train = np.array([[[1], [0], [-1]]])
    for arrival, expected in (("horner", 9), ("power", -9), ("sum", 0)):
        graph = one_stage("sum", [dense([[3]], arrival)], [5], {}, T=3)
        sums, _ = integer.run_stage(graph, graph.last, {INPUT: train})
        assert sums.tolist() == [[expected + 5]]


def test_currents_by_hand():
    # weight 3, T = 3; a train 1, 0, -1, or a value 2 that is held
    train = np.array([[[1], [0], [-1]]])
    for arrival, signal, expected in (
        ("stream", train, [3, 0, -3]),
        ("stream_down", train, [12, 0, -3]),
        ("stream_up", train, [3, 0, -12]),
        ("held", np.array([[2]]), [6, 6, 6]),
    ):
        graph = one_stage("lif", [dense([[3]], arrival)], [0], lif_arrays(1, 9, 9, 0), T=3)
        arrived, _ = integer.arrive(graph, graph.last, "in", {INPUT: signal})
        assert arrived[0, :, 0].tolist() == expected, arrival


def test_lif_by_hand():
    # decay 2048 = 1/2, current 60, level 100, held: h 60; 90; 105 spike -> 5; 62 (5 // 2 = 2)
    graph = one_stage("lif", [dense([[1]], "held")], [0], lif_arrays(1, 100, 100, 2048), T=4)
    assert integer.run(graph, np.array([[60]])).spikes["n"].ravel().tolist() == [0, 0, 1, 0]


def test_current_based_lif_by_hand():
    # the current halves, the membrane keeps all; 40 at each step: i = 40, 60, 70; h = 40, 100 spike -> 0, 70
    arrays = lif_arrays(1, 100, 100, UNITY, current_decay=2048)
    graph = one_stage("lif", [dense([[1]], "held")], [0], arrays, T=3)
    assert integer.run(graph, np.array([[40]])).spikes["n"].ravel().tolist() == [0, 1, 0]


def test_adaptive_lif_by_hand():
    # no memory but the threshold's: h = 100 at every step; 100 is reached, then 160 isn't (60 added), of
    # which half is left, 130, then 115, 107, 103, 101, 100: at the eighth step it is reached again
    arrays = lif_arrays(1, 100, 1, 0, adaptation=60, adaptation_decay=2048)
    graph = one_stage("lif", [dense([[1]], "held")], [0], arrays, T=8)
    assert integer.run(graph, np.array([[100]])).spikes["n"].ravel().tolist() == [1, 0, 0, 0, 0, 0, 0, 1]


def test_levels_by_hand():
    # first level 50, then 150, 250, three at most; a spike of s takes 100 s
    arrays = lif_arrays(6, 50, 100, UNITY, most=3, signed=1)
    graph = one_stage("lif", [dense([[0]] * 6, "held")], [49, 50, 149, 150, 999, -250], arrays, T=1)
    assert integer.run(graph, np.array([[0]])).spikes["n"].ravel().tolist() == [0, 1, 1, 2, 3, -3]


@pytest.mark.parametrize(("carry", "expected"), [("token", [0, 0, 0, 0]), ("sequence", [0, 1, 0, 1])])
def test_what_is_carried_ends_with_the_sample(carry, expected):
    # 60 a token without leak, level 100: 60, 120 spike; then a new sample begins at 0
    graph = one_stage(
        "lif", [dense([[1]], "held")], [0], lif_arrays(1, 100, 100, UNITY), per_sample=2, carry=carry
    )
    assert integer.run(graph, np.full((4, 1), 60)).spikes["n"].ravel().tolist() == expected


def test_gate_by_hand():
    # place = 20 * 3 >> 4 = 3, beyond the table's end: the last entry, 1/2; 20 * 1/2 * -7 = -70, which passes
    # at 70 and not at 71
    for level, expected in ((70, -70), (71, 0)):
        arrays = {
            "multiplier": [3], "argument_shift": [4], "product_shift": [15], "level": [level],
            "table": [0, 1 << 13, 1 << 14],
        }  # fmt: skip
        synapses = (dense([[1]], port="argument", name="g"), dense([[0]], port="factor", name="u"))
        stage = Stage(
            "n", "gate", (1,), synapses, {"argument": np.array([0]), "factor": np.array([-7])}, whole(arrays)
        )
        graph = IntegerGraph(1, (1,), (stage,))
        assert integer.run(graph, np.array([[20]])).values["n"].tolist() == [[expected]]


def test_norm_by_hand():
    # 3, 4, 0, 0: mean square 25/4 rounds up to 7; root of 7 << 16 is 677 (677^2 = 458329 <= 458752 < 678^2)
    # 3 << 22 = 12582912 // 677 = 18586; 4 << 22 = 16777216 // 677 = 24781
    arrays = {"center": 0, "epsilon": 0, "sign": [1, -1, 1, 1], "offset": [0, 1, 2, 0]}
    graph = one_stage("norm", [dense(np.eye(4, dtype=int))], [0] * 4, arrays, inputs=4)
    assert integer.run(graph, np.array([[3, 4, 0, 0]])).values["n"].tolist() == [[18586, -24780, 2, 0]]
    # -9 - 0 - 0 - 2 = -11, mean -11/4 toward zero -2: left are -7, 2, 2, 0: mean square 57/4 -> 15, and 1
    # more is epsilon: 16, root 4 * 256; -7 << 22 over 1024 is -28672, 2 << 22 over 1024 is 8192
    arrays = {"center": 1, "epsilon": 1, "sign": [1] * 4, "offset": [0] * 4}
    graph = one_stage("norm", [dense(np.eye(4, dtype=int))], [0] * 4, arrays, inputs=4)
    assert integer.run(graph, np.array([[-9, 0, 0, -2]])).values["n"].tolist() == [[-28672, 8192, 8192, 0]]


def test_s4d_by_hand():
    # a quarter turn a token, i: the state of 3 is 3, 3i, -3; read by (2, 5): 2 re - 5 im, and 10 times the
    # input
    arrays = {
        "real": [[0]], "imaginary": [[TURN_MAX]], "enter_left": [[0]], "enter_right": [[0]],
        "out_real": [[2]], "out_imaginary": [[5]], "skip": [10], "out_shift": [0],
    }  # fmt: skip
    graph = one_stage("s4d", [dense([[1]])], [0], arrays, per_sample=3)
    values = integer.run(graph, np.array([[3], [0], [0], [0], [1], [0]])).values["n"]
    assert values.ravel().tolist() == [6 + 30, -15, -6, 0, 12, -5]


def test_ssd_by_hand():
    # one head of one column, keys of one; a share of 1/2 at every place; a tap for now (1) and one before (2)
    # values 3, 5 -> channels 3, 5 + 6 = 11; keys 1, 1 -> 1, 3; queries 1, 1 -> 1, 3
    # state: 3 * 1 = 3; 3 / 2 toward zero 1, + 11 * 3 = 34; y = 3 * 1 + 4 * 3 = 15; 34 * 3 + 4 * 11 = 146
    arrays = {
        "taps": [[1, 1, 1], [2, 2, 2]], "tap_bias": [0] * 3, "tap_shift": [0] * 3, "multiplier": [0],
        "argument_shift": [0], "table": [1 << 14], "cosine": [], "sine": [], "scaled": 0, "groups": 1,
        "enter_left": [0], "enter_right": [0], "skip": [4], "out_shift": [0],
    }  # fmt: skip
    ports = ("values", "keys", "queries", "forgetting")
    synapses = tuple(dense([[int(port == "values")]], port=port, name=port) for port in ports)
    bias = {port: np.array([int(port in ("keys", "queries"))]) for port in ports}
    graph = IntegerGraph(1, (1,), (Stage("n", "ssd", (1,), synapses, bias, whole(arrays)),), 2)
    assert integer.run(graph, np.array([[3], [5], [3], [5]])).values["n"].ravel().tolist() == [
        15,
        146,
        15,
        146,
    ]


def test_a_turn_by_hand():
    # a quarter turn of the pair (10, 20): (c a - s b, c b + s a) with c = 0, s = 1 is (-20, 10); then halved
    of = whole({"cosine": [0], "sine": [TURN_MAX]})
    state = np.array([[[[10], [20]]]])
    assert mixers.faded(of, state, np.full((1, 1, 1, 1), 1 << 14)).ravel().tolist() == [-10, 5]


def test_a_convolution_by_hand():
    # kernel 1, 10, 100 over 1, 2, 3 with a zero on each side, every second place: 0 + 10 + 200, 2 + 30 + 0
    conv = Convolution((1, 3), (1, 2), (2,), (1,), (1,))
    synapse = Synapse("k", INPUT, "in", "conv", "value", np.array([[[1, 10, 100]]]), 1, None, conv)
    graph = one_stage("sum", [synapse], [0, 0], {}, inputs=3)
    assert integer.run(graph, np.array([[1, 2, 3]])).values["n"].tolist() == [[420, 64]]


def test_a_factor_by_hand():
    # 7 * 3 >> 2 = 5, and -7 * 3 -> -5: toward zero
    synapse = Synapse("e", INPUT, "in", "each", "value", np.array([3, -3]), 0, np.array([2, 2]))
    graph = one_stage("sum", [synapse], [0, 0], {}, inputs=2)
    assert integer.run(graph, np.array([[7, 7]])).values["n"].tolist() == [[5, -5]]


def test_a_skip_joins_the_same_token():
    # the ATMN's train of T = 2 at weight 5 and the input itself, both of one token: 10 x sign + x
    levels_ = {"fire": [1], "amplitude": [1], "decay": UNITY}
    first = Stage("a", "atmn", (1,), (dense([[1]]),), {"in": np.array([0])}, whole(levels_))
    both = (dense([[5]], "sum", "a", name="w2"), dense([[1]], name="skip"))
    last = Stage("y", "sum", (1,), both, {"in": np.array([0])}, {})
    graph = IntegerGraph(2, (1,), (first, last))
    assert integer.run(graph, np.array([[7], [-9]])).values["y"].ravel().tolist() == [17, -19]
    assert schedule(graph).opens == {"a": 2, "y": 4}  # the ATMN's second spike is sent at 3
    assert schedule(graph).delays == {"w": 0, "w2": 0, "skip": 2}


def test_states_saturate_and_are_counted():
    arrays = levels(1, 5, decay=UNITY)
    graph = one_stage("atmn", [dense([[127]], shift=4)], [STATE_MAX], arrays)
    run = integer.run(graph, np.array([[127], [-127]]))
    assert run.saturations == {"n": 1}  # only the positive sum leaves 24 bits
    assert run.spikes["n"].ravel().tolist() == [1, 1]


def test_tokens_must_fill_samples():
    graph = one_stage("atmn", [dense([[1]])], [0], levels(1, 5, decay=UNITY), per_sample=2)
    with pytest.raises(ValueError, match="don't divide"):
        integer.run(graph, np.array([[1]]))


def test_arithmetic_by_hand():
    assert toward_zero(np.array([7, -7, 8, -1]), 2).tolist() == [1, -1, 2, 0]
    assert ratio(np.array([7, -7, -2]), 3).tolist() == [2, -2, 0]
    table = np.array([10, 20, 30])
    assert look_up(table, np.array([-5, -1, 0, 1, 2])).tolist() == [10, 10, 20, 30, 30]


def test_root_is_exact_around_every_square():
    roots = np.concatenate([np.arange(2000), np.random.default_rng(0).integers(2000, 3 * 10**9, 20_000)])
    for offset, expected in ((0, roots), (2 * roots, roots), (-1, np.maximum(roots - 1, 0))):
        x = np.maximum(roots * roots + offset, 0)
        assert np.array_equal(root(x), expected)
