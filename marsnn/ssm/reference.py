"""The recurrences themselves, one token after the other: short, slow, and what every fast path is held to.

Names, and the symbols of the papers:

    x            [L, B, H, P]   input of H heads, each P wide                 X in Mamba-2
    log_decay    [L, B, H]      logarithm of the decay, <= 0; -inf forgets    log a, or Delta A
    b, c         [L, B, G, N]   into and out of the state, for G groups       B, C; or keys and queries
    skip         [H]            past the state                                D
    state        [B, H, N, P]   what is remembered, a matrix a head           h, transposed there

Heads of a group share b and c: head h belongs to group h // (H / G).
Source: Dao and Gu 2024, Transformers are SSMs, arXiv 2405.21060, sections 3 and 5.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_step(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the selective state space recurrence.

        S' = exp(log_decay) S + b x^T
        y  = S'^T c + skip x

    Shapes: x [B, H, P], log_decay [B, H], b and c [B, G, N], state [B, H, N, P] in the dtype that is
    computed in: that of x, float32 where x has 16 bits.

    Returns:
        y [B, H, P] in the dtype of x, and the next state.
    """
    wide = state.dtype
    heads, group = x.shape[1], x.shape[1] // b.shape[1]
    b, c = b.to(wide), c.to(wide)
    if b.shape[1] not in (1, heads):
        b, c = b.repeat_interleave(group, 1), c.repeat_interleave(group, 1)
    decay = log_decay.to(wide).exp()[:, :, None, None]
    state = torch.addcmul(decay * state, b.unsqueeze(-1), x.to(wide).unsqueeze(-2))
    y = torch.matmul(c.unsqueeze(-2), state).squeeze(-2)
    if skip is not None:
        y = y + skip.to(wide)[:, None] * x.to(wide)
    return y.to(x.dtype), state


def ssd_loop(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All tokens by `ssd_step`.

    Returns:
        y [L, B, H, P] and the final state [B, H, N, P].
    """
    if state is None:
        state = rest(x, b)
    outputs = []
    for token in range(len(x)):
        y, state = ssd_step(x[token], log_decay[token], b[token], c[token], skip, state)
        outputs.append(y)
    return torch.stack(outputs), state


def rest(x: Tensor, b: Tensor) -> Tensor:
    """The state [B, H, N, P] before the first token: zeros."""
    _, batch, heads, width = x.shape
    return x.new_zeros(batch, heads, b.shape[-1], width, dtype=computed_in(x.dtype))


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit tensors, otherwise their own dtype."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def s4d_step(
    x: Tensor, decay: Tensor, b: Tensor, c: Tensor, skip: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One sample of a diagonal state space model, for each of D features by itself.

        h' = decay h + b x
        y  = 2 Re(sum_n c h') + skip x

    Of each conjugate pair of modes one is kept, which the 2 makes up for.
    Shapes: x [B, D]; decay, b, c [D, N] complex, discretised; skip [D]; state [B, D, N] complex.
    Source: Gu et al. 2022, arXiv 2206.11893, section 3.

    Returns:
        y [B, D] and the next state.
    """
    state = decay * state + b * x.unsqueeze(-1)
    return 2 * (c * state).sum(-1).real + skip * x, state


def s4d_loop(
    x: Tensor, decay: Tensor, b: Tensor, c: Tensor, skip: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All samples x [L, B, D] by `s4d_step`: y [L, B, D] and the final state [B, D, N]."""
    if state is None:
        state = torch.zeros((*x.shape[1:], decay.shape[-1]), dtype=decay.dtype, device=x.device)
    outputs = []
    for sample in x:
        y, state = s4d_step(sample, decay, b, c, skip, state)
        outputs.append(y)
    return torch.stack(outputs), state
