"""Unit: jobs on this and on other processes; what fails is told and the rest goes on."""

import os
import signal

import numpy as np
import pytest
import torch

from marsnn import workers
from marsnn.errors import InputError, MarsnnError, MissingDependencyError
from marsnn.workers import Failed, engine, peak_memory_mb, start_peak_memory


def job(number):
    """What a worker sees."""
    if number == 3:
        raise ValueError("three is too many")
    if number == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return number, os.getpid(), torch.get_num_threads(), torch.rand(1).item()


def test_here_torch_is_left_as_it_was():
    torch.set_num_threads(2)
    try:
        torch.manual_seed(5)
        with engine(workers=1) as run:
            found = dict(run(job, range(5)))
        assert torch.get_num_threads() == 2
        drawn = torch.rand(1)
        torch.manual_seed(5)
        assert drawn == torch.rand(1)
    finally:
        torch.set_num_threads(1)
    assert found[3] == Failed("ValueError: three is too many")
    assert [found[i][:3] for i in (0, 1, 2, 4)] == [(i, os.getpid(), 1) for i in (0, 1, 2, 4)]


def test_processes_of_this_machine_and_the_end_of_one():
    with engine(workers=2) as run:
        found = dict(run(job, range(5)))
        with pytest.raises(MarsnnError, match=r"a worker process ended.*out of memory.*__main__"):
            list(run(job, [9]))
    assert found[3] == Failed("ValueError: three is too many")
    others = [found[i] for i in (0, 1, 2, 4)]
    assert [result[0] for result in others] == [0, 1, 2, 4]
    assert os.getpid() not in {result[1] for result in others}
    assert {result[2] for result in others} == {1}


def test_nothing_is_started_for_nothing(monkeypatch):
    monkeypatch.setattr(workers._Ray, "_connect", lambda self, ray: pytest.fail("connected"))
    monkeypatch.setattr(workers, "attempt", lambda function, job: pytest.fail("attempted"))
    for name in ("local", "ray"):
        with engine(name, 2) as run:
            assert list(run(job, [])) == []


def test_what_cant_travel_is_refused():
    with engine(workers=2) as run, pytest.raises(InputError, match=r"top level .* or workers=1"):
        list(run(lambda number: number, [1]))


def test_unknown_or_missing_engines(monkeypatch):
    with pytest.raises(InputError, match="no engine named 'abacus'; known: local, ray"), engine("abacus"):
        pass
    with pytest.raises(InputError, match="workers must be a whole number >= 1"), engine(workers=0):
        pass
    monkeypatch.setattr(workers, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "marsnn\[ray\]"'), engine("ray"):
        pass


def test_peak_memory_is_that_of_this_job():
    start = start_peak_memory()
    if start is None:
        pytest.skip("no high-water mark to start on this system")
    assert np.ones(10**7).sum() == 10**7  # 80 MB, given back
    assert 79 < peak_memory_mb(start) < 120
    start = start_peak_memory()
    assert peak_memory_mb(start) < 40


def test_peak_memory_where_the_system_tells_none(monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError("no")

    monkeypatch.setattr("builtins.open", refused)
    assert start_peak_memory() is None
    assert peak_memory_mb(None) is None
