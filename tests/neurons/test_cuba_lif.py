"""CubaLIF. Golden values with their working, and gradients by hand."""

import pytest
import torch

from marsnn.errors import InputError
from marsnn.neurons import LIF, CubaLIF
from tests.helpers import atan_slope, column, same, traced

CURRENTS = (0.75, 0.75, 0.0, 0.0, -1.0)


def test_golden_subtract():
    """alpha = beta = 1/2. i .75, h .75 -> 0 | i .375 + .75 = 1.125, h .375 + 1.125 = 1.5 -> 1, v .5
    | i .5625, h .25 + .5625 -> 0 | i .28125, h .40625 + .28125 -> 0 | i .140625 - 1, h .34375 - .859375."""
    spikes, v = traced(CubaLIF(1, alpha=0.5, beta=0.5), *CURRENTS)
    assert spikes == [0, 1, 0, 0, 0]
    assert v == [0.75, 0.5, 0.8125, 0.6875, -0.515625]


def test_golden_zero():
    """As above until the spike, then v = 0 while i goes on: h .5625 | .28125 + .28125 | .28125 - .859375."""
    spikes, v = traced(CubaLIF(1, alpha=0.5, beta=0.5, reset="zero"), *CURRENTS)
    assert spikes == [0, 1, 0, 0, 0]
    assert v == [0.75, 0.0, 0.5625, 0.5625, -0.578125]
    _, state = CubaLIF(alpha=0.5, beta=0.5, reset="zero")(column(*CURRENTS))
    assert state.i.item() == -0.859375


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_tie_fires(dtype):
    neuron, eps = CubaLIF(alpha=0.5, beta=0.0, threshold=1.5).to(dtype), torch.finfo(dtype).eps
    for currents, fired in (([1.5], [1]), ([1.5 - eps], [0]), ([1.0, 1.0], [0, 1])):  # .5 * 1 + 1
        assert neuron(column(*currents, dtype=dtype))[0].flatten().tolist() == fired


def test_without_a_leak_of_the_current_it_is_lif():
    x = torch.randn(9, 20)
    assert same(CubaLIF(alpha=0.0, beta=0.7)(x)[0], LIF(beta=0.7)(x)[0])


def test_time_constants():
    neuron = CubaLIF(2, tau=4, tau_syn=torch.tensor([1.0, 2.0]))
    assert neuron.beta.tolist() == [0.75, 0.75]
    assert neuron.alpha.tolist() == [0.0, 0.5]
    assert neuron.update_cost == (2, 4)
    assert CubaLIF(alpha=0.0).update_cost == (1, 4)
    with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\] \(tau_syn >= 1\)"):
        CubaLIF(alpha=1.5)
    with pytest.raises(InputError, match="give alpha or tau_syn, not both"):
        CubaLIF(alpha=0.5, tau_syn=2)


def test_impulse_response_and_its_gradient():
    """Below the threshold v[t] = sum_k beta^(t-k) alpha^k: 1, .75, .4375 of an impulse at t = 0."""
    neuron = CubaLIF(alpha=0.5, beta=0.25, threshold=100.0, detach_reset=True).double()
    x = column(1.0, 0.0, 0.0).requires_grad_()
    _, membrane, state = neuron.trace(x)
    assert membrane.flatten().tolist() == [1, 0.75, 0.4375]
    (slope,) = torch.autograd.grad(state.v.sum(), x)
    assert slope.flatten().tolist() == [0.4375, 0.75, 1]


def test_gradient_through_a_spike():
    """h0 = 1.2 -> 1, v .2, i 1.2; h1 = beta .2 + (alpha 1.2 + x1).
    ds1/dx0 = g(h1 - 1) (beta (1 - g(h0 - 1)) + alpha)."""
    x = column(1.2, 0.1).requires_grad_()
    spikes, _ = CubaLIF(alpha=0.5, beta=0.25).double()(x)
    (slope,) = torch.autograd.grad(spikes[1].sum(), x)
    h1 = 0.25 * 0.2 + 0.6 + 0.1
    by_hand = atan_slope(h1 - 1) * (0.25 * (1 - atan_slope(0.2)) + 0.5)
    assert slope[0].item() == pytest.approx(by_hand, rel=1e-12)
    assert slope[1].item() == pytest.approx(atan_slope(h1 - 1), rel=1e-12)
