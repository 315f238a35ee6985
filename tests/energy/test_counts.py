"""Counts: by hand on tiny nets, to the unit against neurobench, and alike however a network is run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from marsnn import ATMN, LIF, Network, simulate
from marsnn.energy import LayerCounts, count
from marsnn.errors import InputError, NonFiniteError, ShapeError
from marsnn.neurons import IntegerLIF, LeakyIntegrator


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    layer.weight.data = torch.tensor(weight)
    if bias is not None:
        layer.bias.data = torch.tensor(bias)
    return layer


def ternary(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


def with_zero_weights(layer: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data *= torch.rand(layer.weight.shape, generator=generator) < 0.6
    return layer


class GradedLIF(LIF):
    """Emits 0, 1 or 2 spikes at once: stands for an integer neuron."""

    levels = (0, 1, 2)

    def step(self, current, state=None):
        v = self.initial_state(current).v if state is None else state.v
        h = self.beta * v + current
        s = h.floor().clamp(0, 2)
        return s, self.State(h - s)


# ---- a Network, by hand ------------------------------------------------------------------------------


def hand_network(unrolled: bool = False) -> Network:
    """2 inputs -> 3 ATMN -> 2 LIF -> 1 output, with a skip from the input to the second linear map."""
    return Network(
        {
            "fc1": linear([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.0, 0.0, 0.0]),
            "atmn": ATMN(3, steps=2, tau=0.5),
            "pick": linear([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
            "fc2": linear([[1.0, 0.5], [0.0, 2.0]], [0.0, 0.0]),
            "lif": LIF(2, beta=0.5, steps=2),
            "fc3": linear([[1.0, 1.0]]),
        },
        skips={"fc2": "input"},
        unrolled=unrolled,
    )


def test_static_input_and_atmn_by_hand():
    # x = (1.25, 0): one token. fc1 gives I = (1.25, 0, 1.25).
    counts = count(hand_network(), torch.tensor([[[1.25, 0.0]]]))
    assert (counts.tokens, counts.steps) == (1, 2)
    fc1 = counts.layers["fc1"]
    # 1.25 is graded: it meets the weights 1, 0, 1 -> 2 MAC; 6 weights -> 6 dense; 3 biases.
    assert (fc1.mac, fc1.ac, fc1.dense_mac, fc1.dense_ac, fc1.add, fc1.baseline_mac) == (2, 0, 6, 0, 3, 6)
    # h[0] = 1.25 >= 1 fires, u = 0.25; h[1] = 0.25 / 0.5 = 0.5 does not. Neurons 0 and 2 fire once each.
    atmn = counts.layers["atmn"]
    assert atmn.spikes == 2
    # Neurons 0 and 2 are active at both steps, neuron 1 idles at both.
    assert (atmn.neuron_updates_active, atmn.neuron_updates_idle) == (4, 2)
    # tau = 1/2 is a shift: 2 additions and no multiplication for each of the 6 updates.
    assert (atmn.mul, atmn.add) == (0, 12)


def test_a_spike_train_is_accumulated_though_its_spikes_are_scaled():
    # threshold 0.75, tau = 0.5: what travels is 0.75 * 0.5^t s[t], never in {-1, 0, 1}.
    network = Network(
        {"atmn": ATMN(2, steps=2, tau=0.5, threshold=0.75), "fc": linear([[1.0, 1.0], [2.0, 0.0]])}
    )
    # I = (1.125, -0.75): h = 1.125 fires +1, u = 0.375, h[1] = 0.75 fires +1; h = -0.75 fires -1, then 0.
    fc = count(network, torch.tensor([[[1.125, -0.75]]])).layers["fc"]
    # 2 spikes of neuron 0 meet 2 non-zero weights each, 1 spike of neuron 1 meets 1: 5 AC.
    # Signs do not cancel. Dense: T = 2 times 4 weights. Dense twin: 4 weights once.
    assert (fc.ac, fc.mac, fc.dense_ac, fc.dense_mac, fc.baseline_mac) == (5, 0, 8, 0, 4)


def test_skip_pooling_lif_and_readout_by_hand():
    counts = count(hand_network(), torch.tensor([[[1.25, 0.0]]]))
    # pick: one spike (step 0) of neuron 0 and one of neuron 2; their columns hold 1 and 0 non-zeros.
    assert counts.layers["pick"].ac == 1
    assert counts.layers["pick"].dense_ac == 2 * 6
    # fc2 receives `pick` (a map of spikes: graded, every step) and the input (static, once a token).
    # pick's outputs: (1 scaled spike, 0) at t = 0, zero at t = 1 -> meets 1 non-zero weight.
    # input: (1.25, 0) meets 1 non-zero weight. Dense: 2 steps * 4 + 4. Biases 2, once a token.
    fc2 = counts.layers["fc2"]
    assert (fc2.mac, fc2.ac, fc2.dense_mac, fc2.add, fc2.baseline_mac) == (2, 0, 12, 2, 4)
    # LIF: currents at t = 0: pick's (T V tau^0 s = 2) + 1.25 = 3.25 -> fires, v = 2.25;
    # t = 1: 1.125 + 1.25 = 2.375 fires. Neuron 1 receives 0 * 1.25 = 0: idle. 1 mul, 3 add an update.
    lif = counts.layers["lif"]
    assert (lif.spikes, lif.neuron_updates_active, lif.neuron_updates_idle) == (2, 2, 2)
    assert (lif.mul, lif.add) == (4, 12)
    # fc3: 2 spikes meet 1 weight each; no bias.
    assert (counts.layers["fc3"].ac, counts.layers["fc3"].add) == (2, 0)
    # Bytes of fc3, float32: T 2 spikes read, 2 weights, 1 output.
    assert counts.layers["fc3"].bytes_moved == 4 * (4 + 2 + 1)
    total = counts.total
    assert (total.mac, total.ac) == (4, 3)
    assert total.baseline_mac == 6 + 6 + 4 + 2


def test_ternary_static_input_is_accumulated_once_a_token():
    network = Network({"fc": linear([[1.0, 2.0]]), "lif": LIF(1, steps=4)})
    fc = count(network, torch.tensor([[[1.0, -1.0]], [[0.0, 1.0]]])).layers["fc"]
    assert (fc.ac, fc.mac, fc.dense_ac, fc.baseline_mac) == (3, 0, 4, 4)


def test_a_train_and_a_static_input_meet_each_by_its_own_rule():
    network = Network(
        {"same": nn.Identity(), "atmn": ATMN(2, steps=2), "fc": linear([[1.0, 1.0]])}, skips={"fc": "input"}
    )
    # ATMN codes (1.0, 0.3) at V = 1: +1 then 0; 0.3 stays silent. 1 spike; the input adds
    # 2 graded values.
    fc = count(network, torch.tensor([[[1.0, 0.3]]])).layers["fc"]
    assert (fc.ac, fc.mac, fc.dense_ac, fc.dense_mac, fc.baseline_mac, fc.add) == (1, 2, 4, 2, 2, 0)


def test_static_skips_are_added_before_the_weights():
    network = Network({"relu": nn.ReLU(), "fc": linear([[1.0, 1.0]])}, skips={"fc": "input", "relu": "input"})
    # relu receives x + x: 2 additions. fc receives relu(2x) + x: 2 additions, then 2 MAC.
    counts = count(network, torch.tensor([[[0.5, 0.3]]]))
    assert counts.layers["relu"].add == 2
    assert (counts.layers["fc"].mac, counts.layers["fc"].add) == (2, 2)


def test_flattened_spikes_stay_spikes_and_pooled_ones_do_not():
    x = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]]).unsqueeze(2)  # [L, B, 1, 2, 2]
    lif = LIF(steps=2, beta=0.0)
    flat = Network({"lif": lif, "flatten": nn.Flatten(), "fc": linear([[1.0, 1.0, 1.0, 1.0]])})
    # beta = 0 forgets: the value 2 fires at both steps.
    fc = count(flat, x).layers["fc"]
    assert (fc.ac, fc.mac) == (2, 0)
    pooled = Network({"lif": lif, "pool": nn.AvgPool2d(2), "flatten": nn.Flatten(), "fc": linear([[1.0]])})
    counts = count(pooled, x)
    assert (counts.layers["fc"].ac, counts.layers["fc"].mac) == (0, 2)
    # a 2 x 2 average, at each of 2 steps: 3 additions and a multiplication
    assert (counts.layers["pool"].add, counts.layers["pool"].mul) == (6, 2)


def test_graded_spikes_are_booked_apart():
    network = Network({"lif": GradedLIF(2, steps=1, beta=0.0), "fc": linear([[1.0, 1.0]])})
    fc = count(network, torch.tensor([[[2.0, 1.0]]])).layers["fc"]
    assert (fc.graded_ac, fc.dense_graded_ac, fc.ac, fc.mac, fc.baseline_mac) == (2, 2, 0, 0, 2)


def test_both_readings_of_integer_spikes():
    """h = 2.3, .4, 9 -> 2, 0, 4: two graded accumulates a weight, or 2 + 4 plain ones once unfolded."""
    neuron = IntegerLIF(3, steps=1, beta=0.0, max_level=4)
    x = torch.tensor([[[2.3, 0.4, 9.0]]])
    fc = linear([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    folded = count(Network({"own": neuron, "fc": fc}), x).layers["fc"]
    assert (folded.graded_ac, folded.ac) == (3, 0)  # 2 meets both rows, 4 only the first
    unfolded = neuron.unfold(neuron.encode(x[0])).flatten(0, 1)  # [T D, B, N], in {0, 1}
    plain = count(fc, unfolded).layers["Linear"]
    assert (plain.graded_ac, plain.ac) == (0, 2 * 2 + 4)


def test_a_readout_membrane_is_not_a_spike():
    network = Network({"li": LeakyIntegrator(2, steps=2), "fc": linear([[1.0, 1.0]])})
    counts = count(network, torch.tensor([[[0.5, 0.0]]]))
    assert counts.layers["li"].spikes == 0
    assert (counts.layers["fc"].mac, counts.layers["fc"].ac) == (2, 0)  # one value, both steps
    # nor where it happens to be 1
    network = Network({"li": LeakyIntegrator(2, steps=2, beta=0.0), "fc": linear([[1.0, 1.0]])})
    fc = count(network, torch.tensor([[[1.0, 0.0]]])).layers["fc"]
    assert (fc.mac, fc.ac) == (2, 0)


def test_membrane_carried_across_tokens_is_active():
    # Token 0 leaves v = 0.25 behind, token 1 brings nothing: active with carry, idle without.
    x = torch.tensor([[[0.25]], [[0.0]]])
    for carry, active in (("sequence", 2), ("token", 1)):
        lif = count(Network({"lif": LIF(1, steps=1, beta=0.5, carry=carry)}), x).layers["lif"]
        assert (lif.neuron_updates_active, lif.neuron_updates_idle) == (active, 2 - active)


def test_the_decay_to_an_exact_zero_is_still_an_update():
    # beta = 0: at token 1 the membrane falls from 0.25 to 0, which is work.
    x = torch.tensor([[[0.25]], [[0.0]], [[0.0]]])
    lif = count(Network({"lif": LIF(1, steps=1, beta=0.0, carry="sequence")}), x).layers["lif"]
    assert (lif.neuron_updates_active, lif.neuron_updates_idle) == (2, 1)


def test_an_update_that_only_forgets_is_active():
    # ATMN sends one spike at t = 0, worth 3 * 0.25 to a LIF: 0.75 leaves v = 0.75, which beta = 0 clears at
    # t = 1 (active); at t = 2 nothing is left (idle).
    network = Network({"atmn": ATMN(1, steps=3, threshold=0.25), "lif": LIF(1, steps=3, beta=0.0)})
    lif = count(network, torch.tensor([[[0.25]]])).layers["lif"]
    assert (lif.spikes, lif.neuron_updates_active, lif.neuron_updates_idle) == (0, 2, 1)


def test_scaling_that_is_no_shift_is_listed():
    for tau, listed in ((0.5, False), (2.0, False), (0.7, True)):
        network = Network({"atmn": ATMN(2, steps=3, tau=tau), "fc": linear([[1.0, 1.0]])})
        unattributed = count(network, torch.ones(1, 1, 2)).unattributed
        assert any("decode weights" in name for name in unattributed) is listed


def random_network(unrolled: bool, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    layers = [
        with_zero_weights(nn.Linear(6, 8)),
        ATMN(8, threshold=0.3),
        nn.Linear(8, 8),
        LIF(8),
        nn.Dropout(0.5),
        nn.Linear(8, 5),
        nn.LayerNorm(5),
        nn.ReLU(),
        nn.Linear(5, 4),
        LIF(4, carry="sequence"),
        nn.Linear(4, 3),
        nn.Linear(3, 2),
    ]
    return Network(layers, skips={"linear3": "atmn1", "lif1": "linear1"}, unrolled=unrolled)


@pytest.mark.parametrize("seed", range(3))
def test_unrolled_and_one_matmul_runs_count_alike(seed):
    x = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(seed))
    rolled, unrolled = random_network(False, seed), random_network(True, seed)
    assert count(rolled, x) == count(unrolled, x)
    assert unrolled.unrolled
    assert not rolled.unrolled


def test_rounding_does_not_tell_the_two_runs_apart():
    # In bfloat16 the T matmuls and the one round apart by enough to flip spikes; the counts stay equal.
    layers = {"atmn": ATMN(6), "fc1": nn.Linear(6, 8), "next": ATMN(8, threshold=0.1), "fc2": nn.Linear(8, 2)}
    x = torch.randn(50, 2, 6).bfloat16()
    rolled, unrolled = (Network(layers, unrolled=way).bfloat16() for way in (False, True))
    spikes = [simulate(network, x).spikes["next"] for network in (rolled, unrolled)]
    assert (spikes[0] != spikes[1]).any()
    assert count(rolled, x) == count(unrolled, x)


def test_accumulates_are_the_spikes_of_the_simulation_times_their_fan_out():
    network = random_network(unrolled=True)
    x = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(3))
    spikes = simulate(network, x).spikes["atmn1"]  # [L, T, B, N], an independent run
    fan_out = (network["linear2"].weight != 0).sum(0).numpy()
    counts = count(network, x)
    assert counts.layers["linear2"].ac == int(((spikes != 0) * fan_out).sum()) > 0
    assert counts.layers["atmn1"].spikes == int((spikes != 0).sum())
    assert counts.layers["lif1"].neuron_updates == 5 * 4 * 2 * 8


def test_layers_of_the_token_clock_are_audited_under_their_name():
    class Gate(nn.Module):
        clock = "token"

        def __init__(self) -> None:
            super().__init__()
            self.inner = linear([[1.0, 1.0]])

        def forward(self, x):
            return self.inner(x) * x

    network = Network({"gate": Gate(), "lif": LIF(2, steps=3)})
    counts = count(network, torch.tensor([[[0.5, 0.25]]]))
    assert set(counts.layers) == {"gate", "lif"}
    assert (counts.layers["gate"].mac, counts.layers["gate"].mul) == (2, 2)


def test_a_network_inside_a_module_is_still_counted_from_its_spikes():
    class Wrapped(nn.Module):
        def __init__(self, network) -> None:
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x) + 1

    network = random_network(False)
    x = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(1))
    alone, inside = count(network, x), count(Wrapped(network), x)
    for name, layer in alone.layers.items():
        assert inside.layers[f"network.{name}"] == layer
    assert inside.total.ac == alone.total.ac > 0
    assert inside.layers["Wrapped"].add == 3 * 2 * 2


# ---- any module --------------------------------------------------------------------------------------


def test_linear_by_hand():
    # inputs (1, 0, -1) against rows (1, 2, 3) and (0, 1, 1): 2 + 1 effective of 6; +1 and -1 do not cancel.
    layer = linear([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]], [0.5, 0.5])
    counts = count(layer, torch.tensor([[1.0, 0.0, -1.0]]))
    assert counts.layers["Linear"] == LayerCounts(
        ac=3, dense_ac=6, add=2, baseline_mac=6, bytes_moved=4 * (3 + 6 + 2 + 2)
    )


def test_signed_inputs_count_as_two():
    assert count(linear([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])).total.ac == 2


def neurobench_synapses(module: nn.Module, x: Tensor) -> dict[str, float]:
    """SynapticOperations of neurobench, on the layers it knows, as totals over the batch."""
    from neurobench.hooks.layer import LayerHook
    from neurobench.metrics.workload import SynapticOperations

    hooks = [LayerHook(m) for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    module.eval()
    with torch.no_grad():
        preds = module(x)
        result = SynapticOperations()(SimpleNamespace(connection_hooks=hooks), preds, (x, None))
    for hook in hooks:
        hook.close()
    return {name: value * len(x) for name, value in result.items()}


class Sign(nn.Module):
    def forward(self, x):
        return x.sign() * (x.abs() > 0.3)


def neurobench_cases():
    torch.manual_seed(4)
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
    convs = nn.Sequential(
        conv, Sign(), nn.Conv2d(4, 3, 2, dilation=2), Sign(), nn.Flatten(), nn.Linear(27, 5)
    )
    return {
        "linear": (with_zero_weights(nn.Linear(7, 5)), ternary(6, 7)),
        "graded": (with_zero_weights(nn.Linear(7, 5)), torch.randn(6, 7).relu()),
        "integers": (nn.Linear(7, 5), 2 * ternary(6, 7)),
        "mlp": (
            nn.Sequential(nn.Linear(7, 9), Sign(), with_zero_weights(nn.Linear(9, 4))),
            torch.randn(6, 7),
        ),
        "conv": (with_zero_weights(nn.Conv2d(2, 3, 3, padding=1)), ternary(3, 2, 6, 5)),
        "convs": (convs, ternary(3, 2, 10, 10)),
        "silent": (nn.Linear(7, 5), torch.zeros(2, 7)),
    }


@pytest.mark.parametrize("case", neurobench_cases())
def test_equal_to_neurobench_to_the_unit(case):
    module, x = neurobench_cases()[case]
    theirs, ours = neurobench_synapses(module, x), count(module, x).total
    assert theirs["Dense"] > 0
    assert ours.ac == round(theirs["Effective_ACs"])
    assert ours.mac == round(theirs["Effective_MACs"])
    assert ours.dense_mac + ours.dense_ac == round(theirs["Dense"])
    assert ours.baseline_mac == ours.dense_mac + ours.dense_ac


def neurobench_network(case: str) -> Network:
    """Linear maps and convolutions between ternary and binary trains, with skips, zero weights and biases."""
    torch.manual_seed(6)
    quarter = {"steps": 4, "tau": 1.0, "threshold": 0.25}  # T V tau^t = 1: its spikes travel as -1, 0, 1
    if case == "plain":
        return Network(
            {
                "fc1": with_zero_weights(nn.Linear(12, 9)),
                "atmn": ATMN(9, **quarter),
                "fc2": with_zero_weights(nn.Linear(9, 8, bias=False)),
                "lif": LIF(8, steps=4, carry="sequence"),
                "fc3": nn.Linear(8, 3),
            },
            unrolled=True,
        )
    if case == "convolutions":
        return Network(
            {
                "conv1": with_zero_weights(nn.Conv2d(2, 4, 3, padding=1, groups=2)),
                "atmn1": ATMN(4, feature_dim=-3, **quarter),
                "conv2": with_zero_weights(nn.Conv2d(4, 3, 2, stride=2, dilation=2)),
                "atmn2": ATMN(3, feature_dim=-3, **quarter),
                "flatten": nn.Flatten(),
                "fc": nn.Linear(12, 5),
            },
            unrolled=True,
        )
    return Network(
        {
            "fc1": with_zero_weights(nn.Linear(6, 8)),
            "atmn1": ATMN(8, steps=3, tau=0.5, threshold=0.3),
            "fc2": with_zero_weights(nn.Linear(8, 8)),
            "atmn2": ATMN(8, steps=3, tau=2.0, threshold=0.2),
            "fc3": with_zero_weights(nn.Linear(8, 6)),
            "lif": LIF(6, steps=3, threshold=0.7),
            "fc4": nn.Linear(6, 4),
        },
        skips={"fc3": "atmn1", "fc4": "input"},
    )


@pytest.mark.parametrize(("case", "shape"), [("plain", (12,)), ("convolutions", (2, 6, 6))])
@pytest.mark.parametrize("signed", [False, True])
def test_a_whole_network_run_is_equal_to_neurobench_to_the_unit(case, shape, signed):
    """neurobench hooks the very run of the Network, every micro-step of which meets the weights."""
    x = ternary(5, 2, *shape) if signed else 2 * torch.randn(5, 2, *shape)
    network = neurobench_network(case)
    theirs, ours = neurobench_synapses(network, x), count(network, x).total
    assert min(ours.spikes, ours.ac, theirs["Dense"]) > 0
    assert (ours.mac == 0) is signed  # a ternary input is accumulated, a real-valued one multiplied
    assert ours.ac == round(theirs["Effective_ACs"])
    assert ours.mac == round(theirs["Effective_MACs"])
    assert ours.dense_ac + ours.dense_mac == round(theirs["Dense"])
    assert {-1, 1} <= set(simulate(network, x).spikes["atmn" if case == "plain" else "atmn2"].flatten())


def test_every_layer_behind_skips_is_equal_to_neurobench_to_the_unit():
    """neurobench on each layer with the spikes of its senders, step by step, and the input once a token."""
    network, x = neurobench_network("skips"), 2 * torch.randn(5, 2, 6)
    counts, spikes = count(network, x), simulate(network, x).spikes  # [L, T, B, N]
    senders = {"fc1": ["input"], "fc2": ["atmn1"], "fc3": ["atmn2", "atmn1"], "fc4": ["lif", "input"]}
    for name, sources in senders.items():
        ac = mac = dense_ac = dense_mac = 0
        for source in sources:
            if source == "input":
                theirs = neurobench_synapses(network[name], x.flatten(0, 1))
                dense_mac += round(theirs["Dense"])
            else:
                train = torch.from_numpy(spikes[source]).float()
                assert set(train.unique().tolist()) == ({0, 1} if source == "lif" else {-1, 0, 1})
                theirs = neurobench_synapses(network[name], train.flatten(0, 2))
                dense_ac += round(theirs["Dense"])
            ac, mac = ac + round(theirs["Effective_ACs"]), mac + round(theirs["Effective_MACs"])
        layer = counts.layers[name]
        assert (layer.ac, layer.mac) == (ac, mac), name
        assert (layer.dense_ac, layer.dense_mac) == (dense_ac, dense_mac), name


def test_a_conv_with_padding_by_hand():
    # One channel, 3 taps, padding 1, input (1, 0, -1): each spike sits under 2 taps, the third
    # falls outside.
    # Dense: 2 + 3 + 2 taps lie on the input.
    conv = nn.Conv1d(1, 1, 3, padding=1)
    conv.weight.data.fill_(1.0)
    counts = count(conv, torch.tensor([[[1.0, 0.0, -1.0]]]))
    assert (counts.total.ac, counts.total.dense_ac, counts.total.add) == (4, 7, 3)


def test_convolutions_of_a_network_count_as_those_of_a_module():
    torch.manual_seed(5)
    conv = with_zero_weights(nn.Conv2d(2, 4, 3, padding=1, groups=2))
    x = ternary(3, 2, 6, 5)
    alone, static = count(conv, x).total, count(Network({"conv": conv}), x[None]).layers["conv"]
    assert (static.ac, static.dense_ac, static.add) == (alone.ac, alone.dense_ac, alone.add)
    # spikes of T = 3 steps: the sum of the module's counts of each step
    network = Network({"lif": LIF(steps=3), "conv": conv})
    spikes = torch.from_numpy(simulate(network, 2 * x[None]).spikes["lif"]).float()[0]
    steps = [count(conv, step).total for step in spikes]
    counted = count(network, 2 * x[None]).layers["conv"]
    assert counted.ac == sum(step.ac for step in steps) > 0
    assert counted.dense_ac == sum(step.dense_ac for step in steps)
    assert counted.baseline_mac == alone.dense_ac


class Raw(nn.Module):
    """Matmuls without a submodule, in each of the forms that an operator can take."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
        self.child = linear([[1.0, 1.0]])

    def forward(self, x):
        return self.child(torch.exp(x @ self.weight)) + 1


def test_a_raw_matmul_counts_under_the_module_and_the_unknown_is_listed():
    counts = count(Raw(), torch.tensor([[1.0, -1.0, 0.0]]))
    # rows of weight met: (1, 0) and (1, 1): 3 AC of 6. The child's input, exp(.), is graded: 2 MAC.
    assert set(counts.layers) == {"Raw", "child"}
    assert (counts.layers["Raw"].ac, counts.layers["Raw"].dense_ac, counts.layers["Raw"].add) == (3, 6, 1)
    assert (counts.layers["child"].mac, counts.layers["child"].ac) == (2, 0)
    assert counts.unattributed == {"exp": 2}


@pytest.mark.parametrize(
    "form",
    [
        lambda x, w: x @ w,
        lambda x, w: torch.einsum("bi,io->bo", x, w),
        lambda x, w: torch.bmm(x[None], w[None]),
        lambda x, w: (w.t() @ x.t()).t(),
        lambda x, w: torch.stack([torch.mv(w.t(), row) for row in x]),
        lambda x, w: torch.stack([torch.stack([torch.dot(row, c) for c in w.t()]) for row in x]),
        lambda x, w: nn.functional.linear(x, w.t()),
        lambda x, w: nn.functional.conv1d(x[..., None], w.t()[..., None]),
    ],
    ids=["mm", "einsum", "bmm", "weight first", "mv", "dot", "linear", "conv1d"],
)
@pytest.mark.parametrize("graded", [False, True])
def test_every_form_of_a_matmul_counts_alike(form, graded):
    class Form(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # ternary itself: only its being a parameter tells that it is not the activation
            self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [1.0, -1.0], [0.0, 1.0]]))

        def forward(self, x):
            return form(x, self.weight)

    x = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, 1.0]]) * (0.5 if graded else 1.0)
    total = count(Form(), x).total
    found = (total.mac, total.dense_mac) if graded else (total.ac, total.dense_ac)
    assert found == (6, 12)
    assert total.mac + total.ac == 6


def test_without_a_parameter_the_ternary_operand_is_the_activation():
    class Product(nn.Module):
        def forward(self, a, b):
            return a @ b

    graded, spikes = torch.full((2, 2), 0.5), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert count(Product(), (graded, spikes)).total.ac == 4
    assert count(Product(), (spikes, graded)).total.ac == 4
    assert count(Product(), (graded, graded)).total.mac == 8


def test_elementwise_arithmetic_by_hand():
    class Elementwise(nn.Module):
        def forward(self, x):  # [1, 4]
            y = x * x + 1  # 4 mul, 4 add
            y -= x  # 4 add
            y = torch.sub(y, x, alpha=2)  # 4 mul, 4 add
            y = y.sum() + y.mean()  # 3 add; 3 add and 1 mul; 1 add
            z = x**3  # 8 mul
            return y, z / 2, z.view(2, 2).t().contiguous() > 0  # a division, and nothing

    counts = count(Elementwise(), torch.ones(1, 4))
    assert (counts.total.mul, counts.total.add) == (4 + 4 + 1 + 8, 4 + 4 + 4 + 3 + 3 + 1)
    assert counts.unattributed == {"div": 4}
    assert (counts.total.mac, counts.total.ac) == (0, 0)


def test_a_complex_multiplication_is_four_and_two():
    class Rotate(nn.Module):
        def forward(self, x):
            return x * x

    total = count(Rotate(), torch.ones(1, 3, dtype=torch.complex64)).total
    assert (total.mul, total.add) == (12, 6)


def test_fused_kernels_are_opened():
    # Attention of 3 tokens of 4 features in two heads of 2: q, k, v and output projections, 4 * 3 * 16 MAC,
    # scores and values 2 * 3 * 3 * 4. (An odd number of heads is never fused.)
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    counts = count(attention, torch.randn(1, 3, 4))
    assert counts.layers["self_attn"].dense_mac == 4 * 3 * 16 + 2 * 3 * 3 * 4
    assert counts.layers["linear1"].dense_mac == 3 * 4 * 8
    assert counts.layers["norm1"].mul > 0
    assert sum("softmax" in name for name in counts.unattributed) == 1
    # LSTM: 4 gates of 2 units, 3 inputs and 2 states, 5 steps.
    total = count(nn.LSTM(3, 2), torch.randn(5, 1, 3)).total
    assert total.dense_mac + total.dense_ac == 5 * (8 * 3 + 8 * 2)


class Spiking(nn.Module):
    def __init__(self, neuron, mode: str) -> None:
        super().__init__()
        self.fc = linear([[1.0, 0.0], [0.0, 1.0]])
        self.neuron = neuron
        self.mode = mode

    def forward(self, x):
        current = self.fc(x)
        if self.mode == "encode":
            return self.neuron.encode(current)
        if self.mode == "forward":
            return self.neuron(self.neuron.present(current))[0]
        spikes, state = [], None
        for each in self.neuron.present(current):
            s, state = self.neuron.step(each, state)
            spikes.append(s)
        return torch.stack(spikes)


@pytest.mark.parametrize("mode", ["encode", "forward", "step"])
def test_a_neuron_in_a_plain_module_is_taken_at_its_updates(mode):
    # beta = 0.5 and current (0.75, 0): v = 0.75, then 0.375 + 0.75 >= 1 fires, v = 0.125, then 0.8125.
    module = Spiking(LIF(2, beta=0.5, steps=3), mode)
    counts = count(module, torch.tensor([[0.75, 0.0]]))
    lif = counts.layers["neuron"]
    assert (lif.neuron_updates_active, lif.neuron_updates_idle, lif.spikes) == (3, 3, 1)
    assert (lif.mul, lif.add) == (6, 18)
    assert counts.steps == 3
    assert counts.unattributed == {}
    assert (counts.total.mac, counts.total.mul) == (1 + 0, 6)
    assert "step" not in vars(module.neuron)  # the stand-ins are gone


def test_decode_in_a_plain_module_costs_and_makes_the_value_graded():
    class Decoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.atmn = ATMN(2, steps=2, threshold=0.75)
            self.fc = linear([[1.0, 1.0]])

        def forward(self, x):
            return self.fc(self.atmn.decode(self.atmn.encode(x)))

    counts = count(Decoded(), torch.tensor([[0.75, 0.0]]))
    assert (counts.layers["fc"].mac, counts.layers["fc"].ac) == (1, 0)
    assert counts.layers["atmn"].mul == 4  # 2 steps of 2 neurons, the update itself needs none


# ---- the call itself ---------------------------------------------------------------------------------


def test_training_flags_and_hooks_are_left_as_they_were():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    module[2].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fused = torch.backends.mha.get_fastpath_enabled()
    count(module, torch.ones(1, 2))
    assert [m.training for m in module] == [True, True, False]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() is fused
    with pytest.raises(ShapeError):
        count(module, torch.ones(1, 3))
    assert [m.training for m in module] == [True, True, False]
    assert all(not m._forward_hooks for m in module.modules())


@pytest.mark.parametrize(
    ("module", "inputs", "error", "told"),
    [
        (3, torch.ones(1, 2), InputError, "torch.nn.Module, got int"),
        (nn.Linear(2, 1), "x", InputError, "input 0 must be a tensor, got str"),
        (nn.Linear(2, 1), (), InputError, "at least one input"),
        (nn.Linear(2, 1), torch.ones(1, 3), ShapeError, r"Linear can't run on inputs \[1, 3\]"),
        (nn.Linear(2, 1), (torch.ones(1, 2),) * 2, InputError, "can't run"),
        (nn.Linear(2, 1), torch.tensor([[float("nan"), 1.0]]), NonFiniteError, "input 0"),
        (nn.Linear(2, 1), torch.ones(0, 2), ShapeError, "empty"),
        (hand_network(), torch.ones(1, 2), ShapeError, "expected x"),
        (hand_network(), torch.ones(1, 1, 3), ShapeError, "fc1"),
    ],
)
def test_wrong_inputs_are_one_line(module, inputs, error, told):
    with pytest.raises(error, match=told) as caught:
        count(module, inputs)
    assert "\n" not in str(caught.value)


def test_infinite_weights_are_refused_by_name():
    module = nn.Sequential(nn.Linear(2, 1))
    module[0].weight.data[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"0\.weight"):
        count(module, torch.ones(1, 2))


def test_named_inputs_and_given_tokens():
    counts = count(nn.Linear(2, 1), {"input": torch.ones(3, 4, 2)}, tokens=12)
    assert counts.tokens == 12
    assert count(nn.Linear(2, 1), torch.ones(3, 4, 2)).tokens == 3


def test_counts_are_json():
    counts = count(hand_network(), torch.ones(2, 3, 2))
    loaded = json.loads(counts.to_json())
    assert loaded == counts.to_dict()
    assert loaded["tokens"] == 6
    assert loaded["total"]["ac"] == sum(layer["ac"] for layer in loaded["layers"].values())
