"""Who runs in `marsnn bench neurons`: our neurons, and the nearest models of three libraries.

Nearest means the same family, each with its library's default surrogate and the calls that its users make
for T steps: SpikingJelly's multi-step mode, a loop over the steps where that is the way. docs/interop.md has
where the models differ; here they only race.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from marsnn import neurons

Run = Callable[[Tensor], Tensor]
"""Currents [T, B, N] to spikes [T, B, N], from rest."""

LIBRARIES = ("marsnn", "spikingjelly", "snntorch", "norse")


class Contestant(NamedTuple):
    """One neuron of one library."""

    model: str  # ours, the model that it is measured under
    library: str  # of LIBRARIES
    what: str  # its name there
    build: Callable[[int, int], nn.Module]  # of N and T
    drive: Callable[[nn.Module], Run]

    def make(self, features: int, steps: int, device: str = "cpu") -> Run:
        """Ready to run."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what other libraries say while they are imported
            return self.drive(self.build(features, steps).to(device))


def installed() -> dict[str, str]:
    """The versions of those libraries that are here."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def entries() -> list[Contestant]:
    """All that can run here, ours first under each model."""
    here = installed()
    return [each for each in _OURS + _PEERS if each.library in here]


# ---- ours -----------------------------------------------------------------------------------------------


def _spikes(neuron: nn.Module) -> Run:
    def run(x: Tensor) -> Tensor:
        return neuron(x)[0]  # type: ignore[no-any-return]

    return run


def _ours(model: str, backend: str = "auto", **settings: Any) -> Contestant:
    def build(features: int, steps: int) -> nn.Module:
        return neurons.get(model)(features, steps=steps, backend=backend, **settings)  # type: ignore

    return Contestant(
        model, "marsnn", model if backend == "auto" else f"{model}, step by step", build, _spikes
    )


_OURS = [
    _ours("LIF"),
    _ours("LIF", backend="reference"),
    _ours("ATMN"),
    _ours("ATMN", backend="reference"),
    *(_ours(model) for model in ("TernaryLIF", "PLIF", "CubaLIF", "ALIF", "IntegerLIF", "TMN", "Izhikevich")),
]


# ---- peers ----------------------------------------------------------------------------------------------


def _jelly(model: str, name: str, **settings: Any) -> Contestant:
    def build(features: int, steps: int) -> nn.Module:
        from spikingjelly.activation_based import neuron

        module: nn.Module = getattr(neuron, name)(**settings)
        module.step_mode = "m"  # type: ignore[assignment]
        return module

    def drive(module: nn.Module) -> Run:
        from spikingjelly.activation_based.functional import reset_net

        def run(x: Tensor) -> Tensor:
            reset_net(module)
            return module(x)  # type: ignore[no-any-return]

        return run

    return Contestant(model, "spikingjelly", name, build, drive)


def _snntorch(model: str, name: str, **settings: Any) -> Contestant:
    def build(features: int, steps: int) -> nn.Module:
        import snntorch

        return getattr(snntorch, name)(**settings)  # type: ignore[no-any-return]

    def drive(module: nn.Module) -> Run:
        def run(x: Tensor) -> Tensor:
            state = module.reset_mem()  # type: ignore[operator]
            state = state if isinstance(state, tuple) else (state,)
            spikes = []
            for current in x:
                spike, *state = module(current, *state)
                spikes.append(spike)
            return torch.stack(spikes)

        return run

    return Contestant(model, "snntorch", name, build, drive)


def _norse(model: str, name: str, *arguments: Any) -> Contestant:
    def build(features: int, steps: int) -> nn.Module:
        import norse.torch as norse

        return getattr(norse, name)(*(argument(norse) for argument in arguments))  # type: ignore[no-any-return]

    def drive(module: nn.Module) -> Run:
        def loop(x: Tensor) -> Tensor:
            state, spikes = None, []
            for current in x:
                spike, state = module(current, state)
                spikes.append(spike)
            return torch.stack(spikes)

        return loop if name.endswith("Cell") else _spikes(module)

    return Contestant(model, "norse", name, build, drive)


_PEERS = [
    _jelly("LIF", "LIFNode"),
    _snntorch("LIF", "Leaky", beta=0.5),
    _norse("LIF", "LIFBoxCell"),
    _jelly("ATMN", "TernaryLIFNode"),
    _jelly("TernaryLIF", "TernaryLIFNode"),
    _jelly("PLIF", "ParametricLIFNode"),
    _snntorch("PLIF", "Leaky", beta=0.5, learn_beta=True),
    _jelly("CubaLIF", "CUBALIFNode"),
    _snntorch("CubaLIF", "Synaptic", alpha=0.5, beta=0.5),
    _norse("CubaLIF", "LIF"),
    _norse("ALIF", "LSNN"),
    _jelly("IntegerLIF", "ILIFNode"),
    _jelly("TMN", "TernaryLIFNode"),
    _jelly("Izhikevich", "IzhikevichNode"),
    _norse("Izhikevich", "Izhikevich", lambda norse: norse.tonic_spiking),
]
