"""Reference: operations of a bundle against a loop over every token, step, spike and weight."""

from collections import Counter

import numpy as np
import pytest

from marsnn.hardware import export
from marsnn.hardware.price import counts_of
from marsnn.hardware.stages import INPUT, KINDS, UNITY, IntegerGraph, IntegerRun, Stage, Synapse, schedule
from tests.hardware.networks import BUILD, build


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Every network on few tokens, so that loops in Python end."""
    folder = tmp_path_factory.mktemp("price")

    def made(name):
        net, x = build(name)
        return export(net, x[:3, :2], folder / name)

    counted, x = build("chain")
    counts = {"counted": export(counted, x[:3, :2], folder / "counted", mode="count")}
    return {name: made(name) for name in BUILD} | counts


def sent_by(bundle, source):
    """[W, T or 1, M]."""
    sent = bundle.inputs if source == INPUT else bundle.golden.of(source)
    sent = np.asarray(sent, dtype=np.int64)
    return sent if sent.ndim == 3 else sent[:, None]


def connections(synapse):
    """(sender, receiver, weight) of every pair that a synapse joins, zeros included."""
    if synapse.form == "dense":
        for j, row in enumerate(synapse.weight.tolist()):
            for i, weight in enumerate(row):
                yield i, j, weight
    elif synapse.form == "each":
        for j, weight in enumerate(synapse.weight.tolist()):
            yield j, j, weight
    else:
        yield from windows(synapse)


def windows(synapse):
    """Every tap of a convolution that falls inside the image."""
    conv, kernel = synapse.conv, synapse.weight
    inner, outer = kernel.shape[1], kernel.shape[0] // conv.groups
    for target in np.ndindex(*conv.target):
        channel, at = target[0], target[1:]
        first = channel // outer * inner
        for tap in np.ndindex(*kernel.shape[1:]):
            where = [
                a * s - p + d * k
                for a, s, p, d, k in zip(at, conv.stride, conv.padding, conv.dilation, tap[1:], strict=True)
            ]
            if all(0 <= w < n for w, n in zip(where, conv.source[1:], strict=True)):
                source = (first + tap[0], *where)
                yield (
                    int(np.ravel_multi_index(source, conv.source)),
                    int(np.ravel_multi_index(target, conv.target)),
                    int(kernel[(channel, *tap)]),
                )


def by_loop(bundle, synapse):
    """Effective operations, of a value one for each weight, of a spike of k k."""
    fan_out = Counter(sender for sender, _, weight in connections(synapse) if weight)
    graded = bundle.graph.sends(synapse.source) == "value"
    total = 0
    for token in sent_by(bundle, synapse.source).tolist():
        for step in token:
            for sender, value in enumerate(step):
                if value:
                    total += fan_out[sender] * (1 if graded else abs(value))
    return total


@pytest.mark.parametrize("name", [*BUILD, "counted"])
def test_synapses_equal_a_loop(name, bundles):
    bundle = bundles[name]
    layers = bundle.report("counts")["layers"]
    W = len(bundle.inputs)
    for stage in bundle.graph.stages:
        for synapse in stage.synapses:
            row = layers[synapse.name]
            effective = by_loop(bundle, synapse)
            pairs = len(list(connections(synapse)))
            graded = bundle.graph.sends(synapse.source) == "value"
            assert row["graded_ac"] == 0
            if synapse.form == "each" and graded:
                idle = (synapse.weight == 1).all() and not synapse.right.any()
                assert (row["mac"], row["ac"]) == (0, 0)
                if synapse.name != stage.name:
                    assert row["mul"] == (0 if idle else effective)
                continue
            presented = 1 if graded else bundle.steps
            kind, other = ("mac", "ac") if graded else ("ac", "mac")
            assert (row[kind], row[other]) == (effective, 0)
            assert row[f"dense_{other}"] == 0
            if synapse.form == "conv":  # padding is among the zeros that a dense one does not skip
                taps = int(np.prod(synapse.weight.shape[1:]))
                assert row[f"dense_{kind}"] == W * presented * int(np.prod(synapse.conv.target)) * taps
                assert row[f"dense_{kind}"] >= W * presented * pairs
            else:
                assert row[f"dense_{kind}"] == W * presented * pairs
            assert row["baseline_mac"] == (0 if synapse.form == "each" else row[f"dense_{kind}"] // presented)
            assert effective > 0


def test_the_loops_meet_every_form_and_kind(bundles):
    synapses = [
        (synapse.form, bundle.graph.sends(synapse.source))
        for bundle in bundles.values()
        for stage in bundle.graph.stages
        for synapse in stage.synapses
    ]
    assert set(synapses) == {
        (form, sent) for form in ("dense", "conv", "each") for sent in ("value", "train")
    }
    kinds = {stage.kind for bundle in bundles.values() for stage in bundle.graph.stages}
    assert kinds == KINDS.keys()
    assert np.abs(bundles["integers"].golden.spikes["integerlif1"]).max() > 1


def is_shift(decay):
    return decay == 0 or 2 ** (int(decay).bit_length() - 1) == decay


def updates(bundle, stage):
    """Multiplications and additions of a population, neuron by neuron, biases included."""
    W, T, of = len(bundle.inputs), bundle.steps, stage.arrays
    mul = add = 0
    for port in stage.bias:
        each = W * (T if stage.takes == "step" else 1)
        add += each * sum(1 for value in stage.bias[port].tolist() if value)
    for n in range(stage.neurons):
        if stage.kind == "atmn":
            mul += 0 if is_shift(of["decay"]) else W * T
            add += 2 * W * T  # the comparison, the reset
        elif stage.kind == "lif":
            mul += (
                W * T * sum(not is_shift(of[f"{name}decay"][n]) for name in ("", "current_", "adaptation_"))
            )
            add += W * T * (2 + int(of["most"]))  # the current, the reset, a comparison for each level
            add += W * T * (of["current_decay"][n] != 0) + 2 * W * T * (of["adaptation"][n] != 0)
        elif stage.kind == "count":
            add += W * of["levels"].shape[1]
        elif stage.kind == "gate":
            mul += 3 * W
        elif stage.kind == "norm":
            mul += W
            add += W * (4 if of["center"] else 2)
        elif stage.kind == "s4d":
            modes = of["real"].shape[1]
            mul += W * (6 * modes + 1)
            add += W * (5 * modes + 1)
        elif stage.kind == "ssd":
            head = n // (stage.neurons // len(of["multiplier"]))
            assert 0 <= head < len(of["multiplier"])
            memory = len(stage.bias["keys"]) // int(of["groups"])
            turns = 3 if len(of["cosine"]) else 1  # two products of a complex one, and the decay
            mul += W * (memory * (turns + (2 if of["scaled"] else 1) + 1) + 1)
            add += W * (memory * (turns + 1) + 1)
    if stage.kind == "ssd":
        mul += W * of["taps"].size
        add += W * of["taps"].size
    return mul, add


@pytest.mark.parametrize("name", [*BUILD, "counted"])
def test_populations_equal_a_loop(name, bundles):
    bundle = bundles[name]
    layers = bundle.report("counts")["layers"]
    for stage in bundle.graph.stages:
        row = layers[stage.name]
        own = [synapse for synapse in stage.synapses if synapse.name == stage.name]
        assert all(synapse.form != "each" for synapse in own)
        assert (row["mul"], row["add"]) == updates(bundle, stage), stage.name
        if stage.sends == "train":
            spikes = bundle.golden.spikes[stage.name].astype(int)
            assert row["spikes"] == sum(abs(value) for value in spikes.ravel().tolist()) > 0
            assert row["neuron_updates_active"] == spikes.size
        else:
            assert row["spikes"] == 0


def test_what_has_no_field_is_listed(bundles):
    def left_out(name):
        return bundles[name].report("counts")["unattributed"]

    assert left_out("chain") == {}
    assert left_out("block")["table look-up of gated"] == 6 * 16
    assert left_out("block")["root of norm"] == 6
    assert left_out("block")["division of norm"] == 6 * 8
    assert left_out("turned")["table look-up of ssdcore1"] == 6 * 2
    delays = {f"delay line of {steps} steps before {name}": 6 for name, steps in
              schedule(bundles["skips"].graph).delays.items() if steps}  # fmt: skip
    assert delays
    assert left_out("skips") == delays


def test_an_integer_spike_of_k_counts_k():
    """By hand: spikes 3, 0, -2 of one neuron with weights 5, 0, -1 behind it."""
    zeros, one = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)
    lif = {
        "fire": one, "amplitude": one, "decay": zeros, "current_decay": zeros, "adaptation": zeros,
        "adaptation_decay": zeros, "most": np.array(3), "signed": np.array(1),
    }  # fmt: skip
    wire = Synapse("wire", INPUT, "in", "each", "held", one, 0, zeros)
    sender = Stage("n", "lif", (1,), (wire,), {"in": zeros}, lif)
    weight = np.array([[5], [0], [-1]])
    behind = Stage(
        "out",
        "sum",
        (3,),
        (Synapse("w", "n", "in", "dense", "sum", weight),),
        {"in": np.array([1, 0, 2])},
        {},
    )
    graph = IntegerGraph(3, (1,), (sender, behind))
    run = IntegerRun(
        {"n": np.array([[[3], [0], [-2]]], dtype=np.int8)}, {"out": np.array([[6, 0, 1]], dtype=np.int32)}, {}
    )
    counts = counts_of(graph, np.array([[4]]), run)
    assert counts.layers["w"].ac == (3 + 2) * 2
    assert (counts.layers["w"].mac, counts.layers["w"].dense_ac) == (0, 9)
    assert counts.layers["n"].spikes == 5
    assert counts.layers["n"].mul == 0  # nothing fades
    assert counts.layers["n"].add == 3 * (2 + 3)
    assert counts.layers["out"].add == 2  # biases
    assert counts.unattributed == {}


def test_a_leak_by_a_power_of_two_is_a_shift():
    zeros, ones = np.zeros(4, dtype=np.int64), np.ones(4, dtype=np.int64)
    lif = {
        "fire": ones, "amplitude": ones, "decay": np.array([UNITY, UNITY // 2, 3000, 0]),
        "current_decay": zeros, "adaptation": zeros, "adaptation_decay": zeros, "most": np.array(1),
        "signed": np.array(0),
    }  # fmt: skip
    wire = Synapse("wire", INPUT, "in", "each", "held", ones, 0, zeros)
    graph = IntegerGraph(5, (4,), (Stage("n", "lif", (4,), (wire,), {"in": zeros}, lif),))
    run = IntegerRun({"n": np.zeros((2, 5, 4), dtype=np.int8)}, {}, {})
    counts = counts_of(graph, np.ones((2, 4), dtype=np.int64), run)
    assert counts.layers["n"].mul == 2 * 5


def test_energy_follows_from_the_counts(bundles):
    bundle = bundles["chain"]
    total = bundle.report("counts")["total"]
    layers = bundle.report("counts")["layers"].values()
    assert total == {key: sum(row[key] for row in layers) for key in total}
    assert bundle.report("energy")
