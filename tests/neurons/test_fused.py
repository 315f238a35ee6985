"""Reference against fused: the kernels give what step after step gives, bit for bit, and really run."""

import shutil
import stat
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from marsnn import Network, native, neurons, surrogate
from marsnn.errors import InputError, NonFiniteError
from marsnn.neurons import ALIF, ATMN, LIF, PLIF, IntegerLIF, compiler, fused, lif_step
from tests.helpers import ForeignModule, same
from tests.neurons.test_contract import CASES, EVERY, N, brief

B = 131  # 655 columns: wide and narrow groups of every dtype, and a rest
INEXACT = {"sigmoid", "erf"}  # their exponential is our own, about one unit in the last place off torch's
REORDERED = {
    "Izhikevich",
    "LeakyIntegrator",
}  # sums of three and more terms, in another order than autograd's
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EPS = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 0.1}


def pair(name, settings, dtype=torch.float32):
    """(reference, fused), alike otherwise."""
    return [neurons.get(name)(**{**settings, "backend": each}).to(dtype) for each in ("reference", "fused")]


def noise(*shape, dtype=torch.float32, scale=1.0):
    return (scale * torch.randn(shape, dtype=torch.float64)).to(dtype)


def problem(neuron, T, *shape, dtype=torch.float32):
    """Currents, a state that is not rest, and weights of every result."""
    x = noise(T, *shape, dtype=dtype)
    state = [field + noise(*shape, dtype=dtype, scale=0.3) for field in neuron.initial_state(x[0])]
    weights = [noise(T, *shape, dtype=dtype), noise(T, *shape, dtype=dtype)]
    return x, state, [*weights, *(noise(*shape, dtype=dtype) for _ in state)]


def results(neuron, x, state, weights):
    """Spikes, membrane and final state; gradients of input and state; gradients of parameters."""
    x = x.detach().requires_grad_()
    state = [field.clone().requires_grad_() for field in state]
    spikes, membrane, end = neuron.trace(x, neuron.State(*state))
    outputs = (spikes, membrane, *end)
    loss = sum((each * weight).sum() for each, weight in zip(outputs, weights, strict=True))
    learned = [p for p in neuron.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss, [x, *state, *learned])
    return outputs, slopes[: 1 + len(state)], slopes[1 + len(state) :]


def close(first, second, eps):
    """Within `eps` of the largest element, tensor by tensor."""
    for a, b in zip(first, second, strict=True):
        a, b = a.double(), b.double()
        assert (a - b).abs().max() <= eps * max(1, a.abs().max()), (a - b).abs().max()


def exact_gradients(neuron):
    return neuron.surrogate.name not in INEXACT and type(neuron).__name__ not in REORDERED


# ---- equality ---------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_states_and_gradients(case, dtype):
    reference, fast = pair(*case, dtype)
    for T in (1, 5):
        given = problem(reference, T, B, N, dtype=dtype)
        outputs, slopes, learned = results(reference, *given)
        ours, our_slopes, our_learned = results(fast, *given)
        assert same(ours, outputs)
        if exact_gradients(reference):
            assert same(our_slopes, slopes)
        close(our_slopes, slopes, EPS[dtype])
        close(our_learned, learned, 10 * EPS[dtype])


@pytest.mark.parametrize("name", sorted(set(surrogate._KINDS)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_surrogate(name, dtype):
    reference, fast = pair("LIF", {"beta": 0.7, "surrogate": getattr(surrogate, name)(0.7)}, dtype)
    given = problem(reference, 4, 7, dtype=dtype)
    outputs, slopes, _ = results(reference, *given)
    ours, our_slopes, _ = results(fast, *given)
    assert same(ours, outputs)
    assert name in INEXACT or same(our_slopes, slopes)
    close(our_slopes, slopes, EPS[dtype])


@pytest.mark.parametrize("settings", [{}, {"reset": "zero"}, {"detach_reset": True}])
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (2, 0, 3), (127,), (128,), (129,), (64, 16)])
def test_shapes(settings, shape):
    reference, fast = pair("LIF", settings)
    given = problem(reference, 3, *shape)
    assert same(results(fast, *given), results(reference, *given))


@pytest.mark.parametrize("T", [1, 2, 3, 64, 1000])
def test_lengths(T):
    reference, fast = pair("ALIF", {"features": 3, "rho": torch.tensor([0.2, 0.5, 0.9])})
    given = problem(reference, T, 50, 3)
    given[0][:] *= 0.5
    assert same(results(fast, *given), results(reference, *given))


def test_large_results_are_streamed_past_the_cache_and_equal():
    reference, fast = pair("LIF", {"tau": 3.0})
    x = noise(16, 1 << 17)
    assert x.numel() * 4 > 4 << 20
    assert same(fast(x), reference(x))
    grads = []
    for neuron in (reference, fast):
        y = x.clone().requires_grad_()
        neuron(y)[0].backward(x)
        grads.append(y.grad)
    assert same(*grads)


@pytest.mark.parametrize("feature_dim", [-1, -2, -3])
def test_settings_of_each_feature_along_any_axis(feature_dim):
    shape = [6, 7, 9]
    features = shape[feature_dim]
    settings = {"features": features, "beta": torch.rand(features), "threshold": torch.rand(features) + 0.1}
    reference, fast = pair("LIF", {**settings, "feature_dim": feature_dim})
    given = problem(reference, 4, *shape)
    assert same(results(fast, *given), results(reference, *given))
    x = given[0][0]
    assert same(fast.respond(x, membrane=True), reference.respond(x, membrane=True))


@pytest.mark.parametrize("name", ["ATMN", "LIF", "CubaLIF"])
def test_a_static_activation_is_its_presentation(name):
    """Held or injected inside the kernel: the spikes of the laid out currents, and their gradient."""
    reference, fast = pair(name, {"features": N, "steps": 6})
    x, weights = noise(B, N), noise(6, B, N)
    grads = []
    for run in (lambda x: reference(reference.present(x))[0], fast.encode, reference.encode):
        y = x.clone().requires_grad_()
        (run(y) * weights).sum().backward()
        grads.append(y.grad)
    assert same(fast.respond(x, True), reference.trace(reference.present(x))[:2])
    assert same(grads[0], grads[2])
    close([grads[0]], [grads[1]], 1e-6)
    if name == "ATMN":
        assert same(grads[0], grads[1])  # one step has a current: nothing is summed


def test_gradients_that_are_views_or_missing():
    """Of a mean over the steps (stride 0), of the state alone, of the spikes alone, of a transposed train."""
    reference, fast = pair("LIF", {"tau": 3.0})
    x = noise(5, 40, 9)
    losses = [
        lambda s, m, e: s.mean(0).square().sum(),
        lambda s, m, e: s.sum(),
        lambda s, m, e: e.v.square().sum(),
        lambda s, m, e: m.square().sum(),
        lambda s, m, e: (s.transpose(1, 2) * x.transpose(1, 2)).sum(),
    ]
    for loss in losses:
        grads = []
        for neuron in (reference, fast):
            y = x.clone().requires_grad_()
            loss(*neuron.trace(y)).backward()
            grads.append(y.grad)
        assert same(*grads)


# ---- ties -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [4, 16])
def test_atmn_at_its_ties(dtype, T):
    """Multiples of V 2^-(T-1), their neighbours and the thresholds' own: all decisions are close ones."""
    reference, fast = pair("ATMN", {"features": None, "steps": T, "threshold": 0.7371}, dtype)
    V = reference.threshold.detach().to(dtype)
    grid = torch.arange(-(2**17), 2**17, dtype=torch.float64)[:: 1 if T == 16 else 16]
    ties = (V.double() * grid * 2.0 ** -(T - 1)).to(dtype)
    up = torch.nextafter(ties, torch.full_like(ties, 9.0))
    down = torch.nextafter(ties, torch.full_like(ties, -9.0))
    x = torch.cat([ties, up, down])
    assert len(x) > 40000
    assert same(fast.respond(x, membrane=True), reference.respond(x, membrane=True))


def test_atmn_writes_binary_digits():
    """tau = 1/2, fire_at = 1: k = min(floor(2^(T-1) |I| / V), 2^T - 1), in integers that can't round."""
    T, V = 16, 3
    numerators = torch.arange(-4 * 2**15, 4 * 2**15 + 1)  # I = n / 2^15, so 2^(T-1) |I| / V = |n| / 3
    fast = ATMN(None, steps=T, backend="fused").double()
    with torch.no_grad():
        fast.log_threshold.fill_(0.0)
    spikes = fast.encode(numerators.double() / V / 2**15)  # over V instead: thresholds stay exact powers
    value = (spikes * 2.0 ** (T - 1 - torch.arange(T, dtype=torch.float64)).unsqueeze(-1)).sum(0)
    expected = (numerators.abs() // V).clamp(max=2**T - 1) * numerators.sign()
    assert torch.equal(value, expected.double())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("case", [case for case in CASES if case[1].get("features") == N], ids=brief)
def test_ties_of_every_neuron(case, dtype):
    """Currents on a coarse grid, where levels are often met exactly."""
    reference, fast = pair(*case, dtype)
    x = (torch.randint(-12, 13, (6, 40, N)) / 4).to(dtype)
    assert same(fast.trace(x), reference.trace(x))


# ---- it really ran ----------------------------------------------------------------------------------


def launches():
    return sum(fused.LAUNCHES.values())


def test_one_kernel_each_way_whatever_T_is():
    lif = LIF(tau=3.0)
    lif(torch.zeros(1, 2))
    for T in (1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 64, 100):
        before, x = launches(), noise(T, 5).requires_grad_()
        spikes, _ = lif(x)
        assert launches() == before + 1
        spikes.sum().backward()
        assert launches() == before + 2


def test_networks_take_it():
    network = Network([torch.nn.Linear(4, 6), ATMN(6), torch.nn.Linear(6, 6), LIF(6), torch.nn.Linear(6, 2)])
    before = launches()
    network(torch.randn(1, 3, 4)).sum().backward()
    assert launches() == before + 4


@pytest.mark.parametrize("T", [1, 4, 16])
def test_what_autograd_keeps_does_not_grow_beyond_the_input(T):
    kept = []
    x = noise(T, 256).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        LIF(tau=3.0)(x)
    assert sum(kept) <= x.numel() + 256 + 2  # the currents, the state before them, beta and threshold


# ---- where users put neurons ------------------------------------------------------------------------


def test_under_autocast():
    linear, (reference, fast) = torch.nn.Linear(8, N), pair("LIF", {"features": N})
    x = noise(4, 3, 8)
    found = []
    for neuron in (reference, fast):
        linear.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            spikes, _ = neuron(linear(x))
        assert spikes.dtype == torch.bfloat16
        spikes.float().square().sum().backward()
        found.append((spikes, linear.weight.grad.clone()))
    assert same(*found)


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_gradient_checkpointing(reentrant):
    plif = PLIF(tau=3.0, backend="fused")
    x = noise(6, 9).requires_grad_()
    plain = torch.autograd.grad(plif(x)[0].sum(), [x, plif.w])
    before = launches()
    again = torch.autograd.grad(checkpoint(lambda y: plif(y)[0], x, use_reentrant=False).sum(), [x, plif.w])
    assert same(again, plain)
    assert launches() == before + 3  # forward, forward again, backward
    if reentrant:
        y = x.detach().requires_grad_()
        checkpoint(lambda y: plif(y)[0], y, use_reentrant=True).sum().backward()
        assert same(y.grad, plain[0])


@pytest.mark.parametrize("name", ["ATMN", "PLIF", "CubaLIF", "IntegerLIF"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # inside dynamo
def test_inside_a_compiled_model(name):
    """One graph, the operator in it, and the eager numbers, forward and backward."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, examples):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return torch._dynamo.backends.debugging.aot_eager(graph, examples)

    neuron = neurons.get(name)(features=N, backend="fused")
    model = torch.nn.Sequential(torch.nn.Linear(N, N), neuron)
    compiled = torch.compile(lambda x: model[1](torch.tanh(model[0](x)))[0], fullgraph=True, backend=backend)
    x = noise(5, 3, N)
    before = launches()
    loss = compiled(x).square().sum()
    loss.backward()
    assert launches() == before + 2
    assert sum("marsnn.unroll" in target for target in graphs[0]) == 1
    slopes = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model[1](torch.tanh(model[0](x)))[0].square().sum().backward()
    close(slopes, [p.grad for p in model.parameters()], 1e-6)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # inside dynamo
def test_twelve_lengths_stay_compiled():
    torch.compiler.reset()
    lif = LIF(tau=3.0)
    compiled = torch.compile(lambda x: lif(x * 2)[0], fullgraph=True, backend="eager")
    for T in range(1, 13):
        x, before = noise(T, 4), launches()
        assert same(compiled(x), lif(x * 2)[0])
        assert launches() == before + 2


def test_the_operator_obeys_torchs_rules():
    call = ("lif", "DTYPE_float32 SURROGATE_atan LEARNED=1", [2.0], "given", 3, 1, 1, 1, 1, True)
    x = noise(3, 5).requires_grad_()
    tensors = [torch.tensor(0.5, requires_grad=True), torch.tensor(1.0)]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.marsnn.unroll, (x, [torch.zeros(5)], tensors, *call), test_utils=checks)


@pytest.mark.parametrize("name", ["ATMN", "LIF", "ALIF", "IntegerLIF"])
def test_second_derivatives_are_those_of_the_reference(name):
    settings = {"features": None, "surrogate": surrogate.atan(1.0)}
    found = []
    x = noise(4, 6, dtype=torch.float64)
    for neuron in pair(name, settings, torch.float64):
        y = x.clone().requires_grad_()
        spikes, state = neuron(y)
        (slope,) = torch.autograd.grad((spikes * x).sum() + state[0].square().sum(), y, create_graph=True)
        found.append((slope.detach(), torch.autograd.grad(slope.square().sum(), y)[0]))
    assert found[0][1].abs().sum() > 0
    close(*found, 1e-13)


def test_second_derivatives_where_the_state_was_made_from_the_same_parameters():
    """Two calls, the second from the first one's state: the way through the state must not be taken twice."""
    x = noise(8, 6, dtype=torch.float64)
    found = []
    settings = {"features": None, "learn_tau": True, "surrogate": surrogate.atan(1.0)}
    for neuron in pair("ATMN", settings, torch.float64):
        y, learned = x.clone().requires_grad_(), list(neuron.parameters())
        first, state = neuron(y[:4])
        second, state = neuron(y[4:], state)
        total = (torch.cat([first, second]) * x).sum() + state[0].square().sum()
        slopes = torch.autograd.grad(total, [y, *learned], create_graph=True)
        again = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), [y, *learned])
        found.append([*slopes, *again])
    assert all(slope.abs().sum() > 0 for slope in found[0])
    close(*found, 1e-12)


def test_second_derivatives_by_finite_differences():
    """Of the gradient's own formula: with all decisions kept, it is smooth in the currents."""
    lif = LIF(beta=0.5, detach_reset=True, backend="fused").double()
    x = noise(3, 4, dtype=torch.float64).requires_grad_()

    def slope(y):
        return torch.autograd.grad((lif(y)[0] * torch.arange(12).reshape(3, 4)).sum(), y, create_graph=True)[
            0
        ]

    assert torch.autograd.gradcheck(slope, x, eps=1e-7, atol=1e-5)


def test_non_finite_currents_are_found():
    for bad in (float("nan"), float("inf"), -float("inf")):
        for neuron in (LIF(beta=0.0), LIF(reset="zero"), ATMN(None), IntegerLIF(), ALIF()):
            x = noise(4, 3, 100)
            x[1, 2, 50] = bad
            with pytest.raises(NonFiniteError, match=rf"{type(neuron).__name__}: currents.*\(1, 2, 50\)"):
                neuron(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_nan_of_16_bits_is_found(dtype):
    """Whatever its payload: the rounding of results must not turn it into a number."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    bad = bits[~bits.isfinite()]
    lif = LIF(reset="zero").to(dtype)
    for chunk in bad.unique(dim=0)[::7] if dtype == torch.bfloat16 else bad[::61]:
        x = torch.zeros(2, 3, dtype=dtype)
        x[0, 1] = chunk
        with pytest.raises(NonFiniteError):
            lif(x)


def test_large_but_finite_currents_pass():
    """A sum that overflows is no fault of the input."""
    reference, fast = pair("LIF", {"beta": 1.0})
    x = torch.full((3, 4), 3e38)
    assert same(fast(x)[0], reference(x)[0])


# ---- when there is no fast path ---------------------------------------------------------------------


class Shifted(LIF):
    """A user's own step on top of ours."""

    @staticmethod
    def equation(current, state, params):
        return lif_step(current + 0.25, state, params)


def test_a_changed_step_is_never_run_by_the_kernel_of_another():
    x = noise(4, 50)
    assert same(Shifted()(x), LIF(backend="reference")(x + 0.25))
    with pytest.raises(InputError, match="no kernel for this step function"):
        Shifted(backend="fused")(x)


def test_what_fused_refuses_and_auto_takes_by_the_reference():
    x = noise(4, 5)
    foreign = LIF(surrogate=ForeignModule(), backend="fused")
    with pytest.raises(InputError, match='backend="fused" can\'t run this: the surrogate is another'):
        foreign(x)
    foreign.backend = "auto"
    before = launches()
    foreign(x)
    with FlopCounterMode(display=False):
        LIF()(x)
    torch.func.vmap(LIF(), in_dims=1, out_dims=(1, 0))(x)
    ATMN(None, fire_at=2.0**-11)(x)
    LIF()(x.to("meta"))
    assert launches() == before
    with pytest.raises(InputError, match='backend must be "auto", "reference" or "fused"'):
        LIF(backend="fast")


def test_a_state_of_another_dtype_is_promoted_as_in_the_reference():
    x = noise(4, 5)
    state = LIF.State(noise(5, dtype=torch.float64))
    reference, fast = LIF(backend="reference"), LIF()
    assert same(fast(x, state), reference(x, state))


@pytest.fixture
def unloaded(monkeypatch):
    """No kernel loaded, nothing said."""
    for cached in (compiler.library, native.compiler, native.cache_folder):
        cached.cache_clear()
    monkeypatch.setattr(native, "_SAID", set())
    yield
    for cached in (compiler.library, native.compiler, native.cache_folder):
        cached.cache_clear()


@pytest.fixture
def fresh(unloaded, monkeypatch, tmp_path):
    """That, and an empty cache."""
    monkeypatch.setenv("MARSNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def test_without_a_compiler_it_is_said_once(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    x = noise(4, 5)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler found: neurons run step by step") as said:
        spikes, _ = [LIF()(x), LIF()(x)]
    assert len(said) == 1
    assert same(spikes, LIF(backend="reference")(x))  # which never looks for one
    with pytest.raises(InputError, match="no C\\+\\+ compiler"):
        LIF(backend="fused")(x)


def test_a_compiler_that_fails_is_said_once(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'out of order' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    x = noise(4, 5)
    with pytest.warns(UserWarning, match="could not build the kernel lif.*out of order") as said:
        spikes, _ = [LIF()(x), LIF()(x)]
    assert len(said) == 1
    assert same(spikes, LIF(backend="reference")(x))
    with pytest.raises(native.BuildError, match="out of order"):
        LIF(backend="fused")(x)
    assert not list(fresh.iterdir())


def test_the_cache_is_private_and_used_again(fresh):
    x = noise(2, 3)
    expected = LIF()(x)
    (kept,) = fresh.iterdir()
    assert kept.name.startswith("lif-")
    assert not fresh.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    made = kept.stat().st_mtime_ns
    compiler.library.cache_clear()
    assert same(LIF()(x), expected)
    assert kept.stat().st_mtime_ns == made


def test_a_cache_that_others_may_write_to_is_not_trusted(fresh):
    fresh.mkdir(parents=True)
    fresh.chmod(0o777)
    assert native.cache_folder() != fresh


def test_two_processes_may_build_the_same_kernel(fresh):
    code = "import torch; from marsnn.neurons import LIF; print(int(LIF()(torch.ones(3, 2))[0].sum()))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [each.communicate(timeout=120)[0] for each in started] == ["6\n", "6\n"]
    assert len(list(fresh.glob("*.so"))) == 1


def test_a_long_build_says_what_it_waits_for(fresh, monkeypatch, capfd):
    monkeypatch.setattr(native, "PATIENCE_S", 0.0)
    LIF()(noise(2, 3))
    assert capfd.readouterr().err == "marsnn: compiling the lif kernel, once for this machine\n"


# ---- mutants ----------------------------------------------------------------------------------------

MUTANTS = [
    ("lif.h", "Mask fires = h >= p[THRESHOLD];", "Mask fires = h > p[THRESHOLD];", "LIF", {}),
    ("lif.h", "h - p[THRESHOLD], h)", "h - constant(1), h)", "LIF", {"threshold": 0.5}),
    ("lif.h", "h * constant(0), h)", "h - p[THRESHOLD], h)", "LIF", {"reset": "zero"}),
    ("lif.h", "gs = gs + -g[0] * theta;", "gs = gs + g[0] * theta;", "LIF", {}),
    ("lif.h", "g[0] = gh * p[BETA];", "g[0] = gh;", "LIF", {"beta": 0.5}),
    ("atmn.h", "one_where(-h >= theta)", "one_where(-h > theta)", "ATMN", {"features": None}),
    ("atmn.h", "dover = gover / p[V];", "dover = gover;", "ATMN", {"features": None, "threshold": 0.5}),
    ("integer_lif.h", "m < MAX_LEVEL", "m < MAX_LEVEL - 1", "IntegerLIF", {}),
    ("alif.h", "gs = gs + g[1];", "", "ALIF", {}),
    ("cuba_lif.h", "S gi = g[1] + gh;", "S gi = gh;", "CubaLIF", {}),
    ("unroll.h", "driven ? load(current, g) : constant(0)", "load(current, g)", "ATMN", {"features": None}),
    ("unroll.h", "if (++place == q.inner)", "if (true)", "LIF", {"features": 3, "feature_dim": -2}),
    ("scalar.h", "rounded_to(a.x * b.x)", "(S{a.x * b.x})", "LIF", {"beta": 0.7}),
    ("surrogate.h", "(y * y + (C)1)", "(y * y + (C)2)", "LIF", {}),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{m[0]}-{i}" for i, m in enumerate(MUTANTS)])
def test_mutants_are_caught(mutant, unloaded, kernel_cache, monkeypatch, tmp_path):
    header, right, wrong, name, settings = mutant
    sources = tmp_path / "kernels"
    shutil.copytree(compiler.SOURCES, sources)
    text = (sources / header).read_text()
    assert right in text
    (sources / header).write_text(text.replace(right, wrong))
    monkeypatch.setattr(compiler, "SOURCES", sources)
    dtype = torch.bfloat16 if header == "scalar.h" else torch.float32
    if settings.get("features"):
        settings = {**settings, "beta": torch.tensor([0.1, 0.5, 0.9])}
    reference, fast = pair(name, settings, dtype)
    x, state, weights = problem(reference, 4, 3, 2, dtype=dtype)
    x[0] = 1.0  # at the threshold from rest
    x[1], x[2] = -1.0, 9.0
    state = reference.initial_state(x[0])
    equal = same(results(fast, x, state, weights)[:2], results(reference, x, state, weights)[:2])
    equal &= same(fast.respond(x[0]), reference.respond(x[0]))
    assert not equal
