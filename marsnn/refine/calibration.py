"""Stages that need no training, only calibration data: sparse feed-forward nets, and spikes.

Both change a model in place, weights stay as they are. One pass over the data serves all layers; where
spikes are set, each site sees what the spikes before it leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from marsnn.errors import InputError
from marsnn.refine.config import SITES
from marsnn.refine.modality import modality
from marsnn.refine.model import MarMLP, MarPreTrainedModel, layers_of, site_of
from marsnn.refine.sparsity import (
    GRID,
    MaskedLinear,
    Sparsifier,
    allocate,
    checked_sparsity,
    errors,
)  # fmt: skip
from marsnn.refine.suffix import Suffix, replaced
from marsnn.spiking import SpikingInput

ROWS = 16384
"""Tokens of a site, at most, that are looked at."""

PRICED = 2048
"""Tokens, of those, on which every share of the grid is priced."""

TINY = 1e-30


@dataclass(frozen=True)
class Sparsified:
    """What one feed-forward net keeps."""

    layer: int
    keep: float
    cost: float
    """Nats per prediction that the model's predictions move by, by this net alone (Kullback-Leibler)."""


@dataclass(frozen=True)
class Spiked:
    """One site's spikes."""

    layer: int
    site: str
    error: float
    """Mean squared error of the code in the mean square of the activation."""
    rate: float
    """Spikes per neuron and step."""


def sparsify(
    model: MarPreTrainedModel, tokens: Tensor, keep: float | Sequence[float], mode: str = "topk"
) -> list[Sparsified]:
    """Make every feed-forward net sparse, in place.

    Args:
        model: without sparsity.
        tokens: ids [B, L] to calibrate on, or images [B, C, H, W].
        keep: the mean share of activations that stay, dealt out to layers by what it costs each; or the
            share of each layer.
        mode: "topk", "threshold" or "mask".

    Raises:
        InputError: a keep outside of (0, 1], an unknown mode, a model that is sparse or spiking already.
    """
    config, mlps = model.config, _mlps(model)
    for stage, there in (("sparse", config.sparsity), ("spiking", config.spikes)):
        if there is not None:
            raise InputError(f"the model is {stage} already; sparsify it before anything follows, and once")
    settings = checked_sparsity({"mode": mode, "keep": keep}, len(mlps))
    assert settings is not None
    gauge: list[float] = settings["keep"]
    costs: dict[int, list[float]] = {}
    sizes: dict[int, Tensor] = {}
    parts: dict[int, Sparsifier] = {}

    def look(layer: int) -> Callable[[Tensor], None]:
        def at(x: Tensor) -> None:
            some = x[:: max(1, len(x) // PRICED)]
            costs[layer] = errors(some, mlps[layer].down_proj.weight, mode).tolist()
            sizes[layer] = x.float().abs().mean(0)
            if mode != "mask":
                parts[layer] = Sparsifier(x.shape[1], mode).to(x.device)
                parts[layer].calibrate(some)

        return at

    with torch.no_grad():
        _look_at(model, tokens, {mlp.down_proj: look(layer) for layer, mlp in enumerate(mlps)})
        loss = Suffix(model, modality(model).for_comparison(tokens))
        costs_kl: dict[int, list[float]] = {}
        for layer, mlp in enumerate(mlps):
            place = _gauged(costs[layer], gauge[layer])
            name, sparse = ("down_proj", None) if mode == "mask" else ("sparsifier", parts[layer])
            if sparse is None:
                part: nn.Module = _masked(mlp.down_proj, GRID[place], sizes[layer])
            else:
                part, sparse.keep = sparse, GRID[place]
            with replaced(mlp, name, part):
                found = max(loss.cost(layer).kl, 0.0)
            # an error of twice the power costs twice: what is small is quadratic in the logits
            unit = found / max(costs[layer][place], TINY)
            costs_kl[layer] = [unit * error for error in costs[layer]]
        chosen = gauge
        if not isinstance(keep, Sequence):
            chosen = [share for _, share in sorted(allocate(costs_kl, keep).items())]
        config.sparsity = {"mode": mode, "keep": list(chosen)}
        for layer, mlp in enumerate(mlps):
            if mode == "mask":
                mlp.down_proj = _masked(mlp.down_proj, chosen[layer], sizes[layer])
            else:
                mlp.sparsifier = parts[layer]
                mlp.sparsifier.keep = chosen[layer]
    return [Sparsified(layer, share, _at(costs_kl[layer], share)) for layer, share in enumerate(chosen)]


def add_spikes(
    model: MarPreTrainedModel,
    tokens: Tensor,
    neuron: str = "ATMN",
    sites: Sequence[str] = SITES,
    per_token: bool = False,
    **settings: Any,
) -> list[Spiked]:
    """Put spikes before the projections of every layer, in place, thresholds calibrated per channel.

    Args:
        model: without spikes.
        tokens: ids [B, L] to calibrate on, or images [B, C, H, W].
        neuron: a name of `marsnn.neurons`.   settings: its own: steps, tau, fire_at, ...
        sites: some of `SITES`.
        per_token: scale each token before it is encoded, see `SpikingInput`.

    Raises:
        InputError: an unknown neuron, setting or site, a model that spikes already.
        NonFiniteError: activations hold NaN. Whatever is raised, the model is then as it was.
    """
    if model.config.spikes is not None:
        raise InputError("the model has spikes already; start from the model without them")
    wanted = {
        "neuron": neuron, "sites": list(sites), "per_token": per_token, "settings": dict(settings),
    }  # fmt: skip
    checked = type(model.config)(**{**model.config.to_dict(), "spikes": wanted})
    device, dtype = model.device, model.dtype
    found: list[Spiked] = []
    hooks = []
    placed: list[tuple[nn.Module, str]] = []
    try:
        for layer, block in enumerate(layers_of(model)):
            for site in sites:
                owner, features = site_of(block, site)
                spiking = SpikingInput(features, neuron, per_token, **settings)
                spiking.to(device=device, dtype=dtype)
                hooks.append(spiking.register_forward_pre_hook(_calibrates(found, layer, site)))
                placed.append((owner, site))
                setattr(owner, site, spiking)
        with torch.no_grad():
            modality(model).run(model, tokens)
        model.config.spikes = checked.spikes
    except BaseException:
        for owner, site in placed:
            setattr(owner, site, None)
        raise
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def firing_rates(model: MarPreTrainedModel) -> Iterator[dict[tuple[int, str], list[float]]]:
    """Within the block: (layer, site) -> spikes per neuron and step of every call."""
    rates: dict[tuple[int, str], list[float]] = {}
    listening = []
    for layer, block in enumerate(layers_of(model)):
        for site in SITES:
            owner = block.self_attn if site.startswith("mixer") else block.mlp
            spiking = getattr(owner, site, None)
            if spiking is not None:
                heard = rates.setdefault((layer, site), [])
                spiking.listener = lambda train, heard=heard: heard.append(_rate(train))
                listening.append(spiking)
    try:
        yield rates
    finally:
        for spiking in listening:
            spiking.listener = None


def _calibrates(found: list[Spiked], layer: int, site: str) -> Any:
    def hook(spiking: Any, args: Any) -> None:
        x = args[0].flatten(0, -2)[:ROWS]
        error = spiking.calibrate(x)
        found.append(Spiked(layer, site, error, _rate(spiking.spikes(x)[0])))

    return hook


def _rate(train: Tensor) -> float:
    return float((train != 0).float().mean())


def _mlps(model: MarPreTrainedModel) -> list[MarMLP]:
    return [layer.mlp for layer in layers_of(model)]


def _masked(linear: nn.Linear, keep: float, size: Tensor) -> MaskedLinear:
    masked = MaskedLinear(linear.in_features, linear.out_features, linear.bias is not None, keep)
    masked.to(device=linear.weight.device, dtype=linear.weight.dtype)
    masked.load_state_dict(linear.state_dict(), strict=False)
    masked.refresh(size)
    return masked


def _gauged(errors: Sequence[float], share: float) -> int:
    """The place of the calibrated share next to this one of those that make an error, which is the unit.

    Where everything is kept there is none; of a few features 0.95 may be all of them.
    """
    places = [place for place, error in enumerate(errors) if error > 0 and GRID[place] < 1]
    return min(places or range(len(GRID)), key=lambda place: abs(GRID[place] - share))


def _at(costs: Sequence[float], share: float) -> float:
    """The cost of a share, between those of the calibrated ones."""
    above = min(place for place, known in enumerate(GRID) if known >= share)
    below = max(above - 1, 0)
    part = (GRID[above] - share) / (GRID[1] - GRID[0]) if above else 0.0
    return costs[above] + part * (costs[below] - costs[above])


def _look_at(
    model: MarPreTrainedModel, tokens: Tensor, look: dict[nn.Module, Callable[[Tensor], None]]
) -> None:
    """One pass in which modules' inputs [tokens, F] are looked at."""
    hooks = [
        module.register_forward_pre_hook(lambda _, args, at=at: at(args[0].flatten(0, -2)[:ROWS]))
        for module, at in look.items()
    ]
    try:
        modality(model).run(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()
