"""NIR files of others, and files that nobody should trust.

Truths held: reference (snnTorch's, SpikingJelly's and norse's own runs), golden (ties; nodes by hand),
contract (what can't be read is named), hostile files.
"""

import itertools
import warnings
from pathlib import Path

import h5py
import nir
import numpy as np
import pytest
import torch
from torch import nn

from marsnn import simulate
from marsnn.errors import FileError
from marsnn.hardware.nir import read_nir, write_nir
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, LeakyIntegrator
from tests.hardware.nir_nets import HARD
from tests.hardware.nir_readers import by_the_equations, snn_export

# isort: split
import snntorch as snn
from snntorch import utils as snn_utils
from spikingjelly.activation_based import layer as jelly_layer
from spikingjelly.activation_based import neuron as jelly
from spikingjelly.activation_based.nir_exchange import export_to_nir as jelly_export

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import norse.torch as norse
    from norse.torch.utils.export_nir import to_nir as norse_export

PAGE = Path(__file__).parents[2] / "docs" / "nir.md"


def half(features):
    return LIF(features, beta=0.5, threshold=0.5, **HARD)


# ---- their files in ours -------------------------------------------------------------------------


def run_ours(path, x, **settings):
    """Spikes [T, B, N] of the last layer's neurons."""
    net = read_nir(path, **settings)
    name = list(net.neurons)[-1]
    return simulate(net, x).spikes[name][:, 0]


def snn_net(alpha=None):
    def neuron(n):
        settings = {"beta": torch.full((n,), 0.85), "threshold": torch.full((n,), 0.6), "init_hidden": True}
        settings |= {"reset_mechanism": "zero", "reset_delay": False}
        return (
            snn.Leaky(**settings)
            if alpha is None
            else snn.Synaptic(alpha=torch.full((n,), alpha), **settings)
        )

    return nn.Sequential(nn.Linear(6, 16), neuron(16), nn.Linear(16, 5, bias=False), neuron(5))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_snntorchs_files_run_in_ours(seed, alpha, tmp_path):
    torch.manual_seed(seed)
    theirs, x = snn_net(alpha), torch.randn(40, 3, 6)
    nir.write(tmp_path / "net.nir", snn_export(theirs, torch.randn(1, 6)))
    snn_utils.reset(theirs)
    spikes = torch.stack([theirs(frame) for frame in x]).detach().numpy()
    assert 0 < spikes.sum() < spikes.size
    assert np.array_equal(run_ours(tmp_path / "net.nir", x), spikes)


def jelly_net(cuba=False, **settings):
    def neuron():
        if cuba:
            return jelly.CUBALIFNode(c_decay=0.5, v_decay=0.8, v_threshold=0.4, v_reset=0.0)
        return jelly.LIFNode(v_threshold=0.4, **settings)

    hidden, last = jelly_layer.Linear(6, 16), jelly_layer.Linear(16, 5, bias=False)
    last.weight.data.mul_(4)
    return nn.Sequential(nn.Sequential(hidden, neuron()), last, neuron())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "settings",
    [
        {"tau": 2.0, "decay_input": False, "v_reset": 0.0},
        {"tau": 2.0, "decay_input": True, "v_reset": 0.0},
        {"tau": 3.0, "decay_input": True, "v_reset": -0.25},
        {"cuba": True},
    ],
)
def test_spikingjellys_files_run_in_ours(seed, settings, tmp_path):
    torch.manual_seed(seed)
    theirs, x = jelly_net(**settings), 8 * torch.randn(40, 3, 6)
    jelly_export(theirs, torch.randn(1, 6), tmp_path / "net.nir")
    spikes = torch.stack([theirs(frame) for frame in x]).detach().numpy()
    assert 0 < spikes.sum() < spikes.size
    assert np.array_equal(run_ours(tmp_path / "net.nir", x, fires_at=">="), spikes)


def test_spikingjellys_images_run_in_ours(tmp_path):
    theirs = nn.Sequential(
        jelly_layer.Conv2d(1, 4, 3, padding=1),
        jelly.IFNode(v_threshold=0.6),
        jelly_layer.AvgPool2d(2),
        jelly_layer.Flatten(),
        jelly_layer.Linear(36, 7),
        jelly.IFNode(v_threshold=0.3),
    )
    x = torch.randn(20, 2, 1, 6, 6)
    jelly_export(theirs, x[0], tmp_path / "net.nir")
    spikes = torch.stack([theirs(frame) for frame in x]).detach().numpy()
    assert np.array_equal(run_ours(tmp_path / "net.nir", x, fires_at=">="), spikes)


def test_ties_of_their_files_are_read_as_their_writer_meant_them(tmp_path):
    """One neuron at its threshold, v = 1: SpikingJelly fires, snnTorch does not."""
    x = torch.tensor([[[1.0]], [[0.5]], [[0.75]]])  # 1 | 0.5 | 0.5 * 0.5 + 0.75 = 1 after no reset
    node = jelly.LIFNode(tau=2.0, decay_input=False, v_reset=0.0)
    jelly_export(nn.Sequential(node), torch.zeros(1, 1), tmp_path / "jelly.nir")
    assert [int(node(frame)) for frame in x] == [1, 0, 1]
    assert run_ours(tmp_path / "jelly.nir", x, fires_at=">=").flatten().tolist() == [1, 0, 1]
    through = nn.Linear(1, 1, bias=False)
    through.weight.data.fill_(1)
    leaky = snn.Leaky(
        beta=torch.tensor([0.5]),
        threshold=torch.tensor([1.0]),
        reset_mechanism="zero",
        reset_delay=False,
        init_hidden=True,
    )
    nir.write(tmp_path / "snn.nir", snn_export(nn.Sequential(through, leaky), torch.zeros(1, 1)))
    snn_utils.reset(leaky)
    theirs = [int(leaky(frame)) for frame in x]
    assert theirs == [0, 0, 1]  # 1 | 0.5 + 0.5 = 1 | 0.5 + 0.75 = 1.25
    assert run_ours(tmp_path / "snn.nir", x).flatten().tolist() == theirs


def test_norses_files_run_in_ours(tmp_path):
    """norse 1.1 writes tau = dt / tau_mem_inv, right for dt = 1 alone whatever step it runs with."""
    settings = [
        norse.LIFBoxParameters(
            tau_mem_inv=torch.full((n,), 250.0), v_th=torch.full((n,), 0.2), v_leak=torch.zeros(n)
        )
        for n in (16, 5)
    ]
    cells = [norse.LIFBoxCell(p) for p in settings]
    theirs = norse.SequentialState(nn.Linear(6, 16), cells[0], nn.Linear(16, 5), cells[1])
    x = 2 * torch.randn(40, 3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        nir.write(tmp_path / "net.nir", norse_export(theirs, torch.randn(1, 6), dt=1.0))
    state, spikes = None, []
    for frame in x:
        spike, state = theirs(frame, state)
        spikes.append(spike)
    spikes = torch.stack(spikes).detach().numpy()
    assert 0 < spikes.sum() < spikes.size
    assert np.array_equal(run_ours(tmp_path / "net.nir", x, dt=1e-3), spikes)
    with pytest.raises(FileError, match="shorter than a step of dt = 1"):
        read_nir(tmp_path / "net.nir", dt=1.0)


def graph_file(path, nodes, edges, **more):
    nir.write(path, nir.NIRGraph(nodes, edges, type_check=False, **more))
    return path


def lif(n=4, **changes):
    values = {"tau": 2e-4, "r": 2.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, **changes}
    return nir.LIF(**{key: np.full(n, value) for key, value in values.items()})


def chain(path, *middle, size=4):
    nodes = {"in": nir.Input(np.array([size])), **{f"n{i}": node for i, node in enumerate(middle)}}
    nodes["out"] = nir.Output(np.array([size]))
    return graph_file(path, nodes, list(itertools.pairwise(nodes)))


def test_nodes_that_no_writer_above_gives(tmp_path):
    """By hand: a threshold is a neuron that forgets, a Scale a change of unit, an integrator never leaks."""
    x = torch.randn(30, 2, 4)
    scale, n = np.array([0.5, 1.0, 2.0, 0.25], dtype=np.float32), np.ones(4)
    path = chain(
        tmp_path / "a.nir", nir.Scale(scale), nir.Threshold(0.5 * n), nir.Scale(scale), lif(), nir.I(1e4 * n)
    )
    theirs = by_the_equations(path, x.numpy())
    net = read_nir(path)
    assert [type(layer) for layer in net.layers.values()] == [LIF, LIF, LeakyIntegrator]
    recording = simulate(net, x)
    assert np.array_equal(recording.spikes["n1"][:, 0], theirs["n1"])
    assert np.array_equal(recording.spikes["n3"][:, 0], theirs["n3"])
    worth = net["n3"].threshold.numpy()  # of a spike in ours, where the file has 1
    np.testing.assert_allclose(recording.output / worth, theirs["n4"], rtol=1e-5)


def test_a_graph_of_any_names_and_a_scalar_neuron(tmp_path):
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    scalar = nir.LIF(*(np.array(value) for value in (2e-4, 2.0, 0.0, 1.0, 0.0)))
    nodes = {
        "input": nir.Input(np.array([1, 4])),
        "keys": nir.Linear(weight),
        "0.lif/x": scalar,
        "0_lif_x": nir.Linear(weight),
        "output": nir.Output(np.array([1, 4])),
    }
    nodes = {name.replace("/", " "): node for name, node in nodes.items()}
    path = tmp_path / "net.nir"
    graph_file(path, {k: v for k, v in nodes.items() if k != "0.lif x"}, [])
    path = _without_compression(path, nodes, list(itertools.pairwise(nodes)))
    net = read_nir(path)
    assert net.names == ("keys_2", "0_lif_x", "0_lif_x_2")
    assert net["0_lif_x"].features is None


def _without_compression(path, nodes, edges):
    """nir can't compress scalars; files from elsewhere have them."""
    nir.write(path, nir.NIRGraph(nodes, edges, type_check=False), compression=None)
    return path


# ---- what can't be read --------------------------------------------------------------------------


REFUSED = {
    "a soft spot": (lambda: [lif(v_reset=0.5)], "n0: rests at v_leak and resets to another value"),
    "a short tau": (lambda: [lif(tau=1e-5)], "n0: tau = 1e-05 s is shorter than a step of dt = 0.0001 s"),
    "no threshold": (lambda: [lif(v_threshold=-1.0)], "n0: a threshold that is not above its rest"),
    "a negative r": (lambda: [lif(r=-1.0)], "n0: a resistance"),
    "NaN": (lambda: [lif(tau=np.nan)], "n0: holds NaN"),
    "a delay": (lambda: [nir.Delay(np.ones(4))], "n0: Delay has no layer in marsnn"),
    "a CubaLI": (lambda: [nir.CubaLI(*[np.ones(4)] * 4)], "n0: CubaLI has no layer"),
    "a leak": (lambda: [nir.LI(np.ones(4), np.ones(4), np.ones(4))], "n0: rests at a v_leak"),
    "a weight of three axes": (lambda: [nir.Linear(np.ones((2, 4, 4)))], r"n0: a weight \[2, 4, 4\]"),
    "a pool without shape": (lambda: [nir.SumPool2d(*[np.ones(2)] * 3)], "n0: how many channels"),
    "two at once": (lambda: [lif(v_reset=1.0), nir.Delay(np.ones(4))], "2 of its nodes .* n0: .* n1: "),
    "an empty graph": (lambda: [], "no way from input to output"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_cant_be_read_is_named(case, tmp_path):
    build, reason = REFUSED[case]
    path = chain(tmp_path / "net.nir", *build())
    with pytest.raises(FileError, match=reason) as refused:
        read_nir(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_graphs_that_are_no_row_are_refused_by_name(tmp_path):
    one = {"in": nir.Input(np.array([4])), "out": nir.Output(np.array([4]))}
    eye = np.eye(4, dtype=np.float32)
    cases = {
        "m, n, out, w: a loop, or behind one; a Network goes forward": (
            {**one, "n": lif(), "m": lif(), "w": nir.Linear(eye)},
            [("in", "n"), ("n", "m"), ("m", "w"), ("w", "n"), ("n", "out")],
        ),
        "one row": (
            {**one, "a": lif(), "b": lif(), "c": nir.Linear(eye)},
            [("in", "a"), ("in", "b"), ("a", "c"), ("b", "c"), ("c", "out")],
        ),
        "2 nodes Input": (
            {**one, "in2": nir.Input(np.array([4])), "a": lif()},
            [("in", "a"), ("in2", "a"), ("a", "out")],
        ),
        "leads to it, and there is no such node": (
            {**one, "a": lif()},
            [("in", "a"), ("a", "ghost"), ("a", "out")],
        ),
        "beside b; a Network has one end": (
            {**one, "a": lif(), "b": nir.Linear(eye)},
            [("in", "a"), ("a", "b"), ("b", "out"), ("a", "out")],
        ),
        "a: adds signals|c: adds signals": (
            {**one, "a": lif(), "c": lif(v_threshold=2.0), "d": nir.Linear(eye)},
            [("in", "a"), ("a", "c"), ("c", "d"), ("a", "d"), ("d", "out")],
        ),
    }
    for reason, (nodes, edges) in cases.items():
        with pytest.raises(
            FileError, match=reason.replace("a: adds signals|c: adds signals", "d: adds signals of")
        ):
            read_nir(graph_file(tmp_path / "net.nir", nodes, edges))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: g["nodes/n.plus2/threshold"].write_direct(np.full(4, 1.5, np.float32)),
        lambda g: g["nodes/n.minus1.worth/scale"].write_direct(np.full(4, 1.0, np.float32)),
        lambda g: g["nodes/n/metadata/steps"].write_direct(np.array(3)),
        lambda g: g["nodes/n/metadata/steps"].write_direct(np.array(10**9)),
        lambda g: g["nodes/n/metadata/tau"].write_direct(np.array(0.5)),
        lambda g: g["nodes/n/metadata/log_threshold"].write_direct(np.full(4, np.nan, np.float32)),
        lambda g: g["nodes/n/metadata"].pop("fire_at"),
        lambda g: g["nodes"].pop("n.plus1"),
        lambda g: g["edges"].__setitem__(0, g["edges"][1]),
    ],
)
def test_a_tag_is_not_believed(spoil, tmp_path):
    net = Network({"n": ATMN(4, steps=2, tau=2.0)})
    path = write_nir(net, (4,), tmp_path / "net.nir")
    assert read_nir(path)["n"].steps == 2
    with h5py.File(path, "r+") as file:
        spoil(file["node"])
    with pytest.raises(FileError, match=r"n: tagged as an ATMN|no such node"):
        read_nir(path)


def hostile(path, change):
    write_nir(Network({"a": nn.Linear(4, 4), "n": LIF(4, **HARD)}), (4,), path)
    with h5py.File(path, "r+") as file:
        change(file, file["node/nodes"])
    return path


def replace(group, name, make):
    del group[name]
    make(group, name)


HOSTILE = {
    "an external link": (
        lambda f, n: replace(
            n["a"], "weight", lambda g, k: g.__setitem__(k, h5py.ExternalLink("/etc/x", "/"))
        ),
        "a link to somewhere else",
    ),
    "a soft link": (
        lambda f, n: replace(
            n["a"], "bias", lambda g, k: g.__setitem__(k, h5py.SoftLink("/node/nodes/n/tau"))
        ),
        "a link to somewhere else",
    ),
    "a group within itself": (
        lambda f, n: n["a"].__setitem__("metadata", f["node"]),
        "a group within itself",
    ),
    "a bomb": (
        lambda f, n: replace(
            n["a"],
            "weight",
            lambda g, k: g.create_dataset(k, (2**20, 2**20), "f4", compression="gzip", chunks=(64, 64)),
        ),
        "unpacks to more than",
    ),
    "data in another file": (
        lambda f, n: replace(
            n["a"], "bias", lambda g, k: g.create_dataset(k, (4,), "f4", external=[("/etc/hostname", 0, 16)])
        ),
        "data outside the file",
    ),
    "a reference": (
        lambda f, n: replace(
            n["a"], "bias", lambda g, k: g.create_dataset(k, data=f.ref, dtype=h5py.ref_dtype)
        ),
        "not numbers or text",
    ),
    "an unknown type": (
        lambda f, n: replace(n["a"], "type", lambda g, k: g.create_dataset(k, data="System")),
        "not a readable NIR file",
    ),
    "an unknown field": (lambda f, n: n["a"].create_dataset("hook", data=1), "not a readable NIR file"),
    "a missing field": (lambda f, n: n["n"].pop("tau"), "not a readable NIR file"),
    "text for a weight": (
        lambda f, n: replace(n["n"], "tau", lambda g, k: g.create_dataset(k, data="4")),
        "not a readable NIR file",
    ),
    "a switch of its reader": (
        lambda f, n: f["node"].create_dataset("type_check", data=True),
        "holds no NIR graph",
    ),
    "bad metadata": (
        lambda f, n: replace(f["node/metadata"], "steps", lambda g, k: g.create_dataset(k, data="many")),
        "its metadata is damaged",
    ),
    "zero steps": (
        lambda f, n: replace(f["node/metadata"], "steps", lambda g, k: g.create_dataset(k, data=0)),
        "metadata is damaged .steps must be",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(case, tmp_path):
    change, reason = HOSTILE[case]
    path = hostile(tmp_path / "net.nir", change)
    with pytest.raises(FileError, match=reason) as refused:
        read_nir(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_what_is_no_nir_file_is_refused(tmp_path):
    path = tmp_path / "net.nir"
    with pytest.raises(FileError, match="no such file"):
        read_nir(path)
    with pytest.raises(FileError, match="can't read it"):
        read_nir(tmp_path)
    whole = write_nir(Network({"n": LIF(4, **HARD)}), (4,), path).read_bytes()
    for data in (b"", b"hello", whole[: len(whole) // 2], whole[:600]):
        path.write_bytes(data)
        with pytest.raises(FileError, match="not a readable NIR file"):
            read_nir(path)
    with h5py.File(path, "w") as file:
        file["node"] = np.zeros(3)
    with pytest.raises(FileError, match="not a readable NIR file"):
        read_nir(path)


@pytest.mark.parametrize("seed", range(40))
def test_bytes_that_were_turned_give_a_network_or_one_line(seed, tmp_path):
    whole = bytearray(
        write_nir(Network({"n": ATMN(4, steps=2, tau=2.0)}), (4,), tmp_path / "a.nir").read_bytes()
    )
    random = np.random.default_rng(seed)
    for place in random.integers(0, len(whole), 12):
        whole[place] = random.integers(0, 256)
    (tmp_path / "b.nir").write_bytes(whole)
    told = ""
    try:
        read = read_nir(tmp_path / "b.nir")
    except FileError as error:
        told = str(error)
    assert (told and "\n" not in told) or isinstance(read, Network)
