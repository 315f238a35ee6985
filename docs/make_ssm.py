"""Write the tables and the picture of docs/ssm.md from the kept results:  python docs/make_ssm.py

Between its marks the page gets what `marsnn bench ssm` and `marsnn bench memory` printed when they wrote
benchmarks/ssm.json and benchmarks/memory-*.json, and docs/images/ssm.png is drawn from the first.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from make_refine import written

from marsnn.bench import memory, ssm
from marsnn.plots.files import save_figure
from marsnn.plots.lengths import length_panels

DOCS = Path(__file__).parent
KEPT = DOCS.parent / "benchmarks"


def result(name: str) -> dict:
    """A kept result."""
    return json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))


def memories() -> str:
    """The tables of all tasks, in the order of the bench."""
    return "\n\n".join(memory.markdown(result(f"memory-{name}")) for name in memory.TASKS)


def page(text: str) -> str:
    """The page with its tables written anew."""
    for mark, tables in (("ssm", ssm.markdown(result("ssm"))), ("memory", memories())):
        text = written(text, mark, tables)
    return text


if __name__ == "__main__":
    path = DOCS / "ssm.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    save_figure(length_panels(result("ssm")), DOCS / "images" / "ssm.png")
