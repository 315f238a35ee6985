"""Runnable docs: every notebook runs from its first cell to its last, away from the repository."""

import base64
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason='needs pip install "marsnn[notebooks]"')
nbclient = pytest.importorskip("nbclient", reason='needs pip install "marsnn[notebooks]"')

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


QUICK = {  # in place of the cell tagged "parameters"
    "02_surrogates.ipynb": {"SEEDS": 2, "EPOCHS": 1, "NUMBERS": 300},
    "03_neuron_ablation.ipynb": {"SEEDS": 2, "EPOCHS": 1, "HIDDEN": 8},
}


def test_there_are_notebooks():
    assert len(NOTEBOOKS) > 0
    assert QUICK.keys() <= {path.name for path in NOTEBOOKS}


def make_quick(notebook, name):
    """Small settings right after the notebook's own; without its tag a notebook runs as it is."""
    if name in QUICK:
        (at,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
        assert all(f"{setting} = " in notebook.cells[at].source for setting in QUICK[name])
        lines = [f"{setting} = {value}" for setting, value in QUICK[name].items()]
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    make_quick(notebook, path.name)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # a cell that fails raises CellExecutionError
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 0
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_kept_with_its_pictures_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    pictures = [
        base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) > 0
    assert path.stat().st_size < 500_000
    kept = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in kept)
    told = "".join(str(output.get("text", "")) for output in kept)
    assert not [place for place in ("/tmp/", "/home/", "/root/", str(Path.cwd())) if place in told]
