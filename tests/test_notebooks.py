"""Runnable docs: every notebook of the folder runs from its first cell to its last, away from the repository.

A notebook with much to train has a cell tagged "parameters" that assigns its settings. The tests put a cell
of smaller ones behind it, as papermill does; everything else runs as it stands.
"""

import ast
import base64
import re
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason='needs pip install "marsnn[notebooks]"')
nbclient = pytest.importorskip("nbclient", reason='needs pip install "marsnn[notebooks]"')

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What isn't here runs with its own settings.
SMALLER = {
    "02_surrogates.ipynb": {"SEEDS": 2, "FEWER_SEEDS": 2, "EPOCHS": 1, "RATES": (1e-2,)},
    "03_neuron_ablation.ipynb": {"SEEDS": 2, "EPOCHS": 1},
    "05_refine_a_llama.ipynb": {
        "MODEL": None, "UPDATES": 3, "LENGTH": 64, "SEQUENCES": 40, "TOKENS": 128, "CONTEXT": 64,
    },
    "06_distill.ipynb": {"TEACHER": None, "ALIGN": 2, "UPDATES": 4, "LENGTH": 64, "TOKENS": 128},
    "07_export.ipynb": {"EPOCHS": 2, "TUNING": 1},
}  # fmt: skip

# Homes and roots of Unix and Windows, installed packages: what a machine would tell of itself.
PLACES = re.compile(
    r"""(?<![\w.:/<])/(?:home|Users|root|tmp|usr|opt|var|mnt|work)/|\b[A-Z]:\\|site-packages"""
)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook):
    return [output for cell in code_cells(notebook) for output in cell.get("outputs", [])]


def pictures(notebook):
    found = [output.get("data", {}).get("image/png") for output in outputs_of(notebook)]
    return [base64.b64decode(picture) for picture in found if picture]


def tagged(notebook):
    return [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]


def with_settings(notebook, settings):
    """The notebook with the settings put behind its own; each must replace one of them."""
    (place,) = tagged(notebook)
    assigned = {
        target.id
        for statement in ast.parse(notebook.cells[place].source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
    }
    assert set(settings) <= assigned
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    return notebook


def texts(notebook):
    """All that the outputs say, pictures left out."""
    for output in outputs_of(notebook):
        if output.output_type == "stream":
            yield output.text
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield data


def test_there_are_notebooks():
    assert len(NOTEBOOKS) > 0
    assert set(SMALLER) <= {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path, tmp_path):
    notebook = read(path)
    kept = len(pictures(notebook))
    if path.name in SMALLER:
        notebook = with_settings(notebook, SMALLER[path.name])
    beside = tmp_path / "notebooks"  # kept results are looked for in ../benchmarks
    beside.mkdir()
    (tmp_path / "benchmarks").mkdir()
    for table in (ROOT / "benchmarks").glob("*.csv"):
        shutil.copy(table, tmp_path / "benchmarks")
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(beside)}}
    )
    client.execute()  # a cell that fails raises CellExecutionError
    assert all(cell.execution_count for cell in code_cells(notebook))
    stderr = [o.text for o in outputs_of(notebook) if o.output_type == "stream" and o.name == "stderr"]
    assert stderr == []
    assert len(pictures(notebook)) == kept > 0
    assert list(beside.iterdir()) == []  # it leaves no files behind


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_kept_whole_small_and_anonymous(path):
    notebook = read(path)
    cells = code_cells(notebook)
    assert len(cells) > 0
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # run once, in order
    assert len(tagged(notebook)) <= 1
    assert len(pictures(notebook)) > 0
    assert path.stat().st_size < 400_000
    kinds = {(o.output_type, o.get("name")) for o in outputs_of(notebook)}
    assert not [kind for kind in kinds if kind[0] == "error" or kind[1] == "stderr"]
    told = [*texts(notebook), *(cell.source for cell in notebook.cells)]
    assert [text for text in told if PLACES.search(text)] == []


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ("saved to /home/ann/run.csv", True),
        ("File '/usr/lib/python3.11/ast.py'", True),
        (r"C:\Users\ann", True),
        ("lib/python3.11/site-packages/torch", True),
        ("../benchmarks/ablation-digits.csv", False),
        ("https://example.org/home/page", False),
        ("19.0 nJ (0.47x) and 1/2", False),
    ],
)
def test_a_path_of_a_machine_is_found(text, tells):
    assert bool(PLACES.search(text)) == tells
