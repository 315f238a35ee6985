"""Sparse feed-forward nets: which activations, or which weights, the second projection does without.

    topk        of each token the largest |x| at the input of `down_proj`
    threshold   those above a calibrated level, as many on average
                (Liu et al. 2024, TEAL, arXiv 2408.14690)
    mask        of each output the weights of largest |W| E|x|, x all that is there
                (Sun et al. 2023, Wanda, arXiv 2306.11695); refreshed while training

How much a layer keeps follows from the error that it makes: `allocate` takes from where it costs least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from marsnn.errors import InputError, ShapeError
from marsnn.linear import Linear, linear

MODES = ("topk", "threshold", "mask")

GRID = tuple(step / 20 for step in range(1, 21))
"""Shares kept at which errors and thresholds are calibrated: 0.05, 0.1, ..., 1."""


def checked_keep(keep: float) -> float:
    """A share of activations in (0, 1].

    Raises:
        InputError: it is none.
    """
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise InputError(f"keep is the share of activations that stay, above 0 and at most 1; got {keep!r}")
    return float(keep)


class Sparsifier(nn.Module):
    """Sets the small activations [*, F] to zero.

    Args:
        features: F.
        mode: "topk" or "threshold".
        keep: share of activations that stay; it may be set anew at any time, on "threshold" to what
            was calibrated between.

    Raises:
        InputError: an unknown mode, a keep outside of (0, 1].
    """

    levels: Tensor

    def __init__(self, features: int, mode: str = "topk", keep: float = 1.0) -> None:
        super().__init__()
        if mode not in ("topk", "threshold"):
            raise InputError(f'a sparsifier is "topk" or "threshold", got {mode!r}')
        self.features, self.mode, self.keep = features, mode, checked_keep(keep)
        if mode == "threshold":
            self.register_buffer("levels", torch.zeros(len(GRID)))

    def forward(self, x: Tensor) -> Tensor:
        """[*, F] to [*, F]."""
        if self.mode == "threshold":
            return x.where(x.abs() >= self.level().to(x.dtype), 0.0)
        kept = max(1, round(self.keep * self.features))
        if kept >= self.features:
            return x
        # the k-th largest once, and every index only once: ties keep the number
        indices = x.detach().abs().topk(kept, dim=-1, sorted=False).indices
        return torch.zeros_like(x).scatter(-1, indices, x.gather(-1, indices))

    def level(self) -> Tensor:
        """The threshold at `keep`, between the calibrated ones, []."""
        place = self.keep * len(GRID) - 1
        below = min(max(math.floor(place), 0), len(GRID) - 1)
        above = min(below + 1, len(GRID) - 1)
        return torch.lerp(self.levels[below], self.levels[above], min(max(place - below, 0.0), 1.0))

    def calibrate(self, x: Tensor) -> None:
        """Find the thresholds of every share from activations [tokens, F]."""
        if self.mode != "threshold":
            return
        ordered = x.detach().abs().flatten().float().sort(descending=True).values
        last = [max(0, math.ceil(share * len(ordered)) - 1) for share in GRID]
        self.levels.copy_(ordered[last])
        self.levels[-1] = 0.0

    def extra_repr(self) -> str:
        return f"mode={self.mode}, keep={self.keep:g}"


class MaskedLinear(Linear):
    """A Linear of whose weights a mask takes part; the others keep their values, and may come back.

    Args:
        keep: share of each output's weights that take part.
    """

    mask: Tensor

    def __init__(self, features: int, outputs: int, bias: bool = True, keep: float = 1.0) -> None:
        super().__init__(features, outputs, bias=bias)
        self.keep = checked_keep(keep)
        self.register_buffer("mask", torch.ones((outputs, features), dtype=torch.bool))

    @property
    def effective_weight(self) -> Tensor:
        """The weight [outputs, features] that takes part."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.effective_weight, self.bias)

    def refresh(self, size: Tensor) -> None:
        """Choose the mask anew: of each output the weights of largest |W| E|x|.

        Args:
            size: E|x| of every feature [features].
        """
        if size.shape != self.weight.shape[1:]:
            raise ShapeError(f"expected E|x| [{self.weight.shape[1]}], got {list(size.shape)}")
        kept = max(1, round(self.keep * self.weight.shape[1]))
        weight = self.weight.detach()
        if isinstance(weight, DTensor):  # it lies in parts: FSDP
            weight = weight.full_tensor()
        score = weight.abs() * size.to(weight)
        self.mask.zero_().scatter_(1, score.topk(kept, dim=1).indices, True)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, keep={self.keep:g}"


def errors(x: Tensor, weight: Tensor, mode: str) -> Tensor:
    """What each share of `GRID` costs: the mean square of what is missing from the output, [len(GRID)].

    Args:
        x: inputs of the projection [tokens, F].   weight: its weight [D, F].   mode: one of `MODES`.
    """
    x, weight = x.detach().float(), weight.detach().float()
    found = []
    if mode == "mask":
        rank = _ranks(weight.abs() * x.abs().mean(0))
    elif mode == "topk":
        rank = _ranks(x.abs())
    else:
        sparse = Sparsifier(x.shape[1], "threshold")
        sparse.calibrate(x)
    for share in GRID:
        kept = max(1, round(share * x.shape[1]))
        if mode == "mask":
            missing = F.linear(x, weight.where(rank >= kept, 0.0))
        elif mode == "topk":
            missing = F.linear(x.where(rank >= kept, 0.0), weight)
        else:
            sparse.keep = share
            missing = F.linear(x - sparse(x), weight)
        found.append(missing.square().sum(-1).mean())
    return torch.stack(found)


def _ranks(size: Tensor) -> Tensor:
    """The place of each number in its row [rows, F], 0 for the largest."""
    order = size.argsort(dim=1, descending=True)
    places = torch.arange(order.shape[1], device=order.device)
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))


def allocate(costs: Mapping[int, Sequence[float]], mean: float) -> dict[int, float]:
    """The share that each layer keeps: all of them begin with everything, and who loses least gives first.

    Args:
        costs: layer -> what each share of `GRID` costs, in a unit that layers share.
        mean: the mean share to come down to.
    """
    checked_keep(mean)
    place = dict.fromkeys(costs, len(GRID) - 1)
    steps = round((1 - mean) * len(GRID) * len(costs))
    for _ in range(steps):
        movable = [layer for layer, at in place.items() if at > 0]
        if not movable:
            break
        layer = min(movable, key=lambda one: costs[one][place[one] - 1] - costs[one][place[one]])
        place[layer] -= 1
    return {layer: GRID[at] for layer, at in place.items()}


def checked_sparsity(
    settings: Mapping[str, Any] | None, layers: int, spread: bool = True
) -> dict[str, Any] | None:
    """Settings of a configuration: {"mode": one of `MODES`, "keep": a share, or one for each layer}.

    Args:
        settings: as they came.   layers: of the model.
        spread: give one share to every layer; else it stays one, a mean.

    Raises:
        InputError: anything else.
    """
    if settings is None:
        return None
    unknown = sorted(set(settings) - {"mode", "keep"})
    if unknown:
        raise InputError(f"sparsity has no setting {unknown[0]!r}; known: mode, keep")
    mode, keep = settings.get("mode", "topk"), settings.get("keep", 1.0)
    if mode not in MODES:
        raise InputError(f"sparsity's mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not isinstance(keep, list | tuple) and not spread:
        return {"mode": mode, "keep": checked_keep(keep)}
    shares = list(keep) if isinstance(keep, list | tuple) else [keep] * layers
    if len(shares) != layers:
        raise InputError(f"sparsity's keep names {len(shares)} layers, the model has {layers}")
    return {"mode": mode, "keep": [checked_keep(share) for share in shares]}
