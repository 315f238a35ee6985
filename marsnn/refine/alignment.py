"""Each state space layer by itself learns to do what its attention did: `align`.

A layer's inputs and targets are what went into and came out of the teacher's attention, so layers need
neither each other nor a backward pass through the model, and one layer takes seconds to minutes on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from marsnn.checks import count, positive
from marsnn.errors import DivergedError, InputError
from marsnn.files import PathLike, write_bytes
from marsnn.progress import track
from marsnn.refine.model import MarForCausalLM, MarMixer
from marsnn.refine.transfer import fit, relative_error


@dataclass(frozen=True)
class AlignConfig:
    """How state space layers learn from attentions."""

    updates: int = field(default=600, metadata={"help": "of each layer, one sequence each"})
    length: int = field(default=1024, metadata={"help": "tokens of a sequence"})
    sequences: int = field(default=60, metadata={"help": "from which updates draw"})
    held_out: int = field(default=4, metadata={"help": "further sequences, for the error in the report"})
    learning_rate: float = field(default=3e-3, metadata={"help": "peak rate of Adam; a cosine follows"})
    warmup: int = field(default=20, metadata={"help": "updates until the peak"})
    memory_gib: float = field(default=2.0, metadata={"help": "for inputs and outputs of a group of layers"})
    seed: int = field(default=0, metadata={"help": "of the order of sequences"})

    def __post_init__(self) -> None:
        for name in ("updates", "length", "sequences", "held_out", "warmup"):
            count(name, getattr(self, name))
        positive("learning_rate", self.learning_rate)
        positive("memory_gib", self.memory_gib)


@dataclass(frozen=True)
class Aligned:
    """One layer's way: errors on held-out sequences, in the mean square of the attention's outputs."""

    layer: int
    fitted: float
    trained: float
    seconds: float


def align(
    refined: MarForCausalLM,
    teacher: PreTrainedModel,
    tokens: Tensor,
    config: AlignConfig | None = None,
    layers: Sequence[int] | None = None,
    folder: PathLike | None = None,
    progress: bool = False,
) -> list[Aligned]:
    """Fit and train state space layers in place.

    Args:
        refined: from `convert`.
        teacher: the model it was converted from.
        tokens: ids of running text [number], of which the first sequences * length are trained on and the
            next held_out * length are looked at; the whole is taken in proportion where it is shorter.
        config: see `AlignConfig`.
        layers: which; None for every state space layer.
        folder: where each layer is written when it is done; a layer that stands there already, of the same
            teacher, tokens and settings, is read instead of trained.
        progress: draw a bar on a terminal.

    Raises:
        InputError: too few tokens, a layer that is no state space layer.
        DivergedError: a loss became NaN or infinite; the layers before it stay as they are.
    """
    config = config or AlignConfig()
    layers = list(refined.config.ssm_layers if layers is None else layers)
    for layer in layers:
        refined.mixer(layer)  # refuses what is none
    sequences = cut(tokens, config)
    keys = {layer: _key(refined, teacher, sequences, config, layer) for layer in layers}
    found: dict[int, Aligned] = {}
    for layer in layers:
        done = None if folder is None else _read(refined, Path(folder), layer, keys[layer])
        if done is not None:
            found[layer] = done
    left = [layer for layer in layers if layer not in found]
    size = 4 * sequences.numel() * refined.config.hidden_size  # two tensors of 16 bits
    at_once = max(1, int(config.memory_gib * 2**30 / size))
    bar = track(left, "state space layers learn from attentions", progress)
    for start in range(0, len(left), at_once):
        group = left[start : start + at_once]
        taught = observed(teacher, sequences, group)
        for layer in group:
            next(bar)
            mixer = refined.mixer(layer)
            found[layer] = _learn(mixer, layer, *taught.pop(layer), config)
            if folder is not None:
                _write(mixer, Path(folder), found[layer], keys[layer])
    return [found[layer] for layer in layers]


def cut(tokens: Tensor, config: AlignConfig) -> Tensor:
    """Sequences [sequences + held_out, length] from running text."""
    if tokens.ndim != 1 or tokens.is_floating_point():
        raise InputError(f"expected token ids [number], got {tokens.dtype} {list(tokens.shape)}")
    wanted = config.sequences + config.held_out
    there = len(tokens) // config.length
    if there < 2:
        raise InputError(f"{len(tokens):,} tokens are too few for 2 sequences of {config.length:,}")
    return tokens[: min(wanted, there) * config.length].view(-1, config.length)


def _held_out(sequences: int, config: AlignConfig) -> int:
    return max(1, min(config.held_out, sequences * config.held_out // (config.sequences + config.held_out)))


def observed(
    teacher: PreTrainedModel, sequences: Tensor, layers: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """What goes into and comes out of attentions, [B, L, D] each in bfloat16, one sequence at a time."""
    into: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    out: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def watch(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, result: Any) -> None:
            into[layer].append(kwargs["hidden_states"].to(torch.bfloat16))
            out[layer].append(result[0].to(torch.bfloat16))

        return hook

    hooks = [
        teacher.model.layers[layer].self_attn.register_forward_hook(watch(layer), with_kwargs=True)
        for layer in layers
    ]
    try:
        with torch.no_grad():
            for sequence in sequences.split(1):
                teacher.model(sequence.to(teacher.device), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return {layer: (torch.cat(into[layer]), torch.cat(out[layer])) for layer in layers}


def _learn(mixer: MarMixer, layer: int, inputs: Tensor, targets: Tensor, config: AlignConfig) -> Aligned:
    started = time.perf_counter()
    held = _held_out(len(inputs), config)
    own, unseen = (inputs[:-held], targets[:-held]), (inputs[-held:], targets[-held:])
    dtype = mixer.o_proj.weight.dtype
    mixer.float()  # whatever it is kept in
    fit(mixer, *own)
    fitted = relative_error(mixer, *unseen)
    best = {name: value.clone() for name, value in mixer.state_dict().items()}
    scale = own[1].float().square().mean().item()
    wanted = {id(p): p.requires_grad for p in mixer.parameters()}
    mixer.requires_grad_(True)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=config.learning_rate, betas=(0.9, 0.95))
    draw = torch.Generator().manual_seed(config.seed)
    order = torch.cat([torch.randperm(len(own[0]), generator=draw) for _ in range(config.updates)])
    try:
        for update in range(config.updates):
            rise = min(1.0, (update + 1) / config.warmup)
            fall = (1 + math.cos(math.pi * update / config.updates)) / 2
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rise * fall
            row = order[update : update + 1]
            with torch.enable_grad():
                loss = (mixer(own[0][row].float())[0] - own[1][row].float()).square().mean() / scale
            if not bool(torch.isfinite(loss)):
                raise DivergedError(
                    f"the loss of layer {layer} became NaN or infinite in update {update + 1}; its fit is "
                    f"kept. Try a learning_rate below {config.learning_rate:g}"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
            optimizer.step()
        trained = relative_error(mixer, *unseen)
        if trained < fitted:
            best = mixer.state_dict()
    finally:
        mixer.load_state_dict(best)
        for parameter in mixer.parameters():
            parameter.grad = None
            parameter.requires_grad_(wanted[id(parameter)])
        mixer.to(dtype)
    return Aligned(layer, fitted, min(fitted, trained), time.perf_counter() - started)


# ---- what survives a kill -------------------------------------------------------------------------------


def _key(
    refined: MarForCausalLM, teacher: PreTrainedModel, sequences: Tensor, config: AlignConfig, layer: int
) -> str:
    """A digest of all that a trained layer follows from."""
    digest = hashlib.sha256()
    made = [asdict(config), refined.config.mixer, refined.config.mixer_settings, layer]
    digest.update(json.dumps(made, sort_keys=True).encode())
    digest.update(sequences.contiguous().numpy().tobytes())
    attention = teacher.model.layers[layer].self_attn
    for tensor in [teacher.model.embed_tokens.weight[:64], *attention.parameters()]:
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _path(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:03d}.safetensors"


def _write(mixer: MarMixer, folder: Path, done: Aligned, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in mixer.state_dict().items()}
    metadata = {"key": key, "aligned": json.dumps(asdict(done))}
    write_bytes(_path(folder, done.layer), save(tensors, metadata))


def _read(refined: MarForCausalLM, folder: Path, layer: int, key: str) -> Aligned | None:
    """The layer as it was left, or None where it isn't there, is damaged or follows from something else."""
    path = _path(folder, layer)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            refined.mixer(layer).load_state_dict(tensors)
            return Aligned(**json.loads(metadata["aligned"]))
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError):
        return None
