"""Reference: count mode and stock LIFs against window mode and in Lava; refusals, mutants, prices."""

import json
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from marsnn.checkpoint import save_network
from marsnn.errors import ExportError, FileError, InputError
from marsnn.gated import GatedLinear
from marsnn.hardware import (
    NetxExport,
    QuantizedNetwork,
    StockNet,
    export,
    integer,
    price_of,
    read_netx,
    read_stock,
    stock,
    verify,
    verify_netx,
)
from marsnn.hardware.chip import load_profile
from marsnn.hardware.graph import extract
from marsnn.hardware.loihi import BIAS_MAX, UNITY
from marsnn.hardware.modes import as_counts
from marsnn.hardware.netx_file import write_model
from marsnn.hardware.netx_lava import RUNTIME
from marsnn.hardware.price import price_of_run
from marsnn.hardware.quantize import quantize
from marsnn.hardware.stages import INPUT, IntegerGraph
from marsnn.hardware.stock import BIASES, HIGHEST, LARGEST_SYNAPSES, Rails, as_lifs
from marsnn.hardware.stock_file import operations_of, write_stock
from marsnn.hardware.stock_graph import extract_stock, quantize_stock, stock_sizes
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, TMN
from tests.hardware.modes_cases import ModeCase, numbers, population, random_mode_case, readout, swept_cases

DRIVER = Path(__file__).parent / "netx_driver.py"


def atmn_network(tau=1, steps=4, sizes=(8, 10, 6), out=3, **settings):
    torch.manual_seed(0)
    layers = []
    for inputs, neurons in pairwise(sizes):
        layers += [nn.Linear(inputs, neurons), ATMN(neurons, steps, tau=tau, threshold=0.3, **settings)]
    return Network([*layers, nn.Linear(sizes[-1], out)] if out else layers)


def sample(L=2, B=12, D=8):
    return torch.randn(L, B, D, generator=torch.Generator().manual_seed(1))


# ---- count mode ------------------------------------------------------------------------------------------


def test_counts_are_what_the_trains_add_up_to():
    seen = set()
    for seed in range(72):
        case = random_mode_case(seed, taus=(0.5, 1, 2))
        window = integer.run(case.graph, case.inputs)
        assert not any(window.saturations.values()), case.name
        found = integer.run(as_counts(case.graph), case.inputs)
        for name, number in numbers(case.graph, window).items():
            assert np.array_equal(found.values[name], number), (case.name, name)
            seen |= set(number.reshape(-1).tolist())
        for name, values in window.values.items():
            assert np.array_equal(found.values[name], values), (case.name, name)
    assert set(range(-20, 21)) <= seen


def test_count_mode_refuses_by_name():
    x = sample()
    step = Network([nn.Linear(8, 5), LIF(5, 4, threshold=0.3), nn.Linear(5, 4), ATMN(4, 4, fire_at=0.5)])
    quantized = quantize(extract(step, (8,)), x.numpy().reshape(-1, 8).astype(np.float64), 2)
    with pytest.raises(ExportError) as caught:
        as_counts(quantized.graph)
    first, second = caught.value.refusals
    assert first.startswith("lif1: only an ATMN's train is one number")
    assert second.startswith("atmn1: fires at another level than a spike takes away")
    deep = quantize(extract(atmn_network(0.5, 9), (8,)), x.numpy().reshape(-1, 8).astype(np.float64), 2)
    with pytest.raises(ExportError, match="atmn1: 9 steps need too many levels; use fewer steps, or window"):
        as_counts(deep.graph)


# ---- stock LIFs: the same counts -------------------------------------------------------------------------


def cases():
    return [random_mode_case(seed) for seed in range(48)] + swept_cases()


def mismatches(case: ModeCase) -> int:
    """Counts and readouts of the stock LIFs that differ from window mode."""
    window = integer.run(case.graph, case.inputs)
    lifs = as_lifs(as_counts(case.graph))
    run = lifs.model.run(case.inputs)
    expected = numbers(case.graph, window)
    counts = {rails.name: rails.counts(run.spikes[rails.name][:, 0]) for rails in lifs.rails}
    wrong = sum(int((counts[name] != number).sum()) for name, number in expected.items())
    if lifs.readout is not None:
        sums = lifs.readout.sums(counts[lifs.rails[-1].name])
        wrong += int((sums != window.values[lifs.readout.name]).sum())
    assert not any(run.wraps.values())
    return wrong


def test_every_count_is_that_of_window_mode():
    seen, pairs = set(), set()
    for case in cases():
        assert mismatches(case) == 0, case.name
        for name, number in numbers(case.graph, integer.run(case.graph, case.inputs)).items():
            seen |= set(number.reshape(-1).tolist())
            pairs.add((case.graph.steps, case.graph[name].number("decay")))
    assert pairs == {(steps, decay) for steps in range(1, 7) for decay in (UNITY, UNITY // 2)}
    assert set(range(-6, 7)) | {-63, -31, -15, -7, 7, 15, 31, 63} == seen


def test_rails_by_hand():
    """Levels worth 1, 2, 4 of two neurons: 3 = 1 + 2 on rail +, -7 on rail -."""
    rails = Rails("a", 2, (1, 2, 4))
    spikes = np.array([1, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1])
    assert rails.counts(spikes).tolist() == [3, -7]
    assert rails.spread(np.array([[5, -2]])).tolist() == [[5, -2, 10, -4, 20, -8, -5, 2, -10, 4, -20, 8]]
    assert rails.lifs == 12


def test_a_layer_by_hand():
    """h = 2 a + 3, level 8: a >= 2.5, so A = 3; of the other rail -h >= 8, so -a >= 5.5, A = 6.

    The threshold is 0, so the biases are 1 - A: -2 and -5. Lava: 3 - 2 = 1 > 0 spikes, 2 - 2 = 0 does not.
    """
    stage = population("a", INPUT, "value", [[1]], 3, 8, UNITY, shift=1)
    lifs = as_lifs(as_counts(IntegerGraph(1, (1,), (stage,))))
    (layer,) = lifs.model.layers
    assert (layer.weight.tolist(), layer.bias.tolist(), layer.threshold) == ([[1], [-1]], [-2, -5], 0)
    assert (layer.current_decay, layer.voltage_decay) == (UNITY, UNITY)
    spikes = lifs.model.run(np.array([[2], [3], [-5], [-6]])).spikes["a"][:, 0]
    assert spikes.tolist() == [[0, 0], [1, 0], [0, 0], [0, 1]]


def test_levels_with_more_worth_have_several_lifs():
    worth, level = stock.shared(np.array([1, 2, 4, 8, 16]))
    assert worth.tolist() == [1, 2] + [4] * 7
    assert level.tolist() == [0, 1, 2, 3, 3, 4, 4, 4, 4]
    assert stock.lifs_of([1, 2, 4, 8, 16]) == 9


def two_levels(low, high, bias=0):
    """T = 1, sums to 16,129: two neurons at these levels."""
    stage = population("a", INPUT, "value", [[127], [127]], bias, [low, high], UNITY)
    return ModeCase("span", IntegerGraph(1, (1,), (stage,)), np.arange(-127, 128)[:, None])


@pytest.mark.parametrize(("low", "high"), [(1, BIASES), (5000, 4999 + BIASES)])
def test_all_biases_are_used(low, high):
    """A from low to high: 8,192 numbers in a row fit, one more is refused by name."""
    assert mismatches(two_levels(low, high)) == 0
    (layer,) = as_lifs(as_counts(two_levels(low, high).graph)).model.layers
    assert (layer.bias.max(), layer.bias.min()) == (BIAS_MAX, -BIAS_MAX - 1)
    with pytest.raises(ExportError, match="a: levels and bias span 8193 of 8192 sums"):
        as_lifs(as_counts(two_levels(low, high + 1).graph))


def test_a_bias_can_lift_so_far():
    """A = 1 - bias of rail +: at a threshold of 0, -4094 is the last one."""
    assert mismatches(two_levels(1, 1, HIGHEST - 2)) == 0
    with pytest.raises(ExportError, match="a: levels and bias span 8193 of 8192"):
        as_lifs(as_counts(two_levels(1, 1, HIGHEST - 1).graph))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((population("a", INPUT, "value", [[0]], 3, 8, UNITY),), "a: all its weights are zero"),
        ((population("a", INPUT, "value", [[127] * 9], 0, 8, UNITY),), "a: sums reach 145161 of 131071"),
        (
            (
                population("a", INPUT, "value", [[1]], 0, 8, UNITY // 2),
                population("b", "a", "power", [[32]], 0, 8, UNITY),
            ),
            "b: weights times worth reach 128 of 127",
        ),
        (
            (
                population("a", INPUT, "value", [[1]], 0, 8, UNITY),
                population("b", INPUT, "value", [[1]], 0, 8, UNITY),
            ),
            "b: takes input; a chain takes a alone",
        ),
        ((readout("out", INPUT, "value", [[1]], [0]),), "out: a sum has no form in stock LIFs"),
    ],
)
def test_integers_that_do_not_fit(stages, message):
    width = stages[0].synapses[0].weight.shape[1]
    with pytest.raises(ExportError, match=message):
        as_lifs(as_counts(IntegerGraph(3, (width,), stages)))


# ---- mutants ---------------------------------------------------------------------------------------------

NEEDED, COUNTS, SPREAD, LAYER = stock.needed, Rails.counts, Rails.spread, stock._layer


def with_layer(change):
    def layer(*args):
        made, complaint = LAYER(*args)
        return change(made), complaint

    return layer


def turned(array, axis=-1):
    return np.concatenate(np.split(array, 2, axis=axis)[::-1], axis=axis)


MUTANTS = {
    "> for >=": (stock, "needed", lambda *args: NEEDED(*args) + 1),
    "fires one below its level": (stock, "needed", lambda *args: NEEDED(*args) - 1),
    "bias off by one": (stock, "_layer", with_layer(lambda made: replace(made, bias=made.bias + 1))),
    "threshold off by one": (
        stock,
        "_layer",
        with_layer(lambda made: replace(made, threshold=made.threshold + 1)),
    ),
    "one bias for both rails": (stock, "needed", lambda *args: np.stack([NEEDED(*args)[0]] * 2)),
    "biases of the other rail": (stock, "needed", lambda *args: NEEDED(*args)[::-1]),
    "the shift rounds down": (
        stock,
        "needed",
        lambda stage, synapse, levels: NEEDED(stage, synapse, levels - (1 << synapse.shift) + 1),
    ),
    "rails swapped where they are sent": (
        stock,
        "_layer",
        with_layer(lambda made: replace(made, weight=turned(made.weight, 0))),
    ),
    "rails swapped where they arrive": (Rails, "spread", lambda self, weight: turned(SPREAD(self, weight))),
    "rail - adds": (
        Rails,
        "spread",
        lambda self, weight: np.concatenate([np.split(SPREAD(self, weight), 2, axis=-1)[0]] * 2, axis=-1),
    ),
    "worth 1 in the weights": (
        Rails,
        "spread",
        lambda self, weight: SPREAD(replace(self, worth=(1,) * len(self.worth)), weight),
    ),
    "worth 1 in the counts": (
        Rails,
        "counts",
        lambda self, spikes: COUNTS(replace(self, worth=(1,) * len(self.worth)), spikes),
    ),
    "worth doubled": (
        Rails,
        "spread",
        lambda self, weight: SPREAD(replace(self, worth=tuple(2 * w for w in self.worth)), weight),
    ),
    "[level, rail, neuron]": (
        Rails,
        "counts",
        lambda self, spikes: COUNTS(
            self,
            np.swapaxes(spikes.reshape(len(spikes), len(self.worth), 2, -1), 1, 2).reshape(spikes.shape),
        ),
    ),
    "the current lasts": (stock, "_layer", with_layer(lambda made: replace(made, current_decay=UNITY - 400))),
    "the voltage lasts": (stock, "_layer", with_layer(lambda made: replace(made, voltage_decay=UNITY - 400))),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, monkeypatch):
    where, attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(where, attribute, mutant)
    for case in cases():
        try:
            if mismatches(case):
                return
        except (AssertionError, ExportError):  # what does not fit proves nothing
            continue
    pytest.fail(f"no case notices the mutant {name!r}")


# ---- a network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6])
def test_a_network_gives_the_counts_of_its_window_integers(tau, steps, tmp_path):
    network, x = atmn_network(tau, steps), sample()
    reals = np.ascontiguousarray(np.moveaxis(x.double().numpy(), 1, 0)).reshape(-1, 8)
    quantized, lifs = quantize_stock(extract_stock(network, (8,)), reals, 2, 8, lambda q: -q.graph.input_max)
    window = integer.run(quantized.graph, quantized.inputs)
    assert not any(window.saturations.values())
    net = write_stock(tmp_path / "a.net", lifs, quantized.inputs, {"units": {}})
    for name, number in numbers(quantized.graph, window).items():
        assert np.array_equal(net.counts()[name], number)
        assert np.count_nonzero(number) > number.size / 20
    assert np.array_equal(net.sums(), window.values["linear3"])
    # the same LIFs on inputs that set no scale
    other = np.random.default_rng(0).integers(
        -quantized.graph.input_max, quantized.graph.input_max + 1, (50, 8)
    )
    window = integer.run(quantized.graph, other)
    found = net.counts(lifs.model.run(other))
    for name, number in numbers(quantized.graph, window).items():
        assert np.array_equal(found[name], number)


def test_the_integers_are_near_the_floats(tmp_path):
    for tau, steps in ((1, 4), (2, 3)):
        net = export(atmn_network(tau, steps), sample(), tmp_path / "a.net", mode="stock-lif")
        assert isinstance(net, StockNet)
        for row in net.header["drift"]["layers"]:
            assert row["float_spikes"] > 20
            assert row["end_to_end"] < 0.02
        error = net.header["drift"]["output"]
        assert error["rms_error"] < 0.25 * error["rms"]


def test_a_file_is_read_back(tmp_path):
    x = sample()
    for out in (3, 0):
        path = tmp_path / f"{out}.net"
        written = export(atmn_network(out=out), x, path, mode="stock-lif")
        found = read_stock(path)
        assert np.array_equal(found.inputs, written.inputs)
        assert found.lifs.rails == written.lifs.rails
        assert found.text() == written.text()
        assert found.price() == written.price() == price_of(path) == price_of(written)
        assert found.header["price"] == found.price().to_dict()
        for name, counts in written.counts().items():
            assert np.array_equal(found.counts()[name], counts)
        for ours, theirs in zip(found.model.layers, read_netx(path).layers, strict=True):
            assert np.array_equal(ours.weight, theirs.weight)
        if out:
            network = atmn_network()
            assert np.array_equal(found.outputs(), written.outputs())
            exact = network(x).detach().numpy().swapaxes(0, 1).reshape(-1, 3)
            assert np.mean(found.outputs().argmax(1) == exact.argmax(1)) > 0.8
        else:
            with pytest.raises(FileError, match="ends with neurons, not with a readout"):
                found.outputs()


def test_images_are_written_out(tmp_path):
    """A convolution becomes a matrix; the counts are those of its window integers."""
    torch.manual_seed(0)
    network = Network([
        nn.Conv2d(1, 2, 3, stride=2, padding=1), ATMN(2, 2, tau=1, threshold=0.3, feature_dim=-3),
        nn.Flatten(), nn.Linear(18, 4), ATMN(4, 2, tau=1, threshold=0.3),
    ])  # fmt: skip
    x = torch.rand(1, 10, 1, 6, 6)
    graph = extract_stock(network, (1, 6, 6))
    quantized, lifs = quantize_stock(graph, x.double().numpy().reshape(10, 36), 1, 8, lambda q: 0)
    expected = numbers(quantized.graph, integer.run(quantized.graph, quantized.inputs))
    net = write_stock(tmp_path / "a.net", lifs, quantized.inputs, {})
    assert all(np.array_equal(net.counts()[name], expected[name]) for name in expected)
    assert all(number.any() for number in expected.values())
    assert [layer.weight.shape for layer in net.model.layers] == [(2 * 2 * 18, 36), (2 * 2 * 4, 72)]


def test_quantized_networks_are_taken(tmp_path):
    x = sample()
    plain = export(atmn_network(), x, tmp_path / "a.net", mode="stock-lif", bits=5)
    trained = export(
        QuantizedNetwork(atmn_network(), x, bits=5), x, tmp_path / "b.net", mode="stock-lif", bits=5
    )
    assert np.array_equal(plain.sums(), trained.sums())
    assert max(np.abs(layer.weight).max() for layer in plain.model.layers) <= 15


# ---- refusals --------------------------------------------------------------------------------------------


def chain(*middle):
    return [nn.Linear(8, 6), *middle, nn.Linear(6, 3), ATMN(3, 4, tau=1)]


REFUSED = {
    "tau": (lambda: Network(chain(ATMN(6, 4, tau=0.5))), "atmn1: tau = 0.5; its spikes are the digits"),
    "fire_at": (lambda: Network(chain(ATMN(6, 4, tau=1, fire_at=0.7))), "atmn1: fire_at = 0.7; .* sign"),
    "TMN": (lambda: Network(chain(TMN(6, 4))), "tmn1: fire_at = 0.5"),
    "LIF": (lambda: Network(chain(LIF(6, 4))), 'lif1: LIF takes a current .* export it to target "netx"'),
    "gate": (lambda: Network([GatedLinear(8, 6), ATMN(6, 4, tau=1)]), "GatedLinear has no form in stock"),
    "norm": (
        lambda: Network([nn.Linear(8, 6), nn.LayerNorm(6), ATMN(6, 4, tau=1)]),
        "LayerNorm has no form in stock LIFs; use count mode",
    ),
    "skip": (
        lambda: Network(
            {"a": nn.Linear(8, 6), "s": ATMN(6, 4, tau=1), "b": nn.Linear(6, 6), "t": ATMN(6, 4, tau=1)},
            skips={"t": "a"},
        ),
        "t: a skip from a; a netx file is a chain",
    ),
    "no Linear": (lambda: Network([ATMN(8, 4, tau=1), nn.Linear(8, 3)]), "atmn1: stands on input directly"),
    "neuron behind neuron": (
        lambda: Network(chain(ATMN(6, 4, tau=1), ATMN(6, 4, tau=1))),
        "atmn2: stands on atmn1 directly; put a Linear before it",
    ),
    "another tau": (lambda: Network(chain(ATMN(6, 4, tau=3))), "atmn1: tau = 3; a chip can shift only"),
    "too large": (
        lambda: Network([nn.Linear(8, 200), ATMN(200, 6, tau=1), nn.Linear(200, 200), ATMN(200, 6, tau=1)]),
        rf"atmn2: takes 2,400 LIFs and 5,760,000 synapses, .* 5,779,200 of at most {LARGEST_SYNAPSES:,}"
        r' \(2 K LIFs a neuron, 4 K\^2 synapses a weight, .*; use fewer steps or neurons, or mode="count"',
    ),
    "too many steps": (
        lambda: Network([nn.Linear(8, 6), ATMN(6, 22, tau=2), nn.Linear(6, 2)]),
        "atmn1: takes 12,582,924 LIFs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path):
    build, message = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(ExportError, match=message) as caught:
        export(build(), sample(), tmp_path / "a.net", mode="stock-lif")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.net").exists()


def test_too_many_inputs_leave_the_weights_too_few_bits(tmp_path):
    torch.manual_seed(0)
    network = Network([nn.Linear(4000, 3), ATMN(3, 2, tau=1, threshold=0.3)])
    message = (
        "atmn1: the worst case of 3 of its channels fits 17-bit sums, 13-bit biases and 8-bit weights of"
    )
    with pytest.raises(ExportError, match=message):
        export(network, torch.randn(1, 4, 4000), tmp_path / "a.net", mode="stock-lif")


def test_all_refusals_at_once(tmp_path):
    network = Network(
        {
            "a": nn.Linear(8, 6), "digits": ATMN(6, 4, tau=0.5), "b": nn.Linear(6, 6), "rate": LIF(6, 4),
            "c": nn.Linear(6, 6), "odd": ATMN(6, 4, tau=0.7, fire_at=0.5),
        },
        skips={"odd": "a"},
    )  # fmt: skip
    with pytest.raises(ExportError) as caught:
        export(network, sample(), tmp_path / "a.net", mode="stock-lif")
    told = [reason.split(":")[0] for reason in caught.value.refusals]
    assert told == ["odd", "digits", "rate", "odd"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "burst"}, "mode 'burst'; known: .*stock-lif"),
        ({"target": "netx", "mode": "count"}, "target \"netx\" has no mode 'count'"),
        ({"target": "nir", "mode": "stock-lif"}, "target \"nir\" has no mode 'stock-lif'"),
        ({"target": "netx", "bits": 4}, 'target "netx" takes no bits'),
        ({"mode": "stock-lif", "allow": ("x",)}, 'allow is of target "nir"'),
        ({"mode": "stock-lif", "bits": 9}, "weights take 4 to 8 bits"),
    ],
)
def test_settings_that_do_not_go_together(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export(atmn_network(), sample(), tmp_path / "a", **settings)


def test_files_that_are_others(tmp_path):
    path = tmp_path / "a.net"
    written = export(atmn_network(), sample(), path, mode="stock-lif")
    write_model(tmp_path / "b.net", written.model, written.inputs, written.golden)
    with pytest.raises(FileError, match=r'b\.net: was not exported in the mode "stock-lif"'):
        read_stock(tmp_path / "b.net")

    def edited(change):
        values = {key: value for key, value in written.header.items() if key not in ("price",)}
        change(values)
        arrays = {"readout_weight": written.lifs.readout.weight, "readout_bias": written.lifs.readout.bias}
        write_model(path, written.model, written.inputs, written.golden, values, arrays)
        read_stock(path)

    edited(lambda values: None)
    for change, message in (
        (lambda values: values.pop("rails"), "header is damaged"),
        (lambda values: values["rails"].pop(), "header does not fit its layers"),
        (lambda values: values.update(readout={"name": "out", "shift": -1}), "header does not fit its"),
        (lambda values: values.update(readout={"name": "out", "shift": 0}), "readout does not fit"),
        (lambda values: values.update(drift=3), "header is damaged"),
    ):
        written = export(atmn_network(), sample(), path, mode="stock-lif")
        with pytest.raises(FileError, match=message):
            edited(change)


# ---- prices ----------------------------------------------------------------------------------------------


def test_prices_by_hand(tmp_path):
    """Two inputs, one neuron with T = 2 that fires at 3, one readout; (3, 0) and (3, 3) count 1 and 2.

    window      3 inputs and 3 spikes in two tokens; 3 inputs meet a weight, 3 spikes meet one
    count       3 inputs and 2 events; the events are multiplied as well
    stock-lif   4 LIFs, 8 synapses: 3 inputs meet 4 weights each, 3 spikes meet the host's readout
    """
    neuron = population("a", INPUT, "value", [[1, 1]], 0, 3, UNITY)
    graph = IntegerGraph(2, (2,), (neuron, readout("out", "a", "sum", [[5]], [0])))
    inputs = np.array([[3, 0], [3, 3]])
    window = price_of_run(graph, inputs, integer.run(graph, inputs), "window")
    counting = as_counts(graph)
    count = price_of_run(counting, inputs, integer.run(counting, inputs), "count")
    net = write_stock(tmp_path / "a.net", as_lifs(counting), inputs, {})
    lif = net.price()

    def told(price):
        return (
            price.mode, price.steps_per_token, price.latency_steps, price.neurons, price.synapses,
            price.events_per_token, price.ac_per_token, price.mac_per_token, price.mul_per_token,
        )  # fmt: skip

    # window: sent at step 1, the neuron opens at 2, its last spike of step 3 is summed at 4
    assert told(window) == ("window", 2, 3, 2, 3, 3.0, 1.5, 1.5, 0.0)
    assert told(count) == ("count", 1, 2, 2, 3, 2.5, 0.0, 2.5, 0.0)
    assert told(lif) == ("stock-lif", 1, 1, 4, 8, 3.0, 1.5, 6.0, 0.0)
    # per neuron and step 2 in window mode; 2 comparisons; 4 comparisons and 4 biases
    assert (window.add_per_token, count.add_per_token, lif.add_per_token) == (4.0, 2.0, 8.0)
    assert operations_of(net.lifs, inputs, net.golden).total.baseline_mac == 2 * (2 + 1)
    assert lif.text() == (
        "stock-lif: 1 step a token, answers after 1; 4 neurons, 8 synapses; a token costs 3.0 events, "
        "1.5 accumulates, 6.0 multiply-accumulates, 0.0 multiplications and 8.0 additions elsewhere"
    )


def test_a_convolution_s_connections_are_those_within_the_image(tmp_path):
    torch.manual_seed(0)
    network = Network([nn.Conv2d(1, 1, 3, padding=1), ATMN(1, 2, tau=1, threshold=0.3, feature_dim=-3)])
    bundle = export(network, torch.rand(1, 4, 1, 4, 4), tmp_path / "b")
    assert np.count_nonzero(bundle.graph.stages[0].synapses[0].weight) == 9
    assert price_of(bundle).synapses == 4 * 9 + 8 * 6 + 4 * 4  # inside, at the edges, in the corners


@pytest.mark.parametrize("mode", ["window", "count"])
def test_a_bundle_states_its_price(mode, tmp_path):
    bundle = export(atmn_network(), sample(), tmp_path / "b", mode=mode)
    price = price_of(tmp_path / "b")
    assert bundle.report("price") == price.to_dict()
    assert (price.mode, price.steps_per_token) == (mode, {"window": 4, "count": 1}[mode])
    assert (price.neurons, price.ac_per_token > 0) == (19, mode == "window")
    total = bundle.report("counts")["total"]
    assert (price.mac_per_token, price.add_per_token) == (total["mac"] / 24, total["add"] / 24)


def test_stock_lifs_are_placed(tmp_path):
    """By hand: 12 inputs, 2 x 4 LIFs for each of 20 and of 20 neurons; binary spikes on one rail."""
    torch.manual_seed(0)
    layers = [nn.Linear(12, 20), ATMN(20, 4, tau=1.0), nn.Linear(20, 20), ATMN(20, 4, tau=1.0)]
    x = torch.randn(2, 6, 12)
    net = export(Network([*layers, nn.Linear(20, 3)]), x, tmp_path / "a.net", mode="stock-lif")
    placed = net.placement(effort=0)
    assert [(cut.name, cut.cores, cut.neurons) for cut in placed.cuts] == [
        ("atmn1", 1, 160),
        ("atmn2", 1, 160),
    ]
    assert [core.use.synapse_bytes for core in placed.cores] == [160 * 12, 160 * 160]
    assert [core.use.input_axons for core in placed.cores] == [12, 160]
    assert [core.use.output_axons for core in placed.cores] == [160, 0]
    spikes = net.golden.spikes["atmn1"]
    assert placed.hops["atmn1"].messages == pytest.approx(np.count_nonzero(spikes) / len(spikes))
    assert placed.events == "counted"
    assert "Loihi 1, UNVERIFIED profile: 2 of 128 cores, fits" in net.text()
    small = replace(load_profile("loihi1"), neurons_per_core=50)
    assert [cut.cores for cut in net.placement(small, effort=0).cuts] == [4, 4]


def test_the_size_is_known_before(tmp_path):
    """2 K N LIFs, and 4 K K' synapses a weight between two populations."""
    network = atmn_network(2, 4)  # K = 5
    rows = stock_sizes(extract_stock(network, (8,)))
    assert rows == [("atmn1", 100, 800), ("atmn2", 60, 6000)]
    net = export(network, sample(), tmp_path / "a.net", mode="stock-lif")
    assert [layer.weight.size for layer in net.model.layers] == [800, 6000]


# ---- the command line ------------------------------------------------------------------------------------


def test_the_verbs(call, tmp_path):
    network, x = tmp_path / "n.safetensors", tmp_path / "x.npy"
    save_network(atmn_network(), network)
    np.save(x, sample().numpy())
    path = tmp_path / "a.net"
    code, out, _ = call("export", network, "-i", x, "--mode", "stock-lif", "--out", path)
    lines = out.splitlines()
    assert (code, lines[0]) == (0, "takes 128 LIFs and 4,480 synapses of stock Lava, zeros included")
    assert lines[1:3] == [f"file: {path} (24 golden tokens, T = 4)", price_of(path).text()]
    assert lines[-1] == f"next:  marsnn verify {path}"
    assert lines[3] == "placement: Loihi 1, UNVERIFIED profile: 2 of 128 cores, fits"
    code, out, _ = call("verify", path, "--simulator", "integer")
    assert (code, out.startswith("0 mismatches of 3072 spike slots")) == (0, True)
    code, out, _ = call("export", network, "-i", x, "--mode", "count", "--out", tmp_path / "b", "--json")
    assert (code, json.loads(out)["price"]) == (0, price_of(tmp_path / "b").to_dict())
    code, _, err = call("export", network, "-i", x, "--target", "netx", "--out", path)
    assert (code, "atmn1: ATMN has no form in netx" in err) == (2, True)


def test_netx_is_a_target(call, tmp_path):
    torch.manual_seed(0)
    network, x = Network([nn.Linear(8, 6), LIF(6, 4, threshold=0.3, reset="zero")]), sample()
    written = export(network, x, tmp_path / "a.net", target="netx")
    assert isinstance(written, NetxExport)
    assert written.golden.spikes["lif1"].any()
    save_network(network, tmp_path / "n.safetensors")
    np.save(tmp_path / "x.npy", x.numpy())
    arguments = ("export", tmp_path / "n.safetensors", "-i", tmp_path / "x.npy", "--target", "netx")
    code, out, _ = call(*arguments, "--out", tmp_path / "b.net")
    assert (code, out.splitlines()[0]) == (0, f"file: {tmp_path / 'b.net'} (24 golden tokens, T = 4)")
    assert out.splitlines()[-2] == "placement: Loihi 1, UNVERIFIED profile: 1 of 128 cores, fits"
    code, out, _ = call(*arguments, "--out", tmp_path / "b.net", "--json")
    assert (code, json.loads(out)["layers"][0]["name"]) == (0, "lif1")
    room = {"profile": "Loihi 1", "cores_used": 1, "fits": True, "refusals": []}
    assert json.loads(out)["placement"] == room
    code, out, _ = call("verify", tmp_path / "b.net", "--simulator", "integer", "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)


def test_netx_refuses_lines_by_name(tmp_path):
    network = Network({"line": nn.Conv1d(1, 2, 3), "lif": LIF(2, 4, reset="zero", feature_dim=-2)})
    with pytest.raises(ExportError, match=r"line: takes tokens \[1, 8\]; netx holds vectors and images"):
        export(network, torch.rand(2, 3, 1, 8), tmp_path / "a.net", target="netx")


# ---- Lava ------------------------------------------------------------------------------------------------


@pytest.mark.lava
@pytest.mark.xdist_group("lava")
class TestInLava:
    """Stock Lava through lava-dl's own netx; and count mode in our runtime."""

    def test_every_count_comes_from_lava_s_spikes(self, lava_python, tmp_path):
        tried = [random_mode_case(seed) for seed in range(8, 18)] + swept_cases()[3:6] + swept_cases()[-2:]
        made = {}
        for case in tried:
            lifs = made[case.name] = as_lifs(as_counts(case.graph))
            write_model(tmp_path / f"{case.name}.net", lifs.model, case.inputs, lifs.model.run(case.inputs))
        subprocess.run([lava_python, "-B", DRIVER, RUNTIME, tmp_path], check=True, capture_output=True)
        compared = 0
        for case in tried:
            expected = numbers(case.graph, integer.run(case.graph, case.inputs))
            with np.load(tmp_path / f"{case.name}.net.npz") as file:
                for index, rails in enumerate(made[case.name].rails):
                    sent = file[str(index)][1 + index : 1 + index + len(case.inputs)]
                    assert np.array_equal(rails.counts(sent), expected[rails.name]), (case.name, rails.name)
                    compared += expected[rails.name].size
        assert compared > 4000

    @pytest.mark.parametrize(("tau", "steps"), [(1, 4), (2, 5)])
    def test_a_network(self, tau, steps, warm_lava, tmp_path):
        net = export(atmn_network(tau, steps), sample(), tmp_path / "a.net", mode="stock-lif")
        result = verify_netx(net.path)
        assert result.ok, result.text()
        assert result.positive > 100
        other = np.random.default_rng(0).integers(-net.model.input_max, net.model.input_max + 1, (30, 8))
        assert verify_netx(net.path, other).ok

    def test_an_edited_bias_is_found(self, warm_lava, tmp_path):
        """A sum that just meets a level no longer does."""
        case = swept_cases()[1]
        write_stock(tmp_path / "a.net", as_lifs(as_counts(case.graph)), case.inputs, {})
        with h5py.File(tmp_path / "a.net", "r+") as file:
            file["layer/1/bias"][0] -= 1
        result = verify_netx(tmp_path / "a.net")
        assert not result.ok
        assert result.first.startswith("first: token ")

    def test_count_mode(self, warm_lava, tmp_path):
        for tau in (0.5, 1, 2):
            bundle = export(atmn_network(tau, 3), sample(), tmp_path / f"{tau}", mode="count")
            result = verify(bundle.path)
            assert result.ok, result.text()
            assert (result.slots, result.values, result.sums) == (0, 24 * 16, 24 * 3)
            assert len(np.unique(bundle.golden.values["atmn1"])) > 3
