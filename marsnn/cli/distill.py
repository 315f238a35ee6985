"""The verbs that train whole language models: pretrain, distill. What they do stands in `marsnn.refine`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from marsnn.cli.options import Json, print_json

DISTILL = "marsnn distill docs/recipes/small.toml --out runs/small"
PRETRAIN = "marsnn pretrain --out teacher, then  marsnn refine teacher --budget half --out refined"


def pretrain(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the model and its tokenizer")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="what is learnt on: docstrings, or a text file; repeatable", show_default=False),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            help="what is measured on at the end: library, topics, stdlib, or a file; repeatable",
            show_default=False,
        ),
    ] = None,
    vocabulary: Annotated[int, typer.Option(help="tokens of the tokenizer, bytes among them")] = 2048,
    hidden_size: Annotated[int, typer.Option(help="features of the residual stream")] = 192,
    layers: Annotated[int, typer.Option(help="attentions, each with its feed-forward net")] = 6,
    heads: Annotated[int, typer.Option(help="of an attention; they share the features")] = 6,
    kv_heads: Annotated[int, typer.Option(help="heads of keys and values, each for several heads")] = 2,
    ffn: Annotated[int, typer.Option(help="features inside a feed-forward net")] = 512,
    length: Annotated[int, typer.Option(help="tokens of a training sequence")] = 256,
    context: Annotated[int, typer.Option(help="tokens that the model's configuration allows")] = 2048,
    updates: Annotated[int, typer.Option(help="steps of AdamW")] = 4000,
    batch: Annotated[int, typer.Option(help="sequences of an update, in all processes together")] = 4,
    learning_rate: Annotated[float, typer.Option(help="peak rate of AdamW; a cosine follows")] = 6e-3,
    warmup: Annotated[int, typer.Option(help="updates until the peak")] = 100,
    weight_decay: Annotated[float, typer.Option(help="of AdamW, on matrices only")] = 0.1,
    save_every: Annotated[int, typer.Option(help="updates between checkpoints")] = 200,
    seed: Annotated[int, typer.Option(help="of first weights and the order of sequences")] = 0,
    as_json: Json = False,
) -> None:
    """Train a small Llama from scratch on text that is there; the same again goes on after a kill."""
    from marsnn.files import read_json
    from marsnn.refine.pretraining import DONE, PretrainConfig
    from marsnn.refine.pretraining import pretrain as train

    texts: dict[str, Any] = {"text": text, "held_out": held_out}
    config = PretrainConfig(
        **{name: tuple(each) for name, each in texts.items() if each},
        vocabulary=vocabulary, hidden_size=hidden_size, layers=layers, heads=heads, kv_heads=kv_heads,
        ffn=ffn, length=length, context=context, updates=updates, batch=batch, learning_rate=learning_rate,
        warmup=warmup, weight_decay=weight_decay, save_every=save_every, seed=seed,
    )  # fmt: skip
    train(config, out, progress=True)
    if not _speaks():
        return
    told = read_json(out / DONE)
    if as_json:
        return print_json(told)
    print(f"model: {out} ({told['parameters']:,} parameters)")
    print(
        f"learnt on {told['tokens']['seen']:,} tokens, drawn from {told['tokens']['there']:,}; last loss "
        f"{told['loss']:.3f} nats a token"
    )
    for name, bits in told["bits_per_byte"].items():
        print(f"held out, {name}: {bits:.3f} bits per byte")
    print(f"next:  marsnn refine {out} --budget half --out refined")


def distill(
    recipe: Annotated[Path, typer.Argument(help="a recipe's TOML file", metavar="RECIPE")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder for everything, in place of the recipe's")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="of everything random, in place of the recipe's", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """From text or a model to a distilled spiking one, by a recipe; the same again goes on after a kill."""
    from marsnn.refine.recipe import distill as run
    from marsnn.refine.recipe import load_recipe
    from marsnn.refine.report import report_text

    read = load_recipe(recipe, out, seed)
    evaluation = run(read, progress=True)
    if evaluation is None:
        return
    if as_json:
        return print_json(evaluation.to_dict())
    print(report_text(evaluation))
    print(f"report: {read.out / 'report.html'}")


def _speaks() -> bool:
    """Of several processes one does."""
    return os.environ.get("RANK", "0") == "0"
