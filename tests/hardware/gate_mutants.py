"""Wrong variants of a gate's arithmetic: function of `integer` -> what stands in for it."""

import numpy as np

from marsnn.hardware import integer


def floor(x, shift):
    return x >> shift


def nearest(x, shift):
    return np.sign(x) * ((np.abs(x) + ((1 << shift) >> 1)) >> shift)


def one_bit_less(x, shift):
    return np.sign(x) * (np.abs(x) >> np.maximum(shift - 1, 0))


def next_entry(table, place):
    middle = len(table) // 2
    return table[middle + np.clip(place + 1, -middle, middle)]


def early_end(table, place):
    middle = len(table) // 2
    return table[middle + np.clip(place, 1 - middle, middle - 1)]


def around(table, place):
    return table[(len(table) // 2 + place) % len(table)]


def mirrored(table, place):
    middle = len(table) // 2
    return table[middle - np.clip(place, -middle, middle)]


def swapped(sums):
    neurons = sums.shape[1] // 2
    return sums[:, neurons:], sums[:, :neurons]


def interleaved(sums):
    return sums[:, ::2], sums[:, 1::2]


def without(*missing):
    """`multiply` without a part of it."""

    def multiply(stage, arrivals):
        gate = stage.gate
        acc, total = integer.accumulate(stage, arrivals)
        sums, clipped = (acc, 0) if "clip of the sums" in missing else integer.saturate(acc + stage.bias)
        if "bias" in missing:
            sums, clipped = integer.saturate(acc)
        g, u = integer.halves(sums)
        place = (
            g if "multiplier" in missing else integer.toward_zero(g * gate.multiplier, gate.argument_shift)
        )
        share = integer.look_up(gate.table, place)
        y, more = integer.toward_zero(g * share * u, gate.product_shift), 0
        if "clip of the product" not in missing:
            y, more = integer.saturate(y)
        if "clip that is counted" in missing:
            more = 0
        return np.where(integer.passes(y, gate.level), y, 0), total + clipped + more

    return multiply


GATE_MUTANTS = {
    "gate: rounding down": ("toward_zero", floor),
    "gate: rounding to nearest": ("toward_zero", nearest),
    "gate: a shift of one bit less": ("toward_zero", one_bit_less),
    "gate: the next entry": ("look_up", next_entry),
    "gate: a table that ends one entry early": ("look_up", early_end),
    "gate: a table that wraps": ("look_up", around),
    "gate: a mirrored table": ("look_up", mirrored),
    "gate: sums swapped": ("halves", swapped),
    "gate: sums interleaved": ("halves", interleaved),
    "gate: > for >= at the level": ("passes", lambda y, level: np.abs(y) > level),
    "gate: no level": ("passes", lambda y, level: np.full(y.shape, True)),
    "gate: a level for one sign": ("passes", lambda y, level: y >= level),
    "gate: product without clip": ("multiply", without("clip of the product")),
    "gate: clip that is not counted": ("multiply", without("clip that is counted")),
    "gate: no bias": ("multiply", without("bias")),
    "gate: no multiplier": ("multiply", without("multiplier")),
}
