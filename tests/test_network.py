"""Reference: a Network against loops written again here, in numpy, from the words of its docstring alone.

Property: T matmuls and one matmul agree. Unit: names, skips, what is refused.
"""

import numpy as np
import pytest
import torch
from torch import nn

from marsnn import ATMN, LIF, LeakyIntegrator, Network
from marsnn.errors import InputError, NonFiniteError, ShapeError, UnknownLayerError
from tests.helpers import same

T, L, B, D = 4, 5, 3, 6


# ---- the same meaning, one neuron and one step at a time --------------------------------------------


class Value:
    """A number that stands still within a token."""

    def __init__(self, value):
        self.value = value
        self.steps = [value] * T


class Spikes:
    """T arrivals, worth their mean."""

    def __init__(self, steps, value):
        self.steps, self.value = steps, value


def array(tensor):
    return tensor.detach().double().numpy()


def by_hand_linear(layer, signal):
    W, b = array(layer.weight), array(layer.bias)
    return Spikes([W @ step + b for step in signal.steps], W @ signal.value + b)


def by_hand_atmn(neuron, signal, _):
    """The value of the token, bias and all, enters at t = 0; the state ends with the token."""
    V, tau, u = array(neuron.threshold), neuron.tau.item(), 0.0
    train, value = [], 0.0
    for t in range(T):
        h = (signal.value if t == 0 else 0.0) + u / tau
        s = (h >= neuron.fire_at * V).astype(float) - (h <= -neuron.fire_at * V)
        u = h - s * V
        train.append(s)
        value = value + V * tau**t * s
    return train, Spikes([T * V * tau**t * s for t, s in enumerate(train)], value), None


def by_hand_lif(neuron, signal, v):
    """Each step's current and bias; the rate, scaled by the threshold, is the value."""
    beta, threshold = array(neuron.beta), array(neuron.threshold)
    v = np.zeros_like(signal.value) if v is None or neuron.carry == "token" else v
    train = []
    for current in signal.steps:
        h = beta * v + current
        s = (h >= threshold).astype(float)
        v = h - s * threshold if neuron.reset == "subtract" else h * (1 - s)
        train.append(s)
    return train, Spikes([threshold * s for s in train], threshold * sum(train) / T), v


def by_hand_integrator(neuron, signal, v):
    beta, out = array(neuron.beta), []
    v = np.zeros_like(signal.value) if v is None or neuron.carry == "token" else v
    for current in signal.steps:
        v = beta * v + current
        out.append(v)
    return out, Spikes(out, sum(out) / T), v


NEURONS = {ATMN: by_hand_atmn, LIF: by_hand_lif, LeakyIntegrator: by_hand_integrator}


def by_hand(network, x):
    """Output [L, B, C] and spikes {name: [L, T, B, N]}, sample by sample, token by token."""
    L, B = x.shape[:2]
    output, trains = [[None] * B for _ in range(L)], {name: {} for name in network.neurons}
    for sample in range(B):
        states = {}
        for token in range(L):
            signal = Value(array(x[token, sample]))
            seen = {"input": signal}
            for name, layer in network.layers.items():
                for source in network.skips.get(name, ()):
                    other = seen[source]
                    signal = Spikes(
                        [a + b for a, b in zip(signal.steps, other.steps, strict=True)],
                        signal.value + other.value,
                    )
                if type(layer) in NEURONS:
                    step = NEURONS[type(layer)]
                    train, signal, states[name] = step(layer, signal, states.get(name))
                    trains[name][token, sample] = np.stack(train)
                elif isinstance(layer, nn.Linear):
                    signal = by_hand_linear(layer, signal)
                else:
                    signal = Value(np.maximum(signal.value, 0))  # ReLU, once a token
                seen[name] = signal
            output[token][sample] = signal.value
    spikes = {
        name: np.stack([np.stack([of[t, b] for b in range(B)], 1) for t in range(L)])
        for name, of in trains.items()
    }
    return np.array(output), spikes


class Listener:
    membrane = False

    def __init__(self):
        self.spikes, self.heard = {}, []

    def neuron(self, name, neuron, spikes, membrane):
        assert membrane is None
        self.heard.append(name)
        self.spikes[name] = array(spikes)

    def layer(self, name, layer, source, output):
        self.heard.append(name)


def atmn(n, **settings):
    return ATMN(n, steps=T, threshold=torch.linspace(0.3, 0.9, n), **settings)


def lif(n, **settings):
    return LIF(n, steps=T, threshold=torch.linspace(0.3, 0.9, n), **settings)


def linear(n, m):
    layer = nn.Linear(n, m)
    nn.init.normal_(layer.weight, std=0.9 / n**0.5)
    nn.init.normal_(layer.bias, std=0.4)  # large enough to be seen where it is added once too often
    return layer


def three(first, second):
    return [linear(D, 7), first(7), linear(7, 8), second(8), linear(8, 2)]


BUILDS = {
    "atmn-atmn": lambda: three(atmn, atmn),
    "atmn-tau-1-and-2": lambda: three(
        lambda n: atmn(n, tau=1.0), lambda n: atmn(n, tau=2.0, fire_at=0.5, learn_tau=True)
    ),
    "lif-lif": lambda: three(lif, lambda n: lif(n, beta=0.9)),
    "lif-lif-carried": lambda: three(
        lambda n: lif(n, carry="sequence"), lambda n: lif(n, reset="zero", carry="sequence")
    ),
    "lif-to-atmn": lambda: three(lambda n: lif(n, carry="sequence"), atmn),
    "atmn-to-lif": lambda: three(atmn, lambda n: lif(n, tau=4.0)),
    "trailing-lif": lambda: [*three(atmn, atmn)[:4], linear(8, 2), lif(2)],
    "trailing-atmn": lambda: [*three(lif, lif)[:4], linear(8, 2), atmn(2)],
    "trailing-integrator": lambda: [*three(lif, atmn), LeakyIntegrator(2, steps=T, carry="sequence")],
    "neuron-first": lambda: [lif(D), linear(D, 7), atmn(7), atmn(7, tau=1.0), linear(7, 2)],
    "two-linears-and-relu": lambda: [linear(D, 7), lif(7), linear(7, 8), linear(8, 8), nn.ReLU(), lif(8)],
}
EVERY = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())


def network_of(build, **settings):
    torch.manual_seed(1)
    return Network(build(), **settings).double()


def tokens(features=D):
    return torch.randn(L, B, features, dtype=torch.float64)


@EVERY
@pytest.mark.parametrize("unrolled", [False, True])
def test_network_is_the_loop_written_by_hand(build, unrolled):
    network, x, listener = network_of(build, unrolled=unrolled), tokens(), Listener()
    output, _ = network.run(x, listeners=[listener])
    expected, spikes = by_hand(network, x)
    assert len(spikes) >= 1
    assert listener.heard == list(network.names)
    for name, train in spikes.items():
        assert np.unique(train).size > 1, name
        np.testing.assert_allclose(listener.spikes[name], train, rtol=1e-12, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(array(output), expected, rtol=1e-12, atol=1e-12)
    assert same(network(x), output)


@EVERY
def test_T_matmuls_are_one_matmul(build):
    """Within rounding; the random data holds no tie, so every spike is the same one."""
    network, x = network_of(build), tokens()
    results = []
    for network.unrolled in (False, True):
        listener = Listener()
        output, _ = network.run(x, listeners=[listener])
        gradients = torch.autograd.grad(output.square().sum(), list(network.parameters()))
        results.append((output.detach(), listener.spikes, gradients))
    (one, one_spikes, one_gradients), (many, many_spikes, many_gradients) = results
    torch.testing.assert_close(one, many, rtol=0, atol=1e-9)
    for name, train in one_spikes.items():
        np.testing.assert_allclose(train, many_spikes[name], rtol=0, atol=1e-9)
    torch.testing.assert_close(one_gradients, many_gradients, rtol=0, atol=1e-9)


@EVERY
def test_gradients_reach_every_parameter(build):
    network = network_of(build)
    network(tokens()).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@EVERY
def test_state_goes_in_and_comes_out(build):
    """Tokens in two runs are tokens in one; only what is carried is in the state."""
    network, x = network_of(build), tokens()
    whole, end = network.run(x)
    first, state = network.run(x[:2])
    second, last = network.run(x[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-12)
    carried = {name for name, neuron in network.neurons.items() if neuron.carry == "sequence"}
    assert set(state) == set(end) == carried
    torch.testing.assert_close(
        {k: tuple(v) for k, v in last.items()}, {k: tuple(v) for k, v in end.items()}, rtol=0, atol=1e-12
    )
    if carried:
        assert not torch.allclose(network.run(x[2:])[0], second)


def test_atmn_hears_the_bias_once_and_lif_at_every_step():
    """One input 0 and bias .25, T = 4, V = 1. ATMN, tau = 1/2: .25 = 0,0,1,0. Integrating LIF: 4 x .25 = 1,
    so it fires at the last step. Were the bias added each step, ATMN would code 1; once, LIF be silent."""
    silent = nn.Linear(1, 1)
    nn.init.zeros_(silent.weight)
    nn.init.constant_(silent.bias, 0.25)
    for neuron, train in ((ATMN(1, steps=4), [0, 0, 1, 0]), (LIF(1, steps=4, beta=1.0), [0, 0, 0, 1])):
        for unrolled in (False, True):
            # a neuron before it, so that the linear sees a train
            network = Network([LIF(1, steps=4), silent, neuron], unrolled=unrolled)
            listener = Listener()
            output, _ = network.run(torch.ones(1, 1, 1), listeners=[listener])
            name = network.names[-1]
            assert listener.spikes[name].flatten().tolist() == train
            assert output.item() == 0.25


# ---- skips ------------------------------------------------------------------------------------------

SKIPS = {
    "atmn-residual": (lambda: [atmn(D), linear(D, D), atmn(D), linear(D, 2)], {"atmn2": "atmn1"}),
    "lif-residual": (lambda: [lif(D), linear(D, D), lif(D), linear(D, 2)], {"lif2": "lif1"}),
    "from-input": (lambda: [linear(D, D), lif(D), linear(D, D), lif(D)], {"lif2": "input"}),
    "input-to-atmn": (lambda: [linear(D, D), lif(D), linear(D, D), atmn(D)], {"atmn1": ["input"]}),
    "two-into-linear": (
        lambda: [linear(D, D), atmn(D), linear(D, D), lif(D), linear(D, 2)],
        {"linear3": ["atmn1", "input"], "lif1": ["linear1"]},
    ),
    "static-and-train": (lambda: [linear(D, D), linear(D, D), atmn(D)], {"atmn1": ["linear1", "input"]}),
}


@pytest.mark.parametrize(("build", "skips"), SKIPS.values(), ids=SKIPS.keys())
@pytest.mark.parametrize("unrolled", [False, True])
def test_skips_are_added_to_the_input(build, skips, unrolled):
    network, x, listener = network_of(build, skips=skips, unrolled=unrolled), tokens(), Listener()
    output, _ = network.run(x, listeners=[listener])
    expected, spikes = by_hand(network, x)
    for name, train in spikes.items():
        np.testing.assert_allclose(listener.spikes[name], train, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(array(output), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(network_of(build)(x), output)  # the skip is heard


def test_skips_are_kept_as_tuples():
    network = Network([atmn(D), linear(D, D), atmn(D)], skips={"atmn2": "atmn1", "linear1": ["input"]})
    assert network.skips == {"atmn2": ("atmn1",), "linear1": ("input",)}


@pytest.mark.parametrize(
    ("skips", "told"),
    [
        ({"atmn1": "atmn2"}, "a skip goes forward"),
        ({"atmn1": "atmn1"}, "a skip goes forward"),
        ({"input": "atmn1"}, "a skip goes forward"),
        ({"atmn2": "atmn9"}, "no layer named 'atmn9'"),
        ({"atmn9": "atmn1"}, "no layer named 'atmn9'"),
        ({"atmn2": ["atmn1", "linear7"]}, "no layer named 'linear7'"),
    ],
)
def test_skips_that_are_refused(skips, told):
    with pytest.raises(InputError, match=told):
        Network([atmn(D), linear(D, D), atmn(D)], skips=skips)


def test_skip_of_another_width_names_the_layer_and_both_shapes():
    network = Network([linear(D, 7), atmn(7), linear(7, 8), atmn(8)], skips={"atmn2": "atmn1"})
    with pytest.raises(ShapeError, match=r"atmn2: .*\[7\].*\[8\]|a skip brings \[7\].*\[8\]"):
        network(torch.randn(L, B, D))


# ---- convolutions and layers of the token's clock ---------------------------------------------------


def conv_network(**settings):
    torch.manual_seed(1)
    return Network(
        {
            "conv": nn.Conv2d(2, 5, 3, padding=1),
            "spikes": ATMN(5, steps=T, threshold=torch.linspace(0.2, 0.6, 5), feature_dim=-3),
            "pool": nn.AvgPool2d(2),
            "deep": nn.Conv2d(5, 3, 2),
            "rate": LIF(3, steps=T, threshold=0.3, feature_dim=-3),
            "flat": nn.Flatten(),
            "readout": nn.Linear(27, 2),
        },
        **settings,
    ).double()


@pytest.mark.parametrize("unrolled", [False, True])
def test_convolutions(unrolled):
    network = conv_network(unrolled=unrolled)
    x = torch.randn(L, B, 2, 8, 8, dtype=torch.float64)
    output, listener = torch.empty(L, B, 2, dtype=torch.float64), Listener()
    got, _ = network.run(x, listeners=[listener])
    conv, spikes, _, deep, rate, _, readout = network.layers.values()
    V, threshold = spikes.threshold.view(5, 1, 1), rate.threshold.view(-1, 1, 1)
    for token in range(L):
        u, v, trains, values = conv(x[token]), 0.0, [], []
        for t in range(T):
            s = (u >= V).double() - (u <= -V).double()
            trains.append(s)
            u = (u - s * V) / 0.5
            # what the second convolution takes from this step: T V tau^t s
            h = 0.5 * v + deep(nn.functional.avg_pool2d(T * V * 0.5**t * s, 2))
            fired = (h >= threshold).double()
            v = h - fired * threshold
            values.append(fired)
        np.testing.assert_array_equal(listener.spikes["spikes"][token], array(torch.stack(trains)))
        np.testing.assert_array_equal(listener.spikes["rate"][token], array(torch.stack(values)))
        output[token] = readout((threshold * torch.stack(values).mean(0)).flatten(1))
    assert listener.spikes["spikes"].shape == (L, T, B, 5, 8, 8)
    torch.testing.assert_close(got, output, rtol=0, atol=1e-12)


class Cumulative(nn.Module):
    """A layer of somebody else's, once a token."""

    clock = "token"

    def forward(self, x):
        assert x.ndim == 2  # one batch axis, as every torch layer expects
        return x.cumsum(-1)


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_custom_module_acts_once_a_token_on_the_decoded_value(unrolled):
    network = Network([lif(D), Cumulative(), atmn(D)], unrolled=unrolled).double()
    x, listener = tokens(), Listener()
    network.run(x, listeners=[listener])
    first, _, second = network.layers.values()
    decoded = first.decode(first.encode(x))
    expected = second.encode(decoded.cumsum(-1)).transpose(0, 1)
    np.testing.assert_array_equal(listener.spikes["atmn1"], array(expected))


def test_norms_and_activations_act_once_a_token():
    network = Network([atmn(D), nn.LayerNorm(D), nn.GELU(), linear(D, 2)]).double()
    x = tokens()
    neuron, norm, gelu, readout = network.layers.values()
    torch.testing.assert_close(network(x), readout(gelu(norm(neuron.decode(neuron.encode(x))))))


def test_dropout_only_in_training():
    network, x = Network([linear(D, D), nn.Dropout(0.5), atmn(D)]).double(), tokens()
    assert not same(network(x), network(x))
    network.eval()
    assert same(network(x), network(x))


# ---- names and what it is made of -------------------------------------------------------------------


def test_names_from_a_sequence():
    network = Network([linear(D, 7), nn.ReLU(), atmn(7), linear(7, 8), lif(8), atmn(8), nn.Conv1d(1, 1, 1)])
    assert network.names == ("linear1", "relu1", "atmn1", "linear2", "lif1", "atmn2", "conv1d1")
    assert list(network.neurons) == ["atmn1", "lif1", "atmn2"]
    assert network.steps == T
    assert isinstance(network["lif1"], LIF)
    assert Network([nn.Linear(2, 2)]).steps == 1


def test_names_from_a_mapping():
    network = Network({"in": linear(D, 7), "hidden_1-a": atmn(7)})
    assert network.names == ("in", "hidden_1-a")
    assert set(network.state_dict()) == {
        "layers.in.weight",
        "layers.in.bias",
        "layers.hidden_1-a.log_threshold",
        "layers.hidden_1-a.fixed_tau",
        "layers.hidden_1-a._extra_state",
    }


def test_state_dict_round_trip():
    first, second = network_of(BUILDS["atmn-tau-1-and-2"]), network_of(lambda: three(ATMN, ATMN))
    x = tokens()
    assert not same(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert same(first(x), second(x))


@pytest.mark.parametrize(
    "name", ["input", "", "a.b", "a/b", "a b", "forward", "training", "_modules", "keys"]
)
def test_bad_names(name):
    with pytest.raises(InputError, match="can't be named"):
        Network({name: nn.Linear(2, 2)})


def test_no_layers():
    for nothing in ([], {}):
        with pytest.raises(InputError, match="at least one layer"):
            Network(nothing)


@pytest.mark.parametrize("layer", [nn.LSTM(2, 2), nn.BatchNorm1d(2), nn.Softmax(-1), torch.relu, "relu"])
def test_unknown_layers(layer):
    with pytest.raises(UnknownLayerError, match=r"odd: don't know how .* clock = \"token\""):
        Network({"linear": nn.Linear(2, 2), "odd": layer})


def test_unknown_name():
    with pytest.raises(InputError, match="no layer named 'atmn2'; the layers are atmn1"):
        Network([atmn(D)])["atmn2"]


def test_neurons_share_T():
    with pytest.raises(InputError, match="share T, got atmn1: 4, lif1: 6"):
        Network([ATMN(D, steps=4), LIF(D, steps=6)])
    network = Network([ATMN(D, steps=4), LIF(D, steps=4)])
    network["lif1"].steps = 5
    with pytest.raises(InputError, match="share T"):
        network(torch.zeros(1, 1, D))


# ---- inputs that are refused ------------------------------------------------------------------------


def test_inputs_that_are_refused():
    network = Network([linear(D, 7), atmn(7)])
    with pytest.raises(ShapeError, match=r"\[L, B, D\].*got \[5, 6\].*x\[None\]"):
        network(torch.zeros(L, D))
    with pytest.raises(InputError, match=r"x is torch\.float64, the network torch\.float32"):
        network(torch.zeros(L, B, D, dtype=torch.float64))
    for empty in ((0, B, D), (L, 0, D)):
        with pytest.raises(ShapeError, match="L and B must be at least 1"):
            network(torch.zeros(empty))
    with pytest.raises(ShapeError, match=r"^linear1: expected an input \[\*, 6\], got \[5, 3, 7\]$"):
        network(torch.zeros(L, B, D + 1))


def test_the_layer_is_named_once():
    for network, name in (
        (Network([linear(D, 7), atmn(8)]), "atmn1"),
        (Network([linear(D, 7), linear(8, 2)]), "linear2"),
        (Network([linear(D, 7), atmn(7), linear(8, 2)]), "linear2"),
        (Network([linear(D, 7), atmn(7), linear(8, 2), lif(2)]), "linear2"),
        (Network({"norm": nn.LayerNorm(D + 1)}), "norm"),
    ):
        with pytest.raises(ShapeError) as caught:
            network(torch.zeros(L, B, D))
        assert str(caught.value).startswith(f"{name}: ")
        assert str(caught.value).count(name + ":") == 1
        assert "\n" not in str(caught.value)


def test_wrong_channels_name_the_convolution():
    with pytest.raises(ShapeError, match=r"^conv: "):
        conv_network()(torch.zeros(L, B, 3, 8, 8, dtype=torch.float64))


def test_non_finite_parameters_name_the_layer():
    network = Network([linear(D, 7), atmn(7)])
    network.check_weights()
    with torch.no_grad():
        network["linear1"].weight[3, 2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"linear1\.weight.*\(3, 2\)"):
        network.check_weights()


def test_non_finite_values_on_the_way_name_the_neuron():
    network, x = Network([linear(D, 7), atmn(7)]), torch.zeros(L, B, D)
    x[1, 2, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="atmn1: "):
        network(x)


def test_a_state_of_another_batch_names_the_layer():
    network = Network([linear(D, 7), lif(7, carry="sequence")])
    _, state = network.run(torch.zeros(L, B, D))
    with pytest.raises(ShapeError, match=r"lif1: .*expected a state \[2, 7\], got \[3, 7\]"):
        network.run(torch.zeros(L, 2, D), state)


@pytest.mark.parametrize("layers", [None, nn.Linear(2, 2), 3, "abc"])
def test_what_is_no_list_of_layers_is_refused(layers):
    with pytest.raises(InputError, match="takes a list or a mapping"):
        Network(layers)


@pytest.mark.parametrize("name", ["нейрон", "n" * 101, "a b", "a.b", 1])
def test_names_that_a_bundle_could_not_carry(name):
    with pytest.raises(InputError, match="can't be named"):
        Network({name: nn.Linear(2, 2)})


def test_torch_containers_are_taken_apart():
    linear = nn.Linear(2, 2)
    assert Network(nn.ModuleDict({"a": linear})).names == ("a",)
    assert Network(nn.Sequential(linear, nn.ReLU())).names == ("linear1", "relu1")


@pytest.mark.parametrize(("name", "value"), [("threshold", torch.nan), ("threshold", -1.0), ("beta", 1.5)])
def test_settings_that_left_their_range_are_found_before_a_run(name, value):
    network = Network([nn.Linear(2, 3), LIF(3)])
    getattr(network["lif1"], name)[0] = value
    with pytest.raises(InputError, match=f"lif1: {name}"):
        network.check_weights()
