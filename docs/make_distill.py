"""Write distillation's tables and pictures into docs/results.md from kept results:  python
docs/make_distill.py

benchmarks/distillation.json      marsnn bench distillation
benchmarks/distillation-t2.json   the same at T = 2
benchmarks/distill-small.json     report.json of  marsnn distill docs/recipes/small.toml
benchmarks/distill-smollm2.json   report.json of  marsnn distill docs/recipes/smollm2.toml
benchmarks/step.json              marsnn bench step
benchmarks/positions.json         report.json of  marsnn evaluate --positions
benchmarks/positions-distilled.json   positions of  marsnn distill docs/recipes/smollm2-long.toml, two lengths
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from make_refine import written

from marsnn.bench import distillation, step
from marsnn.bench.distillation import by_seed
from marsnn.intervals import interval, paired
from marsnn.plots.distillation import arm_intervals, recovery_curve
from marsnn.plots.files import save_figure

DOCS = Path(__file__).parent
KEPT = DOCS.parent / "benchmarks"

PAPER = {
    "ladder": {
        "binary LIF": 46.28, "+ ATMN": 55.20, "+ reverse KL": 55.46, "+ pre-norm features": 57.20,
    },
    "weights": {
        "alpha=1, beta=0": 55.20, "alpha=0, beta=1": 55.92, "alpha=0.7, beta=0.2": 56.39,
        "alpha=0.2, beta=0.7": 56.40,
    },
    "features": {"pre": 57.20, "post": 56.75, "both": 56.08},
}  # fmt: skip
"""Mean accuracy on six zero-shot tasks, %, of a spiking Llamba-1.4B (MAR, arXiv 2601.21503); its teacher
61.88."""


def kept(name: str) -> dict:
    """A kept result."""
    return json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))


def beside(found: dict) -> str:
    """The paper's steps and ours: of the ladder against the row before, else against the table's first."""
    text = found["settings"]["held_out"][0]
    lines = [
        "| | paper, points of accuracy | here, points of accuracy | here, % bits per byte | cloze, points |",
        "|---" * 5 + "|",
    ]
    for table, theirs in PAPER.items():
        if table not in found["tables"]:
            continue
        cells = {arm: found["cells"][key] for arm, key in found["tables"][table].items()}
        names = list(cells)
        for place, arm in enumerate(names[1:], 1):
            other = names[place - 1 if table == "ladder" else 0]  # a ladder is climbed step by step
            own, reference = (by_seed(cells[each], text, "accuracy") for each in (arm, other))
            bits, before = (by_seed(cells[each], text, "bits_per_byte") for each in (arm, other))
            share = {seed: bits[seed] / before[seed] - 1 for seed in bits}
            filled = [
                each["cloze"] - cells[other]["seeds"][seed]["cloze"]
                for seed, each in cells[arm]["seeds"].items()
            ]
            lines.append(
                f"| {arm} minus {other} | {theirs[arm] - theirs[other]:+.2f} | "
                f"{told(paired(own, reference))} | {told(interval(list(share.values())))} | "
                f"{told(interval(filled))} |"
            )
    return "\n".join(lines)


def told(found, scale: float = 100.0) -> str:
    """+1.23 +- 0.45, starred where the interval excludes zero."""
    half = "" if found.half is None else f" +- {scale * found.half:.2f}"
    return f"{scale * found.mean:+.2f}{half}{' *' if found.excludes(0.0) else ''}"


def ablations(kept_as: str) -> str:
    """Every table, and the paper's steps beside ours."""
    found = kept(kept_as)
    settings, parts = found["settings"], []
    parts.append(
        f"{settings['seeds']} seeds; {settings['updates']} updates of {settings['batch']} x "
        f"{settings['length']} tokens an arm, the longest cell took "
        f"{found['seconds']['longest_cell']:.0f} s on one thread; teacher "
        f"{found['teacher']['parameters']:,} parameters. +- is the 95 % confidence interval over seeds, * a "
        "difference whose interval excludes 0, not corrected for the number of comparisons."
    )
    for name in found["tables"]:
        parts.append(distillation.table(found, name))
    parts.append("The paper's steps and ours:")
    parts.append(beside(found))
    return "\n\n".join(parts)


def report(name: str) -> str:
    """Quality and energy of every stage of a recipe."""
    found = kept(name)
    rows, teacher = found["rows"], found["settings"]["teacher"]
    texts = found["settings"]["texts"]
    contexts = list(rows[teacher]["energy"])
    heads = [
        "", *(f"{text}, bits per byte" for text in texts), "next token right, of the teacher's",
        "same first choice", *(f"energy at {int(c):,}, fp32 / int8" for c in contexts),
    ]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row_name, row in rows.items():
        cells = [row_name]
        for text in texts:
            own, dense = (each["texts"][text]["bits_per_byte"] for each in (row, rows[teacher]))
            cells.append(f"{own:.3f}" + ("" if row is rows[teacher] else f" ({own / dense - 1:+.1%})"))
        right = [row["texts"][text]["accuracy"] / rows[teacher]["texts"][text]["accuracy"] for text in texts]
        cells.append(" / ".join(f"{each:.1%}" for each in right))
        same = [row["texts"][text].get("agreement") for text in texts]
        cells.append("" if same[0] is None else " / ".join(f"{each:.1%}" for each in same))
        for context in contexts:
            each = row["energy"].get(context)
            cells.append(f"{each['45nm-fp32 ratio']:.2f} / {each['45nm-int8 ratio']:.2f}" if each else "")
        lines.append("| " + " | ".join(cells) + " |")
    done = found["refinement"]["distillation"]
    where = f" on {found['device']}" if "device" in found else ""
    lines += ["", f"{done['tokens']:,} tokens in {done['settings']['updates']:,} updates{where}."]
    return "\n".join(lines)


def curve() -> str:
    """What the student was behind by, look after look."""
    found = kept("distill-smollm2")
    rows = found["rows"]
    dense = {text: each["bits_per_byte"] for text, each in rows["dense"]["texts"].items()}
    looks = [each for each in found["refinement"]["distillation"]["course"] if "seen_tokens" in each]
    lines = ["| tokens | " + " | ".join(f"{text}, bits per byte" for text in dense) + " |"]
    lines.append("|---" * (1 + len(dense)) + "|")
    for each in looks:
        cells = [
            f"{each[f'{text}_bits_per_byte']:.3f} ({each[f'{text}_bits_per_byte'] / own - 1:+.1%})"
            for text, own in dense.items()
        ]
        lines.append(f"| {each['seen_tokens']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def positions(kept_as: str) -> str:
    """Bits per byte by position, text by text, and what rows are above the first one."""
    found = kept(kept_as)
    parts = []
    for length, texts in found["settings"]["position_windows"].items():
        for text, number in texts.items():
            named = {
                name: row["positions"][length][text]
                for name, row in found["rows"].items()
                if "positions" in row
            }
            dense = next(iter(named.values()))
            windows = "1 window" if number == 1 else f"{number} windows"
            head = f"{text}, {windows} of {int(length):,}"
            lines = ["| " + " | ".join([head, *(f"to {int(end):,}" for end in dense)]) + " |"]
            lines.append("|---" * (1 + len(dense)) + "|")
            for name, each in named.items():
                cells = [
                    f"{bits:.3f}" + ("" if each is dense else f" ({bits / dense[end] - 1:+.1%})")
                    for end, bits in each.items()
                ]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
            parts.append("\n".join(lines))
    if "device" in found:
        parts.append(f"Measured and learnt on {found['device']}. " + " ".join(_learning(found)))
    return "\n\n".join(parts)


def _learning(found: dict) -> list[str]:
    """How long the distillation took by the length of its rows."""
    lines = []
    for each in found["distillation"].values():
        settings, seconds = each["settings"], each["course"][-1]["train_runtime"]
        lines.append(
            f"{each['tokens']:,} tokens in {settings['updates']} updates of {settings['batch']} x "
            f"{settings['length']:,}: {seconds:.0f} s."
        )
    return lines


SECTIONS = {
    "ablations": (lambda: ablations("distillation"), "distillation"),
    "ablations-t2": (lambda: ablations("distillation-t2"), "distillation-t2"),
    "small": (lambda: report("distill-small"), "distill-small"),
    "smollm2": (lambda: report("distill-smollm2"), "distill-smollm2"),
    "curve": (curve, "distill-smollm2"),
    "step": (lambda: step.markdown(kept("step")), "step"),
    "positions": (lambda: positions("positions"), "positions"),
    "positions-distilled": (lambda: positions("positions-distilled"), "positions-distilled"),
}
"""Mark -> what stands there, and the kept file that it comes from."""


def page(text: str) -> str:
    """docs/results.md with its tables."""
    for mark, (make, name) in SECTIONS.items():
        if f"<!-- {mark} -->" not in text or not (KEPT / f"{name}.json").is_file():
            continue
        text = written(text, mark, make())
    return text


def draw() -> None:
    """docs/images/distill-curve.png and distill-arms.png."""
    found = kept("distill-smollm2")
    dense = {text: each["bits_per_byte"] for text, each in found["rows"]["dense"]["texts"].items()}
    course = found["refinement"]["distillation"]["course"]
    save_figure(recovery_curve(course, dense), DOCS / "images" / "distill-curve.png")
    arms = kept("distillation")
    _, axes = plt.subplots(2, 1, figsize=(7.0, 5.6), layout="constrained", height_ratios=(4, 10))
    for ax, table in zip(axes, ("ladder", "code"), strict=True):
        arm_intervals(arms, table, ax)
    save_figure(axes[0], DOCS / "images" / "distill-arms.png")


if __name__ == "__main__":
    path = DOCS / "results.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    draw()
