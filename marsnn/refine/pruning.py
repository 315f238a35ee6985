"""Structured pruning: the same Transformer with fewer features and fewer heads, smaller matrices, no masks.

    a feature of a feed-forward net   its rows of gate_proj and up_proj, its column of down_proj
    a head of keys and values         its rows of k_proj and v_proj; with its queries' rows of q_proj and
                                      columns of o_proj

Importance is summed over the weights W of such a group, on calibration tokens:

    gradient     |W dLoss/dW|, the first-order change of the loss without W
    activation   |W| E|x| of those weights that read the group's output x: columns of down_proj and o_proj

Source: LLM-Pruner (Ma et al. 2023, arXiv 2305.11627), which recovers by LoRA afterwards, as
`marsnn.refine.learning.learn` does; "activation" is Wanda's measure (Sun et al. 2023, arXiv 2306.11695) for
groups. Differs in: every layer keeps equally many, so that a plain configuration holds the result (LLM-Pruner
spares the first and last layers); gradients are of the weights (those of LoRA's in LoRAPrune, Zhang et al.
2023, arXiv 2305.18403).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from marsnn.checks import count, finite
from marsnn.errors import InputError
from marsnn.refine.config import VISION_SOURCES, MarConfig, config_from
from marsnn.refine.modality import modality
from marsnn.refine.model import MarDecoderLayer, MarForCausalLM, in_dtype, layers_of
from marsnn.refine.transfer import convert

MEASURES = ("gradient", "activation")

GROUPED = {"gate_proj": 0, "up_proj": 0, "down_proj": 1, "q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
"""Projection -> the axis of its weight [outputs, inputs] on which groups lie."""

READERS = ("down_proj", "o_proj")
"""Who reads what a group puts out."""


@dataclass(frozen=True)
class Pruned:
    """What one layer keeps."""

    layer: int
    features: float
    """Share of its feed-forward net's importance that stays."""
    heads: float
    """Share of its attention's importance that stays."""


def prune(
    model: PreTrainedModel,
    tokens: Tensor,
    keep: float = 0.75,
    by: str = "gradient",
    kv_heads: int | None = None,
) -> MarForCausalLM:
    """A smaller copy of a Transformer, of its most important features and heads.

    Args:
        model: with attention in every layer; left as it is.
        tokens: ids [B, L] to find importance on.
        keep: share of the layers' projection weights that stays; embeddings and head stay whole.
        by: "gradient" or "activation".
        kv_heads: heads of keys and values that stay in each layer, with their queries; features make up
            the rest. None for the number with which most importance stays.

    Returns:
        An ordinary model of smaller matrices. Its `refinement["prune"]` says what was kept, JSON-ready.

    Raises:
        InputError: a keep outside of (0, 1] or below one feature and head, an unknown measure, tokens that
            the model doesn't know; a model with state space layers, sparsity or spikes, or of images.
        NonFiniteError: weights or their importance hold NaN.
    """
    _check(model, tokens, keep, by)
    whole = convert(model, [])
    assert isinstance(whole, MarForCausalLM)
    fitting = sizes(whole.config, keep, kv_heads)
    scores = _by_gradient(whole, tokens) if by == "gradient" else _by_activation(whole, tokens)
    for layer, each in enumerate(scores):
        finite(f"layer {layer}: the importance", torch.cat(each))
    kept_heads = max(fitting, key=lambda heads: _kept(scores, fitting[heads], heads))
    kept_features = fitting[kept_heads]
    smaller = _smaller(whole, kept_heads, kept_features)
    weights = whole.state_dict()
    told = []
    for layer, (features, heads) in enumerate(scores):
        chosen = _largest(features, kept_features), _largest(heads, kept_heads)
        _take(weights, layer, whole.config, *chosen)
        told.append(Pruned(layer, _share(features, chosen[0]), _share(heads, chosen[1])))
    smaller.load_state_dict(weights)
    smaller.refinement = {
        "prune": {
            "keep": float(keep), "by": by, "tokens": tokens.numel(), "kv_heads": kept_heads,
            "features": kept_features, "kept": _size(smaller.config) / _size(whole.config),
            "layers": [asdict(each) for each in told],
        }
    }  # fmt: skip
    return smaller.eval()


def sizes(config: MarConfig, keep: float, kv_heads: int | None = None) -> dict[int, int]:
    """Heads of keys and values that a layer may have left, and the features that then make up the share.

    Raises:
        InputError: no number of heads, or not that one, leaves one feature at least and all at most.
    """
    all_heads, all_features = int(config.num_key_value_heads or 0), int(config.intermediate_size)
    if kv_heads is not None and count("kv_heads", kv_heads) > all_heads:
        raise InputError(f"kv_heads is at most the model's {all_heads}, got {kv_heads}")
    per_feature = (3 if config.gated_ffn else 2) * config.hidden_size
    per_head = _attention_weights(config) / all_heads
    wanted = keep * (all_heads * per_head + all_features * per_feature)
    fitting = {}
    for heads in range(1, all_heads + 1) if kv_heads is None else [kv_heads]:
        features = round((wanted - heads * per_head) / per_feature)
        if 1 <= features <= all_features:
            fitting[heads] = features
    if not fitting:
        said = "heads" if kv_heads is None else f"{kv_heads} heads"
        raise InputError(
            f"{said} of keys and values and 1 to {all_features:,} features can't make up {keep:.3g} of a "
            "layer's weights; choose another keep"
        )
    return fitting


def _check(model: PreTrainedModel, tokens: Tensor, keep: float, by: str) -> None:
    if isinstance(keep, bool) or not isinstance(keep, Real) or not 0 < keep <= 1:
        raise InputError(
            f"keep is the share of the layers' weights that stays, above 0 and at most 1; got {keep!r}"
        )
    if by not in MEASURES:
        raise InputError(f"importance is measured by {' or '.join(MEASURES)}, got {by!r}")
    config = model.config
    if config.model_type in VISION_SOURCES:
        raise InputError("prune takes language models; got one of images")
    for stage, there in (
        ("state space layers", getattr(config, "ssm_layers", None)),
        ("sparsity", getattr(config, "sparsity", None)),
        ("spikes", getattr(config, "spikes", None)),
    ):
        if there:
            raise InputError(f"the model has {stage} already; prune the dense model that it came from")
    if tokens.ndim != 2 or tokens.shape[1] < 2 or not len(tokens):
        raise InputError(f"expected tokens [B, L], L of at least 2, got {list(tokens.shape)}")
    modality(model).check(tokens)


# ---- importance -----------------------------------------------------------------------------------------


def _by_gradient(model: MarForCausalLM, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each layer the features' and the heads' importance, from the gradients of one pass."""
    model.requires_grad_(False)
    for layer in layers_of(model):
        for name in _projections(layer):
            _projection(layer, name).weight.requires_grad_(True)
    with torch.enable_grad():
        for row in tokens.to(model.device).split(1):
            logits = model(row, use_cache=False).logits[0, :-1].float()
            (F.cross_entropy(logits, row[0, 1:], reduction="sum") / tokens.numel()).backward()
    scores = []
    for layer in layers_of(model):
        found = {}
        for name in _projections(layer):
            weight = _projection(layer, name).weight
            assert weight.grad is not None
            found[name] = (weight.detach() * weight.grad).abs()
            weight.grad = None
        scores.append(_of_groups(found, model.config))
    return scores


def _by_activation(model: MarForCausalLM, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """As `_by_gradient`, from the sizes of what the groups put out."""
    met: dict[tuple[int, str], Tensor] = {}
    hooks = []
    for number, layer in enumerate(layers_of(model)):
        for name in READERS:
            reader = _projection(layer, name)
            met[number, name] = reader.weight.new_zeros(reader.in_features, dtype=torch.float32)
            hooks.append(reader.register_forward_pre_hook(_adds(met[number, name])))
    try:
        with torch.no_grad():
            for row in tokens.to(model.device).split(1):
                model.model(row, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        _of_groups(
            {
                name: _projection(layer, name).weight.detach().abs() * met[number, name] / tokens.numel()
                for name in READERS
            },
            model.config,
        )
        for number, layer in enumerate(layers_of(model))
    ]


def _adds(total: Tensor) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, args: Any) -> None:
        total.add_(args[0].float().abs().flatten(0, -2).sum(0))

    return hook


def _of_groups(scores: dict[str, Tensor], config: MarConfig) -> tuple[Tensor, Tensor]:
    """From scores of weights to those of features [F] and of heads [KV]."""
    features = torch.zeros(config.intermediate_size)
    heads = torch.zeros(int(config.num_key_value_heads or 0))
    for name, score in scores.items():
        lines = score.float().sum(1 - GROUPED[name]).cpu()
        if name in ("gate_proj", "up_proj", "down_proj"):
            features += lines
        else:  # a head of keys and values, and its queries, lie side by side
            heads += lines.view(len(heads), -1).sum(1)
    return features, heads


def _largest(scores: Tensor, number: int) -> Tensor:
    """The indices of the largest, in their own order."""
    return scores.topk(number).indices.sort().values


def _kept(scores: list[tuple[Tensor, Tensor]], features: int, heads: int) -> float:
    """Importance that stays in all layers together."""
    return sum(
        _kept_of(features_of, features) + _kept_of(heads_of, heads) for features_of, heads_of in scores
    )


def _kept_of(scores: Tensor, number: int) -> float:
    return scores[_largest(scores, number)].sum().item()


def _share(scores: Tensor, chosen: Tensor) -> float:
    whole = scores.sum().item()
    return scores[chosen].sum().item() / whole if whole else 1.0


# ---- the smaller model ----------------------------------------------------------------------------------


def _projections(layer: MarDecoderLayer) -> list[str]:
    return [name for name in GROUPED if name != "gate_proj" or layer.mlp.gate_proj is not None]


def _projection(layer: MarDecoderLayer, name: str) -> nn.Linear:
    owner = layer.mlp if name in ("gate_proj", "up_proj", "down_proj") else layer.self_attn
    return getattr(owner, name)  # type: ignore[no-any-return]


def _smaller(whole: MarForCausalLM, heads: int, features: int) -> MarForCausalLM:
    """Of fewer heads and features, without weights of its own yet."""
    config = whole.config
    shared = config.num_attention_heads // int(config.num_key_value_heads or 1)
    changed = config_from(
        config, intermediate_size=features, num_key_value_heads=heads, num_attention_heads=heads * shared,
        head_dim=config.head_dim,
    )  # fmt: skip
    made = in_dtype(MarForCausalLM(changed), whole.dtype).to(whole.device)
    made.generation_config = copy.deepcopy(whole.generation_config)
    return made


def _take(weights: dict[str, Tensor], layer: int, config: MarConfig, features: Tensor, heads: Tensor) -> None:
    """Leave of a layer's weights, in a state dict, the lines of the chosen groups."""
    width = int(config.head_dim or 0)
    shared = config.num_attention_heads // int(config.num_key_value_heads or 1)
    for name, axis in GROUPED.items():
        inside = name in ("gate_proj", "up_proj", "down_proj")
        lines = features
        if not inside:
            size = width * (1 if name in ("k_proj", "v_proj") else shared)
            lines = (heads.unsqueeze(1) * size + torch.arange(size)).flatten()
        prefix = f"model.layers.{layer}.{'mlp' if inside else 'self_attn'}.{name}"
        for key in [f"{prefix}.weight", *([f"{prefix}.bias"] if axis == 0 else [])]:
            if key in weights:
                weights[key] = weights[key].index_select(axis, lines.to(weights[key].device))


def _attention_weights(config: MarConfig) -> int:
    heads, kv_heads = config.num_attention_heads, int(config.num_key_value_heads or 0)
    return 2 * config.hidden_size * int(config.head_dim or 0) * (heads + kv_heads)


def _size(config: MarConfig) -> int:
    """Projection weights of a layer."""
    per_feature = (3 if config.gated_ffn else 2) * config.hidden_size
    return _attention_weights(config) + per_feature * int(config.intermediate_size)
