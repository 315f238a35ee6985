"""Runnable docs: the tables of docs/refine.md and README.md are those of the kept reports."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def make_refine(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_refine

    yield make_refine
    sys.modules.pop("make_refine")


def test_both_pages_hold_what_the_reports_say(make_refine):
    for path, change in (
        (ROOT / "docs" / "refine.md", make_refine.page),
        (ROOT / "README.md", make_refine.readme),
    ):
        text = path.read_text(encoding="utf-8")
        assert change(text) == text, "run  python docs/make_refine.py"
    for name in make_refine.NAMES:
        rows = make_refine.report(name)["rows"]
        assert len(rows) >= 5
        assert all(f"| {row} |" in make_refine.quality(make_refine.report(name)) for row in rows)


def test_every_row_names_its_plan_and_its_context(make_refine):
    for name in make_refine.NAMES:
        for row in make_refine.report(name)["rows"].values():
            assert row["context"] > 0
            assert {"attention_layers", "ssm_layers", "sparsity", "spikes"} <= set(row["plan"])
