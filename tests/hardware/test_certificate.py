"""Property: no input exceeds the certificate's bounds, kind by kind, computed in Python's own integers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsnn.hardware import integer
from marsnn.hardware.certificate import WIDEST, bounds, certify, excess, largest_inputs, reach_bound
from marsnn.hardware.mixers import faded, turn
from marsnn.hardware.stages import (
    INPUT,
    KINDS,
    NARROW_MAX,
    NORM_BITS,
    SHARE_MAX,
    STATE_MAX,
    TURN_MAX,
    UNITY,
    Convolution,
    IntegerGraph,
    Stage,
    Synapse,
)

SEEDS = st.integers(0, 2**32 - 1)
N, M = 3, 4


def whole(*values):
    return np.array(values, dtype=np.int64)


def stage_of(kind, synapses, bias, arrays, **settings):
    arrays = {name: np.asarray(array, dtype=np.int64) for name, array in arrays.items()}
    assert arrays.keys() == KINDS[kind].arrays.keys()
    return Stage("s", kind, (N,), tuple(synapses), bias, arrays, **settings)


def dense(rng, name, port, arrival, size=N, shift=0, source="sender", senders=M):
    return Synapse(name, source, port, "dense", arrival, rng.integers(-127, 128, (size, senders)), shift)


def sender(levels=1, signed=True):
    """A population of M whose spikes have the given levels."""
    ones = np.ones(M, dtype=np.int64)
    zeros = np.zeros(M, dtype=np.int64)
    arrays = {
        "fire": ones, "amplitude": ones, "decay": zeros, "current_decay": zeros, "adaptation": zeros,
        "adaptation_decay": zeros, "most": np.array(levels), "signed": np.array(int(signed)),
    }  # fmt: skip
    each = Synapse("wire", INPUT, "in", "each", "held", ones, 0, zeros)
    return Stage("sender", "lif", (M,), (each,), {"in": zeros}, arrays)


def alone(stage, steps, tokens=1, levels=1):
    """A graph of the stage behind one sender, and the magnitude of what reaches it."""
    graph = IntegerGraph(steps, (M,), (sender(levels), stage), tokens)
    return graph, {INPUT: largest_inputs(graph), "sender": np.full(M, levels)}


def worst(stage, steps, levels, rows):
    """Trains [2 N, T, M] with which each neuron's sum, or current, is the largest and the least."""
    sign = np.sign(rows)[:, None, :] * levels
    return np.concatenate([sign, -sign]).repeat(steps, axis=1)


# ---- what arrives ------------------------------------------------------------------------------------


ARRIVALS = st.sampled_from(["sum", "horner", "power"])
STEP_ARRIVALS = st.sampled_from(["stream", "stream_down", "stream_up"])


@settings(max_examples=60)
@given(SEEDS, ARRIVALS, st.integers(1, 10), st.integers(0, 6), st.integers(1, 4), st.integers(1, 3))
def test_no_sum_exceeds_its_bound_and_the_worst_one_reaches_it(seed, arrival, steps, shift, levels, number):
    rng = np.random.default_rng(seed)
    synapses = [dense(rng, f"w{k}", "in", arrival, shift=shift) for k in range(number)]
    stage = stage_of("sum", synapses, {"in": rng.integers(-1000, 1001, N)}, {})
    graph, senders = alone(stage, steps, levels=levels)
    found = bounds(graph, stage, senders)
    total = sum(synapse.weight for synapse in synapses)
    arrived, clipped = integer.arrive(graph, stage, "in", {"sender": worst(stage, steps, levels, total)})
    assert (np.abs(arrived) <= found.entering["in"]).all()
    if number == 1 and clipped == 0:
        along = np.abs(np.abs(arrived - stage.bias["in"]) + np.abs(stage.bias["in"])[None]).max(0)
        assert (along == found.entering["in"]).all()
    if (excess(stage, found)["in"] <= 1).all():
        assert clipped == 0


@settings(max_examples=60)
@given(SEEDS, STEP_ARRIVALS, st.integers(1, 10), st.integers(0, 6), st.integers(1, 4))
def test_no_current_exceeds_its_bound(seed, arrival, steps, shift, levels):
    rng = np.random.default_rng(seed)
    synapse = dense(rng, "w", "in", arrival, shift=shift)
    stage = lif_of(rng, [synapse])
    graph, senders = alone(stage, steps, levels=levels)
    found = bounds(graph, stage, senders)
    arrived, _ = integer.arrive(graph, stage, "in", {"sender": worst(stage, steps, levels, synapse.weight)})
    assert (np.abs(arrived) <= found.entering["in"]).all()
    least = found.entering["in"] - 2 * np.abs(stage.bias["in"])
    assert (np.abs(arrived).max((0, 1)) >= least).all()


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 2), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2), st.integers(1, 2))
def test_a_kernel_reaches_its_bound_and_not_beyond(seed, rank, stride, padding, dilation, groups):
    rng = np.random.default_rng(seed)
    image = rng.integers(6, 9, rank)
    kernel = rng.integers(-127, 128, (4, 2, *rng.integers(1, 4, rank)))
    moves = [(each,) * rank for each in (stride, padding, dilation)]
    out = [
        (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for n, k in zip(image, kernel.shape[2:], strict=True)
    ]
    source, target = (2 * groups, *map(int, image)), (4, *map(int, out))
    conv = Convolution(source, target, *moves, groups)
    synapse = Synapse("k", "sender", "in", "conv", "sum", kernel, 1, None, conv)
    sent = rng.integers(1, 100, int(np.prod(source)))
    bound = reach_bound(synapse, sent)
    x = rng.integers(-1, 2, (20, len(sent))) * sent
    assert (np.abs(integer.reach(synapse, x)) <= bound).all()
    # the response to each sender alone gives every neuron's worst input
    alone = integer.reach(synapse, np.eye(len(sent), dtype=np.int64))  # [M, N]
    assert np.array_equal((np.abs(alone) * sent[:, None]).sum(0), bound)


@settings(max_examples=40)
@given(SEEDS, st.integers(0, 40))
def test_a_factor_reaches_its_bound(seed, right):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-(2**23) + 1, 2**23, M)
    synapse = Synapse("e", "sender", "in", "each", "value", weight, 0, np.full(M, right))
    sent = rng.integers(0, STATE_MAX + 1, M)
    expected = [abs(int(w) * int(x)) >> right for w, x in zip(weight, sent, strict=True)]
    assert reach_bound(synapse, sent).tolist() == expected
    assert np.abs(integer.reach(synapse, -sent[None]))[0].tolist() == expected


# ---- neurons -----------------------------------------------------------------------------------------


def atmn_of(rng, decay, synapses=(), bias=None):
    amplitude = rng.integers(1, 5000, N)
    fire = np.maximum(1, (amplitude * rng.choice([0.01, 0.1, 0.5, 1.0, 1.5])).astype(int))
    arrays = {"fire": fire, "amplitude": amplitude, "decay": decay}
    return stage_of("atmn", synapses, {"in": rng.integers(-1000, 1001, N) if bias is None else bias}, arrays)


@settings(max_examples=60)
@given(
    SEEDS,
    ARRIVALS,
    st.sampled_from([0, UNITY // 2, UNITY, 6000, 2 * UNITY]),
    st.integers(1, 8),
    st.integers(0, 8),
)
def test_no_membrane_of_atmn_exceeds_its_bound(seed, arrival, decay, steps, shift):
    rng = np.random.default_rng(seed)
    stage = atmn_of(rng, decay, [dense(rng, "w", "in", arrival, shift=shift)])
    graph, senders = alone(stage, steps)
    found = bounds(graph, stage, senders)
    sent = worst(stage, steps, 1, stage.synapses[0].weight)
    sent = np.concatenate([sent, rng.integers(-1, 2, (20, steps, M))])
    h, clipped = integer.arrive(graph, stage, "in", {"sender": sent})
    row = certify(graph)["stages"][1]
    if row["saturation"] == "impossible" and row["safe"]:
        assert clipped == 0
        assert integer.run_stage(graph, stage, {"sender": sent})[1] == 0
    if clipped or "membrane" not in found.inside:
        return
    fire, amplitude = stage.arrays["fire"], stage.arrays["amplitude"]
    for _ in range(steps - 1):  # without a limit
        s = (h >= fire).astype(int) - (h <= -fire)
        h = integer.leak(h - s * amplitude, decay)
        assert (np.abs(h) <= found.inside["membrane"]).all()


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 8))
def test_harmless_saturation_changes_no_spike(seed, steps):
    """What the certificate calls harmless: spikes with a 24-bit membrane equal those with an endless one."""
    rng = np.random.default_rng(seed)
    bias = rng.integers(-STATE_MAX // 2, STATE_MAX // 2, N)
    stage = atmn_of(rng, 2 * UNITY, [dense(rng, "w", "in", "sum")], bias)
    graph, _ = alone(stage, steps)
    row = certify(graph)["stages"][1]
    assert row["safe"]
    signal = rng.integers(-1, 2, (20, steps, M))
    limited, clipped = integer.run_stage(graph, stage, {"sender": signal})
    assert row["saturation"] == "harmless" or clipped == 0
    h, _ = integer.arrive(graph, stage, "in", {"sender": signal})
    for t in range(steps):
        s = (h >= stage.arrays["fire"]).astype(int) - (h <= -stage.arrays["fire"])
        assert np.array_equal(limited[:, t], s)
        h = integer.leak(h - s * stage.arrays["amplitude"], 2 * UNITY)


def lif_of(rng, synapses, most=1, signed=0, **settings):
    """Any mixture of LIF, CubaLIF, ALIF, IntegerLIF and TernaryLIF."""
    amplitude = rng.integers(1, 5000, N)
    arrays = {
        "fire": np.maximum(1, (amplitude * rng.uniform(0.02, 1.5)).astype(int)), "amplitude": amplitude,
        "decay": rng.choice([0, UNITY // 2, 3000, 4000, UNITY], N),
        "current_decay": rng.choice([0, 0, 2000, 4000], N),
        "adaptation": rng.choice([0, 0, 500], N), "adaptation_decay": rng.choice([0, 3500, UNITY], N),
        "most": most, "signed": signed,
    }  # fmt: skip
    return stage_of("lif", synapses, {"in": rng.integers(-200, 201, N)}, arrays, **settings)


class Watched:
    """Every value that the integer model stores, by watching `saturate`."""

    def __init__(self):
        self.largest = []

    def __call__(self, x, largest=STATE_MAX):
        self.largest.append(np.abs(x).max(0))
        return x, 0


@settings(max_examples=100)
@given(
    seed=SEEDS,
    steps=st.integers(1, 8),
    tokens=st.integers(1, 5),
    most=st.sampled_from([1, 1, 3, 7]),
    signed=st.integers(0, 1),
    reset=st.sampled_from(["subtract", "zero"]),
    carry=st.sampled_from(["token", "sequence"]),
    loop=st.sampled_from([None, 0, 5]),
)
def test_no_state_of_a_lif_exceeds_its_bound(seed, steps, tokens, most, signed, reset, carry, loop):
    """Inputs that excite, that inhibit to the end, that do one and then the other, and any; with spikes that
    come back, too."""
    rng = np.random.default_rng(seed)
    stage = lif_of(rng, [dense(rng, "w", "in", "stream", shift=2)], most, signed, reset=reset, carry=carry)
    if loop is not None:
        weight = rng.integers(-127, 128, (N, N))
        own = Synapse("own", stage.name, "in", "dense", "stream", weight, loop)
        stage = replace(stage, synapses=(*stage.synapses, own))
    graph, senders = alone(stage, steps, tokens)
    found = bounds(graph, stage, senders)
    towards = np.sign(stage.synapses[0].weight)  # [N, M]
    length = tokens * steps
    trains = [np.tile(each, (length, 1)) for each in (*towards, *-towards)]
    turning = [np.where(np.arange(length)[:, None] < length // 2, each, -each) for each in trains]
    trains = [*trains, *turning, *rng.integers(-1, 2, (10, length, M))]
    sent = np.stack(trains).reshape(-1, steps, M)
    arrived, _ = integer.arrive(graph, stage, "in", {"sender": sent})
    watched = Watched()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer, "saturate", watched)  # without a limit
        spikes, _ = integer.lif(graph, stage, {"in": arrived})
    for kind, each in zip(("current", "membrane", "adaptation"), range(3), strict=True):
        reached = np.max(watched.largest[each::3], axis=0)
        assert (reached <= found.inside[kind]).all(), kind
    assert (np.abs(spikes).max((0, 1)) <= found.sent).all()
    if not signed:
        assert (spikes >= 0).all()
    highest = stage.arrays["fire"] + found.inside["adaptation"] + (most - 1) * stage.arrays["amplitude"]
    assert np.array_equal(found.levels, highest)
    if certify(graph)["stages"][1]["safe"]:
        assert integer.run_stage(graph, stage, {"sender": sent})[1] == 0


def test_an_inhibited_membrane_comes_close_to_its_bound():
    """The bound is no larger than it has to be: a geometric series of the largest current."""
    rng = np.random.default_rng(0)
    zeros = np.zeros(N)
    arrays = {
        "fire": zeros + 100, "amplitude": zeros + 100, "decay": zeros + 3840, "current_decay": zeros,
        "adaptation": zeros, "adaptation_decay": zeros, "most": 1, "signed": 0,
    }  # fmt: skip
    stage = stage_of(
        "lif", [dense(rng, "w", "in", "stream", shift=6)], {"in": whole(0, 0, 0)}, arrays, carry="sequence"
    )
    graph, senders = alone(stage, 8, 30)
    bound = bounds(graph, stage, senders).inside["membrane"]
    v, current = whole(0, 0, 0), -(np.abs(stage.synapses[0].weight).sum(1) << 6)
    for _ in range(240):
        v = integer.leak(v, stage.arrays["decay"]) + current
        assert (np.abs(v) <= bound).all()
    assert (np.abs(v) > 0.99 * bound).all()


def test_a_spike_leaves_a_membrane_below_zero():
    # level 2, amplitude 5000, current +9, then -9: h = 9 spikes, v = -4991; h = -5000, far below -2 * 9
    zeros = np.zeros(N)
    arrays = {
        "fire": zeros + 2, "amplitude": zeros + 5000, "decay": zeros + UNITY, "current_decay": zeros,
        "adaptation": zeros, "adaptation_decay": zeros, "most": 1, "signed": 0,
    }  # fmt: skip
    weight = np.tile(whole(9, 0, 0, 0), (N, 1))
    synapse = Synapse("w", "sender", "in", "dense", "stream", weight)
    stage = stage_of("lif", [synapse], {"in": whole(0, 0, 0)}, arrays)
    graph, senders = alone(stage, 2)
    bound = bounds(graph, stage, senders).inside["membrane"]
    assert (bound >= 5000).all()
    assert (bound <= 2 * 9 + 4998).all()


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5))
def test_no_count_exceeds_its_bound(seed, K):
    rng = np.random.default_rng(seed)
    arrays = {
        "levels": np.sort(rng.integers(1, 3000, (N, K)), 1),
        "worth": rng.integers(1, NARROW_MAX + 1, K),
    }
    stage = stage_of(
        "count", [dense(rng, "w", "in", "sum", shift=2)], {"in": rng.integers(-9, 10, N)}, arrays
    )
    graph, senders = alone(stage, 4)
    found = bounds(graph, stage, senders)
    values, _ = integer.run_stage(graph, stage, {"sender": worst(stage, 4, 1, stage.synapses[0].weight)})
    assert (np.abs(values) <= found.sent).all()


def test_a_count_that_leaves_24_bits_is_not_safe():
    rng = np.random.default_rng(0)
    arrays = {"levels": np.ones((N, 300)), "worth": np.full(300, NARROW_MAX)}
    stage = stage_of("count", [dense(rng, "w", "in", "sum")], {"in": whole(0, 0, 0)}, arrays)
    assert not certify(alone(stage, 4)[0])["stages"][1]["safe"]


# ---- values ------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(SEEDS, ARRIVALS, st.integers(1, 8))
def test_no_product_exceeds_its_bound(seed, arrival, steps):
    rng = np.random.default_rng(seed)
    arrays = {
        "multiplier": rng.integers(0, 2**24, N), "argument_shift": rng.integers(0, 40, N),
        "product_shift": rng.integers(0, 40, N), "level": np.zeros(N),
        "table": rng.integers(0, SHARE_MAX + 1, 21),
    }  # fmt: skip
    shift = int(rng.integers(0, 6))
    synapses = [dense(rng, port, port, arrival, shift=shift) for port in ("argument", "factor")]
    bias = {port: rng.integers(-1000, 1001, N) for port in ("argument", "factor")}
    stage = stage_of("gate", synapses, bias, arrays)
    graph, senders = alone(stage, steps)
    found = bounds(graph, stage, senders)
    sent = np.concatenate([worst(stage, steps, 1, synapse.weight) for synapse in synapses])
    arrived = {port: integer.arrive(graph, stage, port, {"sender": sent})[0] for port in bias}
    values, clipped = integer.gate(graph, stage, arrived)
    assert (np.abs(values) <= found.sent).all()
    for g, u in zip(arrived["argument"].tolist(), arrived["factor"].tolist(), strict=True):
        for n in range(N):
            place = abs(g[n]) * int(arrays["multiplier"][n])
            product = abs(g[n]) * int(arrays["table"].max()) * abs(u[n])
            assert max(place, product) <= found.between <= WIDEST
            assert product >> int(arrays["product_shift"][n]) <= found.inside["product"][n]
    row = certify(graph)["stages"][1]
    assert row["safe"] == bool((excess(stage, found)["argument"] <= 1).all())
    if row["safe"]:
        assert clipped == 0
        assert row["saturation"] == "impossible"


@settings(max_examples=150)
@given(
    seed=SEEDS,
    size=st.integers(1, 40),
    center=st.integers(0, 1),
    epsilon=st.sampled_from([0, 1, 2, 50, 10**6, 2**44]),
    scale=st.sampled_from([1, 2, 3, 100, 10**5, STATE_MAX // 2, STATE_MAX]),
)
def test_no_quotient_exceeds_its_bound(seed, size, center, epsilon, scale):
    """Against Python's integers; vectors of one entry, of the largest, of ones and zeros, and any."""
    rng = np.random.default_rng(seed)
    offset, sign = rng.integers(-500, 501, size), rng.choice([-1, 0, 1], size)
    arrays = {"center": center, "epsilon": epsilon, "sign": sign, "offset": offset}
    arrays = {name: np.asarray(array, dtype=np.int64) for name, array in arrays.items()}
    ones = np.ones(size, dtype=np.int64)
    synapse = Synapse("e", INPUT, "in", "each", "value", ones, 0, 0 * ones)
    stage = Stage("s", "norm", (size,), (synapse,), {"in": 0 * ones}, arrays)
    graph = IntegerGraph(1, (size,), (stage,))
    found = bounds(graph, stage, {INPUT: np.full(size, scale)})
    alone = np.eye(size, dtype=np.int64) * scale
    x = np.concatenate(
        [alone, -alone, [ones * scale, 0 * ones, ones], rng.integers(-scale, scale + 1, (20, size))]
    )
    values, clipped = integer.norm(graph, stage, {"in": x})
    assert (np.abs(values) <= found.sent).all()
    if not center:
        assert clipped == 0
    between = 0
    for row, value in zip(x.tolist(), values.tolist(), strict=True):
        total = sum(row)
        mean = int(math.copysign(abs(total) // size, total)) if center else 0
        row = [max(-STATE_MAX, min(STATE_MAX, each - mean)) for each in row]
        assert max(map(abs, row)) <= found.inside["centered"].max()
        squares = sum(each * each for each in row)
        under = (-(-squares // size) + epsilon) << 16
        between = max(between, squares, under, max(abs(each) << (NORM_BITS + 8) for each in row))
        divisor = max(math.isqrt(under), 1)
        for n, each in enumerate(row):
            quotient = (abs(each) << (NORM_BITS + 8)) // divisor
            exact = int(sign[n]) * (quotient if each > 0 else -quotient) + int(offset[n])
            assert abs(exact) <= found.inside["quotient"][n]
            assert value[n] == exact
    assert between <= found.between


def s4d_of(rng, modes):
    out, skip, turning = rng.choice([0, NARROW_MAX]), rng.choice([0, 2**23 - 1]), rng.choice([0, TURN_MAX])
    arrays = {
        "real": rng.integers(-turning, turning + 1, (N, modes)),
        "imaginary": rng.integers(-turning, turning + 1, (N, modes)),
        "enter_left": rng.integers(0, 23, (N, modes)), "enter_right": rng.integers(0, 23, (N, modes)),
        "out_real": rng.integers(-out, out + 1, (N, modes)),
        "out_imaginary": rng.integers(-out, out + 1, (N, modes)), "skip": rng.integers(-skip, skip + 1, N),
        "out_shift": rng.integers(0, 40, N),
    }  # fmt: skip
    return stage_of("s4d", [dense(rng, "w", "in", "sum", shift=6)], {"in": rng.integers(-9, 10, N)}, arrays)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 6))
def test_nothing_in_s4d_leaves_64_bits(seed, modes):
    """Its products, with states at their limits, in Python's integers."""
    rng = np.random.default_rng(seed)
    stage = s4d_of(rng, modes)
    graph, senders = alone(stage, 4, 6)
    found = bounds(graph, stage, senders)
    of = {name: array.astype(object) for name, array in stage.arrays.items()}
    for re, im in ((STATE_MAX, STATE_MAX), (STATE_MAX, -STATE_MAX), (-STATE_MAX, STATE_MAX)):
        turned = turn(re, im, of["real"], of["imaginary"])
        assert max(abs(each).max() for each in turned) <= found.between
        x = np.minimum(found.entering["in"], STATE_MAX).astype(object)
        assert (x[:, None] * 2 ** of["enter_left"]).max() <= found.between
        for y in (x, -x):
            read = (of["out_real"] * re - of["out_imaginary"] * im).sum(1) + of["skip"] * y
            assert abs(read).max() <= found.between
    assert found.between <= WIDEST
    sent = worst(stage, 4, 1, stage.synapses[0].weight).repeat(6, axis=0)
    values, _ = integer.run_stage(graph, stage, {"sender": sent})
    assert (np.abs(values) <= found.sent).all()


def ssd_of(rng, scaled, turns, left):
    """H = 3 heads of one value; 3 groups of 2 keys."""
    C, G, H = N + 12, 6, 3
    arrays = {
        "taps": rng.integers(-(2**23) + 1, 2**23, (2, C)), "tap_bias": rng.integers(-(2**46), 2**46, C),
        "tap_shift": rng.integers(0, 46, C), "multiplier": rng.integers(0, 2**24, H),
        "argument_shift": rng.integers(0, 30, H), "table": rng.integers(0, SHARE_MAX, 21),
        "cosine": rng.integers(-TURN_MAX, TURN_MAX + 1, turns),
        "sine": rng.integers(-TURN_MAX, TURN_MAX + 1, turns),
        "scaled": scaled, "groups": 3, "enter_left": rng.integers(0, left + 1, H),
        "enter_right": rng.integers(0, 40, H), "skip": rng.integers(-(2**40), 2**40, H),
        "out_shift": rng.integers(0, 40, H),
    }  # fmt: skip
    sizes = {"values": N, "keys": G, "queries": G, "forgetting": H}
    synapses = [dense(rng, port, port, "sum", size, shift=6) for port, size in sizes.items()]
    return stage_of(
        "ssd", synapses, {port: rng.integers(-9, 10, size) for port, size in sizes.items()}, arrays
    )


@settings(max_examples=60)
@given(SEEDS, st.integers(0, 1), st.integers(0, 1), st.sampled_from([0, 10, 16, 22]))
def test_nothing_in_ssd_leaves_64_bits(seed, scaled, turns, left):
    """Its products, with channels and states at their limits, in Python's integers; else it isn't safe."""
    rng = np.random.default_rng(seed)
    stage = ssd_of(rng, scaled, turns, left)
    graph, senders = alone(stage, 4, 6)
    found = bounds(graph, stage, senders)
    of = {name: array.astype(object) for name, array in stage.arrays.items()}
    raw = np.concatenate([np.minimum(found.entering[p], STATE_MAX) for p in ("values", "keys", "queries")])
    assert ((abs(of["taps"]) * raw.astype(object)).sum(0) + abs(of["tap_bias"])).max() <= found.between
    assert (np.minimum(found.entering["forgetting"], STATE_MAX) * of["multiplier"]).max() <= found.between
    decay = int(stage.arrays["table"].max())
    product = NARROW_MAX**2 * (SHARE_MAX if scaled else 1)
    assert (product * 2 ** of["enter_left"]).max() <= found.between
    if turns:
        for first, second in ((1, 1), (1, -1), (-1, 1)):
            turned = turn(first * STATE_MAX, second * STATE_MAX, of["cosine"], of["sine"])
            assert max(abs(each).max() for each in turned) * decay <= found.between
    else:
        assert STATE_MAX * decay <= found.between
    read = 2 * STATE_MAX * NARROW_MAX + abs(of["skip"]).max() * NARROW_MAX
    assert read <= found.between
    row = certify(graph)["stages"][1]
    assert row["safe"] == (
        found.between <= WIDEST and all((e <= 1).all() for e in excess(stage, found).values())
    )
    if not row["safe"]:
        return
    assert row["saturation"] == "limited"
    # at the limits, the arrays' own arithmetic says what Python's says
    state = rng.choice([-STATE_MAX, STATE_MAX], (1, 3, 2, 1))
    exact = faded(of, state.astype(object), np.full((1, 3, 1, 1), decay, dtype=object)) if not turns else None
    kept = faded(stage.arrays, state, np.full((1, 3, 1, 1), decay))
    if exact is not None:
        assert np.array_equal(kept, exact)
    assert (np.abs(kept) <= 2 * STATE_MAX).all()


def test_what_would_wrap_in_ssd_is_not_safe():
    stage = ssd_of(np.random.default_rng(0), 1, 1, 22)
    stage = replace(stage, arrays={**stage.arrays, "enter_left": whole(22, 22, 22)})
    row = certify(alone(stage, 4, 6)[0])["stages"][1]
    assert (row["safe"], row["saturation"]) == (False, "possible")
    assert row["between"] > WIDEST


def test_every_kind_has_a_property():
    """The names of these tests, kind by kind."""
    for kind in KINDS:
        named = {"gate": "product", "norm": "quotient"}.get(kind, kind)
        assert any(name.startswith("test_no") and named in name for name in globals()), kind
