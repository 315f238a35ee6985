"""Unit and golden: each derivative against its formula, written again in numpy and float64.

Property: forward is the same >= step for all of them, whatever gradient they or another library bring.
"""

import math

import numpy as np
import pytest
import torch

from marsnn import surrogate as surrogates
from marsnn.errors import InputError
from marsnn.neurons import LIF
from tests.helpers import ForeignModule, StrictlyGreater

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# factory, argument, other argument, formula(x, argument), edges, area, peak: the last three by hand.
TRUTHS = {
    "atan": (0.7, 2.0, lambda x, a: a / 2 / (1 + np.square(np.pi * a * x / 2)), [], 1, lambda a: a / 2),
    # sg(z) (1 - sg(z)) = e / (1 + e)^2 with e = exp(-abs(z))
    "sigmoid": (
        3.0,
        4.0,
        lambda x, a: a * np.exp(-a * np.abs(x)) / (1 + np.exp(-a * np.abs(x))) ** 2,
        [],
        1,
        lambda a: a / 4,
    ),
    "triangular": (
        0.8,
        2.0,
        lambda x, a: np.where(np.abs(x) < 1 / a, a - a * a * np.abs(x), 0.0),
        [1 / 0.8, 1 / 2],
        1,  # base 2 / a, height a
        lambda a: a,
    ),
    # 2 int_0^inf (1 + k x)^-2 dx = 2 / k
    "fast_sigmoid": (10.0, 25.0, lambda x, k: np.power(1 + k * np.abs(x), -2.0), [], 2 / 10, lambda k: 1),
    "rectangular": (
        0.5,
        1.0,
        lambda x, w: np.where((x > -w / 2) & (x < w / 2), 1 / w, 0.0),
        [0.25, 0.5],
        1,
        lambda w: 1 / w,
    ),
    "erf": (
        1.5,
        2.0,
        lambda x, a: a * np.exp(-a * a * x * x) / np.sqrt(np.pi),
        [],
        1,
        lambda a: a / np.sqrt(np.pi),
    ),
    "straight_through": (0.3, 1.0, lambda x, c: np.full_like(x, c), [], None, lambda c: c),
}
FACTORIES = pytest.mark.parametrize("name", sorted(TRUTHS))


def make(name, value):
    return getattr(surrogates, name)(value)


def slope_through_backward(surrogate, x):
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(surrogate(x).sum(), x)
    return slope


def grid(edges):
    """Both sides of zero, zero, and exactly on the edges."""
    inner = np.linspace(-3, 3, 61)
    return np.unique(np.concatenate([inner, [0.0, -1e-9, 1e-9, -50, 50], edges, [-edge for edge in edges]]))


def test_every_surrogate_has_a_truth_here():
    assert set(TRUTHS) == set(surrogates._KINDS)


@FACTORIES
@pytest.mark.parametrize("which", [0, 1])
def test_derivative_is_the_formula(name, which):
    value, formula, edges = TRUTHS[name][which], *TRUTHS[name][2:4]
    x = grid(edges)
    assert {0.0, *edges} <= set(x)
    got = slope_through_backward(make(name, value), torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, formula(x, value), rtol=1e-12, atol=1e-15)


@FACTORIES
def test_default_argument_is_the_documented_one(name):
    documented = {"atan": 2, "sigmoid": 4, "triangular": 1, "fast_sigmoid": 25, "rectangular": 1, "erf": 2}
    x = grid([])
    value = float(documented.get(name, 1))
    got = slope_through_backward(getattr(surrogates, name)(), torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, TRUTHS[name][2](x, value), rtol=1e-12, atol=1e-15)


@FACTORIES
def test_argument_changes_the_gradient(name):
    first, second = TRUTHS[name][:2]
    x = torch.from_numpy(grid([]))
    slopes = [slope_through_backward(make(name, value), x) for value in (first, second)]
    assert not torch.allclose(*slopes)


@FACTORIES
def test_area_and_peak(name):
    value, area, peak = TRUTHS[name][0], *TRUTHS[name][4:]
    surrogate = make(name, value)
    assert surrogate.derivative(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(peak(value))
    if area is None:
        return  # a constant has none
    # x = tan(pi v / 2) brings the whole line into (-1, 1); midpoint rule
    v = (np.arange(400_000) + 0.5) / 200_000 - 1
    x, dx = np.tan(np.pi * v / 2), np.pi / 2 / np.cos(np.pi * v / 2) ** 2 / 200_000
    integral = float(np.sum(surrogate.derivative(torch.from_numpy(x)).numpy() * dx))
    assert integral == pytest.approx(area, rel=1e-4)


@FACTORIES
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_is_a_step_that_fires_at_zero(name, dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([-math.inf, -2, -tiny, -0.0, 0, tiny, 2, math.inf, math.nan], dtype=dtype)
    spikes = make(name, TRUTHS[name][0])(x)
    assert spikes.dtype == dtype
    assert spikes.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0]


@FACTORIES
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_keeps_dtype_and_stays_finite(name, dtype):
    x = torch.tensor([-300, -1, 0, 1, 300], dtype=dtype)
    slope = slope_through_backward(make(name, TRUTHS[name][0]), x)
    assert slope.dtype == dtype
    expected = TRUTHS[name][2](x.double().numpy(), TRUTHS[name][0])
    np.testing.assert_allclose(slope.double().numpy(), expected, rtol=6 * torch.finfo(dtype).eps, atol=1e-5)


@FACTORIES
def test_double_backward(name):
    """d2/dx2 of x s(x) is 2 D + x D', with D' a central difference of the numpy formula."""
    value, formula = TRUTHS[name][0], TRUTHS[name][2]
    points = np.array([-2.1, -0.9, -0.13, 0.17, 0.6, 1.7])  # away from kinks and edges
    x = torch.from_numpy(points).requires_grad_()
    (first,) = torch.autograd.grad((x * make(name, value)(x)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    e = 1e-6
    curvature = (formula(points + e, value) - formula(points - e, value)) / (2 * e)
    np.testing.assert_allclose(
        second.numpy(), 2 * formula(points, value) + points * curvature, rtol=1e-6, atol=1e-8
    )


@FACTORIES
def test_func_transforms_agree_with_backward(name):
    surrogate = make(name, TRUTHS[name][0])
    x = torch.from_numpy(grid([]))
    slopes = torch.func.vmap(torch.func.grad(lambda v: surrogate(v)))(x)
    assert torch.equal(slopes, slope_through_backward(surrogate, x))


@FACTORIES
def test_settings_round_trip(name):
    surrogate = make(name, TRUTHS[name][0])
    assert surrogate.name == name
    again = surrogates.from_settings(surrogates.to_settings(surrogate))
    assert again == surrogate
    assert again != make(name, TRUTHS[name][1])


FOREIGN = pytest.mark.parametrize(
    "foreign", [StrictlyGreater.apply, ForeignModule(5.0), lambda x: ForeignModule(2.0)(x)]
)


@FOREIGN
def test_foreign_gradient_is_theirs_and_the_decision_ours(foreign):
    ours = surrogates.resolve(foreign)
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 0.4], dtype=torch.float64)
    assert foreign(x).tolist() != [0, 1, 1, 1, 1]  # theirs does not fire at zero
    assert ours(x).tolist() == [0, 1, 1, 1, 1]
    theirs = slope_through_backward(foreign, x)
    assert theirs.abs().sum() > 0
    assert torch.equal(slope_through_backward(ours, x), theirs)
    assert torch.equal(ours.derivative(x), theirs)


@FOREIGN
@pytest.mark.parametrize("dtype", DTYPES)
def test_foreign_keeps_dtype(foreign, dtype):
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=dtype)
    spikes = surrogates.resolve(foreign)(x)
    assert (spikes.dtype, spikes.tolist()) == (dtype, [0, 1, 1])


@FOREIGN
def test_foreign_inside_a_neuron(foreign):
    neuron = LIF(beta=0.0, surrogate=foreign)
    current = torch.tensor([[1.0, 0.999]], requires_grad=True)  # the first is a tie with the threshold
    spikes, _ = neuron(current)
    assert spikes.tolist() == [[1, 0]]
    (slope,) = torch.autograd.grad(spikes.sum(), current)
    assert torch.equal(slope, slope_through_backward(foreign, current.detach() - 1))
    # it is a setting, not a layer: no entry of its own, and nothing in the saved settings to rebuild
    assert set(neuron.state_dict()) == {"beta", "threshold", "_extra_state"}
    assert neuron.settings()["surrogate"] is None


def test_resolve():
    assert surrogates.resolve(None) == surrogates.atan(2.0)
    mine = surrogates.erf(3.0)
    assert surrogates.resolve(mine) is mine
    with pytest.raises(InputError, match=r"must be callable.*surrogate\.atan"):
        surrogates.resolve("atan")


@FACTORIES
@pytest.mark.parametrize("bad", [0, 0.0, -1.0, math.nan, math.inf, "2", None])
def test_bad_arguments(name, bad):
    with pytest.raises(InputError, match="must be finite and > 0"):
        make(name, bad)


@pytest.mark.parametrize("settings", [{"name": "relu"}, {"name": "atan", "beta": 1.0}, {}, {"name": "atan"}])
def test_bad_settings(settings):
    with pytest.raises(InputError, match="surrogate"):
        surrogates.from_settings(settings)
