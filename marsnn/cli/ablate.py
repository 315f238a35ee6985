"""The verb `ablate`: what the user types, turned into an `AblationConfig`, and its result into text."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from marsnn.cli.options import Json, Seed, print_json

EXAMPLE = (
    "marsnn ablate --task digits --neurons ATMN,LIF --steps 1,2,4,8 --out ablation.csv --plot ablation.png"
)

Value = TypeVar("Value", int, float)


class Engine(StrEnum):
    """Who trains."""

    local = "local"
    ray = "ray"


def ablate(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="the table, .csv or .parquet; a journal to go on from beside it"),
    ],
    task: Annotated[
        str,
        typer.Option(
            help="digits, digits-rows, topics, selective-copying, or your own as file.py:function or "
            "package.module:function"
        ),
    ] = "digits",
    neurons: Annotated[
        str, typer.Option(help="registered names; the others are compared with the first")
    ] = "ATMN,LIF",
    steps: Annotated[str, typer.Option(help="values of T, the micro-steps of a token")] = "1,2,4,8",
    tau: Annotated[
        str | None,
        typer.Option(help="values of each neuron's own tau; without it tau is chosen on the validation part"),
    ] = None,
    surrogates: Annotated[
        str | None, typer.Option(help="names of marsnn.surrogate; without it each neuron's default")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="trainings of each network after tuning, paired across neurons", min=1)
    ] = 5,
    epochs: Annotated[int, typer.Option(help="passes over the training data", min=1)] = 30,
    batch_size: Annotated[int, typer.Option(help="samples per update", min=1)] = 64,
    hidden: Annotated[int, typer.Option(help="neurons in each of the two hidden layers", min=1)] = 128,
    table: Annotated[
        list[str] | None,
        typer.Option(help="a further table of energies: a shipped name or a .toml file; repeatable"),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="local: processes of this machine; ray: a Ray cluster")
    ] = Engine.local,
    workers: Annotated[int, typer.Option(help="processes at a time", min=1)] = 2,
    address: Annotated[
        str | None,
        typer.Option(help="of a Ray cluster, or auto; without it RAY_ADDRESS, or a cluster started here"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="draw accuracy against energy to this .png")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare neurons on a task: equally tuned, paired by seeds, with what each costs."""
    from marsnn.ablation import AblationConfig
    from marsnn.ablation import ablate as run
    from marsnn.energy.report import DEFAULT_TABLES
    from marsnn.files import probe

    started = time.perf_counter()
    config = AblationConfig(
        steps=listed("steps", steps, int),
        tau=None if tau is None else listed("tau", tau, float),
        surrogates=None if surrogates is None else names(surrogates),
        seeds=range(seed, seed + seeds),
        epochs=epochs,
        batch_size=batch_size,
        hidden=hidden,
        tables=tuple(dict.fromkeys([*DEFAULT_TABLES, *(table or [])])),
        engine=engine.value,  # type: ignore[arg-type]
        workers=workers,
        address=address,
    )
    if plot:
        probe(plot)
    found = run(task, names(neurons), config, out=out, progress=True)
    if plot:
        from marsnn.plots.ablation import accuracy_energy_panels
        from marsnn.plots.files import save_figure

        save_figure(accuracy_energy_panels(found.rows), plot)
    seconds = time.perf_counter() - started
    if as_json:
        return print_json(
            {**found.to_dict(), "out": str(out), "plot": str(plot) if plot else None, "seconds": seconds}
        )
    print(found.text())
    print()
    print(NOTES)
    print(f"table: {out} ({len(found.rows)} networks, {seconds:.0f} s)")
    if plot:
        print(f"plot: {plot}")


NOTES = """\
+- is the 95 % confidence interval over seeds; * marks a paired difference whose interval excludes 0, not
corrected for the number of comparisons. Energy per inference is estimated; (x): by the dense twin's."""


def names(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def listed(option: str, text: str, kind: Callable[[str], Value]) -> tuple[Value, ...]:
    """Numbers between commas."""
    from marsnn.errors import InputError

    try:
        return tuple(kind(number) for number in names(text))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"--{option} takes {what} between commas, such as 1,2,4; got {text!r}") from None
