"""Networks for the NIR tests: one for each row of the table in `docs/nir.md`, with their input's shape."""

import torch
from torch import nn

from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, PLIF, CubaLIF, LeakyIntegrator, Recurrent

HARD = {"reset": "zero", "steps": 1, "carry": "sequence"}
V = torch.linspace(0.2, 0.6, 16)


def dense(neuron):
    """6 inputs, 16 neurons, 3 neurons on the spikes of the first."""
    layers = {"a": nn.Linear(6, 16), "n": neuron, "b": nn.Linear(16, 3, bias=False)}
    return Network({**layers, "m": LIF(threshold=0.25, tau=2.0, **HARD)})


def images(*behind):
    neuron = LIF(4, feature_dim=-3, threshold=0.25, **HARD)
    return Network({"a": nn.Conv2d(2, 4, 3), "n": neuron, **dict(behind)})


ROWS = {
    "`Linear`, `LIF`": lambda: (dense(LIF(16, beta=0.9, threshold=0.7, **HARD)), (6,)),
    "`LIF`, settings for each neuron": lambda: (
        dense(LIF(16, beta=torch.linspace(0.1, 0.9, 16), threshold=V, **HARD)),
        (6,),
    ),
    "`LIF`, beta = 0": lambda: (dense(LIF(16, beta=0.0, threshold=0.4, **HARD)), (6,)),
    "`LIF`, beta = 1": lambda: (dense(LIF(16, beta=1.0, threshold=0.6, **HARD)), (6,)),
    "`PLIF`": lambda: (dense(PLIF(16, tau=3.0, threshold=0.7, **HARD)), (6,)),
    "`CubaLIF`": lambda: (dense(CubaLIF(16, alpha=0.6, beta=0.8, threshold=0.7, **HARD)), (6,)),
    "`LeakyIntegrator`": lambda: (
        Network([nn.Linear(6, 16), LIF(16, **HARD), LeakyIntegrator(16, steps=1, carry="sequence")]),
        (6,),
    ),
    "`Recurrent(LIF)`": lambda: (dense(Recurrent(LIF(16, beta=0.9, threshold=0.7, **HARD))), (6,)),
    "`Recurrent(LIF)` with a bias": lambda: (
        dense(Recurrent(LIF(16, beta=0.9, threshold=0.7, **HARD), bias=True)),
        (6,),
    ),
    "`Recurrent(CubaLIF)`": lambda: (
        dense(Recurrent(CubaLIF(16, alpha=0.6, beta=0.8, threshold=0.7, **HARD))),
        (6,),
    ),
    "a skip": lambda: (
        Network(
            {
                "a": nn.Linear(6, 8),
                "n": LIF(8, threshold=0.5, **HARD),
                "b": nn.Linear(8, 8),
                "m": LIF(8, threshold=0.5, **HARD),
                "c": nn.Linear(8, 3),
            },
            skips={"c": "n"},
        ),
        (6,),
    ),
    "a skip where thresholds differ": lambda: (
        Network(
            {
                "a": nn.Linear(6, 8),
                "n": LIF(8, threshold=0.7, **HARD),
                "b": nn.Linear(8, 8),
                "m": LIF(8, threshold=0.3, **HARD),
                "c": nn.Linear(8, 3),
            },
            skips={"c": "n"},
        ),
        (6,),
    ),
    "`Conv1d`": lambda: (
        Network([nn.Conv1d(2, 4, 3, padding=1), LIF(4, feature_dim=-2, threshold=0.4, **HARD)]),
        (2, 9),
    ),
    "`Conv2d`": lambda: (
        images(("b", nn.Conv2d(4, 3, 2, stride=2, bias=False)), ("m", LIF(threshold=0.25, **HARD))),
        (2, 6, 6),
    ),
    "`Flatten`": lambda: (images(("f", nn.Flatten()), ("b", nn.Linear(64, 3))), (2, 6, 6)),
    "`AvgPool2d`": lambda: (
        images(("p", nn.AvgPool2d(2)), ("b", nn.Conv2d(4, 3, 1)), ("m", LIF(threshold=0.1, **HARD))),
        (2, 6, 6),
    ),
    "`AvgPool2d(divisor_override=1)`": lambda: (
        images(
            ("p", nn.AvgPool2d(2, divisor_override=1)),
            ("b", nn.Conv2d(4, 3, 1)),
            ("m", LIF(threshold=0.2, **HARD)),
        ),
        (2, 6, 6),
    ),
    "`ATMN`, tau >= 1": lambda: (
        Network([nn.Linear(6, 16), ATMN(16, tau=2.0, threshold=V), nn.Linear(16, 3)]),
        (6,),
    ),
}
