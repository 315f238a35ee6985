"""The bit-exact integer model of an exported network, in numpy alone.

A graph is a chain of stages. A stage is one matrix of synapses and the population that it drives; the last
one may be a readout, which has no neurons. All numbers are integers of the widths below.

| quantity                      | width     | remark                                                       |
|-------------------------------|-----------|--------------------------------------------------------------|
| weight                        | 8 bit     | -127 to 127                                                  |
| graded input                  | 8 bit     | -127 to 127                                                  |
| accumulator, membrane         | 24 bit    | saturate at +-(2^23 - 1); every saturation is counted        |
| leak                          | 14 bit    | multiply by `decay`, shift right by 12, toward zero          |

    sum stages (ATMN, readout)               step stages (LIF)
      once    acc = a                          held         c[t] = a
      sum     acc = acc + a[t]                 stream       c[t] = a[t]
      horner  acc = 2 acc + a[t]               stream_down  c[t] = a[t] << (T - 1 - t)
      power   acc = acc + (a[t] << t)          stream_up    c[t] = a[t] << t

    a[t] = (weight @ spikes[t]) << shift

"once" and "held" receive the graded input, the others a train of T steps. Which one a stage has follows
from its sender: the weight tau^t of a spike at step t is carried by doubling the accumulator between steps
(tau = 1/2), by nothing (tau = 1, LIF) or by the step's own power of two (tau = 2).

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

Kind = Literal["atmn", "lif", "readout"]
Arrival = Literal["once", "sum", "horner", "power", "held", "stream", "stream_down", "stream_up"]
SUM_ARRIVALS = ("once", "sum", "horner", "power")
STEP_ARRIVALS = ("held", "stream", "stream_down", "stream_up")
ATMN_DECAYS = {0.5: 2 * UNITY, 1.0: UNITY, 2.0: UNITY // 2}
"""tau -> what the membrane is multiplied by, over 4096."""


@dataclass(frozen=True)
class Stage:
    """One matrix of synapses and what it drives."""

    name: str  # of the neurons, or of the readout's linear layer
    synapse: str  # of the linear layer
    kind: Kind
    arrival: Arrival
    weight: Ints  # [N, M]
    bias: Ints  # [N], once a token (sum stages) or at every step (step stages)
    fire: Ints  # [N], fires at >= fire; empty for a readout
    amplitude: Ints  # [N], what a spike takes from the membrane; empty for a readout
    shift: int = 0
    decay: int = UNITY
    reset: Literal["subtract", "zero"] = "subtract"
    carry: Literal["token", "sequence"] = "token"


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
        else:
            result.spikes[stage.name] = signal.astype(np.int8)
    return result


def run_stage(graph: IntegerGraph, stage: Stage, signal: Ints) -> tuple[Ints, int]:
    """One stage on a signal [W, T or 1, M]: spikes [W, T, N] or sums [W, N], and its saturations."""
    arrivals = arrive(stage, signal)
    if stage.kind == "readout":
        acc, clipped = accumulate(stage, arrivals)
        sums, more = saturate(acc + stage.bias)
        return sums, clipped + more
    if stage.kind == "atmn":
        return atmn(stage, arrivals, graph.steps)
    return lif(stage, arrivals, graph.steps, graph.tokens_per_sample)


# ---- arithmetic: each of these is a place where a wrong chip would differ ----------------------------


def arrive(stage: Stage, signal: Ints) -> Ints:
    """Synaptic sums [W, T or 1, N] of a signal [W, T or 1, M]; exact, as float64 holds integers to 2^53."""
    sums = signal.astype(np.float64) @ stage.weight.astype(np.float64).T
    return sums.astype(np.int64) << stage.shift


def saturate(x: Ints) -> tuple[Ints, int]:
    """Clip to the 24-bit state and say how many values were clipped."""
    clipped = np.clip(x, -STATE_MAX, STATE_MAX)
    return clipped, int(np.count_nonzero(clipped != x))


def leak(state: Ints, decay: int) -> Ints:
    """Multiply by decay / 4096, rounding toward zero."""
    return np.sign(state) * ((np.abs(state) * decay) >> DECAY_BITS)


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
