"""Another Python: tried before it is trusted, run without our environment, its failure told in one line."""

import sys

import pytest

from marsnn.errors import LavaError
from marsnn.hardware import beside

RIGHT, WRONG = "import sys", "import sys; sys.exit(3)"


def found(probe, candidates):
    return beside.find(
        "MARSNN_TEST_PYTHON", probe, lambda: candidates, "the right one", "none here", LavaError
    )


def test_a_python_that_fails_the_probe_is_passed_over(monkeypatch):
    monkeypatch.delenv("MARSNN_TEST_PYTHON", raising=False)
    assert found(RIGHT, ["/nowhere/python", sys.executable]) == sys.executable
    with pytest.raises(LavaError, match="none here"):
        found(WRONG, [sys.executable])


def test_a_setting_is_tried_too_and_nothing_else_then(monkeypatch):
    monkeypatch.setenv("MARSNN_TEST_PYTHON", sys.executable)
    assert found(RIGHT, []) == sys.executable
    with pytest.raises(LavaError, match=r"MARSNN_TEST_PYTHON=.* is not the right one; correct or unset it"):
        found(WRONG, [sys.executable])


def test_only_what_failed_is_tried_again(monkeypatch, tmp_path):
    """What is missing may be installed while a notebook runs."""
    asked, here = tmp_path / "asked", tmp_path / "here"
    probe = f"open({str(asked)!r}, 'a').write('x'); open({str(here)!r})"
    assert [beside.works(sys.executable, probe) for _ in range(2)] == [False, False]
    here.touch()
    assert [beside.works(sys.executable, probe) for _ in range(2)] == [True, True]
    assert asked.read_text() == "xxx"


SCRIPT = """
import os, sys
from pathlib import Path
Path(sys.argv[1]).write_text(str(sorted(name for name in os.environ if name.startswith("PYTHON"))))
print("the last line", file=sys.stderr)
sys.exit(int(sys.argv[2]))
"""


def test_a_run_sees_nothing_of_our_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    beside.run(sys.executable, script, [out, "0"], out, "the run", LavaError)
    assert out.read_text() == "[]"
    beside.run(sys.executable, script, [out, "1"], out, "the run", LavaError, fine=(0, 1))


def test_a_failed_run_says_its_last_line(tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    with pytest.raises(LavaError, match=r"the run failed \(exit 1\): the last line"):
        beside.run(sys.executable, script, [out, "1"], out, "the run", LavaError)
    script.write_text('print("error: the reason", file=__import__("sys").stderr)\n' + SCRIPT)
    with pytest.raises(LavaError, match=r"the run failed \(exit 1\): the reason"):  # warnings may follow it
        beside.run(sys.executable, script, [out, "1"], out, "the run", LavaError)
    with pytest.raises(LavaError, match=r"\(exit 0\)"):
        beside.run(sys.executable, script, [out, "0"], tmp_path / "other", "the run", LavaError)
