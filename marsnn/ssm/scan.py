"""The scan of `reference.ssd_loop` for many tokens at once, by matrix products over chunks.

Within a chunk of Q tokens the recurrence is a masked matrix product, and between chunks only states travel
(Dao and Gu 2024, arXiv 2405.21060, section 6). With D[i, j] the product of the decays from j + 1 to i:

    y  = ((c b^T) * D) x + (in * c) S          in[i]  from the chunk's start to i
    S' = total S + (out * b)^T x               out[j] from j to the chunk's end

These paths do this, equal within rounding:

    chunked    plain torch: any device and dtype, differentiable any number of times, traceable
    fused      C++ on the CPU (`fused.py`), each chunk wholly in the cache
    flash      flash-linear-attention's kernels on a GPU, in 16 bits, where installed (`flash.py`)

Sums of log decays are taken in float64 and subtracted there, so a difference keeps its digits whatever the
decays are. Decays of 0 (log -inf) and 1 (log 0) are ordinary values in both paths.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from marsnn.checks import transformed
from marsnn.errors import InputError, ShapeError
from marsnn.ssm import flash, fused
from marsnn.ssm.reference import computed_in, rest, ssd_loop, ssd_step

Backend = Literal["auto", "reference", "chunked", "fused"]
BACKENDS: tuple[Backend, ...] = ("auto", "reference", "chunked", "fused")

CHUNK = 64
"""Tokens of a chunk."""
BLOCK = 32
"""Chunks whose states one matrix product carries."""
FORGETS = -1000.0
"""A log decay whose exponential is 0 in every dtype, and which can be summed and subtracted; -inf can't."""


def ssd_scan(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None = None,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Selective state space scan: y and the final state.

        S[t] = exp(log_decay[t]) S[t-1] + b[t] x[t]^T
        y[t] = S[t]^T c[t] + skip x[t]

    Args:
        x: [L, B, H, P], in float64, float32, bfloat16 or float16.
        log_decay: [L, B, H], at most 0; -inf forgets all before.
        b: [L, B, G, N].   c: [L, B, G, N]; heads share them where G < H, and G divides H.
        skip: [H], or None for none.
        state: [B, H, N, P], what an earlier call returned; None for zeros.
        reset: [L, B] of bools: where a token starts a new sequence, which sees nothing before it.
        backend: "reference" is the loop over tokens, "chunked" plain torch, "fused" C++ on a CPU or says why
            it can't; "auto" is fused where it can be, flash-linear-attention on a GPU in 16 bits where that
            is installed, chunked elsewhere, and `ssd_step` for one token.

    Returns:
        y [L, B, H, P] in the dtype of x, and the state [B, H, N, P], float32 for 16-bit x, otherwise in
        the dtype of x.

    Raises:
        ShapeError, InputError: what doesn't fit, and what was expected.

    Example:
        >>> import torch
        >>> from marsnn.ssm import ssd_scan
        >>> x, b, c = torch.randn(100, 2, 4, 8), torch.randn(100, 2, 1, 16), torch.randn(100, 2, 1, 16)
        >>> y, state = ssd_scan(x, -torch.rand(100, 2, 4), b, c)
        >>> y.shape, state.shape
        (torch.Size([100, 2, 4, 8]), torch.Size([2, 4, 16, 8]))
    """
    check(x, log_decay, b, c, skip, state, reset)
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if reset is not None:
        log_decay = log_decay.masked_fill(reset.unsqueeze(-1), -torch.inf)
    if backend == "reference":
        return ssd_loop(x, log_decay, b, c, skip, state)
    if backend == "auto" and len(x) == 1:
        y, state = ssd_step(x[0], log_decay[0], b[0], c[0], skip, rest(x, b) if state is None else state)
        return y.unsqueeze(0), state
    if backend != "chunked":
        done = fused.scan(x, log_decay, b, c, skip, state, chunked, required=backend == "fused")
        if done is None and reset is None and backend == "auto":
            done = flash.scan(x, log_decay, b, c, skip, state, chunked)
        if done is not None:
            return done
    return chunked(x, log_decay, b, c, skip, state)


def check(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
) -> None:
    """Refuse what can't be scanned, saying what was expected."""
    if x.ndim != 4 or 0 in x.shape:
        raise ShapeError(f"expected x [L, B, H, P] with no axis empty, got {list(x.shape)}")
    if not x.is_floating_point():
        raise InputError(f"x must be floating point, got {x.dtype}; call .float() on it")
    L, B, H, P = x.shape
    if b.ndim != 4 or b.shape[:2] != (L, B) or 0 in b.shape or H % b.shape[2]:
        raise ShapeError(f"expected b [{L}, {B}, G, N] with G a divisor of {H} heads, got {list(b.shape)}")
    wanted = {
        "log_decay": (log_decay, (L, B, H)),
        "c": (c, tuple(b.shape)),
        "skip": (skip, (H,)),
        "state": (state, (B, H, b.shape[3], P)),
        "reset": (reset, (L, B)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            raise ShapeError(f"expected {name} {list(shape)} for x {list(x.shape)}, got {list(tensor.shape)}")
    for name, tensor in (("b", b), ("c", c), *((name, each) for name, (each, _) in wanted.items())):
        if tensor is not None and tensor.device != x.device:
            raise InputError(f"x is on {x.device}, {name} on {tensor.device}; move one with .to()")
    for name, tensor in (("b", b), ("c", c)):
        if tensor.dtype != x.dtype:
            raise InputError(f"x is {x.dtype}, {name} {tensor.dtype}; convert one: {name}.to({x.dtype})")
    if state is not None and state.dtype != computed_in(x.dtype):
        raise InputError(f"x is {x.dtype}, so the state must be {computed_in(x.dtype)}, got {state.dtype}")
    if reset is not None and reset.dtype != torch.bool:
        raise InputError(f"reset must be bools, got {reset.dtype}")


def chunked(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` in plain torch. Letters: n chunks, Q tokens of one, G groups, R heads of a group."""
    L, B, H, P = x.shape
    G, N = b.shape[2:]
    R, wide, Q = H // G, computed_in(x.dtype), min(CHUNK, L)
    state = rest(x, b) if state is None else state
    # tokens added at the end bring nothing in (x = 0) and decay nothing (log 0)
    after = -L % Q
    xs, bs, cs, logs = (F.pad(each, [0, 0] * (each.ndim - 1) + [0, after]) for each in (x, b, c, log_decay))
    xs, bs, cs = (each.to(wide) for each in (xs, bs, cs))
    xs = xs.view(-1, Q, B, G, R * P).permute(0, 2, 3, 1, 4)  # [n, B, G, Q, R P]
    bs = bs.view(-1, Q, B, G, N).permute(0, 2, 3, 1, 4)  # [n, B, G, Q, N]
    cs = cs.view(-1, Q, B, G, N).permute(0, 2, 3, 1, 4)
    logs = logs.double().clamp(min=FORGETS).view(-1, Q, B, G, R).permute(0, 2, 3, 4, 1)  # [n, B, G, R, Q]
    until = logs.cumsum(-1)
    into = until.exp().to(wide)  # [n, B, G, R, Q]
    out = (until[..., -1:] - until).exp().to(wide)
    heads = xs.unflatten(-1, (R, P))  # [n, B, G, Q, R, P]

    met = cs @ bs.transpose(-1, -2)  # [n, B, G, Q, Q]
    within = (met.unsqueeze(3) * pairs(until, wide)) @ heads.transpose(3, 4)  # [n, B, G, R, Q, P]
    leaving = (out.transpose(3, 4).unsqueeze(-1) * heads).flatten(-2)  # [n, B, G, Q, R P]
    brought = (bs.transpose(-1, -2) @ leaving).unflatten(-1, (R, P)).transpose(3, 4)  # [n, B, G, R, N, P]
    entering, last = carried(brought, until[..., -1], state.unflatten(1, (G, R)))
    seen = (cs @ entering.transpose(3, 4).flatten(-2)).unflatten(-1, (R, P))  # [n, B, G, Q, R, P]
    y = within.transpose(3, 4) + into.transpose(3, 4).unsqueeze(-1) * seen
    y = y.permute(0, 3, 1, 2, 4, 5).reshape(-1, B, H, P)[:L]
    if skip is not None:
        y = y + skip.to(wide)[:, None] * x.to(wide)
    return y.to(x.dtype), last.flatten(1, 2)


def pairs(until: Tensor, dtype: torch.dtype) -> Tensor:
    """D [*, Q, Q] from running sums of log decays [*, Q] in float64: exp(until[i] - until[j]) for j <= i."""
    Q = until.shape[-1]
    above = torch.ones(Q, Q, dtype=torch.bool, device=until.device).triu(1)
    if not torch.is_grad_enabled() or transformed(until):
        return _decays(until, above, dtype)
    return _Pairs.apply(until, above, dtype)  # type: ignore[no-any-return]


def _decays(until: Tensor, above: Tensor, dtype: torch.dtype) -> Tensor:
    spans = (until.unsqueeze(-1) - until.unsqueeze(-2)).to(dtype)
    return spans.masked_fill(above, -torch.inf).exp()


class _Pairs(torch.autograd.Function):
    """As autograd would do it, with sums in float64 and everything else in the dtype of D."""

    @staticmethod
    def forward(ctx: Any, until: Tensor, above: Tensor, dtype: torch.dtype) -> Tensor:
        made = _decays(until, above, dtype)
        ctx.save_for_backward(until, above, made)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        until, above, made = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            made = _decays(until, above, made.dtype)
        slopes = grad * made
        return slopes.sum(-1, dtype=until.dtype) - slopes.sum(-2, dtype=until.dtype), None, None


def carried(brought: Tensor, totals: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states that enter each chunk, and the one that leaves the last.

    A block of chunks is carried by one product with the decays between them; blocks follow one another.

    Args:
        brought: [n, B, G, R, N, P], what each chunk adds.   totals: [n, B, G, R], its log decay.
        state: [B, G, R, N, P], what enters the first.
    """
    entering = []
    for start in range(0, len(brought), BLOCK):
        mine, logs = brought[start : start + BLOCK], totals[start : start + BLOCK]
        logs = torch.cat([torch.zeros_like(logs[:1]), logs]).movedim(0, -1).cumsum(-1)  # [B, G, R, k + 1]
        weights = pairs(logs, brought.dtype)  # [B, G, R, k + 1, k + 1]
        sources = torch.cat([state.unsqueeze(0), mine]).movedim(0, 3).flatten(-2)  # [B, G, R, k + 1, N P]
        states = (weights @ sources).unflatten(-1, state.shape[-2:]).movedim(3, 0)  # [k + 1, B, G, R, N, P]
        entering.append(states[:-1])
        state = states[-1]
    return torch.cat(entering), state
