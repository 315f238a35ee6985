"""snntorch and spikingjelly, run against the installed versions: theirs in ours, ours in theirs.

Truths held: reference (bit for bit against their own loops), contract (of an adopted neuron), golden (costs
worked out by hand). Where the models are the same, and where not, is in `test_interop_table`.
"""

import copy
import importlib
import pickle
import sys

import pytest
import torch
from torch import nn

from marsnn import energy, neurons, simulate
from marsnn.checkpoint import load_network, save_network
from marsnn.errors import ExportError, InputError, MissingDependencyError, ShapeError, UnknownLayerError
from marsnn.hardware import export
from marsnn.network import Network
from marsnn.neurons import ALIF, ATMN, LIF, PLIF, CubaLIF, Izhikevich, LeakyIntegrator, TernaryLIF, lent
from marsnn.neurons.base import UpdateCost
from marsnn.neurons.foreign import library
from marsnn.neurons.interop import Adopted, adopt, as_snntorch, as_spikingjelly
from marsnn.training import TrainConfig, train
from tests.helpers import same
from tests.neurons.their_loops import N, currents, jelly, loss_of, own_loop, slopes, snn

# isort: split
from snntorch import functional as snn_losses
from snntorch import surrogate as snn_surrogate
from snntorch import utils as snn_utils
from spikingjelly.activation_based import base as jelly_base
from spikingjelly.activation_based import functional, layer, monitor, op_counter
from spikingjelly.activation_based import surrogate as jelly_surrogate

V = torch.tensor([0.5, 0.7, 1.0, 1.3, 2.0])


class Fading(jelly.SimpleBaseNode):
    """A user's own neuron on spikingjelly's teaching base."""

    def neuronal_charge(self, x):
        self.v = 0.8 * self.v + x


SNN = {
    "Leaky": lambda: snn.Leaky(beta=0.9, threshold=0.8),
    "Leaky hidden": lambda: snn.Leaky(beta=0.9, init_hidden=True),
    "Leaky hidden output": lambda: snn.Leaky(beta=0.9, init_hidden=True, output=True),
    "Leaky zero": lambda: snn.Leaky(beta=0.9, reset_mechanism="zero", learn_beta=True),
    "Leaky none": lambda: snn.Leaky(beta=torch.full((N,), 0.7), reset_mechanism="none", learn_beta=True),
    "Leaky at once": lambda: snn.Leaky(beta=0.9, reset_delay=False, threshold=V, learn_threshold=True),
    "Leaky zero at once": lambda: snn.Leaky(beta=0.9, reset_delay=False, reset_mechanism="zero"),
    "Leaky graded": lambda: snn.Leaky(beta=0.9, graded_spikes_factor=0.3, learn_graded_spikes_factor=True),
    "Leaky sigmoid": lambda: snn.Leaky(beta=0.5, spike_grad=snn_surrogate.sigmoid(3)),
    "Lapicque": lambda: snn.Lapicque(R=1.2, C=1.5, time_step=0.7),
    "Synaptic": lambda: snn.Synaptic(alpha=0.8, beta=0.9, learn_alpha=True, learn_beta=True),
    "Synaptic zero": lambda: snn.Synaptic(alpha=0.8, beta=0.9, reset_mechanism="zero", init_hidden=True),
    "Synaptic at once": lambda: snn.Synaptic(alpha=0.8, beta=0.9, reset_delay=False),
    "Alpha": lambda: snn.Alpha(alpha=0.9, beta=0.8),
    "Alpha subtract": lambda: snn.Alpha(alpha=0.9, beta=0.8, reset_mechanism="subtract", threshold=0.2),
    "RLeaky": lambda: snn.RLeaky(beta=0.9, linear_features=N),
    "RLeaky one to one": lambda: snn.RLeaky(beta=0.9, all_to_all=False, V=V, learn_threshold=True),
    "RLeaky at once": lambda: snn.RLeaky(beta=0.9, linear_features=N, reset_delay=False, init_hidden=True),
    "RSynaptic": lambda: snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=N),
    "RSynaptic zero": lambda: snn.RSynaptic(alpha=0.8, beta=0.9, all_to_all=False, reset_mechanism="zero"),
    "DeltaLeaky": lambda: snn.DeltaLeaky(beta=0.9, delta_threshold=0.8),
    "SLSTM": lambda: snn.SLSTM(N, N, threshold=0.1, reset_mechanism="subtract"),
}

SOFT = {"v_reset": None, "surrogate_function": jelly_surrogate.ATan()}
JELLY = {
    "IFNode": lambda: jelly.IFNode(),
    "IFNode soft": lambda: jelly.IFNode(step_mode="m", store_v_seq=True, **SOFT),
    "LIFNode": lambda: jelly.LIFNode(tau=3.0, v_reset=-0.5, detach_reset=True, step_mode="m"),
    "LIFNode soft": lambda: jelly.LIFNode(tau=3.0, decay_input=False, v_threshold=0.7, **SOFT),
    "SimpleLIFNode": lambda: jelly.SimpleLIFNode(tau=2.5, decay_input=False, v_reset=0.2),
    "ParametricLIFNode": lambda: jelly.ParametricLIFNode(init_tau=3.0, decay_input=False, step_mode="m"),
    "QIFNode": lambda: jelly.QIFNode(),
    "EIFNode": lambda: jelly.EIFNode(),
    "IzhikevichNode": lambda: jelly.IzhikevichNode(a=0.5, b=0.3, w_rest=0.1, step_mode="m"),
    "LIAFNode": lambda: jelly.LIAFNode(torch.tanh, True, tau=3.0),
    "KLIFNode": lambda: jelly.KLIFNode(scale_reset=True, tau=3.0),
    "CUBALIFNode": lambda: jelly.CUBALIFNode(v_reset=None),
    "TernaryIFNode": lambda: jelly.TernaryIFNode(v_reset=None),
    "TernaryLIFNode": lambda: jelly.TernaryLIFNode(tau=4.0, v_threshold=0.7, decay_input=False),
    "ILIFNode": lambda: jelly.ILIFNode(v_threshold=0.6, step_mode="m"),
    "ComplementaryLIFNode": lambda: jelly.ComplementaryLIFNode(store_state_seqs=True, step_mode="m"),
    "HalfThresholdIFNode": lambda: jelly.HalfThresholdIFNode(v_threshold=0.8),
    "ActivationAwareIFNode": lambda: jelly.ActivationAwareIFNode(V, 0.1 * V, v_reset=None),
    "RAFNode": lambda: jelly.RAFNode(v_threshold=0.4),
    "SLTTLIFNode": lambda: jelly.SLTTLIFNode(tau=3.0),
    "MPBNLIFNode": lambda: jelly.MPBNLIFNode(out_features=N),
    "STBIFNode": lambda: jelly.STBIFNode(1.0, level=8),
    "a user's own": lambda: Fading(v_threshold=0.9),
}
EVERY = pytest.mark.parametrize("name", [*SNN, *JELLY])
BLIND = {"STBIFNode"}  # made for inference: it refuses currents that want a gradient


def make(name):
    torch.manual_seed(7)  # weights of the recurrent ones
    return (SNN.get(name) or JELLY.get(name))()


def agree(found, wanted):
    """Slopes of the currents bit for bit; those of parameters are sums, whose order may differ."""
    assert same(found[0], wanted[0])
    torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-5, atol=1e-4)


# ---- theirs in ours: the same bits ----------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("shape", [(1, 3), (7, 3), (7, 2, 4), (7,)], ids=str)
def test_an_adopted_neuron_equals_its_own_loop(name, shape):
    """Spikes, final states, gradients of the currents and of every parameter, bit for bit."""
    ours, theirs = adopt(make(name)), make(name)
    if shape == (7,):  # one sample, which a batch norm in training refuses
        ours.eval(), theirs.eval()
    x = currents(*shape).requires_grad_(name not in BLIND)
    spikes, state = ours(x)
    flat = x.detach().reshape(shape[0], -1, N).requires_grad_(name not in BLIND)
    expected, end = own_loop(theirs, flat)
    assert same(spikes.reshape(expected.shape), expected)
    assert set(end) == set(state._fields)
    ends = [end[field] for field in state._fields]
    assert same([field.reshape(expected.shape[1:]) for field in state], ends)
    if name in BLIND:
        return
    found = slopes(loss_of(spikes, state), x, ours)
    wanted = slopes(loss_of(expected, ends), flat, theirs)
    assert (found[0] != 0).any()
    found[0] = found[0].reshape(flat.shape)
    if len(shape) == 2 or name != "RSynaptic zero":
        assert same(found, wanted)
    torch.testing.assert_close(found, wanted)  # a reshape in the graph may change the order of a long sum


@pytest.mark.parametrize("name", ["Leaky", "Leaky at once", "Synaptic", "DeltaLeaky", "LIFNode", "KLIFNode"])
def test_float64_keeps_float64(name):
    ours, theirs, x = adopt(make(name)), make(name), currents(7, 3, dtype=torch.float64).requires_grad_()
    spikes, state = ours(x)
    expected, end = own_loop(theirs, x)
    assert {t.dtype for t in (spikes, *state)} == {torch.float64}
    assert same(spikes, expected.double())  # snntorch gives float32
    assert same(list(state), [end[field] for field in state._fields])
    assert same(
        slopes(loss_of(spikes, state), x, ours)[0],
        slopes(loss_of(expected.double(), [end[f] for f in state._fields]), x, theirs)[0],
    )


@EVERY
def test_half_precision_stays(name):
    ours, x = adopt(make(name)).to(torch.bfloat16), currents(4, 3, dtype=torch.bfloat16)
    spikes, state = ours(x)
    assert {t.dtype for t in (spikes, *state, ours.decode(spikes))} == {torch.bfloat16}


# ---- theirs in ours: the contract -----------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_60_and_40_steps_are_100(name, dtype):
    ours, x = adopt(make(name)).to(dtype).eval(), 0.5 * currents(100, 3, dtype=dtype)
    whole, end = ours(x)
    first, between = ours(x[:60])
    second, last = ours(x[60:], between)
    assert same(torch.cat([first, second]), whole)
    assert same(tuple(last), tuple(end))
    assert not same(ours.trace(x[60:]), ours.trace(x[60:], between))


@EVERY
def test_samples_calls_and_the_module_share_nothing(name):
    """Nothing stays in the module, its own state is neither read nor changed, inputs are left alone."""
    module = make(name)
    own_loop(module, currents(3, 2))  # leaves a state of another shape behind, as a user may
    if library(module) == "spikingjelly" and "m" in module.supported_step_mode():
        module.step_mode = "m"
    before = {**vars(module), **module._buffers, **getattr(module, "_memories", {})}
    ours = adopt(module).eval()
    before["training"] = False
    x = currents(6, 4)
    spikes, state = ours(x)
    kept = x.clone(), tuple(field.clone() for field in state)
    again, _ = ours(x)
    ours(x, state)
    assert same(again, spikes)
    assert same((x, tuple(state)), kept)
    after = {**vars(module), **module._buffers, **getattr(module, "_memories", {})}
    assert before.keys() == after.keys()
    assert all(after[key] is value for key, value in before.items())
    for sample in range(4):  # near, not same: a product of one row may be summed in another order
        alone, end = ours(x[:, sample : sample + 1])
        torch.testing.assert_close(alone[:, 0], spikes[:, sample])
        torch.testing.assert_close(end[0][0], state[0][sample])


@EVERY
def test_levels_are_the_spikes_that_occur(name):
    ours = adopt(make(name))
    with torch.random.fork_rng():
        spikes, _ = ours(3 * currents(40, 20))
    seen = set(spikes.unique().tolist())
    if not ours.levels:
        assert not seen <= {-1.0, 0.0, 1.0}
    elif name != "SLSTM":
        assert seen == set(ours.levels)


def test_levels_of_graded_and_signed_neurons():
    graded = {"beta": 0.9, "graded_spikes_factor": 3.0}
    assert adopt(snn.Leaky(**graded)).levels == (0, 3)
    assert adopt(snn.Leaky(**graded, learn_graded_spikes_factor=True)).levels == ()
    assert adopt(snn.Leaky(beta=0.9, graded_spikes_factor=0.5)).levels == ()
    assert adopt(snn.Leaky(beta=0.9, graded_spikes_factor=V)).levels == ()
    assert adopt(jelly.TernaryLIFNode()).levels == (-1, 0, 1)
    assert adopt(jelly.ILIFNode()).levels == (0, 1, 2, 3, 4)
    assert adopt(jelly.STBIFNode(2.0, level=8)).levels == (-2, 0, 2)
    assert adopt(jelly.STBIFNode(0.1, level=8)).levels == ()
    soft = jelly_surrogate.Sigmoid(spiking=False)
    assert adopt(jelly.LIFNode(surrogate_function=soft)).levels == ()


def test_a_spike_beyond_the_levels_is_refused():
    """Recorded as small integers and booked as accumulates, a graded spike would be misread silently."""
    neuron = adopt(snn.Leaky(beta=0.9, spike_grad=lambda x: 0.5 * (x > 0).float()))
    with pytest.raises(InputError, match=r"a spike is 0.5, expected one of \(0, 1\); write adopt"):
        neuron(torch.full((3, 2), 2.0))
    free = adopt(neuron.module, levels=())
    assert free(torch.full((1, 2), 2.0))[0].tolist() == [[0.5, 0.5]]


def test_rest_is_their_reset_value():
    state = adopt(jelly.LIFNode(v_reset=-0.5)).initial_state(torch.zeros(2, N))
    assert same(state.v, torch.full((2, N), -0.5))
    state = adopt(jelly.IzhikevichNode(w_rest=0.3)).initial_state(torch.zeros(2, N))
    assert same(tuple(state), (torch.zeros(2, N), torch.full((2, N), 0.3)))
    assert adopt(jelly.HalfThresholdIFNode(0.8)).initial_state(torch.zeros(1)).v.item() == pytest.approx(0.4)
    moved = jelly.IFNode()
    moved.set_reset_value("v", 0.25)
    assert adopt(moved).initial_state(torch.zeros(1)).v.item() == 0.25
    assert adopt(snn.Synaptic(alpha=0.5, beta=0.5)).state_fields() == ("mem", "syn")


@pytest.mark.parametrize("name", ["Leaky at once", "ActivationAwareIFNode", "LIFNode soft", "LIAFNode"])
def test_decode_is_threshold_times_the_mean(name):
    ours = adopt(make(name), steps=6)
    worth = {"Leaky at once": V, "ActivationAwareIFNode": V, "LIFNode soft": 0.7, "LIAFNode": 1.0}[name]
    train = ours.encode(currents(3))
    assert train.shape == (6, 3, N)
    torch.testing.assert_close(ours.decode(train), worth * train.mean(0))
    torch.testing.assert_close((ours.step_gain(train) * train).mean(0), ours.decode(train))


def test_channels_stand_where_feature_dim_says():
    x = 1.5 * torch.randn(4, 2, 3, N, 6, 6)  # [T, L, B, C, H, W]
    for module in (
        snn.RLeaky(beta=0.9, conv2d_channels=N, kernel_size=3),
        snn.SConv2dLSTM(N, N, 3, threshold=0.1),
        jelly.ActivationAwareIFNode(V, 0 * V, channel_dim=1, v_reset=None),
    ):
        ours = adopt(module, features=N, feature_dim=-3)
        spikes, state = ours(x)
        expected, end = own_loop(module, x.flatten(1, 2))
        assert same(spikes.flatten(1, 2), expected)
        assert same([field.flatten(0, 1) for field in state], [end[f] for f in state._fields])
        with pytest.raises(ShapeError, match="at axis -3"):
            ours(x[:, :, :, 1:])


def pickled(neuron):
    return pickle.loads(pickle.dumps(neuron))


@pytest.mark.parametrize(
    ("name", "copied"),  # snntorch's surrogates are local functions, which pickle refuses
    [*((name, copy.deepcopy) for name in [*SNN, *JELLY]), *((name, pickled) for name in JELLY)],
)
def test_copies_are_equal_and_independent(name, copied):
    ours, x = adopt(make(name), steps=3, carry="sequence").eval(), currents(5, 3)
    twin = copied(ours)
    assert twin.settings() == ours.settings()
    expected = ours(x)
    assert same(twin(x), expected)
    for tensor in [*twin.parameters(), *twin.buffers()]:
        tensor.data.mul_(0)
    assert same(ours(x), expected)


def test_state_dict_holds_their_parameters_and_our_settings():
    first = adopt(snn.Leaky(beta=0.9, learn_beta=True), steps=3, carry="sequence")
    second = adopt(snn.Leaky(beta=0.2, learn_beta=True))
    second.load_state_dict(first.state_dict())
    assert second.settings() == first.settings()
    assert second.settings()["steps"] == 3
    assert same(second(currents(5, 2))[0].shape, first(currents(5, 2))[0].shape)
    assert second.module.beta.item() == first.module.beta.item()
    with pytest.raises(
        InputError, match=r"that of an adopted snntorch.Leaky, this is an adopted snntorch.Lap"
    ):
        adopt(snn.Lapicque(beta=0.9)).load_state_dict(first.state_dict())
    with pytest.raises(InputError, match="can't be rebuilt from settings"):
        first.constructor()


def test_another_nets_reset_does_not_disturb():
    """snntorch's `utils.reset` zeroes every hidden neuron of the process."""
    module = snn.Leaky(beta=0.9, init_hidden=True)
    ours, x = adopt(module), currents(6, 2)
    whole, _ = ours(x)
    other = nn.Sequential(nn.Linear(N, N), snn.Leaky(beta=0.5, init_hidden=True))
    first, state = ours(x[:3])
    snn_utils.reset(other)
    second, _ = ours(x[3:], state)
    assert same(torch.cat([first, second]), whole)
    assert module.mem.numel() == 0


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature:UserWarning")
def test_inhibition_is_within_a_sample():
    ours, theirs = (adopt(snn.Leaky(beta=0.9, inhibition=True)) for _ in range(2))
    x = currents(6, 2, 4)  # two leading axes, which their argmax over axis 1 would mistake
    spikes, _ = ours(x)
    assert spikes.sum(-1).max() == 1
    assert same(spikes.flatten(1, 2), own_loop(theirs.module, x.flatten(1, 2))[0])


# ---- what can't be adopted ------------------------------------------------------------------------------


class Composite(jelly_base.MemoryModule):
    def __init__(self):
        super().__init__()
        self.register_memory("total", 0.0)
        self.inner = jelly.IFNode()

    def single_step_forward(self, x):
        self.total = self.total + x
        return self.inner(self.total)


class Counting(jelly_base.MemoryModule):
    def __init__(self):
        super().__init__()
        self.register_memory("v", 0.0)

    def single_step_forward(self, x):
        self.v = self.v + x
        spikes = torch.floor(self.v)
        self.v = self.v - spikes
        return spikes


REFUSED = {
    "StateLeaky": (lambda: snn.StateLeaky(beta=0.9, channels=N), "runs all time steps at once"),
    "LinearLeaky": (lambda: snn.LinearLeaky(0.9, N, N), "runs all time steps at once"),
    "LeakyParallel": (lambda: snn.LeakyParallel(N, N), "runs all time steps at once"),
    "AssociativeLeaky": (lambda: snn.AssociativeLeaky(4, 2, 3, 6), "runs all time steps at once"),
    "SLSTM": (lambda: snn.SLSTM(4, N), "it maps 4 features to 5"),
    "SConv2dLSTM": (lambda: snn.SConv2dLSTM(4, N, 3), "it maps 4 features to 5"),
    "SConv2dLSTM pooled": (lambda: snn.SConv2dLSTM(N, N, 3, max_pool=2), "it pools its spikes"),
    "PSN": (lambda: jelly.PSN(4), "keeps no state from one step to the next"),
    "MaskedPSN": (lambda: jelly.MaskedPSN(2, 4), "keeps queue, a list"),
    "SlidingPSN": (lambda: jelly.SlidingPSN(2), "keeps queue, a list"),
    "GatedLIFNode": (lambda: jelly.GatedLIFNode(4, step_mode="m"), "a multi-step form only"),
    "DSRLIFNode": (lambda: jelly.DSRLIFNode(), "a multi-step form only"),
    "OTTTLIFNode": (lambda: jelly.OTTTLIFNode(), "returns a trace beside its spikes"),
    "NonSpikingLIFNode": (lambda: jelly.NonSpikingLIFNode(), "keeps no state from one step to the next"),
    "Composite": (Composite, "holds another stateful module, IFNode"),
    "Linear": (lambda: nn.Linear(2, 2), "is no neuron of snntorch or spikingjelly"),
    "SynapseFilter": (lambda: layer.SynapseFilter(), "is no neuron of snntorch or spikingjelly"),
    "a number": (lambda: 3, "is no neuron of snntorch or spikingjelly"),
    "Counting": (Counting, r"which values its spikes take; write adopt\(module, levels="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_module_and_the_reason(name):
    build, reason = REFUSED[name]
    module = build()
    with pytest.raises(InputError, match=f"{type(module).__name__}.*{reason}") as caught:
        adopt(module)
    assert "\n" not in str(caught.value)


def test_every_neuron_of_both_libraries_is_adopted_or_refused_here():
    """A release with new neurons fails this test until somebody has looked at them."""
    known = {type(make(name)).__name__ for name in [*SNN, *JELLY]}
    known |= {name.split()[0] for name in REFUSED}
    abstract = {"SpikingNeuron", "LIF", "BaseNode", "SimpleBaseNode", "NonSpikingBaseNode", "AdaptBaseNode"}
    alike = {  # of a family that stands above
        *("SimpleIFNode", "NonSpikingIFNode", "DSRIFNode", "MPBNBaseNode"),
        *("FewSpikeNode", "HGNode", "OutlierAwareThresholdNode"),  # tables over sub-steps: no MemoryModule
        *("ILCBaseNode", "ILCIFNode", "ILCLIFNode", "ILCCUBALIFNode"),  # multi-step modules
        *("NoisyBaseNode", "NoisyCUBALIFNode", "NoisyILCBaseNode", "NoisyILCCUBALIFNode"),
        *("NoisyNonSpikingBaseNode", "NoisyNonSpikingIFNode"),
        "FlexSN",  # tested below
    }
    theirs = {cls.__name__ for cls in vars(snn).values() if in_package(cls, "snntorch._neurons")}
    theirs |= {cls.__name__ for cls in vars(jelly).values() if in_package(cls, jelly.__name__)}
    assert len(theirs) > 40
    assert theirs - known - abstract - alike == set()


def in_package(cls, package):
    return isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__.startswith(package)


def test_unknown_classes_say_their_levels():
    """Their levels, and what a step costs, come from whoever knows."""
    ours = adopt(Counting(), levels=(0, 1, 2))
    assert ours(torch.full((3, 1), 0.75))[0].flatten().tolist() == [0, 1, 1]
    flexible = jelly.FlexSN(lambda x, v: ((v + x >= 1).to(x), 0.5 * (v + x)), 1)
    ours = adopt(flexible, levels=(0, 1))
    assert ours.state_fields() == ("state_0",)
    assert ours(torch.full((3, 1), 0.75))[0].flatten().tolist() == [0, 1, 1]
    assert ours.update_cost == UpdateCost(mul=1, add=2)


# ---- what an update costs -------------------------------------------------------------------------------


def test_costs_worked_out_by_hand():
    """In the convention of our own neurons, where a product with a spike selects and costs nothing."""

    def cost(module, **settings):
        return adopt(module, **settings).update_cost

    # v + x; v - threshold; the reset
    assert cost(jelly.IFNode()) == (0, 3) == LIF(beta=1.0).update_cost
    # v / tau, taken off v; x; v - threshold; the reset: one more than beta v
    assert cost(jelly.LIFNode(decay_input=False)) == (1, 4)
    assert LIF().update_cost == (1, 3)
    # beta mem; the input; mem - threshold twice, to fire now and to reset for the last step; the reset
    assert cost(snn.Leaky(beta=0.9)) == (1, 4)
    # likewise with alpha syn, and syn into mem
    assert cost(snn.Synaptic(alpha=0.8, beta=0.9)) == (2, 5)
    # TernaryLIF decides twice
    assert cost(jelly.TernaryLIFNode(decay_input=False)) == (1, 5)
    # v / tau; v / threshold; count times threshold
    assert cost(jelly.ILIFNode(v_threshold=0.7)) == (3, 3)
    # as Leaky, and N recurrent weights and a bias on spikes, with one more sum
    assert cost(snn.RLeaky(beta=0.9, linear_features=N)) == (1, 4 + N + 1)
    # (x - (v - v_rest)) / tau, tau exp: a function counts as one multiplication, a lower bound
    assert cost(jelly.EIFNode()).mul >= 3
    assert cost(jelly.IFNode(), update_cost=UpdateCost(5, 6)) == (5, 6)


@EVERY
def test_every_cost_is_measured(name):
    module = make(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    torch.manual_seed(3)
    cost, drawn = adopt(module).update_cost, torch.rand(1)
    assert cost.add >= 2
    assert same(dict(module.state_dict()), before)  # a measurement trains no statistics ...
    torch.manual_seed(3)
    assert same(torch.rand(1), drawn)  # ... and draws none of the caller's random numbers


def test_an_operation_without_a_known_cost_is_refused():
    class Odd(jelly.SimpleBaseNode):
        def neuronal_charge(self, x):
            self.v = torch.special.bessel_j0(self.v) + x

    with pytest.raises(InputError, match=r"Odd: can't measure .*special_bessel_j0.*UpdateCost\(mul, add\)"):
        adopt(Odd()).update_cost
    assert adopt(Odd(), update_cost=UpdateCost(9, 3)).update_cost.mul == 9


# ---- theirs in a Network --------------------------------------------------------------------------------


def mixed(carry="token"):
    torch.manual_seed(0)
    return Network(
        {
            "linear1": nn.Linear(6, 8),
            "synaptic1": adopt(snn.Synaptic(alpha=0.8, beta=0.9, learn_beta=True), steps=3, carry=carry),
            "linear2": nn.Linear(8, 7),
            "lifnode1": jelly.LIFNode(tau=3.0, v_threshold=0.1, **SOFT),
            "linear3": nn.Linear(7, 4),
        }
    )


def test_a_network_adopts_with_the_steps_of_its_neurons():
    leaky = snn.Leaky(beta=0.9)
    for layers in ([nn.Linear(4, N), leaky, LIF(N, steps=3)], [LIF(4, steps=3), nn.Linear(4, N), leaky]):
        network = Network(layers)
        assert isinstance(network["leaky1"], Adopted)
        assert network["leaky1"].module is leaky
        assert network.steps == 3
        assert network(torch.randn(2, 3, 4)).shape == (2, 3, N)
    assert Network([adopt(snn.Leaky(beta=0.9)), LIF(4)]).names == ("leaky1", "lif1")
    named = Network({"in": nn.Linear(4, N), "spiking": leaky, "ours": ATMN(N, steps=2)})
    assert named["spiking"].steps == 2


def test_a_network_in_which_nobody_says_t():
    with pytest.raises(
        InputError, match=r"lifnode1: no neuron here says T.*interop.adopt\(LIFNode\(...\), steps=T"
    ):
        Network([nn.Linear(4, N), jelly.LIFNode(), nn.Linear(N, 2)])
    with pytest.raises(UnknownLayerError, match="int1: don't know how int acts on spikes"):
        Network([3, LIF(4)])
    with pytest.raises(InputError, match="all neurons of a Network share T"):
        Network([LIF(steps=2), snn.Leaky(beta=0.9), LIF(steps=3)])
    with pytest.raises(InputError, match=r"psn1: spikingjelly.PSN can't be adopted: it keeps no state"):
        Network([LIF(4), jelly.PSN(4)])
    with pytest.raises(InputError, match="counting1: Counting: nobody has said"):
        Network([LIF(4), Counting()])


def test_a_network_finds_the_axis_of_the_features():
    network = Network(
        [
            nn.Conv2d(1, N, 3, padding=1),
            jelly.ActivationAwareIFNode(V, 0 * V, channel_dim=1, v_reset=None),
            nn.AvgPool2d(2),
            snn.Leaky(beta=0.9),
            nn.Flatten(),
            nn.Linear(N * 9, 4),
            jelly.IFNode(),
            LIF(steps=2),
        ]
    )
    dims = {name: neuron.feature_dim for name, neuron in network.neurons.items()}
    assert dims == {"activationawareifnode1": -3, "leaky1": -3, "ifnode1": -1, "lif1": -1}
    assert network(torch.randn(2, 3, 1, 6, 6)).shape == (2, 3, 4)


def test_a_network_of_theirs_computes_what_their_loop_does():
    """Threshold 1, so that what the next layer sees is the bare spike."""
    torch.manual_seed(0)
    first, last = nn.Linear(6, 8), nn.Linear(8, 4)
    node = jelly.LIFNode(tau=2.0, v_reset=None)
    network = Network([first, adopt(node, steps=4), last])
    x = torch.randn(1, 3, 6)
    functional.reset_net(node)
    expected = torch.stack([last(node(first(x[0]))) for _ in range(4)]).mean(0)
    torch.testing.assert_close(network(x)[0], expected)


def test_simulate_goes_on_where_it_stopped():
    network, x = mixed(carry="sequence"), torch.randn(100, 2, 6)
    whole = simulate(network, x)
    first = simulate(network, x[:60])
    second = simulate(network, x[60:], state=first.state)
    for what in ("spikes", "membrane"):
        for name, array in getattr(whole, what).items():
            parts = torch.cat([torch.from_numpy(getattr(r, what)[name]) for r in (first, second)])
            assert same(parts, torch.from_numpy(array))
    assert whole.spikes["lifnode1"].shape == (100, 3, 2, 7)
    assert set(whole.names) == {"synaptic1", "lifnode1"}
    assert whole.rates()["lifnode1"] > 0


def test_a_recording_with_their_state_survives_a_file(tmp_path):
    network, x = mixed(carry="sequence"), torch.randn(6, 2, 6)
    first = simulate(network, x[:3])
    loaded = type(first).load(first.save(tmp_path / "run.npz"))
    assert set(loaded.state["synaptic1"]) == {"mem", "syn"}
    again = simulate(network, x[3:], state=loaded.state)
    assert (again.output == simulate(network, x[3:], state=first.state).output).all()


def test_energy_counts_their_updates_and_spikes_once():
    network, x = mixed(), torch.randn(5, 2, 6)
    counts = energy.count(network, x)
    spikes = {name: int((array != 0).sum()) for name, array in simulate(network, x).spikes.items()}
    assert min(spikes.values()) > 0
    for name, neuron in network.neurons.items():
        updates = 5 * 3 * 2 * {"synaptic1": 8, "lifnode1": 7}[name]
        booked = counts.layers[name]
        assert booked.neuron_updates == updates
        assert booked.spikes == spikes[name]
        assert (booked.mul, booked.add) == (
            updates * neuron.update_cost.mul,
            updates * neuron.update_cost.add,
        )
        assert booked.mac == booked.ac == 0
    assert counts.layers["linear2"].ac == spikes["synaptic1"] * 7
    assert counts.layers["linear3"].ac == spikes["lifnode1"] * 4
    assert counts.unattributed == {}


def test_energy_counts_an_adopted_neuron_by_itself():
    """Outside a Network too, its module's own layers and surrogate are no second bill."""
    ours, x = adopt(snn.RLeaky(beta=0.9, linear_features=N)), currents(4, 2)
    total = energy.count(ours, x).total
    assert (total.neuron_updates, total.ac, total.mac) == (40, 0, 0)
    assert (total.mul, total.add) == (40 * ours.update_cost.mul, 40 * ours.update_cost.add)


def test_ternary_and_graded_spikes_are_booked_apart():
    x = 2 * torch.randn(3, 2, 6)

    def booked(node):
        torch.manual_seed(0)
        network = Network([nn.Linear(6, 8), adopt(node, steps=4), nn.Linear(8, 3)])
        return energy.count(network, x).layers["linear2"]

    ternary, integer, analog = map(
        booked, (jelly.TernaryLIFNode(), jelly.ILIFNode(), jelly.LIAFNode(torch.tanh, True))
    )
    assert ternary.ac > 0
    assert ternary.mac == ternary.graded_ac == 0
    assert integer.graded_ac > 0
    assert integer.mac == integer.ac == 0
    assert analog.mac > 0
    assert analog.ac == analog.graded_ac == 0


def test_training_learns_weights_and_their_parameters():
    network = mixed()
    beta = network["synaptic1"].module.beta
    start = beta.item()
    x, y = torch.randn(3, 24, 6), torch.arange(24) % 4
    losses = train(network, x, y, TrainConfig(epochs=12, batch_size=24, learning_rate=2e-2)).loss
    assert losses[-1] < losses[0]
    assert beta.item() != start


def test_files_and_chips_refuse_it_by_name(tmp_path):
    network = mixed()
    with pytest.raises(
        InputError, match=r"synaptic1: Synaptic is no neuron of marsnn's own and can't be saved"
    ):
        save_network(network, tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()
    ours = Network([nn.Linear(6, 8), LIF(8), nn.Linear(8, 4)])
    load_network(save_network(ours, tmp_path / "net.safetensors"))  # ours still goes through
    with pytest.raises(ExportError, match="synaptic1"):
        export(network, torch.randn(2, 2, 6), tmp_path / "bundle")
    twin = mixed()
    twin.load_state_dict(network.state_dict())
    assert same(twin(torch.ones(1, 2, 6)), network(torch.ones(1, 2, 6)))


# ---- ours in spikingjelly -------------------------------------------------------------------------------

OURS = {
    "LIF": lambda: LIF(N, tau=3.0),
    "ATMN": lambda: ATMN(N, threshold=V),
    "PLIF": lambda: PLIF(N, tau=1 + V),
    "CubaLIF": lambda: CubaLIF(N, alpha=0.7, beta=0.8),
    "ALIF": lambda: ALIF(N, rho=0.5),
    "TernaryLIF": lambda: TernaryLIF(N),
    "Izhikevich": lambda: Izhikevich(N, b=0.26, peak=-64.5),
    "LeakyIntegrator": lambda: LeakyIntegrator(N),
    "adopted": lambda: adopt(snn.Synaptic(alpha=0.8, beta=0.9)),
}


def test_every_neuron_of_ours_has_a_state_they_can_hold():
    for name in neurons.names():
        module = as_spikingjelly(neurons.get(name)(features=N))
        spikes = module(currents(2))
        assert spikes.shape == module.v.shape == (2, N)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("mode", ["s", "m"])
def test_as_spikingjelly_equals_our_own_call(name, mode):
    neuron, x = OURS[name](), currents(6, 3).requires_grad_()
    spikes, state = neuron(x)
    wanted = slopes(loss_of(spikes, state), x, neuron)
    module = as_spikingjelly(neuron, step_mode=mode, store_v_seq=True)
    again = module(x) if mode == "m" else torch.stack([module(step) for step in x])
    memories = tuple(dict(module.named_memories()).values())
    assert same(again, spikes)
    assert same(memories, tuple(state))
    assert same(module.v, state[0])
    assert same(module.v_seq, neuron.trace(x)[1])
    agree(slopes(loss_of(again, memories), x, neuron), wanted)
    functional.reset_net(module)
    assert module.v_seq is None
    assert all(isinstance(value, float) for value in dict(module.named_memories()).values())
    assert same(module(x) if mode == "m" else torch.stack([module(step) for step in x]), spikes)


def sequential(*, mode):
    torch.manual_seed(1)
    net = nn.Sequential(
        layer.Linear(4, N), as_spikingjelly(CubaLIF(N)), layer.Linear(N, 3), as_spikingjelly(LIF(3))
    )
    functional.set_step_mode(net, mode)
    return net


def test_their_functions_find_our_neurons():
    net, x = sequential(mode="m"), torch.randn(7, 2, 4)
    assert net[1].step_mode == net[0].step_mode == "m"
    whole = net(x)
    functional.reset_net(net)
    assert net[1].v == net[1].i == net[3].v == 0.0
    functional.set_step_mode(net, "s")
    torch.testing.assert_close(torch.stack([net(step) for step in x]), whole)
    assert net[3].v.requires_grad
    functional.detach_net(net)
    assert not net[3].v.requires_grad
    net(x[0, :1])  # a batch of another size starts anew, as theirs do
    assert net[3].v.shape == (1, 3)
    with pytest.raises(ValueError, match="step_mode can only be"):
        functional.set_step_mode(net, "x")


def test_their_states_can_be_taken_out_and_put_back():
    net, x = sequential(mode="s"), torch.randn(7, 2, 4)
    for step in x[:3]:
        net(step)
    kept = jelly_base.extract_memories(net)
    run = jelly_base.to_functional_forward(net)
    (expected,), _ = run((x[3],), tuple(kept))
    functional.reset_net(net)
    jelly_base.load_memories(net, kept)
    assert same(net(x[3]), expected)
    net[3].v = 0.9  # a number is spread over the neurons
    assert (
        net[3].materialize_states((torch.zeros(2, 3),), (net[3].v,), "s")[0].tolist()
        == [[pytest.approx(0.9)] * 3] * 2
    )


def test_their_monitors_and_counters_run_on_ours():
    net, x = sequential(mode="m"), torch.randn(7, 2, 4)
    form = type(net[1])
    with monitor.OutputMonitor(net, form) as spikes, monitor.AttributeMonitor("v", False, net, form) as v:
        net(x)
    assert [tuple(record.shape) for record in spikes.records] == [(7, 2, N), (7, 2, 3)]
    assert [tuple(record.shape) for record in v.records] == [(2, N), (2, 3)]
    functional.reset_net(net)
    counter = op_counter.MACCounter()
    with torch.no_grad(), op_counter.DispatchCounterMode([counter]):
        net(x)
    assert counter.get_total() >= 7 * 2 * 4 * N


def test_spikingjelly_form_is_copied_and_pickled():
    net, x = sequential(mode="m"), torch.randn(7, 2, 4)
    expected = net(x)
    functional.reset_net(net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert same(twin(x), expected)
    fresh = sequential(mode="m")
    fresh[3].neuron.threshold.fill_(7.0)
    fresh.load_state_dict(net.state_dict())
    assert same(fresh(x), expected)
    assert fresh[3].v_threshold.tolist() == [1.0] * 3


# ---- ours in snntorch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_as_snntorch_equals_our_own_call(name):
    neuron, x = OURS[name](), currents(6, 3).requires_grad_()
    spikes, state = neuron(x)
    wanted = slopes(loss_of(spikes, state), x, neuron)
    module = as_snntorch(neuron)
    states = module.reset_mem()
    states = states if isinstance(states, tuple) else (states,)
    train = []
    for step in x:
        spike, *states = module(step, *states)
        train.append(spike)
    train, ends = torch.stack(train), [states[-1], *states[:-1]]  # the membrane is last with them
    assert same(train, spikes)
    assert same(ends, list(state))
    agree(slopes(loss_of(train, ends), x, neuron), wanted)


def test_the_order_and_names_of_their_states():
    lif, cuba = as_snntorch(LIF(beta=0.5)), as_snntorch(CubaLIF(alpha=0.5, beta=0.5))
    x = torch.tensor([[0.75]])
    assert [out.item() for out in cuba(x)] == [0.0, 0.75, 0.75]
    assert [out.item() for out in cuba(0 * x, x, 2 * x)] == [1.0, 0.375, 0.125]  # syn, then mem
    assert [out.item() for out in lif(x, mem=x)] == [1.0, 0.125]
    assert [t.numel() for t in cuba.reset_mem()] == [0, 0]
    with pytest.raises(TypeError, match="keeps its state"):
        as_snntorch(LIF(), init_hidden=True)(x, x)


def hidden_net(last=CubaLIF):
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(4, N),
        as_snntorch(LIF(N, beta=0.8), init_hidden=True),
        nn.Linear(N, 3),
        as_snntorch(last(3), init_hidden=True, output=True),
    )


def test_hidden_states_and_their_reset():
    net, x = hidden_net(), torch.randn(6, 2, 4)
    snn_utils.reset(net)
    first = [net(step) for step in x]
    assert [len(out) for out in first] == [3] * 6
    assert same(first[-1][1:], (net[3].syn, net[3].mem))
    snn_utils.reset(net)
    assert net[1].mem.count_nonzero() == net[3].syn.count_nonzero() == 0
    assert not net[1].mem.requires_grad
    assert same([net(step) for step in x], first)
    assert "1.mem" not in net.state_dict()
    direct = CubaLIF(3)(torch.stack([net[2](s) for s in LIF(N, beta=0.8)(net[0](x))[0]]))[0]
    torch.testing.assert_close(torch.stack([out[0] for out in first]), direct)


@pytest.mark.parametrize("method", ["TBPTT", "BPTT"])
def test_their_backprop_trains_ours(method):
    sys.modules.pop("snntorch.backprop", None)
    with pytest.warns(DeprecationWarning, match="will be deprecated"):  # each time that it is loaded
        backprop = importlib.import_module("snntorch.backprop")
    net = hidden_net(last=LIF)  # of one class: `detach_hidden` is called on the last class that a net has
    before = [p.clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    x, settings = 2 * torch.randn(6, 8, 4), {}
    if method == "TBPTT":  # its branch for data that vary in time reads a name that it never set
        x, settings = x[0], {"K": 2, "num_steps": 6, "time_var": False}
    data = [(x, torch.arange(8) % 3)]
    loss = getattr(backprop, method)(net, data, optimizer, snn_losses.ce_rate_loss(), **settings)
    assert torch.isfinite(loss)
    assert all(not same(p.detach(), q) for p, q in zip(net.parameters(), before, strict=True))


def test_hidden_forms_that_snntorch_could_not_reset():
    with pytest.raises(InputError, match="does not rest there; use init_hidden=False"):
        as_snntorch(Izhikevich(2), init_hidden=True)
    assert as_snntorch(Izhikevich(2))(torch.zeros(1, 2))[-1].tolist() != [[0.0, 0.0]]
    for wrap in (as_snntorch, as_spikingjelly):
        with pytest.raises(InputError, match="expected a marsnn Neuron, got Linear"):
            wrap(nn.Linear(2, 2))


def test_a_missing_library_is_one_line(monkeypatch):
    lent._spikingjelly_form.cache_clear()
    lent._hidden_form.cache_clear()
    try:
        for name in ("snntorch", "spikingjelly", "spikingjelly.activation_based.base"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            MissingDependencyError, match=r"spikingjelly is not installed: run .*marsnn\[snn\]"
        ):
            as_spikingjelly(LIF())
        with pytest.raises(MissingDependencyError, match=r"snntorch is not installed: run .*marsnn\[snn\]"):
            as_snntorch(LIF(), init_hidden=True)
        assert as_snntorch(LIF())(torch.ones(1))[0].tolist() == [1.0]  # needs none of theirs
    finally:
        lent._spikingjelly_form.cache_clear()
        lent._hidden_form.cache_clear()


def test_states_of_theirs_are_pickled():
    neuron = adopt(snn.Synaptic(alpha=0.8, beta=0.9))
    state = neuron(currents(6, 3))[1]
    again = pickle.loads(pickle.dumps(state))
    assert type(again) is type(state) is neuron.State
    assert same(tuple(again), tuple(state))
