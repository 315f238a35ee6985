"""The scan by flash-linear-attention's Triton kernels, where that package and a GPU are there.

`fla.ops.simple_gla.chunk_simple_gla` is the same recurrence, with queries c, keys b, values x and gates
log_decay, on [B, L, H, *]. It subtracts running sums of log decays in float32, which costs digits where
decays are strong and can't forget wholly; so it serves 16-bit tensors without resets, and only once it has
done on that very device what the chunked form does. Source: github.com/fla-org/flash-linear-attention (MIT).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from marsnn import native
from marsnn.checks import transformed

Plain = Callable[..., tuple[Tensor, Tensor]]

LOWEST = -30.0
"""e^-30 is nothing beside 1 in 16 bits, and 64 of them can be summed."""
ALLOWED = 0.03
"""Of the largest value: what two ways to round to 16 bits may differ by."""

_AGREEMENT: dict[tuple[torch.dtype, torch.device], bool] = {}


@functools.cache
def installed() -> bool:
    """Whether the package is here."""
    return find_spec("fla") is not None


def scan(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    state: Tensor | None,
    plain: Plain,
) -> tuple[Tensor, Tensor] | None:
    """`ssd_scan` by fla, or None where it can't run or was found to differ.

    Args:
        plain: the chunked form, to compare with on first use.
    """
    if x.device.type != "cuda" or x.dtype not in (torch.bfloat16, torch.float16) or not installed():
        return None
    if transformed(x) or not agrees(x, plain):
        return None
    return run(x, log_decay, b, c, skip, state)


def run(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The scan in fla's layout and back."""
    from fla.ops.simple_gla import chunk_simple_gla

    ratio = x.shape[2] // b.shape[2]
    keys, queries = (each.repeat_interleave(ratio, 2) if ratio > 1 else each for each in (b, c))
    q, k, v, g = (each.transpose(0, 1).contiguous() for each in (queries, keys, x, log_decay.float()))
    y, after = chunk_simple_gla(
        q, k, v, g.clamp(min=LOWEST), scale=1.0, initial_state=state, output_final_state=True
    )
    y = y.transpose(0, 1)
    return y if skip is None else y + (skip[:, None] * x).to(y.dtype), after


def agrees(x: Tensor, plain: Plain) -> bool:
    """Whether fla was found to do on this device, in this dtype, what the chunked form does; tried once."""
    key = (x.dtype, x.device)
    if key not in _AGREEMENT:
        try:
            _AGREEMENT[key] = probe(x, plain)
        except Exception as error:  # another library's first compilation: whatever goes wrong there
            native.say_once(f"flash-linear-attention fails here ({type(error).__name__}); scans run in torch")
            _AGREEMENT[key] = False
        else:
            if not _AGREEMENT[key]:
                native.say_once(f"flash-linear-attention differs on {x.device}; scans run in torch there")
    return _AGREEMENT[key]


def probe(like: Tensor, plain: Plain) -> bool:
    """Outputs, final states and gradients of both, on tensors of the dtype and device of `like`."""
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(like)

    L, B, H, P, N = 130, 2, 4, 64, 64
    x, b, c = noise(L, B, H, P), noise(L, B, 2, N) / 8, noise(L, B, 2, N)
    log_decay = -torch.nn.functional.softplus(2 * torch.randn(L, B, H, generator=draw)).to(like.device)
    state = torch.randn(B, H, N, P, generator=draw).to(like.device)
    upstream = [noise(L, B, H, P), torch.randn(B, H, N, P, generator=draw).to(like.device)]
    found: list[list[Any]] = []
    with torch.inference_mode(False), torch.enable_grad():
        ways: tuple[Plain, ...] = (run, plain)
        for way in ways:
            inputs = [each.detach().clone().requires_grad_() for each in (x, log_decay, b, c, state)]
            y, after = way(*inputs[:4], None, inputs[4])
            found.append([y, after, *torch.autograd.grad((y, after), inputs, upstream)])
    return all(
        bool(((a.double() - w.double()).abs() <= ALLOWED * w.double().abs().max()).all())
        for a, w in zip(*found, strict=True)
    )
