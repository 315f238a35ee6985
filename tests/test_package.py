"""Contract of the package as a whole: a silent import, an honest menu, one-way imports, one top level."""

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import marsnn

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "marsnn"

OPTIONAL = {"transformers", "snntorch", "spikingjelly", "nir", "sklearn", "lava", "sanafe", "brian2"}

# Each row may import itself and the rows above it.
ORDER = [
    {"errors", "checks", "surrogate", "native", "linear", "gated"},
    {"neurons", "ssm"},
    {"network", "spiking"},
    {"record", "progress", "files", "simulator", "training", "data", "checkpoint"},
    {"intervals", "journal", "tasks", "tidy", "workers"},
    {"energy", "hardware"},
    {"refine", "ablation", "plots", "trial"},
    {"bench"},
    {"cli", "__main__"},
]
ROW = {name: row for row, names in enumerate(ORDER) for name in names}


def python(code, *flags):
    """Run code in a fresh interpreter, away from the repository's folder."""
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
        timeout=300,
    )


# ---- importing --------------------------------------------------------------------------------------


def test_import_is_silent_and_light():
    done = python("import marsnn, sys; assert 'torch' not in sys.modules", "-W", "error")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_needs_no_optional_package():
    code = (
        "import sys, marsnn, marsnn.neurons, marsnn.network, marsnn.simulator, marsnn.training\n"
        f"print(sorted({OPTIONAL!r} & set(sys.modules)), 'torch' in sys.modules)\n"
        "print('torch._dynamo' in sys.modules)"  # which takes as long as all of torch
    )
    done = python(code)
    assert done.stdout == "[] True\nFalse\n", done.stderr


def test_version_is_that_of_the_distribution():
    assert marsnn.__version__ == importlib.metadata.version("marsnn")


# ---- the menu ---------------------------------------------------------------------------------------


def test_all_is_sorted_and_complete():
    def order(name):  # constants, classes, functions: as ruff sorts __all__
        return (not name.isupper(), not name[0].isupper(), name)

    names = marsnn.__all__
    assert names == sorted(names, key=order)
    assert len(names) == len(set(names)) > 10
    assert set(names) == set(marsnn._HOMES) | set(marsnn._MODULES)
    assert dir(marsnn) == sorted([*names, "__version__"])


@pytest.mark.parametrize("name", marsnn.__all__)
def test_every_name_of_the_menu_is_there(name):
    value = getattr(marsnn, name)
    if name in marsnn._MODULES:
        assert value is importlib.import_module(f"marsnn.{name}")
    else:
        assert value.__name__ == name
        assert value.__module__.startswith(
            marsnn._HOMES[name]
        )  # defined there, or re-exported by its package
        assert value.__doc__


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'marsnn' has no attribute 'AMTN'"):
        marsnn.AMTN


@pytest.mark.parametrize("name", ["neurons", "energy", "hardware", "plots", "ssm"])
def test_the_subpackages_menus_are_honest(name):
    module = importlib.import_module(f"marsnn.{name}")
    assert len(module.__all__) > 0
    assert all(getattr(module, each) is not None for each in module.__all__)


# ---- imports point one way --------------------------------------------------------------------------


def sources():
    """Module name -> its file, but for the runtimes for Lava and SANA-FE, which run without marsnn."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.parent.name.endswith("_runtime"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


def imported(path):
    """The marsnn modules that a file imports, anywhere in it, typing included."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                targets.add(whole if whole in SOURCES or node.module == "marsnn" else node.module)
    return {target for target in targets if target.split(".")[0] == "marsnn"}


def row_of(module):
    name = module.split(".")[1]
    assert name in ROW, f"{module} has no place in the order yet: put it into a row of ORDER, in this test"
    return ROW[name]


def test_the_scan_sees_the_package():
    assert len(SOURCES) > 10
    assert {"marsnn", "marsnn.neurons", "marsnn.neurons.lif", "marsnn.simulator"} <= set(SOURCES)
    assert imported(PACKAGE / "neurons" / "lif.py") == {
        "marsnn.surrogate",
        "marsnn.neurons.base",
        "marsnn.neurons.fused",
        "marsnn.neurons.rate",
    }


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"marsnn"}))
def test_imports_point_one_way(module):
    row = row_of(module)
    for target in imported(SOURCES[module]) - {"marsnn"}:  # the menu itself is lazy: it imports nothing
        assert row_of(target) <= row, f"{module} imports {target}, which comes after it"


def test_no_circles():
    """Also within a row, and through imports inside functions; a package's menu is no part of a circle."""
    menus = {module for module, path in SOURCES.items() if path.name == "__init__.py"}
    edges = {
        module: imported(SOURCES[module]) - {module} - menus for module in SOURCES if module not in menus
    }
    assert sum(map(len, edges.values())) > 20
    done, open_path = set(), []

    def visit(module):
        assert module not in open_path, " -> ".join([*open_path, module])
        if module not in done:
            open_path.append(module)
            for target in sorted(edges.get(module, ())):
                visit(target)
            open_path.pop()
            done.add(module)

    for module in edges:
        visit(module)


def test_no_module_takes_the_place_of_a_function_of_the_same_name():
    """Importing `marsnn.hardware.export`, were it a module, would replace the menu's function."""
    seen = 0
    for module in SOURCES:
        parent, _, name = module.rpartition(".")
        menu = getattr(importlib.import_module(parent), "__all__", ()) if parent else ()
        if name in menu:
            seen += 1
            assert name in getattr(importlib.import_module(parent), "_MODULES", ()), module
    assert seen == len(marsnn._MODULES)


# ---- the wheel --------------------------------------------------------------------------------------


def has_backend():
    """Whether this environment can build by itself; otherwise the build makes one of its own."""
    version = importlib.metadata.version("setuptools") if importlib.util.find_spec("setuptools") else "0"
    return int(version.split(".")[0]) >= 77


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in the wheel built from a copy of the repository, its links at the top included."""
    folder = tmp_path_factory.mktemp("build")
    skip = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__", "marsnn-demo")
    shutil.copytree(ROOT, folder / "repo", symlinks=True, ignore=skip)
    assert (folder / "repo" / "neurons").is_symlink()
    flags = ["--no-isolation"] if has_backend() else []
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", *flags, "--outdir", str(folder), str(folder / "repo")],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_wheel_has_one_top_level(wheel):
    assert {name.split("/")[0] for name in wheel} == {"marsnn", f"marsnn-{marsnn.__version__}.dist-info"}


def test_wheel_holds_every_file_of_the_package(wheel):
    kept = {".py", ".toml", ".typed", ".h"}
    here = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.suffix in kept}
    assert {name for name in wheel if name.startswith("marsnn/")} == here
    assert "marsnn/py.typed" in here
    assert any(name.startswith("marsnn/energy/tables/") and name.endswith(".toml") for name in here)
    assert any(name.startswith("marsnn/hardware/profiles/") and name.endswith(".toml") for name in here)
    assert {f"marsnn/hardware/{of}_runtime/run.py" for of in ("lava", "netx", "sanafe")} <= here
    assert "marsnn/neurons/kernels/unroll.h" in here
