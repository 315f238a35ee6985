"""The verb `bench`: one benchmark each, a table for people and JSON for machines and for benchmarks/."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from marsnn.cli.options import Device, Json, Seed, numbers, print_json

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure accuracy, speed and memory, beside others and beside a limit. All take --save, --seed and "
    "--json.",
    epilog="Example:  marsnn bench neurons --save benchmarks/neurons.json",
)

Save = Annotated[Path | None, typer.Option(help="write the result to this .json")]


class Form(StrEnum):
    """How an image becomes tokens."""

    flat = "flat"
    rows = "rows"


@bench.command(epilog="Example:  marsnn bench digits --form rows --save benchmarks/digits-rows.json")
def digits(
    form: Annotated[Form, typer.Option(help="flat images or rows as a sequence")] = Form.flat,
    seeds: Annotated[int, typer.Option(help="trainings per model after tuning", min=1)] = 5,
    epochs: Annotated[int, typer.Option(help="passes over the training data", min=1)] = 40,
    save: Save = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Accuracy of ATMN, LIF, a dense net and an SVM, equally tuned."""
    from marsnn.bench import digits as benchmark

    _measure(
        lambda: benchmark.run(form.value, seeds=range(seed, seed + seeds), epochs=epochs),
        benchmark.table,
        save,
        as_json,
    )


@bench.command(epilog="Example:  marsnn bench neurons --save benchmarks/neurons.json")
def neurons(
    device: Annotated[
        Device | None, typer.Option(help="cpu or cuda; without it the cpu, and a GPU too where there is one")
    ] = None,
    rounds: Annotated[int, typer.Option(help="how often all run, one after the other", min=3)] = 40,
    quick: Annotated[bool, typer.Option("--quick", help="small: whether it works, not how fast")] = False,
    save: Save = None,
    plot: Annotated[Path | None, typer.Option(help="draw it to this .png")] = None,
    seed: Annotated[int, typer.Option(help="accepted for uniformity: the currents are fixed")] = 0,
    as_json: Json = False,
) -> None:
    """Speed and memory of every neuron, beside other libraries and a memory copy."""
    from marsnn.bench import neurons as benchmark
    from marsnn.files import probe

    if plot:
        probe(plot)
    where = device.value if device else None
    result = _measure(lambda: benchmark.run(quick, where, rounds), benchmark.markdown, save, as_json)
    if plot:
        from marsnn.plots.files import save_figure
        from marsnn.plots.speed import speed_panels

        save_figure(speed_panels(result), plot)


@bench.command(epilog="Example:  marsnn bench ssm --save benchmarks/ssm.json")
def ssm(
    rounds: Annotated[int, typer.Option(help="how often all run, one after the other", min=3)] = 15,
    quick: Annotated[bool, typer.Option("--quick", help="small: whether it works, not how fast")] = False,
    save: Save = None,
    plot: Annotated[Path | None, typer.Option(help="draw it to this .png")] = None,
    seed: Annotated[int, typer.Option(help="accepted for uniformity: the inputs are fixed")] = 0,
    as_json: Json = False,
) -> None:
    """Speed and memory of a state space mixer over L, beside Mamba-2, attention and its GEMMs."""
    from marsnn.bench import ssm as benchmark
    from marsnn.files import probe

    if plot:
        probe(plot)
    result = _measure(lambda: benchmark.run(quick, rounds), benchmark.markdown, save, as_json)
    if plot:
        from marsnn.plots.files import save_figure
        from marsnn.plots.lengths import length_panels

        save_figure(length_panels(result), plot)


@bench.command(epilog="Example:  marsnn bench memory --task digits --seeds 3 --save benchmarks/memory.json")
def memory(
    task: Annotated[
        list[str] | None,
        typer.Option(help="copying, induction, digits or text, may be repeated; without: all"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="trainings per network", min=1)] = 1,
    updates: Annotated[int | None, typer.Option(help="instead of each task's own number", min=1)] = None,
    workers: Annotated[int, typer.Option(help="processes at a time", min=1)] = 2,
    save: Save = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Tasks that need memory: a state space net, spiking ones, an LSTM."""
    from marsnn.bench import memory as benchmark

    chosen = task or list(benchmark.TASKS)
    _measure(
        lambda: benchmark.run(chosen, range(seed, seed + seeds), updates, workers),
        benchmark.markdown,
        save,
        as_json,
    )


@bench.command(
    epilog="Example:  marsnn bench generation --contexts 256,4096 --save benchmarks/generation.json"
)
def generation(
    contexts: Annotated[
        str, typer.Option(help="tokens in front of those that are timed, by commas")
    ] = "256,1024,4096,8176",
    keep: Annotated[float, typer.Option(help="share of activations kept in sparse feed-forward nets")] = 0.4,
    rounds: Annotated[int, typer.Option(help="how often all run, one after the other", min=1)] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="small: whether it works, not how fast")] = False,
    save: Save = None,
    seed: Annotated[int, typer.Option(help="accepted for uniformity: the prompts are fixed")] = 0,
    as_json: Json = False,
) -> None:
    """Tokens per second of models of SmolLM2-135M's shape: dense, int8 and refined."""
    from marsnn.bench import generation as benchmark

    lengths = numbers("--contexts", contexts)
    shape = benchmark.SMALL if quick else benchmark.SMOLLM2_135M
    _measure(
        lambda: benchmark.run(benchmark.contestants(shape, keep), lengths, rounds=rounds),
        benchmark.markdown,
        save,
        as_json,
    )


@bench.command(
    epilog="Example:  marsnn bench distillation --teacher teacher --work ablations --save "
    "benchmarks/distillation.json"
)
def distillation(
    teacher: Annotated[Path, typer.Option(help="folder of a model, say of marsnn pretrain")],
    work: Annotated[Path, typer.Option(help="folder for what all arms begin with, and for finished cells")],
    table: Annotated[
        list[str] | None,
        typer.Option(help="ladder, weights, features, code, sites or turns, may be repeated; without: all"),
    ] = None,
    steps: Annotated[int, typer.Option(help="T of all tables but code", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="trainings of each arm after tuning", min=1)] = 3,
    updates: Annotated[int, typer.Option(help="of a training; tuning takes a third as many", min=3)] = 100,
    batch: Annotated[int, typer.Option(help="sequences an update", min=1)] = 4,
    length: Annotated[int, typer.Option(help="tokens of a sequence", min=8)] = 256,
    tokens: Annotated[int, typer.Option(help="of each text that is measured on", min=64)] = 4096,
    workers: Annotated[int, typer.Option(help="processes at a time, one thread each", min=1)] = 2,
    save: Save = None,
    seed: Annotated[int, typer.Option(help="accepted for uniformity: seeds are 0, 1, 2, ...")] = 0,
    as_json: Json = False,
) -> None:
    """The ablations of the paper in form, on a small teacher; an interrupted run goes on."""
    from marsnn.bench import distillation as benchmark

    config = benchmark.DistillationConfig(
        tuple(table or benchmark.TABLES),
        steps,
        seeds,
        updates,
        batch,
        length,
        tokens=tokens,
        workers=workers,
    )
    _measure(lambda: benchmark.run(teacher, work, config), benchmark.markdown, save, as_json)


@bench.command(epilog="Example:  marsnn bench step --save benchmarks/step.json")
def step(
    model: Annotated[
        str | None, typer.Option(help="folder of a model; without it random weights of a small one")
    ] = None,
    batch: Annotated[int, typer.Option(help="sequences an update", min=1)] = 4,
    length: Annotated[int, typer.Option(help="tokens of a sequence", min=8)] = 256,
    rounds: Annotated[int, typer.Option(help="how often all run, one after the other", min=1)] = 10,
    save: Save = None,
    seed: Annotated[int, typer.Option(help="accepted for uniformity: tokens are fixed")] = 0,
    as_json: Json = False,
) -> None:
    """Seconds of an update by SBDS, beside a plain distillation of the same student."""
    from marsnn.bench import step as benchmark

    _measure(lambda: benchmark.run(model, batch, length, rounds=rounds), benchmark.markdown, save, as_json)


@bench.command(
    epilog="Example:  marsnn bench models --model teacher --work models-work --save benchmarks/models.json"
)
def models(
    model: Annotated[Path, typer.Option(help="folder of a dense language model, which teaches the others")],
    work: Annotated[Path, typer.Option(help="folder for the rows; those that are finished are kept")],
    budget: Annotated[
        str, typer.Option(help="attentions that become state space layers: a number, half, 25%, energy=0.6")
    ] = "half",
    keep: Annotated[float, typer.Option(help="mean share of activations in sparse feed-forward nets")] = 0.4,
    steps: Annotated[int, typer.Option(help="micro-steps T of ATMN")] = 4,
    pruned: Annotated[float, typer.Option(help="share of the layers' weights that pruning keeps")] = 0.75,
    lora: Annotated[int, typer.Option(help="rank of LoRA")] = 8,
    text: Annotated[str, typer.Option(help="learnt on: docstrings, or a text file")] = "docstrings",
    updates: Annotated[int, typer.Option(help="of each row that learns")] = 300,
    length: Annotated[int, typer.Option(help="tokens of a sequence")] = 256,
    batch: Annotated[int, typer.Option(help="sequences an update")] = 4,
    learning_rate: Annotated[float, typer.Option(help="peak rate where all weights learn")] = 1e-3,
    lora_learning_rate: Annotated[float, typer.Option(help="peak rate where LoRA does")] = 1e-3,
    features: Annotated[str, typer.Option(help="that SBDS compares in MAR: pre, post, both or none")] = "pre",
    align_updates: Annotated[int, typer.Option(help="of each state space layer by itself, beforehand")] = 600,
    align_length: Annotated[int, typer.Option(help="tokens of a sequence there")] = 1024,
    align_sequences: Annotated[int, typer.Option(help="sequences there")] = 60,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            help="what is measured on: library, topics, stdlib, or a file; repeatable", show_default=False
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="of each held-out text")] = 8192,
    context: Annotated[int, typer.Option(help="tokens of a window of it")] = 1024,
    contexts: Annotated[
        str, typer.Option(help="tokens before the one whose energy and speed are told, by commas")
    ] = "256,1024",
    rounds: Annotated[int, typer.Option(help="of the speed measurement, all rows in each")] = 5,
    save: Save = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Dense, pruned, quantized, refined: quality, energy and speed; the same again goes on after a kill."""
    from marsnn.bench import models as benchmark

    texts = {"texts": tuple(held_out)} if held_out else {}
    config = benchmark.ModelsConfig(
        budget=budget, keep=keep, steps=steps, pruned=pruned, lora=lora, text=text, updates=updates,
        length=length, batch=batch, learning_rate=learning_rate, lora_learning_rate=lora_learning_rate,
        features=features, align_updates=align_updates, align_length=align_length,
        align_sequences=align_sequences, tokens=tokens, context=context,
        contexts=numbers("--contexts", contexts), rounds=rounds, seed=seed, **texts,
    )  # fmt: skip
    _measure(lambda: benchmark.run(model, work, config, progress=True), benchmark.markdown, save, as_json)


@bench.command(epilog="Example:  marsnn bench hardware --only speed --save benchmarks/hardware.json")
def hardware(
    only: Annotated[
        list[str] | None,
        typer.Option(help="speed, export, digits or parity, may be repeated; without: all"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="of speed, all simulators in each", min=1)] = 5,
    seeds: Annotated[int, typer.Option(help="trainings of each network on digits", min=1)] = 3,
    networks: Annotated[int, typer.Option(help="random ones that are compared with Lava", min=1)] = 40,
    quick: Annotated[
        bool, typer.Option("--quick", help="tiny: whether it works, not how good it is")
    ] = False,
    save: Save = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Integers of an export: simulation beside Lava's, cost of export, accuracy at few bits, parity."""
    from marsnn.bench import hardware as benchmark

    config = benchmark.HardwareConfig(rounds=rounds, seeds=seeds, networks=networks)
    chosen = tuple(only or benchmark.PARTS)
    _measure(lambda: benchmark.run(chosen, config, quick, seed), benchmark.markdown, save, as_json)


def _measure(
    run: Callable[[], dict[str, Any]], text: Callable[[dict[str, Any]], str], save: Path | None, as_json: bool
) -> dict[str, Any]:
    from marsnn.files import json_text, probe, write_text

    if save:
        probe(save)
    result = run()
    if save:
        write_text(save, json_text(result))
    if as_json:
        print_json(result)
    else:
        print(text(result))
    return result
