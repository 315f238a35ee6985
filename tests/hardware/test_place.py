"""Unit: cores by the limits of a profile, by hand; messages and hops against loops over neurons."""

from dataclasses import replace
from itertools import pairwise, product
from math import prod
from time import process_time

import numpy as np
import pytest

from marsnn.energy import EnergyReport, LayerCounts, OperationCounts
from marsnn.errors import FileError, InputError
from marsnn.files import json_text
from marsnn.hardware.chip import PROFILES
from marsnn.hardware.loihi import Layer, LoihiModel
from marsnn.hardware.parts import cut
from marsnn.hardware.place import events_of, load_profile, place
from marsnn.hardware.populations import populations
from marsnn.hardware.stages import (
    INPUT,
    KINDS,
    Convolution,
    IntegerGraph,
    IntegerRun,
    Stage,
    Synapse,
    schedule,
)

LOIHI1, LOIHI2 = load_profile("loihi1"), load_profile("loihi2")


# ---- graphs -----------------------------------------------------------------------------------------


def full(*shape, value=1):
    return np.broadcast_to(np.int64(value), shape)  # of ten million weights, no memory


def stage(name, kind, shape, *synapses, sizes=None, **arrays):
    """A stage whose arrays of its own are ones, but for those given."""
    own = prod(shape)
    axes = {"N": own, "K": 4, "E": 9, "M": 2, **(sizes or {})}
    made = {
        key: full(*(axes[axis] for axis in array.axes.split())) for key, array in KINDS[kind].arrays.items()
    }
    bias = {port: full(axes[axis]) for port, axis in KINDS[kind].ports.items()}
    return Stage(
        name, kind, tuple(shape), synapses, bias, {**made, **{k: np.array(v) for k, v in arrays.items()}}
    )


def dense(name, source, N, M, port="in"):
    return Synapse(name, source, port, "dense", "sum", full(N, M))


def each(name, source, N, port="in"):
    return Synapse(name, source, port, "each", "sum", full(N), right=full(N))


def conv(name, source, kernel, sizes, stride=1, padding=0, dilation=1, groups=1):
    """An image [C_in, *sizes] by a kernel [C, C_in / groups, *K]."""
    C, _, *K = kernel
    out = [
        (size + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for size, k in zip(sizes[1:], K, strict=True)
    ]
    same = [(value,) * len(K) for value in (stride, padding, dilation)]
    return Synapse(name, source, "in", "conv", "sum", full(*kernel),
                   conv=Convolution(tuple(sizes), (C, *out), *same, groups))  # fmt: skip


def chain(*sizes, T=4, kind="atmn"):
    stages, source = [], INPUT
    for index, (senders, neurons) in enumerate(pairwise(sizes)):
        stages.append(stage(f"s{index}", kind, (neurons,), dense(f"w{index}", source, neurons, senders)))
        source = f"s{index}"
    return IntegerGraph(T, (sizes[0],), tuple(stages))


def image_net(sizes=(2, 12, 12), kernel=(8, 2, 3, 3), **how):
    first = conv("conv1", INPUT, kernel, sizes, **how)
    a = stage("a1", "atmn", first.conv.target, first)
    second = conv("conv2", "a1", (6, kernel[0], 3, 3), a.shape, stride=2, padding=1)
    b = stage("a2", "atmn", second.conv.target, second)
    return IntegerGraph(4, sizes, (a, b, stage("out", "sum", (10,), dense("fc", "a2", 10, b.neurons))))


def skip_net(T, layers=3, N=12):
    """A chain whose last stage hears the first one, too."""
    graph = chain(N, *[N] * layers, T=T)
    last = graph.last
    last = replace(last, synapses=(*last.synapses, each("skip", "s0", N)))
    return replace(graph, stages=(*graph.stages[:-1], last))


def looped_net(*sizes):
    """A chain of ternary LIFs that hear themselves."""
    graph = chain(*sizes, kind="lif")
    stages = [
        replace(each_stage, synapses=(*each_stage.synapses, dense(f"own{k}", each_stage.name, N, N)))
        for k, (each_stage, N) in enumerate(zip(graph.stages, sizes[1:], strict=True))
    ]
    return replace(graph, stages=tuple(stages))


def ssd(N=64, heads=8, groups=2, width=16, taps=4):
    G = groups * width
    sizes = {"G": G, "H": heads, "K": taps, "C": N + 2 * G, "R": 0}
    return stage("mix", "ssd", (N,), dense("v", INPUT, N, 32, "values"), dense("k", INPUT, G, 32, "keys"),
                 dense("q", INPUT, G, 32, "queries"), dense("f", INPUT, heads, 32, "forgetting"),
                 sizes=sizes, groups=groups)  # fmt: skip


# ---- cores by hand ----------------------------------------------------------------------------------


def test_dense_layers_by_hand():
    # 64 senders: 131072 // 64 = 2048 neurons by memory, 1024 by places: 3000 need 3 cores.
    # 3000 ternary senders are 6000 axons, more than 4096: the second layer does not fit.
    placed = place(chain(64, 3000, 10))
    assert [each_cut.cores for each_cut in placed.cuts] == [3, 0]
    assert not placed.fits
    assert placed.refusals == (
        "w1: 6,000 input axons (2 for each ternary sender), a core takes 4,096: split its inputs in 2",
    )
    assert placed.cores == placed.edges == ()
    # 1024 senders: 128 neurons a core by memory, so 600 need 5. Each of 1024 neurons has 2 rails to 5 cores,
    # 10240 output axons: 3 cores. The first of 3 has 341 neurons, the first of 5 has 120.
    placed = place(chain(8, 1024, 600))
    assert [each_cut.cores for each_cut in placed.cuts] == [3, 5]
    assert placed.fits
    first, *_, last = placed.cores
    assert (first.stage, first.part, first.box) == ("s0", 0, ((0, 341),))
    assert (first.use.neurons, first.use.synapse_bytes, first.use.input_axons) == (341, 341 * 8, 8)
    assert first.use.output_axons == 341 * 2 * 5
    assert (last.use.neurons, last.use.synapse_bytes, last.use.input_axons) == (120, 120 * 1024, 2048)
    assert last.use.output_axons == 0
    assert first.use.shares(LOIHI1)["output_axons"] == 3410 / 4096


def test_one_rail_where_spikes_are_binary_or_the_chip_sends_signs():
    by_sign = place(chain(8, 1000, 10))
    assert by_sign.cuts[1].use.input_axons == 2000
    assert place(chain(8, 1000, 10), "loihi2").cuts[1].use.input_axons == 1000
    lif = chain(8, 1000, 10, kind="lif")
    assert place(lif).cuts[1].use.input_axons == 2000  # these ones say signed = 1
    unsigned = tuple(replace(s, arrays={**s.arrays, "signed": np.array(0)}) for s in lif.stages)
    assert place(replace(lif, stages=unsigned)).cuts[1].use.input_axons == 1000
    own = replace(LOIHI1, rails_share_weights=False)
    assert place(chain(8, 1000, 10), own).cuts[1].use.synapse_bytes == 2 * 10 * 1000


def test_a_kernel_is_shared_on_a_core_and_axons_are_not():
    # 8 x 10 x 10 = 800 neurons fit one core: the kernel 8 * 2 * 9 bytes once, the image 2 * 144 axons.
    placed = place(image_net())
    a1, a2, out = placed.cuts
    assert [each_cut.cores for each_cut in placed.cuts] == [1, 1, 1]
    assert (a1.use.synapse_bytes, a1.use.input_axons) == (8 * 2 * 9, 288)
    # Behind it 6 x 5 x 5 of stride 2 and padding 1: rows -1 to 9 of 10 are met, both rails.
    assert (a2.use.synapse_bytes, a2.use.input_axons) == (6 * 8 * 9, 2 * 800)
    assert (out.use.synapse_bytes, out.use.input_axons) == (10 * 150, 2 * 150)
    # On cores of 200 neurons: 4 parts; a cut across the image needs 2 halos, one by channels the whole image.
    small = replace(LOIHI1, neurons_per_core=200)
    parts = [core for core in place(image_net(), small).cores if core.stage == "a1"]
    assert len(parts) == 4
    for core in parts:
        channels, *image = (stop - start for start, stop in core.box)
        assert core.use.synapse_bytes == channels * 2 * 9
        assert core.use.input_axons == 2 * prod(side + 2 for side in image)
    assert sum(core.use.input_axons for core in parts) == 4 * 2 * 7 * 7  # 5 x 5 each, the least of all grids


@pytest.mark.parametrize(
    ("kernel", "how"),
    [
        ((8, 2, 3, 3), {}),
        ((8, 2, 3, 3), {"stride": 2, "padding": 1}),
        ((8, 2, 2, 2), {"stride": 3, "dilation": 2, "padding": 2}),
        ((8, 1, 3, 3), {"groups": 2, "padding": 1}),
        ((8, 2, 5, 1), {"padding": 2}),
    ],
)
def test_axons_of_convolutions_are_those_that_loops_find(kernel, how):
    graph = image_net(kernel=kernel, **how)
    chip = replace(LOIHI1, neurons_per_core=max(prod(graph.stages[0].shape) // 5, 4))
    placed = place(graph, chip)
    parts = [core for core in placed.cores if core.stage == "a1"]
    assert len(parts) >= 5
    synapse = graph["a1"].synapses[0]
    for core in parts:
        assert core.use.input_axons == len(met(synapse, core.box))


def test_a_cut_by_channels_takes_its_own_kernels_and_groups():
    # 8 channels of 2 neurons, two inputs a group of one: a core of 4 neurons has 2 channels, 2 kernels of 3.
    first = conv("c", INPUT, (8, 1, 3), (8, 4), groups=8)
    graph = IntegerGraph(4, (8, 4), (stage("a", "atmn", first.conv.target, first),))
    placed = place(graph, replace(LOIHI1, neurons_per_core=4))
    assert boxes_of(placed, "a") == [((2 * k, 2 * k + 2), (0, 2)) for k in range(4)]
    assert {(core.use.synapse_bytes, core.use.input_axons) for core in placed.cores} == {(2 * 3, 2 * 4)}


def test_where_events_go_to_more_cores_the_parts_are_smaller():
    # Two of four neurons go to 6 cores, the others to none: 12 output axons, but halves would have 12 and 0.
    chip = replace(LOIHI1, output_axons_per_core=6)
    (population,) = populations(chain(3, 4), chip)
    parts, refusal = cut(population, np.array([6, 6, 0, 0]), chip)
    assert (parts, refusal) == ([((0, 1),), ((1, 2),), ((2, 4),)], "")


def met(synapse, box):
    """Senders that a box of a convolution's neurons hears, neuron by neuron and tap by tap."""
    at, found = synapse.conv, set()
    C_in, *sizes = at.source
    group_in, group_out = C_in // at.groups, at.target[0] // at.groups
    for c, *place_ in product(*(range(*axis) for axis in box)):
        for c_in, *taps in product(range(group_in), *(range(k) for k in synapse.weight.shape[2:])):
            spot = [
                p * s - pad + tap * d
                for p, s, pad, tap, d in zip(place_, at.stride, at.padding, taps, at.dilation, strict=True)
            ]
            if all(0 <= x < size for x, size in zip(spot, sizes, strict=True)):
                found.add((c // group_out * group_in + c_in, *spot))
    return found


def test_a_synapse_to_one_neuron_takes_a_multiplier():
    graph = skip_net(T=4)
    own = place(graph).cuts[-1]
    assert own.use.synapse_bytes == 12 * 12 + 3 * 12
    assert own.use.input_axons == 2 * 12 + 2 * 12
    # Where both are from one sender the axon is one, too.
    last = replace(graph.last, synapses=(dense("w", "s1", 12, 12), each("again", "s1", 12)))
    own = place(replace(graph, stages=(*graph.stages[:-1], last))).cuts[-1]
    assert (own.use.synapse_bytes, own.use.input_axons) == (12 * 12 + 3 * 12, 2 * 12)


# ---- waiting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "relays"),
    # s0 waits for s1: T steps, at most 63 in a synapse. One relay holds 63 and takes a step itself: 64 + 63.
    [(1, 0), (63, 0), (64, 1), (127, 1), (128, 2), (191, 2), (192, 3)],
)
def test_what_waits_longer_than_a_synapse_can_goes_through_relays(T, relays):
    graph = skip_net(T)
    assert schedule(graph).delays["skip"] == T
    placed = place(graph)
    names = [each_cut.name for each_cut in placed.cuts]
    assert names == ["s0", *(f"s0~{k + 1}" for k in range(relays)), "s1", "s2"]
    assert placed.relays == 12 * relays
    delayed = {each_cut.name: each_cut.use.delayed_axons for each_cut in placed.cuts}
    assert all(delayed[f"s0~{k + 1}"] == 24 for k in range(relays))
    assert delayed["s2"] == (24 if T % 64 else 0)
    # Each relay sends every event again, and what it sends is booked to s0.
    pairs = {(edge.source, edge.target): edge.messages for edge in placed.edges}
    last = f"s0~{relays}" if relays else "s0"
    assert pairs[last, "s2"] == 12
    assert placed.hops["s0"].messages == 12 * (2 + relays)
    assert set(placed.hops) == {"s0", "s1", "s2"}


def test_senders_share_relays_and_the_input_needs_none():
    graph = skip_net(100, layers=4)  # s0 waits 200 steps at s3: 3 relays
    s2 = replace(
        graph["s2"], synapses=(*graph["s2"].synapses, each("near", "s0", 12), each("raw", INPUT, 12))
    )
    graph = replace(graph, stages=(*graph.stages[:2], s2, graph.last))
    delays = schedule(graph).delays
    assert (delays["near"], delays["skip"], delays["raw"]) == (100, 200, 200)
    placed = place(graph)
    assert placed.relays == 12 * 3
    heard = {(edge.source, edge.target) for edge in placed.edges}
    assert {("s0", "s0~1"), ("s0~1", "s0~2"), ("s0~1", "s2"), ("s0~2", "s0~3"), ("s0~3", "s3")} <= heard


# ---- kinds of graded values ----------------------------------------------------------------------------


def test_graded_values_are_refused_by_name_where_spikes_are_binary():
    N = 8
    gate = stage(
        "swish", "gate", (N,), dense("up", INPUT, N, 4, "argument"), dense("gate", INPUT, N, 4, "factor")
    )
    total = stage("total", "sum", (N,), each("t", "swish", N))
    norm = stage("rms", "norm", (N,), each("n", "total", N), center=0)
    levels = stage("levels", "lif", (N,), dense("l", "rms", N, N), most=4, signed=0)
    out = stage("out", "sum", (3,), dense("o", "levels", 3, N))
    graph = IntegerGraph(4, (4,), (gate, total, norm, levels, out))
    refusals = place(graph).refusals
    for name, reason in (
        ("swish", "a stage of kind 'gate' works on them"),
        ("total", "its values are sent to other stages"),
        ("rms", "a stage of kind 'norm' works on them"),
        ("levels", "its spikes carry levels up to 4"),
    ):
        assert any(
            refusal.startswith(f"{name}: Loihi 1 sends no graded spikes: {reason}; ") for refusal in refusals
        )
    assert len(refusals) == 4  # the readout's values stay where they are
    assert place(graph, "loihi2").fits


def test_gates_and_tables_by_hand():
    # Two sums a neuron: 2 places and 2 * 64 bytes; multiplier, shifts, level 3 + 1 + 1 + 3; the table's 4095
    # entries of 2 bytes on each core. 192 KB hold (196608 - 8190) // 136 = 1385 neurons: 3000 need 3.
    maps = (dense(port, "s0", 3000, 64, port) for port in ("argument", "factor"))
    gate = stage("g", "gate", (3000,), *maps, sizes={"E": 4095})
    graph = chain(8, 64)
    placed = place(replace(graph, stages=(*graph.stages, gate)), "loihi2")
    assert [each_cut.cores for each_cut in placed.cuts] == [1, 3]
    assert placed.cuts[1].use.synapse_bytes == 3000 * 136 + 3 * 8190
    assert placed.cuts[1].use.input_axons == 3 * 64  # both maps hear one axon
    assert placed.cuts[1].use.neurons == 6000


def test_states_of_state_space_layers_by_hand():
    # S4D: 10 neurons of 2 modes, 6 bytes of state each; constants: real, imaginary 3, enter 1 + 1, out 2 + 2
    # a mode; skip 3 and a shift 1 a neuron. 12 senders.
    s4d = stage("s4d", "s4d", (10,), dense("w", INPUT, 10, 12))
    placed = place(IntegerGraph(4, (12,), (s4d,)), "loihi2")
    assert placed.cuts[0].use.synapse_bytes == 10 * (12 + 2 * 6 + 2 * 12 + 4)
    # SSD of 64 values in 8 heads, 2 groups of 16 keys: a state of 64 * 16, 3 bytes each, three past tokens
    # of 64 + 2 * 32 channels; taps 4 * 3, a bias of 47 bits and its sign 6, a shift 1 a channel; a head's 3 +
    # 1 + 1 + 1 + 6 + 1; the table 9 * 2; scaled 1, groups 3. Weights of 64 + 64 + 8 rows by 32.
    whole = place(IntegerGraph(4, (32,), (ssd(),)), "loihi2").cuts[0]
    assert whole.cores == 1
    assert whole.use.synapse_bytes == (
        3 * (64 * 16 + 3 * 128) + 128 * (12 + 6 + 1) + 8 * 13 + 18 + 1 + 3 + 136 * 32
    )
    assert whole.use.neurons == 64 + 2 * 32 + 8
    # On cores of 50 places: 2 heads take 16 + 32 + 2; each group's keys lie on both of its cores.
    four = place(IntegerGraph(4, (32,), (ssd(),)), replace(LOIHI2, neurons_per_core=50))
    assert [core.box for core in four.cores] == [((16 * k, 16 * k + 16),) for k in range(4)]
    assert {core.use.neurons for core in four.cores} == {50}
    # With one group 3 heads take 24 + 32 + 3, and thirds are 2, 3 and 3 heads.
    thirds = place(IntegerGraph(4, (32,), (ssd(groups=1),)), replace(LOIHI2, neurons_per_core=59))
    assert [core.box for core in thirds.cores] == [((0, 16),), ((16, 40),), ((40, 64),)]
    # On those of 40 it's cut inside of heads: p values of two heads and one group take p + 32 + 2, so p <= 6,
    # which is 11 parts or more; 11 would have one with both groups' keys.
    small = place(IntegerGraph(4, (32,), (ssd(),)), replace(LOIHI2, neurons_per_core=40))
    assert len(small.cores) == 12
    assert max(core.use.neurons for core in small.cores) <= 40


def test_the_parts_of_a_norm_tell_each_other_their_sums():
    s0 = stage("s0", "atmn", (90,), dense("w", INPUT, 90, 4))
    for center, messages in ((0, 2), (1, 4)):
        norm = stage("norm", "norm", (90,), each("e", "s0", 90), center=center)
        placed = place(IntegerGraph(4, (4,), (s0, norm)), replace(LOIHI2, neurons_per_core=30))
        own = {(edge.source, edge.target): edge.messages for edge in placed.edges}
        assert own["norm", "norm"] == messages * 3 * 2
        part = next(core for core in placed.cores if core.stage == "norm")
        assert part.use.input_axons == 30 + 2 * messages
        assert part.use.output_axons == 2 * messages


def test_a_population_that_hears_itself_by_hand():
    # 300 ternary neurons hear 10 inputs and 2 x 300 axons of their own. At 310 bytes a neuron one core holds
    # 131072 // 310 = 422; of 200 places there are 2 parts, each neuron with 2 rails to both.
    placed = place(looped_net(10, 300))
    assert [core.use.input_axons for core in placed.cores] == [610]
    assert [core.use.synapse_bytes for core in placed.cores] == [300 * 310]
    assert [core.use.output_axons for core in placed.cores] == [600]
    assert [(edge.source, edge.target, edge.messages) for edge in placed.edges] == [("s0", "s0", 300.0)]
    assert (placed.weighted_hops, placed.hops["s0"].east_west) == (0.0, 0.0)  # to itself a core is no hop
    placed = place(looped_net(10, 300), replace(LOIHI1, neurons_per_core=200))
    assert [core.use.output_axons for core in placed.cores] == [150 * 2 * 2] * 2
    assert placed.hops["s0"].messages == 600
    # Each part sends to all parts: 90 neurons of 3 parts make 30 * 2 * 3 axons a part; with 179 allowed the
    # next number of parts, 4, has 23 * 2 * 4, and so on: more parts never help.
    tight = replace(LOIHI1, neurons_per_core=30, output_axons_per_core=179, cores_per_tile=1)
    placed = place(looped_net(10, 90), tight)
    assert placed.refusals == ("s0: its parts tell each other more than Loihi 1 takes; make it smaller",)


def test_stock_lifs_lie_as_stages_of_the_same_sizes():
    """A chain of stock Lava's layers, a convolution among them, as the stages with its weights."""
    kernel, matrix = np.ones((8, 2, 3, 3), dtype=np.int64), np.ones((10, 8 * 5 * 6), dtype=np.int64)
    channels, neurons = np.zeros(8, dtype=np.int64), np.zeros(10, dtype=np.int64)
    layers = (
        Layer("conv", kernel, channels, 60, 4096, 1000, (8, 5, 6), (2, 2), (0, 1), (1, 1)),
        Layer("fc", matrix, neurons, 60, 4096, 1000, (10,)),
    )
    model = LoihiModel(layers, (2, 11, 12), 8, 127, steps=4)
    moves = Convolution((2, 11, 12), (8, 5, 6), (2, 2), (0, 1), (1, 1))
    first = Synapse("conv.weight", INPUT, "in", "conv", "held", kernel, conv=moves)
    second = Synapse("fc.weight", "conv", "in", "dense", "stream", matrix)
    graph = IntegerGraph(
        4,
        (2, 11, 12),
        (stage("conv", "lif", (8, 5, 6), first, signed=0), stage("fc", "lif", (10,), second, signed=0)),
    )
    chip = replace(LOIHI1, neurons_per_core=50)
    rng = np.random.default_rng(0)
    traffic = {"conv": rng.random(240), "fc": rng.random(10)}
    ours, theirs = (place(each, chip, traffic, effort=0).to_dict() for each in (graph, model))
    assert theirs["cores_used"] >= 6
    assert theirs == ours
    back = replace(model, layers=(layers[0], replace(layers[1], recurrent=np.ones((10, 10), dtype=np.int64))))
    fc = place(back, chip, traffic, effort=0).cuts[1].use
    assert (fc.input_axons, fc.synapse_bytes, fc.output_axons) == (250, 2500, 10)
    run = model.run(rng.integers(-127, 128, (3, 2, 11, 12)))
    assert events_of(run)["conv"].shape == (240,)
    assert events_of(run)["conv"].sum() == pytest.approx(np.count_nonzero(run.spikes["conv"]) / 3)


# ---- messages and hops --------------------------------------------------------------------------------


def listeners(graph, placed):
    """(source, neuron) -> [core that hears it], neuron by neuron, of graphs without relays and norms."""
    found = {}
    for core in placed.cores:
        heard = set()
        for synapse in graph[core.stage].synapses:
            if synapse.form == "dense":
                heard |= {(synapse.source, m) for m in range(synapse.weight.shape[1])}
            elif synapse.form == "each":
                heard |= {(synapse.source, m) for m in range(*core.box[0])}
            else:
                source = synapse.conv.source
                heard |= {
                    (synapse.source, int(np.ravel_multi_index(spot, source)))
                    for spot in met(synapse, core.box)
                }
        for key in heard:
            found.setdefault(key, []).append(core)
    return found


@pytest.mark.parametrize(
    "graph",
    [chain(6, 40, 30, 20), image_net(), skip_net(4, N=40), looped_net(6, 40, 60)],
    ids=["dense", "conv", "skip", "loop"],
)
def test_hops_are_those_that_loops_over_neurons_find(graph):
    rng = np.random.default_rng(0)
    traffic = {s.name: rng.random(s.neurons) for s in graph.stages}
    chip = replace(LOIHI1, neurons_per_core=25, cores_per_tile=1, columns=8, rows=8, cores=64)
    placed = place(graph, chip, traffic, effort=0.1)
    assert placed.fits
    assert placed.cores_used >= 5
    total = dict.fromkeys((s.name for s in graph.stages), (0.0, 0.0, 0.0))
    heard = listeners(graph, placed)
    for core in placed.cores:
        shape = tuple(
            max(stop for (_, stop) in axis) for axis in zip(*boxes_of(placed, core.stage), strict=True)
        )
        for spot in product(*(range(*axis) for axis in core.box)):
            neuron = int(np.ravel_multi_index(spot, shape))
            for other in heard.get((core.stage, neuron), []):
                sent = traffic[core.stage][neuron]
                hops = sent * abs(core.column - other.column), sent * abs(core.row - other.row)
                total[core.stage] = tuple(
                    a + b for a, b in zip(total[core.stage], (sent, *hops), strict=True)
                )
    for name, sums in total.items():
        own = placed.hops[name]
        assert (own.messages, own.east_west, own.north_south) == pytest.approx(sums)
    weighted = sum(3.0 * own[1] + 4.0 * own[2] for own in total.values())
    assert placed.weighted_hops == pytest.approx(weighted)
    assert sum(link.messages for link in placed.links) == pytest.approx(
        sum(o[1] + o[2] for o in total.values())
    )
    assert all(abs(link.a[0] - link.b[0]) + abs(link.a[1] - link.b[1]) == 1 for link in placed.links)
    outputs = sum(core.use.output_axons for core in placed.cores)
    assert outputs == 2 * sum(len(cores) for (source, _), cores in heard.items() if source != INPUT)


def boxes_of(placed, name):
    return [core.box for core in placed.cores if core.stage == name]


def test_parts_cover_each_neuron_once_and_keep_every_limit():
    chip = replace(LOIHI1, neurons_per_core=37, synapse_bytes_per_core=3000, input_axons_per_core=900,
                   output_axons_per_core=700, cores=1000, columns=32, rows=32, cores_per_tile=1)  # fmt: skip
    for graph in (chain(9, 200, 150, 100), image_net(), skip_net(4, N=300), looped_net(9, 60, 40)):
        placed = place(graph, chip, effort=0)
        assert placed.fits, placed.refusals
        assert len({core.core for core in placed.cores}) == placed.cores_used
        for each_stage in graph.stages:
            boxes = boxes_of(placed, each_stage.name)
            spots = [spot for box in boxes for spot in product(*(range(*axis) for axis in box))]
            assert len(spots) == len(set(spots)) == each_stage.neurons
        for core in placed.cores:
            assert max(core.use.shares(chip).values()) <= 1
            assert (core.column, core.row) == chip.tile(core.core)


def test_events_are_counted_or_a_stated_guess():
    graph = chain(4, 6, 5)
    spikes = np.zeros((3, 4, 6), dtype=np.int8)
    spikes[0, :2, 1], spikes[2, 3, 5] = -1, 1
    run = IntegerRun({"s0": spikes}, {"s1": np.array([[0, 1, 2, 0, -4]])})
    events = events_of(run)
    assert events["s0"] == pytest.approx([0, 2 / 3, 0, 0, 0, 1 / 3])
    assert events["s1"].tolist() == [0, 1, 1, 0, 1]
    counted = place(graph, traffic=events)
    assert counted.hops["s0"].messages == pytest.approx(1)
    assert counted.to_dict()["events"] == "counted"
    assert place(graph, traffic={"s0": 2.5, INPUT: 9.0}).hops["s0"].messages == pytest.approx(2.5)
    partly = place(chain(4, 6, 5, 3), traffic={"s0": 2.5})
    assert partly.events == "counted, but a guess of one a neuron and token for s1"
    assert partly.hops["s1"].messages == 5
    guess = place(graph)
    assert guess.hops["s0"].messages == 6
    assert guess.to_dict()["events"].startswith("a guess")
    assert any("a guess" in note for note in guess.notes)
    for wrong, told in (
        ({"s9": 1.0}, "'s9', which is no stage of this graph; its stages are s0, s1"),
        ({"s0": np.ones(5)}, r"s0: events of shape \[5\], expected one number or one for each of its 6"),
        ({"s0": -1.0}, "s0: events must be finite numbers >= 0"),
        ({"s0": np.nan}, "s0: events must be finite numbers >= 0"),
    ):
        with pytest.raises(InputError, match=told):
            place(graph, traffic=wrong)


# ---- what doesn't fit, and profiles -----------------------------------------------------------------


def test_too_many_cores_name_the_largest_layer_and_a_remedy():
    placed = place(chain(64, 3000), replace(LOIHI1, cores=2))
    assert placed.refusals == (
        "needs 3 cores, Loihi 1 has 2: take a second chip, or make s0 (3 cores for 3,000 neurons) smaller: "
        "about 2,000 neurons",
    )
    assert place(chain(64, 2000), replace(LOIHI1, cores=2)).fits
    (told,) = place(chain(8, *[10] * 9), replace(LOIHI1, cores=4)).refusals
    assert told == "needs 9 cores, Loihi 1 has 4: take 3 chips, or smaller layers: s0 alone takes 1"


def test_one_neuron_that_is_too_much():
    chip = replace(LOIHI1, synapse_bytes_per_core=500)
    (told,) = place(chain(1200, 4), chip).refusals
    assert told == "w0: 1,200 bytes for one neuron, a core takes 500: split its inputs, or its state, in 3"
    (told,) = place(chain(3, 4, 9), replace(LOIHI1, output_axons_per_core=5, neurons_per_core=3)).refusals
    assert told == "s0: 6 output axons of one neuron, a core takes 5: make the layers behind it smaller"
    (told,) = place(IntegerGraph(4, (32,), (ssd(),)), replace(LOIHI2, neurons_per_core=33)).refusals
    assert told.startswith("mix: 34 accumulators for one neuron, a core takes 33")


def test_a_fit_where_the_input_alone_decides():
    # 3 x 40 x 40 inputs are 4,800 axons, more than a core takes: cut across the image it fits.
    graph = image_net(sizes=(3, 40, 40), kernel=(1, 3, 3, 3))
    parts = boxes_of(
        place(replace(graph, stages=graph.stages[:1]), replace(LOIHI1, neurons_per_core=4000)), "a1"
    )
    assert len(parts) == 2


def test_own_profiles_and_bad_ones(tmp_path):
    text = (PROFILES / "loihi1.toml").read_text()
    own = tmp_path / "own.toml"
    own.write_text(text.replace("cores = 128", "cores = 2"))
    assert "needs 3 cores, Loihi 1 has 2" in place(chain(64, 3000), own).refusals[0]
    for old, new, told in (
        ("cores = 128", "cores = 0", "cores is 0, expected a whole number"),
        ("cores = 128", "cores = 129", "cores is 129, more than columns x rows x cores_per_tile = 128"),
        ("columns = 8", "", "columns is None, expected a whole number"),
        ("delay_bits = 6", "delay_bits = 6000", "delay_bits is 6000"),
        ("hop_east_west = 3.0", "hop_east_west = nan", "hop_east_west is nan, expected a number > 0"),
        ("graded_spikes = false", 'graded_spikes = "no"', "graded_spikes is 'no', expected true or false"),
        ("notes = [", "notes = [1,", "notes is .*, expected a list of texts"),
        ('name = "Loihi 1"', "name = 1", "name is 1, expected a text"),
    ):
        assert old in text
        own.write_text(text.replace("\n" + old, "\n" + new))
        with pytest.raises(FileError, match=told):
            place(chain(4, 4), own)
    own.write_text("= [")
    with pytest.raises(FileError, match="not valid TOML"):
        place(chain(4, 4), own)
    with pytest.raises(FileError, match="no such profile; shipped ones: loihi1, loihi2"):
        place(chain(4, 4), "loihi9")


def test_no_profile_claims_more_than_was_read():
    for path in sorted(PROFILES.glob("*.toml")):
        chip = load_profile(path.stem)
        assert chip.verified is False
        assert chip.source
        assert "UNVERIFIED" in place(chain(4, 4), chip).text()
    assert "no public" in " ".join(LOIHI2.notes)


# ---- telling it ---------------------------------------------------------------------------------------


def test_as_json_and_as_text():
    placed = place(skip_net(80), traffic={"s0": 30.0}, seed=3)
    told = placed.to_dict()
    assert json_text(told)
    assert (told["cores_used"], told["cores"], told["fits"], told["seed"]) == (4, 128, True, 3)
    assert [each["name"] for each in told["stages"]] == ["s0", "s0~1", "s1", "s2"]
    assert [each["neurons"] for each in told["stages"]] == [12] * 4
    assert told["placed"][1]["filled"]["input_axons"] == 24 / 4096
    assert told["hops"]["s0"]["messages"] == pytest.approx(90)
    assert (told["profile"], told["verified"], told["relay_neurons"]) == ("Loihi 1", False, 12)
    text = placed.text()
    assert str(placed) == text
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("Loihi 1, UNVERIFIED profile: 4 of 128 cores, fits\n")
    assert "s0 -> s0~1" in text
    refused = place(chain(64, 3000, 10)).text()
    assert "DOES NOT FIT" in refused
    assert "! w1: 6,000 input axons" in refused
    assert max(map(len, refused.splitlines())) <= 100


def test_a_report_charges_the_hops_of_a_placement():
    graph = chain(8, 1024, 600)
    placed = place(graph, traffic={"s0": 100.0})
    counts = OperationCounts({name: LayerCounts(spikes=1000) for name in ("w0", "s0", "w1", "s1")}, tokens=10)
    report = EnergyReport(counts, placement=placed)
    # 100 events to 5 cores are 500 messages; s1 is the last, its spikes go to no core.
    (edge,) = placed.edges
    assert edge.messages == pytest.approx(500)
    loihi = {row.name: row.energy["loihi1"].spiking_pj for row in report.rows}
    assert loihi["s0"] == pytest.approx(500 * 1.7 + 3.0 * edge.east_west + 4.0 * edge.north_south)
    assert loihi["s0"] == pytest.approx(500 * 1.7 + placed.weighted_hops)
    assert loihi["s1"] == 0
    assert any("on Loihi 1 (unverified profile), 8 cores, events counted" in note for note in report.notes)
    too_wide = EnergyReport(counts, placement=place(chain(64, 3000, 10)))
    assert too_wide.totals == EnergyReport(counts).totals
    assert any("Loihi 1 (unverified profile): it doesn't fit" in note for note in too_wide.notes)


def test_ten_million_weights_take_seconds():
    graph = chain(1024, *[1024] * 9, 1024, 10)
    assert sum(s.synapses[0].weight.size for s in graph.stages) > 10_000_000
    begin = process_time()  # not the clock's: others run beside it
    placed = place(graph)
    assert process_time() - begin < 5
    assert placed.fits
    assert placed.weighted_hops < 0.6 * placed.naive
