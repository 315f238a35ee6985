"""NIR: Recurrent there and back.

Truths held: golden (worked by hand, in every hand), reference (the equations of NIR; snnTorch's own run of
the files that it writes), mutants (another delay, turned or unscaled weights), round trip, contract (what
can't be written or read is named).
"""

import contextlib
import io
import itertools

import nir
import numpy as np
import pytest
import torch
from torch import nn

from marsnn import simulate
from marsnn.checkpoint import load_network, save_network
from marsnn.errors import ExportError, FileError
from marsnn.hardware import nir_import
from marsnn.hardware.nir import read_nir, to_nir, write_nir
from marsnn.network import Network
from marsnn.neurons import ALIF, LIF, PLIF, CubaLIF, IntegerLIF, LeakyIntegrator, Recurrent
from tests.hardware.nir_nets import HARD, dense
from tests.hardware.nir_readers import FIRES_AT, READERS, by_the_equations, snn_export, snn_nir

# isort: split
import snntorch as snn
from snntorch import utils as snn_utils
from spikingjelly.activation_based import layer as jelly_layer
from spikingjelly.activation_based import neuron as jelly
from spikingjelly.activation_based.nir_exchange import export_to_nir as jelly_export

EVERY_READER = pytest.mark.parametrize("reader", READERS)


def spikes_of(net, x, name="n"):
    return simulate(net, x).spikes[name][:, 0]


def write_for(reader, net, x, path, **more):
    return write_nir(net, x, path, fires_at=FIRES_AT[reader], unit_resistance=reader == "norse", **more)


# ---- by hand -------------------------------------------------------------------------------------

W = ((0.0, -1.0), (2.0, 0.0))
DRIVE = ((1, 0), (0.25, 0), (0.5, 0.25), (0.5, 0.5), (0.75, 0))
GOLDEN = [[1, 0], [0, 1], [0, 0], [1, 1], [0, 1]]


def by_hand():
    """beta = V = 1/2, reset to 0, back comes W (V s): -1/2 to the first for a spike of the second, 1 to the
    second for one of the first.

    t 0: I (1, 0)      back 0          h = (1, 0)            s (1, 0)  v (0, 0)
    t 1: I (.25, 0)    back (0, 1)     h = (.25, 1)          s (0, 1)  v (.25, 0)
    t 2: I (.5, .25)   back (-.5, 0)   h = (.125, .25)       s (0, 0)  v (.125, .25)
    t 3: I (.5, .5)    back 0          h = (.5625, .625)     s (1, 1)  v (0, 0)
    t 4: I (.75, 0)    back (-.5, 1)   h = (.25, 1)          s (0, 1)
    """
    net = Network(
        {
            "z": nn.Linear(2, 2, bias=False),
            "n": Recurrent(LIF(2, beta=0.5, threshold=0.5, **HARD)),
            "b": nn.Linear(2, 2, bias=False),
        }
    )
    with torch.no_grad():
        net["z"].weight.copy_(torch.eye(2))
        net["n"].recurrent.weight.copy_(torch.tensor(W))
    return net, torch.tensor(DRIVE).unsqueeze(1)


@EVERY_READER
def test_golden_in_every_hand(reader, tmp_path):
    net, x = by_hand()
    path = write_for(reader, net, x, tmp_path / "net.nir")
    assert spikes_of(net, x)[:, 0].tolist() == GOLDEN
    assert READERS[reader](path, x.numpy())["n"][:, 0].tolist() == GOLDEN
    assert spikes_of(read_nir(path), x)[:, 0].tolist() == GOLDEN


def test_what_is_written_is_what_snntorch_writes_of_a_layer():
    graph = to_nir(by_hand()[0], (2,))
    assert list(graph.nodes) == ["input", "z", "n", "b", "output"]
    assert graph.edges == list(itertools.pairwise(graph.nodes))
    inside = graph.nodes["n"]
    theirs = snn.export_nir._extract_snntorch_module(snn.RLeaky(beta=torch.tensor(0.5), linear_features=2))
    assert isinstance(theirs, nir.NIRGraph)
    assert (list(inside.nodes), inside.edges) == (list(theirs.nodes), theirs.edges)
    assert inside.nodes["w_rec"].weight.tolist() == [[0, -0.5], [1, 0]]  # W V: a spike is worth 1 there


def test_mutants_are_seen_in_the_file_and_in_who_runs_it(tmp_path):
    """Turned weights, a bare spike, the threshold twice; a spike that comes two steps later, or at once."""
    net, x = by_hand()
    graph = to_nir(net, (2,))
    weight = graph.nodes["n"].nodes["w_rec"].weight
    for wrong in (weight.T, weight / 0.5, weight * 0.5, 0 * weight):
        graph.nodes["n"].nodes["w_rec"].weight = wrong
        nir.write(tmp_path / "wrong.nir", graph)
        assert by_the_equations(tmp_path / "wrong.nir", x.numpy())["n"][:, 0].tolist() != GOLDEN
        assert spikes_of(read_nir(tmp_path / "wrong.nir"), x)[:, 0].tolist() != GOLDEN
    path = write_nir(net, x, tmp_path / "net.nir")
    assert by_the_equations(path, x.numpy(), late=2)["n"][:, 0].tolist() != GOLDEN
    at_once, v = [], torch.zeros(2)
    for current in x[:, 0]:
        fired = (0.5 * v + current >= 0.5).float()
        h = 0.5 * v + current + torch.tensor(W) @ (0.5 * fired)
        v = torch.where(h >= 0.5, 0.0, h)
        at_once.append((h >= 0.5).int().tolist())
    assert at_once != GOLDEN


# ---- ties, settings, places ----------------------------------------------------------------------


@EVERY_READER
def test_ties_and_a_bias(reader, tmp_path):
    """On a grid of 1/4; the bias of the way back is in the Linear before, for every step."""
    torch.manual_seed(0)
    net = Network(
        {
            "a": nn.Linear(4, 12, bias=False),
            "n": Recurrent(LIF(12, beta=0.5, threshold=0.5, **HARD), bias=True),
            "b": nn.Linear(12, 6),
        }
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape) / 4)
    x = torch.randint(-2, 3, (15, 8, 4)) / 2.0
    _, v, _ = net["n"].trace(net["a"](x).detach())
    s = torch.as_tensor(spikes_of(net, x)).float()
    before = [torch.cat([torch.zeros(1, 8, 12), each[:-1]]) for each in (v, s)]
    h = 0.5 * before[0] + net["a"](x) + net["n"].returned(before[1])
    assert torch.equal((h >= 0.5).float(), s)
    assert int((h == 0.5).sum()) > 10
    path = write_for(reader, net, x, tmp_path / "net.nir")
    assert np.array_equal(READERS[reader](path, x.numpy())["n"], s)
    back = read_nir(path)
    assert np.array_equal(spikes_of(back, x), s)
    assert back["n"].recurrent.bias is None
    assert torch.equal(back["a"].bias, net["n"].recurrent.bias)


VARIANTS = {
    "PLIF": lambda: PLIF(16, tau=3.0, threshold=0.5, **HARD),
    "IF": lambda: LIF(16, beta=1.0, threshold=0.5, **HARD),
    "forgetful": lambda: LIF(16, beta=0.0, threshold=0.25, **HARD),
    "each its own": lambda: LIF(
        16, beta=torch.arange(16) / 16, threshold=2.0 ** -(torch.arange(16) % 4), **HARD
    ),
    "CubaLIF": lambda: CubaLIF(16, alpha=torch.arange(16) / 16, beta=0.75, threshold=0.5, **HARD),
    "LeakyIntegrator": lambda: LeakyIntegrator(16, beta=0.5, steps=1, carry="sequence"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", VARIANTS)
def test_neurons_within(name, dtype, tmp_path):
    torch.manual_seed(1)
    net = dense(Recurrent(VARIANTS[name](), bias=True)).to(dtype)
    net["n"].recurrent.weight.data.mul_(1.1)  # digits of its own dtype
    x = torch.randn(30, 3, 6, dtype=dtype)
    path = write_nir(net, x, tmp_path / "net.nir")
    read = read_nir(path)
    outputs, ours, back = by_the_equations(path, x.numpy()), simulate(net, x), simulate(read, x)
    assert type(read["n"].neuron) is (LIF if name == "PLIF" else type(net["n"].neuron))
    assert torch.equal(read["n"].recurrent.weight, net["n"].recurrent.weight)
    for layer, spikes in ours.spikes.items():  # an integrator has none
        assert 0 < np.count_nonzero(spikes) < spikes.size
        assert np.array_equal(outputs[layer], spikes[:, 0])
        assert np.array_equal(back.spikes[layer], spikes)
    net["n"].recurrent.weight.data.zero_()
    alone = simulate(net, x).spikes
    assert not all(np.array_equal(alone[layer], spikes) for layer, spikes in ours.spikes.items())


def test_behind_neurons_of_another_worth_and_beside_a_skip(tmp_path):
    """No Linear between: what arrives is scaled in the file, and what comes back with it."""
    torch.manual_seed(2)
    net = Network(
        {
            "a": nn.Linear(6, 8),
            "k": LIF(8, threshold=2.0 ** -torch.arange(8), **HARD),
            "n": Recurrent(LIF(8, beta=0.5, threshold=0.25, **HARD)),
            "r": Recurrent(LIF(8, beta=0.75, threshold=0.25, **HARD)),
            "c": nn.Linear(8, 8),
            "m": Recurrent(CubaLIF(8, alpha=0.5, beta=0.5, threshold=0.5, **HARD), bias=True),
        },
        skips={"c": "n"},
    )
    x = torch.randn(40, 3, 6)
    path = write_nir(net, x, tmp_path / "net.nir")
    outputs, back = by_the_equations(path, x.numpy()), read_nir(path)
    assert (back.names, back.skips) == (net.names, net.skips)
    for name in net.neurons:
        spikes = spikes_of(net, x, name)
        assert spikes.any()
        assert np.array_equal(outputs[name], spikes)
        assert np.array_equal(spikes_of(back, x, name), spikes)
    worth = torch.as_tensor(2.0 ** -torch.arange(8)).unsqueeze(1)
    weight = to_nir(net, (6,)).nodes["n"].nodes["w_rec"].weight
    assert torch.equal(torch.as_tensor(weight), net["n"].recurrent.weight.data * 0.25 / worth)


def test_a_token_ends_with_what_is_on_its_way(tmp_path):
    """carry="token": T steps of the file from rest, for each token."""
    torch.manual_seed(3)
    own = Recurrent(LIF(12, 6, reset="zero", beta=0.5, threshold=0.5), bias=True)
    net = Network({"a": nn.Linear(5, 12), "n": own, "b": nn.Linear(12, 3)})
    x = torch.randn(4, 2, 5)
    path = write_nir(net, x, tmp_path / "net.nir")
    recording = simulate(net, x)
    for token, frame in enumerate(x):
        outputs = by_the_equations(path, frame.expand(6, -1, -1).numpy())
        assert np.array_equal(outputs["n"], recording.spikes["n"][token])
    back = read_nir(path)
    assert (back["n"].steps, back["n"].carry) == (6, "token")
    assert np.array_equal(simulate(back, x).spikes["n"], recording.spikes["n"])
    again = load_network(save_network(back, tmp_path / "net.safetensors"))
    assert torch.equal(again(x), back(x))


@pytest.mark.parametrize("reader", ["snnTorch", "SpikingJelly"])
def test_the_file_keeps_the_order_of_the_row(reader, tmp_path):
    """nirtorch 2.6 stops at a sub-graph that stands before its source; h5py puts groups in order of name."""
    net, x = by_hand()
    graph = to_nir(net, (2,), fires_at=FIRES_AT[reader])
    nir.write(tmp_path / "by_name.nir", graph)
    with pytest.raises(AttributeError, match="has no attribute 'items'"):
        READERS[reader](tmp_path / "by_name.nir", x.numpy())
    assert spikes_of(read_nir(tmp_path / "by_name.nir", fires_at=FIRES_AT[reader]), x).any()
    path = write_for(reader, net, x, tmp_path / "net.nir")
    assert list(nir.read(path).nodes) == list(graph.nodes)


def test_without_a_sub_graph_snntorch_reads_another_network(tmp_path):
    """Why it is one: its importer leads what arrives into the weights of the way back."""
    net, x = by_hand()
    graph = to_nir(net, (2,))
    inside = graph.nodes["n"].nodes
    nodes = {**graph.nodes, "n": inside["lif"], "w_rec": inside["w_rec"]}
    flat = nir.NIRGraph(nodes, [*graph.edges, ("n", "w_rec"), ("w_rec", "n")])
    nir.write(tmp_path / "flat.nir", flat)
    assert by_the_equations(tmp_path / "flat.nir", x.numpy())["n"][:, 0].tolist() == GOLDEN
    back = read_nir(tmp_path / "flat.nir")
    assert spikes_of(back, x)[:, 0].tolist() == GOLDEN
    assert torch.equal(back["n"].recurrent.weight, net["n"].recurrent.weight)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        theirs = snn_nir.import_from_nir(nir.read(tmp_path / "flat.nir"))
    outputs, state = [], None
    for frame in x:
        output, state = theirs(frame, state)
        outputs.append(output)
    assert not torch.allclose(torch.stack(outputs), net(x), atol=0.1)


def test_a_bias_on_the_way_back_is_missing_at_their_first_step(tmp_path):
    """Why it is folded away: the same file with it in place, in three hands."""
    graph = to_nir(by_hand()[0], (2,))
    inside = graph.nodes["n"].nodes
    inside["w_rec"] = nir.Affine(inside["w_rec"].weight, np.full(2, 0.75, np.float32))
    ordered = {"input": graph.nodes["input"], "k": graph.nodes["z"], "n": graph.nodes["n"]}
    ordered["out"] = graph.nodes["output"]
    nir.write(tmp_path / "net.nir", nir.NIRGraph(ordered, list(itertools.pairwise(ordered))))
    x = torch.zeros(2, 1, 2)
    net = read_nir(tmp_path / "net.nir")
    assert net["n"].recurrent.bias.tolist() == [0.75, 0.75]
    assert spikes_of(net, x).tolist()[0] == [[1, 1]]
    assert by_the_equations(tmp_path / "net.nir", x.numpy())["n"].tolist()[0] == [[1, 1]]
    for reader in ("snnTorch", "SpikingJelly", "norse"):
        assert READERS[reader](tmp_path / "net.nir", x.numpy())["n"].tolist()[0] == [[0, 0]]


# ---- what can't be written -----------------------------------------------------------------------


def test_every_refusal_is_told_at_once():
    net = Network(
        {
            "a": nn.Linear(6, 8),
            "soft": Recurrent(LIF(8)),
            "alif": Recurrent(ALIF(8)),
            "integer": Recurrent(IntegerLIF(8)),
            "endless": Recurrent(CubaLIF(8, beta=1.0, reset="zero")),
            "some": Recurrent(LIF(8, beta=torch.arange(8) / 7, reset="zero")),
            "other": Recurrent(LIF(8, reset="zero", carry="sequence")),
            "biased": Recurrent(LIF(8, reset="zero"), bias=True),
        }
    )
    with pytest.raises(ExportError) as refused:
        to_nir(net, (6,))
    named = {refusal.split(":")[0] for refusal in refused.value.refusals}
    assert named == set(net.names) - {"a"}
    assert "\n" not in str(refused.value)
    assert "ALIF has no node in NIR" in str(refused.value)
    soft = to_nir(
        Network({"n": Recurrent(LIF(8, **{**HARD, "reset": "subtract"}))}), (8,), allow=("soft-reset",)
    )
    assert soft.nodes["n"].nodes["lif"].metadata["reset"] == "subtract"


def test_a_bias_without_a_place():
    own = Recurrent(LIF(4, **HARD), bias=True)
    late = (
        "n: importers have the bias of what comes back a step late, .*; put one before it, or use bias=False"
    )
    with pytest.raises(ExportError, match=late):
        to_nir(Network({"n": own}), (4,))
    with pytest.raises(ExportError, match=late):  # the Linear leads elsewhere too
        to_nir(Network({"a": nn.Linear(4, 4), "n": own, "b": nn.Linear(4, 4)}, skips={"b": "a"}), (4,))
    beside = Network({"a": nn.Linear(4, 4), "d": nn.Dropout(), "n": own}, skips={"n": "input"})
    graph = to_nir(beside, (4,))
    assert np.array_equal(graph.nodes["a"].bias, (beside["a"].bias + own.recurrent.bias).detach())


def test_channels_of_an_image_have_no_image():
    net = Network([nn.Conv2d(1, 4, 3), Recurrent(LIF(4, feature_dim=-3, **HARD))])
    with pytest.raises(ExportError, match=r"couples the channels of \[4, 4, 4\].*; flatten first"):
        to_nir(net, (1, 6, 6))


# ---- files of others -----------------------------------------------------------------------------


def run_theirs(theirs, x):
    """Spikes of every layer of a Sequential, by its own run."""
    snn_utils.reset(theirs)
    found = []
    for frame in x:
        found.append([])
        for layer in theirs:
            frame = layer(frame)
            found[-1].append(frame.detach().numpy())
    return [np.stack(values) for values in zip(*found, strict=True)]


def leaky(n, **more):
    return {
        "beta": torch.full((n,), 0.85),
        "threshold": torch.full((n,), 0.6),
        "init_hidden": True,
        "reset_mechanism": "zero",
        "reset_delay": False,
        **more,
    }


SNN = {
    "RLeaky": lambda: snn.RLeaky(linear_features=8, **leaky(8)),
    "RLeaky, one to one": lambda: snn.RLeaky(all_to_all=False, V=torch.linspace(-1, 1, 8), **leaky(8)),
    # It can't run with reset_delay=False; with beta = 0 there is no membrane that a reset could change.
    "RSynaptic": lambda: snn.RSynaptic(
        alpha=torch.full((8,), 0.5),
        linear_features=8,
        **leaky(8, beta=torch.zeros(8), reset_mechanism="none", reset_delay=True),
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SNN)
def test_snntorchs_files_run_in_ours(name, seed, tmp_path):
    torch.manual_seed(seed)
    theirs = nn.Sequential(nn.Linear(6, 8), SNN[name](), nn.Linear(8, 5, bias=False), snn.Leaky(**leaky(5)))
    x = torch.randn(40, 3, 6)
    nir.write(tmp_path / "net.nir", snn_export(theirs, torch.randn(1, 6)))
    found = run_theirs(theirs, x)
    net = read_nir(tmp_path / "net.nir")
    assert net.names == ("0", "1", "2", "3")
    assert isinstance(net["1"], Recurrent)
    assert (net["1"].recurrent.bias is not None) == (name != "RLeaky, one to one")
    for layer in ("1", "3"):
        assert 0 < found[int(layer)].sum() < found[int(layer)].size
        assert np.array_equal(spikes_of(net, x, layer), found[int(layer)])
    alone = simulate(Network({"0": net["0"], "1": net["1"].neuron}), x)
    assert not np.array_equal(alone.spikes["1"][:, 0], found[1])
    by_equations = by_the_equations(tmp_path / "net.nir", x.numpy())["1.lif"]
    assert np.array_equal(by_equations, found[1])


def test_spikingjelly_writes_no_recurrent_file(tmp_path):
    node = jelly.LIFNode(tau=2.0, decay_input=False, v_reset=0.0)
    theirs = nn.Sequential(jelly_layer.Linear(4, 4), jelly_layer.LinearRecurrentContainer(node, 4, 4))
    with pytest.raises(Exception, match="Proxy object cannot be iterated"):
        jelly_export(theirs, torch.randn(1, 4), tmp_path / "net.nir")


def lif(*shape, v=1.0):
    return nir.LIF(*(np.full(shape, value) for value in (2e-4, 2.0, 0.0, v, 0.0)))


def looped(*middle, back=None, size=4):
    """A row in a graph of its own; (back, node) leads from the node back to it."""
    nodes = {"in": nir.Input(np.array([size])), **{f"n{i}": node for i, node in enumerate(middle)}}
    nodes["out"] = nir.Output(np.array([size]))
    edges = list(itertools.pairwise(nodes))
    for name, (weight, node) in (back or {}).items():
        nodes[name] = weight
        edges += [(node, name), (name, node)]
    return nir.NIRGraph(nodes, edges, type_check=False)


def linear(n=4, m=4, seed=0):
    return nir.Linear(np.random.default_rng(seed).normal(size=(n, m)).astype(np.float32))


def test_a_sub_graph_is_opened_wherever_it_stands(tmp_path):
    """A row within a row within a row, one of them with a loop around all of a sub-graph."""
    inner = looped(linear(), lif(4), linear(seed=1))
    deep = looped(inner, lif(4, v=2.0), back={"w": (linear(seed=2), "n1")})
    graph = looped(deep, linear(seed=3), looped(lif(4)), back={"r": (linear(seed=4), "n2")})
    nir.write(tmp_path / "net.nir", graph)
    net, x = read_nir(tmp_path / "net.nir"), 2 * torch.randn(30, 2, 4)
    assert net.names == ("n0_n0_n0", "n0_n0_n1", "n0_n0_n2", "n0_n1", "n1", "n2_n0")
    assert [type(net[name]) for name in ("n0_n0_n1", "n0_n1", "n2_n0")] == [LIF, Recurrent, Recurrent]
    # The reference runs loops of one neuron and one Linear: the same graph, with the last sub-graph opened.
    nodes = {**graph.nodes, "n2": lif(4)}
    nir.write(tmp_path / "flat.nir", nir.NIRGraph(nodes, graph.edges, type_check=False))
    expected = by_the_equations(tmp_path / "flat.nir", x.numpy())
    assert expected["n2"].any()
    assert np.array_equal(spikes_of(net, x, "n2_n0"), expected["n2"])


@pytest.mark.parametrize("node", [lif(), lif(1)])
def test_one_setting_for_all_neurons_of_a_loop(node, tmp_path):
    graph = looped(linear(), node, back={"w": (linear(seed=2), "n1")})
    nir.write(tmp_path / "net.nir", graph, compression=None)
    net = read_nir(tmp_path / "net.nir")
    assert (net["n1"].features, tuple(net["n1"].neuron.threshold.shape)) == (4, (4,))
    each = looped(linear(), lif(4), back={"w": (linear(seed=2), "n1")})
    nir.write(tmp_path / "each.nir", each)
    x = 2 * torch.randn(30, 2, 4)
    assert torch.equal(net(x), read_nir(tmp_path / "each.nir")(x))


def test_a_loop_behind_neurons_whose_spike_is_worth_more(tmp_path):
    bias = np.array([0.5, -0.25, 1.0, 0.125], np.float32)
    back = {"w": (nir.Affine(linear(seed=2).weight, bias), "n2")}
    nir.write(tmp_path / "net.nir", looped(linear(), lif(4, v=2.0), lif(4, v=0.5), back=back))
    net, x = read_nir(tmp_path / "net.nir"), 4 * torch.randn(30, 2, 4)
    expected = by_the_equations(tmp_path / "net.nir", x.numpy())["n2"]
    assert np.array_equal(spikes_of(net, x, "n2"), expected)
    worth = net["n1"].threshold
    assert torch.all(worth > 2)  # the float above, for NIR fires at >
    assert torch.equal(net["n2"].recurrent.bias, torch.as_tensor(bias) * worth)


def ends_twice():
    graph = looped(lif(4))
    graph.nodes["out2"] = nir.Output(np.array([4]))
    return graph


def straight():
    graph = looped(lif(4))
    graph.edges.append(("in", "out"))
    return graph


def doubled():
    graph = looped(looped(lif(4)), linear())
    graph.nodes["n0.n0"] = graph.nodes.pop("n1")
    graph.edges = [(a.replace("n1", "n0.n0"), b.replace("n1", "n0.n0")) for a, b in graph.edges]
    return graph


REFUSED = {
    "a weight that doesn't fit": (
        lambda: looped(lif(4), back={"w": (linear(3, 4), "n0")}),
        r"n0: its way back w has a weight \[3, 4\] and a bias \[\] for neurons \[4\]",
    ),
    "other neurons": (
        lambda: looped(lif(5), back={"w": (linear(4, 4), "n0")}),
        r"n0: its way back w has a weight \[4, 4\] and a bias \[\] for neurons \[5\]",
    ),
    "a bias that doesn't fit": (
        lambda: looped(lif(4), back={"w": (nir.Affine(np.eye(4), np.ones(3)), "n0")}),
        r"n0: its way back w has .* a bias \[3\]",
    ),
    "an image": (
        lambda: looped(lif(4, 3, 3), back={"w": (linear(4, 4), "n0")}),
        r"n0: its way back w has .* for neurons \[4, 3, 3\]",
    ),
    "NaN": (
        lambda: looped(lif(4), back={"w": (nir.Linear(np.full((4, 4), np.nan)), "n0")}),
        "n0: holds NaN",
    ),
    "two ways": (
        lambda: looped(lif(4), back={"v": (linear(), "n0"), "w": (linear(), "n0")}),
        "w: a second way back to n0 beside v; add their weights",
    ),
    "no neuron": (
        lambda: looped(linear(), back={"w": (linear(), "n0")}),
        "n0, out, w: a loop, or behind one; a Network goes forward, but for one Linear from a neuron",
    ),
    "no weight": (lambda: looped(lif(4), back={"s": (nir.Scale(np.ones(4)), "n0")}), "n0, out: a loop"),
    "a delay": (lambda: looped(lif(4), back={"d": (nir.Delay(np.ones(4)), "n0")}), "d, n0, out: a loop"),
    "two ends": (
        lambda: looped(ends_twice()),
        "n0: a sub-graph without one Input and one Output of its own",
    ),
    "a straight way": (lambda: looped(straight()), "n0: a sub-graph whose input is an output"),
    "a double": (doubled, "n0.n0: a node, and one in the sub-graph n0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cant_be_read_is_named(case, tmp_path):
    build, reason = REFUSED[case]
    nir.write(tmp_path / "net.nir", build())
    with pytest.raises(FileError, match=reason) as refused:
        read_nir(tmp_path / "net.nir")
    assert "\n" not in str(refused.value)


def test_an_edge_between_wide_sub_graphs_is_counted_before_it_is_written_out(tmp_path, monkeypatch):
    """K nodes before an edge and K behind it are K^2 edges of a file of 2 K nodes."""

    def wide():
        nodes = {"in": nir.Input(np.array([4])), **{f"s{k}": nir.Scale(np.ones(4)) for k in range(4)}}
        edges = [edge for name in list(nodes)[1:] for edge in (("in", name), (name, "out"))]
        return nir.NIRGraph({**nodes, "out": nir.Output(np.array([4]))}, edges, type_check=False)

    nir.write(tmp_path / "net.nir", looped(wide(), wide()))
    for most, reason in ((24, "n.* beside an edge that it would double"), (23, "its edges to out there")):
        monkeypatch.setattr(nir_import, "LARGEST_EDGES", most)
        with pytest.raises(FileError, match=reason) as refused:
            read_nir(tmp_path / "net.nir")
        assert "\n" not in str(refused.value)


def test_a_sub_graph_is_as_untrusted_as_the_whole(tmp_path):
    import h5py

    path = write_nir(by_hand()[0], (2,), tmp_path / "net.nir")
    with h5py.File(path, "r+") as file:
        file["node/nodes/n"].create_dataset("type_check", data=True)
    with pytest.raises(FileError, match="holds no NIR graph"):
        read_nir(path)
    deep = lif(4)
    for _ in range(3):
        deep = looped(deep)
        deep.edges = deep.edges * 50
    nodes, edges = nir_import._flat(deep)  # 50 to the power of 3 if they weren't looked at
    assert (list(nodes), edges) == (
        ["in", "n0.n0.n0", "out"],
        [("in", "n0.n0.n0"), ("n0.n0.n0", "out")],
    )
    for _ in range(12):
        deep = looped(deep)
    nir.write(path, deep)
    with pytest.raises(FileError, match="a group within itself"):
        read_nir(path)
