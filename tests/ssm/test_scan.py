"""Reference: every path of the scan against the loop over tokens, and the loop against arithmetic by hand.

Oracle: torch's associative scan. Mutants: kernels with one thing wrong must be told apart.
"""

import ctypes
import itertools
import shutil

import pytest
import torch
from torch._higher_order_ops import associative_scan

from marsnn import native
from marsnn.errors import InputError, ShapeError
from marsnn.ssm import fused, ssd_scan
from marsnn.ssm.reference import ssd_loop, ssd_step

LENGTHS = (1, 63, 64, 100, 1000)
LAYOUTS = ((1, 1), (4, 1), (4, 2), (4, 4))  # heads, groups
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
FAST = ("chunked", "fused")

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")
paths = pytest.mark.parametrize("path", ["chunked", pytest.param("fused", marks=needs_compiler)])


def problem(L, B, H, G, P, N, dtype=torch.float64, decays="all", seed=0):
    """x, log_decay, b, c, skip, state; `decays` "all" holds 0, 1, the smallest and ordinary ones."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.float32 if dtype == torch.bfloat16 else dtype

    def noise(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x, b, c = noise(L, B, H, P), noise(L, B, G, N) / N**0.5, noise(L, B, G, N)
    logs = -torch.nn.functional.softplus(2 * noise(L, B, H) - 1)
    if decays == "all":
        kind = torch.rand(L, B, H, generator=draw, dtype=torch.float64)
        logs = logs.masked_fill(kind < 0.05, -torch.inf).masked_fill((kind > 0.05) & (kind < 0.2), 0.0)
        logs = logs.masked_fill((kind > 0.2) & (kind < 0.25), -1e4)
    elif decays != "ordinary":
        logs = torch.full_like(logs, float(decays))
    tensors = [
        x.to(dtype),
        logs.to(wide),
        b.to(dtype),
        c.to(dtype),
        noise(H).to(wide),
        noise(B, H, N, P).to(wide),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def outcome(path, tensors, **more):
    """y, the final state, and the gradients of all six from given weights."""
    y, state = ssd_scan(*tensors, backend=path, **more)
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t.dtype) for t in (y, state)]
    return [y, state, *torch.autograd.grad((y, state), tensors, weights)]


def worst(found, wanted):
    """The largest difference of any part, in units of that part's largest value."""
    errors = []
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        scale = b.double().abs().max().clamp(min=1e-30)
        errors.append(((a.double() - b.double()).abs().max() / scale).item())
    return max(errors)


ALLOWED = {torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 1e-2}


# ---- the loop itself ----------------------------------------------------------------------------------


def test_the_loop_by_hand():
    """One head, P = N = 1, decays 1/2: S = 1, 1/2 + 2 * 3 = 6.5; y = c S + skip x."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    x, b, c = torch.cat([one, 3 * one]), torch.cat([one, 2 * one]), torch.cat([5 * one, 7 * one])
    logs = torch.full((2, 1, 1), 0.5, dtype=torch.float64).log()
    y, state = ssd_loop(x, logs, b, c, torch.tensor([10.0], dtype=torch.float64))
    assert y.flatten().tolist() == [5 * 1 + 10, 7 * 6.5 + 30]
    assert state.item() == 6.5


def test_heads_of_a_group_share_keys_and_queries():
    x, logs, b, c, skip, _ = problem(9, 2, 4, 2, 3, 5)
    y, state = ssd_loop(x, logs, b, c, skip)
    for h in range(4):
        g = [h // 2]
        own = ssd_loop(x[:, :, [h]], logs[:, :, [h]], b[:, :, g], c[:, :, g], skip[[h]])
        assert torch.allclose(own[0], y[:, :, [h]], rtol=0, atol=1e-14)
        assert torch.allclose(own[1], state[:, [h]], rtol=0, atol=1e-14)


# ---- every path is the loop ----------------------------------------------------------------------------


@paths
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("H", "G"), LAYOUTS)
@pytest.mark.parametrize("L", LENGTHS)
def test_outputs_states_and_gradients(path, dtype, H, G, L):
    P, N = (5, 7) if L < 1000 else (16, 8)
    tensors = problem(L, 2, H, G, P, N, dtype)
    assert worst(outcome(path, tensors), outcome("reference", tensors)) < ALLOWED[dtype]


@paths
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decays", ["-inf", "-1e4", "-104", "-1e-7", "0.0"])
def test_decays_at_the_extremes(path, dtype, decays):
    tensors = problem(130, 1, 2, 1, 4, 3, dtype, decays)
    found, wanted = outcome(path, tensors), outcome("reference", tensors)
    assert all(bool(torch.isfinite(each).all()) for each in found)
    assert worst(found, wanted) < 10 * ALLOWED[dtype]


@paths
@pytest.mark.parametrize(("P", "N"), [(64, 64), (65, 33), (1, 1), (16, 128), (40, 1)])
def test_widths(path, P, N):
    tensors = problem(70, 1, 3, 1, P, N, torch.float32)
    assert worst(outcome(path, tensors), outcome("reference", tensors)) < ALLOWED[torch.float32]


@paths
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_deal_the_heads_out(path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for B, H, G in ((1, 6, 2), (1, 5, 1), (3, 2, 2)):
            tensors = problem(66, B, H, G, 4, 3)
            assert worst(outcome(path, tensors), outcome("reference", tensors)) < ALLOWED[torch.float64]
    finally:
        torch.set_num_threads(before)


@paths
def test_without_skip_and_state(path):
    x, logs, b, c, _, _ = problem(80, 2, 2, 1, 4, 3)
    found, wanted = (ssd_scan(x, logs, b, c, backend=each) for each in (path, "reference"))
    grads = [torch.autograd.grad(y.sum(), (x, logs, b, c)) for y in (found[0], wanted[0])]
    assert worst([*found, *grads[0]], [*wanted, *grads[1]]) < 1e-12


@paths
def test_a_scan_in_two_pieces(path):
    x, logs, b, c, skip, state = problem(150, 2, 4, 2, 6, 5)
    whole = ssd_scan(x, logs, b, c, skip, state, backend=path)
    first, between = ssd_scan(x[:70], logs[:70], b[:70], c[:70], skip, state, backend=path)
    second, last = ssd_scan(x[70:], logs[70:], b[70:], c[70:], skip, between, backend=path)
    assert worst([torch.cat([first, second]), last], whole) < 1e-12


@paths
def test_views_are_read_where_they_lie(path):
    """As a layer hands them over: slices of one projection, batch and tokens swapped."""
    L, B, H, P, N = 90, 3, 2, 4, 5
    both = torch.randn(B, L, H * P + 2 * N, dtype=torch.float64).transpose(0, 1)
    x, b, c = both.split((H * P, N, N), -1)
    x, b, c = x.unflatten(-1, (H, P)), b.unflatten(-1, (1, N)), c.unflatten(-1, (1, N))
    logs = -torch.rand(L, B, H, dtype=torch.float64)
    assert worst(ssd_scan(x, logs, b, c, backend=path), ssd_loop(x, logs, b, c)) < 1e-12


@paths
def test_associative_scan_agrees(path):
    """torch's generic scan over pairs (decay, what was brought)."""
    x, logs, b, c, _, _ = (each.detach() for each in problem(100, 1, 2, 2, 3, 4, decays="ordinary"))

    def follow(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    decay = logs.exp()[..., None, None].expand(-1, -1, -1, 4, 3).contiguous()
    brought = b.unsqueeze(-1) * x.unsqueeze(-2)
    _, states = associative_scan(follow, (decay, brought), 0, combine_mode="generic")
    y = torch.einsum("lbhn,lbhnp->lbhp", c, states)
    assert worst(ssd_scan(x, logs, b, c, backend=path), [y, states[-1]]) < 1e-12


@paths
def test_resets_let_nothing_through(path):
    """Each piece as if it were alone, and gradients that stay in it."""
    x, logs, b, c, skip, state = problem(150, 1, 2, 1, 4, 3)
    starts = torch.zeros(150, 1, dtype=torch.bool)
    starts[[40, 64, 65, 130]] = True
    y, last = ssd_scan(x, logs, b, c, skip, state, reset=starts, backend=path)
    ends = [0, 40, 64, 65, 130, 150]
    for i, (a, z) in enumerate(itertools.pairwise(ends)):
        own = ssd_scan(
            x[a:z], logs[a:z], b[a:z], c[a:z], skip, state if i == 0 else None, backend="reference"
        )
        assert worst([y[a:z]], [own[0]]) < 1e-12
    assert worst([last], [own[1]]) < 1e-12
    slopes = torch.autograd.grad(y[65:130].sum(), (x, b))
    for slope in slopes:
        assert slope[65:130].abs().max() > 0
        assert slope[:65].abs().max() == 0
        assert slope[130:].abs().max() == 0


@paths
def test_only_the_final_state_is_followed(path):
    tensors = problem(100, 1, 2, 1, 4, 3)
    slopes = [
        torch.autograd.grad(ssd_scan(*tensors, backend=each)[1].sum(), tensors, allow_unused=True)
        for each in (path, "reference")
    ]
    for a, b in zip(*slopes, strict=True):
        assert (
            (a is None or a.abs().max() == 0) if b is None or b.abs().max() == 0 else worst([a], [b]) < 1e-11
        )


@needs_compiler
def test_gradients_can_be_differentiated_again():
    tensors = problem(70, 1, 2, 1, 3, 2, decays="ordinary")
    twice = []
    for path in ("fused", "reference"):
        y, state = ssd_scan(*tensors, backend=path)
        slopes = torch.autograd.grad((y**2).sum() + (state**2).sum(), tensors, create_graph=True)
        twice.append(torch.autograd.grad(sum((slope**2).sum() for slope in slopes), tensors))
    assert worst(*twice) < 1e-9


def test_gradcheck_of_the_loop_and_the_chunks():
    tensors = problem(5, 1, 2, 1, 2, 2, decays="ordinary")
    for path in ("reference", "chunked"):
        assert torch.autograd.gradcheck(lambda *t, path=path: ssd_scan(*t, backend=path), tensors)


# ---- which path runs -----------------------------------------------------------------------------------


@needs_compiler
def test_auto_runs_the_kernel_and_one_token_the_step():
    tensors = [each.detach() for each in problem(65, 1, 2, 1, 3, 2)]
    before = fused.LAUNCHES.copy()
    ssd_scan(*tensors)
    assert (fused.LAUNCHES - before) == {("float64", "forward"): 1}
    before = fused.LAUNCHES.copy()
    one = [each[:1] for each in tensors[:4]]
    y, state = ssd_scan(*one, *tensors[4:])
    wanted = ssd_step(*(each[0] for each in one), *tensors[4:])
    assert torch.equal(y[0], wanted[0])
    assert torch.equal(state, wanted[1])
    assert before == fused.LAUNCHES


def test_where_no_kernel_runs_the_chunks_do():
    half = [each.detach().half() if i in (0, 2, 3) else each.detach().float() for i, each in enumerate(
        problem(65, 1, 2, 1, 3, 2, torch.float32)
    )]  # fmt: skip
    assert worst(ssd_scan(*half), ssd_scan(*half, backend="chunked")) == 0
    with pytest.raises(InputError, match=r'backend="fused" can\'t run this: it has no torch.float16'):
        ssd_scan(*half, backend="fused")


def test_under_vmap_and_compile_the_chunks_run():
    tensors = [each.detach() for each in problem(65, 1, 2, 1, 3, 2)]
    many = torch.stack([tensors[0], 2 * tensors[0]])
    y = torch.func.vmap(lambda x: ssd_scan(x, *tensors[1:])[0])(many)
    assert worst([y[1]], [ssd_scan(many[1], *tensors[1:])[0]]) < 1e-12
    compiled = torch.compile(lambda *t: ssd_scan(*t), backend="eager", fullgraph=True)
    assert worst(compiled(*tensors), ssd_scan(*tensors)) < 1e-12


# ---- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(0, 1, 2, 3)}, r"expected x \[L, B, H, P\] with no axis empty, got \[0, 1, 2, 3\]"),
        ({"x": torch.zeros(5, 1, 6)}, r"expected x \[L, B, H, P\]"),
        ({"x": torch.zeros(5, 1, 2, 3, dtype=torch.long)}, "x must be floating point"),
        ({"log_decay": torch.zeros(4, 1, 2)}, r"expected log_decay \[5, 1, 2\] .* got \[4, 1, 2\]"),
        ({"b": torch.zeros(5, 1, 3, 4)}, r"expected b \[5, 1, G, N\] with G a divisor of 2 heads"),
        ({"c": torch.zeros(5, 1, 1, 5)}, r"expected c \[5, 1, 1, 4\]"),
        ({"c": torch.zeros(5, 1, 1, 4).double()}, "x is torch.float32, c torch.float64; convert one"),
        ({"state": torch.zeros(1, 2, 3, 4)}, r"expected state \[1, 2, 4, 3\]"),
        ({"state": torch.zeros(1, 2, 4, 3).double()}, "the state must be torch.float32, got torch.float64"),
        ({"skip": torch.zeros(3)}, r"expected skip \[2\]"),
        ({"reset": torch.zeros(5, 1)}, "reset must be bools"),
        ({"b": torch.zeros(5, 1, 1, 4, device="meta")}, "x is on cpu, b on meta"),
        ({"backend": "quick"}, "backend must be one of auto, reference, chunked, fused, got 'quick'"),
    ],
)
def test_what_does_not_fit_is_refused(change, says):
    good = {
        "x": torch.zeros(5, 1, 2, 3),
        "log_decay": torch.zeros(5, 1, 2),
        "b": torch.zeros(5, 1, 1, 4),
        "c": torch.zeros(5, 1, 1, 4),
    }
    ssd_scan(**good)
    with pytest.raises((InputError, ShapeError), match=says):
        ssd_scan(**{**good, **change})


# ---- mutants -----------------------------------------------------------------------------------------

DECAY_SLOPE = "sum(pair) + after_k + f[k] + through"
MUTANTS = [
    ("ssd.h", "in[i] = product *= decay[i * stride]", "in[i] = product, product *= decay[i * stride]"),
    ("ssd.h", "out[i] = product;", "out[i] = product *= decay[i * stride];"),
    ("ssd.h", "store(S + i, d.total * load(S + i));", "store(S + i, load(S + i));"),
    ("ssd.h", "i ? decay[i * stride] * load(row - Q + j)", "i ? load(row - Q + j)"),
    ("ssd.h", "p.L - l < Q ? p.L - l : Q;\n        long g", "p.L - l < Q ? p.L - l : Q - 1;\n        long g"),
    ("ssd.h", "store(gS + i, d.total * load(gS + i));", ""),
    ("ssd.h", DECAY_SLOPE, "sum(pair) + after_k + f[k]"),
    ("ssd.h", DECAY_SLOPE, "sum(pair) + f[k] + through"),
    ("ssd.h", "f[j] = before_k;", "f[j] = before_k + own;"),
    ("ssd.h", "product<true>(UPPER_A, rows, Pw, rows, mixed", "product<true>(LOWER_A, rows, Pw, rows, mixed"),
    ("ssd.h", "if (h == h1 - 1 || (h + 1) % ratio == 0) {", "if (h == h1 - 1) {"),
    ("ssd.h", "load(gmixed + i) * load(pairs + i)", "load(gmixed + i)"),
    ("gemm.h", "shape == LOWER_A && i + rows < k ? i + rows : k", "shape == LOWER_A && i < k ? i : k"),
]


@needs_compiler
@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_mutants_are_caught(number, kernel_cache, monkeypatch, tmp_path):
    """Among them an off-by-one at the chunk's boundary, and a carried state that does not decay."""
    header, right, wrong = MUTANTS[number]
    sources = tmp_path / "kernels"
    shutil.copytree(fused.SOURCES, sources)
    text = (sources / header).read_text()
    assert right in text
    (sources / header).write_text(text.replace(right, wrong))
    monkeypatch.setattr(fused, "SOURCES", sources)
    fused._library.cache_clear()
    try:
        tensors = problem(150, 2, 4, 2, 5, 7)
        assert not worst(outcome("fused", tensors), outcome("reference", tensors)) < 1e-6
    finally:
        fused._library.cache_clear()


def undecayed(brought, totals, state):
    return brought, 0 * totals, state


def decayed_once_more(until, dtype):
    return until + until.diff(prepend=0 * until[..., :1]), dtype


CHUNK_MUTANTS = {
    "the carried state does not decay": ("carried", undecayed),
    "a token decays what it brings": ("pairs", decayed_once_more),
}


@pytest.mark.parametrize("name", CHUNK_MUTANTS)
def test_mutants_of_the_chunks_are_caught(name, monkeypatch):
    from marsnn.ssm import scan

    function, changed = CHUNK_MUTANTS[name]
    right = getattr(scan, function)
    monkeypatch.setattr(scan, function, lambda *given: right(*changed(*given)))
    tensors = problem(150, 2, 4, 2, 5, 7)
    assert not worst(outcome("chunked", tensors), outcome("reference", tensors)) < 1e-6


@needs_compiler
def test_the_kernels_problem_is_laid_out_as_c_lays_it_out():
    assert ctypes.sizeof(fused._Problem) == 8 * 8
    assert fused.CHUNK == 64
    assert "constexpr long Q = 64;" in (fused.SOURCES / "ssd.h").read_text()
