"""Unit: the tasks are what they say, their parts share nothing, and a user's own is found."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from marsnn import tasks
from marsnn.data import Split, load_digits
from marsnn.errors import FileError, InputError, MarsnnError, NonFiniteError, ShapeError
from marsnn.network import Network
from marsnn.neurons import LIF
from marsnn.tasks import PARTS, TASKS, Task, load_task, resolved
from tests import small_task
from tests.helpers import same


@pytest.fixture(scope="module")
def loaded():
    return {name: load_task(name) for name in TASKS}


def test_every_task_has_three_parts_of_its_name(loaded):
    assert list(loaded) == ["digits", "digits-rows", "topics", "selective-copying"]
    for name, task in loaded.items():
        assert task.name == name
        assert all(set(getattr(task, part).y.tolist()) == set(range(task.classes)) for part in PARTS)


@pytest.mark.parametrize("name", ["digits", "topics", "selective-copying"])
def test_tasks_repeat(loaded, name):
    again = load_task(name)
    assert again.fingerprint == loaded[name].fingerprint
    assert all(same(getattr(again, part).x, getattr(loaded[name], part).x) for part in PARTS)


def test_digits_are_those_of_load_digits(loaded):
    assert same(loaded["digits"].test.x, load_digits("flat").test.x)
    assert same(loaded["digits-rows"].train.x, load_digits("rows").train.x)


# ---- topics -----------------------------------------------------------------------------------------


def test_topics_are_sets_of_hashed_words(loaded):
    task = loaded["topics"]
    assert task.classes == len(tasks.TOPICS) == 6
    for part in PARTS:
        x = getattr(task, part).x
        assert x.shape[::2] == (tasks.TOKENS, tasks.HASHED)
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert x.sum(-1).min() >= 1
        assert x.sum(-1).max() <= tasks.WORDS
    assert len(task.train) > 800
    assert min(len(task.validation), len(task.test)) > 200


def test_topics_hold_the_text_of_the_standard_library(loaded):
    """The first passage of bisect's docstrings, hashed here by another way, is among the samples."""
    import bisect
    import zlib

    path = Path(bisect.__file__)
    words = re.findall("[a-z]{3,}", " ".join(tasks._docstrings(path)).lower())[:32]
    assert words[:3] == ["bisection", "algorithms", "insert"]
    expected = torch.zeros(4, 512)
    for token in range(4):
        for word in words[8 * token : 8 * token + 8]:
            expected[token, zlib.crc32(word.encode()) % 512] = 1
    numbers = list(tasks.TOPICS).index("numbers")
    found = [
        int(y)
        for part in PARTS
        for b, y in enumerate(getattr(loaded["topics"], part).y)
        if torch.equal(getattr(loaded["topics"], part).x[:, b], expected)
    ]
    assert found == [numbers]


def test_topics_parts_share_no_file_and_no_passage(monkeypatch):
    read = tasks._passages
    monkeypatch.setattr(tasks, "_passages", lambda path: [(path.as_posix(), *p) for p in read(path)])
    parts = []

    def hashed(labelled):
        parts.append([passage for _, passage in labelled])
        return Split(torch.zeros(1, 1, 1), torch.zeros(1, dtype=torch.long))

    monkeypatch.setattr(tasks, "_hashed", hashed)
    tasks.topics()
    files = [{passage[0] for passage in part} for part in parts]
    assert min(map(len, files)) >= len(tasks.TOPICS)
    assert not files[0] & files[1] | files[0] & files[2] | files[1] & files[2]
    assert not any({"test", "tests"} & set(Path(name).parts) for name in set.union(*files))


def test_topics_drop_passages_that_an_earlier_part_has(monkeypatch):
    """All files say the same: only the first part may keep it."""
    monkeypatch.setattr(tasks, "_passages", lambda path: [("copied",) * 32])
    with pytest.raises(MarsnnError, match="use a full Python"):
        tasks.topics()


def test_topics_need_the_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(MarsnnError, match="lacks the sources of Python's standard library"):
        tasks.topics()


# ---- selective copying ------------------------------------------------------------------------------


def test_selective_copying_asks_for_what_it_showed(loaded):
    """Read again token by token: 2 symbols, 10 of noise, one question; the answer is the symbol asked for."""
    task = loaded["selective-copying"]
    assert task.readout == "last"
    places = set()
    for part in PARTS:
        split = getattr(task, part)
        assert bool((split.x.sum(-1) == 1).all())
        for tokens, answer in zip(split.x.argmax(-1).T.tolist(), split.y.tolist(), strict=True):
            *shown, question = tokens
            symbols = [token for token in shown if token < 4]
            assert [shown.count(4), len(shown), question in (5, 6)] == [10, 12, True]
            assert symbols[question - 5] == answer
            places |= {place for place, token in enumerate(shown) if token < 4}
    assert places == set(range(12))
    assert torch.bincount(task.test.y).min() > 200  # of 1,000: no class stands out


def test_the_last_token_alone_is_read(loaded):
    task = loaded["selective-copying"]
    network = task.network(lambda features: LIF(features, steps=2, threshold=0.1, carry="token"), hidden=8)
    x = task.test.x[:, :3]
    scores = network(x)
    assert scores.shape == (1, 3, 4)
    asked_otherwise = x.clone()
    asked_otherwise[-1] = 3 * x[0]
    assert not torch.equal(scores, network(asked_otherwise))
    other = x.clone()
    other[:-1] = x[:-1].flip(0)
    assert torch.equal(scores, network(other))  # no state crosses tokens here, so nothing else is seen


# ---- a task's network -------------------------------------------------------------------------------


def test_the_network_is_linear_x_linear_x_linear():
    task = small_task.corners()
    network = task.network(lambda features: LIF(features), hidden=5)
    assert isinstance(network, Network)
    assert network.names == ("linear1", "lif1", "linear2", "lif2", "linear3")
    sizes = [
        (layer.in_features, layer.out_features)
        for layer in network.layers.values()
        if isinstance(layer, nn.Linear)
    ]
    assert sizes == [(4, 5), (5, 5), (5, 3)]


def test_a_network_of_ones_own():
    def build(neuron):
        return Network([nn.Linear(4, 6), neuron(6), nn.Linear(6, 3)])

    plain = small_task.corners()
    own = Task("corners", plain.train, plain.validation, plain.test, build=build)
    assert own.network(lambda features: LIF(features), hidden=99).names == ("linear1", "lif1", "linear2")
    assert own.fingerprint != plain.fingerprint
    bad = Task("corners", plain.train, plain.validation, plain.test, build=lambda neuron: None)
    with pytest.raises(InputError, match="build must return a Module, got NoneType"):
        bad.network(LIF, 4)


def test_the_fingerprint_follows_the_data():
    plain = small_task.corners()
    x = plain.test.x.clone()
    x[0, 0, 0] += 1e-6
    assert (
        Task("corners", plain.train, plain.validation, Split(x, plain.test.y)).fingerprint
        != plain.fingerprint
    )
    assert small_task.corners().fingerprint == plain.fingerprint


def _split(x=(2, 5, 4), y=None, dtype=torch.float32):
    return Split(torch.zeros(x, dtype=dtype), torch.zeros(5, dtype=torch.long) if y is None else y)


BAD = {
    "not a split": ({"train": "x"}, InputError, "corners, train: expected a marsnn.data.Split"),
    "no tensors": ({"train": Split([1], [2])}, InputError, "x and y must be tensors"),
    "two axes": ({"test": _split((5, 4))}, ShapeError, r"corners, test: expected x \[L, B, D\]"),
    "other B": ({"test": _split((2, 6, 4))}, ShapeError, r"got \[2, 6, 4\] and \[5\]"),
    "empty": ({"test": _split((0, 5, 4))}, ShapeError, "expected x"),
    "float classes": ({"test": _split(y=torch.zeros(5))}, InputError, "class indices y >= 0"),
    "negative": ({"test": _split(y=torch.full((5,), -1))}, InputError, "class indices y >= 0"),
    "whole x": ({"test": _split(dtype=torch.int64)}, InputError, "expected float x"),
    "NaN": ({"test": Split(_split().x / 0, _split().y)}, NonFiniteError, "corners, test: x"),
    "other D": ({"test": _split((2, 5, 3))}, ShapeError, r"train \[4\] torch.float32, .* test \[3\]"),
    "other dtype": ({"test": _split(dtype=torch.float64)}, ShapeError, "the parts differ"),
    "readout": ({"readout": "first"}, InputError, '"mean" or "last"'),
    "carry": ({"carry": "state"}, InputError, '"token" or "sequence"'),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_tasks_say_what_is_wrong(name):
    change, kind, match = BAD[name]
    with pytest.raises(kind, match=match):
        Task(**{"name": "corners", "train": _split(), "validation": _split(), "test": _split(), **change})


def test_images_need_a_network_of_their_own():
    images = Task("images", *[_split((1, 5, 1, 8, 8))] * 3)
    with pytest.raises(ShapeError, match="give the task a build= of its own"):
        images.network(LIF, 4)


# ---- finding a task ---------------------------------------------------------------------------------

HERE = Path(__file__).parent / "small_task.py"


@pytest.mark.parametrize("source", [small_task.corners, f"{HERE}:corners", "tests.small_task:corners"])
def test_ones_own_task(source):
    assert load_task(source).fingerprint == small_task.corners().fingerprint


def test_a_module_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "mine_alone.py").write_text("from tests.small_task import corners as theirs\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert load_task("mine_alone:theirs").name == "corners"
    assert load_task("mine_alone.py:theirs").name == "corners"
    assert resolved("mine_alone.py:theirs") == f"{tmp_path}/mine_alone.py:theirs"
    assert resolved("digits") == "digits"


def test_an_edited_file_is_read_again(tmp_path):
    path = tmp_path / "edited.py"
    text = "from marsnn.tasks import Task\nfrom tests.small_task import drawn\n\n\ndef mine():\n    return "
    path.write_text(text + "Task('one', drawn(9, 0), drawn(9, 1), drawn(9, 2))\n")
    assert load_task(f"{path}:mine").name == "one"
    path.write_text(text + "Task('other', drawn(9, 0), drawn(9, 1), drawn(9, 2))\n")
    assert load_task(f"{path}:mine").name == "other"


LOST = {
    "digit": (InputError, r"no task named 'digit'; known: digits, .* my_file\.py:function"),
    "none.py:task": (FileError, "none.py: no such file"),
    f"{HERE}:none": (InputError, "has no function named 'none'"),
    f"{HERE}:": (InputError, "no task named"),
    "no_such_package.tasks:task": (InputError, "no module named 'no_such_package'"),
    f"{HERE}:broken": (
        MarsnnError,
        r"failed: ZeroDivisionError: division by zero \(small_task.py, line \d+\)",
    ),
    f"{HERE}:nothing": (InputError, "must return a marsnn.tasks.Task, got str"),
}


@pytest.mark.parametrize("source", LOST)
def test_what_cant_be_found_is_one_line(source):
    kind, match = LOST[source]
    with pytest.raises(kind, match=match) as caught:
        load_task(source)
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_to_load_says_where(tmp_path):
    (tmp_path / "bad.py").write_text("import torch\n\nx = torch.zeros(3)[7]\n")
    with pytest.raises(MarsnnError, match=r"bad.py failed: IndexError: .*\(bad.py, line 3\)"):
        load_task(f"{tmp_path}/bad.py:task")
    (tmp_path / "worse.py").write_text("def task(:\n")
    with pytest.raises(MarsnnError, match=r"worse.py failed: SyntaxError"):
        load_task(f"{tmp_path}/worse.py:task")
