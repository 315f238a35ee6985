"""What a change of one layer costs the whole model, without running the layers before it again.

The streams that enter each layer are kept from one run of the model; a changed layer is run from there to
the end, and its predictions are compared with the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.errors import NonFiniteError
from marsnn.refine.modality import modality
from marsnn.refine.model import MarPreTrainedModel


class Cost(NamedTuple):
    """Against the model as it was, per prediction: of each token of text, or of each image."""

    nats: float
    """Increase of the cross-entropy, of the next token or of the class."""
    kl: float
    """Kullback-Leibler divergence of the predictions, model || changed model."""


class Suffix:
    """Streams [B, L, D] of a model on data, and what changes of single layers cost.

    Args:
        model: a refined model; changed layer by layer between calls of `cost`.
        rows: ids [B, L], or images [B, C, H, W].
        labels: classes [B] of images; None for those that the model as it is finds likeliest.

    Attributes:
        nats: cross-entropy of the model as it is.
    """

    def __init__(self, model: MarPreTrainedModel, rows: Tensor, labels: Tensor | None = None) -> None:
        self.model, self.kind = model, modality(model)
        self.streams: list[Tensor] = []
        self.arguments: list[dict[str, Any]] = []
        hooks = [
            layer.register_forward_pre_hook(self._keep, with_kwargs=True) for layer in model.model.layers
        ]
        try:
            with torch.no_grad():
                self.predicted = self.kind.predictions(model, self.kind.run(model, rows))
        finally:
            for hook in hooks:
                hook.remove()
        self.targets = self.kind.targets(rows, self.predicted, labels)
        self.nats = self._cross_entropy(self.predicted)
        if not self.nats < float("inf"):
            raise NonFiniteError("the model predicts NaN on the calibration data")

    def _keep(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.streams.append(args[0])
        self.arguments.append(kwargs)

    def cost(self, layer: int) -> Cost:
        """What the model's layers from `layer` on, as they are now, lose against the model as it was."""
        stream = self.streams[layer]
        with torch.no_grad():
            for each, arguments in list(zip(self.model.model.layers, self.arguments, strict=True))[layer:]:
                stream = each(stream, **arguments)
            found = self.kind.predictions(self.model, self.model.model.norm(stream))
        kl = sum(
            F.kl_div(new, old, log_target=True, reduction="sum").item()
            for new, old in zip(found, self.predicted, strict=True)
        )
        return Cost(self._cross_entropy(found) - self.nats, kl / sum(map(len, self.predicted)))

    def _cross_entropy(self, predicted: list[Tensor]) -> float:
        total = sum(
            F.nll_loss(each[: len(wanted)], wanted, reduction="sum").item()
            for each, wanted in zip(predicted, self.targets, strict=True)
        )
        return total / sum(map(len, self.targets))


@contextmanager
def replaced(owner: nn.Module, name: str, part: nn.Module | None) -> Iterator[None]:
    """A part of a module replaced, for a while."""
    before = getattr(owner, name)
    setattr(owner, name, part)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Nothing(nn.Module):
    """In the place of an attention: adds nothing to the stream."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """Zeros of the same shape."""
        return torch.zeros_like(hidden_states), None
