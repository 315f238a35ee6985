"""ATMN. Golden values with their working, properties in exact rational arithmetic, gradients by hand.

Where a test speaks of exact values it calls `atmn_step` with V and tau as float64, and compares with
`fractions.Fraction`, which has no rounding at all.
"""

# ruff: noqa: E741 - I is the letter of the equation

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from marsnn import surrogate
from marsnn.errors import InputError
from marsnn.neurons import ATMN, ATMNParams, ATMNState, atmn_step
from tests.helpers import atan_slope, same

ROUNDING = Fraction(1, 2**53)  # half a unit in the last place, relative, of float64


def run(I, T, tau, V=1.0, fire_at=1.0, dtype=torch.float64):
    """Spikes [T] as ints and the membranes after each step, of one injected value."""
    tensor = torch.tensor([I, *[0.0] * (T - 1)], dtype=dtype)
    params = ATMNParams(torch.tensor(V, dtype=dtype), torch.tensor(tau, dtype=dtype), fire_at, False, step)
    state, spikes, membranes = ATMNState(torch.zeros((), dtype=dtype)), [], []
    for current in tensor:
        s, state = atmn_step(current, state, params)
        spikes.append(int(s))
        membranes.append(state.u.item())
    return spikes, membranes


def step(x):
    return (x >= 0).to(x.dtype)


def ulps(value, count):
    """`value` moved by some units in the last place, away from zero for positive counts."""
    for _ in range(abs(count)):
        value = math.nextafter(value, math.copysign(math.inf, value) if count > 0 else 0.0)
    return value


# ---- golden -----------------------------------------------------------------------------------------

GOLDEN = [
    # I, tau, fire_at, spikes, last membrane; V = 1, T = 3 throughout
    #
    # tau = 1/2, fires at V: h[t] = 2 u[t-1]
    # 1.25 -> +1, u .25 | h .5 -> 0, u .5 | h 1 = V -> +1 (tie), u 0          1.25 = 1 + 0/2 + 1/4
    (1.25, 0.5, 1.0, [1, 0, 1], 0.0),
    # -.75 -> 0 | h -1.5 -> -1, u -.5 | h -1 = -V -> -1 (tie), u 0            -.75 = -1/2 - 1/4
    (-0.75, 0.5, 1.0, [0, -1, -1], 0.0),
    # 1 = V -> +1 (tie), u 0 | 0 | 0
    (1.0, 0.5, 1.0, [1, 0, 0], 0.0),
    (-1.0, 0.5, 1.0, [-1, 0, 0], 0.0),
    # .3125 -> 0 | h .625 -> 0 | h 1.25 -> +1, u .25                           1/4, and 1/4 * .25 is lost
    (0.3125, 0.5, 1.0, [0, 0, 1], 0.25),
    # out of range: 2.5 -> +1, u 1.5 | h 3 -> +1, u 2 | h 4 -> +1, u 3         1.75, and 1/4 * 3 is lost
    (2.5, 0.5, 1.0, [1, 1, 1], 3.0),
    #
    # tau = 1/2, fires at V/2: rounds, so signs mix
    # .75 -> +1, u -.25 | h -.5 = -V/2 -> -1 (tie), u .5 | h 1 -> +1, u 0      1 - 1/2 + 1/4
    (0.75, 0.5, 0.5, [1, -1, 1], 0.0),
    # -.3125 -> 0 | h -.625 -> -1, u .375 | h .75 -> +1, u -.25                -1/2 + 1/4, and 1/4 * -.25
    (-0.3125, 0.5, 0.5, [0, -1, 1], -0.25),
    # .5 = V/2 -> +1 (tie), u -.5 | h -1 -> -1, u 0 | 0                        1 - 1/2
    (0.5, 0.5, 0.5, [1, -1, 0], 0.0),
    #
    # tau = 1: h[t] = u[t-1], the spikes count multiples of V
    # 2.5 -> +1, u 1.5 -> +1, u .5 -> 0
    (2.5, 1.0, 1.0, [1, 1, 0], 0.5),
    # -2 -> -1, u -1 = -V -> -1 (tie), u 0 -> 0
    (-2.0, 1.0, 1.0, [-1, -1, 0], 0.0),
    # 5 -> +1, u 4 -> +1, u 3 -> +1, u 2: saturated
    (5.0, 1.0, 1.0, [1, 1, 1], 2.0),
    # tau = 1, fires at V/2: 1.5 -> +1, u .5 = V/2 -> +1 (tie), u -.5 = -V/2 -> -1 (tie), u .5
    (1.5, 1.0, 0.5, [1, 1, -1], 0.5),
    #
    # tau = 2, the paper's leaky form: h[t] = u[t-1] / 2
    # 3 = V (1 + tau) -> +1, u 2 | h 1 = V -> +1 (tie), u 0 | 0                3 = 1 + 2
    (3.0, 2.0, 1.0, [1, 1, 0], 0.0),
    # -7 = -V (1 + tau + tau^2) -> -1, u -6 | h -3 -> -1, u -2 | h -1 -> -1    7 = 1 + 2 + 4
    (-7.0, 2.0, 1.0, [-1, -1, -1], 0.0),
    # 2.75 -> +1, u 1.75 | h .875 -> 0 | h .4375 -> 0                          1, and 4 * .4375 is lost
    (2.75, 2.0, 1.0, [1, 0, 0], 0.4375),
    # .75 -> 0 | h .375 -> 0 | h .1875: what misses V at once is never heard
    (0.75, 2.0, 1.0, [0, 0, 0], 0.1875),
    # tau = 2, fires at V/2: 2 -> +1, u 1 | h .5 = V/2 -> +1 (tie), u -.5 | h -.25 -> 0    2 = 1 + 2 - 4/4
    (2.0, 2.0, 0.5, [1, 1, 0], -0.25),
]


@pytest.mark.parametrize(("I", "tau", "fire_at", "spikes", "last"), GOLDEN)
def test_golden(I, tau, fire_at, spikes, last):
    got, membranes = run(I, 3, tau, fire_at=fire_at)
    assert (got, membranes[-1]) == (spikes, last)
    mirrored, membranes = run(-I, 3, tau, fire_at=fire_at)
    assert (mirrored, membranes[-1]) == ([-s for s in spikes], -last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("I", "tau", "fire_at", "spikes", "last"), GOLDEN)
def test_golden_through_the_module(I, tau, fire_at, spikes, last, dtype):
    """V = 1 is exp(0), exact in every dtype, and so are these inputs."""
    neuron = ATMN(1, steps=3, tau=tau, fire_at=fire_at).to(dtype)
    x = torch.tensor([I], dtype=dtype)
    train, state = neuron(neuron.present(x))
    assert train.flatten().tolist() == spikes
    assert state.u.item() == last
    assert torch.equal(neuron.encode(x), train)
    value = sum(s * tau**t for t, s in enumerate(spikes))
    assert neuron.decode(train).item() == value
    assert value + tau**2 * last == I  # the unrolled identity


def test_one_ulp_below_a_tie_is_silent():
    assert run(ulps(1.0, -1), 1, 0.5)[0] == [0]
    assert run(ulps(1.0, +1), 1, 0.5)[0] == [1]
    assert run(ulps(-1.0, -1), 1, 0.5)[0] == [0]
    # 3 = V (1 + tau): a unit less and the second spike is lost
    assert run(ulps(3.0, -1), 3, 2.0)[0] == [1, 0, 0]
    assert run(ulps(-3.0, -1), 3, 2.0)[0] == [-1, 0, 0]


def test_input_after_the_first_step_is_integrated_too():
    """T = 3, tau = 1/2: .25 -> 0, u .25 | h .5 + .5 = 1 -> +1, u 0 | h -1.5 -> -1, u -.5."""
    neuron = ATMN(1, steps=3)
    spikes, membrane, state = neuron.trace(torch.tensor([[0.25], [0.5], [-1.5]]))
    assert spikes.flatten().tolist() == [0, 1, -1]
    assert membrane.flatten().tolist() == [0.25, 0.0, -0.5]
    assert state.u.item() == -0.5


def test_each_feature_has_its_own_threshold():
    """V = 1/2, 1, 2 and x = 1, tau = 1, T = 3: two spikes, one, none."""
    neuron = ATMN(3, steps=3, tau=1.0, threshold=torch.tensor([0.5, 1.0, 2.0]))
    train = neuron.encode(torch.ones(3))
    assert train.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert neuron.decode(train).tolist() == [1, 1, 0]
    # worth T V tau^t to a receiver that takes every step
    assert neuron.step_gain(train).tolist() == [[1.5, 3, 6]] * 3
    binary = ATMN(3, steps=2, threshold=torch.tensor([0.5, 1.0, 2.0]))
    assert binary.step_gain(torch.zeros(2, 3)).tolist() == [[1, 2, 4], [0.5, 1, 2]]


# ---- the unrolled identity: I = V sum_t tau^t s[t] + tau^(T-1) u[T-1] -------------------------------

# Below the normal numbers rounding is absolute, and the bound of the test would have to say so.
values = st.floats(-20, 20, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-200)
levels = st.sampled_from([0.25, 0.5, 1.0, 1.5])


@given(values, st.floats(0.05, 5), st.floats(0.25, 4), levels, st.integers(1, 12))
def test_unrolled_identity(I, V, tau, fire_at, T):
    """Exact but for the two roundings of a step, h = u / tau and u = h - s V, each at most ROUNDING."""
    spikes, membranes = run(I, T, tau, V, fire_at)
    power = [Fraction(tau) ** t for t in range(T)]
    value = Fraction(V) * sum(p * s for p, s in zip(power, spikes, strict=True))
    h = [0.0, *(abs(u / tau) for u in membranes[:-1])]  # at t = 0, h = I + 0 is not rounded
    bound = sum(
        p * ROUNDING * (Fraction(was) + Fraction(abs(u)))
        for p, was, u in zip(power, h, membranes, strict=True)
    )
    bound *= Fraction(101, 100)  # the rounding is relative to the exact value, not to the rounded one
    assert abs(Fraction(I) - value - power[-1] * Fraction(membranes[-1])) <= bound


@given(st.integers(-(2**12), 2**12), st.sampled_from([0.5, 1.0, 2.0, 4.0]), levels, st.integers(1, 12))
def test_unrolled_identity_is_exact_for_dyadic_values(n, tau, fire_at, T):
    I, V = n / 2**10, 0.75
    spikes, membranes = run(I, T, tau, V, fire_at)
    value = sum(Fraction(V) * Fraction(tau) ** t * s for t, s in enumerate(spikes))
    assert Fraction(I) == value + Fraction(tau) ** (T - 1) * Fraction(membranes[-1])


# ---- closed forms -----------------------------------------------------------------------------------


def staircase(I, V, tau, T):
    """k = sign(I) #{m in 1..T : abs(I) >= V (tau^m - 1) / (tau - 1)}, for tau = 1: m V."""
    level = (lambda m: V * m) if tau == 1 else (lambda m: V * (tau**m - 1) / (tau - 1))
    return int(math.copysign(sum(abs(I) >= level(m) for m in range(1, T + 1)), I))


def prefix_run(k, T):
    return [int(math.copysign(1, k))] * abs(k) + [0] * (T - abs(k))


@pytest.mark.parametrize("tau", ["1", "3/2", "2", "3"])
@pytest.mark.parametrize("T", [1, 2, 3, 5])
def test_staircase_on_a_grid_that_holds_every_tie(tau, T):
    """V = 1/2 and I in steps of 1/64. All ties are multiples of 1/32 (3/2 to the 4th, times V), the grid's
    other points lie at least 1/64 off, which no rounding of float64 bridges."""
    tau, V = Fraction(tau), Fraction(1, 2)
    top = V * sum(tau**m for m in range(T))
    seen = set()
    for n in range(-int(64 * top) - 9, int(64 * top) + 10):
        I = Fraction(n, 64)
        k = staircase(I, V, tau, T)
        spikes, _ = run(float(I), T, float(tau), float(V))
        assert spikes == prefix_run(k, T), I
        seen.add(k)
    assert seen == set(range(-T, T + 1))


@given(
    st.floats(-40, 40, allow_nan=False),
    st.floats(0.05, 5),
    st.sampled_from([1.0, 2.0, 4.0]),
    st.integers(1, 6),
)
@example(1.0, 1.0, 1.0, 1)
def test_staircase_for_any_value(I, V, tau, T):
    """tau a power of two: u / tau is exact, so only h - V rounds, when h > 2 V; keep off such near-ties."""
    levels = [Fraction(V) * sum(Fraction(tau) ** i for i in range(m)) for m in range(1, T + 1)]
    near = any(0 < abs(abs(Fraction(I)) - level) < level * 64 * ROUNDING for level in levels)
    if not near and I != 0:
        assert run(I, T, tau, V)[0] == prefix_run(staircase(Fraction(I), Fraction(V), Fraction(tau), T), T)


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("sign", [1, -1])
def test_staircase_one_ulp_around_each_tie(tau, m, sign):
    """Dyadic all through: nothing is rounded, so one unit in the last place decides."""
    tie = sign * sum(tau**i for i in range(m))
    for off, k in ((-1, m - 1), (0, m), (1, m)):
        assert run(ulps(tie, off), 4, tau)[0] == prefix_run(sign * k, 4)


def binary_count(I, V, T):
    """k = sign(I) min(floor(2^(T-1) abs(I) / V), 2^T - 1), in exact arithmetic."""
    k = min(math.floor(2 ** (T - 1) * abs(Fraction(I)) / Fraction(V)), 2**T - 1)
    return k if I >= 0 else -k


def bits(k, T):
    """The binary digits of abs(k), most significant first, with the sign of k."""
    return [int(digit) * (1 if k >= 0 else -1) for digit in f"{abs(k):0{T}b}"]


@given(values, st.floats(0.01, 10), st.integers(1, 12))
def test_binary_digits(I, V, T):
    """Exact for any I and V: doubling is, and so is h - V for V <= h <= 2 V (Sterbenz); beyond 2 V the
    membrane stays above V whatever is rounded, and the code is all ones on both sides."""
    k = binary_count(I, V, T)
    spikes, _ = run(I, T, 0.5, V)
    assert spikes == bits(k, T)
    value = sum(Fraction(V) * Fraction(s, 2**t) for t, s in enumerate(spikes))
    assert value == Fraction(V) * k * Fraction(2, 2**T)


@given(st.data(), st.integers(1, 12), st.floats(0.01, 10), st.sampled_from([1, -1]))
def test_binary_digits_one_ulp_around_each_tie(data, T, V, sign):
    m = data.draw(st.integers(1, 2**T - 1))
    tie = float(Fraction(V) * m / 2 ** (T - 1))  # rounded, so it may lie on either side: ask the oracle
    for off in (-1, 0, 1):
        I = sign * ulps(tie, off)
        assert run(I, T, 0.5, V)[0] == bits(binary_count(I, V, T), T)
    dyadic = m / 2 ** (T - 1)  # V = 1: a true tie
    for off, k in ((-1, m - 1), (0, m), (1, m)):
        assert run(sign * ulps(dyadic, off), T, 0.5)[0] == bits(sign * k, T)


@given(st.floats(-1.5, 1.5), st.floats(0.01, 10), st.integers(1, 12))
@example(1.5, 1.0, 4)
@example(-0.5, 1.0, 1)
def test_firing_at_half_rounds_to_nearest(x, V, T):
    """Within 3/2 V every membrane stays within V / 2 of zero, so the error is half a last step."""
    I = math.nextafter(x * V, 0.0)  # x V may round outward
    spikes, membranes = run(I, T, 0.5, V, fire_at=0.5)
    assert all(abs(Fraction(u)) <= Fraction(V) / 2 for u in membranes)
    value = sum(Fraction(V) * Fraction(s, 2**t) for t, s in enumerate(spikes))
    last_step = Fraction(V) / 2 ** (T - 1)
    assert abs(Fraction(I) - value) <= last_step / 2


@given(values, st.floats(0.05, 5), st.floats(0.25, 4), levels, st.integers(-30, 30))
def test_scale_invariance(I, V, tau, fire_at, k):
    spikes, membranes = run(I, 6, tau, V, fire_at)
    scaled, bigger = run(math.ldexp(I, k), 6, tau, math.ldexp(V, k), fire_at)
    assert scaled == spikes
    if all(u == 0 or abs(u) > 1e-290 for u in membranes):  # no subnormals on the way
        assert bigger == [math.ldexp(u, k) for u in membranes]


# ---- V = exp(a), tau --------------------------------------------------------------------------------


def test_threshold_is_exp_of_its_parameter():
    V = torch.tensor([1e-3, 0.7, 1.0, 3.0, 1e3])
    neuron = ATMN(5, threshold=V)
    assert neuron.threshold.shape == (5,)
    # a carries an error of half its last place, which exp turns into a relative one: abs(a) <= 8 here
    torch.testing.assert_close(neuron.threshold, V, rtol=10 * torch.finfo(V.dtype).eps, atol=0)
    assert torch.equal(neuron.threshold, neuron.log_threshold.exp())
    assert ATMN(5, threshold=1).threshold.tolist() == [1.0] * 5  # exactly
    assert ATMN(None, threshold=1).threshold.shape == ()


def test_threshold_stays_positive_whatever_the_optimiser_does():
    neuron = ATMN(3)
    with torch.no_grad():
        neuron.log_threshold.copy_(torch.tensor([-50.0, 0.0, 50.0]))
    assert (neuron.threshold > 0).all()
    assert neuron.encode(torch.ones(3)).isfinite().all()


@pytest.mark.parametrize("learn_tau", [False, True])
@pytest.mark.parametrize("learn_threshold", [False, True])
def test_what_is_learned(learn_threshold, learn_tau):
    neuron = ATMN(3, tau=0.75, learn_threshold=learn_threshold, learn_tau=learn_tau)
    assert neuron.tau.item() == pytest.approx(0.75)
    trained = {name for name, p in neuron.named_parameters() if p.requires_grad}
    expected = {"log_threshold"} if learn_threshold else set()
    assert trained == expected | ({"log_tau"} if learn_tau else set())
    x = torch.tensor([[0.7, -1.3, 0.4]], requires_grad=True)
    neuron.decode(neuron.encode(x)).sum().backward()
    for name, p in neuron.named_parameters():
        assert (p.grad is not None and bool((p.grad != 0).all())) == (name in trained), name


def test_fixed_tau_is_exact_and_follows_the_dtype():
    assert ATMN(3, tau=0.5).tau.item() == 0.5
    neuron = ATMN(3, tau=2).double()
    assert (neuron.tau.dtype, neuron.tau.item()) == (torch.float64, 2.0)


@pytest.mark.parametrize(
    ("tau", "learn", "mul"), [(0.5, False, 0), (2, False, 0), (1, False, 0), (0.75, False, 1), (0.5, True, 1)]
)
def test_a_power_of_two_leaks_without_a_multiply(tau, learn, mul):
    assert ATMN(3, tau=tau, learn_tau=learn).update_cost == (mul, 2)


@pytest.mark.parametrize("learned", [True, False])
def test_loading_moves_tau_between_buffer_and_parameter(learned):
    saved = ATMN(3, tau=0.7, learn_tau=learned)
    other = ATMN(3, tau=2.0, learn_tau=not learned)
    other.load_state_dict(saved.state_dict())
    assert other.learn_tau == learned
    assert torch.equal(other.tau, saved.tau)
    assert {name for name, _ in other.named_parameters()} == {name for name, _ in saved.named_parameters()}
    assert {name for name, _ in other.named_buffers()} == {name for name, _ in saved.named_buffers()}


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), torch.tensor([0.5, 0.5, 0.5])])
def test_tau_is_one_positive_number(bad):
    with pytest.raises(InputError, match="tau must be"):
        ATMN(3, tau=bad)


# ---- gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fire_at", [1.0, 0.5])
def test_gradcheck_of_a_smooth_stand_in(fire_at):
    """With a smooth spike the whole neuron is smooth, and autograd must match finite differences."""

    def smooth(currents, V, tau):
        params = ATMNParams(V, tau, fire_at, False, lambda x: torch.sigmoid(3 * x))
        state, spikes = ATMNState(torch.zeros_like(currents[0])), []
        for current in currents:
            s, state = atmn_step(current, state, params)
            spikes.append(s)
        return torch.stack(spikes), state.u

    currents = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    V = torch.tensor([0.6, 1.0, 1.7], dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(smooth, (currents, V, tau))


def backward_by_hand(currents, V, tau, fire_at, detach_reset, w, omega):
    """Gradients of sum(w s) + sum(omega u[T-1]) with respect to currents, V, tau: the chain rule, in numpy.

    h = c + u/tau,   s = H(h/V - f) - H(-h/V - f),   u = h - s V
    with D the slope of the stand-in:  ds/dh = (D(+) + D(-)) / V,   ds/dV = -h (D(+) + D(-)) / V^2
    """
    T = len(currents)
    h, s, u = (np.zeros_like(currents) for _ in range(3))
    before = np.zeros_like(currents)  # u[t-1]
    for t in range(T):
        before[t] = u[t - 1] if t else 0.0
        h[t] = currents[t] + before[t] / tau
        s[t] = (h[t] >= fire_at * V).astype(float) - (h[t] <= -fire_at * V)
        u[t] = h[t] - s[t] * V
    g_currents, g_V, g_tau = np.zeros_like(currents), np.zeros_like(V), 0.0
    g_u = omega
    for t in reversed(range(T)):
        g_s = w[t] - (0.0 if detach_reset else V * g_u)
        both = atan_slope(h[t] / V - fire_at) + atan_slope(-h[t] / V - fire_at)
        g_h = g_u + g_s * both / V
        g_V += (-s[t] * g_u - g_s * h[t] * both / V**2).sum(0)
        g_tau += (-g_h * before[t] / tau**2).sum()
        g_currents[t] = g_h
        g_u = g_h / tau
    return s, g_currents, g_V, g_tau


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize(("tau", "fire_at"), [(0.5, 1.0), (0.8, 0.5), (2.0, 1.0)])
def test_surrogate_gradient_by_hand(tau, fire_at, detach_reset):
    neuron = ATMN(
        3,
        tau=tau,
        fire_at=fire_at,
        threshold=torch.tensor([0.6, 1.0, 1.7]),
        learn_tau=True,
        detach_reset=detach_reset,
    ).double()
    x = 1.5 * torch.randn(3, 4, 3, dtype=torch.float64)
    w, omega = torch.randn(3, 4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    x.requires_grad_()
    spikes, state = neuron(x)
    ((w * spikes).sum() + (omega * state.u).sum()).backward()
    V, now = neuron.threshold.detach().numpy(), neuron.tau.item()
    s, g_x, g_V, g_tau = backward_by_hand(
        x.detach().numpy(), V, now, fire_at, detach_reset, w.numpy(), omega.numpy()
    )
    assert set(np.unique(s)) == {-1, 0, 1}
    np.testing.assert_array_equal(spikes.detach().numpy(), s)
    np.testing.assert_allclose(x.grad.numpy(), g_x, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(neuron.log_threshold.grad.numpy(), g_V * V, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(neuron.log_tau.grad.item(), g_tau * now, rtol=1e-11, atol=1e-12)


def test_surrogate_width_is_in_units_of_the_threshold():
    """x and V scaled together: the same spikes, and gradients scaled by 1 / V."""
    x = torch.randn(5, 3, dtype=torch.float64)
    slopes = []
    for scale in (1.0, 4.0):
        neuron = ATMN(3, threshold=scale).double()
        scaled = (x * neuron.threshold.detach()).requires_grad_()
        slopes.append(torch.autograd.grad(neuron.encode(scaled).sum(), scaled)[0] * scale)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-6, atol=0)


def test_surrogate_argument_reaches_the_gradient():
    x = torch.tensor([[0.7, -1.2]], requires_grad=True)
    slopes = [
        torch.autograd.grad(ATMN(2, surrogate=surrogate.sigmoid(a)).encode(x).sum(), x)[0] for a in (1.0, 3.0)
    ]
    assert not same(*slopes)
