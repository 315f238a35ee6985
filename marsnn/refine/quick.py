"""How a prepared layer runs one token: by kernels, as long as it is the layer that was prepared.

One call for the maps before the mixing, one for a state space layer's step, one for the projection behind it
and one for the feed-forward net; attention itself, and mixers without a kernel, run in torch between them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import output_capturing

from marsnn.refine import kernel
from marsnn.refine.cache import counted, recalled
from marsnn.refine.model import MarAttention, MarDecoderLayer, MarForCausalLM
from marsnn.refine.sparsity import MaskedLinear, Sparsifier
from marsnn.ssm import SSDCore, decode, fused

COLLECTOR: Any = getattr(output_capturing, "_active_collector", None)
"""What a call of a model collects, as transformers keeps it; None where transformers no longer does."""


def idle(hooks: Iterable[dict[Any, Any]]) -> bool:
    """Whether hooks of a layer's parts, if any, are those that transformers leaves behind, and none collects.

    A first call that asks for hidden states or attentions gives layers and attentions hooks for good; they do
    nothing in calls that don't ask. Hidden states are collected around layers, not in their parts.
    """
    for hook in chain.from_iterable(map(dict.values, hooks)):
        if COLLECTOR is None or getattr(hook, "__module__", None) != output_capturing.__name__:
            return False
        if not set(COLLECTOR.get() or ()) <= {"hidden_states", "_hidden_states_layers"}:
            return False
    return True


class Watch:
    """Whether modules and weights are those that they were: kernels hold their addresses.

    What is replaced, moved or hooked is seen; what is written in place only where a copy was made of it, by
    the tensor's version, which a write through `.data` doesn't raise.
    """

    def __init__(self) -> None:
        # side by side, so that a token looks through them without a line of Python for each
        self._parts: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._values: list[Any] = []
        self._weights: list[Tensor] = []
        self._places: list[int] = []
        self._copied: list[Tensor] = []
        self._versions: list[int] = []
        self.hooks: list[dict[Any, Any]] = []

    def module(self, owner: nn.Module, name: str) -> Any:
        """The owner's part, and all weights of it, from now on watched; None where it has none."""
        found: nn.Module | None = getattr(owner, name)
        self.expect(owner._modules, name, found)
        if found is not None:
            for part in found.modules():
                self.hooks += [part._forward_hooks, part._forward_pre_hooks]
                for key, inner in part._modules.items():
                    self.expect(part._modules, key, inner)
                for key, weight in part._parameters.items():
                    self.expect(part._parameters, key, weight)
                    if weight is not None:
                        self._weights.append(weight)
                        self._places.append(weight.data_ptr())
        return found

    def copied(self, *tensors: Tensor) -> None:
        """Tensors of which there is a copy."""
        self._copied += tensors
        self._versions += [tensor._version for tensor in tensors]

    def same(self) -> bool:
        """Whether nothing has changed."""
        found = map(dict.get, self._parts, self._names)
        return (
            all(map(operator.is_, found, self._values))
            and list(map(Tensor.data_ptr, self._weights)) == self._places
            and [tensor._version for tensor in self._copied] == self._versions
            and (not any(self.hooks) or idle(self.hooks))
        )

    def expect(self, part: dict[str, Any], name: str, value: Any) -> None:
        """What stands under a name from now on, None for nothing."""
        self._parts.append(part)
        self._names.append(name)
        self._values.append(value)


class _Quick:
    """What a part holds while it is prepared. Copies of the part, in memory or in files, hold None."""

    dtype: torch.dtype

    def __init__(self) -> None:
        self.watch = Watch()

    def __reduce__(self) -> Any:
        return type(None), ()

    def takes(self, x: Tensor) -> bool:
        """Whether the kernels may run x [B, L, D]."""
        return (
            x.shape[1] == 1
            and x.shape[0] <= kernel.MOST
            and not torch.is_grad_enabled()
            and x.dtype == self.dtype
            and fused.why_not(x) is None
            and not torch.is_autocast_enabled("cpu")
            and self.watch.same()
        )


class QuickHead(_Quick):
    """The logits of one token."""

    def __init__(self, model: MarForCausalLM) -> None:
        super().__init__()
        head = self.watch.module(model, "lm_head")
        assert isinstance(head, nn.Linear)
        # hooks of the head itself run around it
        self.watch.hooks.clear()
        self.dtype = head.weight.dtype
        self._maps = kernel.Maps([(head, 1)])

    def __call__(self, x: Tensor) -> Tensor | None:
        """x [B, 1, D] to logits [B, 1, V]; None where torch must run it."""
        return self._maps(x[:, 0].contiguous()).unsqueeze(1) if self.takes(x) else None


class QuickLayer(_Quick):
    """One token through one layer.

    Args:
        layer: whose parts are all of the kinds that kernels run, see `reason_against`.
    """

    def __init__(self, layer: MarDecoderLayer) -> None:
        super().__init__()
        watch = self.watch
        mixer: Any = watch.module(layer, "self_attn")
        mlp: Any = watch.module(layer, "mlp")
        norms: list[Any] = [
            watch.module(layer, name) for name in ("input_layernorm", "post_attention_layernorm")
        ]
        before, behind = (kernel.Norm(norm.weight, norm.variance_epsilon) for norm in norms)
        for owner, names in ((mixer, ("mixer_in", "mixer_out")), (mlp, ("ffn_in", "ffn_out", "sparsifier"))):
            for name in names:  # None so far, or seen above
                watch.expect(owner._modules, name, getattr(owner, name))
        self.layer, self.mixer, self.dtype = layer, mixer, before.weight.dtype
        self._mixed: Callable[..., Tensor] = self._by_torch
        if isinstance(mixer, MarAttention):
            maps = [(mixer.q_proj, 1), (mixer.k_proj, 1), (mixer.v_proj, 1)]
            self._mixed, self._maps = self._attention, kernel.Maps(maps, before)
            self._widths = [each.out_features for each, _ in maps]
        elif isinstance(mixer.core, SSDCore):
            gates = [] if mixer.z_proj is None else [(mixer.z_proj, 1)]
            shared, H = mixer.repeats, mixer.head_dim
            maps = [
                *gates,
                (mixer.v_proj, shared),
                (mixer.k_proj, shared),
                (mixer.q_proj, 1),
                (mixer.a_proj, 1),
            ]
            self._step = decode.Step(mixer.core)
            self._mixed, self._maps = self._ssd, kernel.Maps(maps, before, H)
        self._out = kernel.Maps([(mixer.o_proj, 1)])
        self.sparsifier: Sparsifier | None = mlp.sparsifier
        linear, weight, rows = mlp.down_proj, None, None
        if isinstance(linear, MaskedLinear):
            weight = linear.effective_weight.detach()
            watch.copied(linear.weight, linear.mask)
        elif self.sparsifier is not None:
            rows = kernel.transposed(linear.weight)
            watch.copied(linear.weight)
        self.down = kernel.Down(linear, weight, rows)
        self._feed = kernel.FeedForward(behind, mlp.gate_proj, mlp.up_proj, self.down)
        self.worthwhile = 1.0
        """Share of activations up to which rows are passed over."""
        self._levels: Tensor | None = None  # from which the level was made
        self._level: tuple[Any, float] = (None, 0.0)

    def __call__(self, x: Tensor, **kwargs: Any) -> Tensor | None:
        """The layer's call for x [B, 1, D]; None where the layer itself must run it."""
        if not self.takes(x):
            return None
        self.choose()
        x = self._mixed(x.contiguous(), **kwargs)
        return self._feed(x[:, 0]).unsqueeze(1)

    def choose(self, skipping: bool | None = None) -> None:
        """Tell the kernel what stays; and whether to pass over rows, by default as it was measured."""
        sparse = self.sparsifier
        if sparse is None:
            return
        if skipping is None:
            skipping = sparse.keep <= self.worthwhile
        if sparse.mode == "topk":
            self.down.choose(kernel.TOPK, max(1, round(sparse.keep * sparse.features)), 0.0, skipping)
            return
        known = sparse.keep, sparse.levels._version
        if self._levels is not sparse.levels or self._level[0] != known:
            self._levels, self._level = sparse.levels, (known, float(sparse.level().to(self.dtype)))
        self.down.choose(kernel.THRESHOLD, 0, self._level[1], skipping)

    def passed_bytes(self) -> int:
        """Bytes of W_down that a token passes over, by the share that is kept."""
        sparse = self.sparsifier
        if sparse is None or sparse.keep > self.worthwhile:
            return 0
        return round((1 - sparse.keep) * self.down.weight.nbytes)

    def _by_torch(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x + self.mixer(hidden_states=self.layer.input_layernorm(x), **kwargs)[0]

    def _attention(
        self,
        x: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        mixer, rows = self.mixer, x[:, 0]
        projected = self._maps(rows).unsqueeze(1).split(self._widths, -1)
        mixed, _ = mixer.attended(projected, position_embeddings, attention_mask, past_key_values, **kwargs)
        return self._out(mixed[:, 0].contiguous(), rows).unsqueeze(1)

    def _ssd(
        self, x: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **kwargs: Any
    ) -> Tensor:
        mixer, rows = self.mixer, x[:, 0]
        found = None if attention_mask is not None else recalled(past_key_values, mixer.layer_idx)
        if found is None or not decode.can(mixer.core, rows):
            return self._by_torch(x, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)
        recent, memory, position = found
        y = self._step(self._maps(rows), recent, memory, position, recent, memory)
        counted(past_key_values, mixer.layer_idx)
        return self._out(y, rows).unsqueeze(1)
