"""One network of an ablation: built around a neuron, trained, measured.

Networks of equal seeds are paired: whatever the neuron, they start from the same weights and see the same
shuffling. Random numbers that a neuron draws for itself are drawn aside.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from marsnn import surrogate as surrogates
from marsnn.data import Split
from marsnn.energy import count
from marsnn.errors import DivergedError, InputError
from marsnn.network import evaluating
from marsnn.neurons.base import Neuron
from marsnn.tasks import Make, Source, Task, load_task
from marsnn.training import TrainConfig, accuracy, train
from marsnn.workers import peak_memory_mb, start_peak_memory

Settings = Mapping[str, Any]
"""Setting -> value: those of `TRAINING` go to the training, all others to the neuron's constructor."""

Factory = Callable[..., Neuron]
"""factory(features, steps=T, **settings): a registered class, or your own function."""

TRAINING = ("learning_rate", "weight_decay")
OFFERED = ("tau", "threshold", "surrogate", "carry")
"""What a factory is given if it has an argument of that name, or takes **settings."""

SURROGATES = ("atan", "sigmoid", "triangular", "fast_sigmoid", "rectangular", "erf", "straight_through")


@dataclass(frozen=True)
class Cell:
    """Which network: everything that its result follows from, beside the `Setup`."""

    part: Literal["validation", "test"]  # it is fitted on train, and scored on this
    neuron: str
    steps: int
    surrogate: str | None
    settings: tuple[tuple[str, Any], ...]  # sorted by name
    seed: int

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings)
        surrogate = f", {self.surrogate}" if self.surrogate else ""
        return f"{self.neuron}, T = {self.steps}{surrogate}, {settings}, seed {self.seed} ({self.part})"


@dataclass(frozen=True)
class Setup:
    """What all cells of an ablation have in common; picklable."""

    task: Source
    fingerprint: str  # of the task's data, so that every process works on the same
    factories: dict[str, Factory]
    epochs: int
    batch_size: int
    hidden: int


def run_cell(job: tuple[Setup, Cell]) -> dict[str, Any]:
    """Train one network and score it; on the test part, measure everything else too.

    Returns:
        JSON-ready: accuracy, diverged, wall_s, peak_memory_mb; for the test part also code_snr_db, samples,
        counts (fields of LayerCounts, over the whole part) and unattributed.
    """
    setup, cell = job
    task = _task(setup)
    memory = start_peak_memory()
    started = time.perf_counter()
    network = build(task, setup.factories[cell.neuron], cell, setup.hidden)
    diverged = fit(network, task.train, cell, setup)
    split: Split = getattr(task, cell.part)
    result: dict[str, Any] = {"accuracy": accuracy(network, split.x, split.y), "diverged": diverged}
    if cell.part == "test":
        counts = count(network, split.x, tokens=len(split))  # tokens: an inference is one sample
        result |= {
            "code_snr_db": network_snr_db(network, split.x),
            "samples": len(split),
            "counts": asdict(counts.total),
            "unattributed": dict(counts.unattributed),
        }
    result["wall_s"] = time.perf_counter() - started
    result["peak_memory_mb"] = peak_memory_mb(memory)
    return result


_loaded: dict[str, Task] = {}


def _task(setup: Setup) -> Task:
    """The setup's task, loaded once in a process."""
    if setup.fingerprint not in _loaded:
        task = load_task(setup.task)
        if task.fingerprint != setup.fingerprint:
            raise InputError(
                f"{task.name}: its function gave other data in this process; make it deterministic"
            )
        _loaded.clear()
        _loaded[task.fingerprint] = task
    return _loaded[setup.fingerprint]


# ---- building and training --------------------------------------------------------------------------


def build(task: Task, factory: Factory, cell: Cell, hidden: int) -> nn.Module:
    """The task's network around one neuron, weights from the cell's seed."""
    settings = {name: value for name, value in cell.settings if name not in TRAINING}
    if cell.surrogate is not None:
        settings["surrogate"] = getattr(surrogates, cell.surrogate)()
    if "carry" in arguments(factory):
        settings["carry"] = task.carry
    torch.manual_seed(cell.seed)
    return task.network(maker(cell.neuron, factory, cell.steps, settings), hidden)


def maker(name: str, factory: Factory, steps: int, settings: Settings) -> Make:
    """Populations of one neuron, made without touching the random numbers that make the weights."""

    def make(features: int) -> Neuron:
        with torch.random.fork_rng(devices=()):
            neuron = factory(features, steps=steps, **settings)
        if not isinstance(neuron, Neuron):
            raise InputError(
                f"{name}: its factory gave a {type(neuron).__name__}, not a marsnn Neuron; wrap it in one"
            )
        return neuron

    return make


def fit(network: nn.Module, split: Split, cell: Cell, setup: Setup) -> bool:
    """Train in place; True if it diverged, which leaves the weights of the last finite loss."""
    own = {name: value for name, value in cell.settings if name in TRAINING}
    config = TrainConfig(epochs=setup.epochs, batch_size=setup.batch_size, seed=cell.seed, **own)
    try:
        train(network, split.x, split.y, config)
    except DivergedError:
        return True
    return False


def arguments(factory: Factory) -> dict[str, Any]:
    """What it can be given of `OFFERED`, with its own defaults."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return dict.fromkeys(OFFERED) | {
            name: parameters[name].default for name in OFFERED if name in parameters
        }
    return {name: parameters[name].default for name in OFFERED if name in parameters}


def identity(factory: Factory) -> str:
    """Where a factory comes from, the same in every run: two factories of one name are told apart by it."""
    if isinstance(factory, partial):
        given = re.sub(r" at 0x[0-9a-f]+", "", f"{factory.args} {factory.keywords}")
        return f"{identity(factory.func)} {given}"
    name = getattr(factory, "__qualname__", type(factory).__qualname__)
    return f"{getattr(factory, '__module__', '')}:{name}"


# ---- how well a code holds what it stands for -------------------------------------------------------


def network_snr_db(network: nn.Module, x: Tensor) -> float | None:
    """`code_snr_db` of decode(encode(a)) for the activations a that reach each neuron, mean over layers."""
    heard: dict[Neuron, list[Tensor]] = {}
    with torch.no_grad(), evaluating(network), ExitStack() as stack:
        for neuron in (each for each in network.modules() if isinstance(each, Neuron)):
            stack.enter_context(_overheard(neuron, heard.setdefault(neuron, [])))
        network(x)
    found = []
    with torch.no_grad(), evaluating(network):
        for neuron, activations in heard.items():
            for a in activations:
                features = neuron.feature_dim
                decoded = neuron.decode(neuron.encode(a))
                found.append(code_snr_db(a.movedim(features, -1), decoded.movedim(features, -1)))
    told = [snr for snr in found if snr is not None]
    return sum(told) / len(told) if told else None


@contextmanager
def _overheard(neuron: Neuron, activations: list[Tensor]) -> Iterator[None]:
    """Keep the activations [*, N] that the neuron is asked to stand for, token by token."""

    def token_by_token(currents: Tensor) -> Tensor:
        tokens = currents.unflatten(0, (-1, neuron.steps))  # [tokens, T, *]
        return tokens.sum(1) if neuron.integrates == "token" else tokens.mean(1)

    def listening(call: Callable[..., Any], activation: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def heard(driven: Tensor, *rest: Any, **named: Any) -> Any:
            activations.append(activation(driven))
            return call(driven, *rest, **named)

        return heard

    own = vars(neuron)
    own["forward"] = listening(neuron.forward, token_by_token)
    own["respond"] = listening(neuron.respond, lambda x: x)
    try:
        yield
    finally:
        del own["forward"], own["respond"]


def code_snr_db(x: Tensor, decoded: Tensor) -> float | None:
    """Signal-to-noise ratio of a code in dB, after the best line for each neuron.

        10 log10( sum_n var(x_n) / sum_n min_{g, o} mean (x_n - g_n decoded_n - o_n)^2 )

    The gain g_n and the offset o_n are what the next layer's weights and bias can undo, so only what they
    can't counts as noise; a rate code and a signed code are held to the same x. A code that says nothing has
    0 dB. A code without signs loses the negative half: an exact ReLU of a centred Gaussian has 5.7 dB.

    Args:
        x: [*, N] activations.   decoded: [*, N] what the spikes stand for.

    Returns:
        dB, at most 150; None where x does not vary.
    """
    x, decoded = (each.detach().double().flatten(0, -2) for each in (x, decoded))
    x, decoded = x - x.mean(0), decoded - decoded.mean(0)
    power = decoded.square().mean(0)
    gain = torch.where(power > 0, (x * decoded).mean(0) / power, 0.0)
    signal = x.square().mean(0).sum()
    noise = (x - gain * decoded).square().mean(0).sum()
    if not signal > 0:
        return None
    return 10 * torch.log10(signal / noise.clamp(min=1e-15 * signal)).item()
