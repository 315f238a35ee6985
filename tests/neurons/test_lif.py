"""LIF and the leaky integrator. Golden values with their working, and gradients by hand."""

import numpy as np
import pytest
import torch

from marsnn.errors import InputError
from marsnn.neurons import LIF, LeakyIntegrator, LIFParams, LIFState, lif_step
from tests.helpers import atan_slope, column, traced

RESETS = pytest.mark.parametrize("reset", ["subtract", "zero"])


# ---- golden -----------------------------------------------------------------------------------------


def test_golden_subtract():
    """beta = 1/2, threshold 1:
    h = .75 -> 0, v .75 | h .375 + .75 = 1.125 -> 1, v .125 | h .0625 + .5 = .5625 -> 0
    | h .28125 + 1 = 1.28125 -> 1, v .28125 | h .140625 - 2 -> 0."""
    spikes, v = traced(LIF(1, beta=0.5), 0.75, 0.75, 0.5, 1.0, -2.0)
    assert spikes == [0, 1, 0, 1, 0]
    assert v == [0.75, 0.125, 0.5625, 0.28125, -1.859375]


def test_golden_zero():
    """As above until the first spike; then v = 0 | h .5 -> 0 | h .25 + 1 = 1.25 -> 1, v 0 | h -2."""
    spikes, v = traced(LIF(1, beta=0.5, reset="zero"), 0.75, 0.75, 0.5, 1.0, -2.0)
    assert spikes == [0, 1, 0, 1, 0]
    assert v == [0.75, 0.0, 0.5, 0.0, -2.0]


def test_golden_threshold_and_tau():
    """tau = 4 is beta = 3/4; threshold 2: h 2.5 -> 1, v .5 | h .375 + 1.5 = 1.875 -> 0 | h 1.40625 + 4.5
    = 5.90625 -> 1, v 3.90625: one spike a step, however far above | h 2.9296875 -> 1, v .9296875."""
    neuron = LIF(1, tau=4, threshold=2)
    assert neuron.beta.item() == 0.75
    spikes, v = traced(neuron, 2.5, 1.5, 4.5, 0.0)
    assert spikes == [1, 0, 1, 1]
    assert v == [0.5, 1.875, 3.90625, 0.9296875]


@RESETS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_tie_fires(reset, dtype):
    neuron = LIF(1, beta=0.5, threshold=1.5, reset=reset).to(dtype)
    eps = torch.finfo(dtype).eps
    # the second reaches the threshold through the leak: .5 * 1 + 1
    for currents, fired in (([1.5], [1]), ([1.5 - eps], [0]), ([1.0, 1.0], [0, 1]), ([-1.5], [0])):
        assert neuron(column(*currents, dtype=dtype))[0].flatten().tolist() == fired


@RESETS
def test_beta_zero_forgets(reset):
    spikes, _ = traced(LIF(1, beta=0.0, reset=reset), 0.75, 0.75, 1.5, -9.0, 1.0, 0.0)
    assert spikes == [0, 0, 1, 0, 1, 0]


def test_beta_one_integrates():
    """Nothing leaks: v = sum of currents - number of spikes."""
    spikes, v = traced(LIF(1, beta=1.0), 0.25, 0.5, 0.5, 0.0, 1.75, 0.0)
    assert spikes == [0, 0, 1, 0, 1, 1]
    assert v == [0.25, 0.75, 0.25, 0.25, 1.0, 0.0]


def test_encode_holds_and_decode_is_the_scaled_rate():
    """x = 1/2 held, beta = 1, threshold 1: fires every other step; x = 1, 3/2 with threshold 2 likewise."""
    neuron = LIF(2, steps=8, beta=1.0, threshold=torch.tensor([1.0, 2.0]))
    train = neuron.encode(torch.tensor([0.5, 1.5]))
    assert train.T.tolist() == [[0, 1] * 4, [0, 1, 1, 1] * 2]
    assert neuron.decode(train).tolist() == [0.5, 1.5]  # an integrator's rate is exact where it divides
    assert neuron.step_gain(train).tolist() == [1, 2]


def test_each_feature_has_its_own_settings():
    neuron = LIF(2, beta=torch.tensor([0.0, 1.0]), threshold=torch.tensor([1.0, 2.0])).double()
    spikes, state = neuron(torch.ones(4, 2, dtype=torch.float64))
    assert spikes.T.tolist() == [[1, 1, 1, 1], [0, 1, 0, 1]]
    assert state.v.tolist() == [0, 0]


def test_tau_and_beta():
    assert LIF().beta.item() == 0.5  # tau = 2
    assert LIF(tau=1).beta.item() == 0.0
    assert LIF(2, tau=torch.tensor([2, 4])).beta.tolist() == [0.5, 0.75]
    for cls in (LIF, LeakyIntegrator):
        with pytest.raises(InputError, match="give beta or tau, not both"):
            cls(beta=0.5, tau=2.0)
        with pytest.raises(InputError, match=r"\[0, 1\] \(tau >= 1\)"):
            cls(tau=0.5)


def test_unknown_reset():
    with pytest.raises(InputError, match='"subtract" or "zero", got \'none\''):
        LIF(reset="none")


@pytest.mark.parametrize(("beta", "mul"), [(0.0, 0), (1.0, 0), (0.5, 1), (torch.tensor([0.0, 0.5]), 1)])
def test_update_cost(beta, mul):
    assert LIF(2, beta=beta).update_cost == (mul, 3)
    assert LeakyIntegrator(2, beta=beta).update_cost == (mul, 1)


# ---- gradients --------------------------------------------------------------------------------------


@RESETS
def test_gradcheck_of_a_smooth_stand_in(reset):
    def smooth(currents, beta, threshold):
        params = LIFParams(beta, threshold, reset, False, lambda x: torch.sigmoid(3 * x))
        state, spikes = LIFState(torch.zeros_like(currents[0])), []
        for current in currents:
            s, state = lif_step(current, state, params)
            spikes.append(s)
        return torch.stack(spikes), state.v

    currents = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(smooth, (currents, beta, threshold))


def backward_by_hand(currents, beta, threshold, reset, detach_reset, w, omega):
    """Gradient of sum(w s) + sum(omega v[T-1]) with respect to the currents: the chain rule, in numpy.

    h = beta v + I,   s = H(h - threshold),   v' = h - s threshold   or   h (1 - s)
    """
    h, s, v = (np.zeros_like(currents) for _ in range(3))
    for t in range(len(currents)):
        h[t] = currents[t] + (beta * v[t - 1] if t else 0.0)
        s[t] = h[t] >= threshold
        v[t] = h[t] - s[t] * threshold if reset == "subtract" else h[t] * (1 - s[t])
    g_currents, g_v = np.zeros_like(currents), omega
    for t in reversed(range(len(currents))):
        through_h = 1.0 if reset == "subtract" else 1 - s[t]
        through_s = -threshold if reset == "subtract" else -h[t]
        g_s = w[t] + (0.0 if detach_reset else through_s * g_v)
        g_currents[t] = through_h * g_v + g_s * atan_slope(h[t] - threshold)
        g_v = beta * g_currents[t]
    return s, g_currents


@RESETS
@pytest.mark.parametrize("detach_reset", [False, True])
def test_surrogate_gradient_by_hand(reset, detach_reset):
    beta, threshold = np.array([0.0, 0.5, 0.875]), np.array([0.5, 1.0, 0.75])
    neuron = LIF(
        3,
        beta=torch.tensor(beta),
        threshold=torch.tensor(threshold),
        reset=reset,
        detach_reset=detach_reset,
    )
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    w, omega = torch.randn(3, 6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    x.requires_grad_()
    spikes, state = neuron(x)
    ((w * spikes).sum() + (omega * state.v).sum()).backward()
    s, g_x = backward_by_hand(
        x.detach().numpy(), beta, threshold, reset, detach_reset, w.numpy(), omega.numpy()
    )
    assert 0 < s.mean() < 1
    np.testing.assert_array_equal(spikes.detach().numpy(), s)
    np.testing.assert_allclose(x.grad.numpy(), g_x, rtol=1e-12, atol=1e-13)


# ---- the leaky integrator ---------------------------------------------------------------------------


def test_integrator_golden():
    """beta = 1/2: 1 | .5 + 2 = 2.5 | 1.25 - 4 = -2.75; the output is the membrane, decode its mean."""
    neuron = LeakyIntegrator(1, beta=0.5)
    out, v = traced(neuron, 1.0, 2.0, -4.0)
    assert out == v == [1.0, 2.5, -2.75]
    assert neuron.decode(column(*out)).item() == 0.25
    assert neuron.levels == ()


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 1.0])
def test_integrator_impulse_response(beta):
    neuron = LeakyIntegrator(1, beta=torch.tensor(beta, dtype=torch.float64))
    out, _ = neuron(column(1.0, *[0.0] * 19))
    expected = np.array([beta**t for t in range(20)])
    np.testing.assert_allclose(out.flatten().numpy(), expected, rtol=1e-14, atol=0)


def test_integrator_is_linear_with_an_exact_gradient():
    neuron = LeakyIntegrator(2, tau=3.0).double()
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: neuron(x)[0], (x,))
    beta = neuron.beta[0].item()
    kernel = np.array([[beta ** (t - k) if k <= t else 0.0 for k in range(5)] for t in range(5)])
    np.testing.assert_allclose(neuron(x)[0].detach().numpy(), kernel @ x.detach().numpy(), rtol=1e-12)
