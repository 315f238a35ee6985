"""SpikingInput: the closed form against the steps, for every neuron, scale and shape; calibration; files."""

import pytest
import torch

from marsnn import neurons
from marsnn.errors import InputError, NonFiniteError, ShapeError
from marsnn.spiking import SILENT, SpikingInput, set_threshold

USABLE = [name for name in neurons.names() if name not in ("LeakyIntegrator", "Izhikevich")]


def activations(tokens=40, features=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-2, 2, features)
    return torch.randn(tokens, features, generator=draw) * sizes


def maps(features=12):
    torch.manual_seed(1)
    return torch.nn.Linear(features, 5), torch.nn.Linear(features, 7, bias=False)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", USABLE)
def test_one_matmul_equals_the_unrolled_steps(name, per_token):
    x = activations().double()
    linear = [each.double() for each in maps()]
    spiking = SpikingInput(12, name, per_token).double()
    spiking.calibrate(x)
    once = spiking(x.view(4, 10, 12), *linear)
    spiking.unrolled = True
    steps = spiking(x.view(4, 10, 12), *linear)
    for a, b in zip(once, steps, strict=True):
        assert a.shape[:2] == (4, 10)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", USABLE)
def test_the_gradient_is_that_of_the_steps(name):
    x = activations().double()
    slopes = []
    for unrolled in (False, True):
        linear = maps()[0].double()
        linear.zero_grad()
        spiking = SpikingInput(12, name).double()
        spiking.calibrate(x)
        spiking.unrolled = unrolled
        leaf = x.clone().requires_grad_()
        spiking(leaf, linear)[0].square().sum().backward()
        slopes.append((leaf.grad, linear.weight.grad))
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_the_unrolled_steps_multiply_weights_with_spikes_only():
    """A gain left out of a step, or put on another step, is seen: the gains are those of the paper's code."""
    spiking = SpikingInput(3, steps=3, tau=0.5, threshold=2.0)
    train, _ = spiking.spikes(torch.tensor([[3.5, -2.0, 0.6]]))
    assert train.squeeze(1).tolist() == [[1, -1, 0], [1, 0, 0], [1, 0, 1]]
    torch.testing.assert_close(spiking.gains(train), torch.tensor([[2.0] * 3, [1.0] * 3, [0.5] * 3]))


def test_calibration_finds_the_threshold_of_a_code():
    """Multiples of V / 8 up to 15 V / 8 are T = 4 binary digits: nothing is lost where V is found."""
    digits = torch.arange(-15, 16).float().unsqueeze(1)
    sizes = torch.tensor([1.0, 3.0, 100.0])
    spiking = SpikingInput(3, steps=4, tau=0.5, fire_at=0.75)  # far from ties, which exp(log V) may break
    set_threshold(spiking.neuron, 8 * sizes)
    torch.testing.assert_close(spiking.neuron.decode(spiking.neuron.encode(digits * sizes)), digits * sizes)
    error = spiking.calibrate(digits * sizes)
    assert error < 0.01
    found = spiking.neuron.threshold / (15 * sizes)
    assert ((found * 15 / 8).log2().abs() < 0.26).all(), "the grid has a step of 2^(1/4)"


def test_calibration_is_each_features_own_and_survives_silence():
    x = activations()
    x[:, 3] = 0.0
    spiking = SpikingInput(12, steps=6)
    assert spiking.calibrate(x) < 0.01
    ratio = spiking.neuron.threshold / x.abs().amax(0).clamp(min=SILENT)
    assert ratio.max() / ratio.min() < 40
    assert (spiking(x, torch.nn.Identity())[0][:, 3] == 0).all()


def test_per_token_scale_follows_tokens_of_any_size():
    x = activations(features=4)
    spiking = SpikingInput(4, per_token=True, steps=6)
    spiking.calibrate(x)
    (small,) = spiking(x * 1e-3, torch.nn.Identity())
    (usual,) = spiking(x, torch.nn.Identity())
    torch.testing.assert_close(small * 1e3, usual, rtol=1e-4, atol=1e-4)
    assert (spiking(torch.zeros(2, 4), torch.nn.Identity())[0] == 0).all()


def test_state_dict_holds_tensors_only_and_fits_another():
    first, second = SpikingInput(12, "LIF"), SpikingInput(12, "LIF")
    first.calibrate(activations())
    assert set(first.state_dict()) == {"neuron.threshold", "neuron.beta"}
    second.load_state_dict(first.state_dict())
    x = activations(seed=2)
    assert torch.equal(first(x, torch.nn.Identity())[0], second(x, torch.nn.Identity())[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Nobody",), "no neuron named"),
        (("LeakyIntegrator",), "can't stand before"),
        (("ATMN", False, {"stepz": 3}), "no setting 'stepz'"),
        (("ATMN", False, {"steps": 0}), "steps must be"),
    ],
)
def test_bad_settings_are_one_line(arguments, said):
    name, *rest = arguments
    settings = rest[1] if len(rest) > 1 else {}
    with pytest.raises(InputError, match=said) as caught:
        SpikingInput(4, name, **settings)
    assert "\n" not in str(caught.value)


def test_bad_activations_are_refused():
    spiking = SpikingInput(4)
    with pytest.raises(ShapeError, match="activations"):
        spiking.calibrate(torch.zeros(3, 5))
    with pytest.raises(NonFiniteError):
        spiking.calibrate(torch.full((3, 4), torch.nan))
