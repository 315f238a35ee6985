"""Sparsity chosen anew while a student learns: masks by |W| E|x|, thresholds by what activations are now.

Everything is seen within one update, so that nothing but the masks and levels themselves, which a
checkpoint holds, is carried from one update to another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from marsnn.refine.calibration import PRICED
from marsnn.refine.model import MarForCausalLM, layers_of
from marsnn.refine.sparsity import MaskedLinear, Sparsifier


class Refresh:
    """Watches the feed-forward nets of a model from now until `finish`.

    Args:
        model: with sparsity; without, or with "topk", which has nothing to choose, nothing happens.
    """

    def __init__(self, model: MarForCausalLM) -> None:
        self.parts: list[MaskedLinear | Sparsifier] = []
        for layer in layers_of(model):
            for part in (layer.mlp.down_proj, layer.mlp.sparsifier):
                if isinstance(part, MaskedLinear) or (
                    isinstance(part, Sparsifier) and part.mode == "threshold"
                ):
                    self.parts.append(part)
        self.seen: dict[nn.Module, list[Tensor]] = {part: [] for part in self.parts}
        self.hooks = [part.register_forward_pre_hook(self._look) for part in self.parts]

    def _look(self, part: nn.Module, args: tuple[Any, ...]) -> None:
        if not part.training:
            return
        x = args[0].detach().flatten(0, -2)
        if isinstance(part, MaskedLinear):
            self.seen[part].append(x.float().abs().mean(0))
        else:
            self.seen[part].append(x[:: max(1, len(x) // PRICED)].float())

    @torch.no_grad()
    def finish(self, accelerator: Any) -> None:
        """Choose by what was seen, in all processes together, and watch no longer."""
        for hook in self.hooks:
            hook.remove()
        for part, seen in self.seen.items():
            if not seen:
                continue
            if isinstance(part, MaskedLinear):
                part.refresh(accelerator.reduce(torch.stack(seen).mean(0), "mean"))
            else:
                assert isinstance(part, Sparsifier)
                part.calibrate(accelerator.gather(torch.cat(seen)))
