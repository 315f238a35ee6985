"""ALIF. Golden values with their working, and gradients by hand."""

import pytest
import torch

from marsnn.errors import InputError
from marsnn.neurons import ALIF, LIF
from tests.helpers import atan_slope, column, traced

SETTINGS = {"beta": 0.5, "rho": 0.5, "adaptation": 0.5}
CURRENTS = (1.0, 1.0, 1.25, 0.5, 1.5)


def test_golden_subtract():
    """h 1 >= A 1 -> 1, v 0, a 1 | h 1 < A 1.5, v 1, a .5 | h .5 + 1.25 >= A 1.25 -> 1, v .75, a 1.25
    | h .375 + .5 < A 1.625, a .625 | h .4375 + 1.5 >= A 1.3125 -> 1, v .9375, a 1.3125."""
    spikes, v = traced(ALIF(1, **SETTINGS), *CURRENTS)
    assert spikes == [1, 0, 1, 0, 1]
    assert v == [0.0, 1.0, 0.75, 0.875, 0.9375]
    assert ALIF(**SETTINGS).double()(column(*CURRENTS))[1].a.item() == 1.3125


def test_golden_zero():
    """As above until the second spike, then v = 0: h .5 | .25 + 1.5 >= A 1.3125 -> 1."""
    spikes, v = traced(ALIF(1, reset="zero", **SETTINGS), *CURRENTS)
    assert spikes == [1, 0, 1, 0, 1]
    assert v == [0.0, 1.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_tie_with_the_raised_threshold_fires(dtype):
    neuron, eps = ALIF(**SETTINGS).to(dtype), torch.finfo(dtype).eps
    for second, fired in ((1.5, [1, 1]), (1.5 - eps, [1, 0])):  # after a spike A = 1 + .5
        assert neuron(column(1.0, second, dtype=dtype))[0].flatten().tolist() == fired


def test_it_grows_tired_and_recovers():
    """A held 1.2 fires a LIF without memory at every step. One spike raises A to 1.6; from a = 1 it takes
    until rho^n <= 1/3, n = 11 steps of rho = .9, for A to come down to 1.2."""
    tired = ALIF(beta=0.0, rho=0.9, adaptation=0.6)(torch.full((25, 1), 1.2))[0].flatten()
    assert LIF(beta=0.0)(torch.full((25, 1), 1.2))[0].sum() == 25
    first, second = tired.nonzero().flatten()[:2].tolist()
    assert (first, second) == (0, 12)  # a is 1 at step 1, .9^10 = .349 at step 11, .9^11 = .314 at step 12


def test_settings():
    neuron = ALIF(2, tau=4, tau_adapt=torch.tensor([5.0, 10.0]), adaptation=torch.tensor([0.1, 0.2]))
    assert neuron.rho.tolist() == pytest.approx([0.8, 0.9])
    assert ALIF().rho.item() == pytest.approx(0.9)
    assert neuron.adaptation.tolist() == pytest.approx([0.1, 0.2])
    with pytest.raises(InputError, match="adaptation must be finite and > 0"):
        ALIF(adaptation=0.0)
    with pytest.raises(InputError, match=r"rho must lie in \[0, 1\] \(tau_adapt >= 1\)"):
        ALIF(rho=-0.1)


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_through_adaptation_and_reset(detach):
    """h0 = 1.2 -> 1; h1 = beta v0 + x1, A1 = 1 + b a0 with a0 = s0, so
    ds1/dx0 = g(h1 - A1) (beta dv0/dx0 - b g(h0 - 1)),  dv0/dx0 = 1 - g(h0 - 1), or 1 if detached."""
    x = column(1.2, 1.3).requires_grad_()
    spikes, _ = ALIF(detach_reset=detach, **SETTINGS).double()(x)
    (slope,) = torch.autograd.grad(spikes[1].sum(), x)
    g0, g1 = atan_slope(0.2), atan_slope(0.5 * 0.2 + 1.3 - 1.5)
    by_hand = g1 * (0.5 * (1 if detach else 1 - g0) - 0.5 * g0)
    assert slope[0].item() == pytest.approx(by_hand, rel=1e-12)
    assert slope[1].item() == pytest.approx(g1, rel=1e-12)
