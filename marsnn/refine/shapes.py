"""Operations of one token or image, from a configuration alone: for plans, and models too large to run here.

What a projection multiplies follows from its shape, what attention reads from the context, what spikes add
from their rate. `marsnn.energy.count` counts the same on a model that runs; the tests compare the two.
Norms, activations, softmax and RoPE are left out: below a hundredth of the whole at Llama's sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marsnn.energy import LayerCounts, OperationCounts, load_table
from marsnn.errors import InputError
from marsnn.refine.config import (
    ATTENTION,
    SLIDING,
    SSM,
    MarConfig,
    MarVisionConfig,
    image_tokens,
    sides,
)
from marsnn.spiking import SpikingInput

TABLES = ("45nm-fp32", "45nm-int8")
"""By which refined models are priced, always both."""

RATES = {
    4: {"mixer_in": 0.433, "mixer_out": 0.316, "ffn_in": 0.433, "ffn_out": 0.219, "kept": 0.43},
    6: {"mixer_in": 0.443, "mixer_out": 0.35, "ffn_in": 0.443, "ffn_out": 0.30, "kept": 0.41},
}
"""Spikes per neuron and step of ATMN by T and site (tau = 1/2, fires at V / 2), measured on SmolLM2-135M;
"kept" is of those activations that a sparse feed-forward net keeps. docs/log.md says how."""


@dataclass(frozen=True)
class Projection:
    """A linear map of one layer."""

    name: str
    site: str | None
    inputs: int
    outputs: int


def projections(config: MarConfig, kind: str) -> list[Projection]:
    """The linear maps of a layer whose mixer is of that kind."""
    D, F = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    width = config.head_dim or D // heads
    H, KV = heads * width, kv_heads * width
    settings = config.mixer_settings or {}
    found = []
    if kind != SSM or config.mixer == "ssd":
        found += [Projection("q_proj", "mixer_in", D, H), Projection("k_proj", "mixer_in", D, KV)]
    found += [Projection("v_proj", "mixer_in", D, KV), Projection("o_proj", "mixer_out", H, D)]
    if kind == SSM and settings.get("gate"):
        found.append(Projection("z_proj", "mixer_in", D, H))
    if kind == SSM and config.mixer == "ssd":
        found.append(Projection("a_proj", "mixer_in", D, heads))
    if config.gated_ffn:
        found.append(Projection("gate_proj", "ffn_in", D, F))
    return [*found, Projection("up_proj", "ffn_in", D, F), Projection("down_proj", "ffn_out", F, D)]


def head(config: MarConfig) -> Projection:
    """The linear map behind the last layer."""
    if isinstance(config, MarVisionConfig):
        return Projection("classifier", None, config.hidden_size, config.num_labels)
    return Projection("lm_head", None, config.hidden_size, config.vocab_size)


def token_counts(
    config: MarConfig,
    context: int,
    rates: Mapping[str, float] | float | None = None,
    steps: int | None = None,
) -> OperationCounts:
    """Operations of the token that follows `context - 1` others, by layer and projection.

    Of an image classifier: those of the class token.

    Args:
        config: with its SSM layers, sparsity and spikes.
        context: tokens that attention sees, this one included.
        rates: spikes per neuron and step of all sites, by "layer.site", or by site; needed where the
            configuration spikes.
        steps: T; the spikes' own setting by default.
    """
    counts = OperationCounts(tokens=1)
    heads = config.num_attention_heads
    width = config.head_dim or config.hidden_size // heads
    spikes = config.spikes
    settings = config.mixer_settings or {}
    if spikes is not None:
        counts.steps = int(steps or spikes["settings"].get("steps", 4))
    graded = spikes is not None and _graded(spikes)
    for index, kind in enumerate(config.layer_types or []):
        for each in projections(config, kind):
            layer = counts.layer(f"model.layers.{index}.{each.name}")
            dense = each.inputs * each.outputs
            layer.baseline_mac = dense
            keep = 1.0
            if config.sparsity is not None and each.name == "down_proj":
                keep = config.sparsity["keep"][index]
            if spikes is not None and each.site is not None and each.site in spikes["sites"]:
                masked = keep if config.sparsity and config.sparsity["mode"] == "mask" else 1.0
                met = round(dense * masked * _rate(rates, index, each.site) * counts.steps)
                if graded:
                    layer.graded_ac, layer.dense_graded_ac = met, dense * counts.steps
                else:
                    layer.ac, layer.dense_ac = met, dense * counts.steps
            else:
                layer.mac = round(dense * keep)
                layer.dense_mac = dense
        mixing = counts.layer(f"model.layers.{index}.mixing")
        if kind == SSM:
            H = heads * width
            if config.mixer == "ssd":
                taps = 3 * int(settings.get("conv_size", 1)) * H  # of values, keys and queries
                turns = 2 * H if settings.get("rope") else 0  # keys and queries, two products each
                mixing.mac = H * width  # y = S^T c
                mixing.mul = 2 * H * width + taps + 2 * turns + 3 * H  # decay S, b x^T; gate, scaled input
                mixing.add = H * width + taps + turns
            else:
                N = int(settings["state_size"])  # N / 2 complex modes of each feature
                mixing.mul, mixing.add = H * (5 * N + 2), H * (4 * N - 1)
        else:
            seen = context if kind != SLIDING else min(context, config.sliding_window or context)
            mixing.mac = mixing.dense_mac = 2 * heads * width * seen
        if kind == SSM and not config.causal:  # both ways
            mixing.mac, mixing.mul, mixing.add = 2 * mixing.mac, 2 * mixing.mul, 2 * mixing.add
        mixing.baseline_mac = mixing.mac if kind != SSM else 0
    last = head(config)
    behind = counts.layer(last.name)
    behind.mac = behind.dense_mac = behind.baseline_mac = last.inputs * last.outputs
    return counts


def image_counts(
    config: MarVisionConfig, rates: Mapping[str, float] | float | None = None, steps: int | None = None
) -> OperationCounts:
    """Operations of one image: the layers' of each of its tokens, those of patches, the classifier's once."""
    tokens, last = image_tokens(config), head(config).name
    of_token = token_counts(config, tokens, rates, steps)
    counts = OperationCounts(tokens=1, steps=of_token.steps)
    patches = counts.layer("model.embeddings.patch_embeddings.projection")
    size = math.prod(sides(config.patch_size)) * config.num_channels
    patches.mac = patches.dense_mac = patches.baseline_mac = (tokens - 1) * size * config.hidden_size
    for name, each in of_token.layers.items():
        times = 1 if name == last else tokens
        counts.layers[name] = LayerCounts(**{key: times * value for key, value in vars(each).items()})
    return counts


def _graded(spikes: Mapping[str, Any]) -> bool:
    """Whether spikes carry integers beyond 1."""
    levels = SpikingInput(1, spikes["neuron"], **spikes["settings"]).neuron.levels
    return max(abs(level) for level in levels) > 1


def _rate(rates: Mapping[str, float] | float | None, layer: int, site: str) -> float:
    if isinstance(rates, Mapping):
        return rates[f"{layer}.{site}"] if f"{layer}.{site}" in rates else rates[site]
    if rates is None:
        raise InputError("the configuration has spikes, so their rates are needed to count")
    return rates


def dense_of(config: MarConfig) -> MarConfig:
    """The same Transformer with attention in every layer, dense feed-forward nets and no spikes."""
    own = config.layer_types or []
    left = {kind for kind in own if kind != SSM} or {ATTENTION if config.sliding_window is None else SLIDING}
    usual = SLIDING if SLIDING in left else ATTENTION  # where both are left, the cheaper
    kinds = [usual if kind == SSM else kind for kind in own]
    changed = {"layer_types": kinds, "sparsity": None, "spikes": None}
    return type(config)(**{**config.to_dict(), **changed})


def measured_rates(config: MarConfig) -> dict[str, float]:
    """Rates by "layer.site" of a model that nobody has run, as they were on another one.

    Raises:
        InputError: the neuron, or T, is none that was measured.
    """
    spikes = config.spikes or {}
    settings = {"steps": 4, "tau": 0.5, "fire_at": 1.0, **spikes.get("settings", {})}
    own = RATES.get(settings["steps"])
    if spikes["neuron"] != "ATMN" or settings["tau"] != 0.5 or settings["fire_at"] != 0.5 or own is None:
        known = ", ".join(map(str, RATES))
        raise InputError(
            f"no measured rates for {spikes['neuron']} with {settings}; there are some for ATMN with "
            f"tau=0.5, fire_at=0.5 and steps {known}. Say a rate, or a budget of layers"
        )
    keep = [1.0] * config.num_hidden_layers
    if config.sparsity is not None and config.sparsity["mode"] != "mask":
        keep = config.sparsity["keep"]
    found: dict[str, float] = {}
    for layer, share in enumerate(keep):
        found |= {f"{layer}.{site}": rate for site, rate in own.items() if site != "kept"}
        found[f"{layer}.ffn_out"] = min(own["ffn_out"], share * own["kept"])
    return found


def by_site(rates: Mapping[str, float]) -> dict[str, float]:
    """Mean rates of each site over the layers, from rates by "layer.site"."""
    sites: dict[str, list[float]] = {}
    for name, rate in rates.items():
        sites.setdefault(name.partition(".")[2], []).append(rate)
    return {site: sum(each) / len(each) for site, each in sites.items()}


def priced(
    config: MarConfig, context: int, rates: Mapping[str, float] | float | None = None
) -> dict[str, float]:
    """Operations and nJ of a token by each table, in the dense model's, and bytes that it moves; estimated.

    The dense model has attention everywhere, every product a MAC, at the same precision. Traffic is not in
    the joules: its price depends on which memory holds the weights.
    """
    dense_config = dense_of(config)
    own, dense = token_counts(config, context, rates).total, token_counts(dense_config, context).total
    row: dict[str, float] = {
        "mac": own.mac, "ac": own.ac, "graded_ac": own.graded_ac, "mul": own.mul, "dense_mac": dense.mac,
        "bytes_fp32": token_bytes(config, context), "dense_bytes_fp32": token_bytes(dense_config, context),
    }  # fmt: skip
    for name in TABLES:
        table = load_table(name)
        row[f"{name} nJ"] = table.spiking_pj(own) / 1e3
        row[f"{name} dense nJ"] = table.spiking_pj(dense) / 1e3
        row[f"{name} ratio"] = row[f"{name} nJ"] / row[f"{name} dense nJ"]
    return row


def budget_ratio(
    config: MarConfig,
    ssm_layers: Sequence[int],
    sparsity: Mapping[str, Any] | None,
    spikes: Mapping[str, Any] | None,
    context: int,
) -> float:
    """Energy of a refined model in that of the dense one, of a token or an image, at 45 nm and fp32."""
    kinds = [SSM if layer in ssm_layers else kind for layer, kind in enumerate(config.layer_types or [])]
    keep = None
    if sparsity is not None:
        keep = {**sparsity, "keep": sparsity.get("keep", 1.0)}
    refined = type(config)(
        **{
            **config.to_dict(),
            "layer_types": kinds,
            "sparsity": keep,
            "spikes": dict(spikes) if spikes else None,
        }
    )
    rate = None if spikes is None else measured_rates(refined)
    table = load_table(TABLES[0])

    def energy(of: MarConfig) -> float:
        sees = isinstance(of, MarVisionConfig)
        counts = image_counts(of, rate) if sees else token_counts(of, context, rate)
        return table.spiking_pj(counts.total)

    return energy(refined) / energy(dense_of(config))


def token_bytes(config: MarConfig, context: int, size: int = 4) -> int:
    """Bytes of weights and of memory of earlier tokens that one token reads, values of `size` bytes."""
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads or heads
    width = config.head_dim or config.hidden_size // heads
    total = head(config).inputs * head(config).outputs
    for index, kind in enumerate(config.layer_types or []):
        for each in projections(config, kind):
            keep = 1.0
            if config.sparsity is not None and each.name == "down_proj":
                keep = config.sparsity["keep"][index]
            total += round(each.inputs * each.outputs * keep)
        if kind != SSM:
            seen = context if kind != SLIDING else min(context, config.sliding_window or context)
            total += 2 * kv_heads * width * seen
        elif config.mixer == "ssd":
            total += 2 * heads * width * width  # read and written
        else:
            total += 2 * heads * width * int((config.mixer_settings or {})["state_size"])
    return total * size
