"""Small things that several tests need."""

import torch


def same(first, second):
    """Equal bit for bit: nested tuples, lists and dicts of tensors, dtype and shape included."""
    if isinstance(first, torch.Tensor):
        return (
            isinstance(second, torch.Tensor)
            and first.dtype == second.dtype
            and first.shape == second.shape
            and bool(torch.equal(first, second))
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def column(*values, dtype=torch.float64):
    """Currents [T, 1] of one neuron."""
    return torch.tensor(values, dtype=dtype).unsqueeze(-1)


def traced(neuron, *currents):
    """Spikes and membranes of one neuron in float64, as lists over T."""
    spikes, membrane, _ = neuron.double().trace(column(*currents))
    return spikes.flatten().tolist(), membrane.flatten().tolist()


def atan_slope(x, alpha=2.0):
    """The default surrogate's derivative, written out for numpy."""
    pi = 3.141592653589793
    return 0.5 * alpha / (1 + (0.5 * pi * alpha * x) ** 2)


class StrictlyGreater(torch.autograd.Function):
    """Another library's spike: fires at > only, gradient 1 / (1 + 3 abs(x))."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + 3 * x.abs())


class ForeignModule(torch.nn.Module):
    """A surrogate as some libraries ship it: a Module with a parameter-like setting."""

    def __init__(self, alpha=5.0):
        super().__init__()
        self.alpha = alpha

    def forward(self, x):
        soft = torch.sigmoid(self.alpha * x)
        return soft + ((x > 0).to(x.dtype) - soft).detach()
