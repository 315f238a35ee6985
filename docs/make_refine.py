"""Write the tables and pictures of docs/refine.md from the kept reports:  python docs/make_refine.py

Between its marks the page gets what `marsnn evaluate --speed` wrote into benchmarks/refine-*.json; the
pictures are drawn from them too. README.md gets the rows of one of them.
"""

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from marsnn.plots.files import save_figure
from marsnn.plots.refinement import energy_curves, plan_bars, quality_bars

DOCS = Path(__file__).parent
KEPT = DOCS.parent / "benchmarks"
NAMES = ("quarter", "half", "all")
SHOWN, README = "half", "quarter"
"""The one that is drawn, and the one in the README."""


def report(name: str) -> dict:
    """A kept report."""
    return json.loads((KEPT / f"refine-{name}.json").read_text(encoding="utf-8"))


def quality(found: dict) -> str:
    """Bits per byte, choices, tasks, energy: one row a checkpoint."""
    rows, teacher = found["rows"], found["settings"]["teacher"]
    sources = found["settings"]["texts"]
    dense = rows[teacher]["texts"]
    contexts = [context for context in ("1024", "4096") if context in rows[teacher]["energy"]]
    heads = [
        "",
        *(f"{source}, bits per byte" for source in sources),
        "same first choice",
        "copies 128",
        "needle at half",
        *(f"energy at {int(c):,}, fp32 / int8" for c in contexts),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        cells = [name]
        for source in sources:
            text = row["texts"][source]["bits_per_byte"]
            share = text / dense[source]["bits_per_byte"] - 1
            cells.append(f"{text:.3f}" + ("" if name == teacher else f" ({share:+.1%})"))
        same = row["texts"][sources[0]].get("agreement")
        cells.append("" if same is None else f"{same:.1%}")
        cells += [
            f"{row[task].get(key, float('nan')):.0%}" for task, key in (("copy", "128"), ("needle", "0.5"))
        ]
        for context in contexts:
            each = row["energy"].get(context)
            cells.append(f"{each['45nm-fp32 ratio']:.2f} / {each['45nm-int8 ratio']:.2f}" if each else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed(found: dict) -> str:
    """Tokens per second, one row a checkpoint."""
    rows = {name: row["speed"] for name, row in found["rows"].items() if row.get("speed")}
    if not rows:
        return ""
    contexts = list(next(iter(rows.values())))
    heads = ["decode, tokens a second", *(f"context {int(c):,}" for c in contexts)]
    heads += [f"prefill of {int(c):,}" for c in (contexts[0], contexts[-1])]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        cells = [name]
        for context in contexts:
            each, ratio = row[context]["decode"]["median"], row[context]["decode_ratio"]
            spread = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
            cells.append(f"{each:.1f}, {ratio['median']:.2f}x ({spread})")
        cells += [f"{row[context]['prefill']['median']:.0f}" for context in (contexts[0], contexts[-1])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told(name: str) -> str:
    """One report: what it is, its tables, how long it took."""
    found = report(name)
    settings = found["settings"]
    lines = [
        f"**`--budget {name}`**, quality at a context of {settings['context']:,} tokens, "
        f"{settings['tokens']:,} tokens of each text, {settings['dtype'].removeprefix('torch.')}; energy "
        "estimated at 45 nm, in the dense model's at the same precision.",
        "",
        quality(found),
    ]
    if speed(found):
        lines += ["", speed(found)]
    notes = []
    for row_name, row in found["rows"].items():
        if row.get("recovered"):
            shares = ", ".join(f"{source} {share:.0%}" for source, share in row["recovered"].items())
            notes.append(f"{row_name} recovers of what leaving out its attentions costs: {shares}.")
    done = found.get("refinement")
    if done:  # a resumed run has read layers that others trained, so their own seconds are added up
        trained = sum(each["seconds"] for each in done["align"])
        others = ", ".join(f"{stage} {s:.0f} s" for stage, s in done["seconds"].items() if stage != "align")
        notes.append(f"Training its {len(done['align'])} layers took {trained:.0f} s, then {others}.")
    return "\n".join([*lines, "", " ".join(notes)]).rstrip()


def tables() -> str:
    """All of them."""
    return "\n\n".join(told(name) for name in NAMES)


def written(text: str, mark: str, inside: str) -> str:
    """A page with what stands between its marks written anew; nothing where `inside` is empty."""
    section = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
    told = f"\n{inside}\n\n" if inside else ""
    return section.sub(lambda found: f"{found[1]}{told}{found[2]}", text)


def page(text: str) -> str:
    """docs/refine.md with its tables."""
    return written(text, "refine", tables())


def readme(text: str) -> str:
    """README.md with its rows."""
    return written(text, "refine", quality(report(README)))


def main() -> None:
    """Write both pages and the picture."""
    for path, change in ((DOCS / "refine.md", page), (DOCS.parent / "README.md", readme)):
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    found = report(SHOWN)
    figure, axes = plt.subplot_mosaic(
        [["plan", "plan"], ["quality", "energy"]], figsize=(11, 7.2), layout="constrained"
    )
    plan_bars(found["refinement"]["plan"], axes["plan"])
    quality_bars(found, axes["quality"])
    energy_curves(found, axes["energy"])
    assert axes["plan"].figure is figure
    save_figure(axes["plan"], DOCS / "images" / "refine.png")


if __name__ == "__main__":
    main()
