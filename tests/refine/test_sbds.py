"""Reference: SBDS against a loop over probabilities in float64, gradients too; golden values; mutants."""

import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from marsnn.errors import InputError, ShapeError
from marsnn.refine import SbdsLoss, sbds, sbds_head_loss, sbds_loss
from tests.helpers import same

WEIGHTS = {"alpha": 0.2, "beta": 0.7, "feature_weight": 0.3}


def slow(teacher, student, theirs=(), ours=(), alpha=0.2, beta=0.7, feature_weight=1.0, mask=None):
    """The equations, one token and one word after the other."""
    V = teacher.shape[-1]
    counts = [True] * (teacher.numel() // V) if mask is None else mask.flatten().tolist()
    logits = student.new_zeros(())
    for t, s, counted in zip(teacher.reshape(-1, V), student.reshape(-1, V), counts, strict=True):
        if not counted:
            continue
        p, q = (t - t.max()).exp(), (s - s.max()).exp()
        p, q = p / p.sum(), q / q.sum()
        for k in range(V):
            logits = logits + (alpha * p[k] - beta * q[k]) * (p[k].log() - q[k].log())
    features = student.new_zeros(())
    for a, b in zip(theirs, ours, strict=True):
        D = a.shape[-1]
        for x, y, counted in zip(a.reshape(-1, D), b.reshape(-1, D), counts, strict=True):
            if counted:
                x, y = (h / (h.square().mean() + sbds.EPSILON).sqrt() for h in (x, y))
                features = features + (x - y).square().sum().sqrt()
    n = max(1, sum(counts))
    logits, features = logits / n, features / n / max(1, len(ours))
    return SbdsLoss(logits + feature_weight * features, logits, features)


def batch(B=2, L=3, V=7, D=5, places=2, dtype=torch.float64, seed=0):
    """Logits [B, L, V] of both, features [B, L, D] of both."""
    torch.manual_seed(seed)
    teacher, student = torch.randn(2, B, L, V, dtype=torch.float64).mul(3).to(dtype)
    theirs = [torch.randn(B, L, D, dtype=torch.float64).to(dtype) for _ in range(places)]
    ours = [torch.randn(B, L, D, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(places)]
    return teacher, student.clone().requires_grad_(), theirs, ours


def gradients(loss, sources):
    return torch.autograd.grad(loss, sources, allow_unused=True)


def close(found, wanted, **tolerance):
    torch.testing.assert_close(found, wanted, **(tolerance or {"rtol": 1e-11, "atol": 1e-12}))


# ---- the equations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 13, 14, 22, 2**24])  # of 7 words: 1, 1, 1, 2, 3 and all tokens
@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (1, 0), (0, 1), (0, 0), (3.5, 0.01)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 5)])
def test_it_is_the_loop_over_probabilities(monkeypatch, shape, alpha, beta, chunk):
    monkeypatch.setitem(sbds.CHUNK, "cpu", chunk)
    teacher, student, theirs, ours = batch(*shape)
    mask = torch.rand(shape) < 0.6
    for counted in (None, mask, torch.zeros(shape, dtype=torch.bool)):
        found = sbds_loss(teacher, student, theirs, ours, alpha, beta, 0.3, counted)
        wanted = slow(teacher, student, theirs, ours, alpha, beta, 0.3, counted)
        for own, right in zip(found, wanted, strict=True):
            close(own, right)
        right = [
            torch.zeros_like(x) if g is None else g
            for x, g in zip([student, *ours], gradients(wanted.loss, [student, *ours]), strict=True)
        ] if wanted.loss.requires_grad else [torch.zeros_like(x) for x in (student, *ours)]  # fmt: skip
        for own, each in zip(gradients(found.loss, [student, *ours]), right, strict=True):
            close(own, each)


@pytest.mark.parametrize("V", [1, 2, 63, 100])
def test_awkward_vocabularies(monkeypatch, V):
    monkeypatch.setitem(sbds.CHUNK, "cpu", 150)
    teacher, student, _, _ = batch(1, 5, V)
    found, wanted = sbds_loss(teacher, student), slow(teacher, student)
    close(found.loss, wanted.loss)
    close(gradients(found.loss, [student])[0], gradients(wanted.loss, [student])[0])


def test_worked_out_by_hand():
    """p = (3/4, 1/4), q = (1/2, 1/2): the logits are their logarithms.

    KL(p||q) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287 = 0.130812
    KL(q||p) = 1/2 ln(2/3) + 1/2 ln(2)   = -0.202733 + 0.346574 = 0.143841
    L1 = 0.2 * 0.130812 + 0.7 * 0.143841 = 0.026162 + 0.100689 = 0.126851

    h_t = (3, 4): mean square 12.5, PreNorm (3, 4) / 3.535534 = (0.848528, 1.131371)
    h_s = (4, 3): (1.131371, 0.848528); the difference is (-0.282843, 0.282843), its norm 0.4
    """
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    found = sbds_loss(
        teacher, student, torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]), feature_weight=0.5
    )
    assert found.logits.item() == pytest.approx(0.126851, abs=2e-6)
    assert found.features.item() == pytest.approx(0.4, abs=1e-6)
    assert found.loss.item() == pytest.approx(0.126851 + 0.5 * 0.4, abs=2e-6)
    alone = sbds_loss(teacher, student)
    assert alone.loss.item() == alone.logits.item()
    assert alone.features.item() == 0


def test_alpha_and_beta_weigh_torchs_own_divergences():
    teacher, student, _, _ = batch(2, 9, 50)
    p, q = teacher.log_softmax(-1).flatten(0, 1), student.log_softmax(-1).flatten(0, 1)
    forward = F.kl_div(q, p, log_target=True, reduction="batchmean")
    backward = F.kl_div(p, q, log_target=True, reduction="batchmean")
    close(sbds_loss(teacher, student, alpha=1, beta=0).loss, forward)
    close(sbds_loss(teacher, student, alpha=0, beta=1).loss, backward)


def test_gradients_are_those_of_finite_differences():
    teacher, student, theirs, ours = batch(1, 2, 4, 3)
    torch.autograd.gradcheck(
        lambda s, *own: sbds_loss(teacher, s, theirs, list(own), feature_weight=0.3).loss, (student, *ours)
    )


# ---- what counts ----------------------------------------------------------------------------------------


def test_what_does_not_count_changes_nothing_whatever_stands_there():
    teacher, student, theirs, ours = batch(2, 4)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    kept = mask.bool()
    right = sbds_loss(
        teacher[kept], student[kept], [each[kept] for each in theirs], [each[kept] for each in ours],
        **WEIGHTS,
    )  # fmt: skip
    wanted = gradients(right.loss, [student, *ours])
    for rubbish in (0.0, 1e30, math.inf, math.nan):
        with torch.no_grad():
            teacher[~kept] = rubbish
            student[~kept] = rubbish
            for each in (*theirs, *ours):
                each[~kept] = 7.0
        found = sbds_loss(teacher, student, theirs, ours, **WEIGHTS, mask=mask)
        assert found.loss.item() == pytest.approx(right.loss.item(), rel=1e-12)
        for own, each in zip(gradients(found.loss, [student, *ours]), wanted, strict=True):
            close(own, each)
            assert not own[~kept].any()


def test_no_token_that_counts_costs_nothing():
    teacher, student, theirs, ours = batch()
    found = sbds_loss(teacher, student, theirs, ours, mask=torch.zeros(2, 3))
    assert [each.item() for each in found] == [0, 0, 0]
    assert not any(each.any() for each in gradients(found.loss, [student, *ours]))


def test_features_of_several_steps_are_averaged_over_them():
    teacher, student, _, _ = batch()
    theirs, ours = torch.randn(2, 4, 2, 3, 5, dtype=torch.float64)
    mask = torch.rand(2, 3) < 0.7
    whole = sbds_loss(teacher, student, theirs, ours, mask=mask).features
    steps = [sbds_loss(teacher, student, a, b, mask=mask).features for a, b in zip(theirs, ours, strict=True)]
    close(whole, torch.stack(steps).mean())


# ---- extremes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_ten_thousand(dtype):
    teacher = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [1e4, 1e4, -1e4]], dtype=dtype)
    student = torch.tensor([[-1e4, 1e4, 0.0], [1e4, 0.0, -1e4], [1e4, 1e4, 1e4]], dtype=dtype)
    student.requires_grad_()
    found = sbds_loss(teacher, student, mask=torch.tensor([1, 0, 0]))
    assert found.loss.item() == pytest.approx((0.2 + 0.7) * 2e4, rel=1e-6)  # p on one word, q on another
    for row in range(3):
        found = sbds_loss(teacher, student, mask=torch.arange(3) == row)
        (slope,) = gradients(found.loss, [student])
        assert math.isfinite(found.loss.item())
        assert bool(torch.isfinite(slope).all())
        assert slope.sum().item() == pytest.approx(0, abs=1e-2)


def test_words_that_neither_can_say_add_nothing():
    teacher, student, _, _ = batch(1, 4, 9)
    kept = torch.arange(9) % 3 != 0
    right = sbds_loss(teacher[..., kept], student[..., kept])
    (wanted,) = gradients(right.loss, [student])
    barred = torch.where(kept, student.detach(), -math.inf).requires_grad_()
    found = sbds_loss(torch.where(kept, teacher, -math.inf), barred)
    close(found.loss, right.loss)
    close(gradients(found.loss, [barred])[0], wanted)


def test_a_divergence_of_no_weight_may_be_infinite():
    """A word that only the student says: KL(q || p) is infinite, KL(p || q) isn't."""
    teacher, student = torch.tensor([[0.0, 1.0, -math.inf]]), torch.tensor([[0.0, 1.0, 2.0]])
    student.requires_grad_()
    found = sbds_loss(teacher, student, alpha=1, beta=0).loss
    p, q = teacher.softmax(-1), student.detach().softmax(-1)
    assert found.item() == pytest.approx((p * (p / q).log())[0, :2].sum().item(), rel=1e-6)
    close(gradients(found, [student])[0], q - p, rtol=1e-5, atol=1e-6)
    assert sbds_loss(teacher, student).loss.item() == math.inf
    other = sbds_loss(student.detach(), teacher.requires_grad_(), alpha=0, beta=1).loss
    assert math.isfinite(other.item())
    assert bool(torch.isfinite(gradients(other, [teacher])[0]).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0, 1e4])
def test_equals_cost_nothing_and_have_no_gradient(dtype, scale):
    teacher = (torch.randn(3, 40) * scale).to(dtype)
    features = torch.randn(3, 8).mul(scale).to(dtype)
    student, own = teacher.clone().requires_grad_(), features.clone().requires_grad_()
    found = sbds_loss(teacher, student, features, own)
    assert [each.item() for each in found] == [0, 0, 0]
    for each in gradients(found.loss, [student, own]):
        assert not each.any()  # NaN is something
        assert each.dtype == dtype


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_half_precision_is_computed_in_float32(dtype, tolerance):
    teacher, student, theirs, ours = batch(2, 5, 40, dtype=dtype)
    exact = [each.detach().double() for each in (teacher, student)]
    exact[1].requires_grad_()
    features = [each.double() for each in theirs], [each.detach().double() for each in ours]
    found = sbds_loss(teacher, student, theirs, ours, **WEIGHTS)
    wanted = sbds_loss(*exact, *features, **WEIGHTS)
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-5)
    (slope,) = gradients(found.loss, [student])
    assert slope.dtype == dtype
    close(slope.double(), gradients(wanted.loss, [exact[1]])[0], rtol=tolerance, atol=1e-4)


def test_a_teacher_of_another_dtype_is_heard():
    teacher, student, _, _ = batch()
    for low, high in ((teacher.float(), student), (teacher, student.detach().float().requires_grad_())):
        found = sbds_loss(low, high).loss
        assert found.item() == pytest.approx(slow(teacher, student).loss.item(), rel=1e-5)
        assert gradients(found, [high])[0].dtype == high.dtype


# ---- the form that takes heads --------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 15, 2**24])
@pytest.mark.parametrize("tokens", [(), (1,), (2, 3)])
def test_heads_give_what_logits_give(monkeypatch, chunk, tokens):
    monkeypatch.setitem(sbds.CHUNK, "cpu", chunk)
    V, D_t, D_s = 7, 4, 6
    hidden, head = torch.randn(*tokens, D_t).double(), torch.randn(V, D_t).double()
    own, own_head = torch.randn(*tokens, D_s).double(), torch.randn(V, D_s).double()
    own.requires_grad_(), own_head.requires_grad_()
    mask = None if not tokens else torch.rand(tokens) < 0.7
    found = sbds_head_loss(hidden, head, own, own_head, mask=mask)
    wanted = sbds_loss(hidden @ head.T, own @ own_head.T, mask=mask)
    close(found.loss, wanted.loss)
    ours, right = (gradients(3 * each.loss, [own, own_head]) for each in (found, wanted))
    for one, other in zip(ours, right, strict=True):
        close(one, other)


def test_a_head_that_is_frozen_costs_no_gradient():
    hidden, head = torch.randn(3, 4), torch.randn(7, 4)
    own = hidden.clone().requires_grad_()
    found = sbds_head_loss(hidden, head, own, head)
    assert found.loss.item() == 0
    assert not gradients(found.loss, [own])[0].any()
    with torch.no_grad():
        assert sbds_head_loss(hidden, head, own + 1, head).loss.item() > 0


def test_heads_under_autocast():
    hidden, head, own, own_head = (torch.randn(*shape) for shape in ((20, 8), (50, 8), (20, 8), (50, 8)))
    own.requires_grad_(), own_head.requires_grad_()
    wanted = gradients(sbds_head_loss(hidden, head, own, own_head).loss, [own, own_head])
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(sbds_head_loss(hidden, head, own, own_head).loss, [own, own_head])
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        close(one, other, rtol=0.1, atol=3e-2 * other.abs().max().item())


MEMORY = """
import resource, torch
from marsnn.refine.sbds import CHUNK, sbds_head_loss, sbds_loss
torch.set_num_threads(1)
CHUNK["cpu"] = 2**19
V, D, N = 131_072, 8, 256
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
a, b = torch.randn(V, D), torch.randn(V, D, requires_grad=True)
x, y = torch.randn(N, D), torch.randn(N, D, requires_grad=True)
sbds_head_loss(x[:16], a, y[:16], b).loss.backward()  # what libraries take for themselves
before = peak()
sbds_head_loss(x, a, y, b).loss.backward()
print((peak() - before) / (N * V * 4 / 2**20))
teacher, student = x @ a.T, (y @ b.T).detach().requires_grad_()
before = peak()
sbds_loss(teacher, student).loss.backward()
print((peak() - before) / (N * V * 4 / 2**20))
"""


def test_a_vocabulary_of_128k_is_never_there_a_second_time():
    """Peaks above what was there before, in copies of all logits; of the logits' form the gradient is one."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    heads, logits = map(float, done.stdout.split())
    assert heads < 0.5
    assert logits < 1.5


def test_logits_that_are_a_slice_are_not_copied():
    """Of [B, L, V] all but the last position, which no view makes [tokens, V]."""
    teacher, student, _, _ = batch(2, 4, 7)
    found = sbds_loss(teacher[:, :-1], student[:, :-1]).loss
    mask = torch.tensor([[1, 1, 1, 0]] * 2)
    close(found, sbds_loss(teacher, student, mask=mask).loss)
    close(*(gradients(each, [student])[0] for each in (found, sbds_loss(teacher, student, mask=mask).loss)))


# ---- mutants --------------------------------------------------------------------------------------------

MUTANTS = {
    "p and q swapped": lambda t, s, a, b, mask: sbds_loss(s, t, a, b, **WEIGHTS, mask=mask),
    "alpha and beta swapped": lambda t, s, a, b, mask: sbds_loss(t, s, a, b, 0.7, 0.2, 0.3, mask),
    "another alpha": lambda t, s, a, b, mask: sbds_loss(t, s, a, b, 0.25, 0.7, 0.3, mask),
    "no mask": lambda t, s, a, b, mask: sbds_loss(t, s, a, b, **WEIGHTS),
    "no features": lambda t, s, a, b, mask: sbds_loss(t, s, **WEIGHTS, mask=mask),
    "a mean over all tokens": lambda t, s, a, b, mask: SbdsLoss(
        *(each * mask.float().mean() for each in sbds_loss(t, s, a, b, **WEIGHTS, mask=mask))
    ),
}  # fmt: skip


def agrees(form):
    teacher, student, theirs, ours = batch()
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    wanted = slow(teacher, student, theirs, ours, **WEIGHTS, mask=mask)
    found = form(teacher, student, theirs, ours, mask)
    return torch.allclose(found.loss, wanted.loss, rtol=1e-9)


def test_the_reference_takes_the_right_one():
    assert agrees(lambda t, s, a, b, mask: sbds_loss(t, s, a, b, **WEIGHTS, mask=mask))


@pytest.mark.parametrize("name", MUTANTS)
def test_the_reference_refuses_a_wrong_one(name):
    assert not agrees(MUTANTS[name])


def test_the_reference_refuses_features_without_their_norm(monkeypatch):
    monkeypatch.setattr(sbds, "pre_norm", lambda h: h)
    assert not agrees(lambda t, s, a, b, mask: sbds_loss(t, s, a, b, **WEIGHTS, mask=mask))


# ---- refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"student_logits": torch.zeros(2, 3, 6)}, ShapeError, r"\[2, 3, 7\] and \[2, 3, 6\]"),
        ({"mask": torch.ones(3, 2)}, ShapeError, r"a mask \[2, 3\] over the tokens, got \[3, 2\]"),
        ({"alpha": -1}, InputError, "alpha must be finite and >= 0, got -1"),
        ({"beta": math.nan}, InputError, "beta"),
        ({"feature_weight": math.inf}, InputError, "feature_weight"),
        ({"teacher_features": torch.zeros(2, 3, 5)}, ShapeError, "1 places of the teacher, of 2"),
        ({"teacher_features": [torch.zeros(2, 3, 5), torch.zeros(2, 3, 4)]}, ShapeError, "alike"),
        ({"teacher_features": torch.zeros(5, 8), "student_features": torch.zeros(5, 8)}, ShapeError, "5 tok"),
    ],
)
def test_what_does_not_belong_together(change, error, said):
    teacher, student, theirs, ours = batch()
    given = {
        "teacher_logits": teacher, "student_logits": student, "teacher_features": theirs,
        "student_features": ours, **change,
    }  # fmt: skip
    with pytest.raises(error, match=said) as caught:
        sbds_loss(**given)
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_belong_together():
    x, head = torch.zeros(3, 4), torch.zeros(7, 4)
    for bad in ((x, head, x, torch.zeros(6, 4)), (x, head, x[:2], head), (x, head, x, torch.zeros(7, 5))):
        with pytest.raises(ShapeError, match="the same vocabulary"):
            sbds_head_loss(*bad)


def test_no_gradient_goes_into_the_teacher_and_none_of_second_order():
    teacher, student, theirs, ours = batch()
    for each in (teacher, *theirs):
        each.requires_grad_()
    found = sbds_loss(teacher, student, theirs, ours)
    assert gradients(found.loss, [teacher, *theirs]) == (None,) * 3
    found = sbds_loss(teacher, student).loss
    (slope,) = torch.autograd.grad(found, student, create_graph=True)
    with pytest.raises(RuntimeError, match="grad"):
        slope.sum().backward()


def test_equal_calls_are_equal():
    teacher, student, theirs, ours = batch()
    first, second = (tuple(sbds_loss(teacher, student, theirs, ours)) for _ in range(2))
    assert same(first, second)
