"""LoRA on a student's projections: low-rank updates beside frozen weights, by `peft`, and their end.

The adapters stand inside of the model, which stays a `MarForCausalLM`: checkpoints hold adapters and
weights, and thresholds, state space parameters and norms go on learning as they are. Source: Hu et al.
2021, arXiv 2106.09685.
"""

from __future__ import annotations

from importlib.util import find_spec

from torch import nn

from marsnn.checks import count
from marsnn.errors import InputError, MissingDependencyError
from marsnn.refine.model import MarForCausalLM

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

FROZEN = {*PROJECTIONS, "embed_tokens", "lm_head"}
"""Whose matrices stay as they are."""


def add_lora(
    model: MarForCausalLM, rank: int = 8, alpha: int | None = None, targets: tuple[str, ...] = PROJECTIONS
) -> None:
    """Freeze the projections and put updates of that rank beside them, in place.

    Args:
        model: `marsnn.refine.merge_lora` makes it whole again.
        rank: of the updates.   alpha: their scale is alpha / rank; None for 2 rank.
        targets: names of projections.

    Embeddings and head are frozen, too; all that is no matrix, and the state space layers' own parameters,
    learn.

    Raises:
        MissingDependencyError: peft isn't installed.   InputError: no such projection, masks beside LoRA.
    """
    count("rank", rank)
    if find_spec("peft") is None:
        raise MissingDependencyError("peft", "hf")
    from peft import LoraConfig, inject_adapter_in_model

    strange = sorted(set(targets) - set(PROJECTIONS))
    if strange or not targets:
        raise InputError(
            f"LoRA stands at {', '.join(PROJECTIONS)}; there is no {' '.join(strange) or 'target'}"
        )
    if model.config.sparsity is not None and model.config.sparsity["mode"] == "mask":
        raise InputError(
            "a mask chooses among weights, which LoRA leaves frozen; use threshold or topk sparsity"
        )
    learned = {name for name, each in model.named_parameters() if each.requires_grad}
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=list(targets))
    inject_adapter_in_model(config, model)
    for name, each in model.named_parameters():
        frozen = each.ndim > 1 and set(name.split(".")) & FROZEN
        each.requires_grad_("lora_" in name or (_plain(name) in learned and not frozen))


def _plain(name: str) -> str:
    return name.replace("base_layer.", "")


def merge_lora(model: nn.Module) -> None:
    """Add the updates to the weights, and leave plain projections, in place."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()  # type: ignore[operator]
                setattr(parent, name, child.get_base_layer())
