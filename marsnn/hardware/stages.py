"""What an exported network is made of: stages, the synapses between them, and the widths of their numbers.

A graph is a list of stages, each behind those that it listens to. A stage has ports, where synapses end; a
kind says what it does with what arrived there. What it sends is a train, T spikes a neuron and token, or a
value, one integer a neuron and token. The first sender is the input, a value.

| quantity                          | width     | remark                                                     |
|-----------------------------------|-----------|------------------------------------------------------------|
| weight                            | 8 bit     | -127 to 127; dense, or the kernel of a convolution         |
| graded input                      | 8 or 16   | 16 where no matrix of weights takes it                     |
| accumulator, membrane, value      | 24 bit    | saturate at +-(2^23 - 1); every saturation is counted      |
| factor of a synapse to one neuron | 24 bit    | and a shift right, toward zero                             |
| leak                              | 14 bit    | multiply by `decay`, shift right by 12, toward zero        |
| share of a table                  | 16 bit    | a fraction of 2^15                                         |
| constant of a rotation            | 21 bit    | a fraction of 2^20                                         |

How a synapse's arrivals become what the stage takes follows from the sender and from the receiver:

    the stage takes a token's sum               the stage takes each step's current
      value   acc = a                             held         c[t] = a
      sum     acc = acc + a[t]                    stream       c[t] = a[t]
      horner  acc = 2 acc + a[t]                  stream_down  c[t] = a[t] << (T - 1 - t)
      power   acc = acc + (a[t] << t)             stream_up    c[t] = a[t] << t

    a = (weight @ spikes) << shift,  or spike * factor >> right of a synapse to one neuron

so the weight tau^t of a spike at step t is carried by doubling the accumulator between steps (tau = 1/2), by
nothing (tau = 1, and neurons that code by rate) or by the step's own power of two (tau = 2). Each synapse has
an accumulator of its own; a port adds them and its bias.

A stage that takes currents may hear itself ("stream"): its spike of step t arrives at its step t + 1. What is
on its way when the stage is cleared, at a token's or a sample's end, is dropped.

The clock: a stage opens once a token, every T steps. A spike of step n arrives at n + 1. A stage that takes
sums opens when the last step of its slowest sender has arrived, one that takes currents when the first has;
what arrives earlier waits in a delay line. `docs/lava.md` has it drawn.

Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

WEIGHT_MAX = 127
INPUT_MAX = 127
WIDE_INPUT_MAX = 2**15 - 1
STATE_MAX = 2**23 - 1
LARGEST_STEPS = 1000  # T
LARGEST_DOUBLINGS = 23
"""T of a neuron with tau = 1/2 or 2 whose train is summed: more steps than bits can't be weighed."""
DECAY_BITS = 12
UNITY = 1 << DECAY_BITS
SHARE_BITS = 15
SHARE_MAX = 1 << SHARE_BITS
TURN_BITS = 20
TURN_MAX = 1 << TURN_BITS
NARROW_MAX = 2**15 - 1
"""Of keys, queries and values behind a state space layer's convolution, which are multiplied."""
FACTOR_MAX = 2**23 - 1
MULTIPLIER_MAX = 2**24 - 1
LARGEST_SHIFT = 62
LARGEST_TABLE = 4095  # entries
LARGEST_LEVEL = 127
LARGEST_EPSILON = 2**45  # of a norm, in squares of its unit
NORM_BITS = 14
"""A norm's values are counted in 2^-14 of their root mean square."""

ATMN_DECAYS = {0.5: 2 * UNITY, 1.0: UNITY, 2.0: UNITY // 2}
"""tau -> what the membrane is multiplied by, over 4096."""

INPUT = "input"

Form = Literal["dense", "conv", "each"]
Arrival = Literal["value", "sum", "horner", "power", "held", "stream", "stream_down", "stream_up"]
SUM_ARRIVALS = ("value", "sum", "horner", "power")
STEP_ARRIVALS = ("held", "stream", "stream_down", "stream_up")
OF_VALUES = ("value", "held")
"""Arrivals of what is sent once a token."""


@dataclass(frozen=True)
class Array:
    """Of a kind: an array's shape by the names of its axes, and the range of its numbers.

    Axes: N neurons of the stage; others are free, and the same where they have the same name. "" is a number.
    """

    axes: str
    least: int
    most: int


@dataclass(frozen=True)
class Kind:
    """What a kind of stage takes, has and sends."""

    sends: Literal["train", "value"]
    takes: Literal["token", "step"]
    ports: Mapping[str, str]  # port -> its axis
    arrays: Mapping[str, Array]
    remembers: bool = False  # across the tokens of a sample, whatever `carry` says
    hears_itself: bool = False  # its spikes may come back


_SHIFT = {"least": 0, "most": LARGEST_SHIFT}

KINDS: dict[str, Kind] = {
    "atmn": Kind(
        "train", "token", {"in": "N"},
        {
            "fire": Array("N", 1, STATE_MAX),
            "amplitude": Array("N", 1, STATE_MAX),
            "decay": Array("", 0, 2 * UNITY),
        },
    ),
    "count": Kind(
        "value", "token", {"in": "N"},
        {"levels": Array("N K", 1, STATE_MAX + 1), "worth": Array("K", 1, NARROW_MAX)},
    ),
    "lif": Kind(
        "train", "step", {"in": "N"},
        {
            "fire": Array("N", 1, STATE_MAX),
            "amplitude": Array("N", 1, STATE_MAX),
            "decay": Array("N", 0, UNITY),
            "current_decay": Array("N", 0, UNITY),
            "adaptation": Array("N", 0, STATE_MAX),
            "adaptation_decay": Array("N", 0, UNITY),
            "most": Array("", 1, LARGEST_LEVEL),
            "signed": Array("", 0, 1),
        },
        hears_itself=True,
    ),
    "sum": Kind("value", "token", {"in": "N"}, {}),
    "gate": Kind(
        "value", "token", {"argument": "N", "factor": "N"},
        {
            "multiplier": Array("N", 0, MULTIPLIER_MAX),
            "argument_shift": Array("N", **_SHIFT),
            "product_shift": Array("N", **_SHIFT),
            "level": Array("N", 0, STATE_MAX),
            "table": Array("E", 0, SHARE_MAX),
        },
    ),
    "norm": Kind(
        "value", "token", {"in": "N"},
        {
            "center": Array("", 0, 1),
            "epsilon": Array("", 0, LARGEST_EPSILON),
            "sign": Array("N", -1, 1),
            "offset": Array("N", -STATE_MAX, STATE_MAX),
        },
    ),
    "s4d": Kind(
        "value", "token", {"in": "N"},
        {
            "real": Array("N M", -TURN_MAX, TURN_MAX),
            "imaginary": Array("N M", -TURN_MAX, TURN_MAX),
            "enter_left": Array("N M", 0, 22),
            "enter_right": Array("N M", 0, 22),
            "out_real": Array("N M", -NARROW_MAX, NARROW_MAX),
            "out_imaginary": Array("N M", -NARROW_MAX, NARROW_MAX),
            "skip": Array("N", -FACTOR_MAX, FACTOR_MAX),
            "out_shift": Array("N", **_SHIFT),
        },
        remembers=True,
    ),
    "ssd": Kind(
        "value", "token", {"values": "N", "keys": "G", "queries": "G", "forgetting": "H"},
        {
            "taps": Array("K C", -FACTOR_MAX, FACTOR_MAX),
            "tap_bias": Array("C", -(2**46), 2**46),
            "tap_shift": Array("C", **_SHIFT),
            "multiplier": Array("H", 0, MULTIPLIER_MAX),
            "argument_shift": Array("H", **_SHIFT),
            "table": Array("E", 0, SHARE_MAX),
            "cosine": Array("R", -TURN_MAX, TURN_MAX),
            "sine": Array("R", -TURN_MAX, TURN_MAX),
            "scaled": Array("", 0, 1),
            "groups": Array("", 1, 2**20),
            "enter_left": Array("H", 0, 22),
            "enter_right": Array("H", **_SHIFT),
            "skip": Array("H", -(2**40), 2**40),
            "out_shift": Array("H", **_SHIFT),
        },
        remembers=True,
    ),
}  # fmt: skip
"""Every kind of stage, with what it needs; reading, writing and checking a bundle follow from this table."""


@dataclass(frozen=True)
class Convolution:
    """Of a synapse whose weights are a kernel [C, C_in / groups, *K]: how it moves over an image."""

    source: tuple[int, ...]  # [C_in, *image]
    target: tuple[int, ...]  # [C, *image]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True)
class Synapse:
    """From one sender to one port of one stage."""

    name: str  # of the linear layer, or one that was made
    source: str  # of a stage before this one, its own, or "input"
    port: str
    form: Form
    arrival: Arrival
    weight: Ints  # dense [N, M]; conv [C, C_in / groups, *K]; each [N], the factor
    shift: int = 0  # left, of dense and conv
    right: Ints | None = None  # [N], of each
    conv: Convolution | None = None


@dataclass(frozen=True)
class Stage:
    """One population, or what stands for one."""

    name: str
    kind: str  # of KINDS
    shape: tuple[int, ...]  # of what it sends; N is its product
    synapses: tuple[Synapse, ...]
    bias: Mapping[str, Ints]  # port -> [its size], once a token, or at every step
    arrays: Mapping[str, Ints]  # of its kind
    reset: Literal["subtract", "zero"] = "subtract"
    carry: Literal["token", "sequence"] = "token"

    @property
    def neurons(self) -> int:
        """N."""
        return int(np.prod(self.shape))

    @property
    def sends(self) -> Literal["train", "value"]:
        return KINDS[self.kind].sends

    @property
    def takes(self) -> Literal["token", "step"]:
        return KINDS[self.kind].takes

    @property
    def loops(self) -> tuple[Synapse, ...]:
        """The synapses by which it hears itself."""
        return tuple(synapse for synapse in self.synapses if synapse.source == self.name)

    def number(self, name: str) -> int:
        """An array of the kind that is one number."""
        return int(self.arrays[name])


@dataclass(frozen=True)
class IntegerGraph:
    """Stages with one clock."""

    steps: int  # T
    inputs: tuple[int, ...]  # shape of the input
    stages: tuple[Stage, ...]
    tokens_per_sample: int = 1  # what is remembered is cleared every so many tokens
    input_max: int = INPUT_MAX

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def size(self, sender: str) -> int:
        """Neurons of a sender, the input included."""
        return int(np.prod(self.inputs)) if sender == INPUT else self[sender].neurons

    def together(self, carry: str) -> int:
        """How many tokens in a row share the state of a stage that takes currents."""
        return self.tokens_per_sample if carry == "sequence" else 1

    def sends(self, sender: str) -> Literal["train", "value"]:
        return "value" if sender == INPUT else self[sender].sends

    @property
    def last(self) -> Stage:
        """The stage whose values or spikes are the network's own."""
        return self.stages[-1]


@dataclass
class IntegerRun:
    """What an integer run did: W tokens in order."""

    spikes: dict[str, NDArray[np.int8]] = field(default_factory=dict)  # [W, T, N]
    values: dict[str, NDArray[np.int32]] = field(default_factory=dict)  # [W, N]
    saturations: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> NDArray[Any]:
        """What a stage sent."""
        return self.spikes[name] if name in self.spikes else self.values[name]


@dataclass(frozen=True)
class Schedule:
    """When stages open, in steps, and how long what arrives early waits."""

    opens: Mapping[str, int]
    delays: Mapping[str, int]  # synapse -> steps


def schedule(graph: IntegerGraph) -> Schedule:
    """The clock of a graph: the input of token w is sent at step 1 + w T, a stage opens at `opens` + w T."""
    opens: dict[str, int] = {INPUT: 1}
    delays: dict[str, int] = {}
    for stage in graph.stages:
        ready = {}
        for synapse in stage.synapses:
            if synapse.source == stage.name:
                continue
            whole = graph.sends(synapse.source) == "train" and stage.takes == "token"
            ready[synapse.name] = opens[synapse.source] + (graph.steps if whole else 1)
        opens[stage.name] = max(ready.values())
        delays |= {name: opens[stage.name] - each for name, each in ready.items()}
        delays |= {synapse.name: 0 for synapse in stage.loops}
    return Schedule({name: step for name, step in opens.items() if name != INPUT}, delays)
