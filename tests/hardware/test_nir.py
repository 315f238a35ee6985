"""NIR: our files in the hands of others, and what is not written.

Truths held: reference (the equations of NIR, snnTorch, SpikingJelly and norse give our spikes, step for
step), golden (ties), property (decays survive), round trip, mutants (a wrong constant or threshold is seen),
runnable docs (the page's example, and each cell of its table is what a run says).
"""

import contextlib
import io
import re
import sys
import warnings
from pathlib import Path

import nir
import nirtorch
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from marsnn import simulate
from marsnn.checkpoint import load_network, save_network
from marsnn.errors import ExportError, InputError, MissingDependencyError, ShapeError
from marsnn.hardware import nir_atmn, nir_export, nir_import, nir_units
from marsnn.hardware.nir import read_nir, to_nir, write_nir
from marsnn.network import Network
from marsnn.neurons import ALIF, ATMN, LIF, TMN, CubaLIF, IntegerLIF, LeakyIntegrator, TernaryLIF
from tests.hardware.nir_nets import HARD, ROWS, V, dense
from tests.hardware.nir_readers import FIRES_AT, READERS, by_the_equations, snn_nir

# isort: split

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)

PAGE = Path(__file__).parents[2] / "docs" / "nir.md"


def ours(net, x):
    """What our neurons give in NIR's terms, name -> [L, B, *]: ATMN's value, the others' bare output."""
    recording = simulate(net, x)
    found = {}
    for name, spikes in recording.spikes.items():
        if isinstance(net[name], ATMN):
            train = torch.as_tensor(spikes).transpose(0, 1)
            found[name] = net[name].decode(train.to(x.dtype)).detach().numpy()
        else:
            found[name] = spikes[:, 0]
    return found


def mismatches(net, path, x, reader):
    outputs = READERS[reader](path, x.numpy())
    return sum(int((outputs[name] != value).sum()) for name, value in ours(net, x).items())


# ---- the page's table ----------------------------------------------------------------------------


def page_table():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    start = next(i for i, row in enumerate(rows) if row[0] == "layer")
    return rows[start], {row[0]: row[1:] for row in rows[start + 1 :] if row[0] in ROWS}


def cell(row, reader, path):
    """What a reader does with a row's networks, three of them by three seeds."""
    wrong = 0
    for seed in range(3):
        torch.manual_seed(seed)
        net, shape = ROWS[row]()
        x = torch.randn(25, 4, *shape)
        write_nir(net, x, path, fires_at=FIRES_AT[reader], unit_resistance=reader == "norse")
        assert all(0 < np.count_nonzero(value) < value.size for value in list(ours(net, x).values())[:1])
        try:
            wrong += mismatches(net, path, x, reader)
        except (ValueError, AssertionError):
            return "refused"
        except KeyError:  # the layer isn't there
            return "dropped"
    return "wrong" if wrong else "exact"


def cell_of_ours(row, path):
    for seed in range(3):
        torch.manual_seed(seed)
        net, shape = ROWS[row]()
        x = torch.randn(25, 4, *shape)
        write_nir(net, x, path)
        back = read_nir(path)
        first, second = simulate(net, x), simulate(back, x)
        for name, value in first.spikes.items():
            assert np.array_equal(value, second.spikes[name]), (row, name)
        np.testing.assert_allclose(first.output, second.output, rtol=0, atol=1e-6)
    return "exact"


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_the_page_is_what_runs_say(row, tmp_path):
    header, rows = page_table()
    assert header == ["layer", "NIR's equations", "marsnn", "snnTorch", "SpikingJelly", "norse"]
    assert set(rows) == set(ROWS)
    path = tmp_path / "net.nir"
    found = [cell(row, reader, path) for reader in READERS]
    found.insert(1, cell_of_ours(row, path))
    assert found == rows[row]


def test_a_dropped_node_is_dropped_without_a_word(tmp_path):
    """What the page's "dropped" means: norse runs the file as if the node were not there."""
    net = Network([nn.Linear(4, 4), LIF(4, threshold=0.1, **HARD), LeakyIntegrator(4, steps=1)])
    net["leakyintegrator1"].carry = "sequence"
    x = torch.randn(20, 3, 4)
    path = write_nir(net, x, tmp_path / "net.nir", unit_resistance=True)
    spikes = READERS["norse"](path, x.numpy(), names=["lif1"])["lif1"]
    assert np.array_equal(spikes, ours(net, x)["lif1"])
    with pytest.raises(KeyError):
        READERS["norse"](path, x.numpy(), names=["leakyintegrator1"])


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {})  # our own page, not a user's file
    assert (tmp_path / "jelly.nir").is_file()


# ---- ties ----------------------------------------------------------------------------------------


def grid(seed, settings):
    """Weights, inputs and membranes on a grid of 1/8, so that membranes meet their threshold exactly."""
    torch.manual_seed(seed)
    net = Network(
        {
            "a": nn.Linear(4, 12),
            "n": settings(12),
            "b": nn.Linear(12, 6),
            "m": settings(6),
            "c": nn.Linear(6, 2),
        }
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape) / 8)
    return net, torch.randint(-4, 5, (40, 3, 4)) / 4.0


def ties(net, x):
    """How many membranes were at their threshold before they fired."""
    found = 0
    v = torch.zeros(x.shape[1], 12)
    for frame in x:
        h = net["n"].beta * v + net["a"](frame)
        found += int((h == net["n"].threshold).sum())
        v = torch.where(h >= net["n"].threshold, 0.0, h)
    return found


def half(features):
    return LIF(features, beta=0.5, threshold=0.5, **HARD)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reader", READERS)
def test_ties_fire_where_ours_do_and_the_other_threshold_shows(seed, reader, tmp_path):
    net, x = grid(seed, half)
    assert ties(net, x) > 10
    other = {">": ">=", ">=": ">"}[FIRES_AT[reader]]
    unit = reader == "norse"
    path = write_nir(net, x, tmp_path / "net.nir", fires_at=FIRES_AT[reader], unit_resistance=unit)
    assert mismatches(net, path, x, reader) == 0
    path = write_nir(net, x, path, fires_at=other, unit_resistance=unit)
    if FIRES_AT[reader] == ">":
        assert mismatches(net, path, x, reader) > 0
    back, again = read_nir(path), simulate(net, x)
    assert np.array_equal(simulate(back, x).spikes["n"], again.spikes["n"])


def test_at_the_float_below_its_threshold_a_reader_of_the_other_kind_fires(tmp_path):
    """The other side of a tie: a file for ">" in the hands of one that fires at ">="."""
    net = Network({"a": nn.Linear(1, 1, bias=False), "n": LIF(1, beta=0.5, threshold=1.0, **HARD)})
    net["a"].weight.data.fill_(1.0)
    below = np.nextafter(np.float32(1), np.float32(0))
    x = torch.tensor([[[float(below)]]])
    path = write_nir(net, x, tmp_path / "net.nir", fires_at=">=")
    assert mismatches(net, path, x, "SpikingJelly") == 0
    write_nir(net, x, path, fires_at=">")
    assert mismatches(net, path, x, "SpikingJelly") == 1
    assert mismatches(net, path, x, "snnTorch") == 0


# ---- mutants -------------------------------------------------------------------------------------

MUTANTS = {
    "tau from beta instead of 1 - beta": (
        "time_constant",
        lambda beta, dt: dt / np.asarray(beta, np.float64),
    ),
    "tau of the exponential decay": (
        "time_constant",
        lambda beta, dt: -dt / np.log(np.asarray(beta, np.float64)),
    ),
    "tau in steps": ("time_constant", lambda beta, dt: 1 / (1 - np.asarray(beta, np.float64))),
    "r = 1": ("resistance", lambda tau, dt: np.ones_like(tau)),
    "r inverted": ("resistance", lambda tau, dt: dt / tau),
    "threshold as it is": ("to_file", lambda threshold, fires_at: threshold),
    "threshold the float above": (
        "to_file",
        lambda threshold, fires_at: np.nextafter(threshold, np.float32(9)),
    ),
}


@pytest.mark.parametrize("neuron", [half, lambda n: CubaLIF(n, alpha=0.5, beta=0.75, threshold=0.5, **HARD)])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_seen(mutant, neuron, monkeypatch, tmp_path):
    function, wrong = MUTANTS[mutant]
    net, x = grid(0, neuron)
    if mutant == "tau from beta instead of 1 - beta":  # beta = 1/2 is its own mirror image
        net["n"].beta.fill_(0.75)
    path = write_nir(net, x, tmp_path / "net.nir")
    assert mismatches(net, path, x, "NIR") == 0
    monkeypatch.setattr(nir_export, function, wrong)
    write_nir(net, x, path)
    assert mismatches(net, path, x, "NIR") > 0


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        ("decay", lambda tau, dt: np.exp(-dt / tau)),
        ("gain", lambda tau, r, dt: dt / tau),
        ("from_file", lambda threshold, fires_at: threshold * 2),
    ],
)
def test_a_mutant_of_the_reader_is_seen(function, wrong, monkeypatch, tmp_path):
    net, x = grid(0, half)
    path = write_nir(net, x, tmp_path / "net.nir")
    assert np.array_equal(simulate(read_nir(path), x).spikes["n"], simulate(net, x).spikes["n"])
    monkeypatch.setattr(nir_import, function, wrong)
    assert not np.array_equal(simulate(read_nir(path), x).spikes["n"], simulate(net, x).spikes["n"])


# ---- time constants ------------------------------------------------------------------------------


@given(st.floats(2**-20, 1, width=32, exclude_max=True), st.sampled_from([1e-4, 1e-3, 1.0]))
def test_a_decay_survives_the_way_there_and_back(beta, dt):
    back = nir_units.decay(nir_units.time_constant(np.float32(beta), dt), dt)
    assert np.float32(back) == np.float32(beta)
    tau = nir_units.time_constant(np.float32(beta), dt)
    assert nir_units.gain(tau, nir_units.resistance(tau, dt), dt) == 1.0


def test_time_constants_by_hand():
    assert nir_units.time_constant(np.float64(0.75), 1e-4) == 4e-4
    assert nir_units.resistance(np.float64(4e-4), 1e-4) == 4.0
    assert nir_units.decay(np.float64(4e-4), 1e-4) == 0.75
    assert nir_units.gain(np.float64(4e-4), np.float64(1.0), 1e-4) == 0.25
    one = np.float32(1)
    assert nir_units.to_file(one, ">") == np.float32(1 - 2**-24)
    assert nir_units.from_file(nir_units.to_file(one, ">"), ">") == 1
    assert nir_units.to_file(one, ">=") == 1


# ---- ATMN ----------------------------------------------------------------------------------------

ATMNS = {
    "literal": lambda: ATMN(16, steps=4, tau=1.0, threshold=V),
    "doubling": lambda: ATMN(16, steps=3, tau=2.0, threshold=V),
    "between": lambda: ATMN(16, steps=5, tau=1.3, threshold=V),
    "late": lambda: ATMN(16, steps=3, tau=1.5, threshold=0.3, fire_at=1.25),
    "rounding": lambda: ATMN(16, steps=3, tau=2.0, threshold=0.3, fire_at=0.5),
    "shared": lambda: ATMN(None, steps=4, tau=2.0, threshold=0.1, learn_tau=True),
    "one step": lambda: ATMN(16, steps=1, tau=1.0, threshold=V),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ATMNS)
def test_atmn_counts_the_same_at_every_float_beside_a_tie(name, dtype, tmp_path):
    atmn = ATMNS[name]().to(dtype)
    net = Network({"n": atmn})
    levels = nir_atmn.firing_levels(atmn).reshape(atmn.steps, -1).expand(-1, 16)
    near = [levels, *(torch.nextafter(levels, torch.tensor(to, dtype=dtype)) for to in (0.0, torch.inf))]
    x = torch.cat([*near, 1.3 * torch.randn(50, 16, dtype=dtype)])
    x = torch.cat([x, -x]).unsqueeze(1)
    path = write_nir(net, x, tmp_path / "net.nir")
    outputs = by_the_equations(path, x.numpy())
    spikes = torch.as_tensor(simulate(net, x).spikes["n"]).to(dtype)  # [L, T, B, N]
    count = sum(outputs[f"n.plus{m}"] - outputs[f"n.minus{m}"] for m in range(1, atmn.steps + 1))
    assert np.array_equal(count, spikes.sum(1).numpy())
    assert set(np.unique(np.abs(count))) == set(range(atmn.steps + 1))
    value = atmn.decode(spikes.transpose(0, 1)).detach().numpy()
    if atmn.tau.item() in (1.0, 2.0) and not atmn.learn_tau:  # whole powers add up without rounding
        assert np.array_equal(outputs["n"], value)
    np.testing.assert_allclose(outputs["n"], value, rtol=1e-6)


def test_levels_of_the_real_formula_would_miss_floats():
    """Why the levels are searched for: m V as floats is not where the steps fire."""
    atmn = ATMN(4096, steps=8, tau=1.0, threshold=torch.linspace(0.1, 0.9, 4096))
    found = nir_atmn.firing_levels(atmn)
    formula = torch.arange(1, 9)[:, None] * atmn.threshold.detach()
    assert 0 < int((found != formula).sum()) < found.numel() // 2
    assert torch.allclose(found, formula, rtol=1e-6)


def test_levels_beyond_every_float_are_refused():
    with pytest.raises(
        ExportError, match=r"n: T = 3 spikes with tau = 1e\+30 need a current beyond its floats"
    ):
        to_nir(Network({"n": ATMN(1, steps=3, tau=1e30)}), (1,))
    assert len(to_nir(Network({"n": ATMN(1, steps=2, tau=1e30)}), (1,)).nodes) == 12


def test_atmn_runs_through_nirtorch_with_a_map_of_two_lines(tmp_path):
    """For readers without Threshold and Scale: what a user of nirtorch writes."""
    net = Network({"a": nn.Linear(6, 16), "n": ATMNS["doubling"](), "b": nn.Linear(16, 3)})
    x = torch.randn(1, 9, 6)
    graph = nir.read(write_nir(net, x, tmp_path / "net.nir"))

    class Scale(nn.Module):
        def __init__(self, node):
            super().__init__()
            self.scale = nn.Buffer(torch.as_tensor(node.scale))

        def forward(self, x):
            return x * self.scale

    class Threshold(nn.Module):
        def __init__(self, node):
            super().__init__()
            self.level = nn.Buffer(torch.as_tensor(node.threshold))

        def forward(self, x):
            return (x > self.level).to(x.dtype)

    def affine(node):
        layer = nn.Linear(*node.weight.shape[::-1])
        layer.load_state_dict({"weight": torch.as_tensor(node.weight), "bias": torch.as_tensor(node.bias)})
        return layer

    model = nirtorch.nir_to_torch(graph, {nir.Scale: Scale, nir.Threshold: Threshold, nir.Affine: affine})
    assert torch.allclose(model(x[0])[0], net(x)[0], atol=1e-6)


# ---- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fires_at", [">", ">="])
@pytest.mark.parametrize("row", ROWS)
def test_a_second_file_equals_the_first(row, fires_at, tmp_path):
    net, shape = ROWS[row]()
    first = to_nir(net, shape, fires_at=fires_at)
    path = write_nir(net, shape, tmp_path / "net.nir", fires_at=fires_at)
    back = read_nir(path)
    assert list(back.names) == list(net.names)
    assert (back.skips, back.steps) == (net.skips, net.steps)
    second = to_nir(back, shape, fires_at=fires_at)
    assert second.nodes.keys() == first.nodes.keys()
    assert sorted(second.edges) == sorted(first.edges)
    assert second.metadata == first.metadata
    pairs = [(name, node, second.nodes[name]) for name, node in first.nodes.items()]
    for _, node, other in [*pairs]:
        if isinstance(node, nir.NIRGraph):
            assert (other.edges, other.metadata) == (node.edges, node.metadata)
            assert other.nodes.keys() == node.nodes.keys()
            pairs += [(each, part, other.nodes[each]) for each, part in node.nodes.items()]
    for name, node, other in pairs:
        assert type(other) is type(node)
        for key, value in vars(node).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(getattr(other, key), value, rtol=3e-7, err_msg=f"{name}.{key}")
            if key in ("threshold", "v_threshold"):
                assert np.array_equal(value, getattr(other, key)), name


def test_settings_and_tags_come_back(tmp_path):
    net = Network(
        {
            "a": nn.Conv2d(1, 4, 3, bias=False),
            "n": CubaLIF(
                4, steps=5, alpha=0.25, beta=torch.linspace(0, 0.75, 4), reset="zero", feature_dim=-3
            ),
            "f": nn.Flatten(),
            "b": nn.Linear(64, 2),
        }
    )
    back = read_nir(write_nir(net, torch.zeros(1, 1, 1, 6, 6), tmp_path / "net.nir", dt=1e-3))
    neuron = back["n"]
    assert type(neuron) is CubaLIF
    assert (neuron.steps, neuron.carry, neuron.feature_dim, neuron.features) == (5, "token", -3, 4)
    for key, value in net.state_dict().items():
        if not key.endswith("_extra_state"):
            assert torch.equal(back.state_dict()[key], value), key
    x = torch.randn(3, 2, 1, 6, 6)
    assert torch.equal(back(x), net(x))


def test_atmn_comes_back_as_it_was(tmp_path):
    for build in ATMNS.values():
        net = Network({"a": nn.Linear(4, 16), "n": build(), "b": nn.Linear(16, 2)})
        back = read_nir(write_nir(net, (4,), tmp_path / "net.nir"))
        assert type(back["n"]) is ATMN
        assert back["n"].features == net["n"].features
        assert back["n"].fire_at == net["n"].fire_at
        assert torch.equal(back["n"].threshold, net["n"].threshold)
        assert torch.equal(back["n"].tau, net["n"].tau)
        x = torch.randn(6, 3, 4)
        assert torch.equal(back(x), net(x))


@pytest.mark.parametrize("kind", ["atmn", "pool"])
def test_settings_for_each_channel_of_images(kind, tmp_path):
    levels = torch.tensor([0.1, 0.2, 0.3, 0.4])
    if kind == "atmn":
        neuron = ATMN(4, steps=3, tau=2.0, threshold=levels, feature_dim=-3)
    else:
        neuron = LIF(4, threshold=levels, feature_dim=-3, **HARD)
    net = Network(
        {
            "a": nn.Conv2d(2, 4, 3),
            "n": neuron,
            "p": nn.AvgPool2d(2),
            "f": nn.Flatten(),
            "b": nn.Linear(16, 3),
        }
    )
    x = torch.randn(20, 3, 2, 6, 6)
    path = write_nir(net, x, tmp_path / "net.nir")
    assert mismatches(net, path, x, "NIR") == 0
    outputs = by_the_equations(path, x.numpy())
    np.testing.assert_allclose(outputs["b"], simulate(net, x).output, atol=1e-6)
    back = read_nir(path)
    assert np.array_equal(simulate(back, x).spikes["n"], simulate(net, x).spikes["n"])
    np.testing.assert_allclose(back(x).detach(), simulate(net, x).output, atol=1e-6)


def test_what_was_read_can_be_saved_and_read_again(tmp_path):
    net, shape = ROWS["`AvgPool2d(divisor_override=1)`"]()
    back = read_nir(write_nir(net, shape, tmp_path / "net.nir"))
    x = torch.randn(3, 2, *shape)
    assert torch.equal(load_network(save_network(back, tmp_path / "net.safetensors"))(x), back(x))
    assert torch.allclose(back(x), net(x), atol=1e-6)


def test_tokens_of_several_steps_are_held_currents_from_rest(tmp_path):
    """carry="token": T steps of the file from rest; the mean of its outputs is ours."""
    net = Network([nn.Linear(5, 12), LIF(12, steps=6, reset="zero", threshold=0.5), nn.Linear(12, 3)])
    x = torch.randn(4, 2, 5)
    path = write_nir(net, x, tmp_path / "net.nir")
    recording = simulate(net, x)
    for token, frame in enumerate(x):
        outputs = by_the_equations(path, frame.expand(6, -1, -1).numpy())
        assert np.array_equal(outputs["lif1"], recording.spikes["lif1"][token])
        np.testing.assert_allclose(outputs["linear2"].mean(0), recording.output[token], atol=1e-6)


def test_float64_networks_stay_float64(tmp_path):
    net = dense(LIF(16, beta=0.9, threshold=0.7, **HARD)).double()
    x = torch.randn(30, 3, 6, dtype=torch.float64)
    path = write_nir(net, x, tmp_path / "net.nir")
    assert mismatches(net, path, x, "NIR") == mismatches(net, path, x, "SpikingJelly") == 0
    back = read_nir(path)
    assert back["a"].weight.dtype == torch.float64
    assert np.array_equal(simulate(back, x).spikes["m"], simulate(net, x).spikes["m"])


def test_silent_layers_leave_their_edges_and_a_skip_into_one_is_kept(tmp_path):
    net = Network(
        {
            "a": nn.Linear(4, 4),
            "d": nn.Dropout(),
            "n": LIF(4, **HARD),
            "b": nn.Linear(4, 4),
            "i": nn.Identity(),
            "m": LIF(4, **HARD),
        },
        skips={"i": ["n", "input"]},
    )
    x = torch.randn(20, 2, 4)
    path = write_nir(net.eval(), x, tmp_path / "net.nir")
    graph = nir.read(path)
    assert sorted(graph.nodes) == ["a", "b", "input", "m", "n", "output"]
    assert {a for a, b in graph.edges if b == "m"} == {"b", "n", "input"}
    assert mismatches(net, path, x, "NIR") == mismatches(net, path, x, "snnTorch") == 0
    back = simulate(read_nir(path, fires_at=">"), x)
    assert np.array_equal(back.spikes["m"], simulate(net, x).spikes["m"])


# ---- what can't be written -----------------------------------------------------------------------


def test_every_refusal_is_told_at_once():
    net = Network(
        {
            "a": nn.Linear(6, 8),
            "soft": LIF(8, steps=4),
            "b": nn.Linear(8, 8),
            "relu": nn.ReLU(),
            "alif": ALIF(8),
            "c": nn.Linear(8, 8),
            "digits": ATMN(8),
            "d": nn.Linear(8, 8),
            "ternary": TernaryLIF(8),
            "e": nn.Linear(8, 8),
            "count": ATMN(8, tau=1.0),
            "tmn": TMN(8),
            "integer": IntegerLIF(8),
            "rounding": ATMN(8, tau=1.0, fire_at=0.5),
            "endless": CubaLIF(8, beta=1.0, reset="zero"),
            "some": LIF(8, beta=torch.arange(8) / 7, reset="zero"),
            "other": LIF(8, reset="zero", carry="sequence"),
            "norm": nn.LayerNorm(8),
        }
    )
    with pytest.raises(ExportError) as refused:
        to_nir(net, (6,))
    named = {refusal.split(":")[0] for refusal in refused.value.refusals}
    assert named == set(net.names) - {"a", "b", "c", "d", "e"}
    assert "\n" not in str(refused.value)
    with pytest.raises(ExportError, match=r"soft: reset='subtract'.*allow="):
        to_nir(Network({"a": nn.Linear(6, 8), "soft": LIF(8)}), (6,))


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (nn.Linear(4, 4), (3, 4), "takes vectors"),
        (nn.Conv2d(4, 4, 3, groups=2), (4, 6, 6), "groups=2"),
        (nn.Conv2d(4, 4, (3, 5)), (4, 6, 6), "make it square"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), (4, 6, 6), "pads with zeros"),
        (nn.Conv2d(4, 4, 2, padding="same"), (4, 6, 6), "pads one side more"),
        (nn.AvgPool2d(2, ceil_mode=True), (4, 5, 5), "ceil_mode"),
        (nn.AvgPool2d(2, divisor_override=3), (4, 6, 6), "divisor_override"),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), (4, 6, 6), "count_include_pad"),
        (nn.AvgPool1d(2), (4, 6), "no node in NIR"),
        (nn.MaxPool2d(2), (4, 6, 6), "no node in NIR"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_layers_that_have_no_image(layer, shape, reason):
    with pytest.raises(ExportError, match=reason):
        to_nir(Network({"odd": layer}), shape)


def test_other_refusals_and_bad_arguments(tmp_path):
    hard = Network({"n": LIF(4, **HARD)})
    with pytest.raises(ExportError, match="n: takes input twice"):
        to_nir(Network({"n": LIF(4, **HARD)}, skips={"n": "input"}), (4,))
    with pytest.raises(ExportError, match="at most 64 steps"):
        to_nir(Network({"n": ATMN(4, steps=65, tau=1.0)}), (4,))
    with pytest.raises(ExportError, match="float32 or float64"):
        to_nir(Network({"a": nn.Linear(4, 4)}).half(), (4,))
    with pytest.raises(InputError, match="allow: 'soft' is not known"):
        to_nir(hard, (4,), allow=("soft",))
    with pytest.raises(InputError, match="fires_at"):
        to_nir(hard, (4,), fires_at="=")
    with pytest.raises(InputError, match="dt must be finite and > 0"):
        to_nir(hard, (4,), dt=0.0)
    with pytest.raises(InputError, match="takes a marsnn Network, got Linear"):
        to_nir(nn.Linear(3, 3), (3,))
    with pytest.raises(ShapeError, match=r"x \[L, B, \*D\], got \[2, 4\]"):
        to_nir(hard, torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="none"):
        to_nir(hard, ())
    with pytest.raises(ShapeError, match="n: "):
        to_nir(hard, (5,))
    old = tmp_path / "old.nir"
    old.write_bytes(b"old")
    with pytest.raises(ExportError):
        write_nir(Network({"n": LIF(4)}), (4,), old)
    assert old.read_bytes() == b"old"


def test_a_soft_reset_is_written_as_a_hard_one_if_asked_for(tmp_path):
    soft = Network({"a": nn.Linear(6, 16), "n": LIF(16, 1, threshold=0.3, beta=0.9, carry="sequence")})
    hard = Network({"a": soft["a"], "n": LIF(16, threshold=0.3, beta=0.9, **HARD)})
    x = torch.randn(30, 4, 6)
    path = write_nir(soft, x, tmp_path / "net.nir", allow=("soft-reset",))
    assert mismatches(hard, path, x, "snnTorch") == mismatches(hard, path, x, "NIR") == 0
    assert mismatches(soft, path, x, "snnTorch") > 0
    assert read_nir(path)["n"].reset == "subtract"  # the tag says what it was


def test_without_nir_the_command_that_installs_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nir", None)
    for call in (lambda: to_nir(Network([nn.Linear(2, 2)]), (2,)), lambda: read_nir(tmp_path / "x.nir")):
        with pytest.raises(MissingDependencyError, match=r'pip install "marsnn\[nir\]"'):
            call()


def test_snntorch_reads_its_own_conventions_from_ours(tmp_path):
    """The importer prints no warning about scaled weights: tau and r are as it wants them."""
    net = dense(LIF(16, beta=0.9, threshold=0.7, **HARD))
    path = write_nir(net, (6,), tmp_path / "net.nir")
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        model = snn_nir.import_from_nir(nir.read(path))
    assert "scaling" not in told.getvalue()
    assert torch.equal(model.n.beta.float(), net["n"].beta.expand(16))
