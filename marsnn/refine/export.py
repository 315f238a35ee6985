"""From a refined model to a chip, one spiking feed-forward net at a time.

    network = ffn_network(model, layer=3)
    sample = ffn_inputs(model, 3, tokens)
    bundle = marsnn.export(network, sample, "bundle")

What has no exact form as a `Network` is refused, with what to do instead.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from marsnn.errors import InputError
from marsnn.gated import GatedLinear
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, TMN, Neuron
from marsnn.refine.model import MarForCausalLM, MarMLP, layers_of
from marsnn.spiking import SpikingInput, weight_of

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
    down = nn.Linear(mlp.intermediate_size, mlp.hidden_size, bias=mlp.down_proj.bias is not None)
    down.to(mlp.down_proj.weight)
    assert mlp.gate_proj is not None
    with torch.no_grad():
        _copy(gated.gate, mlp.gate_proj)
        _copy(gated.up, mlp.up_proj)
        _copy(down, mlp.down_proj)
    network = Network(
        {"ffn_in": sites["ffn_in"], "gated": gated, "ffn_out": sites["ffn_out"], "down_proj": down}
    )
    return network.eval()


def ffn_inputs(model: MarForCausalLM, layer: int, tokens: Tensor) -> Tensor:
    """What enters the feed-forward net of a layer, [L, B, D], on token ids [B, L]: a sample for `export`."""
    found: list[Tensor] = []
    hook = _mlp(model, layer).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        with torch.no_grad():
            model.model(tokens.to(model.device), use_cache=False)
    finally:
        hook.remove()
    (x,) = found
    return x.detach().transpose(0, 1).contiguous()


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
