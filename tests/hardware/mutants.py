"""Wrong variants of the integer model, each of which some case must tell from Lava's output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from marsnn.hardware import integer, mixers
from marsnn.hardware.arithmetic import leak, ratio, root, saturate
from marsnn.hardware.stages import (
    DECAY_BITS,
    NARROW_MAX,
    NORM_BITS,
    OF_VALUES,
    STATE_MAX,
    UNITY,
    IntegerGraph,
    Stage,
    Synapse,
    schedule,
)


@dataclass(frozen=True)
class Mutant:
    """What is patched, and what is changed in the graph."""

    patch: Callable[[pytest.MonkeyPatch], None] = lambda patch: None
    graph: Callable[[IntegerGraph], IntegerGraph] = lambda graph: graph


# ---- how ---------------------------------------------------------------------------------------------


def everywhere(function: str, mutant: Callable) -> Mutant:
    """Instead of a function, wherever the model has it by that name."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        users = [module for module in (integer, mixers) if hasattr(module, function)]
        assert users, function
        for module in users:
            monkeypatch.setattr(module, function, mutant)

    return Mutant(patch)


def inside(user: str, function: str, mutant: Callable) -> Mutant:
    """Instead of a function, but only in one kind of stage, or in one function of the model."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = integer.POPULATIONS.get(user) or getattr(integer, user)

        def wrong(*arguments: Any) -> Any:
            with pytest.MonkeyPatch.context() as own:
                everywhere(function, mutant).patch(own)
                return right(*arguments)

        put(monkeypatch, user, wrong)

    return Mutant(patch)


def put(monkeypatch: pytest.MonkeyPatch, user: str, wrong: Callable) -> None:
    if user in integer.POPULATIONS:
        monkeypatch.setitem(integer.POPULATIONS, user, wrong)
    else:
        monkeypatch.setattr(integer, user, wrong)


def instead(user: str, wrong: Callable) -> Mutant:
    """Instead of a kind of stage, or of a function of the model."""
    return Mutant(lambda monkeypatch: put(monkeypatch, user, wrong))


def of_stages(kind: str, change: Callable[[Stage], dict[str, Any]]) -> Mutant:
    """Other arrays in every stage of a kind."""

    def edited(stage: Stage) -> Stage:
        if stage.kind != kind:
            return stage
        return replace(stage, arrays={**stage.arrays, **{k: np.asarray(v) for k, v in change(stage).items()}})

    return Mutant(graph=lambda graph: replace(graph, stages=tuple(edited(stage) for stage in graph.stages)))


def of_synapses(change: Callable[[Synapse], Synapse]) -> Mutant:
    """Other synapses."""

    def edited(stage: Stage) -> Stage:
        return replace(stage, synapses=tuple(change(synapse) for synapse in stage.synapses))

    return Mutant(graph=lambda graph: replace(graph, stages=tuple(edited(stage) for stage in graph.stages)))


def never_cleared(kind: str) -> Mutant:
    """All tokens are one sample for a kind."""
    right = integer.POPULATIONS[kind]

    def wrong(graph: IntegerGraph, stage: Stage, arrived: dict) -> Any:
        tokens = len(next(iter(arrived.values())))
        lasting = replace(stage, carry="sequence") if kind == "lif" and stage.carry == "token" else stage
        return right(replace(graph, tokens_per_sample=tokens), lasting, arrived)

    return instead(kind, wrong)


# ---- arithmetic --------------------------------------------------------------------------------------


def floor_leak(state: Any, decay: Any) -> Any:
    return (state * decay) >> DECAY_BITS


def rounding_leak(state: Any, decay: Any) -> Any:
    return np.sign(state) * ((np.abs(state) * decay + (1 << (DECAY_BITS - 1))) >> DECAY_BITS)


def leak_plus_one(state: Any, decay: Any) -> Any:
    return leak(state, decay + 1)


def leak_minus_one(state: Any, decay: Any) -> Any:
    return leak(state, decay - 1)


def floor(x: Any, shift: Any) -> Any:
    return x >> shift


def nearest(x: Any, shift: Any) -> Any:
    return np.sign(x) * ((np.abs(x) + ((1 << shift) >> 1)) >> shift)


def one_bit_less(x: Any, shift: Any) -> Any:
    return np.sign(x) * (np.abs(x) >> np.maximum(shift - 1, 0))


def above(h: Any, fire: Any) -> Any:
    return h > fire


def unlimited(x: Any, largest: int = STATE_MAX) -> Any:
    return x, 0


def wrapping(x: Any, largest: int = STATE_MAX) -> Any:
    wrapped = (x + largest) % (2 * largest + 1) - largest
    return wrapped, int(np.count_nonzero(wrapped != x))


def lopsided(x: Any, largest: int = STATE_MAX) -> Any:
    clipped = np.clip(x, -largest - 1, largest)
    return clipped, int(np.count_nonzero(clipped != x))


def uncounted(x: Any, largest: int = STATE_MAX) -> Any:
    return saturate(x, largest)[0], 0


def wide_channels(x: Any, largest: int = STATE_MAX) -> Any:
    return saturate(x) if largest == NARROW_MAX else saturate(x, largest)


def table_around(table: Any, place: Any) -> Any:
    return table[(len(table) // 2 + place) % len(table)]


def next_entry(table: Any, place: Any) -> Any:
    middle = len(table) // 2
    return table[middle + np.clip(place + 1, -middle, middle)]


def early_end(table: Any, place: Any) -> Any:
    middle = len(table) // 2
    return table[middle + np.clip(place, 1 - middle, middle - 1)]


# ---- stages ------------------------------------------------------------------------------------------


def lif_that(late_current: bool = False, early: bool = False, before: bool = False) -> Callable:
    """A LIF whose current comes a step late, whose threshold falls, or rises, a step early."""

    def lif(graph: IntegerGraph, stage: Stage, arrived: dict) -> Any:
        of, signed = stage.arrays, stage.number("signed")
        driven = arrived["in"]
        tokens, steps, N = driven.shape
        length = graph.tokens_per_sample if stage.carry == "sequence" else 1
        trains = driven.reshape(tokens // length, length * steps, N)
        v = i = adapted = np.zeros_like(trains[:, 0])
        spikes, total = np.zeros_like(trains), 0
        for t in range(trains.shape[1]):
            entering, clipped = saturate(leak(i, of["current_decay"]) + trains[:, t])
            h, more = saturate(leak(v, of["decay"]) + (i if late_current else entering))
            i, total = entering, total + clipped + more
            threshold = leak(adapted, of["adaptation_decay"]) if early else adapted
            if before:  # as if it had spiked already
                threshold = threshold + of["adaptation"] * (np.abs(h) >= of["fire"])
            s = integer.levels_reached(stage, h, threshold)
            s = s - integer.levels_reached(stage, -h, threshold) if signed else s
            spikes[:, t] = s
            v = h - s * of["amplitude"] if stage.reset == "subtract" else np.where(s == 0, h, 0)
            rise = leak(adapted, of["adaptation_decay"]) + np.abs(s) * of["adaptation"]
            adapted, clipped = saturate(rise)
            total += clipped
        return spikes.reshape(tokens, steps, N), total

    return lif


returned = integer.returned


def comes_back(late: int) -> Callable:
    """Spikes that come back so many steps later than they should."""

    def wrong(stage: Stage, spikes: Any, t: int) -> Any:
        return returned(stage, spikes, max(t - late, 0))

    return wrong


def of_loops(change: Callable[[Synapse], Synapse]) -> Mutant:
    """Other synapses from a stage to itself."""

    def edited(stage: Stage) -> Stage:
        kept = tuple(change(each) if each in stage.loops else each for each in stage.synapses)
        return replace(stage, synapses=kept)

    return Mutant(graph=lambda graph: replace(graph, stages=tuple(edited(stage) for stage in graph.stages)))


def other_carry(carry: str) -> Mutant:
    """Loops that are dropped at every token, or at none but a sample's."""

    def edited(stage: Stage) -> Stage:
        return replace(stage, carry=carry) if stage.loops else stage

    return Mutant(graph=lambda graph: replace(graph, stages=tuple(edited(stage) for stage in graph.stages)))


def levels_apart(stage: Stage, h: Any, adapted: Any) -> Any:
    """Every level a further threshold away, as if each had the first one's distance."""
    return sum(
        (h >= (k + 1) * stage.arrays["fire"] + adapted).astype(np.int64) for k in range(stage.number("most"))
    )


def norm_that(floor_mean: bool = False, epsilon_after: bool = False) -> Callable:
    """A norm whose mean square rounds down, or whose epsilon comes behind the root's low bits."""

    def norm(graph: IntegerGraph, stage: Stage, arrived: dict) -> Any:
        of, x = stage.arrays, arrived["in"]
        clipped, N = 0, arrived["in"].shape[-1]
        if stage.number("center"):
            x, clipped = saturate(x - ratio(x.sum(-1, keepdims=True), N))
        power = (x * x).sum(-1, keepdims=True)
        mean = power // N if floor_mean else -(-power // N)
        under = (mean << 16) + of["epsilon"] if epsilon_after else (mean + of["epsilon"]) << 16
        y, more = saturate(
            of["sign"] * ratio(x << (NORM_BITS + 8), np.maximum(root(under), 1)) + of["offset"]
        )
        return y, clipped + more

    return norm


def late_reading(graph: IntegerGraph, stage: Stage, arrived: dict) -> Any:
    """A state space layer that says of a token what it remembered before it."""
    y, total = mixers.s4d(graph, stage, arrived)
    samples = y.reshape(-1, graph.tokens_per_sample, y.shape[-1])
    late = np.zeros_like(samples)
    late[:, 1:] = samples[:, :-1]
    return late.reshape(y.shape), total


# ---- synapses ----------------------------------------------------------------------------------------

arrive, convolve, currents = integer.arrive, integer.convolve, integer.currents


def held_once(arrival: str, arrivals: Any, steps: int) -> Any:
    """A value is a current of one step only."""
    if arrival not in OF_VALUES:
        return currents(arrival, arrivals, steps)
    train = np.zeros((len(arrivals), steps, arrivals.shape[-1]), dtype=np.int64)
    train[:, 0] = arrivals
    return train


def turned_over(synapse: Synapse) -> Synapse:
    if synapse.conv is None:
        return synapse
    rank = len(synapse.conv.stride)
    return replace(synapse, weight=np.flip(synapse.weight, axis=tuple(range(2, 2 + rank))))


def other_groups(synapse: Synapse) -> Synapse:
    """Kernels that take the channels of the next group."""
    if synapse.conv is None or synapse.conv.groups == 1:
        return synapse
    return replace(
        synapse, weight=np.roll(synapse.weight, len(synapse.weight) // synapse.conv.groups, axis=0)
    )


def without_stride(signal: Any, kernel: Any, conv: Any) -> Any:
    """Windows one pixel apart."""
    full = tuple(
        n + 2 * p - d * (k - 1)
        for n, p, d, k in zip(conv.source[1:], conv.padding, conv.dilation, kernel.shape[2:], strict=True)
    )
    dense = replace(conv, stride=(1,) * len(full), target=(conv.target[0], *full))
    image = convolve(signal, kernel, dense).reshape(*signal.shape[:-1], *dense.target)
    cut = image[(..., *(slice(0, n) for n in conv.target[1:]))]
    return cut.reshape(*signal.shape[:-1], -1)


def a_pixel_off(signal: Any, kernel: Any, conv: Any) -> Any:
    """An image that runs round its borders."""
    image = signal.reshape(*signal.shape[:-1], *conv.source)
    return convolve(np.roll(image, 1, axis=-1).reshape(signal.shape), kernel, conv)


def transposed(signal: Any, kernel: Any, conv: Any) -> Any:
    """Pixels in Fortran's order: columns for rows."""
    image = signal.reshape(*signal.shape[:-1], *conv.source)
    swapped = np.swapaxes(image, -1, -2).reshape(signal.shape) if len(conv.source) == 3 else signal
    return convolve(swapped, kernel, conv)


def without_skips(graph: IntegerGraph) -> IntegerGraph:
    """Of several synapses to a port only the first."""

    def first(stage: Stage) -> Stage:
        ports: dict[str, Synapse] = {}
        for synapse in stage.synapses:
            ports.setdefault(synapse.port, synapse)
        return replace(stage, synapses=tuple(ports.values()))

    return replace(graph, stages=tuple(first(stage) for stage in graph.stages))


def a_token_late(graph: IntegerGraph, stage: Stage, port: str, sent: Any) -> Any:
    """What waits in a delay line waits for a token more."""
    waits = schedule(graph).delays if stage in graph.stages else {}
    # two synapses of one sender may differ, so each gets a sender of its own
    synapses, own = [], {}
    for synapse in stage.synapses:
        if synapse in stage.loops:
            continue
        signal = sent[synapse.source]
        if waits.get(synapse.name):
            signal = np.concatenate([np.zeros_like(signal[:1]), signal[:-1]])
        own[synapse.name] = signal
        synapses.append(replace(synapse, source=synapse.name))
    return arrive(graph, replace(stage, synapses=tuple(synapses)), port, own)


def one_accumulator(graph: IntegerGraph, stage: Stage, port: str, sent: Any) -> Any:
    """What all synapses bring is summed before it is clipped."""
    total, clipped = np.zeros_like(stage.bias[port]), 0
    sums: dict[str, Any] = {}
    for synapse in stage.synapses:
        if synapse.port == port and synapse not in stage.loops:
            reached = integer.reach(synapse, sent[synapse.source])
            sums[synapse.arrival] = sums.get(synapse.arrival, 0) + reached
    for arrival, arrivals in sums.items():
        if stage.takes == "token":
            arrivals, more = integer.accumulate(arrival, arrivals)
            clipped += more
        else:
            arrivals = integer.currents(arrival, arrivals, graph.steps)
        total = total + arrivals
    if stage.takes == "token":
        total, more = saturate(total + stage.bias[port])
        return total, clipped + more
    return total + stage.bias[port], clipped


def arriving_as(wrong: str) -> Mutant:
    """Trains that are summed, or taken step by step, by one rule for all."""
    ours = (
        ("sum", "horner", "power")
        if wrong in ("sum", "horner", "power")
        else ("stream", "stream_down", "stream_up")
    )

    def change(synapse: Synapse) -> Synapse:
        return replace(synapse, arrival=wrong) if synapse.arrival in ours else synapse

    return of_synapses(change)


# ---- all of them -------------------------------------------------------------------------------------

USERS = ("accumulate", "arrive", "atmn", "lif", "gate", "norm", "s4d", "ssd")
"""What saturates."""

MUTANTS: dict[str, Mutant] = {
    **{f"{kind}: leak rounding down": inside(kind, "leak", floor_leak) for kind in ("atmn", "lif")},
    **{f"{kind}: leak rounding to nearest": inside(kind, "leak", rounding_leak) for kind in ("atmn", "lif")},
    **{f"{kind}: decay + 1": inside(kind, "leak", leak_plus_one) for kind in ("atmn", "lif")},
    **{f"{kind}: decay - 1": inside(kind, "leak", leak_minus_one) for kind in ("atmn", "lif")},
    **{f"{kind}: > for >=": inside(kind, "fires", above) for kind in ("atmn", "count", "lif")},
    **{f"{user}: no saturation": inside(user, "saturate", unlimited) for user in USERS},
    **{f"{user}: wrapping": inside(user, "saturate", wrapping) for user in USERS},
    **{f"{user}: -2^23 for -(2^23 - 1)": inside(user, "saturate", lopsided) for user in USERS},
    **{f"{user}: saturation not counted": inside(user, "saturate", uncounted) for user in USERS},
    **{f"arriving as {rule}": arriving_as(rule)
       for rule in ("sum", "horner", "power", "stream", "stream_down", "stream_up")},
    "held for one step": instead("currents", held_once),
    "atmn: a spike takes the threshold": of_stages("atmn", lambda s: {"amplitude": s.arrays["fire"]}),
    "count: the worth of one level": of_stages("count", lambda s: {"worth": np.ones_like(s.arrays["worth"])}),
    "lif: current a step late": instead("lif", lif_that(late_current=True)),
    "lif: threshold falls a step early": instead("lif", lif_that(early=True)),
    "lif: threshold rises a step early": instead("lif", lif_that(before=True)),
    "lif: current lost": of_stages("lif", lambda s: {"current_decay": 0 * s.arrays["current_decay"]}),
    "lif: current kept": of_stages(
        "lif", lambda s: {"current_decay": np.where(s.arrays["current_decay"], UNITY, 0)}),
    "lif: no adaptation": of_stages("lif", lambda s: {"adaptation": 0 * s.arrays["adaptation"]}),
    "lif: adaptation kept": of_stages(
        "lif", lambda s: {"adaptation_decay": np.full_like(s.arrays["adaptation_decay"], UNITY)}),
    "lif: levels apart by the threshold": everywhere("levels_reached", levels_apart),
    "lif: one level only": of_stages("lif", lambda s: {"most": 1}),
    "lif: a level too many": of_stages("lif", lambda s: {"most": s.number("most") + (s.number("most") > 1)}),
    "loop: none": of_loops(lambda each: replace(each, weight=0 * each.weight)),
    "loop: a step too late": instead("returned", comes_back(1)),
    "loop: two steps too late": instead("returned", comes_back(2)),
    "loop: transposed": of_loops(
        lambda each: replace(each, weight=each.weight.T) if each.form == "dense" else each),
    "loop: without its shift": of_loops(lambda each: replace(each, shift=0)),
    "loop: one above": of_loops(lambda each: replace(each, weight=each.weight + (each.weight == 99))),
    "loop: one below": of_loops(lambda each: replace(each, weight=each.weight - (each.weight == 100))),
    "loop: dropped at every token": other_carry("token"),
    "loop: never dropped but at a sample": other_carry("sequence"),
    "lif: no negative side": of_stages("lif", lambda s: {"signed": 0}),
    "lif: a negative side for all": of_stages("lif", lambda s: {"signed": 1}),
    "lif: reset by subtraction": Mutant(graph=lambda graph: replace(
        graph, stages=tuple(replace(stage, reset="subtract") for stage in graph.stages))),
    "lif: reset to zero": Mutant(graph=lambda graph: replace(
        graph, stages=tuple(replace(stage, reset="zero") for stage in graph.stages))),
    "lif: state cleared at every token": Mutant(graph=lambda graph: replace(
        graph, stages=tuple(replace(stage, carry="token") for stage in graph.stages))),
    **{f"{kind}: state not cleared": never_cleared(kind) for kind in ("lif", "s4d", "ssd")},
    "norm: mean square rounding down": instead("norm", norm_that(floor_mean=True)),
    "norm: epsilon below the root's low bits": instead("norm", norm_that(epsilon_after=True)),
    "norm: root one less": inside("norm", "root", lambda x: root(x) - 1),
    "norm: root rounding up": inside("norm", "root", lambda x: root(x) + (root(x) ** 2 < x)),
    "norm: quotients rounding down": inside("norm", "ratio", lambda x, by: x // by),
    "norm: quotients rounding to nearest": inside(
        "norm", "ratio", lambda x, by: np.sign(x) * ((2 * np.abs(x) + by) // (2 * by))),
    "norm: no centering": of_stages("norm", lambda s: {"center": 0}),
    "norm: centering": of_stages("norm", lambda s: {"center": 1}),
    "norm: no epsilon": of_stages("norm", lambda s: {"epsilon": 0}),
    "norm: no sign": of_stages("norm", lambda s: {"sign": np.abs(s.arrays["sign"])}),
    "norm: no offset": of_stages("norm", lambda s: {"offset": 0 * s.arrays["offset"]}),
    **{f"{kind}: rounding down": inside(kind, "toward_zero", floor) for kind in ("reach", "s4d", "ssd")},
    **{f"{kind}: rounding to nearest": inside(kind, "toward_zero", nearest)
       for kind in ("reach", "s4d", "ssd")},
    **{f"{kind}: a shift of one bit less": inside(kind, "toward_zero", one_bit_less)
       for kind in ("reach", "s4d", "ssd")},
    "s4d: the conjugate": of_stages("s4d", lambda s: {"imaginary": -s.arrays["imaginary"]}),
    "s4d: the conjugate's reading": of_stages("s4d", lambda s: {"out_imaginary": -s.arrays["out_imaginary"]}),
    "s4d: no skip": of_stages("s4d", lambda s: {"skip": 0 * s.arrays["skip"]}),
    "s4d: a token late": instead("s4d", late_reading),
    "ssd: 16 bits not kept": inside("ssd", "saturate", wide_channels),
    "ssd: a table that wraps": inside("ssd", "look_up", table_around),
    "ssd: the next entry": inside("ssd", "look_up", next_entry),
    "ssd: a table that ends one entry early": inside("ssd", "look_up", early_end),
    "ssd: taps in reverse": of_stages("ssd", lambda s: {"taps": s.arrays["taps"][::-1]}),
    "ssd: the newest token only": of_stages("ssd", lambda s: {"taps": s.arrays["taps"][:1]}),
    "ssd: turn in the other direction": of_stages("ssd", lambda s: {"sine": -s.arrays["sine"]}),
    "ssd: no turn": of_stages(
        "ssd", lambda s: {name: s.arrays[name][:0] for name in ("cosine", "sine")}),
    "ssd: input not scaled": of_stages("ssd", lambda s: {"scaled": 0}),
    "ssd: input scaled": of_stages("ssd", lambda s: {"scaled": 1}),
    "ssd: no skip": of_stages("ssd", lambda s: {"skip": 0 * s.arrays["skip"]}),
    "conv: kernel turned over": of_synapses(turned_over),
    "conv: windows one pixel apart": instead("convolve", without_stride),
    "conv: a pixel off": instead("convolve", a_pixel_off),
    "conv: columns for rows": instead("convolve", transposed),
    "conv: the next group": of_synapses(other_groups),
    "dense, conv: no shift": of_synapses(lambda synapse: replace(synapse, shift=0)),
    "skips left out": Mutant(graph=without_skips),
    "a delay of a token more": instead("arrive", a_token_late),
    "one accumulator for all synapses": instead("arrive", one_accumulator),
}  # fmt: skip
