"""Text that is there without any download: what to calibrate and to learn on, and what to be measured on.

    docstrings   of installed packages, read in place: to learn on
    sources      the code of those packages: to learn on, where docstrings are too few, or code is wanted
    library      docstrings of Python's standard library: of that kind, from other hands, held out
    topics       the language reference in Python's `pydoc_data`: English, held out
    stdlib       source code of a few modules of the standard library: another domain, held out

`docstrings` and `library` come from different packages; the few texts that one copied from the other stay in
both (3 of 2,245 in Python 3.11). `stdlib` and `library` share no module. A language model may have seen all
four when it was trained; what is compared is two models on the same text.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

from marsnn.errors import FileError, InputError

PACKAGES = (
    "numpy", "torch", "transformers", "matplotlib", "sklearn", "scipy", "networkx", "sympy", "rich", "typer",
)  # fmt: skip
STDLIB = ("argparse", "difflib", "heapq", "random", "statistics", "textwrap", "zipfile")
NAMES = ("docstrings", "sources", "library", "topics", "stdlib")
NO_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data"}
"""Folders of the standard library without its own docstrings: others' packages, tests, data."""

LEAST = 200
"""Characters of a docstring that is taken."""
FILES = 400
"""Modules of a package that are looked into: parsing takes longer than reading."""


def read_text(source: str, most: int | None = None) -> str:
    """One of `NAMES`, or the text of a UTF-8 file.

    Args:
        source: which.
        most: characters that are enough; what has to be looked for in packages ends there.

    Raises:
        InputError: no such text.   FileError: the file can't be read, or isn't text.
    """
    if source == "docstrings":
        return _gathered(_packages(), _long_docstrings, most)
    if source == "sources":
        return _gathered(_packages(), _code, most)
    if source == "library":
        return _gathered(_library(), _long_docstrings, most)
    if source == "topics":
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    if source == "stdlib":
        return "\n".join(_source(name).read_text(encoding="utf-8") for name in STDLIB)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"no text {source!r}; say {', '.join(NAMES)}, or the path of a text file")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path}: can't read it: {error.strerror}") from error
    except ValueError as error:
        raise FileError(f"{path}: not text in UTF-8") from error


def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise InputError(f"this Python has no source of its module {module!r}; name a text file instead")
    return Path(spec.origin)


def _packages() -> list[Path]:
    """Modules of those of `PACKAGES` that are installed, in an order that is always the same."""
    paths: list[Path] = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            found = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
            random.Random(package).shuffle(found)
            paths += found[:FILES]
    random.Random(0).shuffle(paths)
    return paths


def _library() -> list[Path]:
    """Modules of Python's standard library, but for `STDLIB`, in an order that is always the same."""
    root = Path(sysconfig.get_path("stdlib"))
    kept = [path for path in root.iterdir() if path.name not in NO_LIBRARY and path.stem not in STDLIB]
    files = {file for path in kept for file in (path.rglob("*.py") if path.is_dir() else [path])}
    paths = sorted(
        file
        for file in files
        if file.suffix == ".py" and not NO_LIBRARY.intersection(file.relative_to(root).parts)
    )
    random.Random(0).shuffle(paths)
    return paths


def _gathered(paths: Iterable[Path], read: Callable[[Path], list[str]], most: int | None) -> str:
    """What is read in these modules, each text once."""
    texts: dict[str, None] = {}
    size = 0
    for path in paths:
        for text in read(path):
            if text not in texts:
                texts[text] = None
                size += len(text) + 2
        if most is not None and size >= most:
            break
    return "\n\n".join(texts)


def _code(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    return [text] if len(text) >= LEAST else []


def _long_docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in texts if text and len(text) >= LEAST]
