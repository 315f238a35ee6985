"""What goes where: a network for each layer, tried on every target. `docs/targets.md` is written from it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from marsnn.errors import ExportError
from marsnn.gated import GatedLinear
from marsnn.hardware import export
from marsnn.network import Network
from marsnn.neurons import (
    ALIF,
    ATMN,
    LIF,
    PLIF,
    CubaLIF,
    IntegerLIF,
    Izhikevich,
    LeakyIntegrator,
    Recurrent,
    TernaryLIF,
)
from marsnn.ssm import S4D, SSD, SSDCore

T = 3
FLAT = (6,)
IMAGE = (1, 6, 6)


def _behind(layer: nn.Module, width: int = 5) -> Network:
    """A Linear, the layer, and neurons at the end, which every target takes."""
    return Network(
        {
            "fc": nn.Linear(6, width),
            "own": layer,
            "out": nn.Linear(width, 4),
            "last": LIF(4, T, reset="zero", threshold=0.1),
        }
    )


def _atmn(tau: float, fire_at: float = 1.0) -> Callable[[], Network]:
    return lambda: Network(
        {"fc": nn.Linear(6, 5), "own": ATMN(5, T, tau=tau, fire_at=fire_at, threshold=0.3),
         "out": nn.Linear(5, 4), "last": ATMN(4, T, tau=tau, fire_at=fire_at, threshold=0.1)}
    )  # fmt: skip


def _seen(*layers: nn.Module, size: int = 12) -> Network:
    """Layers on an image, and neurons behind them."""
    return Network([*layers, nn.Flatten(), nn.Linear(size, 4), _hard(4, 0.1)])


def _lif(**settings: object) -> Callable[[], Network]:
    return lambda: _behind(LIF(5, T, threshold=0.3, **settings))  # type: ignore[arg-type]


def _hard(features: int, threshold: float, **settings: Any) -> LIF:
    return LIF(features, T, threshold=threshold, reset="zero", **settings)


def _recurrent(carry: str) -> Callable[[], Network]:
    """Of netx, which clears all layers together, both neurons have the same carry."""
    return lambda: Network(
        {
            "fc": nn.Linear(6, 5, bias=False),
            "own": Recurrent(_hard(5, 0.3, carry=carry)),
            "out": nn.Linear(5, 4),
            "last": _hard(4, 0.1, carry=carry),
        }
    )


def _carried() -> Network:
    first, last = (_hard(n, threshold, carry="sequence") for n, threshold in ((5, 0.3), (4, 0.1)))
    return Network([nn.Linear(6, 5), first, nn.Linear(5, 4), last])


ROWS: dict[str, tuple[Callable[[], Network], tuple[int, ...]]] = {
    "ATMN, tau = 1/2": (_atmn(0.5), FLAT),
    "ATMN, tau = 1/2, fires at V / 2 (TMN)": (_atmn(0.5, 0.5), FLAT),
    "ATMN, tau = 1": (_atmn(1.0), FLAT),
    "ATMN, tau = 2": (_atmn(2.0), FLAT),
    "LIF, reset to zero": (_lif(reset="zero"), FLAT),
    "LIF, reset by subtraction": (_lif(reset="subtract"), FLAT),
    "LIF, state carried over tokens": (_carried, FLAT),
    "PLIF, reset to zero": (lambda: _behind(PLIF(5, T, threshold=0.3, reset="zero")), FLAT),
    "CubaLIF, reset to zero": (lambda: _behind_without_bias(CubaLIF(5, T, threshold=0.3, reset="zero")),
    FLAT), "ALIF": (lambda: _behind(ALIF(5, T, threshold=0.2)), FLAT),
    "IntegerLIF": (lambda: _behind(IntegerLIF(5, T, threshold=0.2)), FLAT),
    "TernaryLIF": (lambda: _behind(TernaryLIF(5, T, threshold=0.2)), FLAT),
    "recurrent LIF, reset to zero": (_recurrent("token"), FLAT),
    "recurrent LIF, state carried over tokens": (_recurrent("sequence"), FLAT),
    "recurrent TernaryLIF": (lambda: _behind(Recurrent(TernaryLIF(5, T, threshold=0.2))), FLAT),
    "LeakyIntegrator": (lambda: _behind(LeakyIntegrator(5, T)), FLAT),
    "Izhikevich": (lambda: _behind(Izhikevich(5, T)), FLAT),
    "Linear as the last layer": (lambda: Network([nn.Linear(6, 5), _hard(5, 0.3), nn.Linear(5, 3)]), FLAT),
    "Conv2d": (
        lambda: _seen(nn.Conv2d(1, 3, 3), _hard(3, 0.2, feature_dim=-3), size=48),
        IMAGE,
    ),
    "AvgPool2d": (
        lambda: _seen(nn.Conv2d(1, 3, 3), _hard(3, 0.2, feature_dim=-3), nn.AvgPool2d(2)),
        IMAGE,
    ),
    "Conv1d": (
        lambda: _seen(nn.Conv1d(1, 3, 3), _hard(3, 0.2, feature_dim=-2)),
        (1, 6),
    ),
    "a skip": (
        lambda: Network(
            {"fc": nn.Linear(6, 5), "a": _hard(5, 0.3), "in": nn.Linear(5, 5), "b": _hard(5, 0.3),
             "out": nn.Linear(5, 4), "last": _hard(4, 0.1)},
            skips={"out": "a"},
        ),
        FLAT,
    ),
    "GatedLinear": (
        lambda: Network([ATMN(6, T), GatedLinear(6, 8), ATMN(8, T, threshold=0.05), nn.Linear(8, 3)]), FLAT,
    ),
    "RMSNorm": (lambda: Network([nn.RMSNorm(6), ATMN(6, T), nn.Linear(6, 3)]), FLAT),
    "LayerNorm": (lambda: Network([nn.LayerNorm(6), ATMN(6, T), nn.Linear(6, 3)]), FLAT),
    "S4D": (lambda: Network([nn.Linear(6, 8), S4D(8, 4), ATMN(8, T, threshold=0.3), nn.Linear(8, 3)]), FLAT),
    "SSDCore": (lambda: _ssd(), FLAT),
    "SSD with its own projections": (
        lambda: Network([SSD(6, head_dim=4, state_size=4), ATMN(6, T), nn.Linear(6, 3)]), FLAT,
    ),
    "MaxPool2d": (
        lambda: _seen(nn.Conv2d(1, 3, 3), _hard(3, 0.2, feature_dim=-3), nn.MaxPool2d(2)),
        IMAGE,
    ),
    "ReLU": (lambda: Network([nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), LIF(4, T)]), FLAT),
}  # fmt: skip
"""Row -> a network that has it, and the shape of its input."""


def _behind_without_bias(layer: nn.Module) -> Network:
    return Network(
        {
            "fc": nn.Linear(6, 5, bias=False),
            "own": layer,
            "out": nn.Linear(5, 4, bias=False),
            "last": LIF(4, T, reset="zero", threshold=0.1),
        }
    )


def _ssd() -> Network:
    core = SSDCore(heads=2, head_dim=4, state_size=4, groups=1, rope=10000.0, scale_input=True)
    return Network([ATMN(6, T), nn.Linear(6, core.inputs), core, ATMN(8, T, threshold=0.05), nn.Linear(8, 3)])


TARGETS: dict[str, dict[str, str]] = {
    "Lava, window": {"target": "lava", "mode": "window"},
    "Lava, count": {"target": "lava", "mode": "count"},
    "Lava, stock LIFs": {"target": "lava", "mode": "stock-lif"},
    "netx": {"target": "netx"},
    "NIR": {"target": "nir"},
}
"""Column -> arguments of `export`."""


def made(row: str) -> tuple[Network, torch.Tensor]:
    """The network of a row, and a sample x [L, B, *D]."""
    torch.manual_seed(0)
    build, shape = ROWS[row]
    network = build()
    return network.eval(), torch.randn(4, 3, *shape, generator=torch.Generator().manual_seed(1))


def attempt(row: str, target: str, path: Path) -> str:
    """ "exact" where the network is written, "refused" where it is refused."""
    network, sample = made(row)
    try:
        export(network, sample, path, **TARGETS[target])  # type: ignore[arg-type]
    except ExportError:
        return "refused"
    return "exact"


def table() -> str:
    """Every row on every target, in Markdown."""
    lines = ["| | " + " | ".join(TARGETS) + " |", "|---" * (1 + len(TARGETS)) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for row in ROWS:
            cells = [attempt(row, target, Path(folder) / f"{i}") for i, target in enumerate(TARGETS)]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
