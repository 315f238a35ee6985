"""The bit-exact integer model of an exported network, in numpy alone.

A graph is a chain of stages. A stage is one matrix of synapses and the population that it drives; the last
one may be a readout, which has no neurons. A gate has two matrices, and multiplies; the ATMN that follows it
has none. All numbers are integers of the widths below.

| quantity                      | width     | remark                                                       |
|-------------------------------|-----------|--------------------------------------------------------------|
| weight                        | 8 bit     | -127 to 127                                                  |
| graded input                  | 8 bit     | -127 to 127                                                  |
| accumulator, membrane         | 24 bit    | saturate at +-(2^23 - 1); every saturation is counted        |
| leak                          | 14 bit    | multiply by `decay`, shift right by 12, toward zero          |
| a gate's multiplier, share    | 24, 16 bit| not negative; the share is a fraction of 2^15                |
| graded product                | 24 bit    | saturates as an accumulator does                             |

    sum stages (ATMN, readout, gate)         step stages (LIF)
      once    acc = a                          held         c[t] = a
      sum     acc = acc + a[t]                 stream       c[t] = a[t]
      horner  acc = 2 acc + a[t]               stream_down  c[t] = a[t] << (T - 1 - t)
      power   acc = acc + (a[t] << t)          stream_up    c[t] = a[t] << t
      direct  acc = product << shift

    a[t] = (weight @ spikes[t]) << shift

"once" and "held" receive the graded input, "direct" the products of a gate, the others a train of T steps.
Which one a stage has follows from its sender: the weight tau^t of a spike at step t is carried by doubling
the accumulator between steps (tau = 1/2), by nothing (tau = 1, LIF) or by the step's own power of two
(tau = 2).

A gate computes g f(g) u of the two sums g and u of each of its N neurons once a token, for an activation
g f(g) with f from 0 to 1 (SiLU: f is the logistic function). `table` holds f times 2^15; `>>` rounds toward
zero here (`toward_zero`), for negative numbers too:

    g, u  = clip(acc + bias)                   24 bit; rows 0 .. N-1 of weight and bias are g's, N .. 2N-1 u's
    place = (g * multiplier) >> argument_shift           a neuron's own g to the table's steps, 47 bit
    place = middle + clip(place, -middle, middle)        middle = (entries - 1) / 2
    y     = clip((g * table[place] * u) >> product_shift)          exact in 64 bit, then 24 bit
    y     = 0 where |y| < level

f alone is tabulated, so a small g keeps its precision: only the share of it that passes is rounded. Beyond
the table stand its ends, 0 and 2^15, so that a g far below zero gives 0, and one far above it g itself.

This file computes stage by stage, all tokens at once. The runtime for Lava steps through time instead, and
shares no code with it; `docs/lava.md` has the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import InputError

Ints = NDArray[np.int64]

WEIGHT_MAX = 127
INPUT_MAX = 127
STATE_MAX = 2**23 - 1
LARGEST_STEPS = 1000  # T
DECAY_BITS = 12
UNITY = 1 << DECAY_BITS
SHARE_BITS = 15
SHARE_MAX = 1 << SHARE_BITS
MULTIPLIER_MAX = 2**24 - 1
LARGEST_SHIFT = 62
LARGEST_TABLE = 4095  # entries

Kind = Literal["atmn", "lif", "readout", "gate"]
Arrival = Literal["once", "sum", "horner", "power", "direct", "held", "stream", "stream_down", "stream_up"]
SUM_ARRIVALS = ("once", "sum", "horner", "power", "direct")
STEP_ARRIVALS = ("held", "stream", "stream_down", "stream_up")
ATMN_DECAYS = {0.5: 2 * UNITY, 1.0: UNITY, 2.0: UNITY // 2}
"""tau -> what the membrane is multiplied by, over 4096."""


@dataclass(frozen=True)
class Gate:
    """What a gate does with its two sums; the module's docstring has the arithmetic."""

    multiplier: Ints  # [N], 0 to 2^24 - 1
    argument_shift: Ints  # [N], 0 to 62
    product_shift: Ints  # [N], 0 to 62
    level: Ints  # [N], smaller products become 0
    table: Ints  # [entries], an odd number of them, 0 to 2^15


@dataclass(frozen=True)
class Stage:
    """One matrix of synapses and what it drives."""

    name: str  # of the neurons, or of the readout's linear layer
    synapse: str  # of the linear layer
    kind: Kind
    arrival: Arrival
    weight: Ints  # [N, M]; [2N, M] for a gate, [N, 0] behind one
    bias: Ints  # [N] or [2N], once a token (sum stages) or at every step (step stages)
    fire: Ints  # [N], fires at >= fire; empty for a readout and a gate
    amplitude: Ints  # [N], what a spike takes from the membrane; empty for a readout and a gate
    shift: int = 0
    decay: int = UNITY
    reset: Literal["subtract", "zero"] = "subtract"
    carry: Literal["token", "sequence"] = "token"
    gate: Gate | None = None

    @property
    def neurons(self) -> int:
        """N."""
        return len(self.weight) // 2 if self.kind == "gate" else len(self.weight)

    @property
    def inputs(self) -> int:
        """How many values arrive at a step: M, or N behind a gate."""
        return self.neurons if self.arrival == "direct" else self.weight.shape[1]


@dataclass(frozen=True)
class IntegerGraph:
    """A chain of stages with one clock."""

    steps: int  # T
    stages: tuple[Stage, ...]
    tokens_per_sample: int = 1  # states with carry="sequence" are cleared every so many tokens


@dataclass
class IntegerRun:
    """What an integer run did: W tokens in order."""

    spikes: dict[str, NDArray[np.int8]] = field(default_factory=dict)  # [W, T, N]
    products: dict[str, NDArray[np.int32]] = field(default_factory=dict)  # [W, N]
    outputs: dict[str, NDArray[np.int32]] = field(default_factory=dict)  # [W, C]
    saturations: dict[str, int] = field(default_factory=dict)


def run(graph: IntegerGraph, inputs: NDArray[np.integer]) -> IntegerRun:
    """Run W tokens of graded input [W, D] through the graph.

    Tokens are independent but for states with carry="sequence", which are cleared every
    `graph.tokens_per_sample` tokens; W is a multiple of it.
    """
    if len(inputs) % graph.tokens_per_sample:
        raise InputError(f"{len(inputs)} tokens don't divide into samples of {graph.tokens_per_sample}")
    result = IntegerRun()
    signal: Ints = np.asarray(inputs, dtype=np.int64)[:, None, :]  # [W, 1 or T, M]
    for stage in graph.stages:
        signal, result.saturations[stage.name] = run_stage(graph, stage, signal)
        if stage.kind == "readout":
            result.outputs[stage.name] = signal.astype(np.int32)
        elif stage.kind == "gate":
            result.products[stage.name] = signal[:, 0].astype(np.int32)
        else:
            result.spikes[stage.name] = signal.astype(np.int8)
    return result


def run_stage(graph: IntegerGraph, stage: Stage, signal: Ints) -> tuple[Ints, int]:
    """One stage on a signal [W, T or 1, M], and its saturations.

    Returns:
        spikes [W, T, N], the sums [W, N] of a readout, or the products [W, 1, N] of a gate.
    """
    arrivals = arrive(stage, signal)
    if stage.kind == "readout":
        acc, clipped = accumulate(stage, arrivals)
        sums, more = saturate(acc + stage.bias)
        return sums, clipped + more
    if stage.kind == "gate":
        products, clipped = multiply(stage, arrivals)
        return products[:, None], clipped
    if stage.kind == "atmn":
        return atmn(stage, arrivals, graph.steps)
    return lif(stage, arrivals, graph.steps, graph.tokens_per_sample)


# ---- arithmetic: each of these is a place where a wrong chip would differ ----------------------------


def arrive(stage: Stage, signal: Ints) -> Ints:
    """Synaptic sums [W, T or 1, N] of a signal [W, T or 1, M]; exact, as float64 holds integers to 2^53."""
    if stage.arrival == "direct":
        return signal << stage.shift
    sums = signal.astype(np.float64) @ stage.weight.astype(np.float64).T
    return sums.astype(np.int64) << stage.shift


def saturate(x: Ints) -> tuple[Ints, int]:
    """Clip to the 24-bit state and say how many values were clipped."""
    clipped = np.clip(x, -STATE_MAX, STATE_MAX)
    return clipped, int(np.count_nonzero(clipped != x))


def leak(state: Ints, decay: int) -> Ints:
    """Multiply by decay / 4096, rounding toward zero."""
    return np.sign(state) * ((np.abs(state) * decay) >> DECAY_BITS)


def toward_zero(x: Ints, shift: Ints) -> Ints:
    """Shift right, rounding toward zero."""
    return np.sign(x) * (np.abs(x) >> shift)


def look_up(table: Ints, place: Ints) -> Ints:
    """The entry `place` steps from the middle one, the ends standing for what lies beyond."""
    middle = len(table) // 2
    return table[middle + np.clip(place, -middle, middle)]


def halves(sums: Ints) -> tuple[Ints, Ints]:
    """The sums [W, 2N] of a gate as those of the activation's argument and of the other factor, [W, N]."""
    neurons = sums.shape[1] // 2
    return sums[:, :neurons], sums[:, neurons:]


def passes(y: Ints, level: Ints) -> NDArray[np.bool_]:
    """At or above the level, in magnitude."""
    return np.abs(y) >= level


def fires(h: Ints, fire: Ints) -> NDArray[np.bool_]:
    """At or above the threshold."""
    return h >= fire


# ---- populations -------------------------------------------------------------------------------------


def accumulate(stage: Stage, arrivals: Ints) -> tuple[Ints, int]:
    """The token's sum [W, N] of arrivals [W, T or 1, N], without the bias."""
    acc = np.zeros_like(arrivals[:, 0])
    total = 0
    for t in range(arrivals.shape[1]):
        a = arrivals[:, t]
        if stage.arrival == "horner":
            acc = 2 * acc + a
        elif stage.arrival == "power":
            acc = acc + (a << t)
        else:
            acc = acc + a
        acc, clipped = saturate(acc)
        total += clipped
    return acc, total


def multiply(stage: Stage, arrivals: Ints) -> tuple[Ints, int]:
    """The products [W, N] of a gate: its activation of one sum times the other sum."""
    gate = stage.gate
    assert gate is not None
    acc, total = accumulate(stage, arrivals)
    sums, clipped = saturate(acc + stage.bias)
    g, u = halves(sums)
    share = look_up(gate.table, toward_zero(g * gate.multiplier, gate.argument_shift))
    y, more = saturate(toward_zero(g * share * u, gate.product_shift))
    return np.where(passes(y, gate.level), y, 0), total + clipped + more


def atmn(stage: Stage, arrivals: Ints, steps: int) -> tuple[Ints, int]:
    """Spikes [W, T, N] in {-1, 0, 1}.

    h[0] = acc + bias,  h[t] = leak(u[t-1]);  s[t] = sign where |h[t]| >= fire;  u[t] = h[t] - s[t] amplitude
    """
    acc, total = accumulate(stage, arrivals)
    h = acc + stage.bias
    spikes = np.zeros((len(acc), steps, acc.shape[1]), dtype=np.int64)
    for t in range(steps):
        h, clipped = saturate(h)
        total += clipped
        s = fires(h, stage.fire).astype(np.int64) - fires(-h, stage.fire)
        spikes[:, t] = s
        h = leak(h - s * stage.amplitude, stage.decay)
    return spikes, total


def lif(stage: Stage, arrivals: Ints, steps: int, tokens_per_sample: int) -> tuple[Ints, int]:
    """Spikes [W, T, N] in {0, 1}.

    h = leak(v) + c[t] + bias;  s = 1 where h >= fire;  v = h - s amplitude, or 0 where s = 1 ("zero")
    """
    tokens, _, neurons = arrivals.shape
    currents = np.broadcast_to(arrivals, (tokens, steps, neurons))
    if stage.arrival == "stream_down":
        currents = currents << (steps - 1 - np.arange(steps))[:, None]
    elif stage.arrival == "stream_up":
        currents = currents << np.arange(steps)[:, None]
    # Runs of tokens that share a state: one token each, or the tokens of a sample one after the other.
    length = tokens_per_sample if stage.carry == "sequence" else 1
    trains = currents.reshape(tokens // length, length * steps, neurons)
    v = np.zeros_like(trains[:, 0])
    spikes = np.zeros_like(trains)
    total = 0
    for t in range(length * steps):
        h, clipped = saturate(leak(v, stage.decay) + trains[:, t] + stage.bias)
        total += clipped
        s = fires(h, stage.fire).astype(np.int64)
        spikes[:, t] = s
        v = h - s * stage.amplitude if stage.reset == "subtract" else h * (1 - s)
    return spikes.reshape(tokens, steps, neurons), total
