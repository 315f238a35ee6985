"""The table of targets: what it calls exact is exact, and what stands in the pages is what is tried."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from marsnn.errors import ExportError
from marsnn.hardware import export, read_nir, verify, verify_netx
from tests.hardware.targets import ROWS, TARGETS, attempt, made

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(DOCS))
    try:
        import make_targets

        return make_targets.pages()
    finally:
        sys.path.remove(str(DOCS))


def test_the_pages_say_what_is_tried(pages):
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"run  python docs/make_targets.py  ({path.name})"


def test_kept_results_are_those_of_the_page():
    sys.path.insert(0, str(DOCS))
    try:
        import make_hardware
    finally:
        sys.path.remove(str(DOCS))
    text = (DOCS / "lava.md").read_text(encoding="utf-8")
    assert make_hardware.page(text) == text, "run  python docs/make_hardware.py"
    assert "0.0%" in text


def test_the_table_has_both_answers_for_every_target(pages):
    rows = re.findall(r"^\| .*(?:exact|refused) \|$", pages[DOCS / "targets.md"], flags=re.MULTILINE)
    assert len(rows) == len(ROWS)
    columns = list(zip(*([cell.strip() for cell in row.split("|")[2:-1]] for row in rows), strict=True))
    assert len(columns) == len(TARGETS)
    assert all(set(column) == {"exact", "refused"} for column in columns)


@pytest.mark.parametrize("row", ROWS)
def test_refusals_name_a_layer_and_a_remedy(row, tmp_path):
    for index, (target, arguments) in enumerate(TARGETS.items()):
        path = tmp_path / str(index)
        if attempt(row, target, path) == "exact":
            continue
        assert not path.exists()
        network, sample = made(row)
        with pytest.raises(ExportError) as caught:
            export(network, sample, path, **arguments)
        names = (*network.names, "the network")
        assert all(refusal.startswith(names) for refusal in caught.value.refusals), caught.value.refusals


@pytest.mark.lava
@pytest.mark.xdist_group("lava")
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "NIR"])
@pytest.mark.parametrize("row", ROWS)
def test_what_is_exact_is_exact_in_lava(row, target, warm_lava, tmp_path):
    path = tmp_path / "out"
    if attempt(row, target, path) == "refused":
        return
    found = verify(path) if path.is_dir() else verify_netx(path)
    assert found.ok, found.text()
    assert found.positive + found.negative + found.values > 0
    assert found.positive + found.negative > 0 or "count" in target, "silent"


@pytest.mark.parametrize("row", ROWS)
def test_what_is_exact_in_nir_comes_back(row, tmp_path):
    path = tmp_path / "out.nir"
    if attempt(row, "NIR", path) == "refused":
        return
    network, sample = made(row)
    again = read_nir(path)
    with torch.no_grad():
        assert np.allclose(again(sample).numpy(), network(sample).numpy(), atol=1e-5)
