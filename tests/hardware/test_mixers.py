"""Reference: state space layers, norms and rotary positions in integers against floats, token by token."""

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.hardware import export, integer, verify
from marsnn.hardware.mixers import turn
from marsnn.hardware.stages import TURN_BITS, TURN_MAX
from marsnn.network import Network
from marsnn.neurons import ATMN
from marsnn.simulator import simulate
from marsnn.ssm import S4D, SSDCore


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoded(bundle, name):
    """Real values that the golden spikes of a neuron with tau = 1/2 stand for, [W, N]."""
    spikes = bundle.golden.spikes[name].astype(np.float64)
    weights = 0.5 ** np.arange(spikes.shape[1])
    stage = bundle.graph[name]
    unit = np.array(next(row["unit"] for row in bundle.manifest["stages"] if row["name"] == name))
    return (spikes * weights[:, None]).sum(1) * stage.arrays["amplitude"] * unit


def values(bundle, name, shape):
    """Golden values of a stage in real numbers, [L, B, *]."""
    unit = np.array(next(row["unit"] for row in bundle.manifest["stages"] if row["name"] == name))
    L, B, *rest = shape
    return np.moveaxis((bundle.golden.values[name] * unit).reshape(B, L, *rest), 0, 1)


def relative(found, exact):
    """The error's root mean square over that of the exact values, token by token, [L]."""
    exact = exact.detach().numpy()
    axes = tuple(range(1, exact.ndim))
    return np.sqrt(np.mean((found - exact) ** 2, axis=axes) / np.mean(exact**2))


def ssd_network(core, steps=8):
    return Network({"a": ATMN(8, steps=steps), "fc": nn.Linear(8, core.inputs), "core": core}).double()


SSD = {
    "plain": {},
    "a group for each head": {"groups": 2},
    "scaled": {"scale_input": True},
    "without skip": {"skip": False},
    "without gate": {"gate": False},
    "one tap": {"conv_size": 1},
    "rotary": {"rope": 10000.0},
    "rotary, scaled, groups": {"rope": 100.0, "scale_input": True, "groups": 2, "gate": False},
}


@pytest.mark.parametrize("name", SSD)
def test_ssd_follows_the_floats_step_token_by_token(name, tmp_path):
    core = SSDCore(heads=2, head_dim=8, state_size=8, **SSD[name])
    with torch.no_grad():  # what starts as zeros or ones
        for own in (core.conv_bias, core.gate_bias, core.skip):
            if own is not None:
                own.normal_()
    net, x = ssd_network(core), randn(150, 2, 8).double()
    bundle = export(net, x, tmp_path / "bundle")
    # the floats take what the integers' own spikes decode to, so that only the layer rounds
    inputs = torch.tensor(np.moveaxis(decoded(bundle, "a").reshape(2, 150, 8), 0, 1))
    state, exact = None, []
    for token in inputs:
        y, state = core.step(net["fc"](token), state)
        exact.append(y)
    last = bundle.graph.last.name
    assert last == ("core" if SSD[name].get("gate", True) is False else "core.gate")
    error = relative(values(bundle, last, (150, 2, 16)), torch.stack(exact))
    assert error.max() < 0.05
    assert error[-50:].mean() < 2 * error[:50].mean() + 0.005  # what is remembered doesn't drift away
    assert bundle.golden.saturations["core"] == 0
    assert verify(bundle.path, simulator="integer").ok


@pytest.mark.parametrize(
    "settings", [{}, {"init": "inv"}, {"discretization": "bilinear"}, {"dt_min": 0.3, "dt_max": 1.0}]
)
@pytest.mark.parametrize("gate", [False, True])
def test_s4d_follows_the_floats_step_token_by_token(settings, gate, tmp_path):
    layer = S4D(8, state_size=16, gate=gate, **settings)
    if layer.gate_bias is not None:
        nn.init.normal_(layer.gate_bias)
    net = Network({"fc": nn.Linear(6, layer.inputs), "s4d": layer, "b": ATMN(8)}).double()
    x = randn(200, 2, 6).double()
    bundle = export(net, x, tmp_path / "bundle")
    inputs = torch.tensor(np.moveaxis(bundle.inputs.reshape(2, 200, 6) * bundle.input_scale, 0, 1))
    state, exact = None, []
    for token in inputs:
        y, state = layer.step(net["fc"](token), state)
        exact.append(y)
    kinds = [stage.kind for stage in bundle.graph.stages]
    assert kinds == (["s4d", "gate", "atmn"] if gate else ["s4d", "atmn"])
    name = "s4d.gate" if gate else "s4d"
    error = relative(values(bundle, name, (200, 2, 8)), torch.stack(exact))
    assert error.max() < 0.05
    assert error[-50:].mean() < 2 * error[:50].mean() + 0.005
    assert bundle.golden.saturations["s4d"] == 0
    assert verify(bundle.path, simulator="integer").ok


def test_two_senders_meet_both_inputs_of_a_gated_s4d(tmp_path):
    """The rows of the Linear before it are split for each of them, its bias between the two inputs."""
    torch.manual_seed(0)
    layer = S4D(6, state_size=8, dt_max=0.5, gate=True)
    nn.init.normal_(layer.gate_bias)
    layers = {
        "a": ATMN(8, steps=8), "up": nn.Linear(8, 8), "b": ATMN(8, steps=8, threshold=0.3),
        "fc": nn.Linear(8, layer.inputs), "s4d": layer, "c": ATMN(6, steps=8),
    }  # fmt: skip
    net, x = Network(layers, skips={"fc": "a"}).double(), randn(60, 2, 8).double()
    bundle = export(net, x, tmp_path / "bundle")
    ports = {
        (stage.name, synapse.port): synapse.name
        for stage in bundle.graph.stages[2:4]
        for synapse in stage.synapses
        if synapse.source == "b"
    }
    assert ports == {("s4d", "in"): "fc.values", ("s4d.gate", "argument"): "fc.gate"}
    spikes = sum(decoded(bundle, name).reshape(2, 60, 8) for name in ("a", "b"))
    exact, _ = layer(net["fc"](torch.tensor(np.moveaxis(spikes, 0, 1))))
    assert relative(values(bundle, "s4d.gate", (60, 2, 6)), exact).max() < 0.05
    assert verify(bundle.path, simulator="integer").ok


def test_a_sample_starts_with_nothing_remembered(tmp_path):
    """The same sample twice gives the same values twice, and other tokens before it don't show."""
    core = SSDCore(heads=2, head_dim=4, state_size=4, rope=10000.0)
    layers = {
        "a": ATMN(8),
        "fc": nn.Linear(8, core.inputs),
        "core": core,
        "b": ATMN(8),
        "out": nn.Linear(8, 8),
    }
    x = randn(20, 3, 8)
    x[:, 2] = x[:, 0]
    bundle = export(Network(layers), x, tmp_path / "bundle")
    found = bundle.golden.values["core"].reshape(3, 20, 8)
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("base", [10.0, 10000.0])
def test_rotary_positions_hold_beyond_a_hundred_tokens(base, tmp_path):
    """As a turn of the state: the float layer turns keys and queries by positions up to 400."""
    core = SSDCore(heads=1, head_dim=8, state_size=8, rope=base, gate=False, conv_size=1)
    with torch.no_grad():
        core.decay_bias.fill_(-6.0)  # a memory of hundreds of tokens
    net, x = ssd_network(core), randn(400, 1, 8).double()
    bundle = export(net, x, tmp_path / "bundle")
    exact = simulate(net, x).output
    found = values(bundle, "core", (400, 1, 8))
    error = relative(found, torch.tensor(exact))
    assert error[100:].max() < 0.1
    assert error[300:].mean() < 0.03
    # without the turn it would be another layer
    core.rope = None
    other = simulate(net, x).output
    assert relative(found, torch.tensor(other))[100:].mean() > 0.3


def test_a_turn_of_the_state_is_a_turn_of_keys_and_queries():
    """q_m . k_n with each turned by its own position equals q_m . (k_n turned m - n times), in floats."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(0.01, 1, 4)
    keys, queries = rng.normal(size=(120, 8)), rng.normal(size=(120, 8))

    def turned(vector, position):
        return np.concatenate(
            turn(vector[:4], vector[4:], np.cos(position * angles), np.sin(position * angles))
        )

    state = np.zeros(8)
    for m in range(120):
        state = np.concatenate(turn(state[:4], state[4:], np.cos(angles), -np.sin(angles))) + keys[m]
        expected = sum(turned(queries[m], m) @ turned(keys[n], n) for n in range(m + 1))
        assert queries[m] @ state == pytest.approx(expected, abs=1e-9)


def test_a_turn_never_grows():
    """In integers, toward zero: cosine^2 + sine^2 is at most 1, so a state only fades."""
    angles = np.linspace(0, np.pi, 500)
    cosine, sine = (np.trunc(each * TURN_MAX).astype(np.int64) for each in (np.cos(angles), np.sin(angles)))
    first, second = np.full(500, 2**22), np.full(500, -(2**22))
    before = first**2 + second**2
    for _ in range(200):
        first, second = (integer.toward_zero(each, TURN_BITS) for each in turn(first, second, cosine, sine))
        assert (first**2 + second**2 <= before).all()
    assert (first**2 + second**2 > 0.99 * before).all()


# ---- norms -------------------------------------------------------------------------------------------


def normed(norm, x, tmp_path):
    """Values of a norm on the input, in real numbers, and the norm's own."""
    net = Network({"norm": norm, "a": ATMN(x.shape[-1], threshold=0.5)})
    bundle = export(net, x, tmp_path / "bundle")
    assert bundle.report("certificate")["safe"] is True
    assert verify(bundle.path, simulator="integer").ok
    return values(bundle, "norm", x.shape), norm(x).detach(), bundle


def rms(size, weight=None, **settings):
    norm = nn.RMSNorm(size, **settings)
    if weight is not None:
        with torch.no_grad():
            norm.weight.copy_(torch.as_tensor(weight))
    return norm


def layer_norm(size, weight=None, bias=None, **settings):
    norm = nn.LayerNorm(size, **settings)
    with torch.no_grad():
        if weight is not None:
            norm.weight.copy_(torch.as_tensor(weight))
        if bias is not None:
            norm.bias.copy_(torch.as_tensor(bias))
    return norm


GAINS = [1.0, -1.0, 0.0, 2.5, -0.01, 0.3, 7.0, -3.0]
BIASES = [0.5, -2.0, 1.5, 0.0, 0.02, -0.3, 3.0, 0.0]

NORMS = {
    "RMSNorm": lambda: rms(8),
    "RMSNorm, gains": lambda: rms(8, GAINS),
    "RMSNorm without gains": lambda: rms(8, elementwise_affine=False),
    "RMSNorm, large epsilon": lambda: rms(8, eps=2.0),
    "RMSNorm, huge epsilon": lambda: rms(8, eps=1e6),
    "RMSNorm, epsilon 0": lambda: rms(8, eps=0.0),
    "LayerNorm": lambda: layer_norm(8),
    "LayerNorm, gains": lambda: layer_norm(8, GAINS),
    "LayerNorm, gains and bias": lambda: layer_norm(8, GAINS, BIASES),
    "LayerNorm without bias": lambda: layer_norm(8, GAINS, bias=None),
    "LayerNorm without gains": lambda: layer_norm(8, elementwise_affine=False),
    "LayerNorm, large epsilon": lambda: layer_norm(8, GAINS, BIASES, eps=2.0),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_that_of_the_floats(name, tmp_path):
    found, exact, bundle = normed(NORMS[name](), randn(20, 4, 8), tmp_path)
    largest = exact.abs().amax((0, 1)).numpy()
    unit = np.array(bundle.manifest["stages"][0]["unit"])
    assert (np.abs(found - exact.numpy()).max((0, 1)) <= 0.004 * largest + 1.5 * unit).all()
    assert bundle.golden.saturations["norm"] == 0
    assert bundle.input_scale.shape == (8,)  # 16 bits, each feature its own


def test_a_gain_of_zero_leaves_the_bias(tmp_path):
    found, exact, _ = normed(
        layer_norm(4, [0.0, 1.0, 0.0, 1.0], [1.25, 0.0, 0.0, 0.0]), randn(5, 2, 4), tmp_path
    )
    assert np.abs(found[..., 0] - 1.25).max() < 1e-3
    assert not found[..., 2].any()
    assert np.abs(found[..., 3] - exact[..., 3].numpy()).max() < 0.01


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_norm_does_not_care_for_the_size_of_its_inputs(scale, tmp_path):
    x = randn(10, 3, 8)
    found, _, _ = normed(rms(8, GAINS, eps=0.0), x * scale, tmp_path)
    exact = rms(8, GAINS, eps=0.0)(x).detach().numpy()
    assert np.abs(found - exact).max() < 0.02


def test_a_token_of_zeros_is_no_division_by_zero(tmp_path):
    x = randn(6, 2, 4)
    x[3] = 0
    found, exact, _ = normed(layer_norm(4, [1.0, -1.0, 2.0, 0.0], [0.5, 0.0, -1.0, 0.25]), x, tmp_path)
    np.testing.assert_allclose(found[3], exact[3].numpy(), atol=1e-3)


def test_a_residual_around_a_norm(tmp_path):
    """Two blocks with their residuals: what is added up is what the floats add up."""
    layers = {
        "n1": nn.RMSNorm(8), "a1": ATMN(8, steps=8), "f1": nn.Linear(8, 8), "sum1": nn.Identity(),
        "n2": nn.LayerNorm(8), "a2": ATMN(8, steps=8), "f2": nn.Linear(8, 8), "sum2": nn.Identity(),
    }  # fmt: skip
    net, x = Network(layers, skips={"sum1": "input", "sum2": "sum1"}), randn(10, 4, 8)
    bundle = export(net, x, tmp_path / "bundle")
    drift = bundle.report("drift")
    assert drift["output"]["rms_error"] < 0.01 * drift["output"]["rms"]
    assert [stage.kind for stage in bundle.graph.stages] == ["norm", "atmn", "sum", "norm", "atmn", "sum"]
    assert verify(bundle.path, simulator="integer").ok
