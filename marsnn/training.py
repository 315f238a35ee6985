"""Training of Networks by surrogate gradients: classification of sequences x [L, B, *D]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.checks import count, finite, positive
from marsnn.errors import InputError, MarsnnError, ShapeError
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
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay must be finite and >= 0, got {self.weight_decay!r}")


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
        ShapeError: x and y differ in B.   MarsnnError: the loss became NaN or infinite; the network keeps
        the weights of the last finite update.
    """
    config = config or TrainConfig()
    finite("x", x)
    if y.ndim != 1 or x.ndim < 3 or len(y) != x.shape[1]:
        raise ShapeError(f"expected x [L, B, *D] and y [B], got {list(x.shape)} and {list(y.shape)}")
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
    updates = config.epochs * math.ceil(len(y) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    shuffle = torch.Generator().manual_seed(config.seed)
    history = History()
    network.train()
    for epoch in track(range(config.epochs), "training", enabled=progress):
        total = 0.0
        for chosen in torch.randperm(len(y), generator=shuffle).split(config.batch_size):
            chosen = chosen.to(x.device)
            loss = F.cross_entropy(logits(network, x[:, chosen]), y[chosen])
            value = loss.item()
            if not math.isfinite(value):
                raise MarsnnError(
                    f"the loss became {value} in epoch {epoch + 1}; the weights of the last finite update "
                    f"are kept. Try a learning_rate below {config.learning_rate:g}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += value * len(chosen)
        history.loss.append(total / len(y))
    network.eval()
    return history


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of sequences x [L, B, *D] whose highest score is the class y [B]."""
    was_training = network.training
    network.eval()
    right = (logits(network, x).argmax(-1) == y).float().mean().item()
    network.train(was_training)
    return right
