"""Tasks to compare neurons on: real digits, real text, a synthetic memory; or one function of your own.

A task is three disjoint parts of x [L, B, D] and y [B], and how a network is put around the neuron:

    def my_task() -> Task:
        ...
        return Task("mine", train=Split(x, y), validation=Split(x, y), test=Split(x, y))

Its name on the command line is `my_file.py:my_task` or `package.module:my_task`; that runs your code, as
importing it does. Everything else here is deterministic: the same splits in every call.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.checks import finite
from marsnn.data import Form, Split, load_digits
from marsnn.errors import FileError, InputError, MarsnnError, ShapeError
from marsnn.network import Network
from marsnn.neurons.base import Carry, Neuron

Make = Callable[[int], Neuron]
"""Makes one population of so many neurons of the model under test."""

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """Three disjoint parts, and what stands around the neuron.

    Attributes:
        name: for tables and messages.
        train: is fitted.   validation: chooses settings.   test: is looked at once.
        carry: "sequence" if neurons that can shall hand their state from token to token.
        readout: "mean" classifies by the scores averaged over tokens, "last" by those of the last token.
        build: own network from `neuron`, where `neuron(features)` makes a population of the neuron under
            test; any module from x [L, B, D] to scores [L, B, C], which are averaged over tokens. None for
            Linear-X-Linear-X-Linear. It should not ask which neuron it gets: equal networks are the point.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    carry: Carry = "sequence"
    readout: Literal["mean", "last"] = "mean"
    build: Callable[[Make], nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.readout not in ("mean", "last"):
            raise InputError(f'{self.name}: readout must be "mean" or "last", got {self.readout!r}')
        if self.carry not in ("token", "sequence"):
            raise InputError(f'{self.name}: carry must be "token" or "sequence", got {self.carry!r}')
        for part in PARTS:
            _check_split(f"{self.name}, {part}", getattr(self, part))
        sizes = {part: tuple(getattr(self, part).x.shape[2:]) for part in PARTS}
        dtypes = {part: getattr(self, part).x.dtype for part in PARTS}
        if len(set(sizes.values())) > 1 or len(set(dtypes.values())) > 1:
            shown = ", ".join(f"{part} {list(sizes[part])} {dtypes[part]}" for part in PARTS)
            raise ShapeError(f"{self.name}: the parts differ in features or dtype: {shown}")

    @property
    def classes(self) -> int:
        """C, one more than the highest class of any part."""
        return 1 + max(int(getattr(self, part).y.max()) for part in PARTS)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the data and of what stands around the neuron: equal tasks have equal ones."""
        digest = hashlib.sha256()
        built = getattr(self.build, "__qualname__", repr(self.build))
        digest.update(f"{self.name} {self.carry} {self.readout} {built}".encode())
        for part in PARTS:
            for tensor in (getattr(self, part).x, getattr(self, part).y):
                digest.update(f"{part} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def network(self, neuron: Make, hidden: int) -> nn.Module:
        """The module to train, on the random numbers as they stand; classes and inputs from the data."""
        x = self.train.x
        if self.build is not None:
            module = self.build(neuron)
            if not isinstance(module, nn.Module):
                raise InputError(f"{self.name}: build must return a Module, got {type(module).__name__}")
            return module
        if x.ndim != 3:
            raise ShapeError(
                f"{self.name}: x {list(x.shape)} is not [L, B, D]; give the task a build= of its own"
            )
        inputs = x.shape[-1]
        layers = [nn.Linear(inputs, hidden), neuron(hidden), nn.Linear(hidden, hidden), neuron(hidden)]
        network = Network([*layers, nn.Linear(hidden, self.classes)]).to(x.dtype)
        return LastToken(network) if self.readout == "last" else network


class LastToken(nn.Module):
    """The scores of the last token alone: [L, B, C] to [1, B, C]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(x)
        return output[-1:]


def _check_split(where: str, split: object) -> None:
    if not isinstance(split, Split):
        raise InputError(f"{where}: expected a marsnn.data.Split(x, y), got {type(split).__name__}")
    x, y = split.x, split.y
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise InputError(f"{where}: x and y must be tensors, got {type(x).__name__}, {type(y).__name__}")
    if x.ndim < 3 or y.ndim != 1 or x.shape[1] != len(y) or 0 in x.shape:
        raise ShapeError(f"{where}: expected x [L, B, D] and y [B], got {list(x.shape)} and {list(y.shape)}")
    if not x.is_floating_point() or y.is_floating_point() or y.is_complex() or int(y.min()) < 0:
        raise InputError(f"{where}: expected float x and class indices y >= 0, got {x.dtype} and {y.dtype}")
    finite(f"{where}: x", x)


# ---- digits -----------------------------------------------------------------------------------------


def digits() -> Task:
    """scikit-learn's digits, one token of 64 pixels each."""
    return _digits("digits", "flat")


def digits_rows() -> Task:
    """The same images as sequences of 8 rows: each class needs more than one row to be known."""
    return _digits("digits-rows", "rows")


def _digits(name: str, form: Form) -> Task:
    parts = load_digits(form)
    return Task(name, parts.train, parts.validation, parts.test)


# ---- topics -----------------------------------------------------------------------------------------

TOPICS = {
    "asynchronous": ("asyncio",),
    "mail": ("email", "imaplib", "mailbox", "poplib", "smtplib"),
    "imports": ("compileall", "importlib", "modulefinder", "pkgutil", "runpy", "zipapp", "zipimport"),
    "numbers": (
        "_pydecimal", "bisect", "calendar", "colorsys", "datetime", "fractions", "heapq", "numbers",
        "random", "statistics",
    ),
    "tests": ("bdb", "doctest", "pdb", "unittest"),
    "web": ("ftplib", "html", "http", "socketserver", "urllib", "webbrowser", "wsgiref", "xmlrpc"),
}  # fmt: skip
"""Topic -> modules and packages of Python's standard library whose docstrings are about it."""

TOKENS, WORDS, HASHED = 4, 8, 512  # a passage is 4 tokens of 8 words; a word is one of 512 hashed features


def topics() -> Task:
    """Which of six topics a passage of 32 words is about; real English text, x [4, B, 512].

    The text is the docstrings of Python's own standard library, read (never imported) from the running
    Python. A document is one source file; each lies wholly in one part, so a passage is never beside the
    rest of its file. A word of three letters or more sets one of 512 features by its CRC-32; a token is the
    set of 8 words, values 0 and 1. Passages that occur in an earlier part are dropped from the later ones.
    Another Python version has other text: the task's fingerprint tells them apart.

    Raises:
        MarsnnError: the standard library lies here without its sources.
    """
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[tuple[int, tuple[str, ...]]]] = {part: [] for part in PARTS}
    for label, modules in enumerate(TOPICS.values()):
        documents = [_passages(path) for module in modules for path in _sources(library, module)]
        # longest first in turns, so that every part has long and short documents of every topic
        for turn, passages in enumerate(sorted(filter(None, documents), key=len, reverse=True)):
            part = ("train", "validation", "test", "train", "train")[turn % 5]
            found[part] += [(label, passage) for passage in passages]
    seen: set[tuple[str, ...]] = set()
    splits = []
    for part in PARTS:
        kept = [(label, passage) for label, passage in found[part] if passage not in seen]
        seen |= {passage for _, passage in kept}
        if {label for label, _ in kept} != set(range(len(TOPICS))):
            raise MarsnnError(
                f"topics: {library} lacks the sources of Python's standard library; use a full Python"
            )
        splits.append(_hashed(kept))
    train, validation, test = splits
    return Task("topics", train, validation, test)


def _sources(library: Path, module: str) -> list[Path]:
    """The module's file, or its package's files in order of their paths; tests left out."""
    single = library / f"{module}.py"
    if single.is_file():
        return [single]
    files = sorted((library / module).rglob("*.py"), key=lambda path: path.as_posix())
    return [path for path in files if not {"test", "tests"} & set(path.relative_to(library).parts)]


def _passages(path: Path) -> list[tuple[str, ...]]:
    """The docstrings of one file as passages of TOKENS x WORDS words, the rest dropped."""
    words = [word for text in _docstrings(path) for word in re.findall(r"[a-z]{3,}", text.lower())]
    size = TOKENS * WORDS
    return [tuple(words[i : i + size]) for i in range(0, len(words) - size + 1, size)]


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _hashed(labelled: list[tuple[int, tuple[str, ...]]]) -> Split:
    """x [TOKENS, B, HASHED] of zeros and ones, y [B]."""
    x = torch.zeros(TOKENS, len(labelled), HASHED)
    for b, (_, passage) in enumerate(labelled):
        for i, word in enumerate(passage):
            x[i // WORDS, b, zlib.crc32(word.encode()) % HASHED] = 1
    return Split(x, torch.tensor([label for label, _ in labelled]))


# ---- selective copying ------------------------------------------------------------------------------

LENGTH, STORED, SYMBOLS = 12, 2, 4


def selective_copying() -> Task:
    """Which symbol stood k-th among the noise? x [13, B, 7], chance is 1 in 4.

    A small form of selective copying (Gu and Dao 2023, arXiv 2312.00752, section 4.1.1): among 12 tokens, 10
    of noise, stand 2 symbols of 4 at random places; a 13th token asks for the first or the second. Only the
    last token is classified. The source copies 16 symbols of 16 from 4,096 tokens, all of them in order.

    A neuron without a state across tokens (ATMN, `carry="token"`) sees the question alone: it can't beat
    chance, and that is what the task is there to show.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(samples: int) -> Split:
        symbols = torch.randint(SYMBOLS, (samples, STORED), generator=generator)
        places = torch.rand(samples, LENGTH, generator=generator).argsort(1)[:, :STORED].sort(1).values
        asked = torch.randint(STORED, (samples,), generator=generator)
        tokens = torch.full((samples, LENGTH + 1), SYMBOLS)  # noise
        tokens.scatter_(1, places, symbols)
        tokens[:, -1] = SYMBOLS + 1 + asked
        x = F.one_hot(tokens, SYMBOLS + 1 + STORED).float().transpose(0, 1)
        return Split(x.contiguous(), symbols.gather(1, asked[:, None]).squeeze(1))

    return Task("selective-copying", draw(1000), draw(500), draw(1000), readout="last")


# ---- finding a task ---------------------------------------------------------------------------------

TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "digits-rows": digits_rows,
    "topics": topics,
    "selective-copying": selective_copying,
}
"""The names that `--task` knows."""

Source = str | Callable[[], Task]
"""A task's name, `file.py:function`, `package.module:function`, or the function itself."""


def load_task(source: Source) -> Task:
    """The task of that name, or the one that your function returns.

    Raises:
        InputError: no such name, module or function, or it returns no Task.   FileError: no such file.
        MarsnnError: your function failed; the message says where.
    """
    function = source if callable(source) else TASKS.get(source) or _own(source)
    name = getattr(function, "__name__", repr(function)) if callable(source) else source
    task = function() if function in TASKS.values() else _called(name, function)
    if not isinstance(task, Task):
        raise InputError(f"{name} must return a marsnn.tasks.Task, got {type(task).__name__}")
    return task


def _called(name: str, function: Callable[[], Task]) -> Task:
    """What a user's function returns; where it fails, one line that says where."""
    try:
        return function()
    except MarsnnError:
        raise
    except Exception as error:
        raise MarsnnError(f"{name} failed: {_where(error)}") from error


def _own(source: str) -> Callable[[], Task]:
    """The function that `file.py:function` or `package.module:function` names."""
    module_name, colon, function_name = source.rpartition(":")
    if not colon or not module_name or not function_name:
        raise InputError(
            f"no task named {source!r}; known: {', '.join(TASKS)}, or your own as my_file.py:function"
        )
    module = _from_file(Path(module_name)) if module_name.endswith(".py") else _from_name(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{source}: {module_name} has no function named {function_name!r}")
    return function  # type: ignore[no-any-return]


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileError(f"{path}: no such file; --task takes file.py:function")
    name = f"marsnn_task_{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise MarsnnError(f"{path} failed: {_where(error)}") from error
    return module


def _from_name(name: str) -> ModuleType:
    here = str(Path.cwd())
    try:
        if here not in sys.path:  # as `python -m` has it
            sys.path.insert(0, here)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"no module named {error.name!r}; --task takes package.module:function") from error
    except Exception as error:
        raise MarsnnError(f"{name} failed: {_where(error)}") from error


def _where(error: Exception) -> str:
    """The error and the line of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


def resolved(source: Source) -> Source:
    """A source that means the same in another working folder."""
    if isinstance(source, str) and source not in TASKS:
        module_name, colon, function_name = source.rpartition(":")
        if colon and module_name.endswith(".py"):
            return f"{Path(module_name).resolve()}:{function_name}"
    return source
