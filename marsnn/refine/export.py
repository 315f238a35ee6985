"""From a refined model to a chip, one layer or one spiking feed-forward net at a time.

    network = block_network(model, layer=3)          norm, state space layer, norm, feed-forward net,
    residuals sample = block_inputs(model, 3, tokens)
    bundle = marsnn.export(network, sample, "bundle")

`ffn_network` and `ffn_inputs` are the feed-forward net alone. What has no exact form as a `Network` is
refused, with what to do instead.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from marsnn.errors import InputError
from marsnn.gated import GatedLinear
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, TMN, Neuron
from marsnn.refine.model import MarForCausalLM, MarMixer, MarMLP, layers_of
from marsnn.spiking import SpikingInput, weight_of
from marsnn.ssm import S4D, SSDCore

EXACT = (ATMN, TMN, LIF)
"""Neurons whose code is the same in a `Network` as at a site."""


def ffn_network(model: MarForCausalLM, layer: int) -> Network:
    """The spiking feed-forward net of a layer as a Network of its own: x [L, B, D] to [L, B, D].

        ffn_in -> gated -> ffn_out -> down_proj

    Equal to `model.model.layers[layer].mlp` within rounding. What surrounds it in the layer, norm and
    residual, is not part of it.

    Args:
        model: with spikes at "ffn_in" and "ffn_out"; dense, or sparse by "threshold" or "mask".
        layer: which one.

    Raises:
        InputError: no such layer; no spikes there, or spikes of a kind that has no exact form as a Network.

    Example:
        `ffn_network(model, 0)["gated"]` is a `GatedLinear`.
    """  # fmt: skip
    mlp = _mlp(model, layer)
    where = f"layer {layer}"
    sites = {site: _neuron(where, site, getattr(mlp, site)) for site in ("ffn_in", "ffn_out")}
    gated = _gated(where, mlp)
    assert mlp.gate_proj is not None
    with torch.no_grad():
        _copy(gated.gate, mlp.gate_proj)
        _copy(gated.up, mlp.up_proj)
    network = Network(
        {
            "ffn_in": sites["ffn_in"],
            "gated": gated,
            "ffn_out": sites["ffn_out"],
            "down_proj": _linear(mlp.down_proj),
        }
    )
    return network.eval()


def block_network(model: MarForCausalLM, layer: int) -> Network:
    """A whole layer with a state space mixer as a Network: x [L, B, D], the residual stream, to [L, B, D].

        input_norm -> mixer_in -> in_proj -> core -> mixer_out -> o_proj -> + x
        ffn_norm -> ffn_in -> gated -> ffn_out -> down_proj -> + both

    Equal to `model.model.layers[layer]` within rounding. `in_proj` is all of the mixer's input projections
    side by side; keys and values that heads share are repeated in it. The gate of an "s4d" mixer is that of
    the `S4D` here.

    Args:
        model: with spikes at all four sites; dense, or sparse by "threshold" or "mask".
        layer: one whose attention has become a state space layer.

    Raises:
        InputError: no such layer; no state space layer there; spikes that are missing or have no exact form
            as a Network.

    Example:
        `block_network(model, 3)["core"]` is an `SSDCore`, or an `S4D` by the model's mixer.
    """  # fmt: skip
    mlp = _mlp(model, layer)
    block, where = layers_of(model)[layer], f"layer {layer}"
    mixer = block.self_attn
    if not isinstance(mixer, MarMixer):
        raise InputError(
            f"{where} is attention, which no chip runs token by token; state space layers are "
            f"{', '.join(map(str, model.config.ssm_layers)) or 'none'}"
        )
    sites = {
        site: _neuron(where, site, getattr(owner, site))
        for owner, names in ((mixer, ("mixer_in", "mixer_out")), (mlp, ("ffn_in", "ffn_out")))
        for site in names
    }
    gated = _gated(where, mlp)
    assert mlp.gate_proj is not None
    with torch.no_grad():
        _copy(gated.gate, mlp.gate_proj)
        _copy(gated.up, mlp.up_proj)
    layers: dict[str, nn.Module] = {
        "input_norm": _norm(block.input_layernorm),
        "mixer_in": sites["mixer_in"],
        "in_proj": _in_proj(mixer),
        "core": _core(mixer),
        "mixer_out": sites["mixer_out"],
        "o_proj": _linear(mixer.o_proj),
        "ffn_norm": _norm(block.post_attention_layernorm),
        "ffn_in": sites["ffn_in"],
        "gated": gated,
        "ffn_out": sites["ffn_out"],
        "down_proj": _linear(mlp.down_proj),
        "out": nn.Identity(),
    }
    return Network(layers, skips={"ffn_norm": "input", "out": ["o_proj", "input"]}).eval()


def block_inputs(model: MarForCausalLM, layer: int, tokens: Tensor) -> Tensor:
    """What enters a layer, [L, B, D], on token ids [B, L]: a sample for `export`."""
    _mlp(model, layer)
    return _seen(model, layers_of(model)[layer], tokens)


def ffn_inputs(model: MarForCausalLM, layer: int, tokens: Tensor) -> Tensor:
    """What enters the feed-forward net of a layer, [L, B, D], on token ids [B, L]: a sample for `export`."""
    return _seen(model, _mlp(model, layer), tokens)


def _seen(model: MarForCausalLM, module: nn.Module, tokens: Tensor) -> Tensor:
    """The first argument of a module's call, [L, B, D]."""
    found: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        with torch.no_grad():
            model.model(tokens.to(model.device), use_cache=False)
    finally:
        hook.remove()
    (x,) = found
    return x.detach().transpose(0, 1).contiguous()


def _core(mixer: MarMixer) -> SSDCore | S4D:
    """A copy of a mixer's state space layer, with its gate in it."""
    core = mixer.core
    if isinstance(core, SSDCore) or mixer.gate_bias is None:
        return deepcopy(core)
    made = S4D(**{**core.constructor(), "gate": True}).to(core.skip)
    made.load_state_dict({**core.state_dict(), "gate_bias": mixer.gate_bias.detach()})
    return made


def _in_proj(mixer: MarMixer) -> nn.Linear:
    """Gate, values, keys, queries and forgetting, or gate and values, as one map: as the core takes them."""
    parts = [] if mixer.z_proj is None else [(mixer.z_proj, False)]
    parts += [(mixer.v_proj, True)]
    if isinstance(mixer.core, SSDCore):
        parts += [(mixer.k_proj, True), (mixer.q_proj, False), (mixer.a_proj, False)]
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for part, shared in parts:
        weight: Tensor = weight_of(part)
        bias: Tensor = weight.new_zeros(len(weight)) if part.bias is None else part.bias
        if shared:  # each head has its own copy of what it shares with others
            weight = mixer._shared(weight.t()).t()
            bias = mixer._shared(bias)
        weights.append(weight)
        biases.append(bias)
    weight, bias = torch.cat(weights), torch.cat(biases)
    made = nn.Linear(weight.shape[1], len(weight), bias=bool(bias.any()))
    made.to(weight)
    with torch.no_grad():
        made.weight.copy_(weight)
        if made.bias is not None:
            made.bias.copy_(bias)
    return made


def _linear(source: nn.Linear) -> nn.Linear:
    """A plain copy."""
    made = nn.Linear(source.in_features, source.out_features, bias=source.bias is not None)
    made.to(source.weight)
    with torch.no_grad():
        _copy(made, source)
    return made


def _norm(source: nn.Module) -> nn.Module:
    """A plain copy of a layer's norm."""
    if isinstance(source, nn.LayerNorm):
        return deepcopy(source)
    made = nn.RMSNorm(len(source.weight), eps=source.variance_epsilon)  # type: ignore[arg-type]
    made.to(source.weight)  # type: ignore[arg-type]
    with torch.no_grad():
        made.weight.copy_(source.weight)  # type: ignore[arg-type]
    return made


def _mlp(model: MarForCausalLM, layer: int) -> MarMLP:
    layers = layers_of(model)
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < len(layers):
        raise InputError(f"no layer {layer!r}: the model has 0 to {len(layers) - 1}")
    return layers[layer].mlp


def _neuron(where: str, site: str, spiking: SpikingInput | None) -> Neuron:
    """A copy of a site's neuron."""
    if spiking is None:
        raise InputError(
            f"{where} has no spikes at {site!r}: add_spikes(model, tokens, sites=(..., 'ffn_in', 'ffn_out'))"
        )
    neuron: Neuron = spiking.neuron
    name = type(neuron).__name__
    if spiking.per_token:
        raise InputError(
            f"{where}: {site} scales each token, by a root that no chip takes; "
            "add_spikes(..., per_token=False) instead"
        )
    if type(neuron) not in EXACT:
        raise InputError(f"{where}: {site} has {name} neurons; add_spikes(..., neuron='ATMN') instead")
    if neuron.carry != "token":
        raise InputError(
            f"{where}: {site} has {name} neurons with carry={neuron.carry!r}; add them with carry='token'"
        )
    return deepcopy(neuron)


def _gated(where: str, mlp: MarMLP) -> GatedLinear:
    """Without its weights."""
    if mlp.gate_proj is None:
        raise InputError(
            f"{where}: its feed-forward net has no gate; build the Network by hand from its maps"
        )
    level = None
    if mlp.sparsifier is not None:
        if mlp.sparsifier.mode != "threshold":
            raise InputError(
                f"{where} is sparse by {mlp.sparsifier.mode!r}, a sort across neurons that no chip does; "
                "sparsify(..., mode='threshold') or mode='mask' instead"
            )
        level = float(mlp.sparsifier.level()) or None
    gated = GatedLinear(
        mlp.hidden_size,
        mlp.intermediate_size,
        bias=mlp.gate_proj.bias is not None,
        activation=mlp.config.hidden_act,
        level=level,
    )
    return gated.to(mlp.gate_proj.weight)


def _copy(target: nn.Linear, source: nn.Linear) -> None:
    target.weight.copy_(weight_of(source))
    if source.bias is not None:
        target.bias.copy_(source.bias)
