"""Text that is there without any download: what to calibrate and to learn on, and what to be measured on.

    docstrings   of installed packages, read in place: to learn on
    topics       the language reference in Python's `pydoc_data`: English, held out
    stdlib       source code of Python's standard library: another domain, held out

A language model may have seen all three when it was trained; what is compared is two models on the same text.
"""

from __future__ import annotations

import ast
import importlib.util
import random
from pathlib import Path

from marsnn.errors import FileError, InputError

PACKAGES = (
    "numpy", "torch", "transformers", "matplotlib", "sklearn", "scipy", "networkx", "sympy", "rich", "typer",
)  # fmt: skip
STDLIB = ("argparse", "difflib", "heapq", "random", "statistics", "textwrap", "zipfile")
NAMES = ("docstrings", "topics", "stdlib")

LEAST = 200
"""Characters of a docstring that is taken."""
FILES = 400
"""Modules of a package that are looked into: parsing takes longer than reading."""


def read_text(source: str, most: int | None = None) -> str:
    """One of `NAMES`, or the text of a UTF-8 file.

    Args:
        source: which.
        most: characters that are enough; docstrings, which have to be looked for, end there.

    Raises:
        InputError: no such text.   FileError: the file can't be read, or isn't text.
    """
    if source == "docstrings":
        return _docstrings(most)
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


def _docstrings(most: int | None) -> str:
    """Of those of `PACKAGES` that are installed, each once, in an order that is always the same."""
    paths: list[Path] = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            found = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
            random.Random(package).shuffle(found)
            paths += found[:FILES]
    random.Random(0).shuffle(paths)
    texts: dict[str, None] = {}
    size = 0
    for path in paths:
        for text in _long_docstrings(path):
            if text not in texts:
                texts[text] = None
                size += len(text) + 2
        if most is not None and size >= most:
            break
    return "\n\n".join(texts)


def _long_docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in texts if text and len(text) >= LEAST]
