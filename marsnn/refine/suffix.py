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

from marsnn.errors import InputError, NonFiniteError
from marsnn.refine.model import MASKS, MarForCausalLM


class Cost(NamedTuple):
    """Against the model as it was, per token."""

    nats: float
    """Increase of the cross-entropy of the next token."""
    kl: float
    """Kullback-Leibler divergence of the predictions, model || changed model."""


class Suffix:
    """Streams [B, L, D] of a model on tokens, and what changes of single layers cost.

    Args:
        model: a MarForCausalLM; changed layer by layer between calls of `cost`.
        tokens: ids [B, L].

    Attributes:
        nats: cross-entropy of the next token by the model as it is.
    """

    def __init__(self, model: MarForCausalLM, tokens: Tensor) -> None:
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise InputError(f"expected token ids [B, L] with L >= 2, got {list(tokens.shape)}")
        self.model, self.tokens = model, tokens.to(model.device)
        self.streams: list[Tensor] = []
        self.arguments: dict[str, Any] = {}
        hooks = [
            layer.register_forward_pre_hook(self._keep, with_kwargs=True) for layer in model.model.layers
        ]
        try:
            with torch.no_grad():
                last = model.model(self.tokens, use_cache=False).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        with torch.no_grad():
            self.predicted = self._heads(last)
        self.nats = self._cross_entropy(self.predicted)
        if not self.nats < float("inf"):
            raise NonFiniteError("the model predicts NaN on the calibration tokens")

    def _keep(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.streams.append(args[0])
        self.arguments = {key: kwargs[key] for key in ("position_embeddings", "position_ids")}

    def cost(self, layer: int) -> Cost:
        """What the model's layers from `layer` on, as they are now, lose against the model as it was."""
        types = self.model.config.layer_types or []
        stream = self.streams[layer]
        shared = {
            "config": self.model.config, "inputs_embeds": stream, "attention_mask": None,
            "past_key_values": None, "position_ids": self.arguments["position_ids"],
        }  # fmt: skip
        with torch.no_grad():
            for kind, each in list(zip(types, self.model.model.layers, strict=True))[layer:]:
                stream = each(
                    stream, attention_mask=MASKS[kind](**shared), past_key_values=None, use_cache=False,
                    **self.arguments,
                )  # fmt: skip
            found = self._heads(self.model.model.norm(stream))
        kl = sum(
            F.kl_div(new, old, log_target=True, reduction="sum").item()
            for new, old in zip(found, self.predicted, strict=True)
        )
        return Cost(self._cross_entropy(found) - self.nats, kl / self.tokens.numel())

    def _heads(self, last: Tensor) -> list[Tensor]:
        """Logarithms of probabilities of each sequence [L, V]."""
        return [self.model.lm_head(sequence).float().log_softmax(-1) for sequence in last]

    def _cross_entropy(self, predicted: list[Tensor]) -> float:
        total = sum(
            F.nll_loss(each[:-1], ids[1:], reduction="sum").item()
            for each, ids in zip(predicted, self.tokens, strict=True)
        )
        return total / (self.tokens.numel() - len(self.tokens))


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
