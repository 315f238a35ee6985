"""From attention to a state space layer: which weight goes where, and the fit that starts the training.

A linear attention is a state space layer (Dao and Gu 2024, arXiv 2405.21060): C is the query, B the key and X
the value, so the projections are copied. As in MOHAWK (Bick et al. 2024, arXiv 2408.10189) convolution, gate
and skip begin as identity, one and nothing; here the output projection is then the least-squares solution on
calibration tokens, for which no copied weight can stand: a softmax has no finite state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from marsnn.checks import finite
from marsnn.errors import InputError, NonFiniteError
from marsnn.refine.config import MarVisionConfig, config_from
from marsnn.refine.model import MarForCausalLM, MarMixer, MarPreTrainedModel, in_dtype, layers_of
from marsnn.refine.vision import MarForImageClassification, renamed
from marsnn.ssm import SSDCore

OPEN = 1.2784645427610738
"""silu(OPEN) = 1: the gate that changes nothing."""

RIDGE = 1e-3
"""Of each feature's own mean square (slow heads have small ones): keeps the fit from using mere noise."""


def convert(model: PreTrainedModel, ssm_layers: Sequence[int], **changes: Any) -> MarPreTrainedModel:
    """A copy of a Transformer with untrained state space layers for the attentions in `ssm_layers`.

    Args:
        model: a LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or MarForCausalLM, which gives a
            MarForCausalLM; a ViTForImageClassification or MarForImageClassification, which gives the
            latter. It is left as it is.
        ssm_layers: indices of layers; empty for the same model under our classes.
        changes: fields of `MarConfig`, say mixer="s4d".

    Raises:
        InputError: a model or layer that can't be converted.   NonFiniteError: weights hold NaN.
    """
    config = config_from(model.config, ssm_layers, **changes)
    for name, weight in model.named_parameters():
        finite(name, weight)
    dtype = next(model.parameters()).dtype
    sees = isinstance(config, MarVisionConfig)
    kind = MarForImageClassification if sees else MarForCausalLM
    refined = in_dtype(kind(config), dtype).to(model.device)
    weights = renamed(model.state_dict()) if sees else model.state_dict()
    missing, unexpected = refined.load_state_dict(weights, strict=False)
    new = sorted(set(config.ssm_layers) - set(getattr(model.config, "ssm_layers", ())))
    replaced = tuple(f"model.layers.{layer}.self_attn." for layer in new)
    wrong = [name for name in (*missing, *unexpected) if not name.startswith(replaced)]
    if wrong:
        raise InputError(f"these weights of the model don't fit the refined one: {', '.join(wrong[:3])}")
    if not sees:
        refined.generation_config = copy.deepcopy(model.generation_config)
    with torch.no_grad():
        for layer in new:
            start(refined.mixer(layer))
    return refined.eval()


def mixer_for(model: MarPreTrainedModel, layer: int, **changes: Any) -> MarMixer:
    """An untrained state space layer with the weights of a layer's attention; the model is left as it is."""
    config = config_from(model.config, [layer], **changes)
    attention = layers_of(model)[layer].self_attn
    mixer = MarMixer(config, layer).to(dtype=model.dtype, device=model.device)
    mixer.load_state_dict(attention.state_dict(), strict=False)
    with torch.no_grad():
        start(mixer)
    return mixer.eval()


def start(mixer: MarMixer) -> None:
    """Set what attention doesn't have: the layer is then linear attention that slowly forgets."""
    core = mixer.core
    bias = core.gate_bias if isinstance(core, SSDCore) else mixer.gate_bias
    if mixer.z_proj is not None and bias is not None:
        nn.init.zeros_(mixer.z_proj.weight)
        nn.init.constant_(bias, OPEN)
    if not isinstance(core, SSDCore):
        return
    nn.init.zeros_(mixer.a_proj.weight)
    nn.init.zeros_(core.conv_weight)
    core.conv_weight[0] = 1.0
    nn.init.zeros_(core.conv_bias)
    if core.skip is not None:
        nn.init.zeros_(core.skip)
    if core.feature_map != "l2":  # q k / sqrt(P), as attention has it
        for projection in (mixer.q_proj, mixer.k_proj):
            for parameter in projection.parameters():
                parameter.mul_(mixer.head_dim**-0.25)


def fit(mixer: MarMixer, inputs: Tensor, targets: Tensor, together: int = 1) -> None:
    """Set the output projection to the least-squares solution.

    Args:
        inputs: [B, L, D].   targets: [B, L, D].
        together: sequences of a call.

    Raises:
        NonFiniteError: inputs or targets hold NaN.
    """
    weight, bias = mixer.o_proj.weight, mixer.o_proj.bias
    F = weight.shape[1]
    gram = weight.new_zeros((F + 1, F + 1), dtype=torch.float64)
    cross = weight.new_zeros((F + 1, targets.shape[-1]), dtype=torch.float64)
    seen: list[Tensor] = []
    hook = mixer.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            for x, y in zip(inputs.split(together), targets.split(together), strict=True):
                mixer(x.to(weight.dtype))
                features = seen.pop().transpose(0, 1).flatten(0, 1).double()  # [tokens, F], as y has them
                features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
                gram += features.t() @ features
                cross += features.t() @ y.flatten(0, 1).double()
    finally:
        hook.remove()
    if not bool(torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise NonFiniteError("a state space layer can't be fitted: its features or targets hold NaN")
    if bias is None:
        gram, cross = gram[:F, :F], cross[:F]
    gram.diagonal().mul_(1 + RIDGE).add_(1e-12)
    solution = torch.linalg.solve(gram, cross)
    with torch.no_grad():
        weight.copy_(solution[:F].t())
        if bias is not None:
            bias.copy_(solution[F])


def relative_error(mixer: MarMixer, inputs: Tensor, targets: Tensor, together: int = 1) -> float:
    """Mean squared error in the mean square of the targets; 1 is what a layer of zeros has."""
    wrong = whole = 0.0
    with torch.no_grad():
        for x, y in zip(inputs.split(together), targets.split(together), strict=True):
            found = mixer(x.to(mixer.o_proj.weight.dtype))[0].double()
            wrong += (found - y.double()).square().sum().item()
            whole += y.double().square().sum().item()
    return wrong / whole if whole else math.nan
