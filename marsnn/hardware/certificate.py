"""Proof that no accumulator can overflow: worst-case bounds of a stage, over all inputs, neuron by neuron.

Exact integer arithmetic over the stage's own weights; numpy alone, so that a bundle is certified again
whenever it is read.

Inside a state space layer the worst case of all inputs and all tokens at once is so far from what happens
that widths chosen for it would leave a few bits to what does. There numbers are clipped by rule where they
are stored, to 16 or 24 bits, and clipping is counted and compared; the certificate calls that "limited", and
shows that nothing can wrap between two such places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.hardware.arithmetic import toward_zero
from marsnn.hardware.integer import convolve
from marsnn.hardware.stages import (
    DECAY_BITS,
    INPUT,
    NARROW_MAX,
    NORM_BITS,
    SHARE_BITS,
    STATE_MAX,
    TURN_BITS,
    UNITY,
    IntegerGraph,
    Ints,
    Stage,
    Synapse,
)

ARRIVING: dict[str, Callable[[int], int]] = {
    "value": lambda steps: 1,
    "held": lambda steps: 1,
    "sum": lambda steps: steps,
    "stream": lambda steps: 1,
    "horner": lambda steps: 2**steps - 1,
    "power": lambda steps: 2**steps - 1,
    "stream_down": lambda steps: 2 ** (steps - 1),
    "stream_up": lambda steps: 2 ** (steps - 1),
}
"""The largest multiple of a weight that one sender's unit can bring: to a token's sum, or to one step's
current."""

WIDEST = 2**62
"""What arithmetic between two stores may reach: numbers of 64 bits, one of them the sign."""

_BEYOND = 2**40  # bounds grow no further: already far outside 24 bits, and safe in 64


@dataclass(frozen=True)
class Bounds:
    """Largest magnitudes that any input can cause in a stage.

    Attributes:
        entering: port -> [its size], a token's sum (or one step's current) with the bias.
        inside: what else has to fit 24 bits, by name, each [*].
        sent: [N], of a value; of a train the largest spike.
        between: the largest number of all that is multiplied before it is stored.
        harmless: whether a membrane may be clipped and still spikes as if it weren't.
        limited: whether clipping by rule is part of the stage.
    """

    entering: Mapping[str, Ints]
    inside: Mapping[str, Ints]
    sent: Ints
    between: int = 0
    harmless: bool = False
    limited: bool = False
    levels: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def bounds(graph: IntegerGraph, stage: Stage, senders: Mapping[str, Ints]) -> Bounds:
    """The bounds of one stage.

    Args:
        senders: sender -> [M], largest magnitude of what it sends; see `all_bounds`.
    """
    if stage.loops:
        senders = {**senders, stage.name: np.full(stage.neurons, stage.number("most"))}
    entering = {
        port: _entering(graph, stage, port, senders) + np.abs(bias) for port, bias in stage.bias.items()
    }
    return INSIDE[stage.kind](graph, stage, entering)


def largest_inputs(graph: IntegerGraph) -> Ints:
    """[D], of the input."""
    return np.full(graph.size(INPUT), graph.input_max, dtype=np.int64)


def all_bounds(graph: IntegerGraph) -> dict[str, Bounds]:
    """Stage -> its bounds."""
    senders = {INPUT: largest_inputs(graph)}
    found = {}
    for stage in graph.stages:
        found[stage.name] = bounds(graph, stage, senders)
        senders[stage.name] = found[stage.name].sent
    return found


def _entering(graph: IntegerGraph, stage: Stage, port: str, senders: Mapping[str, Ints]) -> Ints:
    total = np.zeros(len(stage.bias[port]), dtype=np.int64)
    for synapse in stage.synapses:
        if synapse.port == port:
            times = min(ARRIVING[synapse.arrival](graph.steps), _BEYOND)
            reached = reach_bound(synapse, senders[synapse.source])
            total = total + np.minimum(reached, _BEYOND // times) * times
    return np.minimum(total, _BEYOND)


def reach_bound(synapse: Synapse, sent: Ints) -> Ints:
    """Largest magnitude [N] that values or spikes of magnitudes `sent` [M] bring at once."""
    magnitude = np.abs(synapse.weight)
    if synapse.form == "each":
        assert synapse.right is not None
        return toward_zero(sent * magnitude, synapse.right)
    if synapse.form == "conv":
        assert synapse.conv is not None
        return convolve(sent[None], magnitude, synapse.conv)[0] << synapse.shift
    return (magnitude.astype(np.float64) @ sent.astype(np.float64)).astype(np.int64) << synapse.shift


# ---- kinds -------------------------------------------------------------------------------------------


def _atmn(graph: IntegerGraph, stage: Stage, entering: dict[str, Ints]) -> Bounds:
    fire, amplitude, decay = (stage.arrays[name] for name in ("fire", "amplitude", "decay"))
    membrane = h = entering["in"]
    for _ in range(graph.steps - 1):
        # |u| is below fire without a spike, else |h| - amplitude, or amplitude - fire below zero.
        u = np.maximum(np.minimum(h, fire - 1), h - amplitude)
        u = np.maximum(u, amplitude - fire)
        h = np.minimum((u * decay) >> DECAY_BITS, _BEYOND)
        membrane = np.maximum(membrane, h)
    # A membrane that doubles may be clipped: at M = 2^23 - 1 >= 2 amplitude, fire it leaves at least M after
    # each spike and doubling, so like one that is not clipped it fires with its sign to the end.
    doubles = int(decay) == 2 * UNITY
    inside = {"twice the amplitude": 2 * amplitude} if doubles else {"membrane": membrane}
    harmless = doubles and int(membrane.max(initial=0)) > STATE_MAX
    return Bounds(entering, inside, np.ones_like(fire), harmless=harmless, levels=np.maximum(fire, amplitude))


def _count(graph: IntegerGraph, stage: Stage, entering: dict[str, Ints]) -> Bounds:
    reachable = stage.arrays["levels"] <= entering["in"][:, None]
    together = (reachable * stage.arrays["worth"]).sum(1)
    return Bounds(entering, {"levels together": together}, np.minimum(together, STATE_MAX))


def _lif(graph: IntegerGraph, stage: Stage, entering: dict[str, Ints]) -> Bounds:
    of, most = stage.arrays, stage.number("most")
    lasting = graph.steps * graph.together(stage.carry)
    current = _series(entering["in"], of["current_decay"], lasting)
    # An inhibited membrane never resets, and sums a geometric series of currents; a spike leaves a membrane
    # no further below zero than its amplitude is above its level.
    undershoot = np.maximum(of["amplitude"] - of["fire"], 0)
    membrane = np.minimum(_series(current, of["decay"], lasting) + undershoot, _BEYOND)
    adapted = _series(most * of["adaptation"], of["adaptation_decay"], lasting)
    levels = of["fire"] + adapted + (most - 1) * of["amplitude"]
    inside = {"current": current, "membrane": membrane, "adaptation": adapted}
    return Bounds(entering, inside, np.full_like(of["fire"], most), levels=levels)


def _series(term: Ints, decay: Ints, lasting: int) -> Ints:
    """The sum of terms of one size, each decayed at every step, over `lasting` steps."""
    flat = np.minimum(term, _BEYOND) * min(lasting, 2**22)
    fading = np.minimum(term, _BEYOND) * UNITY // np.maximum(UNITY - decay, 1) + 1
    fading = np.where(decay == 0, term, fading)
    return np.minimum(np.where(decay >= UNITY, flat, np.minimum(flat, fading)), _BEYOND)


def _sum(graph: IntegerGraph, stage: Stage, entering: dict[str, Ints]) -> Bounds:
    (only,) = entering.values()
    return Bounds(entering, {}, np.minimum(only, STATE_MAX))


def _gate(graph: IntegerGraph, stage: Stage, entering: dict[str, Ints]) -> Bounds:
    """The share of the table's largest entry, and both sums at their worst at once."""
    of = stage.arrays
    g, u = (np.minimum(entering[port], STATE_MAX) for port in ("argument", "factor"))
    exact = g * int(of["table"].max()) * u
    y = toward_zero(exact, of["product_shift"])
    return Bounds(
        entering, {"product": y}, np.minimum(y, STATE_MAX),
        max(int(exact.max(initial=0)), int((g * of["multiplier"]).max(initial=0))),
    )  # fmt: skip


def _norm(graph: IntegerGraph, stage: Stage, entering: dict[str, Ints]) -> Bounds:
    """x^2 is at most N times the mean square, which is rounded up, and the root is short of it by 1 in 256 at
    most."""
    N = stage.neurons
    x = entering["in"] * (2 if stage.number("center") else 1)
    y = int(np.ceil(np.sqrt(N) * 2**NORM_BITS * 256 / 255)) + np.abs(stage.arrays["offset"])
    most = int(np.minimum(x, STATE_MAX).max(initial=0))
    between = max(N * most**2, ((most**2 + int(stage.arrays["epsilon"])) << 16), most << (NORM_BITS + 8))
    return Bounds(entering, {"centered": x, "quotient": y}, np.minimum(y, STATE_MAX), between)


def _s4d(graph: IntegerGraph, stage: Stage, entering: dict[str, Ints]) -> Bounds:
    of, x = stage.arrays, np.minimum(entering["in"], STATE_MAX)
    turned = (np.abs(of["real"]) + np.abs(of["imaginary"])) * STATE_MAX
    enters = x[:, None] << of["enter_left"]
    read = (np.abs(of["out_real"]) + np.abs(of["out_imaginary"])) * STATE_MAX
    total = read.astype(object).sum(1) + np.abs(of["skip"]) * x
    between = max(_top(turned), _top(enters), _top(total))
    return Bounds(entering, {}, np.full(stage.neurons, STATE_MAX), between, limited=True)


def _ssd(graph: IntegerGraph, stage: Stage, entering: dict[str, Ints]) -> Bounds:
    of = stage.arrays
    raw = np.concatenate([np.minimum(entering[port], STATE_MAX) for port in ("values", "keys", "queries")])
    mixed = (np.abs(of["taps"]).astype(object) * raw).sum(0) + np.abs(of["tap_bias"])
    argument = np.minimum(entering["forgetting"], STATE_MAX).astype(object) * of["multiplier"]
    product = NARROW_MAX**2 << (SHARE_BITS if stage.number("scaled") else 0)
    enters = product * 2 ** int(of["enter_left"].max())
    turning = 2 ** (TURN_BITS + 1) if len(of["cosine"]) else 1
    fading = STATE_MAX * int(of["table"].max()) * turning
    state_size = len(stage.bias["keys"]) // stage.number("groups")
    read = STATE_MAX * NARROW_MAX * state_size + _top(np.abs(of["skip"])) * NARROW_MAX
    between = max(_top(mixed), _top(argument), enters, fading, read)
    return Bounds(entering, {}, np.full(stage.neurons, STATE_MAX), between, limited=True)


def _top(numbers: NDArray[Any]) -> int:
    return int(numbers.max()) if numbers.size else 0


INSIDE: dict[str, Callable[[IntegerGraph, Stage, dict[str, Ints]], Bounds]] = {
    "atmn": _atmn, "count": _count, "lif": _lif, "sum": _sum, "gate": _gate, "norm": _norm, "s4d": _s4d,
    "ssd": _ssd,
}  # fmt: skip


# ---- the certificate ---------------------------------------------------------------------------------


def excess(stage: Stage, found: Bounds) -> dict[str, NDArray[np.float64]]:
    """By what factor the worst case exceeds 24 bits, port -> [its size]; up to 1 is safe.

    What is inside a stage counts for all its ports.
    """
    N = stage.neurons
    worst = np.zeros(N, dtype=np.int64)
    for each in (*found.inside.values(), found.levels):
        if each.size == N:
            worst = np.maximum(worst, each)
    result = {}
    for port, entering in found.entering.items():
        own = np.maximum(entering, worst) if len(entering) == N else entering
        result[port] = own / STATE_MAX
    return result


def certify(graph: IntegerGraph) -> dict[str, Any]:
    """The certificate of a graph, JSON-ready; `safe` says whether it holds."""
    rows = [_row(stage, each) for stage, each in zip(graph.stages, all_bounds(graph).values(), strict=True)]
    return {
        "claim": "no accumulator, membrane or value can overflow 24 bits, whatever arrives; weights are 8 "
        "bit and inputs as wide as input_max. Stages that are limited clip their states to 24 bits by rule",
        "safe": all(row["safe"] for row in rows),
        "state_max": STATE_MAX,
        "input_max": graph.input_max,
        "stages": rows,
    }


def _row(stage: Stage, found: Bounds) -> dict[str, Any]:
    """One row: the bounds, whether anything can saturate, and what the weights keep.

    `saturation` is "impossible", "harmless" (see `_atmn`), "limited" or "possible". `weight_bits` counts the
    bits of the largest weight of the coarsest neuron that has any weight, its sign included; 0 without any.
    """
    fits = all(bool((each <= 1).all()) for each in excess(stage, found).values())
    safe = fits and found.between <= WIDEST
    kind = "limited" if found.limited else "harmless" if found.harmless else "impossible"
    return {
        "name": stage.name,
        "arrivals": {synapse.name: synapse.arrival for synapse in stage.synapses},
        "weight_bits": min(
            (weight_bits(synapse) for synapse in stage.synapses if synapse.form != "each"), default=0
        ),
        "accumulator_bound": max((_top(each) for each in found.entering.values()), default=0),
        "inside": {name: _top(each) for name, each in found.inside.items()},
        "between": min(found.between, 2**63 - 1),
        "saturation": kind if safe else "possible",
        "safe": safe,
    }


def weight_bits(synapse: Synapse) -> int:
    """Bits of the largest weight of the coarsest row that has any, the sign included."""
    largest = np.abs(synapse.weight).reshape(len(synapse.weight), -1).max(axis=1, initial=0)
    coarsest = int(largest[largest > 0].min()) if largest.any() else 0
    return coarsest.bit_length() + 1 if synapse.weight.size else 0
