"""Cutting a population into parts, one a core: boxes along the axes of its shape, as few as the limits allow.

What a part takes of its core:

    neurons        one place for each accumulator: a gate's neuron has two, ssd's keys and queries have theirs
    memory         1 byte a dense weight; a kernel once, of the channels that lie here; 3 bytes a synapse
                   to one neuron; a table, constants by their width and 3 bytes a state, but for atmn, lif
                   and sum, whose numbers lie in a neuron's own place; 1 byte a relay
    input axons    one for each neuron and rail that is heard here, however many synapses it has here
    output axons   one for each of its neurons, rail and core where that is heard
    delayed axons  of the input axons, those that wait

What several parts need lies on each: a kernel, a table, the keys and queries that heads share. The parts of
a norm tell each other their partial sums, in two messages a sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise, product
from math import prod

import numpy as np
from numpy.typing import NDArray

from marsnn.hardware.chip import Chip
from marsnn.hardware.populations import Population, Sender
from marsnn.hardware.stages import KINDS, Convolution, Ints, Stage, Synapse

Mask = NDArray[np.bool_]
Box = tuple[tuple[int, int], ...]
"""Of each axis, the first index and the one behind the last."""

MULTIPLIER_BYTES = 3
STATE_BYTES = 3
MESSAGES_PER_SUM = 2
IN_PLACE = ("atmn", "lif", "sum")
"""Kinds whose constants and state are those of a neuron's own place."""


@dataclass(frozen=True)
class Use:
    """What a part takes of its core, in the order of the limits."""

    neurons: int
    synapse_bytes: int
    input_axons: int
    output_axons: int = 0
    delayed_axons: int = 0

    def shares(self, chip: Chip) -> dict[str, float]:
        """Of each limit, the share in use."""
        return {name: getattr(self, name) / limit for name, limit in limits_of(chip).items()}


def limits_of(chip: Chip) -> dict[str, int]:
    """What a core holds, by the fields of Use."""
    return {
        "neurons": chip.neurons_per_core,
        "synapse_bytes": chip.synapse_bytes_per_core,
        "input_axons": chip.input_axons_per_core,
        "output_axons": chip.output_axons_per_core,
    }


# ---- boxes ------------------------------------------------------------------------------------------


def edges(size: int, parts: int, unit: int) -> list[int]:
    """Cuts of an axis into parts that differ by one neuron, or by one unit where there are enough units."""
    units = size // unit
    if parts <= units:
        return [units * k // parts * unit for k in range(parts + 1)]
    return [size * k // parts for k in range(parts + 1)]


def boxes(population: Population, cuts: Sequence[int]) -> list[Box]:
    """All boxes, the last axis changing first."""
    along = []
    for size, parts in zip(population.shape, cuts, strict=True):
        cut = edges(size, parts, population.unit)
        along.append(list(pairwise(cut)))
    return list(product(*along))


def size_of(box: Box) -> int:
    """Neurons of a box."""
    return prod(stop - start for start, stop in box)


def grids(shape: Sequence[int], parts: int) -> Iterator[tuple[int, ...]]:
    """Ways to write a number of parts as one of cuts along each axis."""
    if len(shape) == 1:
        if parts <= shape[0]:
            yield (parts,)
        return
    for first in range(1, min(parts, shape[0]) + 1):
        if parts % first == 0:
            for rest in grids(shape[1:], parts // first):
                yield (first, *rest)


def owners(population: Population, parts: Sequence[Box]) -> Ints:
    """Part of each neuron [N]."""
    owner = np.zeros(population.shape, dtype=np.int64)
    for number, box in enumerate(parts):
        owner[tuple(slice(*each) for each in box)] = number
    return owner.reshape(-1)


# ---- what a part hears ------------------------------------------------------------------------------


def heard(population: Population, sender: Sender, box: Box) -> Mask:
    """Which neurons of a sender a part hears [M]."""
    if not sender.synapses:
        return _inside(population, box)
    return reduce(np.logical_or, (_heard_by(population, synapse, sender, box) for synapse in sender.synapses))


def _heard_by(population: Population, synapse: Synapse, sender: Sender, box: Box) -> Mask:
    if synapse.form == "conv" and synapse.conv is not None and synapse.conv.target == population.shape:
        touched = image_heard(synapse.conv, synapse.weight.shape, box)
        return reduce(np.logical_and.outer, touched).reshape(-1)
    if synapse.form == "each":
        mask = np.zeros(sender.neurons, dtype=bool)
        assert population.stage is not None
        if KINDS[population.kind].ports[synapse.port] == "N":
            return _inside(population, box)
        mask[slice(*rows_of(population.stage, synapse.port, box))] = True
        return mask
    return np.ones(sender.neurons, dtype=bool)


def _inside(population: Population, box: Box) -> Mask:
    mask = np.zeros(population.shape, dtype=bool)
    mask[tuple(slice(*each) for each in box)] = True
    return mask.reshape(-1)


def image_heard(conv: Convolution, kernel: Sequence[int], box: Box) -> list[Mask]:
    """Of the channels and each axis of the source image, what the kernel meets from a box of the target."""
    (first, last), *image = box
    in_group, out_group = conv.source[0] // conv.groups, conv.target[0] // conv.groups
    channels = np.zeros(conv.source[0], dtype=bool)
    channels[first // out_group * in_group : ((last - 1) // out_group + 1) * in_group] = True
    masks = [channels]
    for axis, (start, stop) in enumerate(image):
        at = np.arange(start, stop)[:, None] * conv.stride[axis] - conv.padding[axis]
        at = (at + conv.dilation[axis] * np.arange(kernel[2 + axis])).reshape(-1)
        mask = np.zeros(conv.source[1 + axis], dtype=bool)
        mask[at[(at >= 0) & (at < len(mask))]] = True
        masks.append(mask)
    return masks


def hearers(population: Population, sender: Sender, parts: Sequence[Box]) -> Ints:
    """Parts that hear each neuron of a sender [M]."""
    if any(synapse.form == "dense" for synapse in sender.synapses):
        return np.full(sender.neurons, len(parts), dtype=np.int64)
    counted = np.zeros(sender.neurons, dtype=np.int64)
    for box in parts:
        counted += heard(population, sender, box)
    return counted


def returning(population: Population, parts: Sequence[Box]) -> Ints:
    """Output axons of each neuron [N] to the parts of its own population, where that hears itself."""
    counted = np.zeros(population.neurons, dtype=np.int64)
    for sender in population.senders:
        if sender.name == population.name:
            counted += hearers(population, sender, parts)
    return counted * population.rails


def axons_of(population: Population, sender: Sender, box: Box) -> int:
    """Input axons of a part from one sender."""
    forms = [synapse.form for synapse in sender.synapses]
    if "dense" in forms:
        return sender.neurons * sender.rails
    if forms == ["conv"]:
        (synapse,) = sender.synapses
        assert synapse.conv is not None
        if synapse.conv.target == population.shape:
            masks = image_heard(synapse.conv, synapse.weight.shape, box)
            return prod(int(mask.sum()) for mask in masks) * sender.rails
    return int(heard(population, sender, box).sum()) * sender.rails


# ---- what a part needs ------------------------------------------------------------------------------


def rows_of(stage: Stage, port: str, box: Box) -> tuple[int, int]:
    """Of a port, the accumulators that a part of a flat stage needs: from, to."""
    axis = KINDS[stage.kind].ports[port]
    (start, stop) = box[0]
    if axis == "N":
        return start, stop
    heads = int(stage.bias["forgetting"].size)
    per_head = stage.neurons // heads
    first, last = start // per_head, (stop - 1) // per_head + 1
    if axis == "H":
        return first, last
    heads_a_group = heads // stage.number("groups")
    width = int(stage.bias[port].size) // stage.number("groups")
    return first // heads_a_group * width, ((last - 1) // heads_a_group + 1) * width


def port_rows(stage: Stage, box: Box) -> dict[str, int]:
    """Accumulators of each port on a part."""
    found = {}
    for port, axis in KINDS[stage.kind].ports.items():
        if axis == "N":
            found[port] = size_of(box)
        else:
            start, stop = rows_of(stage, port, box)
            found[port] = stop - start
    return found


def use_of(population: Population, box: Box, chip: Chip, parts: int) -> Use:
    """What a part takes, but for its output axons; `parts` is how many there are."""
    places, memory = size_of(box), size_of(box)  # a relay's
    if population.stage is not None:
        rows = port_rows(population.stage, box)
        places = sum(rows.values())
        memory = _constants(population.stage, box, rows) + _states(population.stage, rows)
    axons = delayed = 0
    for sender in population.senders:
        own = axons_of(population, sender, box)
        axons += own
        delayed += own if sender.waits else 0
        rails = 1 if chip.rails_share_weights else sender.rails
        memory += rails * sum(_synapse_bytes(population, synapse, box) for synapse in sender.synapses)
    axons += norm_messages(population) * (parts - 1)
    return Use(places, memory, axons, delayed_axons=delayed)


def norm_messages(population: Population) -> int:
    """Messages that a part of a norm sends each other part, a token: of the squares, of the mean."""
    if population.kind != "norm" or population.stage is None:
        return 0
    return MESSAGES_PER_SUM * (1 + population.stage.number("center"))


def _synapse_bytes(population: Population, synapse: Synapse, box: Box) -> int:
    stage = population.stage
    assert stage is not None
    if synapse.form == "conv":
        channels = box[0][1] - box[0][0] if len(box) > 1 else len(synapse.weight)
        return channels * prod(synapse.weight.shape[1:])
    rows = port_rows(stage, box)[synapse.port]
    return rows * (MULTIPLIER_BYTES if synapse.form == "each" else synapse.weight.shape[1])


def _constants(stage: Stage, box: Box, rows: dict[str, int]) -> int:
    if stage.kind in IN_PLACE:
        return 0
    here = {"N": size_of(box)}
    if stage.kind == "ssd":
        here |= {"H": rows["forgetting"], "C": rows["values"] + rows["keys"] + rows["queries"]}
    total = 0
    for name, array in KINDS[stage.kind].arrays.items():
        bits = max(array.most, -array.least - 1).bit_length() + (array.least < 0)
        axes = zip(array.axes.split(), stage.arrays[name].shape, strict=True)
        total += -(-bits // 8) * prod(here.get(axis, size) for axis, size in axes)
    return total


def _states(stage: Stage, rows: dict[str, int]) -> int:
    """Of state space layers: the states, and what the causal convolution remembers."""
    if stage.kind == "s4d":
        return 2 * STATE_BYTES * rows["in"] * stage.arrays["real"].shape[1]
    if stage.kind == "ssd":
        width = int(stage.bias["keys"].size) // stage.number("groups")
        channels = rows["values"] + rows["keys"] + rows["queries"]
        return STATE_BYTES * (rows["values"] * width + (len(stage.arrays["taps"]) - 1) * channels)
    return 0


# ---- cutting ----------------------------------------------------------------------------------------


def cut(population: Population, fan: Ints, chip: Chip) -> tuple[list[Box], str]:
    """The fewest parts that keep the limits; of as many, those that hear the least.

    Args:
        population: what to cut.   fan: output axons of each neuron [N], to others.   chip: the limits.

    Returns:
        The parts and "", or none and why one neuron alone is too much.
    """
    refusal = _alone(population, fan, chip)
    if refusal:
        return [], refusal
    parts = _fewest(population, fan, chip)
    while True:
        best: tuple[int, list[Box]] | None = None
        for grid in grids(population.shape, parts):
            found = boxes(population, grid)
            axons = _fits(population, found, fan, chip)
            if axons is not None and (best is None or axons < best[0]):
                best = (axons, found)
        if best is not None:
            return best[1], ""
        if parts >= population.neurons:
            return (
                [],
                f"{population.name}: its parts tell each other more than {chip.name} takes; make it smaller",
            )
        # Beyond the chip the number matters less than the time to find it.
        parts = min(parts + max(1, (parts - chip.cores) // 8), population.neurons)


def outgoing(population: Population, parts: Sequence[Box], fan: Ints) -> list[int]:
    """Output axons of each part."""
    return [int(each) for each in np.bincount(owners(population, parts), fan, len(parts))]


def _alone(population: Population, fan: Ints, chip: Chip) -> str:
    """Why one neuron is too much for a core, or ""."""
    box: Box = tuple((size // 2, size // 2 + 1) for size in population.shape)
    use = use_of(population, box, chip, 1)
    name, limits = population.name, limits_of(chip)
    synapses = [synapse.name for sender in population.senders for synapse in sender.synapses]
    label = synapses[0] if len(synapses) == 1 else name
    if use.input_axons > limits["input_axons"]:
        times = -(-use.input_axons // limits["input_axons"])
        rails = max((sender.rails for sender in population.senders), default=1)
        signs = f" ({rails} for each ternary sender)" if rails > 1 else ""
        return (
            f"{label}: {use.input_axons:,} input axons{signs}, a core takes {limits['input_axons']:,}: "
            f"split its inputs in {times}"
        )
    if use.synapse_bytes > limits["synapse_bytes"]:
        return (
            f"{label}: {use.synapse_bytes:,} bytes for one neuron, a core takes {limits['synapse_bytes']:,}: "
            f"split its inputs, or its state, in {-(-use.synapse_bytes // limits['synapse_bytes'])}"
        )
    if use.neurons > limits["neurons"]:
        return (
            f"{label}: {use.neurons:,} accumulators for one neuron, a core takes {limits['neurons']:,}: "
            f"make its keys and queries smaller"
        )
    if int(fan.max(initial=0)) > limits["output_axons"]:
        return (
            f"{name}: {int(fan.max()):,} output axons of one neuron, a core takes "
            f"{limits['output_axons']:,}: make the layers behind it smaller"
        )
    return ""


def _fewest(population: Population, fan: Ints, chip: Chip) -> int:
    """No fewer parts than this can do."""
    box: Box = tuple((0, size) for size in population.shape)
    limits = limits_of(chip)
    ports = list(KINDS[population.kind].ports.values()).count("N") if population.stage is not None else 1
    places = population.neurons * ports
    fewest = max(-(-places // limits["neurons"]), -(-int(fan.sum()) // limits["output_axons"]), 1)
    own = 0  # bytes that are divided among the parts
    for sender in population.senders:
        rails = 1 if chip.rails_share_weights else sender.rails
        own += rails * sum(
            _synapse_bytes(population, synapse, box)
            for synapse in sender.synapses
            if synapse.form == "dense" and KINDS[population.kind].ports[synapse.port] == "N"
        )
    return max(fewest, -(-own // limits["synapse_bytes"]))


def _fits(population: Population, parts: Sequence[Box], fan: Ints, chip: Chip) -> int | None:
    """Input axons of all parts, or None where one is beyond a limit."""
    limits = limits_of(chip)
    total = 0
    for box in parts:
        use = use_of(population, box, chip, len(parts))
        if (
            use.neurons > limits["neurons"]
            or use.synapse_bytes > limits["synapse_bytes"]
            or use.input_axons > limits["input_axons"]
        ):
            return None
        total += use.input_axons
    if max(outgoing(population, parts, fan + returning(population, parts))) > limits["output_axons"]:
        return None
    return total
