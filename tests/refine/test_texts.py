"""Unit: texts that are there without a download; the held-out ones share nothing with what is learnt on."""

import ast
import sysconfig
from pathlib import Path

import pytest

from marsnn.errors import FileError, InputError
from marsnn.refine import texts
from marsnn.refine.texts import LEAST, NAMES, STDLIB, read_text

SOME = 300_000


@pytest.fixture(scope="module")
def library():
    return read_text("library")


def test_every_name_is_a_text():
    for name in NAMES:
        assert len(read_text(name, SOME)) > 100_000, name


def test_the_library_is_its_modules_docstrings_and_no_other_text(library):
    import argparse
    import asyncio
    import collections

    for known in (collections.namedtuple, collections.Counter, asyncio.run, asyncio.gather):
        assert library.count(ast.get_docstring(_tree(known))) == 1
    for module in (argparse, *map(__import__, STDLIB)):
        assert module.__doc__.strip() not in library, module.__name__
    assert "Test case class" not in library


def _tree(function):
    import inspect
    import textwrap

    return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]


def test_the_library_is_always_the_same_and_a_part_of_it_is_its_beginning(library):
    part = read_text("library", SOME)
    assert SOME <= len(part) < len(library)
    assert library.startswith(part)
    assert read_text("library", SOME) == part


def test_modules_of_the_library_belong_to_no_package():
    root = Path(sysconfig.get_path("stdlib"))
    found = [path.relative_to(root) for path in texts._library()]
    assert len(found) > 300
    assert len(found) == len(set(found))
    for path in found:
        assert not {"site-packages", "test", "tests", "idle_test"} & set(path.parts)
        assert path.parts[0].removesuffix(".py") not in STDLIB
    packages = {path.resolve() for path in texts._packages()}
    assert not packages & {(root / path).resolve() for path in found}


def test_short_docstrings_are_left_out_and_repeated_ones_taken_once(tmp_path):
    long, other = "a" * LEAST, "b" * (LEAST + 1)
    for name, held in (("one", long), ("two", "c" * (LEAST - 1)), ("three", long), ("four", other)):
        (tmp_path / f"{name}.py").write_text(f'"""{held}"""\n')
    files = [tmp_path / f"{name}.py" for name in ("one", "two", "three", "four")]
    assert texts._gathered(files, texts._long_docstrings, None) == f"{long}\n\n{other}"


def test_what_is_no_text_is_told_of(tmp_path):
    with pytest.raises(InputError, match="library"):
        read_text("nowhere")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(FileError, match="UTF-8"):
        read_text(str(tmp_path / "bytes"))
