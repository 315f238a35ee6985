"""Write the table of targets into docs/targets.md and README.md:  python docs/make_targets.py

Each cell is tried: tests/hardware/targets.py has a network for every row, and `marsnn.export` writes it or
refuses it. Where it is written, tests/hardware/test_targets.py compares every spike with Lava's.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from make_refine import written  # noqa: E402

from tests.hardware.targets import table  # noqa: E402

MAIN = (
    "ATMN, tau = 1/2", "ATMN, tau = 1", "LIF, reset to zero", "LIF, reset by subtraction",
    "CubaLIF, reset to zero", "ALIF", "IntegerLIF", "TernaryLIF", "recurrent LIF, reset to zero",
    "Conv2d", "AvgPool2d", "a skip", "GatedLinear", "RMSNorm", "S4D", "SSDCore",
)  # fmt: skip
"""Rows that the README shows."""


def main_rows(found: str) -> str:
    """The README's part of the table."""
    head, rule, *rows = found.splitlines()
    kept = {row.split("|")[1].strip(): row for row in rows}
    return "\n".join([head, rule, *(kept[name] for name in MAIN)])


def pages() -> dict[Path, str]:
    """Path -> its text with the table as it is now."""
    found = table()
    wanted = {DOCS / "targets.md": found, DOCS.parent / "README.md": main_rows(found)}
    return {
        path: written(path.read_text(encoding="utf-8"), "targets", inside) for path, inside in wanted.items()
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
