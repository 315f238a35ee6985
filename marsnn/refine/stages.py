"""A refined model as it is, or for a while without its spikes or its sparsity: rows of one checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from marsnn.errors import InputError
from marsnn.refine.config import SITES
from marsnn.refine.model import MarForCausalLM, in_dtype, layers_of, site_of
from marsnn.refine.sparsity import MaskedLinear
from marsnn.refine.suffix import Nothing, replaced


@dataclass(frozen=True)
class View:
    """A model of which some stages are left out while it is looked at.

    Attributes:
        model: any model; only a refined one has stages.
        sparse, spiking: whether sparse feed-forward nets and spikes, where it has them, take part.
        mixing: whether state space layers do; without them nothing stands where their attentions stood,
            which is what refining is measured against.
    """

    model: PreTrainedModel
    sparse: bool = True
    spiking: bool = True
    mixing: bool = True

    @contextmanager
    def shown(self) -> Iterator[PreTrainedModel]:
        """The model as this view has it; as it was again behind the block."""
        with ExitStack() as stack:
            if isinstance(self.model, MarForCausalLM):
                if not self.spiking:
                    stack.enter_context(_without_spikes(self.model))
                if not self.sparse:
                    stack.enter_context(_without_sparsity(self.model))
                if not self.mixing:
                    for layer in self.model.config.ssm_layers:
                        block = layers_of(self.model)[layer]
                        stack.enter_context(replaced(block, "self_attn", Nothing()))
            yield self.model

    def alone(self) -> PreTrainedModel:
        """A model of its own that is what this view shows; the model itself where nothing is left out."""
        if (self.sparse and self.spiking and self.mixing) or not isinstance(self.model, MarForCausalLM):
            return self.model
        if not self.mixing:
            raise InputError("attentions that are left out are no model of their own")
        with self.shown() as shown:
            found = in_dtype(MarForCausalLM(copy.deepcopy(shown.config)), shown.dtype).to(shown.device)
            known = set(found.state_dict())  # a mask that is left out isn't
            weights = {name: each for name, each in shown.state_dict().items() if name in known}
            found.load_state_dict(weights)
        found.generation_config = copy.deepcopy(self.model.generation_config)
        return found.eval()


def stages(model: MarForCausalLM) -> dict[str, View]:
    """Every stage of a refined model by the name of its row, the whole one last.

    The first is no stage but what the others are measured against: the same attentions left out.
    """
    config = model.config
    found: dict[str, View] = {}
    name = "attention"
    if config.ssm_layers:
        share = f"{len(config.ssm_layers)}/{config.num_hidden_layers}"
        found[f"{share} zeroed"] = View(model, sparse=False, spiking=False, mixing=False)
        name = f"{share} SSM"
    found[name] = View(model, sparse=False, spiking=False)
    if config.sparsity is not None:
        keep = config.sparsity["keep"]
        name += f" + FFN {sum(keep) / len(keep):.2g}"
        found[name] = View(model, spiking=False)
    if config.spikes is not None:
        spikes = config.spikes
        name += f" + {spikes['neuron']} T={spikes['settings'].get('steps', 4)}"
        found[name] = View(model)
    return found


@contextmanager
def _without_spikes(model: MarForCausalLM) -> Iterator[None]:
    before = model.config.spikes
    with ExitStack() as stack:
        for layer in layers_of(model):
            for site in SITES:
                stack.enter_context(replaced(site_of(layer, site)[0], site, None))
        model.config.spikes = None
        try:
            yield
        finally:
            model.config.spikes = before


@contextmanager
def _without_sparsity(model: MarForCausalLM) -> Iterator[None]:
    before = model.config.sparsity
    with ExitStack() as stack:
        for layer in layers_of(model):
            stack.enter_context(replaced(layer.mlp, "sparsifier", None))
            if isinstance(layer.mlp.down_proj, MaskedLinear):
                stack.enter_context(_whole(layer.mlp.down_proj))
        model.config.sparsity = None
        try:
            yield
        finally:
            model.config.sparsity = before


@contextmanager
def _whole(linear: MaskedLinear) -> Iterator[None]:
    mask = linear.mask
    linear.mask = torch.ones_like(mask)
    try:
        yield
    finally:
        linear.mask = mask
