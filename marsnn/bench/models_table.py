"""The table of `marsnn bench models`: what each row can do and took to make, and what a token of it costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOTES = (
    "Energy is estimated from counted operations at 45 nm, in the dense model's: fp32 and int8 count every "
    "operation at that precision, in both models, whoever could run so. \"As it runs\" is in the dense "
    "model's float32: dynamic int8 has integer products of projections, mixing and scales in float32; int8 "
    "weights alone save bytes and no arithmetic, a byte becoming a float before it is multiplied; spikes "
    "are accumulates, as on a chip. Arithmetic alone is charged; bytes that a token reads stand beside it.",
    "Speed is one sample on this CPU, quartiles of the rounds in brackets; spikes are simulated there, so "
    "the speed of a row with them says nothing of a chip's.",
    "Rows that learn saw the same batches, whatever seconds those took; \"before\" is pruning, or layers "
    "that learn one by one, sparsity and spikes.",
)  # fmt: skip


def markdown(result: Mapping[str, Any]) -> str:
    """The result of `run` as two Markdown tables and what has to be said of them."""
    here, settings = result["machine"], result["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in result["libraries"].items())
    rows = result["rows"]
    told = [
        f"{result['model']}, {_number(rows[0]['parameters'])} weights. Quality on up to "
        f"{settings['tokens']:,} tokens of each text at a context of {result['measured_context']:,}. "
        f"{here['device']}, {here['threads']} threads; torch {here['torch']}, {versions}; medians of "
        f"{settings['rounds']} rounds.",
        quality(result),
        costs(result),
        _plans(rows, settings),
        *NOTES,
        _prepared(result),
    ]
    return "\n\n".join(told)


def quality(result: Mapping[str, Any]) -> str:
    """Bits per byte, next tokens, agreement; tokens and seconds that a row learnt for."""
    rows = result["rows"]
    dense, texts = rows[0], list(rows[0]["texts"])
    heads = [
        "", *(f"{Path(text).name}, bits per byte" for text in texts), "next token right",
        "same choice as dense", "tokens learnt", "seconds",
    ]  # fmt: skip
    lines = [_line(heads), "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["name"]]
        for text in texts:
            bits, usual = row["texts"][text]["bits_per_byte"], dense["texts"][text]["bits_per_byte"]
            cells.append(f"{bits:.3f}" + ("" if row is dense else f" ({bits / usual - 1:+.1%})"))
        right, usual = mean(row, "accuracy"), mean(dense, "accuracy")
        cells.append(f"{right:.1%}" + ("" if row is dense else f" ({100 * (right - usual):+.1f})"))
        cells.append("" if row is dense else f"{mean(row, 'agreement'):.1%}")
        learnt = row["learnt"]
        cells += ["", ""] if learnt is None else [f"{learnt['tokens']:,}", _seconds(learnt)]
        lines.append(_line(cells))
    return "\n".join(lines)


def costs(result: Mapping[str, Any]) -> str:
    """Energy and speed of a token behind each context."""
    rows = result["rows"]
    contexts = list(rows[0]["cost"])
    heads = ["", "weights"]
    for context in contexts:
        at = f"at {int(context):,}"
        heads += [f"energy {at}, fp32 / int8", f"as it runs {at}", f"tokens/s {at}", f"MB a token {at}"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["name"], _number(row["parameters"])]
        for context in contexts:
            cost = row["cost"][context]
            cells += [
                f"{cost['45nm-fp32 ratio']:.2f} / {cost['45nm-int8 ratio']:.2f}",
                f"{cost['as run ratio']:.2f}",
                f"{cost['decode']['median']:,.1f}, {_times(cost['decode_ratio'])}",
                f"{cost['token_mb']:,.0f}" if cost["token_mb"] >= 10 else f"{cost['token_mb']:.1f}",
            ]
        lines.append(_line(cells))
    return "\n".join(lines)


def mean(row: Mapping[str, Any], measure: str) -> float:
    """Of a row's texts."""
    found = [text[measure] for text in row["texts"].values()]
    return sum(found) / len(found)


def _plans(rows: list[Any], settings: Mapping[str, Any]) -> str:
    """What the rows are."""
    plans = {row["name"]: row for row in rows}
    mar, spiking, pruned = (plans[name]["plan"] for name in ("MAR", "MAR + ATMN", "LoRA-pruned"))
    layers = mar["attention_layers"] + len(mar["ssm_layers"])
    told = f"MAR: {len(mar['ssm_layers'])} of {layers} attentions are state space layers"
    if mar["sparsity"] is not None:
        told += f", feed-forward nets keep {mar['sparsity']['mean_keep']:.2g} of their activations"
    kept = plans["LoRA-pruned"]["learnt"]["kept"]
    told += f"; {spiking['spikes']['neuron']} with T = {spiking['spikes']['steps']}. "
    told += f"LoRA-pruned keeps {kept:.1%} of the weights of its {pruned['attention_layers']} layers. "
    return told + (
        f"LoRA of rank {settings['lora']}, peak rate {settings['lora_learning_rate']:g}; "
        f"{settings['learning_rate']:g} where all weights learn; {settings['updates']:,} updates of "
        f"{settings['batch']} x {settings['length']} tokens of {Path(settings['text']).name}, one seed."
    )


def _prepared(result: Mapping[str, Any]) -> str:
    speeds = ", ".join(
        f"{_times(each['decode_ratio'])} at {int(context):,}"
        for context, each in result["dense_prepared"].items()
    )
    return (
        "Pruned and refined rows without spikes or bytes decode by this package's kernels, the dense one by "
        f"transformers and torch. What kernels alone bring to the dense model: {speeds}."
    )


def _seconds(learnt: Mapping[str, Any]) -> str:
    own = "?" if learnt["seconds"] is None else f"{learnt['seconds']:,.0f}"
    before = learnt["before"]["seconds"]
    return own if before is None else f"{own} + {before:,.0f} before"


def _times(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _number(weights: int) -> str:
    return f"{weights / 1e6:,.1f} M" if weights >= 1e5 else f"{weights:,}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
