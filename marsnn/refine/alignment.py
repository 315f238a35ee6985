"""Each state space layer by itself learns to do what its attention did: `align`.

A layer's inputs and targets are what went into and came out of the teacher's attention, so layers need
neither each other nor a backward pass through the model, and one layer takes seconds to minutes on a CPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
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
from marsnn.files import PathLike, probe, write_bytes
from marsnn.progress import duration, say
from marsnn.refine.loading import digest
from marsnn.refine.modality import TEXT, Modality, modality
from marsnn.refine.model import MarMixer, MarPreTrainedModel
from marsnn.refine.transfer import convert, fit, relative_error
from marsnn.training import warmup_cosine


@dataclass(frozen=True)
class AlignConfig:
    """How state space layers learn from attentions.

    Where they read images, a sequence is as many of them as hold its tokens.
    """

    updates: int = field(default=600, metadata={"help": "of each layer, one sequence each"})
    length: int = field(default=1024, metadata={"help": "tokens of a sequence"})
    sequences: int = field(default=60, metadata={"help": "from which updates draw"})
    held_out: int = field(default=4, metadata={"help": "further sequences, for the error in the report"})
    learning_rate: float = field(default=3e-3, metadata={"help": "peak rate of Adam; a cosine follows"})
    warmup: int = field(default=20, metadata={"help": "updates until the peak"})
    memory_gib: float = field(default=5.0, metadata={"help": "for inputs and outputs of a group of layers"})
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
    refined: MarPreTrainedModel,
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
        teacher: the model it was converted from, or that model under our classes.
        tokens: ids of running text [number], of which the first sequences * length are trained on and the
            next held_out * length are looked at; the whole is taken in proportion where it is shorter. For
            an image classifier images [number, C, H, W], as many as hold so many tokens.
        config: see `AlignConfig`.
        layers: which; None for every state space layer.
        folder: where each layer is written when it is done; a layer that stands there already, of the same
            teacher, tokens and settings, is read instead of trained.
        progress: say when a layer is done, and how long the others will take.

    Raises:
        InputError: too few tokens, a layer that is no state space layer, a teacher of other sizes.
        FileError: the folder can't be written to, before anything is trained.
        DivergedError: a loss became NaN or infinite; the layers before it stay as they are.
    """
    config = config or AlignConfig()
    layers = list(refined.config.ssm_layers if layers is None else layers)
    for layer in layers:
        refined.mixer(layer)  # refuses what is none
    kind = modality(refined)
    sequences = cut(tokens, config, kind)
    together = kind.together(config.length, len(sequences))
    _check_fits(refined, teacher, sequences)
    if not hasattr(teacher, "model"):  # a ViT, whose parts have other names
        teacher = convert(teacher, [])
    found: dict[int, Aligned] = {}
    key = ""
    if folder is not None:
        probe(Path(folder) / "layer")
        key = _key(refined, teacher, sequences, config)
        read = {layer: _read(refined, Path(folder), layer, key) for layer in layers}
        found = {layer: done for layer, done in read.items() if done is not None}
    left = [layer for layer in layers if layer not in found]
    if len(left) < len(layers):
        say(f"  {len(layers) - len(left)} of {len(layers)} layers stand in {folder}", progress)
    taught = observed_in_groups(teacher, sequences, left, config.memory_gib, together)
    for number, (layer, seen) in enumerate(zip(left, taught, strict=True), 1):
        mixer = refined.mixer(layer)
        found[layer] = done = _learn(mixer, layer, *seen, config, together)
        if folder is not None:
            _write(mixer, Path(folder), done, key)
        usual = sum(found[layer].seconds for layer in left[:number]) / number
        left_s = usual * (len(left) - number)
        say(
            f"  layer {layer}: error {done.fitted:.3f} by the fit, {done.trained:.3f} trained, "
            f"{done.seconds:.0f} s ({number} of {len(left)}, about {duration(left_s)} left)",
            progress,
        )
    return [found[layer] for layer in layers]


def cut(data: Tensor, config: AlignConfig, kind: Modality = TEXT) -> Tensor:
    """Sequences [sequences + held_out, length] from running text; of images the first."""
    return kind.for_align(data, config.length, config.sequences + config.held_out)


def _check_fits(refined: MarPreTrainedModel, teacher: PreTrainedModel, sequences: Tensor) -> None:
    kind = modality(refined)
    sizes = [
        (each.config.num_hidden_layers, each.config.hidden_size, modality(each).number)
        for each in (refined, teacher)
    ]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the teacher has (layers, features, {kind.predicted}) {sizes[1]}, the refined model {sizes[0]}; "
            "pass the model that it was converted from"
        )
    kind.check(sequences)


def _held_out(sequences: int, config: AlignConfig) -> int:
    return max(1, min(config.held_out, sequences * config.held_out // (config.sequences + config.held_out)))


def observed(
    teacher: PreTrainedModel, sequences: Tensor, layers: Sequence[int], together: int = 1
) -> dict[int, tuple[Tensor, Tensor]]:
    """What goes into and comes out of attentions, [B, L, D] each in bfloat16, so many sequences at a time."""
    kind = modality(teacher)
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
            for some in sequences.split(together):
                kind.run(teacher, some)
    finally:
        for handle in hooks:
            handle.remove()
    return {layer: (torch.cat(into[layer]), torch.cat(out[layer])) for layer in layers}


def observed_in_groups(
    teacher: PreTrainedModel, sequences: Tensor, layers: Sequence[int], gib: float, together: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """`observed` of each layer in turn; as many as fit into so much memory share one run of the model."""
    tokens = modality(teacher).tokens_in(sequences)
    size = 4 * tokens * teacher.config.hidden_size  # two tensors of 16 bits
    at_once = max(1, int(gib * 2**30 / size))
    for start in range(0, len(layers), at_once):
        group = layers[start : start + at_once]
        seen = observed(teacher, sequences, group, together)
        for layer in group:
            yield seen.pop(layer)


def _learn(
    mixer: MarMixer, layer: int, inputs: Tensor, targets: Tensor, config: AlignConfig, together: int = 1
) -> Aligned:
    """Fit, then train, in float32; whatever happens, the best so far is left, in the mixer's own dtype."""
    started = time.perf_counter()
    held = together * _held_out(len(inputs) // together, config)
    own, unseen = (inputs[:-held], targets[:-held]), (inputs[-held:], targets[-held:])
    dtype = mixer.o_proj.weight.dtype
    wanted = {parameter: parameter.requires_grad for parameter in mixer.parameters()}
    mixer.float().requires_grad_(True)
    best = _copied(mixer)
    try:
        fit(mixer, *own, together)
        fitted = relative_error(mixer, *unseen, together)
        best = _copied(mixer)
        _train(mixer, layer, *own, config, together)
        trained = relative_error(mixer, *unseen, together)
        if trained < fitted:
            best = _copied(mixer)
    finally:
        mixer.load_state_dict(best)
        for parameter, before in wanted.items():
            parameter.grad = None
            parameter.requires_grad_(before)
        mixer.to(dtype)
    return Aligned(layer, fitted, min(fitted, trained), time.perf_counter() - started)


def _copied(mixer: MarMixer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in mixer.state_dict().items()}


def _train(
    mixer: MarMixer, layer: int, inputs: Tensor, targets: Tensor, config: AlignConfig, together: int
) -> None:
    """So many sequences an update, all of them in a new order each time."""
    scale = targets.float().square().mean().item()
    optimizer = torch.optim.Adam(mixer.parameters(), lr=config.learning_rate, betas=(0.9, 0.95))
    schedule = warmup_cosine(optimizer, config.warmup, config.updates)
    draw = torch.Generator().manual_seed(config.seed)
    passes = -(-config.updates * together // len(inputs))
    order = torch.cat([torch.randperm(len(inputs), generator=draw) for _ in range(passes)])
    for update, rows in enumerate(order[: config.updates * together].split(together)):
        with torch.enable_grad():
            found = mixer(inputs[rows].float())[0]
            loss = (found - targets[rows].float()).square().mean() / scale
        if not bool(torch.isfinite(loss)):
            raise DivergedError(
                f"the loss of layer {layer} became NaN or infinite in update {update + 1}; its fit is "
                f"kept. Try a learning_rate below {config.learning_rate:g}"
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
        optimizer.step()
        schedule.step()


# ---- what survives a kill -------------------------------------------------------------------------------


def _key(
    refined: MarPreTrainedModel, teacher: PreTrainedModel, sequences: Tensor, config: AlignConfig
) -> str:
    """A digest of all that trained layers follow from."""
    made = [asdict(config), refined.config.mixer, refined.config.mixer_settings, str(refined.dtype)]
    if not refined.config.causal:
        made.append("both ways")
    return digest(json.dumps(made, sort_keys=True), sequences, *teacher.parameters())


def _path(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:03d}.safetensors"


def _write(mixer: MarMixer, folder: Path, done: Aligned, key: str) -> None:
    tensors = {name: value.contiguous() for name, value in mixer.state_dict().items()}
    metadata = {"key": key, "aligned": json.dumps(asdict(done))}
    write_bytes(_path(folder, done.layer), save(tensors, metadata))


def _read(refined: MarPreTrainedModel, folder: Path, layer: int, key: str) -> Aligned | None:
    """The layer as it was left, or None where it isn't there, is damaged or follows from something else."""
    path = _path(folder, layer)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            done = Aligned(**json.loads(metadata["aligned"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            refined.mixer(layer).load_state_dict(tensors)
            return done
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError):
        return None
