"""Contract: every registered neuron faces the same checks, under settings that are not the defaults.

A new neuron is under contract as soon as it is registered: the first tests here fail until it has cases.
"""

import copy
import inspect
import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from marsnn import neurons, surrogate
from marsnn.errors import InputError, NonFiniteError, ShapeError
from marsnn.neurons import ATMN, LIF, Neuron, base
from tests.helpers import same

N = 5
V = torch.tensor([0.5, 0.7, 1.0, 1.3, 2.0])
DECAY = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

CASES = [
    ("ATMN", {"features": N, "steps": 6, "tau": 0.5, "threshold": V}),
    ("ATMN", {"features": N, "steps": 3, "tau": 1.0, "threshold": 0.3, "learn_threshold": False}),
    ("ATMN", {"features": N, "steps": 5, "tau": 2.0, "fire_at": 0.5, "detach_reset": True}),
    ("ATMN", {"features": N, "tau": 0.75, "learn_tau": True, "surrogate": surrogate.triangular(0.5)}),
    ("ATMN", {"features": None, "steps": 2, "threshold": 0.8, "surrogate": surrogate.erf(1.0)}),
    ("ATMN", {"features": N, "steps": 5, "fire_at": 0.5, "backend": "reference"}),
    ("LIF", {"features": N, "beta": 0.25, "threshold": V, "detach_reset": True}),
    ("LIF", {"features": N, "steps": 6, "tau": 3.0, "reset": "zero", "carry": "sequence"}),
    ("LIF", {"features": N, "beta": DECAY, "threshold": 0.4, "surrogate": surrogate.fast_sigmoid(3.0)}),
    ("LIF", {"features": N, "threshold": 0.7, "backend": "reference"}),
    ("LIF", {"features": None, "steps": 3, "beta": 0.0, "surrogate": surrogate.sigmoid(2.0)}),
    ("LeakyIntegrator", {"features": N, "beta": 0.25, "steps": 6}),
    ("LeakyIntegrator", {"features": N, "tau": 1 / (1 - 0.9 * DECAY), "carry": "sequence"}),
    ("LeakyIntegrator", {"features": None, "beta": 0.9, "backend": "reference"}),
    ("TMN", {"features": N, "steps": 6, "threshold": V, "backend": "reference"}),
    ("TMN", {"features": N, "learn_threshold": True, "detach_reset": True}),
    ("TMN", {"features": None, "threshold": 0.7, "surrogate": surrogate.rectangular(2.0)}),
    ("PLIF", {"features": N, "beta": 0.25, "threshold": V, "detach_reset": True}),
    ("PLIF", {"features": N, "steps": 6, "tau": 1 + V, "reset": "zero", "carry": "sequence"}),
    ("PLIF", {"features": None, "tau": 1.5, "surrogate": surrogate.sigmoid(2.0), "backend": "reference"}),
    ("CubaLIF", {"features": N, "beta": 0.25, "alpha": DECAY, "threshold": V, "detach_reset": True}),
    ("CubaLIF", {"features": N, "steps": 6, "tau": 3.0, "tau_syn": 1.5, "reset": "zero"}),
    ("CubaLIF", {"features": N, "beta": DECAY, "carry": "sequence", "backend": "reference"}),
    ("CubaLIF", {"features": None, "alpha": 0.9, "surrogate": surrogate.erf(1.0)}),
    ("ALIF", {"features": N, "beta": 0.25, "rho": 0.5, "adaptation": V, "threshold": V}),
    ("ALIF", {"features": N, "steps": 6, "tau": 3.0, "tau_adapt": 4.0, "reset": "zero"}),
    ("ALIF", {"features": N, "rho": DECAY, "detach_reset": True, "carry": "sequence"}),
    ("ALIF", {"features": None, "adaptation": 1.5, "surrogate": surrogate.triangular(0.5)}),
    ("ALIF", {"features": N, "threshold": 0.3, "backend": "reference"}),
    ("IntegerLIF", {"features": N, "beta": 0.25, "threshold": V, "max_level": 2, "detach_reset": True}),
    ("IntegerLIF", {"features": N, "steps": 6, "tau": 3.0, "signed": True, "reset": "zero"}),
    ("IntegerLIF", {"features": N, "beta": DECAY, "threshold": 0.4, "fire_at": 1.0, "carry": "sequence"}),
    ("IntegerLIF", {"features": None, "max_level": 3, "surrogate": surrogate.rectangular(1.0)}),
    ("IntegerLIF", {"features": N, "signed": True, "max_level": 2, "backend": "reference"}),
    ("TernaryLIF", {"features": N, "beta": 0.25, "threshold": V, "detach_reset": True}),
    ("TernaryLIF", {"features": N, "steps": 6, "tau": 3.0, "reset": "zero", "carry": "sequence"}),
    ("TernaryLIF", {"features": N, "beta": DECAY, "max_level": 3, "fire_at": 0.5}),
    ("TernaryLIF", {"features": None, "beta": 0.5, "surrogate": surrogate.fast_sigmoid(3.0)}),
    ("TernaryLIF", {"features": N, "threshold": 0.7, "backend": "reference"}),
    # a peak just above c, so that the small currents of these tests reach it
    ("Izhikevich", {"features": N, "a": 0.1, "b": 0.25, "c": -60.0, "d": 2.0, "peak": -59.5}),
    (
        "Izhikevich",
        {
            "features": N,
            "steps": 6,
            "b": 0.26,
            "peak": -64.0,
            "dt": 1.0,
            "carry": "sequence",
            "detach_reset": True,
        },
    ),
    ("Izhikevich", {"features": N, "b": 0.26, "peak": -64.8, "detach_reset": True, "backend": "reference"}),
    ("Izhikevich", {"features": None, "b": 0.26, "peak": -64.5, "surrogate": surrogate.atan(0.5)}),
]


def brief(case):
    name, settings = case
    return name + "-" + "-".join(key for key in settings if key != "features")


EVERY = pytest.mark.parametrize("case", CASES, ids=brief)
NAMES = pytest.mark.parametrize("name", neurons.names())


def build(case, dtype=torch.float32):
    name, settings = case
    return neurons.get(name)(**settings).to(dtype)


def plain(name, **settings):
    """As short a call as the neuron allows."""
    return neurons.get(name)(**{"features": N, **settings})


def takes(name, setting):
    return setting in inspect.signature(neurons.get(name)).parameters


def currents(*shape, dtype=torch.float32):
    return (1.5 * torch.randn(*shape, N, dtype=torch.float64)).to(dtype)


def gradients(neuron, x):
    """Of a weighted sum of spikes and final state, with respect to the input and all parameters."""
    x = x.detach().requires_grad_()
    spikes, state = neuron(x)
    weights = torch.linspace(-1, 2, spikes.numel(), dtype=spikes.dtype).reshape(spikes.shape)
    loss = (weights * spikes).sum() + sum(field.square().sum() for field in state)
    wanted = [x, *(p for p in neuron.parameters() if p.requires_grad)]
    return torch.autograd.grad(loss, wanted)


# ---- the list itself --------------------------------------------------------------------------------


def test_cases_cover_every_registered_neuron():
    assert len(neurons.names()) >= 3
    assert {name for name, _ in CASES} == set(neurons.names())
    assert all(sum(name == known for name, _ in CASES) >= 3 for known in neurons.names())


@NAMES
def test_cases_set_every_setting_to_something_else_than_its_default(name):
    """`feature_dim` has a test of its own, `features` is no setting with a default to keep to."""
    parameters = inspect.signature(neurons.get(name)).parameters
    for key in parameters.keys() - {"features", "feature_dim"}:
        tried = [settings[key] for known, settings in CASES if known == name and key in settings]
        default = parameters[key].default
        assert any(isinstance(t, torch.Tensor) or t != default for t in tried), (name, key)


# ---- shapes, steps, dtypes --------------------------------------------------------------------------


@EVERY
def test_shapes_and_levels(case):
    neuron, x = build(case), currents(7, 2, 3)
    assert isinstance(neuron, Neuron)
    spikes, state = neuron(x)
    assert spikes.shape == (7, 2, 3, N)
    assert isinstance(state, neuron.State)
    assert [field.shape for field in state] == [(2, 3, N)] * len(state)
    if neuron.levels:
        assert set(spikes.unique().tolist()) == set(neuron.levels)  # the currents reach all of them


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_is_step_after_step(case, dtype):
    neuron, x = build(case, dtype), currents(7, 4, dtype=dtype)
    state, slots, membranes = None, [], []
    for current in x:
        spikes, state = neuron.step(current, state)
        slots.append(spikes)
        membranes.append(state[0])
    assert same(neuron(x), (torch.stack(slots), state))
    assert same(neuron.trace(x), (torch.stack(slots), torch.stack(membranes), state))


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_60_and_40_steps_are_100(case, dtype):
    neuron, x = build(case, dtype), 0.5 * currents(100, 3, dtype=dtype)
    whole, end = neuron(x)
    first, between = neuron(x[:60])
    second, last = neuron(x[60:], between)
    assert same(torch.cat([first, second]), whole)
    assert same(last, end)
    mattered = not same(neuron.trace(x[60:]), neuron.trace(x[60:], between))
    assert mattered != same(case[1].get("beta"), 0.0)  # only beta = 0 forgets


@EVERY
def test_rest_is_the_state_of_zeros(case):
    neuron, x = build(case), currents(4, 3)
    assert same(neuron(x), neuron(x, neuron.initial_state(x[0])))


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("converted", [True, False])
def test_dtype_is_that_of_the_input(case, dtype, converted):
    neuron = build(case, dtype if converted else torch.float32)
    x = currents(6, 3, dtype=dtype)
    spikes, state = neuron(x)
    train = neuron.encode(x[0])
    results = [spikes, *state, train, neuron.decode(train), neuron.step_gain(train), gradients(neuron, x)[0]]
    assert {result.dtype for result in results} == {dtype}
    assert all(bool(result.isfinite().all()) for result in results)


@EVERY
def test_gradient_reaches_every_input_slot(case):
    """T = 3 from rest, so that each slot can be felt in the spikes or the final membrane."""
    slots = gradients(build(case), 0.3 * currents(3, 2))[0]
    assert (slots.abs().sum((1, 2)) > 0).all()


@EVERY
def test_one_step_and_one_neuron_axis(case):
    neuron, x = build(case), currents(1)
    spikes, state = neuron(x)
    assert same((spikes[0], state), neuron.step(x[0]))
    assert spikes.shape == (1, N)


@EVERY
def test_empty_batch(case):
    neuron = build(case)
    spikes, state = neuron(currents(4, 0))
    assert (spikes.shape, state[0].shape) == ((4, 0, N), (0, N))
    train = neuron.encode(currents(0))
    assert (train.shape, neuron.decode(train).shape) == ((neuron.steps, 0, N), (0, N))


@EVERY
def test_memory_layout_does_not_matter(case):
    neuron, x = build(case), currents(6, 3, 4)
    for view in (x.transpose(0, 1), x[::2, :, 1:], x[:1].expand(5, 3, 4, N)):
        assert not view.is_contiguous()
        assert same(neuron(view), neuron(view.clone(memory_format=torch.contiguous_format)))
        assert same(neuron.encode(view), neuron.encode(view.contiguous()))


@EVERY
def test_samples_share_no_state(case):
    neuron, x = build(case), currents(9, 4)
    spikes, state = neuron(x)
    for sample in range(4):
        alone, end = neuron(x[:, sample])
        assert same(alone, spikes[:, sample])
        assert same(end[0], state[0][sample])


@EVERY
def test_inputs_and_states_are_left_as_they_were(case):
    neuron, x = build(case), currents(5, 3)
    _, state = neuron(x)
    before = x.clone(), tuple(field.clone() for field in state)
    neuron(x, state)
    assert same((x, tuple(state)), before)


# ---- encode and decode ------------------------------------------------------------------------------


@EVERY
def test_encode_presents_over_the_neurons_steps(case):
    neuron, x = build(case), currents(2, 3)
    assert neuron.steps == case[1].get("steps", 4)
    assert neuron.present(x).shape == (neuron.steps, 2, 3, N)
    train = neuron.encode(x)
    assert train.shape == (neuron.steps, 2, 3, N)
    assert same(train, neuron(neuron.present(x))[0])
    assert neuron.decode(train).shape == (2, 3, N)


@EVERY
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_mean_of_gained_train_is_decode(case, steps):
    neuron = build(case, torch.float64)
    train = neuron(currents(steps, 2, 3, dtype=torch.float64))[0]
    assert train.abs().sum() > 0
    torch.testing.assert_close(
        (neuron.step_gain(train) * train).mean(0), neuron.decode(train), rtol=1e-13, atol=1e-13
    )


@EVERY
def test_decode_is_linear_in_the_train(case):
    neuron = build(case, torch.float64)
    first, second = neuron(currents(4, 3, dtype=torch.float64))[0], currents(4, 3, dtype=torch.float64)
    torch.testing.assert_close(
        neuron.decode(first - 2 * second), neuron.decode(first) - 2 * neuron.decode(second)
    )


# ---- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in neurons.names() if takes(name, "threshold")])
def test_threshold_may_be_a_number_or_a_tensor(name):
    x = currents(6, 3)
    expected = plain(name, threshold=2.0)(x)
    assert not same(expected[0], plain(name)(x)[0])
    ways = [2, torch.tensor(2), torch.tensor(2.0), torch.tensor([2]), torch.full((N,), 2.0)]
    ways += [torch.full((N,), 2), torch.full((N,), 2.0, dtype=torch.float64)]
    for threshold in ways:
        assert same(plain(name, threshold=threshold)(x), expected), threshold


@EVERY
def test_feature_dim_is_that_axis_moved_to_the_end(case):
    name, settings = case
    last = build(case)
    third = neurons.get(name)(**settings, feature_dim=-3)
    x = currents(4, 2, 3, 6)  # [T, B, H, W, C]
    x[0] *= 2

    def channels(tensor):
        return tensor.movedim(-1, -3)

    spikes, state = last(x)
    moved, moved_state = third(channels(x))
    assert moved.shape == (4, 2, N, 3, 6)
    assert same(moved, channels(spikes))
    assert same(tuple(moved_state), tuple(map(channels, state)))
    train = last.encode(x[0])
    assert same(third.encode(channels(x[0])), channels(train))
    torch.testing.assert_close(third.decode(channels(train)), channels(last.decode(train)))
    torch.testing.assert_close(
        third.step_gain(channels(train)) * channels(train), channels(last.step_gain(train) * train)
    )


# ---- saving, copying --------------------------------------------------------------------------------


def from_state(case, state_dict):
    """An instance with default settings that has loaded what another one saved."""
    fresh = plain(case[0], features=case[1]["features"], backend=case[1].get("backend", "auto"))
    assert not same(dict(fresh.state_dict()), dict(state_dict))
    assert str(fresh.load_state_dict(state_dict)) == "<All keys matched successfully>"
    return fresh


@EVERY
@pytest.mark.parametrize("through", ["state_dict", "safetensors"])
def test_state_dict_carries_settings_and_parameters(case, through):
    neuron, x = build(case), currents(6, 3)
    saved = neuron.state_dict()
    if through == "safetensors":
        saved = safetensors.torch.load(safetensors.torch.save(saved))
    again = from_state(case, saved)
    assert again.settings() == neuron.settings()
    assert same(again(x), neuron(x))
    assert same(again.encode(x[0]), neuron.encode(x[0]))
    slopes, expected = gradients(again, x), gradients(neuron, x)
    assert same(slopes[0], expected[0])
    assert same(dict(again.state_dict()), dict(neuron.state_dict()))


@EVERY
def test_constructor_builds_the_neuron_that_its_state_fits(case):
    neuron, x = build(case), currents(6, 3)
    again = type(neuron)(**neuron.constructor(), backend=neuron.backend)
    again.load_state_dict(neuron.state_dict())
    assert again.settings() == neuron.settings()
    assert same(again(x), neuron(x))
    assert same(gradients(again, x), gradients(neuron, x))  # of the same parameters


@EVERY
def test_settings_are_json_and_foreign_ones_are_refused(case):
    settings = build(case).settings()
    assert json.loads(json.dumps(settings)) == settings
    with pytest.raises(InputError, match="no settings named"):
        build(case).apply_settings({"colour": "red"})


@NAMES
def test_another_number_of_features_is_not_loaded(name):
    saved = plain(name, features=N).state_dict()
    with pytest.raises(ShapeError, match=r"features=7.*features=5"):
        plain(name, features=7).load_state_dict(saved)
    adopted = plain(name, features=None)
    adopted.load_state_dict(saved)
    assert adopted.features == N


@EVERY
def test_transient_state_is_not_saved(case):
    neuron, x = build(case), currents(6, 3)
    before = copy.deepcopy(dict(neuron.state_dict()))
    held = set(vars(neuron))
    first = neuron(x)
    assert same(dict(neuron.state_dict()), before)
    assert set(vars(neuron)) == held
    assert same(neuron(x), first)  # nothing stayed behind that a second run could see


@EVERY
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda neuron: pickle.loads(pickle.dumps(neuron))])
def test_copies_are_equal_and_independent(case, copied):
    neuron, x = build(case), currents(6, 3)
    twin = copied(neuron)
    assert twin.settings() == neuron.settings()
    assert same(twin(x), neuron(x))
    assert same(gradients(twin, x), gradients(neuron, x))
    expected = neuron(x)
    for tensor in [*twin.parameters(), *twin.buffers()]:
        tensor.data.mul_(0.5)
    assert same(neuron(x), expected)


# ---- torch's transforms -----------------------------------------------------------------------------


@EVERY
def test_vmap_over_samples(case):
    neuron, x = build(case), currents(6, 4)
    spikes, state = torch.func.vmap(neuron, in_dims=1, out_dims=(1, 0))(x)
    assert same((spikes, state), neuron(x))


@EVERY
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # inside dynamo
def test_compiles_into_one_graph(case):
    neuron, x = build(case), currents(4, 3)
    torch.compiler.reset()
    compiled = torch.compile(neuron, fullgraph=True, backend="eager")
    assert same(compiled(x), neuron(x))
    assert same(gradients(compiled, x)[0], gradients(neuron, x)[0])


# ---- what is refused --------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_currents(case, bad):
    neuron, x = build(case), currents(4, 3)
    x[2, 1, 0] = bad
    with pytest.raises(NonFiniteError, match=rf"{case[0]}: currents holds 1 NaN .*\(2, 1, 0\)"):
        neuron(x)
    with pytest.raises(NonFiniteError):
        neuron.trace(x)
    with pytest.raises(NonFiniteError):
        neuron.encode(x[2])


@NAMES
def test_wrong_number_of_features(name):
    neuron = plain(name)
    wrong = torch.zeros(4, 3, N + 1)
    for call, argument in (
        (neuron, wrong),
        (neuron.step, wrong[0]),
        (neuron.encode, wrong[0]),
        (neuron.decode, wrong),
    ):
        with pytest.raises(ShapeError) as caught:
            call(argument)
        assert f"[*, {N}]" in str(caught.value)
        assert str(list(argument.shape)) in str(caught.value)
    with pytest.raises(ShapeError, match=r"axis -3, got \[4, 6, 2, 2\]"):
        plain(name, feature_dim=-3)(torch.zeros(4, N + 1, 2, 2))


@NAMES
def test_a_missing_time_axis(name):
    with pytest.raises(ShapeError, match=r"\[T, \*, N\], got \[5\].*step\(\)"):
        plain(name)(torch.zeros(N))
    with pytest.raises(ShapeError):
        plain(name, features=None)(torch.zeros(()))


@NAMES
def test_no_steps(name):
    with pytest.raises(ShapeError, match="T = 0"):
        plain(name)(torch.zeros(0, 3, N))
    with pytest.raises(ShapeError, match="T = 0"):
        plain(name).decode(torch.zeros(0, 3, N))
    for steps in (0, -1, 2.0, True, None, "4"):
        with pytest.raises(InputError, match="steps must be a whole number >= 1"):
            plain(name, steps=steps)


@NAMES
def test_integer_currents(name):
    with pytest.raises(InputError, match=r"floating point, got torch\.int64; call \.float\(\)"):
        plain(name)(torch.ones(4, N, dtype=torch.int64))


@NAMES
def test_a_state_of_another_shape(name):
    neuron = plain(name)
    _, state = neuron(torch.zeros(4, 3, N))
    with pytest.raises(ShapeError, match=r"expected a state \[2, 5\], got \[3, 5\]"):
        neuron(torch.zeros(4, 2, N), state)


BAD = [0, 0.0, -1.0, float("nan"), float("inf"), "1", torch.tensor(0.0), torch.tensor([1.0, 1, 1, 1, -1])]


@NAMES
@pytest.mark.parametrize("setting", ["tau", "threshold", "fire_at"])
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_settings_that_must_be_positive(name, setting, bad):
    if not takes(name, setting):
        assert setting != "tau" or name in ("Izhikevich", "TMN")  # all others have a time constant
        with pytest.raises(TypeError):
            plain(name, **{setting: bad})
        return
    with pytest.raises(InputError, match=f"{setting} must be finite and > 0"):
        plain(name, **{setting: bad})


@NAMES
def test_other_bad_settings(name):
    for features in (0, -1, 2.5, "5"):
        with pytest.raises(InputError, match="features must be"):
            plain(name, features=features)
    for feature_dim in (0, 1, 2.0, None):
        with pytest.raises(InputError, match="negative"):
            plain(name, feature_dim=feature_dim)
    if takes(name, "carry"):
        with pytest.raises(InputError, match='"token" or "sequence"'):
            plain(name, carry="batch")
    if takes(name, "surrogate"):
        with pytest.raises(InputError, match="callable"):
            plain(name, surrogate="atan")
    if takes(name, "beta"):
        for beta in (-0.1, 1.1, float("nan"), torch.tensor([0.5, 2.0, 0, 0, 0])):
            with pytest.raises(InputError, match=r"beta must lie in \[0, 1\]"):
                plain(name, beta=beta)
        with pytest.raises(InputError, match="beta must be a number"):
            plain(name, beta="a lot")
        with pytest.raises(InputError, match="not both"):
            plain(name, beta=0.5, tau=2.0)
        with pytest.raises(ShapeError, match="needs features"):
            plain(name, features=None, beta=torch.full((N,), 0.5))


@NAMES
def test_settings_are_checked_when_they_are_set_later(name):
    neuron = plain(name)
    for setting, bad, told in (
        ("carry", "seq", '"token" or "sequence", got \'seq\''),
        ("backend", "fast", '"auto", "reference" or "fused", got \'fast\''),
        ("steps", 0, "steps must be a whole number >= 1, got 0"),
    ):
        before = getattr(neuron, setting)
        with pytest.raises(InputError, match=told):
            setattr(neuron, setting, bad)
        assert getattr(neuron, setting) == before


@NAMES
def test_another_neurons_state_is_refused(name):
    neuron, x = plain(name), torch.zeros(3, 2, N)
    state = (*neuron.initial_state(x[0]), x[0])
    for call, argument in ((neuron, x), (neuron.step, x[0]), (neuron.trace, x)):
        with pytest.raises(InputError, match="pass the state that an earlier call of the same neuron"):
            call(argument, state)


@pytest.mark.parametrize("name", [name for name in neurons.names() if takes(name, "threshold")])
def test_threshold_tensor_of_another_size(name):
    for shape in ((N + 1,), (1, N), (0,)):
        with pytest.raises(ShapeError, match=r"a number or a tensor \[5\]"):
            plain(name, threshold=torch.ones(shape))


# ---- the registry -----------------------------------------------------------------------------------


@NAMES
def test_registry_finds_the_class_by_its_name(name):
    cls = neurons.get(name)
    assert issubclass(cls, Neuron)
    assert getattr(neurons, name) is cls
    assert cls.__name__ == name


def test_registry_refuses_duplicates_and_unknown_names(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    class Mine(LIF):
        pass

    with pytest.raises(InputError, match="'LIF' is registered already"):
        neurons.register("LIF")(Mine)
    assert neurons.get("LIF") is LIF
    assert neurons.register("Mine")(Mine) is Mine
    assert neurons.names()[-1] == "Mine"
    assert neurons.register("Mine")(Mine) is Mine  # the same one again: a module loaded twice
    with pytest.raises(InputError, match=r"no neuron named 'Lif'; known: .*LIF.*Mine"):
        neurons.get("Lif")


def test_settings_of_numpy_are_numbers_and_arrays():
    lif = LIF(3, steps=np.int64(4), tau=np.float32(2), threshold=np.array([1.0, 2.0, 3.0]))
    assert lif.steps == 4
    assert lif.threshold.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(InputError, match="threshold must be finite and > 0"):
        ATMN(3, threshold=np.array([1.0, -2.0, 3.0]))
    with pytest.raises(InputError, match="threshold must be finite and > 0"):
        ATMN(3, threshold=10**400)
