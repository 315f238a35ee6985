"""Random networks of everything that can be exported, for asking a second simulator about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marsnn.gated import GatedLinear
from marsnn.network import Network
from marsnn.neurons import ALIF, ATMN, LIF, PLIF, TMN, CubaLIF, IntegerLIF, Recurrent, TernaryLIF
from marsnn.neurons.base import Neuron
from marsnn.ssm import S4D, SSDCore

Drawn = tuple[Network, Tensor]
"""A network, and inputs x [L, B, *D]."""


class _Draw:
    """Choices of one network, by its seed."""

    def __init__(self, seed: int, width: int, tokens: int, samples: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.width, self.tokens, self.samples = width, tokens, samples
        self.steps = self.of(1, 2, 3, 4, 4, 4, 5, 8)

    def of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def size(self) -> int:
        return int(self.rng.integers(max(2, self.width // 2), self.width + 1))

    def level(self) -> float:
        return float(self.rng.uniform(0.1, 0.8))

    def inputs(self, *shape: int) -> Tensor:
        x = 2 * self.rng.standard_normal((self.tokens, self.samples, *shape))
        return torch.from_numpy(x).float()

    def atmn(self, features: int, **settings: Any) -> nn.Module:
        if self.rng.random() < 0.15:
            return TMN(features, self.steps, self.level(), **settings)
        tau, fire_at = self.of(0.5, 0.5, 1.0, 2.0), self.of(1.0, 1.0, 0.5)
        return ATMN(features, self.steps, tau, self.level(), fire_at, **settings)

    def step_neuron(self, features: int, **settings: Any) -> Neuron:
        """One of those that take a current at every step."""
        common = {
            "steps": self.steps, "threshold": self.level(), "reset": self.of("subtract", "zero"),
            "carry": self.of("token", "sequence"), **settings,
        }  # fmt: skip
        beta, other = (float(each) for each in self.rng.uniform(0.3, 0.9, 2))
        makes: list[Callable[[], Neuron]] = [
            lambda: LIF(features, beta=beta, **common),
            lambda: PLIF(features, beta=beta, **common),
            lambda: CubaLIF(features, beta=beta, alpha=other, **common),
            lambda: ALIF(features, beta=beta, rho=other, adaptation=0.2, **common),
            lambda: IntegerLIF(
                features,
                beta=beta,
                max_level=int(self.rng.integers(2, 8)),
                signed=bool(self.of(True, False)),
                **common,
            ),
            lambda: TernaryLIF(features, beta=beta, max_level=self.of(1, 3), **common),
        ]
        return makes[int(self.rng.integers(len(makes)))]()

    def neuron(self, features: int, **settings: Any) -> nn.Module:
        return (
            self.atmn(features, **settings)
            if self.rng.random() < 0.5
            else self.step_neuron(features, **settings)
        )

    # ---- families ---------------------------------------------------------------------------------------

    def dense(self) -> Drawn:
        """Linear maps and neurons of every kind, mixed; sometimes neurons first, or last."""
        inputs = size = self.size()
        layers: list[nn.Module] = [self.neuron(size)] if self.rng.random() < 0.2 else []
        for _ in range(int(self.rng.integers(1, 4))):
            wide = self.size()
            layers += [nn.Linear(size, wide, bias=bool(self.of(True, False))), self.neuron(wide)]
            size = wide
        if self.rng.random() < 0.6:
            layers.append(nn.Linear(size, 5))
        return Network(layers), self.inputs(inputs)

    def chip(self) -> Drawn:
        """One kind of neuron throughout, a readout behind it."""
        inputs, size = self.size(), self.size()
        make = self.atmn if self.rng.random() < 0.5 else self.step_neuron
        layers = [nn.Linear(inputs, size), make(size), nn.Linear(size, size), make(size), nn.Linear(size, 4)]
        return Network(layers), self.inputs(inputs)

    def recurrent(self) -> Drawn:
        """Neurons that hear themselves, others between them."""
        inputs, size, wide = self.size(), self.size(), self.size()
        back = Recurrent(self.step_neuron(wide), bias=bool(self.of(True, False)))
        again = Recurrent(self.step_neuron(size))
        between = [self.neuron(size)] if self.rng.random() < 0.5 else [again]
        layers = [nn.Linear(inputs, wide), back, nn.Linear(wide, size), *between, nn.Linear(size, 4)]
        return Network(layers), self.inputs(inputs)

    def image(self) -> Drawn:
        """Two-dimensional convolutions, a pool, and a readout."""
        channels, out = (int(each) for each in self.rng.integers(2, 6, 2))
        groups = self.of(1, out)
        edge = int(self.rng.integers(11, 14))
        conv = nn.Conv2d(
            channels,
            out,
            self.of(2, 3),
            stride=self.of(1, 2),
            padding=self.of(0, 1),
            dilation=self.of(1, 1, 2),
        )
        pooled = self.rng.random() < 0.5  # a pool merges with the kernel behind it, which then must not pad
        second = nn.Conv2d(out, 2 * out, 2, padding=int(not pooled), groups=groups)
        layers: list[nn.Module] = [conv, self.neuron(out, feature_dim=-3)]
        if pooled:
            layers.append(nn.AvgPool2d(2))
        layers += [second, self.neuron(2 * out, feature_dim=-3), nn.Flatten()]
        probe: Tensor = torch.zeros(1, channels, edge, edge)
        for layer in (conv, *(each for each in layers if isinstance(each, nn.AvgPool2d)), second):
            probe = layer(probe)
        return Network([*layers, nn.Linear(probe[0].numel(), 4)]), self.inputs(channels, edge, edge)

    def line(self) -> Drawn:
        """A one-dimensional convolution and a pool behind it."""
        channels, out = (int(each) for each in self.rng.integers(2, 6, 2))
        length = 2 * int(self.rng.integers(5, 9))
        layers = [
            nn.Conv1d(channels, out, 3, padding=1), self.neuron(out, feature_dim=-2), nn.AvgPool1d(2),
            nn.Flatten(), nn.Linear(out * length // 2, 6), self.neuron(6),
        ]  # fmt: skip
        return Network(layers), self.inputs(channels, length)

    def skips(self) -> Drawn:
        """A residual stream: sources added to the input of later layers, the network's own input too."""
        size = self.size()
        make = self.atmn if self.rng.random() < 0.6 else self.step_neuron
        layers = {
            "in": nn.Linear(size, size), "first": make(size), "up": nn.Linear(size, size),
            "second": make(size),
            "down": nn.Linear(size, size), "third": make(size), "out": nn.Linear(size, 3),
        }  # fmt: skip
        skips = self.of(
            {"third": "in"}, {"third": "input"}, {"down": "first"}, {"out": ["first", "second"]},
            {"second": "in", "third": "in"},
        )  # fmt: skip
        return Network(layers, skips), self.inputs(size)

    def gated(self) -> Drawn:
        """A spiking feed-forward net with a gate, a norm before it."""
        size, wide = self.size(), self.size()
        norm = self.of(None, nn.RMSNorm, nn.LayerNorm)
        level = self.of(None, 0.05)
        layers = [
            self.atmn(size), GatedLinear(size, wide, level=level), self.atmn(wide), nn.Linear(wide, size),
        ]  # fmt: skip
        return Network([*([norm(size)] if norm else []), *layers]), self.inputs(size)

    def norms(self) -> Drawn:
        """Norms between a Linear and neurons."""
        inputs, size = self.size(), self.size()
        norm = nn.RMSNorm(size) if self.rng.random() < 0.5 else nn.LayerNorm(size)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        layers = [nn.Linear(inputs, size), norm, self.atmn(size), nn.Linear(size, 4), self.neuron(4)]
        return Network(layers), self.inputs(inputs)

    def s4d(self) -> Drawn:
        """A diagonal state space layer before neurons, sometimes with a gate."""
        size = self.size()
        layers = [nn.Linear(size, size), self.atmn(size), nn.Linear(size, size)]
        plain = S4D(size, 2 * int(self.rng.integers(1, 9)))
        layers += [plain, self.atmn(size), nn.Linear(size, 4)]
        kept = layers[0 if self.rng.random() < 0.6 else 2 :]
        x = self.inputs(size)
        if self.rng.random() < 0.5:  # drawn last, so that it changes no other choice
            gated = S4D(size, plain.state_size, gate=True)
            assert gated.gate_bias is not None
            nn.init.normal_(gated.gate_bias)
            at = kept.index(plain)
            kept[at - 1 : at + 1] = [nn.Linear(size, gated.inputs), gated]
        return Network(kept), x

    def ssd(self) -> Drawn:
        """A selective state space layer with its gate, and neurons behind it."""
        size, groups = self.size(), self.of(1, 2)
        core = SSDCore(
            heads=2, head_dim=4, state_size=4, groups=groups, conv_size=self.of(2, 4),
            gate=self.of(True, False),
            rope=self.of(None, 10000.0), scale_input=self.of(True, False), skip=self.of(True, False),
        )  # fmt: skip
        layers = [
            self.atmn(size), nn.Linear(size, core.inputs), core, self.atmn(core.outputs),
            nn.Linear(core.outputs, 4),
        ]  # fmt: skip
        return Network(layers), self.inputs(size)


FAMILIES: dict[str, Callable[[_Draw], Drawn]] = {
    "dense": _Draw.dense, "one kind": _Draw.chip, "recurrent": _Draw.recurrent,
    "image": _Draw.image, "line": _Draw.line, "skips": _Draw.skips,
    "gated": _Draw.gated, "norms": _Draw.norms, "s4d": _Draw.s4d, "ssd": _Draw.ssd,
}  # fmt: skip
"""Name -> what draws such a network."""


def draw(family: str, seed: int, width: int = 24, tokens: int = 3, samples: int = 4) -> Drawn:
    """A random network of a family, and inputs for it.

    Args:
        family: of `FAMILIES`.
        width: of its largest populations.   tokens, samples: L and B of its inputs.
    """
    torch.manual_seed(seed)
    network, x = FAMILIES[family](_Draw(seed, width, tokens, samples))
    return network, x


def draws(
    seed: int = 0, width: int = 24, tokens: int = 3, samples: int = 4
) -> Iterator[tuple[str, Network, Tensor]]:
    """Networks of all families in turn, without end."""
    names = list(FAMILIES)
    for number in count():
        name = names[number % len(names)]
        yield name, *draw(name, seed + number, width, tokens, samples)
