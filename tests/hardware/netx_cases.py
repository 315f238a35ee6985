"""Integer models to run in Lava through netx: random ones kept busy, directed ones that sit on boundaries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from marsnn.hardware.loihi import UNITY, Layer, LoihiModel, conv_shape, run_layer
from marsnn.hardware.netx_file import write_model
from marsnn.network import Network
from marsnn.neurons import LIF, Recurrent


@dataclass(frozen=True)
class NetxCase:
    """A model and its inputs [W, *D]."""

    name: str
    model: LoihiModel
    inputs: np.ndarray


def write_netx_case(case: NetxCase, folder: Path) -> Path:
    return write_model(folder / f"{case.name}.net", case.model, case.inputs, case.model.run(case.inputs))


def layer(name, weight, threshold, current_decay=UNITY, voltage_decay=UNITY, bias=0, shape=None, **rest):
    weight = np.array(weight, dtype=np.int64)
    bias = np.broadcast_to(np.array(bias, dtype=np.int64), (len(weight),)).copy()
    return Layer(name, weight, bias, threshold, current_decay, voltage_decay, shape or (len(weight),), **rest)


def random_weight(rng, shape):
    """Of every kind that netx tells apart: signs, sizes, common factors."""
    low, high = [(-128, 127), (-256, 254), (1, 255), (0, 255), (-255, -1), (-200, 0), (-7, 7)][
        rng.integers(7)
    ]
    weight = rng.integers(low, high + 1, shape)
    factor = 2 ** int(rng.choice([0, 0, 0, 1, 3]))
    weight = np.fix(weight / factor).astype(np.int64) * factor
    if not weight.any():
        weight.flat[0] = 1
    return weight


def busy(candidate, arriving, *clearing):
    """The layer with the threshold at which nearest to a third of its slots fire, and its spikes."""
    found = []
    for threshold in (0, 3, 20, 90, 500, 3000, 20000):
        trial = replace(candidate, threshold=threshold)
        spikes, _, _ = run_layer(trial, arriving, *clearing)
        found.append((abs(spikes.mean() - 1 / 3), threshold))
    return replace(candidate, threshold=min(found)[1])


def random_netx_case(seed: int, loops: bool = False) -> NetxCase:
    """1 to 4 layers, T from 1 to 6, graded or binary input, cleared or not, every third with convolutions.

    With `loops` the dense layers hear themselves, and every second model drops that where it is cleared.
    """
    rng = np.random.default_rng(seed)
    steps, tokens = int(rng.integers(1, 7)), int(rng.integers(2, 7))
    bits = 8 if seed % 2 else 0
    interval = [None, steps, 2 * steps][seed % 3]
    shape = (int(rng.integers(1, 3)) * 2, 5, 6) if seed % 3 == 0 else (int(rng.integers(2, 9)),)
    low, high = (-127, 127) if bits else (0, 1)
    inputs = rng.integers(low, high + 1, (tokens, *shape))
    model = LoihiModel((), shape, bits, high, steps, interval, drops=loops and seed % 4 > 1)
    total = tokens * steps + 4
    signal = np.zeros((total, *shape), dtype=np.int64)
    signal[: tokens * steps] = np.repeat(inputs, steps, axis=0)
    layers = []
    for index in range(1 + seed % 4):
        decays = [int(rng.choice([0, UNITY, rng.integers(0, UNITY + 1)], p=[0.15, 0.25, 0.6])) for _ in "uv"]
        bias = int(rng.choice([0, 30, 4095]))
        if len(shape) == 3 and index < 2:
            groups = int(rng.choice([1, 2]))
            made = layer(
                f"conv{index}", random_weight(rng, (4, shape[0] // groups, 2, 3)), 1, *decays,
                stride=(1, int(rng.integers(1, 3))), padding=(int(rng.integers(0, 2)), 1),
                dilation=(int(rng.integers(1, 3)), 1), groups=groups,
            )  # fmt: skip
            made = replace(made, shape=conv_shape(made, shape))
        else:
            neurons = int(rng.integers(2, 9))
            made = layer(f"dense{index}", random_weight(rng, (neurons, int(np.prod(shape)))), 1, *decays)
            if loops:
                made = replace(made, recurrent=random_weight(rng, (neurons, neurons)))
        made = replace(made, bias=rng.integers(-bias - (bias == 4095), bias + 1, len(made.weight)))
        arriving = np.concatenate([np.zeros_like(signal[:1]), signal[:-1]])
        clearing = interval, 2 + index, model.drops
        made = busy(made, arriving, *clearing)
        signal, _, _ = run_layer(made, arriving, *clearing)
        layers.append(made)
        shape = made.shape
    return NetxCase(f"random{seed}{'_loops' * loops}", replace(model, layers=tuple(layers)), inputs)


def directed_netx_cases() -> list[NetxCase]:
    """One rule each, with states that sit where it decides."""

    def spikes(*rows):
        return np.array(rows, dtype=np.int64)

    def case(name, layers, inputs, graded=False, **settings):
        shape = inputs.shape[1:]
        bits, largest = (8, 127) if graded else (0, 1)
        return NetxCase(name, LoihiModel(tuple(layers), shape, bits, largest, **settings), inputs)

    silence = [[0, 0]] * 10
    # Nine senders: four at -256, four at 254 and one at 2; one more at -256 to reach -2^23.
    wide = [[-256] * 4 + [254] * 4 + [2] + [-256]]
    down, up = [127] * 4 + [0] * 6, [0] * 4 + [127] * 4 + [0] * 2
    return [
        # a voltage at the threshold, one code above it and one below
        case("threshold", [layer("a", [[20], [21], [19]], 20)], spikes([1], [0], [1])),
        # currents -64, -32, .. -1, 0, 0: they sum to -127, and 7 codes bring 321, one above 5 codes
        case("toward_zero", [layer("a", [[-1, 7]], 5, 2048, 0)], spikes([1, 0], *silence, [0, 1], [0, 0])),
        # a voltage decays by 1 - 1/4096 while a current would by one more
        case(
            "decay_constants",
            [
                layer("a", [[100, -3], [101, -3]], 240, UNITY - 1, 1),
                layer("b", [[90, -50], [90, 25]], 150, 1, 2000),
            ],
            spikes(*[[1, 0]] * 40, *[[0, 1]] * 20, *[[1, 1]] * 30),
        ),
        # clipped at -(2^23 - 1), lifted by 131082 codes: 641 of 640
        case(
            "clip",
            [layer("a", wide, 10, UNITY, 0)],
            spikes(down, down, up, [0] * 4 + [8] + [0] * 3 + [9, 0], [0] * 10),
            graded=True,
        ),
        # currents of 2^23 stay, of -2^23 wrap to 2^23 and fire, of more wrap below zero
        case(
            "wrap",
            [layer("a", wide, 100)],
            spikes(
                [0] * 4 + [127] * 3 + [127, 0, 0],
                [0] * 4 + [127] * 4 + [127, 0],
                [0] * 10,
                [127] * 4 + [0] * 5 + [4],
                [0] * 10,
                [127] * 4 + [0] * 5 + [5],
                [0] * 10,
            ),
            graded=True,
        ),
        # the lowest bit of mixed weights, below and above 7 bits
        case("odd", [layer("a", [[1, -127], [3, 2]], 0)], spikes([1, 0], [0, 1])),
        case("odd_large", [layer("a", [[201, -1], [199, 2]], 200)], spikes([1, 0], [0, 1])),
        # no positive weight, and a power of two: -64 counts as -63, -128 beside 0 as -64; bias against them
        case("inhibitory", [layer("a", [[-64, -3], [-1, -5]], 2, bias=66)], spikes([1, 0], [0, 1], [1, 1])),
        case("inhibitory_zero", [layer("a", [[-128, 0]], 10, bias=100)], spikes([1, 0], [0, 1])),
        # states of three biased layers, cleared where their windows open
        *(
            case(
                f"cleared_{interval}",
                [
                    layer("a", [[3, -2], [2, 4]], 7, 2048, 0, bias=1),
                    layer("b", [[3, 2], [-1, 4]], 9, 1024, 100, bias=2),
                    layer("c", [[5, 2], [1, -4]], 11, 0, 0, bias=1),
                ],
                spikes([1, 1], [1, 0], [0, 1], [0, 0], [1, 1], [1, 1]),
                steps=3,
                reset_interval=interval,
            )
            for interval in (None, 3, 9)
        ),
        *looping_netx_cases(),
    ]


def looping_netx_cases() -> list[NetxCase]:
    """Layers that hear themselves."""
    links = np.zeros((5, 5), dtype=np.int64)
    links[[1, 2, 3, 4], [0, 1, 2, 3]] = 5, 5, 5, 4  # 5 is one code above the threshold, 4 lies on it
    chain = layer("a", np.diag([5, 0, 0, 0, 5]), 4, recurrent=links)
    pulses = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    excites, inhibits = [[50, 3], [50, 3]], [[-64, -64], [-64, -64]]
    bits = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 1], [0, 0]])

    def case(name, layers, inputs, **settings):
        return NetxCase(name, LoihiModel(tuple(layers), inputs.shape[1:], **settings), inputs)

    def clearing(name, layers, inputs, steps):
        """By the token as Lava does it, with the spikes on their way back dropped, and that by two tokens."""
        return [
            case(f"{name}_{interval}{'_drops' * drops}", layers, inputs, steps=steps,
                 reset_interval=interval, drops=drops)
            for interval, drops in [(steps, False), (steps, True), (2 * steps, True)]
        ]  # fmt: skip

    return [
        # a spike goes from neuron to neuron, a step each, and dies at the last link or where it is dropped
        *clearing("chain", [chain, replace(chain, name="b", weight=np.diag([0, 5, 0, 0, 0]))], pulses, 1),
        *clearing("chain_held", [chain], pulses, 2),
        # biases fire before the input comes; that comes back into the first step, and upsets the count
        *clearing(
            "biased",
            [
                layer("a", [[3, -2], [2, 4]], 5, UNITY, 0, bias=6, recurrent=np.array([[0, -9], [4, -1]])),
                layer("b", [[3, 2], [-1, 4]], 9, 2048, 100, bias=4, recurrent=np.array([[3, -5], [-2, 1]])),
            ],
            bits,
            3,
        ),
        # -64 beside 50 is shifted to -256, which a Dense without a positive weight holds as -255 and cuts to
        # -254: two of them are worth -127, not -128, and not the -126 of a matrix with a scale of its own
        case(
            "inhibited_by_itself",
            [layer("a", excites, 0, bias=[127, 128], recurrent=np.array(inhibits))],
            bits[[3, 3, 0, 3, 3, 2, 1, 3]],
        ),
        # the same of the input, with the 53 that come back
        case(
            "excited_by_itself",
            [layer("a", inhibits, 0, bias=[127 - 53, 128 - 53], recurrent=np.array(excites))],
            bits[[3, 3, 2, 3, 3, 2, 0, 1]],
        ),
        # one of the two with nothing in it
        case(
            "one_of_zeros",
            [
                layer("a", [[0, 0], [0, 0]], 1, bias=2, recurrent=-links[:2, :2]),
                layer("b", [[1, 2], [3, 1]], 2, recurrent=0 * links[:2, :2]),
            ],
            bits,
        ),
    ]


def tied_network(carry: str, tokens: int) -> tuple[Network, torch.Tensor]:
    """A chain in floats, each link bringing just the threshold of its neuron; x [L, B, 4], B = 3.

    Samples end with spikes on their way, and so do tokens.
    """
    thresholds = torch.tensor([0.5, 1.0, 2.0, 0.25])
    settings = {"steps": 3, "beta": 0.0, "threshold": thresholds, "reset": "zero", "carry": carry}
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    chain, behind = Recurrent(LIF(4, **settings), bias=True), Recurrent(LIF(4, **settings))
    with torch.no_grad():
        first.weight.copy_(torch.diag(thresholds * torch.tensor([1.0, 0.5, 0.0, 1.0])))
        second.weight.copy_(torch.eye(4))
        chain.recurrent.bias.copy_(torch.tensor([0.0, 0.0, -1.0, 0.0]))
        for of, last in ((chain, 0.0), (behind, 1.0)):
            links = torch.tensor([[0, 0, 0, last], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
            of.recurrent.weight.copy_(links * thresholds[:, None] / thresholds)
        chain.recurrent.weight[2, 1] *= 1.5  # meets the threshold, its bias of half of it taken off
    x = torch.zeros(tokens, 3, 4)
    x[0, 0, 0] = x[-1, 0, :2] = x[0, 1, 3] = x[-1, 1, 0] = x[-1, 2, 1] = 1.0
    return Network({"in": first, "chain": chain, "next": second, "behind": behind}), x
