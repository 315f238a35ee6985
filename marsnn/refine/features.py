"""What teacher and student are compared by inside: their activations where spikes are inserted.

    pre     what arrives at a site, before it is encoded
    post    what its projections then receive: the values that the spikes stand for

Where a site has no spikes, as in a teacher, both are the input of its projections. PreNorm, which the loss
applies, is the same for both. The paper compares "pre-norm" with "post-norm" features and defines neither;
this is our reading: before the neuron, or behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from marsnn.errors import InputError
from marsnn.refine.config import SITES
from marsnn.refine.model import MarMixer

KINDS = ("pre", "post", "both", "none")

PROJECTION = {
    "mixer_in": ("self_attn", "v_proj"), "mixer_out": ("self_attn", "o_proj"),
    "ffn_in": ("mlp", "up_proj"), "ffn_out": ("mlp", "down_proj"),
}  # fmt: skip
"""Who receives a site's activation, in a Llama and in what is made of it."""

Place = tuple[int, str]
"""A layer and a site."""


def places(student: PreTrainedModel, sites: Sequence[str] = SITES) -> list[Place]:
    """Where student and teacher can be compared.

    In front of a state space layer's output projection there is nothing to compare: its channels are not
    those of the attention that it stands for.

    Raises:
        InputError: no such site.
    """
    own = set(getattr(student.config, "ssm_layers", ()))
    return [
        (layer, site)
        for layer in range(student.config.num_hidden_layers)
        for site in checked_sites(sites)
        if site != "mixer_out" or layer not in own
    ]


def checked_sites(sites: Sequence[str]) -> tuple[str, ...]:
    """Names of `SITES`.

    Raises:
        InputError: there is no such site, or none at all.
    """
    named = (sites,) if isinstance(sites, str) else tuple(sites)
    strange = sorted({str(each) for each in named} - set(SITES))
    if strange or not named:
        raise InputError(
            f"sites are some of {', '.join(SITES)}; there is no site {strange[0] if strange else ''!r}"
        )
    return named


@contextmanager
def observed(
    model: PreTrainedModel, where: Sequence[Place], kind: str = "pre"
) -> Iterator[dict[tuple[Place, str], Tensor]]:
    """Within the block: (place, "pre" or "post") -> the activation [B, L, D] of the last call.

    Args:
        model: a Llama, or one made of it, not its wrapper.   kind: one of `KINDS`.
    """
    found: dict[tuple[Place, str], Tensor] = {}
    hooks = []
    for layer, site in where if kind != "none" else ():
        block, name = PROJECTION[site]
        owner = getattr(model.model.layers[layer], block)
        for one in ("pre", "post") if kind == "both" else (kind,):
            spiking = getattr(owner, site, None) if one == "pre" else None
            watched: nn.Module = getattr(owner, name) if spiking is None else spiking
            turned = isinstance(owner, MarMixer)  # inside, tokens come first
            hooks.append(watched.register_forward_pre_hook(_keeps(found, ((layer, site), one), turned)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _keeps(found: dict[tuple[Place, str], Tensor], key: tuple[Place, str], turned: bool) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        found[key] = args[0].transpose(0, 1) if turned else args[0]

    return hook
