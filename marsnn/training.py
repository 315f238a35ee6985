"""Training of Networks by surrogate gradients: classification of sequences x [L, B, *D]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.checks import count, finite, positive
from marsnn.errors import DivergedError, InputError, NonFiniteError, ShapeError
from marsnn.network import evaluating
from marsnn.progress import track


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the sentences below are the command line's help too."""

    epochs: int = field(default=40, metadata={"help": "passes over the training data"})
    batch_size: int = field(default=64, metadata={"help": "samples per update"})
    learning_rate: float = field(default=3e-3, metadata={"help": "peak rate of AdamW, annealed by a cosine"})
    weight_decay: float = field(default=1e-2, metadata={"help": "of AdamW, on matrices only"})
    seed: int = field(default=0, metadata={"help": "of the shuffling"})

    def __post_init__(self) -> None:
        count("epochs", self.epochs)
        count("batch_size", self.batch_size)
        positive("learning_rate", self.learning_rate)
        decay = self.weight_decay
        if not isinstance(decay, Real) or not math.isfinite(decay) or decay < 0:
            raise InputError(f"weight_decay must be finite and >= 0, got {decay!r}")
        if not isinstance(self.seed, Integral):
            raise InputError(f"seed must be a whole number, got {self.seed!r}")


@dataclass
class History:
    """Mean training loss of each epoch, in nats per sample."""

    loss: list[float] = field(default_factory=list)


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """Class scores [B, C] of sequences x [L, B, *D]: the network's output [L, B, C], averaged over tokens."""
    output: Tensor = network(x)
    if output.ndim != 3:
        raise ShapeError(f"a classifier must give [L, B, C], this network gives {list(output.shape)}")
    return output.mean(0)


def train(
    network: nn.Module, x: Tensor, y: Tensor, config: TrainConfig | None = None, progress: bool = False
) -> History:
    """Fit a classifier in place by AdamW on the cross entropy.

    Args:
        network: a `Network`, or any module from x [L, B, *D] to [L, B, C].
        x: [L, B, *D].   y: [B] class indices.
        config: see `TrainConfig`.
        progress: draw a bar on a terminal.

    Returns:
        The losses. Equal seeds, weights and threads give equal results on one machine.

    Raises:
        ShapeError: x and y differ in B.   InputError: y is not made of class indices.   DivergedError: the
        loss or a gradient became NaN or infinite; the network keeps the weights of the last finite loss.
    """
    config = config or TrainConfig()
    _check_data(x, y)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("the network has no parameters to train; set requires_grad or add a Linear")
    y = y.long()
    optimizer = _optimizer(parameters, config.learning_rate, config.weight_decay)
    updates = config.epochs * math.ceil(len(y) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    shuffle = torch.Generator().manual_seed(config.seed)
    history = History()
    last_good = [p.detach().clone() for p in parameters]
    network.train()
    try:
        for _ in track(range(config.epochs), "training", enabled=progress):
            total = 0.0
            for chosen in torch.randperm(len(y), generator=shuffle).split(config.batch_size):
                chosen = chosen.to(x.device)
                loss = _finite_loss(network, x[:, chosen], y[chosen])
                _keep(last_good, parameters)  # these weights gave a finite loss
                optimizer.zero_grad()
                loss.backward()
                if not all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in parameters):
                    raise _Diverged("the gradient")
                optimizer.step()
                schedule.step()
                total += loss.item() * len(chosen)
            history.loss.append(total / len(y))
        with torch.no_grad():
            _finite_loss(network, x[:, : config.batch_size], y[: config.batch_size])
    except _Diverged as error:
        _keep(parameters, last_good)
        epoch = min(len(history.loss) + 1, config.epochs)
        raise DivergedError(
            f"{error} became NaN or infinite in epoch {epoch}; the weights of the last finite loss are kept. "
            f"Try a learning_rate below {config.learning_rate:g}"
        ) from error
    finally:
        network.eval()
    return history


@dataclass(frozen=True)
class StreamConfig:
    """How to train on batches that are drawn as they are needed."""

    updates: int = field(default=1000, metadata={"help": "batches, each drawn anew"})
    learning_rate: float = field(default=5e-3, metadata={"help": "peak rate of AdamW"})
    weight_decay: float = field(default=1e-2, metadata={"help": "of AdamW, on matrices only"})
    warmup: int = field(default=100, metadata={"help": "updates until the peak; a cosine follows"})
    clip: float = field(default=1.0, metadata={"help": "largest norm of the gradient"})

    def __post_init__(self) -> None:
        for name in ("updates", "warmup"):
            count(name, getattr(self, name))
        for name in ("learning_rate", "clip"):
            positive(name, getattr(self, name))


IGNORED = -100
"""A target that is not asked for."""


def train_stream(
    network: nn.Module,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    config: StreamConfig | None = None,
    progress: bool = False,
) -> History:
    """Fit in place on the cross entropy of every token's target.

    Args:
        network: any module from x [L, B, *D] to scores [L, B, C].
        draw: the batch of an update, x [L, B, *D] and targets [L, B], `IGNORED` where nothing is asked.
        config: see `StreamConfig`.
        progress: draw a bar on a terminal.

    Returns:
        The losses, one an update. Equal weights, batches and threads give equal results on one machine.

    Raises:
        ShapeError: targets don't fit the scores.   DivergedError: a loss or gradient became NaN or infinite;
        the network keeps the weights of the last finite loss.
    """
    config = config or StreamConfig()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, config.learning_rate, config.weight_decay)

    schedule = warmup_cosine(optimizer, config.warmup, config.updates)
    history = History()
    last_good = [p.detach().clone() for p in parameters]
    network.train()
    try:
        for update in track(range(config.updates), "training", enabled=progress):
            loss = _stream_loss(network, *draw(update))
            _keep(last_good, parameters)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, config.clip)
            if not bool(torch.isfinite(norm)):
                raise _Diverged("the gradient")
            optimizer.step()
            schedule.step()
            history.loss.append(loss.item())
    except _Diverged as error:
        _keep(parameters, last_good)
        raise DivergedError(
            f"{error} became NaN or infinite in update {len(history.loss) + 1}; the weights of the last "
            f"finite loss are kept. Try a learning_rate below {config.learning_rate:g}"
        ) from error
    finally:
        network.eval()
    return history


def warmup_cosine(
    optimizer: torch.optim.Optimizer, warmup: int, updates: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The rate rises linearly over `warmup` updates, under a cosine that ends at 0 after `updates`."""

    def pace(update: int) -> float:
        rise = min(1.0, (update + 1) / warmup)
        return rise * (1 + math.cos(math.pi * update / updates)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, pace)


def _stream_loss(network: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    try:
        scores: Tensor = network(x)
    except NonFiniteError as error:
        raise _Diverged("the activations") from error
    if scores.shape[:-1] != targets.shape:
        raise ShapeError(f"scores {list(scores.shape)} need targets {list(scores.shape[:-1])}, got "
                         f"{list(targets.shape)}")  # fmt: skip
    loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    if not bool(torch.isfinite(loss)):
        raise _Diverged("the loss")
    return loss


def _optimizer(parameters: Sequence[Tensor], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; only matrices decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


class _Diverged(Exception):
    """A loss or a gradient left the finite numbers."""


def _finite_loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    try:
        scores = logits(network, x)
    except NonFiniteError as error:  # a neuron noticed it before the loss did
        raise _Diverged("the activations") from error
    if int(y.max()) >= scores.shape[-1]:
        raise InputError(f"y holds class {int(y.max())}, the network tells {scores.shape[-1]} classes apart")
    loss = F.cross_entropy(scores, y)
    if not bool(torch.isfinite(loss)):
        raise _Diverged("the loss")
    return loss


@torch.no_grad()
def _keep(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _check_data(x: Tensor, y: Tensor) -> None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise InputError(f"x and y must be tensors, got {type(x).__name__} and {type(y).__name__}")
    if y.ndim != 1 or x.ndim < 3 or len(y) != x.shape[1] or len(y) == 0:
        raise ShapeError(f"expected x [L, B, *D] and y [B], got {list(x.shape)} and {list(y.shape)}")
    if y.is_floating_point() or int(y.min()) < 0:
        raise InputError(f"y must hold class indices >= 0, got {y.dtype} with minimum {y.min().item():g}")
    finite("x", x)


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of sequences x [L, B, *D] whose highest score is the class y [B]."""
    with evaluating(network):
        return (logits(network, x).argmax(-1) == y).float().mean().item()
