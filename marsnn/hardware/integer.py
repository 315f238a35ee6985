"""The bit-exact integer model of an exported network, in numpy alone.

It computes stage by stage, all tokens at once, on the numbers that `marsnn.hardware.stages` describes; what
has a memory across tokens goes through them one by one. The runtime for Lava steps through time instead, and
shares no code with it. `>>` rounds toward zero wherever it is written here (`toward_zero`), for negative
numbers too, and clip() is to 24 bits, counted.

    atmn    h[0] = in,  h[t] = leak(u[t-1]);  s = sign where |h| >= fire;  u[t] = h[t] - s amplitude
    count   in one number what atmn says in T steps: sign(in) * sum of `worth` of the levels that |in| reaches
    lif     i = leak(i, current_decay) + in[t] + what its own spikes s[t-1] bring, if it hears itself
            h = leak(v) + i;  A = fire + adapted
            s = levels of amplitude that h reaches from A on, at most `most` (of -h, too, where signed)
            v = h - s amplitude, or 0 where it fired;  adapted = leak(adapted) + |s| adaptation
    sum     y = in
    gate    place = argument * multiplier >> argument_shift
            y = argument * table[place] * factor >> product_shift;  0 where |y| < level
    norm    y = sign * (in << 22) / isqrt(mean(in^2) + epsilon << 16) + offset, less its mean where centered

A gate's table holds, times 2^15, the share f of an activation x f(x): f alone is tabulated, so a small
argument keeps its precision. Beyond the table stand its ends, 0 and 2^15. State space layers are in
`marsnn.hardware.mixers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import InputError
from marsnn.hardware import mixers
from marsnn.hardware.arithmetic import (
    fires,
    leak,
    look_up,
    passes,
    ratio,
    root,
    saturate,
    toward_zero,
)
from marsnn.hardware.stages import (
    INPUT,
    NORM_BITS,
    OF_VALUES,
    Convolution,
    IntegerGraph,
    IntegerRun,
    Ints,
    Stage,
    Synapse,
)

Arrivals = dict[str, tuple[Ints, int]]
"""Port -> what arrived, bias included: sums [W, N], or currents [W, T, N]; and its saturations."""


def run(graph: IntegerGraph, inputs: NDArray[np.integer]) -> IntegerRun:
    """Run W tokens of graded input [W, D] through the graph.

    Tokens are independent but for what is remembered (carry="sequence", state space layers), which is
    cleared every `graph.tokens_per_sample` tokens; W is a multiple of it.
    """
    if len(inputs) % graph.tokens_per_sample:
        raise InputError(f"{len(inputs)} tokens don't divide into samples of {graph.tokens_per_sample}")
    result = IntegerRun()
    sent: dict[str, Ints] = {INPUT: np.asarray(inputs, dtype=np.int64).reshape(len(inputs), -1)}
    for stage in graph.stages:
        output, result.saturations[stage.name] = run_stage(graph, stage, sent)
        sent[stage.name] = output
        if stage.sends == "train":
            result.spikes[stage.name] = output.astype(np.int8)
        else:
            result.values[stage.name] = output.astype(np.int32)
    return result


def run_stage(graph: IntegerGraph, stage: Stage, sent: Mapping[str, Ints]) -> tuple[Ints, int]:
    """One stage on what its senders sent, trains [W, T, M] or values [W, M], and its saturations.

    Returns:
        a train [W, T, N], or values [W, N].
    """
    arrived = {port: arrive(graph, stage, port, sent) for port in stage.bias}
    total = sum(clipped for _, clipped in arrived.values())
    output, clipped = POPULATIONS[stage.kind](
        graph, stage, {port: each for port, (each, _) in arrived.items()}
    )
    return output, total + clipped


# ---- synapses ----------------------------------------------------------------------------------------


def arrive(graph: IntegerGraph, stage: Stage, port: str, sent: Mapping[str, Ints]) -> tuple[Ints, int]:
    """What a port takes: a token's sum [W, N] with its bias, or the current of each step [W, T, N].

    Each synapse's own accumulator saturates, and so does their sum. What a stage hears of itself isn't
    here: see `lif`.
    """
    total, clipped = np.zeros_like(stage.bias[port]), 0
    for synapse in stage.synapses:
        if synapse.port != port or synapse.source == stage.name:
            continue
        arrivals = reach(synapse, sent[synapse.source])
        if stage.takes == "token":
            arrivals, more = accumulate(synapse.arrival, arrivals)
            clipped += more
        else:
            arrivals = currents(synapse.arrival, arrivals, graph.steps)
        total = total + arrivals
    if stage.takes == "token":
        total, more = saturate(total + stage.bias[port])
        return total, clipped + more
    return total + stage.bias[port], clipped


def reach(synapse: Synapse, signal: Ints) -> Ints:
    """Synaptic sums [W, (T,) N] of a signal [W, (T,) M]; exact, as float64 holds integers to 2^53."""
    if synapse.form == "each":
        assert synapse.right is not None
        return toward_zero(signal * synapse.weight, synapse.right)
    if synapse.form == "conv":
        assert synapse.conv is not None
        return convolve(signal, synapse.weight, synapse.conv) << synapse.shift
    sums = signal.astype(np.float64) @ synapse.weight.astype(np.float64).T
    return sums.astype(np.int64) << synapse.shift


def convolve(signal: Ints, kernel: Ints, conv: Convolution, number: type[np.floating] = np.float64) -> Ints:
    """A kernel [C, C_in / groups, *K] over images that lie flat, [*, M], to [*, N].

    Exact while every sum is a whole number of the floating type `number`.
    """
    leading, groups = signal.shape[:-1], conv.groups
    image = signal.reshape(-1, *conv.source).astype(number)
    image = np.pad(image, [(0, 0), (0, 0), *((each, each) for each in conv.padding)])
    image = image.reshape(len(image), groups, -1, *image.shape[2:])
    kernels = kernel.astype(number).reshape(groups, -1, *kernel.shape[1:])
    sums = np.zeros((len(image), groups, kernels.shape[1], int(np.prod(conv.target[1:]))), dtype=number)
    for place in np.ndindex(*kernel.shape[2:]):  # one tap after the other: windows would be copies
        seen: tuple[Any, ...] = tuple(
            slice(d * at, d * at + s * (n - 1) + 1, s)
            for at, d, s, n in zip(place, conv.dilation, conv.stride, conv.target[1:], strict=True)
        )
        tap: tuple[Any, ...] = (..., *place)
        pixels = image[(..., *seen)]
        sums += kernels[tap] @ pixels.reshape(*pixels.shape[:3], -1)
    return sums.astype(np.int64).reshape(*leading, -1)


def accumulate(arrival: str, arrivals: Ints) -> tuple[Ints, int]:
    """A token's sum [W, N] of arrivals, a value's [W, N] or a train's [W, T, N]."""
    if arrival == "value":
        return saturate(arrivals)
    acc, total = np.zeros_like(arrivals[:, 0]), 0
    for t in range(arrivals.shape[1]):
        a = arrivals[:, t]
        if arrival == "horner":
            acc = 2 * acc + a
        elif arrival == "power":
            acc = acc + (a << t)
        else:
            acc = acc + a
        acc, clipped = saturate(acc)
        total += clipped
    return acc, total


def currents(arrival: str, arrivals: Ints, steps: int) -> Ints:
    """The current of each step [W, T, N]."""
    if arrival in OF_VALUES:
        arrivals = np.broadcast_to(arrivals[:, None], (len(arrivals), steps, arrivals.shape[-1]))
    if arrival == "stream_down":
        return arrivals << (steps - 1 - np.arange(steps))[:, None]
    if arrival == "stream_up":
        return arrivals << np.arange(steps)[:, None]
    return arrivals


# ---- populations -------------------------------------------------------------------------------------


def atmn(graph: IntegerGraph, stage: Stage, arrived: Mapping[str, Ints]) -> tuple[Ints, int]:
    """Spikes [W, T, N] in {-1, 0, 1} of sums [W, N]."""
    h, total = arrived["in"], 0
    spikes = np.zeros((len(h), graph.steps, h.shape[1]), dtype=np.int64)
    for t in range(graph.steps):
        if t:
            h, clipped = saturate(h)
            total += clipped
        s = fires(h, stage.arrays["fire"]).astype(np.int64) - fires(-h, stage.arrays["fire"])
        spikes[:, t] = s
        h = leak(h - s * stage.arrays["amplitude"], stage.arrays["decay"])
    return spikes, total


def count(graph: IntegerGraph, stage: Stage, arrived: Mapping[str, Ints]) -> tuple[Ints, int]:
    """What the levels [N, K] that sums reach are worth together, with the sum's sign, [W, N]."""
    h, k = arrived["in"], np.zeros_like(arrived["in"])
    for level, worth in zip(stage.arrays["levels"].T, stage.arrays["worth"], strict=True):
        k += worth * (fires(h, level).astype(np.int64) - fires(-h, level))
    return k, 0


def lif(graph: IntegerGraph, stage: Stage, arrived: Mapping[str, Ints]) -> tuple[Ints, int]:
    """Spikes [W, T, N] of currents [W, T, N]: LIF and its kin, told apart by their numbers."""
    of, signed = stage.arrays, stage.number("signed")
    driven = arrived["in"]
    tokens, steps, neurons = driven.shape
    # Runs of tokens that share a state: one token each, or the tokens of a sample one after the other.
    length = graph.together(stage.carry)
    trains = driven.reshape(tokens // length, length * steps, neurons)
    v = i = adapted = np.zeros_like(trains[:, 0])
    spikes = np.zeros_like(trains)
    total = 0
    for t in range(length * steps):
        driven = trains[:, t] + returned(stage, spikes, t) if stage.loops else trains[:, t]
        i, clipped = saturate(leak(i, of["current_decay"]) + driven)
        h, more = saturate(leak(v, of["decay"]) + i)
        total += clipped + more
        s = levels_reached(stage, h, adapted)
        if signed:
            s = s - levels_reached(stage, -h, adapted)
        spikes[:, t] = s
        v = h - s * of["amplitude"] if stage.reset == "subtract" else np.where(s == 0, h, 0)
        raised: Ints = np.abs(s) * of["adaptation"]
        adapted, clipped = saturate(leak(adapted, of["adaptation_decay"]) + raised)
        total += clipped
    return spikes.reshape(tokens, steps, neurons), total


def returned(stage: Stage, spikes: Ints, t: int) -> Ints:
    """What a stage hears at step t [R, N] of its own spikes [R, S, N]; at the first step nothing."""
    before = spikes[:, t - 1] if t else np.zeros_like(spikes[:, 0])
    return sum((reach(loop, before) for loop in stage.loops), np.zeros_like(before))


def levels_reached(stage: Stage, h: Ints, adapted: Ints) -> Ints:
    """How many levels h reaches: the first at fire + adapted, each further one an amplitude higher."""
    reached = np.zeros_like(h)
    for k in range(stage.number("most")):
        reached += fires(h, stage.arrays["fire"] + adapted + k * stage.arrays["amplitude"])
    return reached


def gate(graph: IntegerGraph, stage: Stage, arrived: Mapping[str, Ints]) -> tuple[Ints, int]:
    """An activation of one sum times the other, [W, N]."""
    of, argument = stage.arrays, arrived["argument"]
    share = look_up(of["table"], toward_zero(argument * of["multiplier"], of["argument_shift"]))
    y, clipped = saturate(toward_zero(argument * share * arrived["factor"], of["product_shift"]))
    return np.where(passes(y, of["level"]), y, 0), clipped


def norm(graph: IntegerGraph, stage: Stage, arrived: Mapping[str, Ints]) -> tuple[Ints, int]:
    """Sums [W, N] over the root of their mean square, in 2^-14; LayerNorm's where centered."""
    of, x = stage.arrays, arrived["in"]
    clipped = 0
    if stage.number("center"):
        x, clipped = saturate(x - ratio(x.sum(-1, keepdims=True), x.shape[-1]))
    mean = -(-(x * x).sum(-1, keepdims=True) // x.shape[-1])  # rounded up: no x is beyond sqrt(N mean)
    size = np.maximum(root((mean + of["epsilon"]) << 16), 1)
    y, more = saturate(of["sign"] * ratio(x << (NORM_BITS + 8), size) + of["offset"])
    return y, clipped + more


POPULATIONS: dict[str, Callable[[IntegerGraph, Stage, Mapping[str, Ints]], tuple[Ints, int]]] = {
    "atmn": atmn,
    "count": count,
    "lif": lif,
    "sum": lambda graph, stage, arrived: (arrived["in"], 0),
    "gate": gate,
    "norm": norm,
    "s4d": mixers.s4d,
    "ssd": mixers.ssd,
}
"""Kind -> what it does with what arrived: values [W, N] or a train [W, T, N], and its saturations."""
