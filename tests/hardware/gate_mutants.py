"""Wrong variants of a gate's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from marsnn.hardware import integer
from marsnn.hardware.arithmetic import saturate
from marsnn.hardware.stages import IntegerGraph, Stage
from tests.hardware.mutants import (
    Mutant,
    early_end,
    floor,
    inside,
    instead,
    nearest,
    next_entry,
    one_bit_less,
    table_around,
)


def mirrored(table: Any, place: Any) -> Any:
    middle = len(table) // 2
    return table[middle - np.clip(place, -middle, middle)]


def swapped(graph: IntegerGraph, stage: Stage, arrived: dict) -> Any:
    return integer.gate(graph, stage, {"argument": arrived["factor"], "factor": arrived["argument"]})


def without(*missing: str) -> Callable:
    """`gate` without a part of it."""

    def gate(graph: IntegerGraph, stage: Stage, arrived: dict) -> Any:
        of, (g, u) = stage.arrays, (arrived["argument"], arrived["factor"])
        if "bias" in missing:
            g, u = g - stage.bias["argument"], u - stage.bias["factor"]
        place = (
            g if "multiplier" in missing else integer.toward_zero(g * of["multiplier"], of["argument_shift"])
        )
        share = integer.look_up(of["table"], place)
        y, clipped = integer.toward_zero(g * share * u, of["product_shift"]), 0
        if "argument" in missing:
            y = integer.toward_zero(share * u, of["product_shift"])
        if "clip" not in missing:
            y, clipped = saturate(y)
        return np.where(integer.passes(y, of["level"]), y, 0), clipped

    return gate


GATE_MUTANTS: dict[str, Mutant] = {
    "gate: rounding down": inside("gate", "toward_zero", floor),
    "gate: rounding to nearest": inside("gate", "toward_zero", nearest),
    "gate: a shift of one bit less": inside("gate", "toward_zero", one_bit_less),
    "gate: the next entry": inside("gate", "look_up", next_entry),
    "gate: a table that ends one entry early": inside("gate", "look_up", early_end),
    "gate: a table that wraps": inside("gate", "look_up", table_around),
    "gate: a mirrored table": inside("gate", "look_up", mirrored),
    "gate: sums swapped": instead("gate", swapped),
    "gate: > for >= at the level": inside("gate", "passes", lambda y, level: np.abs(y) > level),
    "gate: no level": inside("gate", "passes", lambda y, level: np.full(y.shape, True)),
    "gate: a level for one sign": inside("gate", "passes", lambda y, level: y >= level),
    "gate: product without clip": instead("gate", without("clip")),
    "gate: no bias": instead("gate", without("bias")),
    "gate: no multiplier": instead("gate", without("multiplier")),
    "gate: the share alone": instead("gate", without("argument")),
}
