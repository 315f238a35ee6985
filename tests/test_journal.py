"""Unit: what a journal keeps, what it forgives, what it refuses."""

import json

import pytest

from marsnn.errors import FileError
from marsnn.journal import Journal

HEADER = {"task": "digits", "epochs": 3}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "a.journal.jsonl"
    with Journal(path, HEADER) as journal:
        journal.add({"seed": 0}, {"accuracy": 0.25})
        journal.add({"seed": 1, "tau": 0.1}, {"accuracy": 1 / 3})
    return path


def test_results_come_back_exactly(path):
    with Journal(path, {"epochs": 3, "task": "digits"}) as journal:
        assert {"seed": 0} in journal
        assert journal[{"tau": 0.1, "seed": 1}] == {"accuracy": 1 / 3}
        assert {"seed": 2} not in journal
    assert len(path.read_text().splitlines()) == 3


def test_each_result_is_on_disk_before_the_next(path):
    with Journal(path, HEADER) as journal:
        journal.add({"seed": 2}, {"accuracy": 0.5})
        assert json.loads(path.read_text().splitlines()[-1]) == {
            "key": {"seed": 2},
            "result": {"accuracy": 0.5},
        }


@pytest.mark.parametrize("torn", ['{"key":{"se', '{"key":{"seed":7},"result":{}}', "{", "\x00\x00"])
def test_a_torn_last_line_is_cut_off(path, torn):
    """Also one that happens to be whole but for its end: it may not have been all of it."""
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    with Journal(path, HEADER) as journal:
        assert {"seed": 7} not in journal
        assert path.read_bytes() == whole
        journal.add({"seed": 7}, {"accuracy": 1.0})
    assert path.read_bytes().startswith(whole)
    with Journal(path, HEADER) as journal:
        assert journal[{"seed": 7}] == {"accuracy": 1.0}


def test_a_torn_header_is_written_again(tmp_path):
    path = tmp_path / "a.journal.jsonl"
    path.write_text('{"header":{"task"')
    with Journal(path, HEADER) as journal:
        journal.add({"seed": 0}, {})
    with Journal(path, HEADER) as journal:
        assert {"seed": 0} in journal


@pytest.mark.parametrize("damage", ["hello", "[1]", '{"key":{}}', "[" * 100_000])
def test_damage_before_the_end_is_refused_by_line(path, damage):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, lines[2]]) + "\n")
    with pytest.raises(FileError, match=r"a\.journal\.jsonl: line 2 is damaged"):
        Journal(path, HEADER)


def test_another_file_is_no_journal(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with pytest.raises(FileError, match="line 1 is damaged or not of a journal"):
        Journal(path, HEADER)
    assert path.read_text() == "dear diary\n"


def test_another_configuration_is_refused_by_name(path):
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"another configuration: epochs 3 \(now 4\); choose another file"):
        Journal(path, {**HEADER, "epochs": 4})
    with pytest.raises(FileError, match=r"hidden None \(now 8\)"):
        Journal(path, {**HEADER, "hidden": 8})
    assert path.read_bytes() == before


def test_two_runs_on_one_journal_are_told_apart(path):
    with Journal(path, HEADER), pytest.raises(FileError, match="another run is writing it"):
        Journal(path, HEADER)
    Journal(path, HEADER).close()


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="can't write"):
        Journal(tmp_path / "file" / "a.jsonl", HEADER)


def test_in_memory_it_holds_what_a_file_would(path):
    with Journal(None, HEADER) as journal:
        journal.add({"seed": 0}, {"values": (1, 2)})
        assert journal[{"seed": 0}] == {"values": [1, 2]}
    with Journal(None, HEADER) as journal, pytest.raises(ValueError, match="JSON"):
        journal.add({"seed": 0}, {"loss": float("nan")})
