"""Runnable docs: every notebook runs from its first cell to its last, away from the repository."""

import base64
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason='needs pip install "marsnn[notebooks]"')
nbclient = pytest.importorskip("nbclient", reason='needs pip install "marsnn[notebooks]"')

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
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
