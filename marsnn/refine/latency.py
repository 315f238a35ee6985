"""A budget of time for each token: sparse feed-forward nets keep as much as it allows.

    over the budget          the next lower level
    under it by a margin     the next higher one, unless that was too slow lately

A level is a share of activations at most; a layer whose own share is smaller keeps that. What is compared
with the budget is the median of the last tokens at this level, so that one slow token changes nothing.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from marsnn.checks import positive
from marsnn.errors import InputError
from marsnn.refine.model import MarForCausalLM, layers_of
from marsnn.refine.sparsity import GRID, Sparsifier, checked_keep

WINDOW = 8
"""Tokens whose median is compared with the budget."""
FEWEST = 3
"""Tokens at a level before it is judged."""
MARGIN = 0.05
"""How far below the budget, in its own size, the time must be before more is kept."""
PATIENCE = 32
"""Tokens for which a level that was too slow is not tried again; twice as many each time that it is."""


@dataclass(frozen=True)
class LatencyReport:
    """Tokens that were decoded under a budget.

    Times are from the end of one call of the model to the end of the next, so they include what `generate`
    does between; the prompt's own call is not among them.
    """

    budget_ms: float
    tokens_ms: tuple[float, ...]
    """Of each token."""
    keeps: tuple[float, ...]
    """Mean share over sparse layers, of each token."""

    @property
    def tokens(self) -> int:
        return len(self.tokens_ms)

    @property
    def mean_ms(self) -> float:
        return statistics.fmean(self.tokens_ms)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.tokens_ms)

    @property
    def mean_keep(self) -> float:
        return statistics.fmean(self.keeps)

    @property
    def within(self) -> float:
        """Share of tokens that took no longer than the budget."""
        return sum(each <= self.budget_ms for each in self.tokens_ms) / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "budget_ms": self.budget_ms, "tokens": self.tokens, "mean_ms": self.mean_ms,
            "median_ms": self.median_ms, "p95_ms": self.percentile_ms(95), "within": self.within,
            "mean_keep": self.mean_keep, "keeps": list(self.keeps), "tokens_ms": list(self.tokens_ms),
        }  # fmt: skip

    def text(self) -> str:
        """One line."""
        return (
            f"budget {self.budget_ms:g} ms: {self.within:.0%} of {self.tokens} tokens within it, median "
            f"{self.median_ms:.1f} ms, 95 % within {self.percentile_ms(95):.1f}, keep {self.mean_keep:.2f} "
            f"on average, {min(self.keeps):.2f} to {max(self.keeps):.2f}"
        )

    def percentile_ms(self, percent: float) -> float:
        """What so many of a hundred tokens took at most: the nearest rank."""
        if not 0 < percent <= 100:
            raise InputError(f"a percentile lies above 0 and at most at 100, got {percent!r}")
        return sorted(self.tokens_ms)[max(0, -int(-percent * self.tokens // 100) - 1)]


class LatencyBudget:
    """Within the block, tokens that come one at a time keep to a budget as far as sparsity reaches.

    Args:
        model: sparse, by "topk" or "threshold"; `prepare` it before, or keeping less saves no time.
        latency_ms: milliseconds for each token.
        levels: shares to choose from, of `GRID`; by default all up to the largest that a layer keeps.
        beyond: whether a layer may keep more than its own share, too; by default it never does.
        clock: seconds, read once after every call of the model.

    Keeps are as they were when the block ends, however it ends. A prompt, or more than one token at a time,
    is never counted and starts the time anew.

    Raises:
        InputError: a model whose keep can't be moved, a level that isn't calibrated, no time at all.

    Example:
        `with LatencyBudget(model, 20) as budget: model.generate(**inputs)`, then `budget.report()`.
    """

    def __init__(
        self,
        model: MarForCausalLM,
        latency_ms: float,
        levels: Sequence[float] | None = None,
        beyond: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        positive("latency_ms", latency_ms)
        config = getattr(model, "config", None)
        mode = (getattr(config, "sparsity", None) or {}).get("mode")
        if mode not in ("topk", "threshold"):
            found = "no sparse layers" if mode is None else "sparsity by a mask, which is fixed"
            raise InputError(
                f'the model has {found}; make one with sparsify(model, tokens, keep, "threshold") or "topk"'
            )
        self.model, self.budget_ms, self.beyond = model, float(latency_ms), beyond
        parts = [layer.mlp.sparsifier for layer in layers_of(model)]
        self._sparse: list[Sparsifier] = [part for part in parts if part is not None]
        self._own = [part.keep for part in self._sparse]
        largest = max(self._own)
        chosen = [share for share in GRID if beyond or share <= largest + 1e-9] if levels is None else levels
        if not chosen:
            chosen = [largest]
        self.levels = sorted({_calibrated(share) if levels is not None else share for share in chosen})
        if not beyond and levels is None and self.levels[-1] < largest:
            self.levels.append(largest)  # the plan's own share lies between two calibrated ones
        self._clock = clock
        self._hooks: list[Any] = []
        self._times: list[float] = []
        self._keeps: list[float] = []

    def __enter__(self) -> LatencyBudget:
        if self._hooks:
            raise InputError("this budget is in use already; make another LatencyBudget")
        self._own = [part.keep for part in self._sparse]
        self._times, self._keeps = [], []
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._last: float | None = None
        self._barred: dict[int, int] = {}  # level -> token from which on it may be tried again
        self._waits: dict[int, int] = {}  # level -> for how many tokens it was barred last
        mean = statistics.fmean(self._own)
        # where everything may move, from the level next to the plan; else from the plan itself
        self._level = len(self.levels) - 1
        if self.beyond:
            self._level = min(range(len(self.levels)), key=lambda i: abs(self.levels[i] - mean))
        self._set()
        self._hooks = [self.model.register_forward_hook(self._called, with_kwargs=True)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for part, keep in zip(self._sparse, self._own, strict=True):
            part.keep = keep

    def report(self) -> LatencyReport:
        """What was decoded within the block.

        Raises:
            InputError: nothing was.
        """
        if not self._times:
            raise InputError("no token was decoded within the budget's block; call model.generate() in it")
        return LatencyReport(self.budget_ms, tuple(self._times), tuple(self._keeps))

    def _called(self, model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        now, before = self._clock(), self._last
        self._last = now
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        cache = getattr(output, "past_key_values", None)
        first = cache is None or cache.get_seq_length() <= 1
        if given is None or given.shape[1] != 1 or first or before is None:
            return
        spent = 1e3 * (now - before)
        self._times.append(spent)
        self._keeps.append(statistics.fmean(part.keep for part in self._sparse))
        self._recent.append(spent)
        if len(self._recent) >= FEWEST:
            self._judge(statistics.median(self._recent))

    def _judge(self, spent: float) -> None:
        """Stay, or go one level up or down."""
        token, level = len(self._times), self._level
        if spent > self.budget_ms:
            if level == 0:
                return
            wait = 2 * self._waits.get(level, PATIENCE // 2)
            self._waits[level], self._barred[level] = wait, token + wait
            self._level -= 1
        elif spent <= (1 - MARGIN) * self.budget_ms and level + 1 < len(self.levels):
            if token < self._barred.get(level + 1, 0):
                return
            self._level += 1
        else:
            return
        self._recent.clear()
        self._set()

    def _set(self) -> None:
        level = self.levels[self._level]
        for part, own in zip(self._sparse, self._own, strict=True):
            part.keep = level if self.beyond else min(own, level)


def _calibrated(share: float) -> float:
    share = checked_keep(share)
    nearest = min(GRID, key=lambda each: abs(each - share))
    if abs(nearest - share) > 1e-6:
        raise InputError(
            f"levels are calibrated at multiples of {GRID[0]:g}; got {share:g}, next is {nearest:g}"
        )
    return nearest
