"""Pipelines SSM -> neuron -> Linear -> ...: the two clocks, streaming, files, and training in pieces.

Reference: the pipeline run again by its parts; streaming against training path in float64. Round trip:
recordings and checkpoints.
"""

import numpy as np
import pytest
import torch
from torch import nn

from marsnn import ATMN, LIF, Network, Recording, simulate
from marsnn.checkpoint import load_network, save_network
from marsnn.energy import count
from marsnn.errors import ExportError, FileError, InputError
from marsnn.hardware import export
from marsnn.ssm import S4D, SSD, SSDCore
from marsnn.training import TrainConfig, train
from tests.helpers import same

D, H, T = 6, 8, 4


def s4d_pipeline(neuron):
    return [nn.Linear(D, H), S4D(H, 8), neuron(), nn.Linear(H, H), neuron(), nn.Linear(H, 3)]


def gated_pipeline(neuron):
    return [nn.Linear(D, 2 * H), S4D(H, 8, gate=True), neuron(), nn.Linear(H, 3)]


def ssd_pipeline(neuron):
    return [nn.Linear(D, H), SSD(H, head_dim=4, state_size=4), neuron(), nn.Linear(H, 3)]


def spiking_projections(neuron):
    """MAR's block: spikes before the input and the output projection of the SSM."""
    core = SSDCore(2, 4, 4, groups=2, feature_map="softmax", rope=100.0, normalize=True)
    layers = {"encode": neuron(D), "into": nn.Linear(D, core.inputs), "core": core}
    return {**layers, "spikes": neuron(core.outputs), "out": nn.Linear(core.outputs, 3)}


NEURONS = {
    "ATMN": lambda features=H: ATMN(features, steps=T, threshold=0.5),
    "LIF": lambda features=H: LIF(features, steps=T, threshold=0.5),
    "LIF over tokens": lambda features=H: LIF(features, steps=T, threshold=0.5, carry="sequence"),
}
PIPELINES = {
    "s4d": s4d_pipeline, "s4d gate": gated_pipeline, "ssd": ssd_pipeline, "projections": spiking_projections,
}  # fmt: skip


def made(pipeline, neuron, dtype=torch.float64, **more):
    torch.manual_seed(0)
    return Network(PIPELINES[pipeline](NEURONS[neuron]), **more).to(dtype)


def noise(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_sixty_and_forty_tokens_are_a_hundred_bit_for_bit(pipeline, neuron, tmp_path):
    network, x = made(pipeline, neuron), noise(100, 2, D)
    whole = simulate(network, x)
    first = simulate(network, x[:60])
    second = simulate(network, x[60:], state=first.state)
    kept = Recording.load(first.save(tmp_path / "first.npz"))
    third = simulate(network, x[60:], state=kept.state)
    for rest in (second, third):
        assert np.array_equal(np.concatenate([first.output, rest.output]), whole.output)
        for name in whole.names:
            for what in ("spikes", "membrane"):
                parts = [getattr(each, what)[name] for each in (first, rest)]
                assert np.array_equal(np.concatenate(parts), getattr(whole, what)[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recording_in_few_bits_goes_on_bit_for_bit(dtype, tmp_path):
    network, x = made("ssd", "LIF over tokens", dtype), noise(20, 2, D, dtype=dtype)
    whole, first = simulate(network, x), simulate(network, x[:12])
    kept = Recording.load(first.save(tmp_path / "first.npz"))
    second = simulate(network, x[12:], state=kept.state)
    assert np.array_equal(np.concatenate([first.output, second.output]), whole.output)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_training_path_is_the_stream_in_float64(pipeline, neuron):
    """The chunked and FFT forms round otherwise: outputs agree within 1e-9 where no spike flipped."""
    network, x = made(pipeline, neuron), noise(150, 2, D)
    recording = simulate(network, x)
    heard = Heard()
    with torch.no_grad():
        output, _ = network.run(x, listeners=[heard])
    flipped = sum(int((heard.spikes[name] != recording.spikes[name]).sum()) for name in recording.spikes)
    assert flipped == 0
    assert np.abs(output.numpy() - recording.output).max() < 1e-9


class Heard:
    membrane = False

    def __init__(self):
        self.spikes = {}

    def neuron(self, name, neuron, spikes, membrane):
        self.spikes[name] = spikes.numpy()

    def layer(self, name, layer, source, output):
        pass


def test_an_ssm_ticks_once_a_token():
    """Whatever T is, the SSM receives the decoded activation of each token, once."""
    torch.manual_seed(0)
    neuron, ssm = ATMN(D, steps=T, threshold=0.5), SSD(D, head_dim=4, state_size=4)
    network = Network({"neuron": neuron, "ssm": ssm}).double()
    x = noise(30, 2, D)
    wanted, _ = ssm(neuron.decode(neuron.encode(x)))
    assert torch.allclose(network(x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("unrolled", [False, True])
def test_lif_after_an_ssm_is_held_the_value_of_its_token(unrolled):
    torch.manual_seed(0)
    ssm, lif = S4D(D, 4).double(), LIF(D, steps=T, carry="sequence").double()
    x = noise(30, 2, D)
    held = ssm(x)[0].repeat_interleave(T, 0)  # each token's value, T times
    spikes, _ = lif(held)
    wanted = lif.decode(spikes.unflatten(0, (30, T)).transpose(0, 1))
    assert torch.allclose(Network([ssm, lif], unrolled=unrolled)(x), wanted, rtol=0, atol=1e-12)


# ---- training in pieces -------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_checkpointed_pieces_have_the_same_gradients(pipeline, neuron, tokens):
    whole, pieces = made(pipeline, neuron), made(pipeline, neuron, checkpoint_tokens=tokens)
    x = noise(70, 2, D).requires_grad_()
    slopes = []
    for network in (whole, pieces):
        y = network(x)
        slopes.append(torch.autograd.grad((y**2).mean(), [x, *network.parameters()]))
    for a, b in zip(*slopes, strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(1.0, b.abs().max().item())
    assert torch.allclose(pieces(x), whole(x), rtol=0, atol=1e-10)


def test_checkpointed_pieces_keep_less():
    """What autograd keeps between forward and backward, in bytes: linear in L without pieces."""

    def kept(network, L):
        held = {}

        def pack(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = noise(L, 1, D)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(x).sum()
        return sum(held.values())

    whole, pieces = made("ssd", "ATMN"), made("ssd", "ATMN", checkpoint_tokens=32)
    assert kept(whole, 512) > 6 * kept(pieces, 512)


def test_a_checkpointed_network_trains():
    torch.manual_seed(0)
    x = torch.randn(64, 40, 1)
    y = (x[0, :, 0] > 0).long()  # what came first, 63 tokens ago
    network = Network([nn.Linear(1, 16), SSD(16, head_dim=8, state_size=8), ATMN(16), nn.Linear(16, 2)],
                      checkpoint_tokens=16)  # fmt: skip
    losses = train(network, x, y, TrainConfig(epochs=8, learning_rate=1e-2)).loss
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("tokens", [0, -1, 1.5])
def test_pieces_are_whole_numbers(tokens):
    with pytest.raises(InputError, match="checkpoint_tokens must be a whole number >= 1"):
        Network([nn.Linear(2, 2)], checkpoint_tokens=tokens)


# ---- files, states, counts ---------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_is_saved_and_loaded(pipeline, tmp_path):
    network, x = made(pipeline, "ATMN", torch.float32), noise(9, 2, D, dtype=torch.float32)
    again = load_network(save_network(network, tmp_path / "net.safetensors"))
    assert same(again(x), network(x))


def test_a_saved_layer_with_an_unknown_setting_is_refused(tmp_path):
    from safetensors.torch import safe_open, save_file

    path = save_network(made("ssd", "ATMN"), tmp_path / "net.safetensors")
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata()["marsnn"], {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"marsnn": header.replace('"state_size": 4', '"state_size": -4')})
    with pytest.raises(FileError, match="state_size must be a whole number >= 1, got -4"):
        load_network(path)


def test_states_of_other_layers_are_refused_by_name():
    network, x = made("ssd", "ATMN"), noise(5, 2, D)
    state = simulate(network, x).state
    assert set(state) == {"ssd1"}
    with pytest.raises(InputError, match=r"s4d1: the state holds .* but this S4D is another layer"):
        simulate(made("s4d", "ATMN"), x, state={"s4d1": state["ssd1"]})
    with pytest.raises(InputError, match=r"linear1: the state holds .* but this Linear is another layer"):
        simulate(network, x, state={"linear1": state["ssd1"]})
    with pytest.raises(InputError, match=r"ssd1: SSDCore: the state's recent is .* with this batch"):
        simulate(network, noise(5, 3, D), state=state)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_operations_are_those_of_the_recurrence(pipeline):
    """A chip runs token by token: the count grows with L alone, whatever the training path does."""
    network = made(pipeline, "ATMN")
    short, long = (count(network, noise(L, 1, D).clamp(min=0.1)) for L in (10, 80))
    name = next(name for name in network.names if isinstance(network[name], (S4D, SSD, SSDCore)))
    for what in ("dense_mac", "mul", "add"):
        a, b = (getattr(counts.layers[name], what) for counts in (short, long))
        assert b == 8 * a
        assert a > 0 or (name == "s4d1" and what == "dense_mac")


def test_operations_of_one_token_by_hand():
    """SSDCore with H = 2, P = 4, N = 3, G = 1 and no convolution to speak of (K = 1)."""
    core = SSDCore(2, 4, 3, conv_size=1, gate=False, skip=False).double()
    counts = count(Network([core]), noise(1, 1, core.inputs))
    row = counts.layers["ssdcore1"]
    states = 2 * 3 * 4
    assert row.dense_mac == states  # read by the query
    # b x^T and the decay, each once a state; one tap a channel
    assert row.mul == 2 * states + core.channels
    # sums of state, taps' bias, decay's bias, and the token is counted
    assert row.add == states + core.channels + 2 + 1


def test_operations_of_the_gate_of_s4d_by_hand():
    """Beside the layer's own: z + bias, and the product with y, once a feature and token."""

    def row(**settings):
        layer = S4D(H, 8, **settings).double()
        return count(Network([layer]), noise(5, 2, layer.inputs)).layers["s4d1"]

    plain, gated = row(), row(gate=True)
    tokens = 5 * 2 * H
    assert plain.mul > 0
    assert gated.mul == plain.mul + tokens
    assert gated.add == plain.add + tokens


def test_export_refuses_an_ssm_by_name(tmp_path):
    with pytest.raises(ExportError, match="ssd1"):
        export(made("ssd", "ATMN", torch.float32), noise(4, 1, D, dtype=torch.float32), tmp_path / "bundle")
