"""PLIF. Golden values with their working, and the gradient of w by hand."""

import pytest
import torch

from marsnn.errors import InputError
from marsnn.neurons import LIF, PLIF
from tests.helpers import atan_slope, column, same, traced


def test_golden():
    """w = 0 is 1/tau = sigmoid(0) = 1/2, beta = 1/2: h = .75 -> 0 | .375 + .75 = 1.125 -> 1, v .125
    | .0625 + .5 -> 0 | .28125 + 1 = 1.28125 -> 1, v .28125."""
    neuron = PLIF(1)
    assert neuron.w.item() == 0
    spikes, v = traced(neuron, 0.75, 0.75, 0.5, 1.0)
    assert spikes == [0, 1, 0, 1]
    assert v == [0.75, 0.125, 0.5625, 0.28125]


def test_w_is_the_logit_of_one_over_tau():
    """tau = 4: w = log(1/4 / (3/4)) = -log 3."""
    neuron = PLIF(tau=4.0)
    assert neuron.w.item() == pytest.approx(-1.0986123, abs=1e-6)
    assert neuron.tau.item() == pytest.approx(4.0)
    assert neuron.beta.item() == pytest.approx(0.75)
    assert PLIF(beta=0.75).w.item() == pytest.approx(neuron.w.item())
    with torch.no_grad():
        neuron.w.fill_(50.0)  # wherever an optimiser takes it
    assert 0 <= neuron.beta.item() < 1e-10
    assert neuron.tau.item() == 1


def test_one_w_or_one_a_feature():
    assert PLIF(3, tau=2.0).w.shape == ()
    own = PLIF(2, tau=torch.tensor([2.0, 4.0]))
    assert own.w.shape == (2,)
    spikes, _ = own(torch.full((3, 2), 0.7))
    assert same(spikes, LIF(2, beta=own.beta.detach())(torch.full((3, 2), 0.7))[0])


def test_gradient_of_w_through_the_membrane():
    """No spike, v1 = x0, v2 = beta x0 + x1: dv2/dbeta = x0 = 1/2, dbeta/dw = -1/4 at w = 0."""
    neuron = PLIF(detach_reset=True).double()
    _, state = neuron(column(0.5, 0.25))
    state.v.sum().backward()
    assert neuron.w.grad.item() == -0.125


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_of_w_through_spikes(detach):
    """h1 = .8, h2 = beta .8 + .75 = 1.15 -> 1, h3 = beta .15 + .2.  ds2/dbeta = g(h2 - 1) v1, and
    ds3/dbeta = g(h3 - 1) (v2 + beta dv2/dbeta) with dv2/dbeta = v1 (1 - g(h2 - 1)), or v1 if detached."""
    neuron = PLIF(detach_reset=detach).double()
    spikes, _ = neuron(column(0.8, 0.75, 0.2))
    assert spikes.flatten().tolist() == [0, 1, 0]
    spikes.sum().backward()
    first, second = atan_slope(0.15), atan_slope(0.5 * 0.15 + 0.2 - 1)
    kept = 0.8 if detach else 0.8 * (1 - first)
    by_hand = -0.25 * (first * 0.8 + second * (0.15 + 0.5 * kept))
    assert neuron.w.grad.item() == pytest.approx(by_hand, rel=1e-12)


def test_what_cannot_be_learned():
    for wrong in ({"tau": 1.0}, {"beta": 0.0}, {"beta": 1.0}):
        with pytest.raises(InputError, match=r"without its ends \(tau > 1\) to be learned, got .*use LIF"):
            PLIF(**wrong)
    with pytest.raises(InputError, match="give beta or tau, not both"):
        PLIF(beta=0.5, tau=2.0)
