"""Spikes before linear maps: what turns a layer's activations into the trains that its projections receive.

    train = neuron.encode(x)                       T steps of {-1, 0, +1} (or what the neuron emits)
    y     = W decode(train) + b                    one matmul of the value that the spikes stand for
          = sum_t (W gain_t) train[t] + b          the same, one step after the other: accumulates only

The decode weights `gain` of a step (V tau^t for ATMN) fold into W beforehand, so that each product of the
second line is one of a weight with a spike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn import neurons
from marsnn.checks import count, finite
from marsnn.errors import InputError, ShapeError

FACTORS = tuple(2 ** (step / 4) for step in range(-3, 4))
"""Thresholds that `calibrate` tries, in units of a channel's largest value. With tau = 1/2 a code reaches
nearly twice its threshold, so none of them clips what was seen: on other text, clipping costs most."""

POWER = 3
"""Of the error that `calibrate` minimises."""

SILENT = 1e-12
"""Threshold of a channel that was never anything but 0, and the least scale of a token."""

TRIED = 2048
"""Tokens, of those that `calibrate` gets, on which thresholds are tried; the largest value is that of all."""

CHUNK = 512
"""Tokens that `calibrate` encodes at once."""


class SpikingInput(nn.Module):
    """A neuron before one or several linear maps of the same activation [*, N].

    Args:
        features: N; each has a threshold of its own.
        neuron: a name of `marsnn.neurons`.
        per_token: divide each token by the root of its mean square before it is encoded, and multiply what
            the maps give by it: a multiplication per feature and output more, for tokens of unequal sizes.
        settings: of the neuron: steps, tau, fire_at, ...

    Attributes:
        enabled: whether it spikes; the maps get x itself where not.
        unrolled: run the maps once a step instead of once a token; equal but for rounding.
        listener: called with every train [T, *, N], None for nobody.

    Raises:
        InputError: no such neuron, a setting that it doesn't have, or one that emits no spikes.

    Example:
        >>> import torch
        >>> from marsnn.spiking import SpikingInput
        >>> spiking = SpikingInput(4, steps=6, tau=0.5)
        >>> y, = spiking(torch.tensor([[1.0, 0.5, -0.25, 0.0]]), torch.nn.Linear(4, 2))
        >>> y.shape
        torch.Size([1, 2])
    """

    listener: Callable[[Tensor], None] | None = None

    def __init__(self, features: int, neuron: str = "ATMN", per_token: bool = False, **settings: Any) -> None:
        super().__init__()
        self.features = count("features", features)
        self.per_token = bool(per_token)
        self.enabled = True
        self.unrolled = False
        kind: Any = neurons.get(neuron)
        known = set(inspect.signature(kind).parameters) - {"features", "feature_dim", "backend", "surrogate"}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise InputError(f"{neuron} has no setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        if not kind.levels or "threshold" not in known:
            raise InputError(f"{neuron} can't stand before a linear map: it has no threshold to spike at")
        with torch.device("cpu"):  # its settings are read while it is made, which a meta tensor can't be
            start = torch.as_tensor(settings.pop("threshold", 1.0), dtype=torch.float32)
            self.neuron = kind(self.features, threshold=start.expand(self.features).clone(), **settings)
        # who builds this one knows the neuron's settings, so files hold its tensors only
        self.register_state_dict_post_hook(_without_settings)
        self.register_load_state_dict_pre_hook(_with_settings)

    def forward(self, x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
        """Every map [*, M] of the spikes of x [*, N]."""
        if not self.enabled:
            return tuple(each(self._unspiked(x)) for each in maps)
        train, scale = self.spikes(x)
        if self.unrolled:
            found = tuple(self._step_by_step(train, scale, each) for each in maps)
        else:
            value = self.neuron.decode(train)
            if scale is not None:
                value = value * scale
            found = tuple(each(value) for each in maps)
        return found

    def spikes(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The train [T, *, N] of x [*, N], and the scale of each token [*, 1], None for 1."""
        scale = None
        if self.per_token:
            scale = x.detach().square().mean(-1, keepdim=True).sqrt().clamp(min=SILENT)
            x = x / scale
        train = self.neuron.encode(x)
        if self.listener is not None:
            self.listener(train)
        return train, scale

    def gains(self, train: Tensor) -> Tensor:
        """What a spike of each step and feature stands for, [T, N]: `decode` is the sum over gain * spike."""
        leading = train.flatten(1, -2)[:, 0] if train.ndim > 2 else train  # [T, N]
        return (self.neuron.step_gain(leading) / len(train)).expand(len(train), self.features)

    def _unspiked(self, x: Tensor) -> Tensor:
        """x, and a gradient of 0 for the neuron: training in several processes misses no parameter."""
        learned = [each for each in self.neuron.parameters() if each.requires_grad]
        if not (learned and torch.is_grad_enabled()):
            return x
        return x + sum(each.sum() for each in learned).to(x.dtype) * 0.0  # type: ignore[union-attr]

    def _step_by_step(self, train: Tensor, scale: Tensor | None, linear: nn.Linear) -> Tensor:
        weight, bias = weight_of(linear), linear.bias
        total = sum(
            F.linear(spikes, weight * gain) for spikes, gain in zip(train, self.gains(train), strict=True)
        )
        assert isinstance(total, Tensor)
        if scale is not None:
            total = total * scale
        return total if bias is None else total + bias

    def calibrate(self, x: Tensor) -> float:
        """Set each feature's threshold to the one whose code is nearest to x, by the mean cube of the error.

        Between the square, which clips the few activations that are a hundred times larger (Sun et al.
        2024, arXiv 2402.17762) though the model hangs on them, and the largest error, which would let them
        decide alone. `docs/log.md` has the measurements.

        Args:
            x: activations [tokens, N] as the site meets them.

        Returns:
            The mean squared error of the code in the mean square of x.

        Raises:
            ShapeError, NonFiniteError: of x.
        """
        if x.ndim != 2 or x.shape[1] != self.features or not len(x):
            raise ShapeError(f"expected activations [tokens, {self.features}], got {list(x.shape)}")
        finite("activations to calibrate spikes on", x)
        with torch.no_grad():
            x = x.float()
            if self.per_token:
                x = x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=SILENT)
            largest = x.abs().amax(0).clamp(min=SILENT)
            x = x[:: max(1, len(x) // TRIED)]
            best, chosen = torch.full_like(largest, torch.inf), largest.clone()
            for factor in FACTORS:
                set_threshold(self.neuron, largest * factor)
                error = self._errors(x, POWER)
                better = error < best
                best, chosen = best.where(~better, error), chosen.where(~better, largest * factor)
            set_threshold(self.neuron, chosen)
            return float(self._errors(x, 2).sum() / x.square().sum().clamp(min=SILENT))

    def _errors(self, x: Tensor, power: int) -> Tensor:
        """Sum over tokens of the absolute error of the code of x [tokens, N], to that power, [N]."""
        return torch.stack([
            (self.neuron.decode(self.neuron.encode(part)) - part).abs().pow(power).sum(0)
            for part in x.split(CHUNK)
        ]).sum(0)  # fmt: skip

    def extra_repr(self) -> str:
        return f"per_token={self.per_token}"


def weight_of(linear: nn.Linear) -> Tensor:
    """The weight [M, N] that a map multiplies with, where it is not the one that it learns."""
    found = getattr(linear, "effective_weight", linear.weight)
    assert isinstance(found, Tensor)
    return found


def set_threshold(neuron: neurons.Neuron, threshold: Tensor) -> None:
    """Give a neuron the threshold of each feature [N], in its own dtype."""
    learned = getattr(neuron, "log_threshold", None)
    with torch.no_grad():
        if learned is not None:
            learned.copy_(threshold.log())
        else:
            neuron.get_buffer("threshold").copy_(threshold)


def _without_settings(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state.pop(f"{prefix}neuron._extra_state", None)


def _with_settings(module: nn.Module, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    name = f"{prefix}neuron._extra_state"
    if isinstance(state, dict) and isinstance(module, SpikingInput) and name not in state:
        state[name] = module.neuron.get_extra_state()
