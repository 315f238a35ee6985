"""What a refined model is: its Transformer's configuration, and what stands in which place.

`MarConfig` is that of language models, `MarVisionConfig` of image classifiers: the same layers with other
settings, behind other embeddings.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from marsnn.errors import InputError
from marsnn.refine.sparsity import checked_sparsity
from marsnn.spiking import SpikingInput

SSM, ATTENTION, SLIDING = "linear_attention", "full_attention", "sliding_attention"
"""transformers' own names for the types of layers."""

MIXERS = ("ssd", "s4d")
NORMS = ("rms", "layer")

MIXER_DEFAULTS: dict[str, dict[str, Any]] = {
    "ssd": {
        "conv_size": 4, "feature_map": "none", "rope": True, "normalize": False, "scale_input": True,
        "gate": True,
    },
    "s4d": {"state_size": 32, "init": "lin", "dt_min": 1e-3, "dt_max": 0.5, "gate": True},
}  # fmt: skip

SITES = ("mixer_in", "mixer_out", "ffn_in", "ffn_out")
"""Where spikes can stand: before the projections into and out of attention or state space, and of the
feed-forward net."""

SPIKES = {"neuron": "ATMN", "sites": list(SITES), "per_token": False, "settings": {}}
"""What `MarConfig.spikes` may say, and what holds where it doesn't."""


@strict
class MarConfig(LlamaConfig):
    """Configuration of a Llama-shaped model of which some attention layers are state space layers.

    Args:
        layer_types: for each layer "full_attention", "sliding_attention" or "linear_attention", which is a
            state space layer; None for attention everywhere.
        output_bias: bias of the attentions' output projection; None for that of the others, `attention_bias`.
        sliding_window: tokens that a "sliding_attention" sees.
        mixer: what stands in the place of attention: "ssd" (Mamba-2) or "s4d".
        mixer_settings: of `SSDCore` or `S4D`; what isn't named is `MIXER_DEFAULTS`.
        sparsity: of the feed-forward nets, {"mode": "topk" | "threshold" | "mask", "keep": a share, or one
            for each layer}; None for dense ones.
        spikes: {"neuron": a name of `marsnn.neurons`, "settings": its settings, "sites": some of `SITES`,
            "per_token": whether tokens are scaled before they are encoded}; None for none.
        norm: before each part of a layer, "rms" or "layer" (LayerNorm); the epsilon is `rms_norm_eps`.
        gated_ffn: whether the feed-forward net is down(act(gate x) * up x), Llama's, or down(act(up x)).
        causal: whether a token sees what comes before it only. If not, state space layers run both ways.
        rope: whether queries and keys turn with their position; also what `mixer_settings` don't say.
    All else is LlamaConfig's.
    """

    model_type = "mar"

    layer_types: list[str] | None = None
    output_bias: bool | None = None
    sliding_window: int | None = None
    mixer: str = "ssd"
    mixer_settings: dict[str, Any] | None = None
    sparsity: dict[str, Any] | None = None
    spikes: dict[str, Any] | None = None
    norm: str = "rms"
    gated_ffn: bool = True
    causal: bool = True
    rope: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.layer_types is None:
            usual = ATTENTION if self.sliding_window is None else SLIDING
            self.layer_types = [usual] * self.num_hidden_layers
        if self.output_bias is None:
            self.output_bias = self.attention_bias
        if self.mixer not in MIXERS:
            raise InputError(f"mixer must be one of {', '.join(MIXERS)}, got {self.mixer!r}")
        if self.norm not in NORMS:
            raise InputError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        known = copy.deepcopy(MIXER_DEFAULTS[self.mixer])
        if "rope" in known:
            known["rope"] = self.rope
        given = copy.deepcopy(self.mixer_settings or {})
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InputError(f"mixer {self.mixer!r} has no setting {unknown[0]!r}; known: {', '.join(known)}")
        self.mixer_settings = {**known, **given}
        strange = sorted(set(self.layer_types) - {SSM, ATTENTION, SLIDING})
        if strange:
            raise InputError(
                f"layer_types may be {SSM}, {ATTENTION} and {SLIDING}, got {', '.join(map(repr, strange))}"
            )
        if SLIDING in self.layer_types and self.sliding_window is None:
            raise InputError(f"a layer is {SLIDING!r}, so sliding_window must be a number of tokens")
        if SLIDING in self.layer_types and not self.causal:
            raise InputError(f"a layer is {SLIDING!r}, which looks back only; it needs causal=True")
        self.sparsity = checked_sparsity(self.sparsity, self.num_hidden_layers)
        self.spikes = checked_spikes(self.spikes)
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"{self.num_attention_heads} heads can't share {self.hidden_size} features; say head_dim"
            )
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Heads of which some were pruned needn't divide the features, as LlamaConfig asks of them."""

    @property
    def number_of_conv_states(self) -> int:
        """States of transformers' cache for one SSM: 0 what is remembered, 1 how many tokens were seen."""
        return 2

    @property
    def ssm_layers(self) -> list[int]:
        """Which layers are state space layers."""
        return [i for i, kind in enumerate(self.layer_types or []) if kind == SSM]


@strict
class MarVisionConfig(MarConfig):
    """Configuration of a refined image classifier, a Vision Transformer by default.

    Args:
        image_size: pixels, of both sides or (height, width).
        patch_size: likewise, of the patches that become tokens.
        num_channels: of an image.
    All else is MarConfig's; `num_labels` is the number of classes, `vocab_size` means nothing.
    """

    model_type = "mar_vision"

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    norm: str = "layer"
    gated_ffn: bool = False
    causal: bool = False
    rope: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True

    @property
    def hidden_dropout_prob(self) -> float:
        """What the embeddings ask for: a refined model has no dropout but attention's."""
        return 0.0


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def image_tokens(config: PreTrainedConfig) -> int:
    """Tokens of an image: its patches, and the class token in front of them."""
    (height, width), (tall, wide) = sides(config.image_size), sides(config.patch_size)
    return (height // tall) * (width // wide) + 1


def checked_spikes(settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """Spikes' settings with what wasn't said.

    Raises:
        InputError: a setting, a neuron or a site that there isn't, or a value that the neuron refuses.
    """
    if settings is None:
        return None
    unknown = sorted(set(settings) - set(SPIKES))
    if unknown:
        raise InputError(f"spikes have no setting {unknown[0]!r}; known: {', '.join(SPIKES)}")
    whole = copy.deepcopy({**SPIKES, **settings})
    if not isinstance(whole["sites"], list | tuple) or not isinstance(whole["settings"], dict):
        raise InputError('spikes\' "sites" are a list of names, their "settings" are {name: value}')
    strange = sorted(set(map(str, whole["sites"])) - set(SITES))
    if strange:
        raise InputError(f"spikes stand at {', '.join(SITES)}; there is no site {strange[0]!r}")
    try:
        SpikingInput(1, whole["neuron"], whole["per_token"], **whole["settings"])
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"spikes: {error}") from error
    return whole


def _biases(config: PreTrainedConfig) -> dict[str, bool]:
    if config.model_type == "qwen2":
        return {"attention_bias": True, "output_bias": False, "mlp_bias": False}
    if config.model_type == "mistral":
        return {"attention_bias": False, "output_bias": False, "mlp_bias": False}
    return {}


SOURCES = ("llama", "mistral", "qwen2", "mar")
"""Model types whose layers are Llama's but for biases and windows."""

VISION_SOURCES = ("vit", "mar_vision")
"""Model types that read images."""


def config_from(source: PreTrainedConfig, ssm_layers: Sequence[int] = (), **changes: Any) -> MarConfig:
    """The configuration of a trained model with some of its attentions replaced.

    Args:
        source: a LlamaConfig, MistralConfig, Qwen2Config, ViTConfig, MarConfig or MarVisionConfig.
        ssm_layers: indices of the layers that become state space layers.
        changes: fields of MarConfig.

    Raises:
        InputError: a model of another type, or no such layer.
    """
    if source.model_type not in (*SOURCES, *VISION_SOURCES):
        raise InputError(
            f"can't refine a {source.model_type!r} model; its layers must be Llama's: {', '.join(SOURCES)}, "
            f"or a Vision Transformer's: {', '.join(VISION_SOURCES)}"
        )
    sees = source.model_type in VISION_SOURCES
    fields = _vision_fields(source) if sees else _text_fields(source)
    usual = ATTENTION if fields["sliding_window"] is None else SLIDING
    types = list(fields.get("layer_types") or [usual] * source.num_hidden_layers)
    for layer in ssm_layers:
        if not 0 <= layer < len(types):
            raise InputError(f"no layer {layer}: the model has 0 to {len(types) - 1}")
        types[layer] = SSM
    if changes.get("mixer", fields.get("mixer")) != fields.get("mixer"):
        fields.pop("mixer_settings", None)  # those of the other mixer
    kind = MarVisionConfig if sees else MarConfig
    config = kind(**{**fields, "layer_types": types, **changes})
    if getattr(source, "ssm_layers", None):
        for name in ("mixer", "mixer_settings"):
            if getattr(config, name) != getattr(source, name):
                raise InputError(
                    f"{name} can't change: layers {source.ssm_layers} are {source.mixer!r} mixers already; "
                    "refine the model that they came from"
                )
    return config


def _text_fields(source: PreTrainedConfig) -> dict[str, Any]:
    own = set(LlamaConfig.__annotations__) | set(MarConfig.__annotations__)
    fields = {name: value for name, value in source.to_dict().items() if name in own}
    fields |= {"dtype": source.dtype, **_biases(source)}
    if getattr(source, "sliding_window", None) is None:
        fields["sliding_window"] = None
    return fields


def _vision_fields(source: PreTrainedConfig) -> dict[str, Any]:
    own = {
        *LlamaConfig.__annotations__, *MarConfig.__annotations__, *MarVisionConfig.__annotations__,
        "id2label", "label2id", "problem_type",
    }  # fmt: skip
    fields = {name: value for name, value in source.to_dict().items() if name in own}
    fields |= {"dtype": source.dtype, "sliding_window": None}
    if source.model_type == "vit":
        fields |= {
            "attention_bias": source.qkv_bias, "output_bias": True, "mlp_bias": True,
            "rms_norm_eps": source.layer_norm_eps, "attention_dropout": source.attention_probs_dropout_prob,
        }  # fmt: skip
    return fields


AutoConfig.register("mar", MarConfig, exist_ok=True)
AutoConfig.register("mar_vision", MarVisionConfig, exist_ok=True)
