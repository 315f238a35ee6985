"""Recurrent: golden values with their working, a loop written out, the contract, other libraries."""

import copy
import pickle

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

from marsnn import neurons, surrogate
from marsnn.checkpoint import load_network, save_network
from marsnn.energy import count
from marsnn.errors import ExportError, InputError, ShapeError
from marsnn.hardware import export
from marsnn.network import Network
from marsnn.neurons import (
    ALIF,
    ATMN,
    LIF,
    PLIF,
    CubaLIF,
    IntegerLIF,
    Izhikevich,
    LeakyIntegrator,
    Recurrent,
    TernaryLIF,
)
from marsnn.neurons.interop import adopt, as_spikingjelly
from marsnn.record import Recording
from marsnn.simulator import simulate
from tests.helpers import same

N = 5
V = torch.tensor([0.5, 0.7, 1.0, 1.3, 2.0])
INNER = {
    "LIF": lambda **more: LIF(N, steps=6, beta=0.8, threshold=V, **more),
    "hard": lambda **more: LIF(N, steps=3, tau=3.0, reset="zero", carry="sequence", **more),
    "PLIF": lambda **more: PLIF(N, tau=1 + V, detach_reset=True, **more),
    "CubaLIF": lambda **more: CubaLIF(N, alpha=0.7, beta=0.8, **more),
    "ALIF": lambda **more: ALIF(N, rho=0.5, adaptation=V, carry="sequence", **more),
    "IntegerLIF": lambda **more: IntegerLIF(N, max_level=2, signed=True, threshold=V, **more),
    "TernaryLIF": lambda **more: TernaryLIF(N, fire_at=0.5, surrogate=surrogate.erf(1.0), **more),
    "Izhikevich": lambda **more: Izhikevich(N, b=0.26, peak=-64.5, **more),
    "LeakyIntegrator": lambda **more: LeakyIntegrator(N, beta=0.5, **more),
}
EVERY = pytest.mark.parametrize("name", INNER)


def build(name, bias=False, dtype=torch.float32, **more):
    torch.manual_seed(3)
    return Recurrent(INNER[name](**more), bias=bias).to(dtype)


def currents(*shape, dtype=torch.float32):
    torch.manual_seed(5)
    return (1.5 * torch.randn(*shape, N, dtype=torch.float64)).to(dtype)


def by_hand(module, x, spikes=None, state=None):
    """The equation as it is written, one step and one matrix product at a time."""
    inner, out = module.neuron, []
    W, b = module.recurrent.weight, module.recurrent.bias
    spikes = torch.zeros_like(x[0]) if spikes is None else spikes
    for current in x:
        back = (inner.step_gain(spikes.unsqueeze(0)) * spikes) @ W.T
        spikes, state = inner.step(current + back + (0 if b is None else b), state)
        out.append(spikes)
    return torch.stack(out), (*state, spikes)


# ---- the equation -----------------------------------------------------------------------------------


def test_golden():
    """beta 1/2, V (1, 2), W = ((0, -1), (.5, 0)); what comes back is W (V s).

    t 0: I (1, 2)    h = (1, 2)                          s (1, 1)  v (0, 0)
    t 1: I (2.5, 0)  back (-2, .5)   h = (.5, .5)        s (0, 0)  v (.5, .5)
    t 2: I (.75, 0)  back 0          h = (1, .25)        s (1, 0)  v (0, .25)
    t 3: I (0, 0)    back (0, .5)    h = (0, .625)       s (0, 0)
    """
    module = Recurrent(LIF(2, beta=0.5, threshold=torch.tensor([1.0, 2.0])))
    module.recurrent.weight.data = torch.tensor([[0.0, -1.0], [0.5, 0.0]])
    x = torch.tensor([[1.0, 2.0], [2.5, 0.0], [0.75, 0.0], [0.0, 0.0]])
    spikes, membrane, state = module.trace(x)
    assert spikes.tolist() == [[1, 1], [0, 0], [1, 0], [0, 0]]
    assert membrane.tolist() == [[0, 0], [0.5, 0.5], [0, 0.25], [0, 0.625]]
    assert state._fields == ("v", "spikes")
    assert state.spikes.tolist() == [0, 0]


@EVERY
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_loop_written_out(name, bias):
    module, x = build(name, bias, torch.float64), currents(9, 4, 3, dtype=torch.float64).requires_grad_()
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    results = []
    for spikes, state in (module(x), by_hand(module, x)):
        loss = (torch.linspace(-1, 2, spikes.numel(), dtype=x.dtype).view_as(spikes) * spikes).sum()
        loss = loss + sum(field.square().sum() for field in state)
        results.append((spikes, tuple(state), torch.autograd.grad(loss, wanted)))
    (first, state, slopes), (second, other, others) = results
    assert first.abs().sum() > 0
    assert not torch.equal(first, module.neuron(x)[0])  # what came back did something
    torch.testing.assert_close((first, state), (second, other), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slopes, others, rtol=1e-9, atol=1e-9)


def test_mutants_are_told_apart():
    """A step too early, too late, the bare spike, the transposed weights, a bias forgotten at rest."""
    module, x = build("LIF", True, torch.float64), currents(9, 4, dtype=torch.float64)
    spikes = by_hand(module, x)[0]

    def variant(late=1, gain=True, turned=False, rested=False):
        W, V = module.recurrent.weight, module.neuron.step_gain(x) if gain else 1.0
        queue, state, out = [torch.zeros_like(x[0])] * late, None, []
        for current in x:
            back = queue.pop(0) if late else module.neuron.step(current, state)[0]
            arrived = (V * back) @ (W if turned else W.T)
            arrived = arrived if rested and not out else arrived + module.recurrent.bias
            sent, state = module.neuron.step(current + arrived, state)
            queue.append(sent)
            out.append(sent)
        return torch.stack(out)

    assert same(variant(), spikes)
    for mutant in ({"late": 0}, {"late": 2}, {"gain": False}, {"turned": True}, {"rested": True}):
        assert not same(variant(**mutant), spikes), mutant


@EVERY
def test_60_and_40_steps_are_100(name):
    module, x = build(name), 0.5 * currents(100, 3)
    whole, end = module(x)
    first, between = module(x[:60])
    second, last = module(x[60:], between)
    assert same(torch.cat([first, second]), whole)
    assert same(tuple(last), tuple(end))
    silent = between._replace(spikes=torch.zeros_like(between.spikes))
    if between.spikes.any():
        assert not same(module.trace(x[60:], silent), module.trace(x[60:], between))


@EVERY
def test_encode_trace_and_decode_are_the_contract_s(name):
    module, x = build(name), currents(2, 3)
    assert module.present(x).shape == (module.steps, 2, 3, N)
    train = module.encode(x)
    assert same(train, module(module.present(x))[0])
    assert same(module.decode(train), module.neuron.decode(train))
    assert module.levels == module.neuron.levels
    spikes, membrane, state = module.trace(module.present(x))
    assert same(spikes, train)
    assert same(membrane[-1], state[0])
    rest = module.initial_state(x)
    assert same(module(module.present(x), rest)[0], train)
    level = module.firing_level(train)
    assert level is None or same(level, module.neuron.firing_level(train))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_that_of_the_input(name, dtype):
    x = currents(6, 3, dtype=dtype)
    for module in (build(name, True, dtype), build(name, True)):
        spikes, state = module(x)
        assert {spikes.dtype, *(field.dtype for field in state)} == {dtype}


def test_channels_of_an_image_are_coupled_place_by_place():
    last = build("LIF", True)
    third = Recurrent(LIF(N, steps=6, beta=0.8, threshold=V, feature_dim=-3), bias=True)
    third.recurrent.load_state_dict(last.recurrent.state_dict())
    x = currents(4, 2, 3, 6)
    torch.testing.assert_close(third(x.movedim(-1, -3))[0], last(x)[0].movedim(-1, -3))


@EVERY
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_states_and_state_dicts(name, copied):
    module, x = build(name, True), currents(6, 3)
    twin = copied(module)
    assert same(twin(x), module(x))
    fresh = Recurrent(type(module.neuron)(N), bias=True)
    assert str(fresh.load_state_dict(module.state_dict())) == "<All keys matched successfully>"
    assert fresh.settings() == module.settings()
    assert same(fresh(x), module(x))
    state = module(x)[1]
    state = type(state)(*(field.detach() for field in state))
    again = copied(state)
    assert type(again) is type(state)
    assert same(tuple(again), tuple(state))


def test_settings_are_those_of_the_neuron():
    module = build("LIF")
    module.steps, module.carry = 2, "sequence"
    assert (module.neuron.steps, module.neuron.carry) == (2, "sequence")
    module.neuron.surrogate = surrogate.triangular(0.5)
    assert module.surrogate == surrogate.triangular(0.5)
    assert module.encode(currents(3)).shape == (2, 3, N)
    with pytest.raises(
        InputError, match=r"threshold belongs to the LIF in it; set it at \.neuron\.threshold"
    ):
        module.threshold = torch.ones(N)
    module.neuron.threshold = torch.full((N,), 1e9)
    assert not module(currents(6, 3))[0].any()
    for name in ("beta", "reset"):
        with pytest.raises(InputError, match=f"{name} belongs to the LIF"):
            setattr(module, name, getattr(module.neuron, name))
    for each in (module.neuron, module):
        each._kept_by_a_library = True  # on every module, children first
    module.backend = "reference"
    other = Recurrent(ALIF(N))
    with pytest.raises(InputError, match="recurrent LIF, this is a recurrent ALIF"):
        other.apply_settings(module.settings())
    with pytest.raises(InputError, match="no settings named"):
        module.apply_settings({"colour": "red"})


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # inside dynamo
def test_transforms_of_torch():
    module, x = build("ALIF", True), currents(6, 4)
    spikes, state = torch.func.vmap(module, in_dims=1, out_dims=(1, 0))(x)
    assert same((spikes, tuple(state)), (module(x)[0], tuple(module(x)[1])))
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert same(compiled(x)[0], module(x)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recurrent(ATMN(N)), "ATMN takes its current once a token"),
        (lambda: Recurrent(LIF()), r"\[N, N\], so the LIF in it needs features=N"),
        (lambda: Recurrent(adopt(snn.Leaky(beta=0.8))), "the Leaky in it needs features=N"),
        (lambda: Recurrent(nn.Linear(2, 2)), "got Linear"),
        (lambda: Recurrent(Recurrent(LIF(2))), "got Recurrent"),
        (lambda: Recurrent("LIF"), "got str"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_currents_are_checked_under_its_name():
    with pytest.raises(ShapeError, match=r"Recurrent: expected currents \[\*, 5\]"):
        build("LIF")(torch.zeros(4, 3, 6))
    with pytest.raises(InputError, match=r'backend="fused" can\'t run this'):
        build("LIF", backend="fused")(currents(3))
    with pytest.raises(ShapeError, match=r"expected a state \[2, 5\]"):
        build("LIF")(currents(3, 2), build("LIF")(currents(3, 4))[1])
    module, x = build("LIF"), currents(3, 2)
    for call, current in ((module, x), (module.trace, x), (module.step, x[0])):
        with pytest.raises(InputError, match=r"expected the state \(v, spikes\), got a tuple of 1; pass"):
            call(current, module.neuron(x)[1])
    with pytest.raises(InputError, match=r"LIF: expected the state \(v\), got a tuple of 2"):
        module.neuron(x, module(x)[1])


# ---- beside other libraries -------------------------------------------------------------------------


def test_equals_rleaky_of_snntorch():
    """Where no membrane stays above the threshold after its reset, which they would not reset again."""
    torch.manual_seed(0)
    theirs = snn.RLeaky(beta=0.8, linear_features=N, threshold=1.0, reset_delay=False)
    ours = Recurrent(LIF(N, beta=0.8, threshold=1.0), bias=True)
    ours.recurrent.load_state_dict(theirs.recurrent.state_dict())
    x = 0.5 * torch.rand(60, 8, N)
    spikes, mem = theirs.init_rleaky()
    sent, membranes = [], []
    for step in x:
        spikes, mem = theirs(step, spikes, mem)
        sent.append(spikes)
        membranes.append(mem)
    found, membrane, _ = ours.trace(x)
    assert found.sum() > 100
    assert membrane.max() < 1
    assert same(found, torch.stack(sent))
    torch.testing.assert_close(membrane, torch.stack(membranes), rtol=0, atol=1e-6)
    assert not same(found, ours.neuron(x)[0])


def test_equals_the_linear_container_of_spikingjelly():
    """One Linear of input and returning spikes side by side: its halves are ours."""
    node = sj_neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=1.0, v_reset=None)
    theirs = sj_layer.LinearRecurrentContainer(node, N, N, bias=True).double()
    ours = Recurrent(LIF(N, tau=2.0)).double()
    x = currents(12, 3, dtype=torch.float64)
    with torch.no_grad():
        ours.recurrent.weight.copy_(theirs.rc.weight[:, N:])
        drive = x @ theirs.rc.weight[:, :N].T + theirs.rc.bias
        sent = torch.stack([theirs(step) for step in x])
    assert sent.any()
    assert same(ours(drive)[0], sent)
    assert not same(ours.neuron(drive)[0], sent)


def test_adopted_and_lent():
    ours = Recurrent(adopt(snn.Leaky(beta=0.8), features=N))
    x = currents(6, 3)
    torch.testing.assert_close(ours(x)[0], by_hand(ours, x)[0])
    lent = as_spikingjelly(build("LIF", True), step_mode="m")
    assert same(lent(x), build("LIF", True)(x)[0])


# ---- in a Network -----------------------------------------------------------------------------------


def network(carry="token", bias=True):
    torch.manual_seed(1)
    own = Recurrent(LIF(4, 3, beta=0.5, threshold=0.4, carry=carry), bias=bias)
    return Network({"in": nn.Linear(6, 4), "own": own, "out": nn.Linear(4, 2)})


@pytest.mark.parametrize("carry", ["token", "sequence"])
def test_network_clears_with_the_token_or_hands_on(carry):
    net, x = network(carry), 2 * torch.randn(5, 3, 6)
    recording = simulate(net, x)
    drive = net["in"](x).detach()
    own, state = net["own"], None
    for token in range(5):
        spikes, state = own(own.present(drive[token]), state if carry == "sequence" else None)
        assert (recording.spikes["own"][token] == spikes.detach().numpy()).all()
    assert recording.spikes["own"].any()
    whole, state = net.run(x[:2])
    rest, _ = net.run(x[2:], state)
    torch.testing.assert_close(torch.cat([whole, rest]), net(x))
    assert (state == {}) == (carry == "token")


def test_a_recording_goes_on_where_it_stopped(tmp_path):
    net, x = network("sequence"), 2 * torch.randn(8, 3, 6)
    first = simulate(net, x[:5])
    first.save(tmp_path / "recording")
    whole = simulate(net, x).spikes["own"]
    for recording in (first, Recording.load(tmp_path / "recording")):
        rest = simulate(net, x[5:], state=recording.state).spikes["own"]
        assert (rest == whole[5:]).all()
    state = first.state["own"]
    other = state._replace(spikes=1 - state.spikes)
    assert (simulate(net, x[5:], state={"own": other}).spikes["own"] != whole[5:]).any()


def test_file_round_trip(tmp_path):
    for carry in ("token", "sequence"):
        for bias in (False, True):
            net = network(carry, bias)
            again = load_network(save_network(net, tmp_path / "n.safetensors"))
            x = 2 * torch.randn(5, 3, 6)
            assert same(again(x), net(x))
            assert again["own"].settings() == net["own"].settings()
    with pytest.raises(InputError, match=r"own: .* no neuron of marsnn's own"):
        save_network(Network({"own": Recurrent(adopt(snn.Leaky(beta=0.8), features=4))}), tmp_path / "x")


def test_another_equation_is_not_taken_for_this_one(tmp_path):
    """Files and targets refuse a subclass, as of any neuron; a file also weights that it can't hold."""

    class Doubled(Recurrent):
        def returned(self, spikes):
            return 2 * super().returned(spikes)

    settings = {"steps": 1, "reset": "zero"}
    net = Network({"in": nn.Linear(6, 4), "own": Doubled(LIF(4, **settings)), "out": nn.Linear(4, 2)})
    net.layers["last"] = LIF(2, **settings)
    x = torch.randn(2, 3, 6)
    with pytest.raises(InputError, match="own: Doubled is no neuron of marsnn's own"):
        save_network(net, tmp_path / "n.safetensors")
    for target, reason in (("lava", "exact integer form"), ("netx", "form in netx"), ("nir", "node in NIR")):
        with pytest.raises(ExportError, match=f"own: Doubled has no {reason}"):
            export(net, x, tmp_path / target, target=target)
    own = Recurrent(LIF(4))
    nn.utils.parametrize.register_parametrization(own.recurrent, "weight", nn.Tanh())
    with pytest.raises(InputError, match="own: its recurrent map is a ParametrizedLinear"):
        save_network(Network({"own": own}), tmp_path / "n.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_network_learns_through_its_recurrence():
    """The last token's answer is the first one's input: only what came back can tell."""
    torch.manual_seed(0)
    net = Network(
        [
            nn.Linear(2, 24),
            Recurrent(LIF(24, 2, beta=0.0, threshold=0.5, carry="sequence")),
            nn.Linear(24, 2),
        ]
    )
    x = torch.zeros(4, 2, 2)
    x[0] = 2 * torch.eye(2)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    first = None
    for _ in range(150):
        loss = nn.functional.cross_entropy(net(x)[-1], torch.arange(2))
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 0.5
    assert loss.item() < 0.05
    net["recurrent1"].recurrent.weight.data.zero_()
    assert same(net(x)[-1, 0], net(x)[-1, 1])  # without it both look alike


# ---- what it costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("carry", ["token", "sequence"])
def test_synapses_are_counted_from_the_spikes(carry):
    net, x = network(carry), 2 * torch.randn(5, 3, 6)
    net["own"].recurrent.weight.data[0, 1] = 0.0
    row = count(net, x).layers["own"]
    spikes = torch.from_numpy(simulate(net, x).spikes["own"])  # [L, T, B, N]
    fan_out = (net["own"].recurrent.weight != 0).sum(0)
    assert row.ac == int((spikes.reshape(-1, 4) @ fan_out.to(spikes.dtype)).sum()) > 0
    assert (row.dense_ac, row.mac, row.baseline_mac) == (5 * 3 * 3 * 16, 0, 5 * 3 * 16)
    alone = Network({"in": net["in"], "own": LIF(4, 3, beta=0.5, threshold=0.4)})
    updates = 5 * 3 * 3 * 4
    assert row.add == count(alone, x).layers["own"].add + 2 * updates  # what came back, and its bias


def test_counts_are_alike_outside_of_a_network():
    module = build("LIF")
    x = currents(6, 3)
    layered = count(Network({"own": module}), currents(1, 3))
    trained = count(module, module.present(currents(1, 3)[0]))
    (own,) = trained.layers.values()
    assert own.ac == layered.layers["own"].ac > 0

    class Stepping(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = module

        def forward(self, x):
            state = None
            for current in x:
                _, state = self.own.step(current, state)
            return state[0]

    stepped, at_once = count(Stepping(), x).layers["own"], count(module, x).total
    assert stepped.ac == at_once.ac
    assert count(Network({"own": build("IntegerLIF")}), currents(4, 3)).layers["own"].graded_ac > 0
    assert count(Network({"own": build("LeakyIntegrator")}), currents(4, 3)).layers["own"].mac > 0


def test_it_is_no_neuron_of_the_registry():
    assert "Recurrent" not in neurons.names()
