"""How users of snntorch and spikingjelly run their own neurons: what ours are compared with."""

import inspect

import pytest
import torch
from torch import nn

from marsnn.neurons.foreign import library

NEEDS = 'needs pip install "marsnn[snn]"'
snn = pytest.importorskip("snntorch", reason=NEEDS)
jelly = pytest.importorskip("spikingjelly.activation_based.neuron", reason=NEEDS)

from snntorch import utils  # noqa: E402
from spikingjelly.activation_based import functional  # noqa: E402

N = 5


def currents(*shape, dtype=torch.float32):
    return (1.5 * torch.randn(*shape, N, dtype=torch.float64)).to(dtype)


def own_loop(module, x):
    """Spikes and final states as the other library's own users run it, step by step over x [T, B, N]."""
    if library(module) == "spikingjelly":
        functional.reset_net(module)
        functional.set_step_mode(module, "s")
        spikes = torch.stack([module(step) for step in x])
        return spikes, dict(module.named_memories())
    order = list(inspect.signature(type(module).forward).parameters)[2:]
    spikes = []
    if module.init_hidden:
        utils.reset(nn.Sequential(module))
        for step in x:
            out = module(step)
            spikes.append(out[0] if module.output else out)
        return torch.stack(spikes), {name: getattr(module, name) for name in order}
    states = module.reset_mem()
    if isinstance(module, snn.DeltaLeaky):
        for step in x:
            spike, states = module(step, states)
            spikes.append(spike)
        return torch.stack(spikes), dict(zip(("mem", "mem_prev"), states, strict=True))
    states = states if isinstance(states, tuple) else (states,)
    for step in x:
        spike, *states = module(step, *states)
        spikes.append(spike)
        if order[0] == "spk":
            states = [spike, *states][-len(order) :]
    return torch.stack(spikes), dict(zip(order, states, strict=True))


def loss_of(spikes, states):
    weights = torch.linspace(-1, 2, spikes.numel(), dtype=spikes.dtype).reshape(spikes.shape)
    return (weights * spikes).sum() + sum(state.square().sum() for state in states)


def slopes(loss, x, module):
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]
