"""Every case that the integer model, plain integers and Lava have to agree on."""

from __future__ import annotations

from functools import cache

from tests.hardware.boundaries import (
    accumulator_case,
    atmn_boundary_case,
    conv_case,
    delay_case,
    each_boundary_case,
    gate_boundary_case,
    levels_case,
    lif_boundary_case,
    loop_case,
    norm_boundary_case,
    s4d_boundary_case,
    ssd_boundary_cases,
    threshold_case,
)
from tests.hardware.case import Case
from tests.hardware.random_graphs import random_case


@cache
def directed_cases() -> tuple[Case, ...]:
    return (
        *(atmn_boundary_case(steps) for steps in (1, 4, 8)),
        lif_boundary_case(), loop_case(), threshold_case(), levels_case(),
        *(gate_boundary_case(steps) for steps in (1, 4)),
        norm_boundary_case(), each_boundary_case(), accumulator_case(),
        *(conv_case(rank) for rank in (1, 2)),
        s4d_boundary_case(), *ssd_boundary_cases(),
        *(delay_case(T) for T in (1, 2, 5)),
    )  # fmt: skip


@cache
def random_cases() -> tuple[Case, ...]:
    return tuple(random_case(seed) for seed in range(48))


@cache
def large_cases() -> tuple[Case, ...]:
    return tuple(random_case(100 + seed, large=True) for seed in range(10))


def all_cases() -> list[Case]:
    """Every case that Lava is asked about."""
    return [*directed_cases(), *random_cases(), *large_cases()]


def gate_cases() -> list[Case]:
    """Those with a gate."""
    return [case for case in all_cases() if any(stage.kind == "gate" for stage in case.graph.stages)]
