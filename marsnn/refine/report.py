"""An evaluation for people: a text that is read in a minute, a page with pictures, JSON for machines."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from marsnn.errors import FileError
from marsnn.files import PathLike, json_text, read_json, write_text
from marsnn.plots.refinement import pictures
from marsnn.refine.evaluation import FORMAT, Evaluation
from marsnn.refine.shapes import TABLES, by_site

STYLE = """body{font-family:sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#333}
pre{overflow-x:auto;background:#f6f6f6;padding:1em;font-size:12px}svg{max-width:100%;height:auto}"""


def save_report(evaluation: Evaluation, folder: PathLike) -> None:
    """Write report.txt, report.html, and report.json last."""
    write_text(Path(folder) / "report.txt", report_text(evaluation))
    write_text(Path(folder) / "report.html", _page(evaluation))
    write_text(Path(folder) / "report.json", json_text(evaluation.to_dict()))


def load_report(folder: PathLike) -> Evaluation:
    """What `save_report` wrote.

    Raises:
        FileError: it isn't there, or is no report.
    """
    path = Path(folder) / "report.json"
    told = read_json(path)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise FileError(f"{path}: not a report of an evaluation; delete it, and it is measured again")
    return Evaluation(told["rows"], told["settings"], told.get("refinement"))


def report_text(evaluation: Evaluation) -> str:
    """Quality, tasks, energy and speed, each with one line a checkpoint."""
    rows, settings = evaluation.rows, evaluation.settings
    width = max(len(name) for name in rows) + 2
    blocks = [_quality(rows, settings, width)]
    if any("copy" in row for row in rows.values()):
        blocks.append(_tasks(rows, width))
    if any("positions" in row for row in rows.values()):
        blocks.append(_positions(rows, settings, width))
    blocks.append(_energy(rows, width))
    if any(row.get("speed") for row in rows.values()):
        blocks.append(_speed(rows, width))
    blocks.append(_notes(evaluation))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _quality(rows: dict[str, Any], settings: dict[str, Any], width: int) -> str:
    sources, teacher = list(settings["texts"]), settings["teacher"]
    compared = teacher is not None and len(rows) > 1
    heads = "".join(f"{source[-14:] + ' bits/byte':>25}{'ppl':>9}" for source in sources)
    lines = [
        "quality at a context of " + _measured(settings),
        "".ljust(width) + heads + ("     KL  same choice" if compared else ""),
    ]
    for name, row in rows.items():
        line = name.ljust(width)
        for source in sources:
            text = row["texts"][source]
            share = ""
            if compared and name != teacher:
                dense = rows[teacher]["texts"][source]["bits_per_byte"]
                share = f" ({text['bits_per_byte'] / dense - 1:+.1%})"
            line += f"{text['bits_per_byte']:.4f}{share:>10}".rjust(25) + f"{text['perplexity']:9.4g}"
        first = row["texts"][sources[0]]
        if "kl" in first:
            line += f"{first['kl']:7.3f}{first['agreement']:13.1%}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _measured(settings: dict[str, Any]) -> str:
    """Windows and tokens as they were, also of texts that were too short for what was asked."""
    told = {
        source: f"{max(windows):,} tokens, {sum(windows):,} tokens"
        for source, windows in settings["windows"].items()
    }
    if len(set(told.values())) == 1:
        return f"{next(iter(told.values()))} of each text"
    return "; ".join(f"{text} of {source}" for source, text in told.items())


def _tasks(rows: dict[str, Any], width: int) -> str:
    lines = [
        "tasks: lists copied by length, numbers found by depth, topics of four (chance 25 %), continuations",
        "".ljust(width) + f"{'copy':>30}{'needle':>34}{'topic':>8}{'BLEU':>8}{'ROUGE-L':>9}",
    ]
    for name, row in rows.items():
        if "copy" not in row:
            continue
        shares = (
            " ".join(f"{key}: {value:.0%}" for key, value in row[each].items()) for each in ("copy", "needle")
        )
        copy, needle = shares
        made = row["continue"]
        lines.append(
            f"{name.ljust(width)}{copy:>30}{needle:>34}{_share(row['topic'].get('accuracy')):>8}"
            f"{_number(made.get('bleu')):>8}{_number(made.get('rouge_l')):>9}"
        )
    return "\n".join(lines)


def _positions(rows: dict[str, Any], settings: dict[str, Any], width: int) -> str:
    teacher, blocks = settings["teacher"], []
    for length, windows in settings["position_windows"].items():
        for text, number in windows.items():
            named = {name: row["positions"][length][text] for name, row in rows.items() if "positions" in row}
            ends = list(next(iter(named.values())))
            lines = [
                f"bits per byte of {text} by position in a window of {int(length):,} tokens, over {number}",
                "".ljust(width) + "".join(f"{f'to {int(end):,}':>18}" for end in ends),
            ]
            for name, each in named.items():
                line = name.ljust(width)
                for end in ends:
                    share = ""
                    if teacher in named and name != teacher:
                        share = f" ({each[end] / named[teacher][end] - 1:+.1%})"
                    line += f"{each[end]:.4f}{share:>9}".rjust(18)
                lines.append(line.rstrip())
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _energy(rows: dict[str, Any], width: int) -> str:
    rows = {name: row for name, row in rows.items() if row["energy"]}
    if not rows:
        return ""
    contexts = list(next(iter(rows.values()))["energy"])
    lines = [
        "energy of a token, ESTIMATED from counted operations at 45 nm, in uJ (share of the dense model's at",
        "the same precision); memory traffic apart, in MB a token of fp32",
        "".ljust(width) + "".join(f"{f'context {int(context):,}':>34}" for context in contexts),
        "".ljust(width) + f"{'fp32':>14}{'int8':>14}{'MB':>6}" * len(contexts),
    ]
    for name, row in rows.items():
        line = name.ljust(width)
        for context in contexts:
            each = row["energy"][context]
            for table in TABLES:
                line += f"{each[f'{table} nJ'] / 1e3:.4g} ({each[f'{table} ratio']:.2f})".rjust(14)
            line += f"{each['bytes_fp32'] / 1e6:6.0f}"
        lines.append(line)
    return "\n".join(lines)


def _speed(rows: dict[str, Any], width: int) -> str:
    named = {name: row["speed"] for name, row in rows.items() if row.get("speed")}
    contexts = list(next(iter(named.values())))
    lines = [
        "measured speed, tokens per second, batch of 1, lm_head included (ratio to the first row)",
        "".ljust(width) + "".join(f"{f'context {int(context):,}':>30}" for context in contexts),
        "".ljust(width) + f"{'decode':>18}{'prefill':>12}" * len(contexts),
    ]
    for name, speed in named.items():
        line = name.ljust(width)
        for context in contexts:
            each = speed.get(context)
            if each is None:
                line += " " * 30
                continue
            decode = f"{each['decode']['median']:.1f} ({each['decode_ratio']['median']:.2f}x)"
            line += f"{decode:>18}{each['prefill']['median']:12.0f}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _notes(evaluation: Evaluation) -> str:
    lines = []
    for name, row in evaluation.rows.items():
        if row["rates"]:
            told = ", ".join(f"{site} {rate:.3f}" for site, rate in by_site(row["rates"]).items())
            lines.append(f"{name}: spikes per neuron and step: {told}")
    for name, row in evaluation.rows.items():
        if row.get("recovered"):
            told = ", ".join(f"{source} {share:.0%}" for source, share in row["recovered"].items())
            lines.append(f"{name}: of what leaving out these attentions costs, recovered: {told}")
    for name, row in evaluation.rows.items():
        example = row.get("continue", {}).get("example")
        if example:
            lines.append(f"{name} goes on: {' '.join(example.split())[:90]}")
    done = evaluation.refinement
    if done:
        spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in done.get("seconds", {}).items())
        if spent:
            lines.append(f"refined in: {spent}")
        if done.get("align"):
            errors = [each["trained"] for each in done["align"]]
            lines.append(
                f"state space layers, held-out error of each attention's output: {min(errors):.3f} to "
                f"{max(errors):.3f}, mean {sum(errors) / len(errors):.3f}"
            )
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _page(evaluation: Evaluation) -> str:
    shown = "\n".join(pictures(evaluation.to_dict()))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>marsnn: refinement</title>"
        f"<style>{STYLE}</style><h1>Refinement</h1>"
        f"<pre>{html.escape(report_text(evaluation))}</pre>{shown}</html>\n"
    )
