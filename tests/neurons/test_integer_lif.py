"""IntegerLIF and its ternary and TI-LIF settings. Golden values with their working, gradients by hand."""

import pytest
import torch

from marsnn import surrogate
from marsnn.errors import InputError
from marsnn.neurons import IntegerLIF, TernaryLIF
from tests.helpers import atan_slope, column, same, traced


def test_golden_floor():
    """fire_at = 1: h 2.25 -> 2, v .25 | .125 + .5 -> 0 | .3125 + 9 -> 4, the largest, v 5.3125
    | 2.65625 -> 2, v .65625."""
    spikes, v = traced(IntegerLIF(1, beta=0.5, max_level=4, fire_at=1.0), 2.25, 0.5, 9.0, 0.0)
    assert spikes == [2, 0, 4, 2]
    assert v == [0.25, 0.625, 5.3125, 0.65625]


def test_golden_rounded_signed():
    """fire_at = 1/2: h -1.75 -> -2, v .25 | .125 - .625 = -.5 -> -1, a tie, v .5 | .25 + 4 -> 3, v 1.25."""
    neuron = IntegerLIF(1, beta=0.5, max_level=3, signed=True, fire_at=0.5)
    assert neuron.levels == (-3, -2, -1, 0, 1, 2, 3)
    spikes, v = traced(neuron, -1.75, -0.625, 4.0)
    assert spikes == [-2, -1, 3]
    assert v == [0.25, 0.5, 1.25]


def test_golden_zero_and_threshold():
    """threshold 2, fire_at 1/2: levels at 1, 3, 5. h 3 -> 2, a tie, v 0 | .75 -> 0 | .375 + 5 -> 3, v 0."""
    neuron = IntegerLIF(1, beta=0.5, max_level=3, fire_at=0.5, threshold=2.0, reset="zero")
    spikes, v = traced(neuron, 3.0, 0.75, 5.0)
    assert spikes == [2, 0, 3]
    assert v == [0.0, 0.75, 0.0]
    assert neuron.decode(column(*spikes)).item() == pytest.approx(2 * 5 / 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ties_fire_on_both_sides(dtype):
    neuron = IntegerLIF(beta=0.5, max_level=2, signed=True, fire_at=0.5).to(dtype)
    eps = torch.finfo(dtype).eps
    for x, fired in (
        (1.5, 2),
        (1.5 - eps, 1),
        (0.5, 1),
        (0.5 - eps, 0),
        (-0.5, -1),
        (-1.5, -2),
        (-1.5 + eps, -1),
    ):
        assert neuron(column(x, dtype=dtype))[0].item() == fired


def test_unfolded_micro_steps_carry_the_same_sum():
    neuron = IntegerLIF(max_level=3, signed=True)
    spikes = column(2.0, -3.0, 0.0)
    assert neuron.unfold(spikes).squeeze(-1).tolist() == [[1, 1, 0], [-1, -1, -1], [0, 0, 0]]
    fired, _ = neuron(3 * torch.randn(20, 30))
    unfolded = neuron.unfold(fired)
    assert unfolded.shape == (20, 3, 30)
    assert set(unfolded.unique().tolist()) == {-1, 0, 1}
    assert torch.equal(unfolded.sum(1), fired)
    assert unfolded.abs().sum() == fired.abs().sum()  # as many accumulates as the spikes are large
    with pytest.raises(InputError, match="spikes beyond its largest level 3"):
        neuron.unfold(column(4.0))


def test_gradient_sums_over_the_levels():
    """One step: ds/dx = sum_k g((x - (k + 1/2) V) / V) / V over k = 0 .. D - 1; V = 2, D = 3."""
    x = torch.tensor([[0.3, 2.9, 9.0]], dtype=torch.float64, requires_grad=True)
    spikes, _ = IntegerLIF(max_level=3, fire_at=0.5, threshold=2.0).double()(x)
    (slope,) = torch.autograd.grad(spikes.sum(), x)
    by_hand = [sum(atan_slope((v - (k + 0.5) * 2) / 2) / 2 for k in range(3)) for v in (0.3, 2.9, 9.0)]
    assert slope.flatten().tolist() == pytest.approx(by_hand, rel=1e-12)


def test_rectangular_is_the_straight_through_window():
    """1 / V where h is not clipped, 0 <= h <= D V, and 0 outside."""
    neuron = IntegerLIF(max_level=3, fire_at=0.5, surrogate=surrogate.rectangular(1.0)).double()
    x = torch.tensor([[-0.1, 0.1, 1.3, 2.9, 3.1]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(neuron(x)[0].sum(), x)
    assert slope.flatten().tolist() == [0, 1, 1, 1, 0]


def test_refusals():
    with pytest.raises(InputError, match="max_level must be a whole number >= 1"):
        IntegerLIF(max_level=0)
    with pytest.raises(InputError, match="fire_at must be finite and > 0"):
        IntegerLIF(fire_at=0.0)


# ---- ternary ----------------------------------------------------------------------------------------


def test_golden_ternary():
    """h 1.25 -> 1, v .25 | .125 - 1.5 = -1.375 -> -1, v -.375 | -.1875 -> 0 | -.09375 - .90625 = -1 -> -1."""
    neuron = TernaryLIF(1, beta=0.5)
    assert neuron.levels == (-1, 0, 1)
    spikes, v = traced(neuron, 1.25, -1.5, 0.0, -0.90625)
    assert spikes == [1, -1, 0, -1]
    assert v == [0.25, -0.375, -0.1875, 0.0]


def test_golden_ti_lif():
    """max_level 3, fire_at 1/2, beta 1/2: h 2.5 -> 3, a tie, v -.5 | -.25 - 1.25 = -1.5 -> -2, v .5
    | .25 -> 0."""
    neuron = TernaryLIF(1, beta=0.5, max_level=3, fire_at=0.5)
    spikes, v = traced(neuron, 2.5, -1.25, 0.0)
    assert spikes == [3, -2, 0]
    assert v == [-0.5, 0.5, 0.25]
    assert set(neuron.unfold(column(*spikes)).unique().tolist()) == {-1, 0, 1}


def test_ternary_is_a_setting_of_the_integer_neuron():
    x = 2 * torch.randn(7, 40)
    for level, fire_at in ((1, 1.0), (3, 0.5)):
        whole = IntegerLIF(max_level=level, signed=True, fire_at=fire_at)
        assert same(TernaryLIF(max_level=level, fire_at=fire_at)(x)[0], whole(x)[0])
    assert same(TernaryLIF()(-x)[0], -TernaryLIF()(x)[0])
