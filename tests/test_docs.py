"""Runnable docs: every example in a docstring and in the pages runs and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import matplotlib
import pytest

import marsnn
from marsnn import neurons

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(marsnn.__path__, "marsnn.")
    if "_runtime" not in info.name and not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_some_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    found = [
        example
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        for example in test.examples
    ]
    assert len(found) > 20


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.lava
@pytest.mark.xdist_group("lava")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name in ("README.md", "index.md")], ids=lambda p: p.name
)
def test_python_in_the_pages_runs(page, tmp_path, monkeypatch, capsys, lava_python):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARSNN_LAVA_PYTHON", lava_python)
    (block,) = blocks(page)
    exec(compile(block, str(page), "exec"), {})  # our own page, not a user's file
    matplotlib.pyplot.close("all")
    assert "0 mismatches of" in capsys.readouterr().out


def test_every_neuron_stands_in_both_tables_of_equations():
    text = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    for name in neurons.names():
        assert len(re.findall(rf"^\| `{name}` \|", text, flags=re.MULTILINE)) == 2, name


def test_every_link_between_the_pages_leads_somewhere():
    links = [
        (page, target)
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 10
    for page, target in links:
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_public_name_is_in_the_pages():
    text = "\n".join(page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CHANGELOG.md"])
    for name in marsnn.__all__:
        assert re.search(rf"\b{name}\b", text), name


def test_every_verb_of_the_command_line_is_in_the_readme():
    from marsnn.cli.main import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert command.callback.__name__ in readme


def test_the_readme_says_of_distillation_what_its_table_says():
    """The table of docs/results.md is written from the kept result; the README has four of its numbers."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    page = text.split("<!-- smollm2 -->")[1].split("<!-- end -->")[0]
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    after = re.findall(r"\(\+([\d.]+)%\)", rows["distilled"])[:2]
    before = re.findall(
        r"\(\+([\d.]+)%\)", next(line for name, line in rows.items() if name.endswith("ATMN T=4"))
    )[:2]
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    said = re.search(
        r"bits per byte ([\d.]+) % \(`topics`\) and ([\d.]+) % \(`stdlib`\) above the dense model's, "
        r"([\d.]+) and ([\d.]+) % before",
        text,
    )
    assert said is not None
    assert list(said.groups()) == [*after, *before]
