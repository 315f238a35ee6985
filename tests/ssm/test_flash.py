"""Unit: the way to flash-linear-attention and back, with its function written again in torch from its docs.

The kernels themselves need a GPU: tests/test_cuda.py.
"""

import sys
import types

import pytest
import torch

from marsnn import native
from marsnn.ssm import flash
from marsnn.ssm.reference import ssd_loop
from marsnn.ssm.scan import chunked
from tests.ssm.test_scan import problem, worst


def theirs(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    """As documented: [B, T, H, *], scale K^-1/2 unless given, no final state unless asked for."""
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    assert all(each.is_contiguous() for each in (q, k, v, g))
    y, state = ssd_loop(*(each.transpose(0, 1) for each in (v, g, k, scale * q)), None, initial_state)
    return y.transpose(0, 1), state if output_final_state else None


@pytest.fixture
def installed(monkeypatch):
    """A package `fla` that holds one function, which a test may replace."""
    home = types.ModuleType("fla.ops.simple_gla")
    home.chunk_simple_gla = theirs
    for name, module in (
        ("fla", types.ModuleType("fla")),
        ("fla.ops", types.ModuleType("fla.ops")),
        (home.__name__, home),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(flash, "_AGREEMENT", {})
    monkeypatch.setattr(native, "_SAID", set())
    return home


@pytest.mark.parametrize(("H", "G"), [(4, 1), (4, 2), (4, 4)])
def test_the_way_there_and_back(installed, H, G):
    tensors = problem(70, 2, H, G, 8, 6, torch.float32, decays="ordinary")
    wanted = ssd_loop(*tensors)
    assert worst(flash.run(*tensors), wanted) < 1e-5


def test_what_agrees_is_believed(installed):
    like = torch.zeros(1, dtype=torch.bfloat16)
    assert flash.agrees(like, chunked)
    installed.chunk_simple_gla = None
    assert flash.agrees(like, chunked)  # it was tried once


def wrongly_scaled(q, k, v, g, scale=None, **more):
    return theirs(q, k, v, g, None, **more)


def forgetful(q, k, v, g, scale=None, initial_state=None, **more):
    return theirs(q, k, v, g, scale, None if initial_state is None else 0 * initial_state, **more)


def late(q, k, v, g, scale=None, **more):
    return theirs(q, k, v, g.roll(1, 1), scale, **more)


@pytest.mark.parametrize("wrong", [wrongly_scaled, forgetful, late])
def test_what_differs_is_not(installed, wrong):
    installed.chunk_simple_gla = wrong
    with pytest.warns(UserWarning, match="flash-linear-attention differs on cpu; scans run in torch there"):
        assert not flash.agrees(torch.zeros(1, dtype=torch.bfloat16), chunked)


def test_what_fails_is_said_once(installed):
    def broken(*_, **__):
        raise RuntimeError("no kernel image")

    installed.chunk_simple_gla = broken
    with pytest.warns(UserWarning, match=r"fails here \(RuntimeError\); scans run in torch"):
        assert not flash.agrees(torch.zeros(1, dtype=torch.bfloat16), chunked)
    assert not flash.agrees(torch.zeros(1, dtype=torch.bfloat16), chunked)


def test_a_cpu_never_asks(installed):
    tensors = problem(70, 1, 2, 1, 4, 3, torch.bfloat16, decays="ordinary")
    assert flash.scan(*tensors, chunked) is None
