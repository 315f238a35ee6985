"""SBDS, the loss that a spiking student learns from its dense teacher by.

    logits      L1 = alpha KL(p || q) + beta KL(q || p)
                   = sum_k (alpha p_k - beta q_k) (log p_k - log q_k)       p the teacher's, q the student's
    features    L2 = || PreNorm(h_t) - PreNorm(h_s) ||_2                    h where spikes are inserted
    loss        L1 + feature_weight L2, each averaged over the tokens that count, L2 over layers, too

PreNorm is the layers' own norm without its weights: h / sqrt(mean h^2). Source: MAR, arXiv 2601.21503,
section on SBDS, which writes PreNorm without defining it; alpha = 0.2 and beta = 0.7 are its best pair.

The vocabulary is walked through in chunks of tokens: beside the logits that come in, and the gradient that
goes out, nothing of their size is ever held. `sbds_head_loss` takes last hidden states and the heads'
weights, and makes the logits chunk by chunk, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from marsnn.checks import not_negative
from marsnn.errors import ShapeError
from marsnn.linear import linear

CHUNK = {"cpu": 2**24, "cuda": 2**26}
"""Logits, at most, that are held at once, by device."""

EPSILON = 1e-6
"""Added to a mean square before its root is taken, as in Llama's norm."""


class SbdsLoss(NamedTuple):
    """What a batch costs, []: `loss = logits + feature_weight * features`."""

    loss: Tensor
    logits: Tensor
    features: Tensor


def sbds_loss(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_features: Sequence[Tensor] | Tensor | None = None,
    student_features: Sequence[Tensor] | Tensor | None = None,
    alpha: float = 0.2,
    beta: float = 0.7,
    feature_weight: float = 1.0,
    mask: Tensor | None = None,
) -> SbdsLoss:
    """The loss of a student beside its frozen teacher, into which no gradient goes.

    Args:
        teacher_logits, student_logits: [*, V], of any floating dtype; computed in float32 at least.
        teacher_features, student_features: activations [*, D] of each layer or site, or one of them; None for
            none. Teacher and student may differ in dtype, not in shape.
        alpha, beta: weights of KL(p || q) and KL(q || p), p the teacher.
        feature_weight: of the features' distance.
        mask: [*], true for tokens that count; None for all of them. Padding and prompts don't.

    Returns:
        The loss and its two parts. Where student and teacher are equal, all are 0 and so is the gradient;
        where no token counts, too.

    Raises:
        ShapeError: shapes that don't belong together.   InputError: a negative or infinite weight.

    Example:
        >>> import torch
        >>> from marsnn.refine import sbds_loss
        >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> round(sbds_loss(teacher, student).loss.item(), 4)
        0.3692
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("feature_weight", feature_weight)):
        not_negative(name, value)
    if teacher_logits.shape != student_logits.shape or student_logits.ndim < 1:
        raise ShapeError(
            f"teacher and student must tell the same tokens apart: their logits are "
            f"{list(teacher_logits.shape)} and {list(student_logits.shape)}"
        )
    weights = _weights(mask, student_logits)
    pair = [torch.atleast_2d(each) for each in (teacher_logits.detach(), student_logits)]
    logits = _LogitLoss.apply(*pair, weights, alpha, beta)
    assert isinstance(logits, Tensor)
    return _joined(logits, teacher_features, student_features, weights, feature_weight)


def sbds_head_loss(
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_features: Sequence[Tensor] | Tensor | None = None,
    student_features: Sequence[Tensor] | Tensor | None = None,
    alpha: float = 0.2,
    beta: float = 0.7,
    feature_weight: float = 1.0,
    mask: Tensor | None = None,
) -> SbdsLoss:
    """`sbds_loss` of the logits hidden @ head^T, of which only a chunk exists at a time.

    Args:
        teacher_hidden, student_hidden: last hidden states [*, D_t] and [*, D_s], behind the last norm.
        teacher_head, student_head: weights of the projections to the vocabulary [V, D_t] and [V, D_s].
    Everything else as `sbds_loss`. Gradients reach student_hidden and student_head, once each.

    Raises:
        ShapeError, InputError: as `sbds_loss`.
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("feature_weight", feature_weight)):
        not_negative(name, value)
    if (
        teacher_hidden.shape[:-1] != student_hidden.shape[:-1]
        or teacher_head.shape[0] != student_head.shape[0]
        or teacher_hidden.shape[-1] != teacher_head.shape[-1]
        or student_hidden.shape[-1] != student_head.shape[-1]
    ):
        raise ShapeError(
            f"teacher's hidden states {list(teacher_hidden.shape)} and head {list(teacher_head.shape)} don't "
            f"belong with the student's {list(student_hidden.shape)} and {list(student_head.shape)}: the "
            "same tokens, the same vocabulary, each head as wide as its states"
        )
    weights = _weights(mask, student_hidden)
    logits = _HeadLoss.apply(
        _tokens(teacher_hidden.detach()), teacher_head.detach(), _tokens(student_hidden), student_head,
        weights, alpha, beta,
    )  # fmt: skip
    assert isinstance(logits, Tensor)
    return _joined(logits, teacher_features, student_features, weights, feature_weight)


def feature_distance(teacher: Tensor, student: Tensor, weights: Tensor) -> Tensor:
    """|| PreNorm(h_t) - PreNorm(h_s) ||_2 of each token, weighted and summed, [].

    Args:
        teacher, student: [*, D], or [T, *, D] of T steps, over which the distance is averaged.
        weights: what each token counts [tokens], 1 in all.
    """
    if teacher.shape != student.shape:
        raise ShapeError(
            f"features of teacher and student must be alike: {list(teacher.shape)}, {list(student.shape)}"
        )
    far = torch.linalg.vector_norm(pre_norm(teacher.detach()) - pre_norm(student), dim=-1).flatten()
    if not weights.numel() or far.numel() % weights.numel():
        raise ShapeError(f"features of {far.numel()} tokens, where there are {weights.numel()}")
    return _counted(far.view(-1, weights.numel()).mean(0), weights)


def pre_norm(h: Tensor) -> Tensor:
    """h / sqrt(mean h^2) of each token [*, D], in float32 at least."""
    h = h if h.dtype == torch.float64 else h.float()
    return F.rms_norm(h, h.shape[-1:], eps=EPSILON)


# ---- logits -------------------------------------------------------------------------------------------


def _divergence(
    teacher: Tensor, student: Tensor, alpha: float, beta: float, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """L1 of each token [tokens] of logits [tokens, V], and its gradient to the student's.

    With r = log p - log q the gradient is alpha (q - p) - beta q (r + KL(q || p)). What has no probability
    adds nothing, however small its logarithm is, -inf included; nor does a divergence of no weight, where it
    is infinite.
    """
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    ratio = log_p.sub_(log_q)
    found = q.new_zeros(q.shape[:-1])
    if alpha:
        found = found + alpha * torch.where(p > 0, p * ratio, 0.0).sum(-1)
    slope = q.sub(p).mul_(alpha) if gradient else None  # exactly 0 where both are equal
    if beta:
        above = torch.where(q > 0, q * ratio, 0.0)
        backward = -above.sum(-1)
        found = found + beta * backward
        if slope is not None:
            slope.sub_(q.mul_(backward.unsqueeze(-1)).add_(above), alpha=beta)
    return found, slope


class _LogitLoss(torch.autograd.Function):
    """The weighted sum over tokens of L1, [], of logits [*, V]."""

    @staticmethod
    def forward(
        ctx: Any, teacher: Tensor, student: Tensor, weights: Tensor, alpha: float, beta: float
    ) -> Tensor:
        ctx.save_for_backward(teacher, student, weights)
        ctx.alpha, ctx.beta = alpha, beta
        total = weights.new_zeros(())
        for part, where in _places(student):
            found, _ = _divergence(*_exact_pair(teacher[where], student[where]), alpha, beta, False)
            total += _counted(found, weights[part])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        teacher, student, weights = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for part, where in _places(student):
            _, own = _divergence(*_exact_pair(teacher[where], student[where]), ctx.alpha, ctx.beta, True)
            assert own is not None
            gradient[where] = _weighted(own, weights[part] * slope).to(gradient.dtype)
        return None, gradient, None, None, None


class _HeadLoss(torch.autograd.Function):
    """The same of hidden states and heads; gradients are made with the loss, where each chunk is there."""

    @staticmethod
    def forward(
        ctx: Any,
        teacher: Tensor,
        teacher_head: Tensor,
        student: Tensor,
        student_head: Tensor,
        weights: Tensor,
        alpha: float,
        beta: float,
    ) -> Tensor:
        wants = any(ctx.needs_input_grad)
        hidden = torch.zeros_like(student) if ctx.needs_input_grad[2] else None
        head = None
        if ctx.needs_input_grad[3]:
            head = torch.zeros_like(student_head, dtype=_exact(student_head[:0]).dtype)
        total = weights.new_zeros(())
        leaf = student_head.detach().requires_grad_()  # one for all chunks: autocast casts it once
        for part in _chunks(len(student), len(student_head), student.device):
            theirs = linear(teacher[part], teacher_head)
            with torch.enable_grad():
                sources = [student[part].detach().requires_grad_(), leaf]
                own = linear(*sources)
            found, slope = _divergence(*_exact_pair(theirs, own.detach()), alpha, beta, wants)
            total += _counted(found, weights[part])
            if slope is None:
                continue
            made = torch.autograd.grad(own, sources, _weighted(slope, weights[part]).to(own.dtype))
            if hidden is not None:
                hidden[part] = made[0]
            if head is not None:
                head += made[1]
        ctx.save_for_backward(hidden, None if head is None else head.to(student_head.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head = ctx.saved_tensors
        made = [None if each is None else each * slope.to(each.dtype) for each in (hidden, head)]
        return None, None, made[0], made[1], None, None, None


def _chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """So many tokens at a time that their logits are at most `CHUNK`."""
    size = max(1, CHUNK.get(device.type, CHUNK["cuda"]) // max(1, vocabulary))
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


def _places(x: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Chunks of the tokens of x [*, V], and where they stand in it; so a slice is never copied whole."""
    shape = x.shape[:-1]
    for part in _chunks(math.prod(shape), x.shape[-1], x.device):
        at = torch.arange(part.start, part.stop, device=x.device)
        yield part, torch.unravel_index(at, shape)


def _tokens(x: Tensor) -> Tensor:
    """[*, D] to [tokens, D]."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _exact_pair(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    student = _exact(student)
    return teacher.to(student.dtype), student


def _counted(found: Tensor, weights: Tensor) -> Tensor:
    """Their weighted sum, to which what has no weight adds nothing, NaN included."""
    return torch.where(weights > 0, found * weights, 0.0).sum()


def _weighted(slope: Tensor, weights: Tensor) -> Tensor:
    return torch.where((weights != 0).unsqueeze(-1), slope * weights.unsqueeze(-1), 0.0)


# ---- what both forms share ----------------------------------------------------------------------------


def _weights(mask: Tensor | None, like: Tensor) -> Tensor:
    """What each token counts [tokens], 1 in all."""
    shape = like.shape[:-1]
    exact = _exact(like[..., :0]).dtype
    if mask is None:
        return torch.full((shape.numel(),), 1 / max(1, shape.numel()), dtype=exact, device=like.device)
    if mask.shape != shape:
        raise ShapeError(f"expected a mask {list(shape)} over the tokens, got {list(mask.shape)}")
    counts = (mask.detach() != 0).flatten().to(like.device, exact)
    return counts / counts.sum().clamp(min=1)


def _joined(
    logits: Tensor,
    teacher: Sequence[Tensor] | Tensor | None,
    student: Sequence[Tensor] | Tensor | None,
    weights: Tensor,
    feature_weight: float,
) -> SbdsLoss:
    ours, theirs = _listed(student), _listed(teacher)
    if len(ours) != len(theirs):
        raise ShapeError(f"features of {len(theirs)} places of the teacher, of {len(ours)} of the student")
    if not ours:
        return SbdsLoss(logits, logits, torch.zeros_like(logits))
    distance = torch.stack([
        feature_distance(their, own, weights) for their, own in zip(theirs, ours, strict=True)
    ]).mean().to(logits.dtype)  # fmt: skip
    return SbdsLoss(logits + feature_weight * distance, logits, distance)


def _listed(features: Sequence[Tensor] | Tensor | None) -> Sequence[Tensor]:
    if features is None:
        return ()
    return (features,) if isinstance(features, Tensor) else features
