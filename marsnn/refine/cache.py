"""The cache of a refined model: keys and values where attention was kept, states of fixed size elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import LinearAttentionLayer

MEMORY, POSITION = 0, 1
"""Indices of an SSM's states in transformers' cache layer."""


def remembered(cache: Cache | None, layer: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Window [B, C, K - 1], memory [B, *] and tokens seen [B, 1] of an SSM; None before the first token."""
    if cache is None or not cache.has_previous_state(layer):
        return None
    own = cache.layers[layer]
    return own.conv_states[MEMORY], own.recurrent_states[MEMORY], own.recurrent_states[POSITION]


def remember(cache: Cache, layer: int, window: Tensor, memory: Tensor, position: Tensor, tokens: int) -> None:
    """Write an SSM's states where they were, so that their addresses stay; `tokens` were added."""
    own = cache.layers[layer]
    if not own.is_recurrent_states_initialized[POSITION]:
        own.lazy_initialization(conv_states=window, recurrent_states=memory, state_idx=MEMORY)
        own.lazy_initialization(recurrent_states=position, state_idx=POSITION)
    own.conv_states[MEMORY].copy_(window)
    own.recurrent_states[MEMORY].copy_(memory)
    own.recurrent_states[POSITION].copy_(position)
    own.has_previous_state[MEMORY] = own.has_previous_state[POSITION] = True
    if isinstance(own, StateLayer):
        own.tokens += tokens


def recalled(cache: Cache | None, layer: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Window [K - 1, B, C], memory and position of an SSM, to be written in place; None before a token."""
    found = remembered(cache, layer)
    if found is None:
        return None
    window, memory, position = found
    recent = window.permute(2, 0, 1)
    if not recent.is_contiguous():  # laid out anew, once: one token's numbers side by side
        assert cache is not None
        recent = recent.contiguous()
        cache.layers[layer].conv_states[MEMORY] = recent.permute(1, 2, 0)
    return (recent, memory, position) if memory.is_contiguous() else None


def counted(cache: Cache, layer: int) -> None:
    """One token more was seen by an SSM whose states were written in place."""
    own = cache.layers[layer]
    own.recurrent_states[POSITION] += 1
    if isinstance(own, StateLayer):
        own.tokens += 1


class StateLayer(LinearAttentionLayer):
    """transformers' layer for states of fixed size, which also counts tokens and can be shared out."""

    def __init__(self, number_of_states: int = 2, **kwargs: Any) -> None:
        super().__init__(number_of_states, **kwargs)
        self.tokens = 0  # seen, padding included

    def reset(self) -> None:
        super().reset()
        self.tokens = 0

    def _each(self, change: Any) -> None:
        for states in (self.conv_states, self.recurrent_states):
            for index, state in states.items():
                if state is not None:
                    states[index] = change(state)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sample so many times."""
        self._each(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Those samples."""
        self._each(lambda state: state[indices])


class MarCache(DynamicCache):
    """A DynamicCache that knows its length where no layer is attention, too.

    Args:
        config: a `MarConfig`.
    """

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.layers: list[Any] = [
            StateLayer(layer.number_of_states) if type(layer) is LinearAttentionLayer else layer
            for layer in self.layers
        ]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        layer = self.layers[layer_idx]
        if isinstance(layer, StateLayer):
            return layer.tokens
        return super().get_seq_length(layer_idx)
