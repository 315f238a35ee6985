"""Write the tables of docs/results.md from the kept results:  python docs/make_results.py

Between its marks the page gets what `marsnn bench models` wrote into benchmarks/models*.json, a part for
each file; nothing where there is none.
"""

import json
import shlex
from dataclasses import fields
from pathlib import Path

from make_refine import written

from marsnn.bench.models import ModelsConfig, markdown
from marsnn.bench.models_table import mean

DOCS = Path(__file__).parent
KEPT = DOCS.parent / "benchmarks"

TITLE = "## Dense, pruned, quantized, refined"

INTRO = """One teacher, and what can be made of it with the same tokens to learn from. The baselines are
LLM-Pruner's way (arXiv 2305.11627: groups of weights by their first-order importance, then LoRA) and torch's
dynamic int8."""

SUMMARY = {
    "MAR": ("MAR-7B", "over 99% of dense", 0.55, 1.8),
    "MAR + ATMN": ("MAR-13B + ATMN", "above dense", 0.48, 2.1),
    "LoRA-pruned": ("LoRA-pruned-7B", "-1.5 points", 0.71, 1.4),
    "dynamic int8": ("Quant-8-bit-7B", "-1.1 points", 0.68, 1.5),
}
"""Row -> its like in the summary of MAR's results: its score, its energy and speed in the dense model's."""


def results() -> dict[str, dict]:
    """Kept results by the names of their files."""
    return {
        path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("models*.json"))
    }


def command(found: dict, file: str) -> str:
    """What made a result: settings that aren't the usual ones are said."""
    words = ["marsnn", "bench", "models", "--model", found["model"], "--work", "work"]
    for each in fields(ModelsConfig):
        value, usual = found["settings"][each.name], each.default
        if value == (list(usual) if isinstance(usual, tuple) else usual):
            continue
        if each.name == "texts":
            words += [word for text in value for word in ("--held-out", text)]
            continue
        said = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += [f"--{each.name.replace('_', '-')}", said]
    return shlex.join([*words, "--save", f"benchmarks/{file}"])


def beside(found: dict) -> str:
    """Rows beside the summary's, at the longest context that was timed."""
    rows = {row["name"]: row for row in found["rows"]}
    context = list(rows["dense"]["cost"])[-1]
    dense = mean(rows["dense"], "accuracy")
    lines = [
        f"| summary | score | energy | speed | here, at {int(context):,} | next token right | energy as it "
        "runs | speed |",
        "|---" * 8 + "|",
    ]
    for name, (theirs, score, energy, speed) in SUMMARY.items():
        cost, right = rows[name]["cost"][context], mean(rows[name], "accuracy")
        lines.append(
            f"| {theirs} | {score} | {energy} | {speed}x | {name} | {right / dense:.1%} of dense, "
            f"{100 * (right - dense):+.1f} points | {cost['as run ratio']:.2f} | "
            f"{cost['decode_ratio']['median']:.2f}x |"
        )
    return "\n".join([*lines, "", orders(rows, context)])


def orders(rows: dict, context: str) -> str:
    """Who costs least and who decodes fastest, there and here; and where a direction is another."""
    energy = {name: rows[name]["cost"][context]["as run ratio"] for name in SUMMARY}
    speed = {name: rows[name]["cost"][context]["decode_ratio"]["median"] for name in SUMMARY}
    there = {name: SUMMARY[name][2] for name in SUMMARY}, {name: SUMMARY[name][3] for name in SUMMARY}
    told = [
        f"From the least energy on, there: {_order(there[0])}; here: {_order(energy)}.",
        f"From the fastest on, there: {_order(there[1], True)}; here: {_order(speed, True)}.",
    ]
    other = [f"{name} costs more energy than dense" for name in SUMMARY if energy[name] >= 1]
    other += [f"{name} decodes slower than dense" for name in SUMMARY if speed[name] <= 1]
    if mean(rows["MAR + ATMN"], "accuracy") <= mean(rows["dense"], "accuracy"):
        other.append("MAR + ATMN stays below the dense score")
    for name in ("LoRA-pruned", "dynamic int8"):
        if mean(rows["MAR"], "accuracy") <= mean(rows[name], "accuracy"):
            other.append(f"MAR scores below {name}")
    if other:
        told.append(f"Other directions than there: {'; '.join(other)}.")
    return " ".join(told)


def _order(values: dict[str, float], falling: bool = False) -> str:
    return ", ".join(sorted(values, key=lambda name: values[name], reverse=falling))


def section(kept: dict[str, dict]) -> str:
    """All of it; empty where nothing is kept."""
    if not kept:
        return ""
    parts = [TITLE, INTRO]
    for file, found in kept.items():
        parts += [f"    {command(found, file)}", markdown(found), beside(found)]
    return "\n\n".join(parts)


def page(text: str, kept: dict[str, dict] | None = None) -> str:
    """docs/results.md with its section."""
    return written(text, "models", section(results() if kept is None else kept))


if __name__ == "__main__":
    path = DOCS / "results.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
