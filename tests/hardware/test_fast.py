"""Reference: the compiled loops against the integer model, array for array. Mutants must fail."""

import ctypes

import numpy as np
import pytest

from marsnn import native
from marsnn.bench.random_nets import FAMILIES, draw
from marsnn.errors import InputError
from marsnn.hardware import fast, integer
from marsnn.hardware.fast import FastIntegers
from marsnn.hardware.graph import extract
from marsnn.hardware.qat import in_order
from marsnn.hardware.quantize import quantize
from marsnn.hardware.stages import STATE_MAX, UNITY, IntegerGraph, Stage, Synapse

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler here")


def exported(family, seed, **sizes):
    """An integer graph of a random network, and inputs."""
    network, x = draw(family, seed, **sizes)
    flat = in_order(x.double().numpy()).reshape(x.shape[0] * x.shape[1], -1)
    found = quantize(extract(network, tuple(x.shape[2:])), flat, len(x))
    return found.graph, found.inputs


def differences(graph, inputs, threads=1):
    """Stages in which the fast run isn't the reference's, in values, types or saturations."""
    expected, found = integer.run(graph, inputs), FastIntegers(graph, threads).run(inputs)
    assert list(found.spikes) == list(expected.spikes)
    assert list(found.values) == list(expected.values)
    assert list(found.saturations) == list(expected.saturations)
    return [
        stage.name
        for stage in graph.stages
        if not np.array_equal(found.of(stage.name), expected.of(stage.name))
        or found.of(stage.name).dtype != expected.of(stage.name).dtype
        or found.saturations[stage.name] != expected.saturations[stage.name]
    ]


# ---- graphs by hand ---------------------------------------------------------------------------------


def matrix(rng, name, source, arrival, N, M, shift=0, largest=127):
    weight = rng.integers(-largest, largest + 1, (N, M))
    return Synapse(name, source, "in", "dense", arrival, weight, shift)


def atmn(rng, name, synapses, N, decay, largest=STATE_MAX):
    fire = rng.integers(1, largest // 4, N)
    arrays = {"fire": fire, "amplitude": fire + rng.integers(0, 3, N), "decay": np.array(decay)}
    return Stage(name, "atmn", (N,), synapses, {"in": rng.integers(-largest, largest, N)}, arrays)


def lif(rng, name, synapses, N, carry, reset, most, signed, largest=STATE_MAX):
    fire = rng.integers(1, largest // 2, N)
    arrays = {
        "fire": fire, "amplitude": np.maximum(1, fire // 2), "decay": rng.integers(0, UNITY + 1, N),
        "current_decay": rng.integers(0, UNITY + 1, N) * rng.integers(0, 2),
        "adaptation": rng.integers(0, largest // 9, N),
        "adaptation_decay": rng.integers(0, UNITY + 1, N), "most": np.array(most), "signed": np.array(signed),
    }  # fmt: skip
    bias = {"in": rng.integers(-largest // 8, largest // 8, N)}
    return Stage(name, "lif", (N,), synapses, bias, arrays, reset, carry)


def by_hand(seed, small=False):
    """All that loops do: several arrivals at a port, levels above 1, sizes that fill no block.

    At numbers which clip, or small ones, where a rounding decides about a spike.
    """
    rng = np.random.default_rng(seed)
    T, D = int(rng.integers(1, 6)), int(rng.integers(1, 90))
    A, B, C, E = (int(each) for each in rng.integers(1, 150, 4))
    decays = rng.choice([UNITY // 2, UNITY, 2 * UNITY, 3001, 0], 2)
    sums, streams = ("sum", "horner", "power"), ("stream", "stream_down", "stream_up")

    def through(name, source, arrival, N, M, shift):
        return matrix(rng, name, source, arrival, N, M, 0 if small else shift, 1 if small else 127)

    size = {"largest": 40} if small else {}
    first = atmn(rng, "first", (through("w1", "input", "value", A, D, 8),), A, decays[0], **size)
    currents = (
        through("w2", "first", rng.choice(streams), B, A, 9),
        through("w3", "input", "held", B, D, 6),
    )
    second = lif(
        rng,
        "second",
        currents,
        B,
        rng.choice(["token", "sequence"]),
        rng.choice(["subtract", "zero"]),
        int(rng.integers(1, 5)),
        int(rng.integers(0, 2)),
        **size,
    )
    trains = (
        through("w4", "second", "sum", C, B, 9),
        through("w5", "first", rng.choice(sums), C, A, 9),
    )
    third = atmn(rng, "third", trains, C, decays[1], **size)
    ends = (
        through("w6", "third", rng.choice(sums), E, C, 12),
        through("w7", "input", "value", E, D, 3),
    )
    last = Stage("last", "sum", (E,), ends, {"in": rng.integers(-STATE_MAX, STATE_MAX, E)}, {})
    graph = IntegerGraph(T, (D,), (first, second, third, last), tokens_per_sample=3)
    return graph, rng.integers(-5 if small else -127, 6 if small else 128, (3 * int(rng.integers(1, 15)), D))


def crowded():
    """More spikes of one sign than 16 bits can sum: 700 senders that fire once, at the largest weight."""
    bias = {"in": np.full(700, 100)}
    numbers = {"fire": np.full(700, 100), "amplitude": np.full(700, 100), "decay": np.array(2 * UNITY)}
    first = Synapse("w1", "input", "in", "dense", "value", np.zeros((700, 1), dtype=np.int64))
    up = Synapse("w2", "first", "in", "dense", "sum", np.full((65, 700), 127))
    stages = (
        Stage("first", "atmn", (700,), (first,), bias, numbers),
        Stage("last", "sum", (65,), (up,), {"in": np.zeros(65, dtype=np.int64)}, {}),
    )
    return IntegerGraph(2, (1,), stages), np.zeros((2, 1), dtype=np.int64)


# ---- the same as the reference ----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_random_networks_are_the_same(family):
    for seed in range(6):
        assert not differences(*exported(family, seed)), (family, seed)


def test_wide_networks_are_the_same():
    for seed in range(3):
        assert not differences(*exported("dense", 100 + seed, width=300, tokens=5, samples=30)), seed


def test_graphs_of_small_numbers_are_the_same():
    spikes = dict.fromkeys(("first", "second", "third"), 0)
    for seed in range(20):
        graph, inputs = by_hand(seed, small=True)
        assert not differences(graph, inputs), seed
        for name, train in integer.run(graph, inputs).spikes.items():
            spikes[name] += np.count_nonzero(train)
    assert min(spikes.values()) > 1000


def test_saturating_graphs_are_the_same():
    clipped = dict.fromkeys(("first", "second", "third", "last"), 0)
    for seed in range(40):
        graph, inputs = by_hand(seed)
        assert not differences(graph, inputs), seed
        for name, number in integer.run(graph, inputs).saturations.items():
            clipped[name] += number
    assert min(clipped.values()) > 100


@needs_compiler
def test_many_spikes_of_one_sign_are_summed_exactly():
    graph, inputs = crowded()
    assert not differences(graph, inputs)
    assert (FastIntegers(graph).run(inputs).values["last"] == 700 * 127).all()


def test_samples_that_do_not_fit_the_cache_at_once_are_the_same(monkeypatch):
    monkeypatch.setattr(fast, "IN_CACHE", 200)
    for seed in range(4):
        graph, inputs = by_hand(seed)
        assert FastIntegers(graph).tokens < len(inputs) or len(inputs) == 3
        assert not differences(graph, inputs)
        assert not differences(graph, inputs, threads=3)


def test_threads_are_at_least_one():
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        FastIntegers(by_hand(5)[0], 0)


def test_inputs_wider_than_8_bits_are_the_same():
    graph, inputs = by_hand(3)
    assert not differences(graph, 40 * inputs)


def test_runs_do_not_see_each_other():
    graph, inputs = by_hand(5)
    simulator = FastIntegers(graph)
    first = simulator.run(inputs)
    kept = {stage.name: first.of(stage.name).copy() for stage in graph.stages}
    simulator.run(inputs[::-1][:3])
    assert all(np.array_equal(first.of(name), array) for name, array in kept.items())


def test_half_a_sample_is_refused():
    graph, inputs = by_hand(5)
    with pytest.raises(InputError, match="2 tokens don't divide into samples of 3"):
        FastIntegers(graph).run(inputs[:2])


# ---- what the loops leave to the reference ----------------------------------------------------------


@needs_compiler
def test_numbers_that_the_loops_do_not_have_run_by_the_reference():
    rng = np.random.default_rng(0)
    wide = matrix(rng, "w2", "first", "sum", 5, 9, largest=3000)
    first = atmn(rng, "first", (matrix(rng, "w1", "input", "value", 9, 4),), 9, 3 * UNITY)
    last = Stage("last", "sum", (5,), (wide,), {"in": np.zeros(5, dtype=np.int64)}, {})
    graph = IntegerGraph(3, (4,), (first, last))
    simulator = FastIntegers(graph)
    assert simulator.stages[0].numbers is None
    assert not simulator.stages[1].events
    assert not differences(graph, rng.integers(-127, 128, (6, 4)))


def test_without_a_compiler_everything_runs_by_the_reference(monkeypatch):
    monkeypatch.setattr(fast, "library", lambda: None)
    assert not differences(*by_hand(1))


def test_a_missing_compiler_is_said_once(monkeypatch):
    monkeypatch.setattr(native, "_SAID", set())
    monkeypatch.setattr(native, "compiler", lambda: None)
    fast.library.cache_clear()
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler found .*; integers run in numpy"):
        assert fast.library() is None
    fast.library.cache_clear()


# ---- mutants ----------------------------------------------------------------------------------------

MUTANTS = {
    "> for >=": ("(x >= fire[n]", "(x > fire[n]"),
    "no saturation of a sum": ("acc[n] = clipped(x);", "acc[n] = x;"),
    "-2^23 for -(2^23 - 1)": ("below < -limit ? -limit", "below < -limit - 1 ? -limit - 1"),
    "floor for whole": (
        "static_cast<int32_t>(x))",
        "static_cast<int32_t>(x) - (x < static_cast<int32_t>(x)))",
    ),
    "an input in three is skipped": ("e += 2) {  // 2 * 127 * 127 fits 16 bits", "e += 3) {"),
    "16 bits overflow": ("UNFLUSHED = 258", "UNFLUSHED = 300"),
    "one adaptation for all levels' spikes": ("size * adaptation[n]", "(size > 0) * adaptation[n]"),
    "saturations of the current uncounted": ("(kept != driven ? 1.0 : 0.0) +", ""),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, kernel_cache, monkeypatch, tmp_path):
    right, wrong = MUTANTS[name]
    header = (fast.SOURCES / "integer.h").read_text()
    assert header.count(right) == 1, "the mutant no longer fits the source"
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "integer.h").write_text(header.replace(right, wrong))
    monkeypatch.setattr(fast, "SOURCES", tmp_path / "kernels")
    fast.library.cache_clear()
    try:
        assert isinstance(fast.library(), ctypes.CDLL)
        cases = [crowded(), *(by_hand(seed, small) for seed in range(12) for small in (True, False))]
        assert any(differences(*case) for case in cases), f"no case notices the mutant {name!r}"
    finally:
        fast.library.cache_clear()
