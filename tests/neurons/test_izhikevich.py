"""Izhikevich. One Euler step by hand, the resting point, and the cells of the source."""

import pytest
import torch

from marsnn.errors import InputError
from marsnn.neurons import Izhikevich
from tests.helpers import atan_slope

CELLS = {
    "regular": {},
    "bursting": {"c": -55.0, "d": 4.0},
    "chattering": {"c": -50.0, "d": 2.0},
    "fast": {"a": 0.1, "d": 2.0},
}


def intervals(cell, current=10.0, ms=1000):
    """Steps between the spikes of a cell under a held current, dt = 1/2 ms."""
    held = torch.full((2 * ms, 1), current, dtype=torch.float64)
    spikes, _ = Izhikevich(**CELLS[cell])(held)
    return spikes.flatten().nonzero().flatten().diff()


def test_golden_step():
    """v -65, u -13, I 10, dt 1/2: .04 4225 - 325 + 140 + 13 + 10 = 7, v = -65 + 3.5; b v = u, u stays."""
    spikes, state = Izhikevich()(torch.tensor([[10.0]], dtype=torch.float64))
    assert spikes.item() == 0
    assert state.v.item() == pytest.approx(-61.5, abs=1e-12)
    assert state.u.item() == -13


def test_golden_spike():
    """v 29, u 0: .04 841 + 145 + 140 = 318.64, h = 188.32 >= 30 fires; v = c, u = .01 (.2 29) + d."""
    neuron = Izhikevich()
    begin = neuron.State(*torch.tensor([[29.0], [0.0]], dtype=torch.float64))
    spike, state = neuron.step(torch.zeros(1, dtype=torch.float64), begin)
    assert spike.item() == 1
    assert state.v.item() == pytest.approx(-65.0, abs=1e-12)
    assert state.u.item() == pytest.approx(0.058 + 8, abs=1e-12)


def test_it_rests_where_the_equations_say():
    """.04 v^2 + 5 v + 140 = b v has roots -70, stable, and -50; u = b v."""
    spikes, state = Izhikevich()(torch.zeros(4000, 1, dtype=torch.float64))
    assert spikes.sum() == 0
    assert state.v.item() == pytest.approx(-70, abs=1e-3)
    assert state.u.item() == pytest.approx(-14, abs=1e-3)


def test_cells_of_the_source():
    regular, bursting, chattering, fast = (intervals(cell) for cell in CELLS)
    assert regular[0] < regular[-1]  # it adapts, then is regular
    assert regular[1:].unique().numel() == 1
    assert bursting[0] * 5 < bursting[-1]  # a burst, then single spikes
    assert bursting[2:].unique().numel() == 1
    late = chattering[len(chattering) // 2 :]
    assert late.min() * 10 < late.max()  # bursts with pauses, for ever
    assert len(fast) > 3 * len(regular)  # no adaptation to speak of
    assert fast[len(fast) // 2 :].max() <= fast[len(fast) // 2 :].min() + 2


def test_more_current_more_spikes():
    counts = [len(intervals("regular", current)) for current in (0.0, 5.0, 10.0, 20.0)]
    assert counts[0] == 0
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_by_hand(detach):
    """One step from v = 29: x = (h - 30) / 95, ds/dI = g(x) dt / 95, and v' = h + s (c - h), so
    dv'/dI = dt (1 - s) + ds/dI (c - h), the last only where the reset carries gradient."""
    neuron = Izhikevich(detach_reset=detach)
    current = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    begin = neuron.State(*torch.tensor([[29.0], [0.0]], dtype=torch.float64))
    spike, state = neuron.step(current, begin)
    of_spike = torch.autograd.grad(spike, current, retain_graph=True)[0].item()
    of_state = torch.autograd.grad(state.v, current)[0].item()
    by_hand = atan_slope((188.32 - 30) / 95) * 0.5 / 95
    assert of_spike == pytest.approx(by_hand, rel=1e-9)
    assert of_state == pytest.approx(0.0 if detach else by_hand * (-65 - 188.32), rel=1e-9, abs=1e-12)


def test_refusals():
    with pytest.raises(InputError, match="c must lie below the peak"):
        Izhikevich(c=40.0)
    with pytest.raises(InputError, match="dt must be finite and > 0"):
        Izhikevich(dt=0.0)
    with pytest.raises(InputError, match="a must be a finite number"):
        Izhikevich(a=float("nan"))
