"""Reference: the same networks on a GPU and on the CPU. Skipped where there is no GPU."""

import numpy as np
import pytest
import torch
from torch import nn

from marsnn import neurons
from marsnn.energy import count
from marsnn.hardware import export
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, fused
from marsnn.simulator import simulate
from marsnn.ssm import S4D, SSD, flash, ssd_scan
from marsnn.training import TrainConfig, accuracy, train
from tests.ssm.test_scan import outcome, problem, worst

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def build():
    torch.manual_seed(0)
    return Network(
        [nn.Linear(8, 16), ATMN(16), nn.Linear(16, 12), LIF(12, carry="sequence"), nn.Linear(12, 4)]
    ).double()


@pytest.mark.parametrize("name", neurons.names())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_neurons_decide_alike(name, dtype):
    """No matmul, so the same additions in the same order: every spike equal, slot for slot."""
    neuron = neurons.get(name)(32, steps=6)
    currents = torch.randn(6, 50, 32).to(dtype)
    here, state = neuron(currents)
    there, far_state = neuron.to("cuda")(currents.cuda())
    assert there.device.type == far_state[0].device.type == "cuda"
    assert there.dtype == dtype
    assert torch.equal(here, there.cpu())
    assert torch.equal(state[0], far_state[0].cpu())


@pytest.mark.parametrize("T", [1, 2, 3, 5, 8, 16, 31, 32, 33, 64, 100, 257])
@pytest.mark.parametrize("name", neurons.names())
def test_kernels_run_and_equal_the_steps(name, T):
    reference, fast = (
        neurons.get(name)(32, backend=backend).to("cuda") for backend in ("reference", "fused")
    )
    x = torch.randn(T, 50, 32, device="cuda")
    upstream = torch.randn(T, 50, 32, device="cuda")
    fast(x.clone().requires_grad_())  # on first use the kernel is held against the steps
    fused.LAUNCHES.clear()
    found = []
    for neuron in (reference, fast):
        y = x.clone().requires_grad_()
        spikes, state = neuron(y)
        found.append((spikes, *state, torch.autograd.grad(spikes, y, upstream)[0]))
    assert {key[2]: count for key, count in fused.LAUNCHES.items()} == {"forward": 1, "backward": 1}
    for a, b in zip(found[0][:-1], found[1][:-1], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(found[1][-1], found[0][-1], rtol=1e-4, atol=1e-4)


def test_kernels_run_on_the_current_stream():
    stream, lif = torch.cuda.Stream(), LIF(backend="fused").cuda()
    x = torch.randn(8, 1 << 20, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        spikes = lif(x * 1.5)[0]
    stream.synchronize()
    assert torch.equal(spikes, LIF(backend="reference").cuda()(x * 1.5)[0])


def test_simulate_streams_and_agrees_with_the_cpu():
    network, x = build(), 2 * torch.randn(10, 3, 8, dtype=torch.float64)
    here = simulate(network, x)
    network.cuda()
    whole = simulate(network, x.cuda())
    first = simulate(network, x[:6].cuda())
    second = simulate(network, x[6:].cuda(), state=first.state)
    assert np.array_equal(whole.output, np.concatenate([first.output, second.output]))
    np.testing.assert_allclose(whole.output, here.output, atol=1e-9)
    assert count(network, x.cuda()).total == count(network.cpu(), x).total


def test_trains_and_exports_from_the_gpu(tmp_path):
    torch.manual_seed(0)
    network = Network([nn.Linear(8, 16), ATMN(16), nn.Linear(16, 4)]).cuda()
    x = torch.randn(1, 400, 8, device="cuda")
    y = x[0, :, :4].argmax(-1)
    history = train(network, x, y, TrainConfig(epochs=20, learning_rate=1e-2))
    assert history.loss[-1] < history.loss[0] / 2
    assert accuracy(network, x, y) > 0.8
    assert export(network, x[:, :20], tmp_path / "bundle").golden.spikes["atmn1"].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("H", "G"), [(4, 1), (4, 2), (4, 4)])
def test_the_scan_is_that_of_the_cpu(dtype, H, G):
    tensors = problem(200, 2, H, G, 16, 8, dtype)
    far = [each.detach().cuda().requires_grad_() for each in tensors]
    wanted = outcome("reference", tensors)
    y, state = ssd_scan(*far)
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t) for t in (y, state)]
    found = [y, state, *torch.autograd.grad((y, state), far, weights)]
    allowed = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    assert worst([each.cpu() for each in found], wanted) < allowed


@pytest.mark.skipif(not flash.installed(), reason="needs pip install flash-linear-attention")
def test_flash_linear_attention_is_believed():
    tensors = [each.detach().cuda() for each in problem(200, 2, 4, 2, 64, 64, torch.bfloat16, "ordinary")]
    ssd_scan(*tensors)
    assert flash._AGREEMENT[torch.bfloat16, tensors[0].device]


@pytest.mark.parametrize("layer", [S4D(8, 8), S4D(4, 8, gate=True), SSD(8, head_dim=4, state_size=4)])
def test_state_space_layers_are_those_of_the_cpu(layer):
    layer, x = layer.double(), torch.randn(90, 2, 8, dtype=torch.float64)
    here, _ = layer(x)
    there, state = layer.cuda()(x.cuda())
    one, _ = layer.step(x[0].cuda(), state)
    layer.cpu()
    assert one.is_cuda
    np.testing.assert_allclose(there.detach().cpu(), here.detach(), atol=1e-9)
