"""The verbs for language models: refine, evaluate, generate. What they do stands in `marsnn.refine`."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marsnn.cli.options import Json, Seed, numbers, print_json

if TYPE_CHECKING:
    import torch

REFINE = "marsnn refine models/SmolLM2-135M-Instruct --budget half --out refined"
EVALUATE = "marsnn evaluate refined --against models/SmolLM2-135M-Instruct --out report"
GENERATE = 'marsnn generate refined "The capital of France is" --max-new-tokens 40'

ModelFolder = Annotated[Path, typer.Argument(help="a Hugging Face model's folder", metavar="MODEL")]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text", help="held-out text: library, topics, stdlib, or a file; repeatable", show_default=False
    ),
]
Tokens = Annotated[int, typer.Option(help="of each text that quality is measured on", min=1)]
Context = Annotated[int, typer.Option(help="tokens of a window that quality is measured in", min=2)]
Tasks = Annotated[int, typer.Option(help="samples of copy, needle, topic, continue; 0 for none", min=0)]
Contexts = Annotated[str, typer.Option(help="contexts for energy and speed, by commas")]


class Policy(StrEnum):
    """Which layers go first."""

    sensitivity = "sensitivity"
    density = "density"
    depth = "depth"
    manual = "manual"


class Mixer(StrEnum):
    """What takes attention's place."""

    ssd = "ssd"
    s4d = "s4d"


class Mode(StrEnum):
    """How feed-forward nets are sparse."""

    topk = "topk"
    threshold = "threshold"
    mask = "mask"


class Kind(StrEnum):
    """Numbers of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Dtype = Annotated[Kind, typer.Option(help="of weights and activations")]


def refine(
    model: ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the refined model and its report")],
    budget: Annotated[
        str,
        typer.Option(
            help='how many attentions go: 7, "25%", half, all, energy=0.6 (of the dense model), quality=0.05 '
            "(of its loss to give up)"
        ),
    ] = "half",
    policy: Annotated[Policy, typer.Option(help="which go first")] = Policy.sensitivity,
    layers: Annotated[str | None, typer.Option(help="of the manual policy, by commas: 3,4,7")] = None,
    mixer: Annotated[Mixer, typer.Option(help="what takes attention's place")] = Mixer.ssd,
    keep: Annotated[
        float, typer.Option(help="mean share of activations kept in feed-forward nets; 1 for all")
    ] = 0.4,
    sparsity: Annotated[Mode, typer.Option(help="how the others are left out")] = Mode.threshold,
    spikes: Annotated[
        bool, typer.Option("--spikes/--no-spikes", help="spikes before the projections")
    ] = True,
    neuron: Annotated[str, typer.Option(help="a name of marsnn.neurons")] = "ATMN",
    steps: Annotated[int, typer.Option(help="T, micro-steps of a token", min=1)] = 6,
    tau: Annotated[
        float | None, typer.Option(help="of the neuron; without it 0.5 for ATMN, the neuron's own else")
    ] = None,
    fire_at: Annotated[
        float | None, typer.Option(help="ATMN fires from this share of V; without it 0.5, 1 is the paper's")
    ] = None,
    sites: Annotated[
        str, typer.Option(help="where spikes stand, by commas")
    ] = "mixer_in,mixer_out,ffn_in,ffn_out",
    per_token: Annotated[
        bool, typer.Option("--per-token", help="scale each token before it is encoded")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="carry out this plan.json; which layers, how sparse and which spikes is then what it says"
        ),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="write the plan, to be edited, and stop")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what an interrupted run left")] = False,
    text: Annotated[str, typer.Option(help="what is learnt on: docstrings, or a text file")] = "docstrings",
    updates: Annotated[int, typer.Option(help="of each state space layer's training", min=1)] = 600,
    length: Annotated[int, typer.Option(help="tokens of a training sequence", min=2)] = 1024,
    sequences: Annotated[int, typer.Option(help="training sequences", min=1)] = 60,
    learning_rate: Annotated[float, typer.Option(help="peak rate of a layer's training")] = 3e-3,
    dtype: Dtype = Kind.float32,
    evaluated: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="measure every stage")] = True,
    tokens: Tokens = 4096,
    context: Context = 1024,
    tasks: Tasks = 8,
    contexts: Contexts = "256,1024,4096,8192",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Turn a Transformer's attentions into state space layers, make it sparse and spiking, measure it."""
    from marsnn.refine.alignment import AlignConfig
    from marsnn.refine.evaluation import EvaluationConfig
    from marsnn.refine.job import Job, run_job
    from marsnn.refine.job import plan_only as make_plan
    from marsnn.refine.report import report_text

    _seeded(seed)
    job = Job(
        model, out, budget, policy.value, None if layers is None else numbers("--layers", layers),
        mixer.value,
        None if keep == 1 else {"mode": sparsity.value, "keep": keep},
        {
            "neuron": neuron, "sites": [site.strip() for site in sites.split(",")], "per_token": per_token,
            "settings": _settings(neuron, steps, tau, fire_at),
        } if spikes else None,
        plan, context, text,
        AlignConfig(
            updates=updates, length=length, sequences=sequences, learning_rate=learning_rate, seed=seed
        ),
        dtype=_dtype(dtype),
        evaluation=EvaluationConfig(
            tokens=tokens, context=context, tasks=tasks, contexts=numbers("--contexts", contexts), seed=seed
        ) if evaluated else None,
        resume=resume,
        progress=True,
    )  # fmt: skip
    if plan_only:
        made = make_plan(job)
        if as_json:
            return print_json(made.to_dict())
        print(made.text())
        print(f"edit {out / 'plan.json'}, then, with the options that you gave for training:")
        return print(f"marsnn refine {model} --plan {out / 'plan.json'} --out {out}")
    started = time.perf_counter()
    refined, evaluation = run_job(job)
    if as_json:
        return print_json(evaluation.to_dict() if evaluation else refined.refinement)
    if evaluation:
        print(report_text(evaluation))
        print(f"report: {out / 'report.html'}")
    print(f"refined model: {out} ({(time.perf_counter() - started) / 60:.1f} min in all)")
    print(f'next:  marsnn generate {out} "Once upon a time"')


def evaluate(
    model: ModelFolder,
    against: Annotated[
        Path | None,
        typer.Option(help="folder of the model it came from, the row that others are compared with"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="write report.json, .txt and .html here")
    ] = None,
    text: Texts = None,
    tokens: Tokens = 8192,
    context: Context = 1024,
    tasks: Tasks = 16,
    contexts: Contexts = "256,1024,4096,8192",
    positions: Annotated[
        str, typer.Option(help="windows in which quality is told by position, by commas, such as 8192")
    ] = "",
    windows: Annotated[
        int, typer.Option(help="of each of these lengths and each text, where it has so many", min=1)
    ] = 4,
    speed: Annotated[
        bool, typer.Option("--speed", help="measure decode and prefill too, with dynamic int8")
    ] = False,
    rounds: Annotated[int, typer.Option(help="of the speed measurement", min=1)] = 5,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(help="a task of lm-evaluation-harness in --task-folder; repeatable", show_default=False),
    ] = None,
    task_folder: Annotated[Path | None, typer.Option(help="folder with those tasks' .yaml files")] = None,
    dtype: Dtype = Kind.float32,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Quality, energy and speed of a model, every stage a row."""
    from marsnn.files import probe
    from marsnn.refine.evaluation import EvaluationConfig, check_texts
    from marsnn.refine.evaluation import evaluate as measure
    from marsnn.refine.job import load_refined, rows_of
    from marsnn.refine.loading import load_tokenizer
    from marsnn.refine.report import report_text, save_report

    _seeded(seed)
    wanted = numbers("--contexts", contexts)
    config = EvaluationConfig(
        **({"texts": tuple(text)} if text else {}), tokens=tokens, context=context, tasks=tasks,
        contexts=wanted, positions=numbers("--positions", positions) if positions else (),
        windows=windows, seed=seed,
    )  # fmt: skip
    if out:
        probe(out / "report.json")
    if lm_eval:
        from marsnn.refine.harness import harness, known_tasks

        known = known_tasks(lm_eval, task_folder)
    tokenizer = load_tokenizer(model)
    check_texts(tokenizer, config)
    rows: dict[str, Any] = {}
    dense = None
    if against is not None:
        dense = load_refined(against, _dtype(dtype))
        rows["dense"] = dense
    own = load_refined(model, _dtype(dtype))
    rows |= rows_of(own, "dense" if against is None else model.name)
    if speed:
        from marsnn.bench.generation import dynamic_int8, fitting, measured

        fitting(wanted, own.config.max_position_embeddings)
        if dense is not None:
            rows = {"dense": dense, "dense, dynamic int8": dynamic_int8(dense), **rows}
    found = measure(rows, tokenizer, config, "dense" if against is not None else None, progress=True)
    if out:
        save_report(found, out)  # what comes now may fail, or be interrupted
    if speed:
        for name, row in measured(rows, wanted, rounds).items():
            found.rows[name]["speed"] = row
    if lm_eval:
        for name, row in found.rows.items():
            row["lm_eval"] = harness(rows[name], tokenizer, lm_eval, known)
    if out:
        save_report(found, out)
    if as_json:
        return print_json(found.to_dict())
    print(report_text(found))
    if out:
        print(f"report: {out / 'report.html'}")


def generate(
    model: ModelFolder,
    prompt: Annotated[str, typer.Argument(help="text to continue; - reads it from standard input")],
    max_new_tokens: Annotated[int, typer.Option(help="tokens to write, at most", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="0 for the likeliest token each time", min=0)] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="of the probability that sampling draws from", min=0, max=1)
    ] = 0.95,
    repetition_penalty: Annotated[float, typer.Option(help="1 for none", min=0.1)] = 1.0,
    chat: Annotated[
        bool, typer.Option("--chat", help="put the prompt into the model's chat template")
    ] = False,
    latency_ms: Annotated[
        float | None, typer.Option(help="time for a token: sparse layers keep less where it takes longer")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast/--plain", help="choose each layer's fastest decoding by measurement first")
    ] = True,
    dtype: Dtype = Kind.float32,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Continue a text."""
    from marsnn.refine.generation import continuation

    _seeded(seed)
    text = sys.stdin.read() if prompt == "-" else prompt
    found = continuation(
        model, text, max_new_tokens, temperature, top_p, repetition_penalty, chat, latency_ms, fast,
        _dtype(dtype),
    )  # fmt: skip
    if as_json:
        return print_json(found)
    print(found["text"])
    print(found["told"], file=sys.stderr)


def layer_input(
    folder: Path, layer: int, source: str, samples: int, part: str
) -> tuple[Any, torch.Tensor]:
    """Of the verb `export`: a layer, or its net, as a Network, and what enters it on a text, [L, 1, D]."""
    from marsnn.errors import InputError
    from marsnn.refine.export import block_inputs, block_network, ffn_inputs, ffn_network
    from marsnn.refine.job import load_refined
    from marsnn.refine.loading import encoded, load_tokenizer
    from marsnn.refine.model import MarForCausalLM

    tokenizer, model = load_tokenizer(folder), load_refined(folder)
    if not isinstance(model, MarForCausalLM):
        raise InputError(f"{folder}: not a refined model; marsnn refine makes one")
    tokens = encoded(tokenizer, source, samples or 64)[None]
    if part == "block" or (part == "auto" and layer in model.config.ssm_layers):
        return block_network(model, layer), block_inputs(model, layer, tokens)
    return ffn_network(model, layer), ffn_inputs(model, layer, tokens)


def shape_energy(
    shape: str, ssm: str, keep: float, steps: int, rate: float | None, contexts: str, as_json: bool
) -> None:
    """Of the verb `energy`: a model's cost from its configuration alone."""
    from marsnn.refine.estimate import estimate, estimate_text, load_shape

    result = estimate(load_shape(shape), ssm, keep, steps, rate, numbers("--contexts", contexts))
    if as_json:
        return print_json({"shape": shape, **result})
    print(estimate_text(result, shape))


def _settings(neuron: str, steps: int, tau: float | None, fire_at: float | None) -> dict[str, Any]:
    """A neuron's settings: what was said, and for ATMN what was measured to be best."""
    said = {"tau": tau, "fire_at": fire_at}
    chosen = {name: value for name, value in said.items() if value is not None}
    return {"steps": steps, **({"tau": 0.5, "fire_at": 0.5} if neuron == "ATMN" else {}), **chosen}


def _dtype(kind: Kind) -> torch.dtype:
    import torch

    found = getattr(torch, kind.value)
    assert isinstance(found, torch.dtype)
    return found


def _seeded(seed: int) -> None:
    from marsnn.cli.inputs import seeded

    seeded(seed)
