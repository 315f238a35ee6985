"""`MarForCausalLM`: a Llama with state space layers in the place of attention, as transformers knows models.

Names of parts and weights are Llama's, so a Llama's weights load as they are; a state space layer adds to
q, k, v and o projections its gate (z), its forgetting (a), and what `SSDCore` or `S4D` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    create_causal_mask,
    create_recurrent_attention_mask,
    create_sliding_window_causal_mask,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from marsnn.errors import InputError
from marsnn.linear import Linear
from marsnn.refine.cache import MarCache, remember, remembered
from marsnn.refine.config import ATTENTION, SLIDING, SSM, MarConfig
from marsnn.refine.sparsity import MaskedLinear, Sparsifier
from marsnn.spiking import SpikingInput
from marsnn.ssm import S4D, S4DState, SSDCore, SSDState
from marsnn.ssm.gate import gated

Kind = TypeVar("Kind", bound=nn.Module)

MASKS = {
    ATTENTION: create_causal_mask,
    SLIDING: create_sliding_window_causal_mask,
    SSM: create_recurrent_attention_mask,
}


class MarAttention(LlamaAttention):
    """Llama's attention, with biases and a window of its own, and spikes where the configuration has them."""

    mixer_in: SpikingInput | None
    mixer_out: SpikingInput | None

    def __init__(self, config: MarConfig, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.config, self.layer_idx = config, layer_idx
        heads, kv_heads, self.head_dim = _widths(config)
        self.num_key_value_groups = heads // kv_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = config.causal
        self.sliding_window = config.sliding_window if _kind(config, layer_idx) == SLIDING else None
        _add_projections(self, config)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, L, D] to [B, L, D] and, where the implementation gives them, the weights."""
        projected = _through(self.mixer_in, hidden_states, self.q_proj, self.k_proj, self.v_proj)
        mixed, weights = self.attended(
            projected, position_embeddings, attention_mask, past_key_values, **kwargs
        )
        return _through(self.mixer_out, mixed, self.o_proj)[0], weights

    def attended(
        self,
        projected: Sequence[Tensor],
        position_embeddings: tuple[Tensor, Tensor] | None,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """All between the projections: queries, keys and values [B, L, H P or KV P] to [B, L, H P]."""
        B, L, _ = projected[0].shape
        q, k, v = (each.view(B, L, -1, self.head_dim).transpose(1, 2) for each in projected)
        if self.config.rope:
            assert position_embeddings is not None
            q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling,
            sliding_window=self.sliding_window, **kwargs,
        )  # fmt: skip
        return mixed.reshape(B, L, -1), weights


class MarMixer(nn.Module):
    """A state space layer between attention's projections: [B, L, D] to [B, L, D].

    `ssd`: queries, keys and values go into an `SSDCore` of as many heads as there are queries; keys and
    values are shared by heads as in the attention, decays are each head's own. `s4d`: values go into `S4D`.

    Where the configuration isn't causal, y = core(x) + reversed(core(reversed(x))): both ways with the same
    weights, projections run once, and a token itself counts twice. Vision Mamba (Zhu et al. 2024, arXiv
    2401.09417) also scans both ways, but gives each way its own convolution and state space weights.
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    mixer_in: SpikingInput | None
    mixer_out: SpikingInput | None

    def __init__(self, config: MarConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.heads, kv_heads, self.head_dim = _widths(config)
        self.repeats = self.heads // kv_heads
        settings = dict(config.mixer_settings or {})
        gate, width = settings.pop("gate"), self.heads * self.head_dim
        _add_projections(self, config, queries=config.mixer == "ssd")
        self.gate_bias: nn.Parameter | None = None  # an SSDCore has its own
        self.z_proj = Linear(config.hidden_size, width, bias=False) if gate else None
        if config.mixer == "ssd":
            self.a_proj = Linear(config.hidden_size, self.heads, bias=False)
            rope = config.rope_parameters["rope_theta"] if settings.pop("rope") else None
            self.core: SSDCore | S4D = SSDCore(
                self.heads, self.head_dim, self.head_dim, groups=self.heads, rope=rope, gate=gate, **settings
            )
        else:
            self.core = S4D(width, **settings)
            if gate:
                self.gate_bias = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention's call; the mask is [B, L], False or 0 where a token is padding."""
        x = hidden_states.transpose(0, 1)  # [L, B, D], as sequence layers have it
        mask = None if attention_mask is None else attention_mask.t().bool()
        state = self._state(past_key_values)
        if isinstance(self.core, SSDCore):
            y, state = self._ssd(self.core, x, state, mask)
        else:
            y, state = self._s4d(self.core, x, state, mask, past_key_values is not None)
        if past_key_values is not None:
            remember(past_key_values, self.layer_idx, *_stored(state), tokens=len(x))
        return _through(self.mixer_out, y, self.o_proj)[0].transpose(0, 1), None

    def _ssd(self, core: SSDCore, x: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, SSDState]:
        gates = [] if self.z_proj is None else [self.z_proj]
        values, keys, queries, forgetting, *gate = _through(
            self.mixer_in, x, self.v_proj, self.k_proj, self.q_proj, self.a_proj, *gates
        )
        inputs = torch.cat([*gate, self._shared(values), self._shared(keys), queries, forgetting], -1)
        if not self.config.causal:
            if mask is not None:
                mask = torch.cat([mask, mask.flip(0)], 1)
            y, state = core(_two_ways(inputs), state, mask=mask)
            return _joined(y), state
        if len(x) == 1 and mask is None:
            y, state = core.step(inputs[0], state)
            return y.unsqueeze(0), state
        return core(inputs, state, mask=mask)

    def _s4d(
        self, core: S4D, x: Tensor, state: Any, mask: Tensor | None, final: bool
    ) -> tuple[Tensor, S4DState | None]:
        gates = [] if self.z_proj is None else [self.z_proj]
        values, *gate = _through(self.mixer_in, x, self.v_proj, *gates)
        values = self._shared(values)
        if mask is not None:
            if state is not None or not bool((mask[1:] >= mask[:-1]).all()):
                raise InputError("an s4d mixer takes padding in front of the first tokens only; pad left")
            values = values * mask.unsqueeze(-1)  # what precedes the first token leaves no trace
        if self.config.causal:
            y, state = core(values, state, final_state=final)
        else:
            y = _joined(core(_two_ways(values), final_state=False)[0])
        if self.gate_bias is not None:
            y = gated(y, gate[0], self.gate_bias)
        return y, state

    def _shared(self, values: Tensor) -> Tensor:
        """Keys or values [*, KV P] to [*, H P]: each for the heads that share it."""
        if self.repeats == 1:
            return values
        return values.unflatten(-1, (-1, self.head_dim)).repeat_interleave(self.repeats, -2).flatten(-2)

    def _state(self, cache: Cache | None) -> Any:
        found = remembered(cache, self.layer_idx)
        if found is None:
            return None
        window, memory, position = found
        if isinstance(self.core, SSDCore):
            return SSDState(window.permute(2, 0, 1), memory, position[:, 0])
        return S4DState(memory)


def _two_ways(x: Tensor) -> Tensor:
    """[L, B, *] to [L, 2 B, *]: a batch, and the same from its end to its start."""
    return torch.cat([x, x.flip(0)], 1)


def _joined(y: Tensor) -> Tensor:
    """[L, 2 B, *] of `_two_ways` to [L, B, *]: the sum of what both ways say of each token."""
    there, back = y.chunk(2, 1)
    return there + back.flip(0)


def _stored(state: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Window, memory and position, batch first, as the cache has them."""
    if isinstance(state, SSDState):
        return state.recent.permute(1, 2, 0), state.memory, state.position.unsqueeze(1)
    modes = state.modes
    return modes.new_zeros(len(modes), 1, 0), modes, modes.new_zeros(len(modes), 1, dtype=torch.long)


def _kind(config: MarConfig, layer: int) -> str:
    assert config.layer_types is not None
    return config.layer_types[layer]


def _widths(config: MarConfig) -> tuple[int, int, int]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    assert kv_heads is not None
    return heads, kv_heads, config.head_dim or config.hidden_size // heads


def _add_projections(module: MarAttention | MarMixer, config: MarConfig, queries: bool = True) -> None:
    heads, kv_heads, width = _widths(config)
    D, bias = config.hidden_size, config.attention_bias
    if queries:
        module.q_proj = Linear(D, heads * width, bias=bias)
        module.k_proj = Linear(D, kv_heads * width, bias=bias)
    module.v_proj = Linear(D, kv_heads * width, bias=bias)
    module.o_proj = Linear(heads * width, D, bias=bool(config.output_bias))
    module.mixer_in = _spiking(config, "mixer_in", D)
    module.mixer_out = _spiking(config, "mixer_out", heads * width)


def _spiking(config: MarConfig, site: str, features: int) -> SpikingInput | None:
    """The spikes of a site, None where there are none."""
    if config.spikes is None or site not in config.spikes["sites"]:
        return None
    spikes = config.spikes
    return SpikingInput(features, spikes["neuron"], spikes["per_token"], **spikes["settings"])


def _through(spiking: SpikingInput | None, x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
    """Every map of x, by spikes where the site has them."""
    return tuple(each(x) for each in maps) if spiking is None else spiking(x, *maps)


class MarMLP(LlamaMLP):
    """Llama's feed-forward net or one without a gate, sparse and spiking where the configuration says so."""

    gate_proj: Linear | None

    def __init__(self, config: MarConfig, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.hidden_size, self.intermediate_size = config.hidden_size, config.intermediate_size
        self.gate_proj = None
        if config.gated_ffn:
            self.gate_proj = Linear(self.hidden_size, self.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(self.hidden_size, self.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(self.intermediate_size, self.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]
        self.sparsifier: Sparsifier | None = None
        if config.sparsity is not None:
            mode, keep = config.sparsity["mode"], config.sparsity["keep"][layer_idx]
            if mode == "mask":
                self.down_proj = MaskedLinear(
                    self.intermediate_size, self.hidden_size, bias=config.mlp_bias, keep=keep
                )
            else:
                self.sparsifier = Sparsifier(self.intermediate_size, mode, keep)
        self.ffn_in = _spiking(config, "ffn_in", self.hidden_size)
        self.ffn_out = _spiking(config, "ffn_out", self.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """[*, D] to [*, D]."""
        if self.gate_proj is None:
            inner = self.act_fn(_through(self.ffn_in, x, self.up_proj)[0])
        else:
            gate, up = _through(self.ffn_in, x, self.gate_proj, self.up_proj)
            inner = self.act_fn(gate) * up
        if self.sparsifier is not None:
            inner = self.sparsifier(inner)
        return _through(self.ffn_out, inner, self.down_proj)[0]


class MarDecoderLayer(LlamaDecoderLayer):
    """Attention or a state space layer, and the feed-forward net."""

    self_attn: MarAttention | MarMixer  # type: ignore[assignment]
    mlp: MarMLP  # type: ignore[assignment]
    quick: Callable[..., Tensor | None] | None = None
    """What runs one token, where `prepare` set it; where it returns None the layer runs itself."""

    def __init__(self, config: MarConfig, layer_idx: int) -> None:
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        kind = MarMixer if _kind(config, layer_idx) == SSM else MarAttention
        self.self_attn = kind(config, layer_idx)
        self.mlp = MarMLP(config, layer_idx)
        self.input_layernorm = norm_of(config)
        self.post_attention_layernorm = norm_of(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """[B, L, D] to [B, L, D]; arguments are those of LlamaDecoderLayer's."""
        done = None if self.quick is None else self.quick(hidden_states, **kwargs)
        return super().forward(hidden_states, **kwargs) if done is None else done


def norm_of(config: MarConfig) -> nn.Module:
    """The norm that stands before each part of a layer, and behind the last."""
    kind = LlamaRMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.rms_norm_eps)


class MarHead(Linear):
    """The projection to the vocabulary; `quick` is what runs one token, where `prepare` set it."""

    quick: Callable[[Tensor], Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        done = None if self.quick is None else self.quick(x)
        return super().forward(x) if done is None else done


def site_of(layer: MarDecoderLayer, site: str) -> tuple[nn.Module, int]:
    """The module that holds a site's spikes under the site's name, and their number of features."""
    if site.startswith("mixer"):
        mixer = layer.self_attn
        return mixer, mixer.v_proj.in_features if site == "mixer_in" else mixer.o_proj.in_features
    mlp = layer.mlp
    return mlp, mlp.up_proj.in_features if site == "ffn_in" else mlp.down_proj.in_features


class MarPreTrainedModel(LlamaPreTrainedModel):
    """What models of text and of images, with and without their heads, share."""

    config: MarConfig
    config_class = MarConfig
    _no_split_modules: ClassVar = ["MarDecoderLayer"]
    _is_stateful = True
    _can_record_outputs: ClassVar = {"hidden_states": MarDecoderLayer, "attentions": MarAttention}

    def mixer(self, layer: int) -> MarMixer:
        """The state space layer of a layer.

        Raises:
            InputError: it has none.
        """
        if layer not in self.config.ssm_layers:
            raise InputError(f"layer {layer} is no state space layer; those are {self.config.ssm_layers}")
        found = self.base_model.layers[layer].self_attn
        assert isinstance(found, MarMixer)
        return found

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SSDCore | S4D):
            with torch.device("cpu"):
                fresh = type(module)(**module.constructor())
            for (_, own), new in zip(
                [*module.named_parameters(), *module.named_buffers()],
                [*fresh.parameters(), *fresh.buffers()],
                strict=True,
            ):
                init.copy_(own, new)
        elif isinstance(module, MarMixer) and module.gate_bias is not None:
            init.zeros_(module.gate_bias)


class MarModel(MarPreTrainedModel, LlamaModel):
    """The stack without its head; calls are LlamaModel's."""

    def __init__(self, config: MarConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([MarDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = norm_of(config)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As LlamaModel's; every layer gets the mask of its type."""
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise InputError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = MarCache(self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + inputs_embeds.shape[1], device=inputs_embeds.device)
            position_ids = position_ids.unsqueeze(0)
        types = self.config.layer_types or []
        if isinstance(attention_mask, dict):  # made by generate, for static caches
            masks = attention_mask
        else:
            shared = {
                "config": self.config, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask,
                "past_key_values": past_key_values, "position_ids": position_ids,
            }  # fmt: skip
            masks = {kind: MASKS[kind](**shared) for kind in dict.fromkeys(types)}
        hidden_states = inputs_embeds
        rotary = self.rotary_emb(hidden_states, position_ids=position_ids)
        for kind, layer in zip(types, self.layers, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[kind],
                position_embeddings=rotary,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )


class MarForCausalLM(MarPreTrainedModel, LlamaForCausalLM):
    """The language model: calls, `generate`, `save_pretrained` and the rest are LlamaForCausalLM's."""

    def __init__(self, config: MarConfig) -> None:
        if not config.causal:
            raise InputError("a language model predicts what comes next, so it needs causal=True")
        LlamaPreTrainedModel.__init__(self, config)
        self.model = MarModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = MarHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *rest: Any
    ) -> None:
        """A `MarCache` where none was given and no other kind was asked for."""
        plain = generation_config.cache_implementation in (None, "dynamic")
        stateful = len(self.config.ssm_layers) == self.config.num_hidden_layers  # static as it is
        wanted = generation_config.use_cache is not False and (plain or stateful)
        if wanted and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = MarCache(self.config)
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *rest)


def in_dtype(model: Kind, dtype: torch.dtype) -> Kind:
    """The model in another dtype, in place; frequencies of rotary embeddings stay as exact as they are.

    So does `from_pretrained` leave them. `model.to(dtype)` rounds them, too: in bfloat16 the 1,000th token is
    then turned wrong by up to two radians.
    """
    kept = [
        (module, name, buffer)
        for module in model.modules()
        if isinstance(module, LlamaRotaryEmbedding)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    model.to(dtype=dtype)
    for module, name, buffer in kept:
        setattr(module, name, buffer)
    return model


def layers_of(model: MarPreTrainedModel) -> list[MarDecoderLayer]:
    """The layers, as what they are."""
    return list(model.model.layers)  # type: ignore[arg-type]


AutoModel.register(MarConfig, MarModel, exist_ok=True)
AutoModelForCausalLM.register(MarConfig, MarForCausalLM, exist_ok=True)
