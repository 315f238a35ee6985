"""Runnable docs: tables of docs/refine.md, docs/results.md and README.md are those of the kept results."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from marsnn.refine.recipe import load_recipe

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


@pytest.fixture
def make_distill(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_distill

    yield make_distill
    sys.modules.pop("make_distill")


def test_the_page_of_results_holds_what_was_kept(make_distill):
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert make_distill.page(text) == text, "run  python docs/make_distill.py"
    for mark, (make, name) in make_distill.SECTIONS.items():
        if (make_distill.KEPT / f"{name}.json").is_file():
            assert f"<!-- {mark} -->\n\n{make()}" in text


def test_the_papers_steps_stand_beside_ours(make_distill):
    for name in ("distillation", "distillation-t2"):
        found = make_distill.kept(name)
        assert set(make_distill.PAPER) <= set(found["tables"])
        for table, theirs in make_distill.PAPER.items():
            assert list(theirs) == list(found["tables"][table])
        assert "| + ATMN minus binary LIF | +8.92 |" in make_distill.beside(found)
        assert "| + reverse KL minus + ATMN | +0.26 |" in make_distill.beside(found)


def test_rows_of_both_lengths_are_those_of_the_recipe(make_distill):
    found = make_distill.kept("positions-distilled")
    recipe = load_recipe(ROOT / "docs" / "recipes" / "smollm2-long.toml")
    assert found["settings"]["position_windows"] == {
        str(length): dict.fromkeys(recipe.evaluate.texts, recipe.evaluate.windows)
        for length in recipe.evaluate.positions
    }
    own = json.loads(json.dumps(asdict(recipe.distill)))
    for length, each in found["distillation"].items():
        there = dict(each["settings"])
        assert there.pop("length") == int(length)
        assert there.pop("batch") * int(length) * recipe.distill.updates == each["tokens"] == own["tokens"]
        assert there.pop("together") == 16384 // int(length)
        # the machine was not to write checkpoints
        assert {name for name, value in there.items() if value != own[name]} == {"save_every"}
    assert list(found["distillation"]) == ["1024", "8192"]
