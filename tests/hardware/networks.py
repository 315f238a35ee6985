"""A network of each kind that has an exact integer form, with inputs, for the tests of what is exported."""

import torch
from torch import nn

from marsnn.gated import GatedLinear
from marsnn.network import Network
from marsnn.neurons import ALIF, ATMN, LIF, PLIF, TMN, CubaLIF, IntegerLIF, Recurrent, TernaryLIF
from marsnn.ssm import S4D, SSDCore


def chain():
    return [nn.Linear(8, 16), ATMN(16), nn.Linear(16, 12), ATMN(12), nn.Linear(12, 4)], randn(5, 6, 8)


def rates():
    layers = [
        nn.Linear(8, 16),
        LIF(16, beta=0.7, threshold=0.5),
        nn.Linear(16, 12),
        CubaLIF(12, threshold=0.3),
    ]
    return [*layers, nn.Linear(12, 12), ALIF(12, threshold=0.2), nn.Linear(12, 4)], randn(5, 6, 8)


def integers():
    first = TernaryLIF(16, threshold=0.5, carry="sequence")
    layers = [nn.Linear(8, 16), first, nn.Linear(16, 12), IntegerLIF(12, threshold=0.3), nn.Linear(12, 12)]
    return [*layers, PLIF(12, threshold=0.2, reset="zero"), nn.Linear(12, 4)], randn(5, 6, 8)


def recurrent():
    """Neurons that hear themselves, one population to the end of a token, one to that of a sample."""
    first = Recurrent(LIF(16, beta=0.7, threshold=0.5), bias=True)
    second = Recurrent(TernaryLIF(12, threshold=0.3, carry="sequence"))
    return [nn.Linear(8, 16), first, nn.Linear(16, 12), second, nn.Linear(12, 4)], randn(5, 6, 8)


def ternary():
    first = TMN(8, threshold=0.7)
    return [first, nn.Linear(8, 12), IntegerLIF(12, threshold=0.3, signed=True), nn.Linear(12, 4)], randn(
        5, 6, 8
    )


def channels():
    """Each channel with settings of its own."""
    beta, threshold = torch.linspace(0.2, 1.0, 16), torch.linspace(0.3, 0.9, 16)
    own = LIF(16, beta=beta, threshold=threshold, carry="sequence")
    return [nn.Linear(8, 16), own, nn.Linear(16, 4)], randn(5, 6, 8)


def skips():
    layers = {
        "l1": nn.Linear(8, 16), "a1": ATMN(16), "l2": nn.Linear(16, 16), "a2": ATMN(16, tau=1.0),
        "l3": nn.Linear(16, 4), "a3": ATMN(4, tau=2.0, threshold=0.1), "l4": nn.Linear(4, 4),
    }  # fmt: skip
    return layers, randn(5, 6, 8), {"l3": "a1", "a2": "l1"}


def direct():
    """Neurons behind neurons, and spikes of two kinds added to the input, without any weight."""
    layers = {"a": ATMN(8), "b": LIF(8, threshold=0.3), "out": nn.Identity()}
    return layers, randn(5, 6, 8), {"out": ["a", "input"]}


def pictures():
    layers = [nn.Conv2d(1, 4, 3, padding=1), LIF(4, feature_dim=-3, threshold=0.3), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(4, 6, (3, 2), stride=(1, 2)), LIF(6, feature_dim=-3, threshold=0.1), nn.AvgPool2d(3)]
    return [*layers, nn.Flatten(), nn.Linear(6, 5)], randn(3, 4, 1, 12, 14).abs()


def series():
    layers = [nn.Conv1d(2, 4, 3, padding=1, stride=2), ATMN(4, feature_dim=-2, threshold=0.3)]
    return [*layers, nn.AvgPool1d(2), nn.Flatten(), nn.Linear(16, 5)], randn(3, 4, 2, 16).abs()


def s4d():
    return [nn.Linear(8, 16), S4D(16, state_size=8), ATMN(16, threshold=0.5), nn.Linear(16, 4)], randn(
        30, 3, 8
    )


def turned():
    return _ssd(heads=2, head_dim=8, state_size=8, groups=2, rope=10000.0, scale_input=True)


def plain():
    return _ssd(heads=2, head_dim=8, state_size=8, groups=1, gate=False, skip=False)


def _ssd(**settings):
    core = SSDCore(**settings)
    behind = ATMN(16, steps=6, threshold=0.05)
    return [ATMN(8, steps=6), nn.Linear(8, core.inputs), core, behind, nn.Linear(16, 4)], randn(30, 3, 8)


def block():
    """A transformer's feed-forward block with its residual."""
    layers = {
        "norm": nn.RMSNorm(8), "ffn_in": ATMN(8, steps=6), "gated": GatedLinear(8, 16, level=0.02),
        "ffn_out": ATMN(16, steps=6, threshold=0.1), "down": nn.Linear(16, 8), "out": nn.Identity(),
    }  # fmt: skip
    return layers, randn(10, 6, 8), {"out": "input"}


def normed():
    return [nn.LayerNorm(8), LIF(8), nn.Linear(8, 3)], randn(10, 3, 8)


BUILD = {
    build.__name__: build
    for build in (
        chain, rates, integers, recurrent, ternary, channels, skips, direct, pictures, series, s4d, turned,
        plain, block, normed,
    )
}  # fmt: skip


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def build(name):
    """A network and its inputs, the same each time."""
    torch.manual_seed(0)
    layers, x, *skips = BUILD[name]()
    return Network(layers, skips=skips[0] if skips else None), x
