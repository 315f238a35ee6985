"""Directed integer graphs: neurons, sums and states that sit on boundaries, one below them and one above."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from marsnn.hardware.stages import (
    FACTOR_MAX,
    INPUT,
    INPUT_MAX,
    NARROW_MAX,
    SHARE_MAX,
    STATE_MAX,
    TURN_MAX,
    UNITY,
    WEIGHT_MAX,
    WIDE_INPUT_MAX,
    Convolution,
    IntegerGraph,
    Stage,
    Synapse,
)
from tests.hardware.case import Case

SIGNS = np.array([[0], [1], [-1]])
"""Inputs of one feature that push what a bias holds on a boundary across it."""


def whole(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, dtype=np.int64) for name, array in arrays.items()}


def held_by_bias(
    name: str, kind: str, currents: Iterable[int], arrays: dict[str, Any], **settings: Any
) -> Stage:
    """A neuron for each current, which its bias brings; the only input is added to it."""
    bias = np.array(list(currents), dtype=np.int64)
    weight = np.ones((len(bias), 1), dtype=np.int64)
    arrival = "held" if kind == "lif" else "value"
    synapse = Synapse(f"{name}.w", INPUT, "in", "dense", arrival, weight)
    return Stage(name, kind, (len(bias),), (synapse,), {"in": bias}, whole(arrays), **settings)


def identity(
    name: str, source: str, port: str, size: int, arrival: str = "value", factor: int = 1
) -> Synapse:
    return Synapse(
        name, source, port, "each", arrival, np.full(size, factor), 0, np.zeros(size, dtype=np.int64)
    )  # fmt: skip


def atmn_boundary_case(steps: int) -> Case:
    """Currents at, just below and just above every level that a spike can need, for each tau; and counts.

    A count's levels are those of an ATMN with tau = 1.
    """
    level = 1001  # odd, so that halving rounds
    stages = []
    for decay in (UNITY // 2, UNITY, 2 * UNITY):
        currents = set()
        for m in range(1, steps + 1):
            exact = {
                UNITY // 2: level * (2**m - 1),
                UNITY: level * m,
                2 * UNITY: -(-level * m // 2 ** (steps - 1)),
            }[decay]
            currents |= {exact + offset for offset in (-2, -1, 0, 1, 2)}
        currents |= {0, 1, level - 1, level, level + 1, 2 * level, STATE_MAX - 1, STATE_MAX}
        currents |= {
            2**22 + level + offset for offset in (-1, 0, 1)
        }  # what is left doubles to the edge of 24 bits
        both = sorted({sign * min(current, STATE_MAX) for current in currents for sign in (1, -1)})
        levels = np.full(len(both), level)
        arrays: dict[str, Any] = {"fire": levels, "amplitude": levels, "decay": decay}
        stages.append(held_by_bias(f"atmn{decay}", "atmn", both, arrays))
        if decay == UNITY:
            ladder = np.tile(level * np.arange(1, steps + 1), (len(both), 1))
            worth = np.arange(1, steps + 1)
            stages.append(held_by_bias("count", "count", both, {"levels": ladder, "worth": worth}))
    return Case(f"boundary-atmn-T{steps}", IntegerGraph(steps, (1,), tuple(stages)), SIGNS)


def lif_arrays(size: int, fire: Any, amplitude: Any, decay: int, **others: Any) -> dict[str, Any]:
    """A LIF's numbers, where `others` are those that differ."""
    names = ("current_decay", "adaptation", "adaptation_decay")
    wide = {"fire": fire, "amplitude": amplitude, "decay": decay} | dict.fromkeys(names, 0)
    wide |= {name: others[name] for name in names if name in others}
    arrays = {name: np.broadcast_to(value, (size,)).copy() for name, value in wide.items()}
    return arrays | {"most": others.get("most", 1), "signed": others.get("signed", 0)}


def first_spikes(level: int, decay: int, current_decay: int, steps: int) -> list[int]:
    """The least constant current that fires within 1, 2, ... steps."""

    def fires(current: int, within: int) -> bool:
        u = i = 0
        for _ in range(within):
            i = i * current_decay // UNITY + current
            u = u * decay // UNITY + i
            if u >= level:
                return True
        return False

    found = []
    for within in range(1, steps + 1):
        low, high = 0, level  # `high` fires, `low` doesn't
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fires(middle, within) else (middle, high)
        found.append(high)
    return found


def around(values: Iterable[int]) -> list[int]:
    return sorted({sign * (value + d) for value in values for d in (-2, -1, 0, 1, 2) for sign in (1, -1)})


def lif_boundary_case() -> Case:
    """Currents at which neurons fire first in step 1, 2, ..., for both resets, with and without a memory."""
    steps, level = 6, 1001
    stages = []
    for decay in (3001, UNITY):
        for current_decay in (0, 2500):
            currents = around(first_spikes(level, decay, current_decay, steps))
            for reset in ("subtract", "zero"):
                arrays = lif_arrays(len(currents), level, level, decay, current_decay=current_decay)
                name = f"lif{decay}.{current_decay}.{reset}"
                carry = "sequence" if current_decay or reset == "zero" else "token"
                stages.append(held_by_bias(name, "lif", currents, arrays, reset=reset, carry=carry))
    # currents at the edge of 24 bits, which the input takes across it
    edge = [sign * (STATE_MAX - d) for d in (0, 1) for sign in (1, -1)]
    for decay in (0, UNITY):
        arrays = lif_arrays(4, level, level, decay)
        stages.append(held_by_bias(f"edge{decay}", "lif", edge, arrays, carry="sequence"))
    graph = IntegerGraph(steps, (1,), tuple(stages), 3)
    return Case("boundary-lif", graph, SIGNS)


def threshold_case() -> Case:
    """ALIF: a threshold that is raised exactly to what the membrane has in the second step, or third.

    Without leaks, h = c in the first step, where the neuron fires and loses 10; then h = 2 c - 10, and the
    threshold is the first one plus the adaptation (in the third step, of what is left of it).
    """
    fire, lost = 300, 10
    stages = []
    for adaptation_decay in (UNITY, 3001, 0):
        rows = []
        for c in (301, 444, 800):
            for d in (-1, 0, 1):
                raised = 2 * c - lost - fire + d
                rows.append((c, raised))
                # no spike in the second step, so what is left stands against 3 c - 10 in the third
                if adaptation_decay:
                    rows.append((c, -(-(3 * c - lost - fire + d) * UNITY // adaptation_decay)))
        rows += [(-c, raised) for c, raised in rows]
        currents, adaptation = (list(each) for each in zip(*rows, strict=True))
        for signed in (0, 1):
            arrays = lif_arrays(
                len(rows), fire, lost, UNITY, adaptation=adaptation, adaptation_decay=adaptation_decay,
                signed=signed,
            )  # fmt: skip
            stages.append(held_by_bias(f"alif{adaptation_decay}.{signed}", "lif", currents, arrays))
    return Case("boundary-alif", IntegerGraph(5, (1,), tuple(stages)), SIGNS)


def loop_case() -> Case:
    """A chain in which each spike brings the next neuron to its level, one below it or one above it.

    Only the first neuron hears the input, so a chain ends with its token, or goes on to the end of its
    sample; where each neuron brings back itself, all do. Nothing else is remembered, but in the last stage.
    """
    N, level = 12, 100
    steps = {3: 1, 6: -1}  # of the link to neuron k: how far from the level it ends
    chain = np.diag([level + steps.get(k, 0) for k in range(1, N)], -1)
    chain[3:, 9] = -7  # and what comes back from another neuron, too, is added to it
    line = Convolution((2, 6), (2, 6), (1,), (1,), (1,))
    kernel = np.array([[[level, 3, 0], [0, 1, -1]], [[-100, 0, 0], [0, 5, level]]])
    right = np.array([1, 0, 2] * 4)
    forms = {
        "dense": ("dense", chain, 0, None, None),
        "shifted": ("dense", chain // 4, 2, None, None),
        "each": ("each", (level << right) + (right > 0), 0, right, None),
        "conv": ("conv", kernel, 0, None, line),
    }
    stages = []
    for name, (form, weight, shift, right_, conv) in forms.items():
        for carry in ("token", "sequence"):
            own = f"{name}.{carry}"
            heard = np.full((N, 1), level) if form == "each" else np.eye(N, 1, dtype=np.int64) * level
            first = Synapse(f"{own}.in", INPUT, "in", "dense", "held", heard)
            loop = Synapse(f"{own}.loop", own, "in", form, "stream", weight, shift, right_, conv)  # type: ignore[arg-type]
            arrays = lif_arrays(N, level, level, 0, signed=int(name == "each"), most=2)
            shape = (2, 6) if form == "conv" else (N,)
            bias = {"in": np.zeros(N, dtype=np.int64)}
            stages.append(Stage(own, "lif", shape, (first, loop), bias, whole(arrays), carry=carry))  # type: ignore[arg-type]
    kept = lif_arrays(N, level, level, 3001, current_decay=1501, signed=1)
    last = replace(stages[1], name="kept", arrays=whole(kept), reset="zero")
    last = replace(
        last,
        synapses=tuple(
            replace(each, name=f"kept.{k}", source="kept" if k else INPUT)
            for k, each in enumerate(stages[1].synapses)
        ),
    )
    inputs = np.array([[1], [0], [0], [-1], [2], [1], [0], [0], [-1], [0]])
    return Case("boundary-loop", IntegerGraph(4, (1,), (*stages, last), 2), inputs)


def levels_case() -> Case:
    """IntegerLIF and TernaryLIF: each level reached exactly, one below, one above, on both sides."""
    stages = []
    for fire, amplitude in ((1000, 1000), (500, 1001), (1300, 1000)):
        currents = around(fire + k * amplitude for k in range(6))
        for most, signed, reset in (
            (4, 0, "subtract"),
            (4, 1, "subtract"),
            (4, 1, "zero"),
            (1, 1, "subtract"),
        ):
            arrays = lif_arrays(len(currents), fire, amplitude, 2001, most=most, signed=signed)
            name = f"most{most}.{signed}.{fire}.{reset}"
            stages.append(held_by_bias(name, "lif", currents, arrays, reset=reset, carry="sequence"))
    return Case("boundary-levels", IntegerGraph(3, (1,), tuple(stages), 3), SIGNS)


def gate_boundary_case(steps: int) -> Case:
    """One gate per boundary, its two sums brought to exact values by biases; the input is only 0, 1 or -1.

    Places at, before and behind both ends of the table and around zero; quotients that rounding down, to
    nearest and toward zero give differently; products at, below and above 24 bits; products at the level.
    """
    middle = 2
    table = np.array([0, 3000, 20000, 27001, SHARE_MAX])
    rows = [
        # argument, multiplier, its shift, factor, product's shift, level
        *[(sign * (8 * k + d), 1, 3, sign * 1001, 9, 0)
          for k in range(middle + 2) for d in (-2, -1, 0, 1, 2) for sign in (1, -1)],
        *[(7, 5, 4, u, 15, 0) for u in (-3, -1, 1, 3)],
        *[(STATE_MAX, 2**24 - 1, s, u, 38, 0) for s in (0, 41, 44) for u in (-STATE_MAX, STATE_MAX)],
        *[(-STATE_MAX, 2**24 - 1, s, STATE_MAX, 38, 0) for s in (0, 45, 46, 47, 62)],
        # share 2^15 over 2^15: the product of the sums itself, around 2^23 - 1 = 47 * 178481
        *[(sign * (47 + d), 0, 0, 178481, 14, 0) for d in (-1, 0, 1) for sign in (1, -1)],
        *[(47 + d, 2**20, 0, sign * (178481 + e), 15, 0)
          for d in (0, 1) for e in (-1, 0, 1) for sign in (1, -1)],
        *[(100 + d, 2**20, 0, sign * 10, 15, 1000) for d in (-1, 0, 1) for sign in (1, -1)],
        *[(5, 1, 0, 7, s, 0) for s in (0, 1, 15, 40, 62)],
    ]  # fmt: skip
    g, multiplier, argument_shift, u, product_shift, level = (
        np.array(each) for each in zip(*rows, strict=True)
    )
    N = len(rows)
    arrays = {
        "multiplier": multiplier, "argument_shift": argument_shift, "product_shift": product_shift,
        "level": level, "table": table,
    }  # fmt: skip
    synapses = (
        Synapse("gate.argument", INPUT, "argument", "dense", "value", np.ones((N, 1), dtype=np.int64)),
        Synapse("gate.factor", INPUT, "factor", "dense", "value", -np.ones((N, 1), dtype=np.int64)),
    )
    gate = Stage("gate", "gate", (N,), synapses, {"argument": g, "factor": u}, whole(arrays))
    levels = np.full(N, 500)
    behind = Stage(
        "behind", "atmn", (N,), (identity("behind.each", "gate", "in", N),),
        {"in": np.zeros(N, dtype=np.int64)},
        whole({"fire": levels, "amplitude": levels, "decay": 2 * UNITY}),
    )  # fmt: skip
    return Case(f"boundary-gate-T{steps}", IntegerGraph(steps, (1,), (gate, behind)), SIGNS)


def norm_boundary_case() -> Case:
    """Vectors of four whose mean square is a square, one short of it, above it by a part; zeros."""
    rows = [
        [0, 0, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [1, 1, 1, 1], [-1, -1, -1, -1], [3, 3, 3, 3],
        [32767, 0, 0, 0], [0, -32767, 0, 0], [32767, -32767, 32767, -32767], [32767, 32767, 32767, 32767],
        [1, 1, 1, 0], [2, 0, 0, 0], [2, 1, 0, 0], [-5, -2, -1, 1], [7, -11, 2, -1], [-3, -3, -3, -2],
        [1, -2, 3, 0], [100, 0, 0, 0], [100, 1, 0, 0], [99, 14, 1, 1], [99, 14, 1, 0],
        [-2000, -2001, -1998, -2],
        [12345, -23456, 31000, -7], [300, 400, 0, 0], [300, 400, 0, 1], [1, -1, 1, -2], [0, 0, 0, -7],
        [-1, 32767, 0, 0], [1, 32767, 0, -1],
    ]  # fmt: skip
    sign, offset = [1, -1, 0, 1], [-STATE_MAX, 5, -7, STATE_MAX]
    stages = []
    for center in (0, 1):
        for epsilon in (0, 1, 1000, 2**45):
            for moved in (0, 1):
                name = f"norm{center}.{epsilon}.{moved}"
                arrays = {
                    "center": center, "epsilon": epsilon,
                    "sign": sign if moved else [1] * 4, "offset": offset if moved else [0] * 4,
                }  # fmt: skip
                bias = {"in": np.zeros(4, dtype=np.int64)}
                synapses = (identity(f"{name}.each", INPUT, "in", 4),)
                stages.append(Stage(name, "norm", (4,), synapses, bias, whole(arrays)))
    # sums as large as they get, whose mean and whose distance from it go beyond 24 bits
    bias = {"in": np.array([STATE_MAX, -STATE_MAX, -STATE_MAX, 5])}
    for center in (0, 1):
        arrays = {"center": center, "epsilon": 0, "sign": [1] * 4, "offset": [0] * 4}
        synapses = (identity(f"top{center}.each", INPUT, "in", 4),)
        stages.append(Stage(f"top{center}", "norm", (4,), synapses, bias, whole(arrays)))
    graph = IntegerGraph(1, (4,), tuple(stages), input_max=WIDE_INPUT_MAX)
    return Case("boundary-norm", graph, np.array(rows))


def each_boundary_case() -> Case:
    """Factor times value around multiples of 2^right, both signs, for values and for spikes of a train.

    The accumulator and the sum behind it are brought to the edge of 24 bits, too.
    """
    T = 3
    grid = [
        *[(f, r) for r in (0, 1, 2, 3, 7) for f in (1, -1, 3, -3, 127, -127, 128, -128, 129, -129, 255)],
        *[(f, r) for r in (0, 9, 10, 22) for f in (4096, -4097)],
        *[(f, r) for r in (11, 12, 22, 37, 38, 62) for f in (FACTOR_MAX, -FACTOR_MAX)],
    ]
    factor, right = (np.array(each) for each in zip(*grid, strict=True))
    N = len(grid)
    none = np.zeros(N, dtype=np.int64)
    inputs = np.array([0, 1, -1, 2, -3, 4, 63, -64, 65, 127, -127, 128, 1023, -1024, 32767, -32767])

    def ends(name: str, kind: str, source: str, arrival: str, arrays: dict[str, Any], bias: int = 0) -> Stage:
        synapse = Synapse(f"{name}.each", source, "in", "each", arrival, factor, 0, right)
        return Stage(name, kind, (N,), (synapse,), {"in": none + bias}, whole(arrays))

    levels = {"fire": none + 40, "amplitude": none + 50}
    stages = [
        ends("values", "sum", INPUT, "value", {}),
        ends("edge", "sum", INPUT, "value", {}, STATE_MAX),
        ends("below", "sum", INPUT, "value", {}, -STATE_MAX),
        ends("held", "lif", INPUT, "held", lif_arrays(N, 40, 50, 3000)),
    ]
    for decay, arrival, stream in (
        (2 * UNITY, "horner", "stream_down"),
        (UNITY, "sum", "stream"),
        (UNITY // 2, "power", "stream_up"),
    ):
        name = f"train{decay}"
        stages.append(ends(name, "atmn", INPUT, "value", levels | {"decay": decay}))
        stages.append(ends(f"{name}.sum", "sum", name, arrival, {}))
        stages.append(ends(f"{name}.lif", "lif", name, stream, lif_arrays(N, 40, 50, 3000, signed=1)))
    graph = IntegerGraph(T, (N,), tuple(stages), input_max=WIDE_INPUT_MAX)
    return Case("boundary-each", graph, np.repeat(inputs[:, None], N, axis=1))


def conv_case(rank: int) -> Case:
    """One pixel at a time through kernels without symmetry: every border, stride, dilation and group.

    Each also ends at a LIF, from the spikes of an ATMN that stands on the image.
    """
    rng = np.random.default_rng(rank)
    image = (2, 5, 4) if rank == 2 else (2, 7)
    M = int(np.prod(image))
    kernels = [
        # size, stride, padding, dilation, groups
        ((3, 2), (1, 1), (0, 0), (1, 1), 1),
        ((3, 2), (1, 1), (2, 1), (1, 1), 2),
        ((2, 3), (2, 1), (1, 2), (2, 1), 1),
        ((2, 2), (2, 3), (0, 1), (1, 2), 2),
        ((1, 1), (3, 2), (0, 0), (1, 1), 1),
    ]
    levels = np.full(M, 30)
    first = Stage(
        "spikes", "atmn", image, (identity("spikes.each", INPUT, "in", M),),
        {"in": np.zeros(M, dtype=np.int64)},
        whole({"fire": levels, "amplitude": levels, "decay": UNITY // 2 if rank == 2 else 2 * UNITY}),
    )  # fmt: skip
    stages = [first]
    for number, (size, stride, padding, dilation, groups) in enumerate(kernels):
        k, s, p, d = (each[:rank] for each in (size, stride, padding, dilation))
        out = tuple(
            (n + 2 * b - a * (c - 1) - 1) // e + 1
            for n, b, a, c, e in zip(image[1:], p, d, k, s, strict=True)
        )
        conv = Convolution(image, (4, *out), s, p, d, groups)
        weight = rng.permutation(np.arange(1, 1 + 4 * (2 // groups) * int(np.prod(k)))) % 128
        weight = weight.reshape(4, 2 // groups, *k) * rng.choice([-1, 1], (4, 2 // groups, *k))
        N = int(np.prod(conv.target))
        name = f"conv{number}"
        bias = {"in": np.zeros(N, dtype=np.int64)}
        kernel = Synapse(f"{name}.k", INPUT, "in", "conv", "value", weight, number % 3, None, conv)
        stages.append(Stage(name, "sum", conv.target, (kernel,), bias, {}))
        arrays = whole(lif_arrays(N, 20, 25, 3000, signed=1, most=3))
        train = replace(
            kernel, name=f"{name}.t", source="spikes", arrival="stream_up" if rank == 2 else "stream_down"
        )
        stages.append(Stage(f"{name}.lif", "lif", conv.target, (train,), bias, arrays))
    inputs = np.concatenate([np.eye(M, dtype=np.int64) * 100, -100 * np.eye(M, dtype=np.int64)])
    graph = IntegerGraph(3, image, tuple(stages))
    return Case(f"conv{rank}d", graph, inputs)


def s4d_boundary_case() -> Case:
    """Two modes a feature: decays at their ends, quarter turns, rounded products, states beyond 24 bits."""
    rows = []  # real, imaginary, left, right, out real, out imaginary, skip, out shift
    decays = [
        (TURN_MAX, 0),
        (-TURN_MAX, 0),
        (0, TURN_MAX),
        (0, -TURN_MAX),
        (TURN_MAX - 1, 1),
        (700001, -500009),
    ]
    for decay in [*decays, (0, 0), (524288, 524287)]:
        for enters in ((0, 0), (4, 1), (0, 2), (22, 0)):
            for out, shift in (((1, 0), 0), ((3, -5), 3), ((-NARROW_MAX, NARROW_MAX), 9)):
                rows.append((*decay, *enters, *out, (len(rows) % 5 - 2) * 7, shift))
    rows += [(0, 0, 0, 0, 0, 0, s, shift) for s in (FACTOR_MAX, -FACTOR_MAX, 1) for shift in (0, 1, 22, 62)]
    columns = [np.array(each) for each in zip(*rows, strict=True)]
    real, imaginary, left, right, out_real, out_imaginary, skip, shift = columns
    N = len(rows)

    def modes(own: np.ndarray) -> np.ndarray:
        return np.stack([own, np.roll(own, 1)], axis=1)

    arrays = {
        "real": modes(real), "imaginary": modes(imaginary), "enter_left": modes(left),
        "enter_right": modes(right), "out_real": modes(out_real), "out_imaginary": modes(out_imaginary),
        "skip": skip, "out_shift": shift,
    }  # fmt: skip
    stage = Stage(
        "s4d", "s4d", (N,), (identity("each", INPUT, "in", N),), {"in": np.zeros(N, dtype=np.int64)},
        whole(arrays),
    )  # fmt: skip
    values = [1, -3, 5, 0, 0, -7, -7, 32767, 32767, 32767, -32767, 1, 0, 0, 0]  # samples of five tokens
    graph = IntegerGraph(2, (N,), (stage,), 5, WIDE_INPUT_MAX)
    return Case("boundary-s4d", graph, np.repeat(np.array(values)[:, None], N, axis=1))


def ssd_boundary_cases() -> list[Case]:
    """Four heads of two columns, two groups of two rows; every port stands on inputs of its own.

    Arguments at and beyond the table's ends; a share of 0 and of 2^15 - 1 (nothing kept, nearly all kept);
    taps that reach before a sample's first token; channels beyond 16 bits, states beyond 24.
    """
    table = np.array([0, 9000, 20001, 31000, SHARE_MAX - 1])
    H, N, G = 4, 8, 4
    C = N + 2 * G
    inputs = N + 2 * G + H
    rng = np.random.default_rng(7)
    tokens = [rng.integers(-m, m + 1, inputs) for m in (1, 3, 100, 127, 60, 5, 2, 127, 127, 127, 1, 9)]
    tokens += [np.full(inputs, each) for each in (127, 127, -127, 1, 0, -1, 0, -1)]
    for token, argument in zip(
        tokens, (-9, -8, -7, -5, -4, -3, -1, 0, 1, 3, 4, 5, 7, 8, 9, 13) * 2, strict=False
    ):
        token[-H:] = argument + np.arange(H)
    picks = {
        "values": range(N), "keys": range(N, N + G), "queries": range(N + G, C),
        "forgetting": range(C, inputs),
    }  # fmt: skip
    cases = []
    for name, turns, scaled, taps in (
        ("plain", False, 0, 1), ("taps", False, 1, 4), ("turn", True, 0, 3), ("turn-scaled", True, 1, 2),
    ):  # fmt: skip
        # Ports take one by one, so a stage in front hands each port its part.
        fronts, ports = [], []
        for port, own in picks.items():
            weight = np.zeros((len(own), inputs), dtype=np.int64)
            weight[np.arange(len(own)), list(own)] = 1
            synapse = Synapse(f"{port}.pick", INPUT, "in", "dense", "value", weight)
            bias = np.zeros(len(own), dtype=np.int64)
            fronts.append(Stage(port, "sum", (len(own),), (synapse,), {"in": bias}, {}))
            factor = 1 if port == "forgetting" else 200 if scaled != turns else 3  # beyond 16 bits, or within
            ports.append(identity(f"{port}.each", port, port, len(own), factor=factor))
        arrays = {
            "taps": rng.integers(-900, 901, (taps, C)), "tap_bias": rng.integers(-300, 301, C),
            "tap_shift": np.arange(C) % 10, "multiplier": [1, 2, 2, 2**24 - 1],
            "argument_shift": [2, 3, 2, 60],
            "table": table, "cosine": [900001] if turns else [], "sine": [-538011] if turns else [],
            "scaled": scaled, "groups": 2, "enter_left": [0, 3, 0, 0],
            "enter_right": [0, 0, 5 + 15 * scaled, 3 + 15 * scaled], "skip": [1, -3, 2**30, -(2**20)],
            "out_shift": [0, 3, 12, 20],
        }  # fmt: skip
        bias = {port: np.zeros(len(own), dtype=np.int64) for port, own in picks.items()}
        stage = Stage("ssd", "ssd", (N,), tuple(ports), bias, whole(arrays))
        graph = IntegerGraph(2, (inputs,), (*fronts, stage), 5)
        cases.append(Case(f"boundary-ssd-{name}", graph, np.array(tokens)))
    return cases


def delay_case(T: int) -> Case:
    """Senders at different depths to one port, of a stage that takes sums and of one that takes currents.

    Every token differs, so that what is a token too early or too late shows.
    """
    rng = np.random.default_rng(T)
    N = 6
    inputs = rng.integers(-INPUT_MAX, INPUT_MAX + 1, (6, N))
    none = np.zeros(N, dtype=np.int64)
    level = np.full(N, 60)

    def atmn(name: str, synapses: tuple[Synapse, ...], decay: int) -> Stage:
        arrays = {"fire": level, "amplitude": level, "decay": decay}
        return Stage(name, "atmn", (N,), synapses, {"in": none}, whole(arrays))

    def lif(name: str, synapses: tuple[Synapse, ...]) -> Stage:
        arrays = lif_arrays(N, 70, 70, 3000, signed=1, most=2)
        return Stage(name, "lif", (N,), synapses, {"in": none}, whole(arrays), carry="sequence")

    def link(source: str, end: str, arrival: str, factor: int) -> Synapse:
        name = f"{source}-{end}"
        if factor > WEIGHT_MAX or source == INPUT:
            return identity(name, source, "in", N, arrival, factor)
        return Synapse(name, source, "in", "dense", arrival, factor * np.eye(N, dtype=np.int64))

    first = atmn("first", (link(INPUT, "first", "value", 1),), 2 * UNITY)
    second = atmn("second", (link("first", "second", "horner", 9),), UNITY // 2)
    stages = (
        first,
        second,
        lif("early", (link("first", "early", "stream_down", 5), link(INPUT, "early", "held", 1))),
        lif(
            "late",
            (
                link("second", "late", "stream_up", 7),
                link("first", "late", "stream_down", 3),
                link(INPUT, "late", "held", 1),
            ),
        ),
        Stage(
            "sum", "sum", (N,),
            (
                link("late", "sum", "sum", 1000), link("second", "sum", "power", 7),
                link("first", "sum", "horner", 500), link(INPUT, "sum", "value", 1),
            ),
            {"in": none}, {},
        ),
        atmn("last", (identity("sum-last", "sum", "in", N), link("early", "last", "sum", 31)), UNITY),
    )  # fmt: skip
    return Case(f"delay-T{T}", IntegerGraph(T, (N,), stages, 3), inputs)


def accumulator_case() -> Case:
    """Two synapses that saturate on either side: clipped apart they cancel, summed first they wouldn't.

    The same sums through each rule of arrival, over the edge of 24 bits at some step.
    """
    T, N = 6, 4
    top = np.array([FACTOR_MAX, FACTOR_MAX - 5, 5_000_000, 1_400_000])
    none = np.zeros(N, dtype=np.int64)
    level = np.full(N, 20)
    stages = []
    for decay, arrival in ((2 * UNITY, "horner"), (UNITY, "sum"), (UNITY // 2, "power")):
        name = f"train{decay}"
        stages.append(
            Stage(
                name,
                "atmn",
                (N,),
                (identity(f"{name}.each", INPUT, "in", N),),
                {"in": none},
                whole({"fire": level, "amplitude": level, "decay": decay}),
            )
        )
        synapses = tuple(
            Synapse(f"{name}.{k}", name, "in", "each", arrival, factor, 0, none)
            for k, factor in enumerate((top, -top + 17, top // 3))
        )
        stages.append(Stage(f"{name}.sum", "sum", (N,), synapses, {"in": none + 3}, {}))
    inputs = np.array([0, 10, 20, 40, 90, 127])
    inputs = np.concatenate([inputs, -inputs])
    graph = IntegerGraph(T, (N,), tuple(stages), input_max=WIDE_INPUT_MAX)
    return Case("boundary-accumulators", graph, np.repeat(inputs[:, None], N, axis=1))
