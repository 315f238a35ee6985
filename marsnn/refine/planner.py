"""The module-aware scheduler: which attention becomes a state space layer, and why.

Every layer is scored on calibration data, without training anything:

    ablation   nats per token of text, or per image, that the model loses without the layer's attention
    fit_error  of a state space layer whose output projection alone was fitted, in the mean square of the
               attention's output; 1 is what nothing at all would have
    depth      0 in the middle of the stack, 1 at its ends
    entropy    of the attention weights of a token, in that of equal weights
    sink       share of the weights that the first token gets
    far        share that goes further back than `FAR` tokens, the first token left out; none where attention
               looks both ways, at patches whose distance in the sequence isn't that in the image

and a policy turns scores into a cost; attentions of least cost go first, until the budget is met.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from marsnn.checks import finite
from marsnn.errors import FileError, InputError
from marsnn.files import PathLike, json_text, read_json, write_text
from marsnn.progress import track
from marsnn.refine.alignment import observed_in_groups
from marsnn.refine.config import SSM, MarConfig, checked_spikes
from marsnn.refine.modality import modality
from marsnn.refine.model import MarPreTrainedModel, layers_of
from marsnn.refine.shapes import budget_ratio
from marsnn.refine.sparsity import checked_sparsity
from marsnn.refine.suffix import Nothing, Suffix, replaced
from marsnn.refine.transfer import convert, fit, mixer_for, relative_error

FORMAT = "marsnn.plan/1"
POLICIES = ("sensitivity", "density", "depth", "manual")

DEPTH_PRIOR = 0.01
"""Nats that the sensitivity policy adds at the ends of the stack: breaks ties of layers that cost nothing."""

FAR = 64

BATCH = 1024
"""Tokens of images that are run at once."""
FIT_GIB = 1.0
"""For what goes into and comes out of attentions while state space layers are fitted."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer: "ssm" or "attention", why, and its scores."""

    layer: int
    choice: str
    why: str
    scores: dict[str, float]


@dataclass
class Plan:
    """What `refine` does to a model; edit it, or its JSON, by hand.

    Attributes:
        model: what identifies the model: its sizes, and a hash of its embeddings.
        budget: what was asked for.   policy: one of `POLICIES`.
        layers: one `LayerPlan` for each layer.
        mixer: "ssd" or "s4d".
        sparsity: {"mode", "keep"} of the feed-forward nets, None for dense ones; a keep that is one number
            is a mean, dealt out by what it costs each layer.
        spikes: as `MarConfig.spikes`, None for none.
        notes: what the figures were made from.
        made_by: digest of the settings that a job was started with, None for a plan made by hand.
        tokens: ids [number], or images, it was made from; not in the file.
    """

    model: dict[str, Any]
    budget: str
    policy: str
    layers: list[LayerPlan]
    mixer: str = "ssd"
    sparsity: dict[str, Any] | None = None
    spikes: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    made_by: str | None = None
    tokens: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def ssm_layers(self) -> list[int]:
        """Layers that become state space layers."""
        return [each.layer for each in self.layers if each.choice == "ssm"]

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a plan of another model.

        Raises:
            InputError: sizes or weights are others.
        """
        own = identity(model)
        wrong = [name for name in own if self.model.get(name) != own[name]]
        if wrong:
            raise InputError(
                f"this plan is for another model: its {wrong[0]} is {self.model.get(wrong[0])!r}, the "
                f"model's {own[wrong[0]]!r}; make one with --plan-only"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without tokens."""
        own = {name: value for name, value in vars(self).items() if name not in ("tokens", "layers")}
        return {"format": FORMAT, **own, "layers": [asdict(layer) for layer in self.layers]}

    def save(self, path: PathLike) -> None:
        """Write the JSON."""
        write_text(path, json_text(self.to_dict()))

    @classmethod
    def load(cls, path: PathLike) -> Plan:
        """Read the JSON; what a hand has edited is checked.

        Raises:
            FileError: it can't be read, or is no plan.   InputError: a setting is out of range.
        """
        raw = read_json(path)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise FileError(f"{path}: not a plan of marsnn (its format is {FORMAT!r})")
        try:
            layers = [LayerPlan(**each) for each in raw["layers"]]
            plan = cls(**{**{key: raw[key] for key in raw if key != "format"}, "layers": layers})
        except (TypeError, KeyError) as error:
            raise FileError(f"{path}: a plan with missing or unknown entries ({error})") from error
        plan.validate(str(path))
        return plan

    def validate(self, where: str = "the plan") -> None:
        """Refuse choices and settings that can't be carried out."""
        if [each.layer for each in self.layers] != list(range(len(self.layers))):
            raise InputError(f"{where}: layers must be 0, 1, 2, ... in this order")
        for each in self.layers:
            if each.choice not in ("ssm", "attention"):
                raise InputError(
                    f'{where}: layer {each.layer} must be "ssm" or "attention", got {each.choice!r}'
                )
        self.sparsity = checked_sparsity(self.sparsity, len(self.layers), spread=False)
        self.spikes = checked_spikes(self.spikes)

    def summary(self) -> str:
        """One line."""
        told = (
            f"plan by {self.policy}, budget {self.budget}: {len(self.ssm_layers)} of {len(self.layers)} "
            f"attention layers become {self.mixer}"
        )
        if self.sparsity:
            keep = self.sparsity["keep"]
            mean = keep if isinstance(keep, float) else sum(keep) / len(keep)
            told += f"; feed-forward nets keep {mean:.2g} by {self.sparsity['mode']}"
        if self.spikes:
            told += f"; {self.spikes['neuron']} before {', '.join(self.spikes['sites'])}"
        return told

    def text(self) -> str:
        """A table, one line a layer, that says why."""
        names = ("cost", "ablation", "fit_error", "depth", "entropy", "sink", "far")
        shown = [name for name in names if any(name in each.scores for each in self.layers)]
        lines = [
            self.summary(),
            "layer  becomes    " + "".join(f"{name:>10}" for name in shown) + "  why",
        ]
        for each in self.layers:
            scores = "".join(f"{each.scores.get(name, math.nan):10.4f}" for name in shown)
            lines.append(f"{each.layer:5d}  {each.choice:<10} {scores}  {each.why}")
        return "\n".join([*lines, *self.notes]) + "\n"


@dataclass(frozen=True)
class Budget:
    """How far to go: a number of layers, a share of the dense energy, or a share of quality to give up."""

    kind: str
    value: float
    text: str

    @classmethod
    def parse(cls, given: int | str | Budget, layers: int) -> Budget:
        """From 7, "7", "25%", "half", "all", "energy=0.6" or "quality=0.05".

        Raises:
            InputError: anything else, or more layers than there are.
        """
        if isinstance(given, Budget):
            return given
        text = str(given).strip().lower()
        words = {"none": 0, "quarter": layers // 4, "half": layers // 2, "all": layers}
        kind, _, number = text.rpartition("=")
        try:
            if isinstance(given, bool):
                raise ValueError
            if text in words:
                return cls("layers", words[text], text)
            if text.endswith("%"):
                value: float = math.floor(float(text[:-1]) / 100 * layers + 1e-9)
            else:
                value = float(number)
        except ValueError:
            raise _unclear(given) from None
        kind = kind or "layers"
        if kind not in ("layers", "energy", "quality") or not math.isfinite(value) or value < 0:
            raise _unclear(given)
        if kind == "layers" and (value != int(value) or value > layers):
            raise InputError(f"a budget of {text} layers: the model has {layers}")
        return cls(kind, value, text)


def _unclear(given: object) -> InputError:
    return InputError(
        f'can\'t read the budget {given!r}; say a number of layers (7), "25%", "half", "all", "energy=0.6" '
        '(of the dense model) or "quality=0.05" (of its loss to give up)'
    )


def plan(
    model: PreTrainedModel,
    tokens: Tensor,
    budget: int | str | Budget,
    policy: str = "sensitivity",
    layers: Sequence[int] | None = None,
    mixer: str = "ssd",
    sparsity: dict[str, Any] | None = None,
    spikes: dict[str, Any] | None = None,
    context: int = 1024,
    progress: bool = False,
    labels: Tensor | None = None,
) -> Plan:
    """Score every layer and choose those whose attention becomes a state space layer.

    Args:
        model: a language model or an image classifier, see `convert`.
        tokens: ids of running text [number], of which the first 9,216 are used where there are as many; or
            images [number, C, H, W], the first 256 for losses (fewer if large) and 8,192 tokens' worth more.
        budget: see `Budget.parse`.
        policy: "sensitivity" (ablation times fit error, and a little depth), "density" (what attention reads
            from afar), "depth" (the middle first), or "manual": `layers`, whatever the budget.
        layers: of the manual policy.
        mixer: "ssd" or "s4d".   sparsity, spikes: of `Plan`.
        context: tokens that an energy budget is meant for; an image has its own.
        progress: draw bars on a terminal.
        labels: classes [number] of images, for losses; None for those that the model finds likeliest.

    Raises:
        InputError: an unknown policy or budget, too few tokens, a model of another kind.
        NonFiniteError: weights or predictions hold NaN.
    """
    if policy not in POLICIES:
        raise InputError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if (policy == "manual") != (layers is not None):
        raise InputError('the policy "manual" takes its layers by name, the other policies choose them')
    count = model.config.num_hidden_layers
    wanted = Budget.parse(budget, count)
    kind = modality(model)
    losses, fits = kind.for_plan(tokens)
    kind.check_labels(labels, tokens)
    whole = convert(model, [])
    if policy == "density" and not whole.config.causal:
        raise InputError('the policy "density" asks how far back attention looks; this one looks both ways')
    attentions = [layer for layer, kind in enumerate(whole.config.layer_types or []) if kind != SSM]
    suffix = Suffix(whole, losses, None if labels is None else labels[: len(losses)])
    scores = _scores(suffix, losses, fits, attentions, mixer, progress)
    for each in scores.values():
        each["cost"] = _cost(policy, each)
    order = sorted(attentions, key=lambda layer: scores[layer]["cost"])
    if layers is not None:
        chosen = sorted(set(layers) & set(attentions))
        if set(layers) - set(range(count)):
            raise InputError(f"no layer {max(set(layers) - set(range(count)))}: 0 to {count - 1}")
    else:
        chosen = _chosen(wanted, order, scores, whole.config, sparsity, spikes, kind.context(context))
    made = Plan(
        identity(model), wanted.text, policy,
        [_layer(each, whole.config, chosen, order, scores, policy) for each in range(count)],
        mixer, sparsity, spikes,
        [
            f"scores from {kind.amount(losses):,} {kind.scored}s for losses and {kind.amount(fits):,} for "
            f"fits; dense loss {scores[attentions[0]].pop('dense'):.4f} nats per {kind.scored}"
            if attentions
            else "no attention is left"
        ],
        tokens=tokens,
    )  # fmt: skip
    for each in scores.values():
        each.pop("dense", None)
    made.validate()
    return made


def identity(model: PreTrainedModel) -> dict[str, Any]:
    """What a plan remembers of its model: the same in every dtype that it is loaded in."""
    config = model.config
    kind = modality(model)
    name, weight = kind.embeddings(model)
    weight = weight.detach()
    finite(name, weight)
    sample = weight.flatten()[:: max(1, weight.numel() // 4096)].bfloat16()  # the coarsest of the dtypes
    bits = sample.view(torch.int16).cpu().numpy().tobytes()
    return {
        "layers": config.num_hidden_layers,
        "features": config.hidden_size,
        kind.outputs: kind.number,
        "embeddings": hashlib.sha256(bits).hexdigest()[:16],
    }


def _scores(
    suffix: Suffix, losses: Tensor, fits: Tensor, layers: Sequence[int], mixer: str, progress: bool
) -> dict[int, dict[str, float]]:
    model = suffix.model
    count = model.config.num_hidden_layers
    scores: dict[int, dict[str, float]] = {}
    for layer in track(layers, "what each attention is worth", progress):
        with replaced(model.model.layers[layer], "self_attn", Nothing()):
            cost = suffix.cost(layer)
        place = abs(2 * layer / max(1, count - 1) - 1)
        scores[layer] = {
            "ablation": cost.nats, "ablation_kl": cost.kl, "depth": place, "dense": suffix.nats,
        }  # fmt: skip
    for layer, density in _densities(model, losses, layers).items():
        scores[layer].update(density)
    together = suffix.kind.together(BATCH, len(fits))
    held = max(1, len(fits) // 4)
    seen = observed_in_groups(model, fits, layers, FIT_GIB, together)
    for layer, (into, out) in zip(layers, track(seen, "fits", progress, len(layers)), strict=True):
        untrained = mixer_for(model, layer, mixer=mixer)
        fit(untrained, into[:-held], out[:-held], together)
        scores[layer]["fit_error"] = relative_error(untrained, into[-held:], out[-held:], together)
    return scores


def _densities(model: MarPreTrainedModel, rows: Tensor, layers: Sequence[int]) -> dict[int, dict[str, float]]:
    """Entropy, sink and far mass of attention weights, means over heads and tokens."""
    kind = modality(model)
    found: dict[int, dict[str, float]] = {}

    def watch(layer: int) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            found[layer] = density(out[1].float(), model.config.causal)

        return hook

    hooks = [layers_of(model)[layer].self_attn.register_forward_hook(watch(layer)) for layer in layers]
    usual = model.config._attn_implementation
    model.config._attn_implementation = "eager"  # the one that gives weights
    try:
        with torch.no_grad():
            kind.run(model, rows[: kind.together(BATCH, len(rows))])
    finally:
        model.config._attn_implementation = usual
        for hook in hooks:
            hook.remove()
    return found


def density(weights: Tensor, causal: bool = True) -> dict[str, float]:
    """Of weights [B, H, L, L]: what the tokens behind the first `FAR`, or the first half, look at.

    Where attention isn't causal all tokens count, and none of them is far.
    """
    length, device = weights.shape[-1], weights.device
    if not causal:
        entropy = torch.special.entr(weights).sum(-1) / math.log(length)
        return {"entropy": entropy.mean().item(), "sink": weights[..., 0].mean().item()}
    far = min(FAR, length // 2)
    rows = weights[..., far + 1 :, :]
    places = torch.arange(length, device=device)
    ages = places[far + 1 :, None] - places
    entropy = torch.special.entr(rows).sum(-1) / (places[far + 1 :] + 1).log()
    beyond = rows.where(ages > far, 0.0)[..., 1:].sum(-1)
    return {
        "entropy": entropy.mean().item(), "sink": rows[..., 0].mean().item(), "far": beyond.mean().item(),
    }  # fmt: skip


def _cost(policy: str, scores: dict[str, float]) -> float:
    if policy == "density":
        return scores["far"] * scores["entropy"]
    if policy == "depth":
        return scores["depth"]
    return max(scores["ablation_kl"], 0.0) * min(scores["fit_error"], 1.0) + DEPTH_PRIOR * scores["depth"]


def _chosen(
    budget: Budget,
    order: Sequence[int],
    scores: dict[int, dict[str, float]],
    config: MarConfig,
    sparsity: dict[str, Any] | None,
    spikes: dict[str, Any] | None,
    context: int,
) -> list[int]:
    """The cheapest attentions of `order`, as many as the budget takes."""
    if budget.kind == "layers":
        return sorted(order[: int(budget.value)])
    if budget.kind == "quality":
        allowed = budget.value * scores[order[0]]["dense"] if order else 0.0
        taken, spent = [], 0.0
        for layer in order:
            spent += max(scores[layer]["ablation_kl"], 0.0) * min(scores[layer]["fit_error"], 1.0)
            if spent > allowed:
                break
            taken.append(layer)
        return sorted(taken)
    for number in range(len(order) + 1):
        taken = sorted(order[:number])
        ratio = budget_ratio(config, taken, sparsity, spikes, context)
        if ratio <= budget.value:
            return taken
    raise InputError(
        f"energy={budget.value:g} can't be met: with every attention replaced the model is at {ratio:.3f} of "
        f"the dense one at {context:,} tokens; lower keep, or add spikes"
    )


def _layer(
    layer: int, config: MarConfig, chosen: Sequence[int], order: Sequence[int],
    scores: dict[int, dict[str, float]], policy: str,
) -> LayerPlan:  # fmt: skip
    if layer not in scores:
        return LayerPlan(layer, "ssm", "is one already", {})
    own = scores[layer]
    rank = f"{order.index(layer) + 1} of {len(order)}"
    choice = "ssm" if layer in chosen else "attention"
    if policy == "manual":
        why = f"by hand; cost {rank}"
    elif policy == "depth":
        why = f"depth {rank} from the middle"
    elif policy == "density":
        why = f"reads {own['far']:.0%} from afar, entropy {own['entropy']:.2f}: {rank}"
    else:
        why = (
            f"cost {rank}: without it {own['ablation']:+.3f} nats (KL {own['ablation_kl']:.3f}); a fit alone "
            f"explains {max(0.0, 1 - own['fit_error']):.0%} of its output's mean square"
        )
    return LayerPlan(layer, choice, why, {name: value for name, value in own.items() if name != "dense"})
