"""Contract: every sequence layer, with settings that are not the defaults, faces the same checks.

Reference: the layers against the loops of `reference.py`. Unit: padding, packed sequences, what is refused.
"""

import copy
import itertools
import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from marsnn import native
from marsnn.errors import InputError, NonFiniteError, ShapeError
from marsnn.ssm import S4D, SSD, S4DState, SequenceLayer, SSDCore, SSDState, decode, fused
from marsnn.ssm.convolution import causal_convolution
from marsnn.ssm.gate import gated
from marsnn.ssm.reference import s4d_loop
from tests.helpers import same

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")

D, B = 6, 3


def gate_that_leans(layer):
    with torch.no_grad():
        layer.gate_bias.normal_()
    return layer


LAYERS = {
    "s4d": lambda **more: S4D(D, 8, **more),
    "s4d legs bilinear": lambda **more: S4D(D, 8, init="legs", discretization="bilinear", **more),
    "s4d inv": lambda **more: S4D(D, 16, init="inv", dt_min=0.01, dt_max=0.5, **more),
    "s4d gate": lambda **more: gate_that_leans(S4D(D // 2, 8, gate=True, dt_max=0.5, **more)),
    "ssd": lambda **more: SSD(D, head_dim=4, state_size=5, **more),
    "ssd groups silu": lambda **more: SSD(
        D, heads=4, head_dim=3, state_size=4, groups=2, activation="silu", bias=True, **more
    ),
    "ssd l2 scaled": lambda **more: SSD(
        D, heads=2, head_dim=3, state_size=4, groups=2, feature_map="l2", scale_input=True, gate=False, **more
    ),
    "ssd attention": lambda **more: SSD(
        D, heads=2, head_dim=3, state_size=4, groups=2, feature_map="softmax", rope=100.0, normalize=True,
        conv_size=1, skip=False, **more
    ),
    "ssd all": lambda **more: SSD(
        D, heads=4, head_dim=3, state_size=6, groups=2, feature_map="softmax", rope=100.0, normalize=True,
        scale_input=True, conv_size=3, activation="silu", **more
    ),
}  # fmt: skip
layers = pytest.mark.parametrize("name", LAYERS)
ssds = pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("ssd")])
s4ds = pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("s4d")])


def made(name, dtype=torch.float64, **more):
    torch.manual_seed(0)
    layer = LAYERS[name](**more)
    assert isinstance(layer, SequenceLayer)
    return layer.to(dtype)


def noise(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gap(a, b):
    a, b = (a,) if isinstance(a, torch.Tensor) else a, (b,) if isinstance(b, torch.Tensor) else b
    assert len(a) == len(b)
    return max(
        ((p - q).abs().max() / q.abs().max().clamp(min=1e-9)).item()
        for p, q in zip(a, b, strict=True)
        if p.numel()
    )


def stepped(layer, x, state=None):
    outputs = []
    for token in x:
        y, state = layer.step(token, state)
        outputs.append(y)
    return torch.stack(outputs), state


# ---- contract ---------------------------------------------------------------------------------------


@layers
@pytest.mark.parametrize("L", [2, 63, 64, 130])
def test_all_tokens_at_once_are_the_steps(name, L):
    layer, x = made(name), noise(L, B, D)
    y, state = layer(x)
    wanted, last = stepped(layer, x)
    assert y.shape == (L, B, layer.outputs)
    assert gap(y, wanted) < 1e-9
    assert gap(tuple(state), tuple(last)) < 1e-9


@layers
def test_sixty_and_forty_tokens_are_a_hundred(name):
    layer, x = made(name), noise(100, B, D)
    whole, last = layer(x)
    first, state = layer(x[:60])
    second, end = layer(x[60:], state)
    assert gap(torch.cat([first, second]), whole) < 1e-9
    assert gap(tuple(end), tuple(last)) < 1e-9


@layers
def test_one_token_is_the_step_bit_for_bit(name):
    layer, x = made(name), noise(3, B, D)
    state = layer(x[:2])[1]
    y, after = layer(x[2:], state)
    wanted = layer.step(x[2], state)
    assert same(y[0], wanted[0])
    assert same(tuple(after), tuple(wanted[1]))


@layers
def test_gradients_reach_every_parameter_and_the_state(name):
    layer, x = made(name), noise(70, B, D).requires_grad_()
    state = layer(noise(5, B, D, seed=2))[1]
    state = type(state)(*(f.detach().requires_grad_() if f.is_floating_point() else f for f in state))
    inputs = [x, *layer.parameters(), *(f for f in state if f.is_floating_point() and f.numel())]
    slopes = []
    for run in (layer, lambda x, state: stepped(layer, x, state)):
        y, after = run(x, state)
        last = sum((field**2).sum() for field in after if field.is_floating_point())
        slopes.append(torch.autograd.grad((y**2).sum() + last, inputs))
    assert gap(*slopes) < 1e-8
    assert all(slope.abs().max() > 0 for slope in slopes[0])


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_that_of_the_input(name, dtype):
    layer, x = made(name, dtype), noise(70, B, D, dtype=dtype)
    y, state = layer(x)
    assert y.dtype == dtype
    for field, tensor in zip(layer.state_fields(), state, strict=True):
        if tensor.is_floating_point():
            assert tensor.dtype == (torch.float32 if field in layer.wide_fields else dtype)
    exact = made(name)
    exact.load_state_dict({key: value.double() for key, value in layer.state_dict().items()})
    assert gap(y.double(), exact(x.double())[0]) < {torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    step, _ = layer.step(x[0], state)
    assert step.dtype == dtype


@layers
def test_a_layer_is_built_again_from_its_constructor_and_weights(name):
    layer, x = made(name), noise(9, B, D)
    torch.manual_seed(5)
    again = type(layer)(**layer.constructor()).double()
    again.load_state_dict(layer.state_dict())
    assert same(again(x)[0], layer(x)[0])
    assert same(copy.deepcopy(layer)(x)[0], layer(x)[0])


@layers
def test_samples_share_nothing(name):
    layer, x = made(name), noise(66, B, D)
    y, _ = layer(x)
    alone, _ = layer(x[:, 1:2])
    assert gap(alone, y[:, 1:2]) < 1e-12


@layers
def test_nothing_is_seen_before_its_time(name):
    layer, x = made(name), noise(80, B, D).requires_grad_()
    y, _ = layer(x)
    (slope,) = torch.autograd.grad(y[65].sum(), x)
    assert slope[65].abs().max() > 0
    assert slope[66:].abs().max() < 1e-12


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


def with_state(change):
    """The layer called with a state of its own, each field changed."""

    def call(layer):
        x = noise(4, B, D)
        state = layer(x)[1]
        return layer(x, type(state)(*map(change, state)))

    return call


def nan(field):
    return field * math.nan if field.is_floating_point() else field


@layers
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m(zeros(0, B, D)), r"x \[0, 3, 6\] is empty: L and B must be at least 1"),
        (lambda m: m(zeros(B, D)), r"expected x \[L, B, 6\], got \[3, 6\]"),
        (lambda m: m(zeros(4, B, 7)), r"expected x \[L, B, 6\], got \[4, 3, 7\]"),
        (lambda m: m.step(zeros(4, B, D)), r"expected x \[B, 6\], got \[4, 3, 6\]"),
        (lambda m: m(zeros(4, B, D).float()), "x is torch.float32, the layer torch.float64; convert one"),
        (lambda m: m(zeros(4, B, D) * math.nan), "x holds 72 NaN or infinite values"),
        (lambda m: m(zeros(4, B, D), (zeros(1),)), "the state is a tuple, expected the S"),
        (lambda m: m(zeros(4, B, D).to("meta")), "x is on meta, the layer on cpu"),
        (lambda m: m(noise(4, 2, D), m(noise(4, B, D))[1]), "state's .* is .* expected .* with this batch"),
        (with_state(torch.Tensor.float), "is torch.float32 on cpu, expected torch"),
        (with_state(nan), "the state's .* holds .* NaN"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, call, says):
    with pytest.raises((InputError, ShapeError, NonFiniteError), match=says) as told:
        call(made(name))
    assert "\n" not in str(told.value)


def test_a_state_of_the_other_layer_is_refused():
    s4d, ssd = made("s4d"), made("ssd")
    x = noise(4, B, D)
    with pytest.raises(InputError, match="the state is a SSDState, expected the S4DState"):
        s4d(x, ssd(x)[1])
    with pytest.raises(InputError, match="the state is a S4DState, expected the SSDState"):
        ssd(x, s4d(x)[1])
    with pytest.raises(ShapeError, match=r"the state's recent is \[3, 3, 22\], expected"):
        made("ssd groups silu")(x, ssd(x)[1])


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: S4D(4, 7), "state_size must be even"),
        (lambda: S4D(4, init="fourier"), "init must be one of legs, lin, inv, got 'fourier'"),
        (lambda: S4D(4, discretization="euler"), 'discretization must be "zoh" or "bilinear"'),
        (lambda: S4D(4, dt_min=0.1, dt_max=0.01), "dt_min must be at most dt_max"),
        (lambda: S4D(4, dt_min=0.0), "dt_min must be finite and > 0"),
        (lambda: S4D(0), "features must be a whole number >= 1"),
        (lambda: SSD(4, heads=3, groups=2), "groups must divide heads, got 2 groups for 3 heads"),
        (lambda: SSD(4, heads=0), "heads must be a whole number >= 1"),
        (lambda: SSD(4, activation="relu"), "activation must be one of none, silu, got 'relu'"),
        (lambda: SSD(4, feature_map="exp"), "feature_map must be one of none, l2, softmax"),
        (lambda: SSD(4, normalize=True), 'use feature_map="softmax" with it'),
        (lambda: SSD(4, rope=10.0, state_size=5), "rope turns pairs, so state_size must be even, got 5"),
        (lambda: SSD(4, rope=-1.0), "rope must be finite and > 0"),
        (lambda: SSD(4, backend="fast"), "backend must be one of"),
    ],
)
def test_settings_that_can_not_be_are_refused(build, says):
    with pytest.raises(InputError, match=says):
        build()


# ---- S4D ---------------------------------------------------------------------------------------------


@s4ds
def test_s4d_is_the_loop(name):
    layer, x = made(name), noise(100, B, D)
    modes = noise(B, layer.outputs, layer.state_size // 2, 2)
    y, state = layer(x, S4DState(modes))
    values = x[..., -layer.outputs :]
    wanted, last = s4d_loop(values, *layer.discrete(), layer.skip, torch.view_as_complex(modes))
    if layer.gate_bias is not None:
        argument = x[..., : layer.outputs] + layer.gate_bias
        wanted = wanted * argument * torch.sigmoid(argument)
    assert gap(y, wanted) < 1e-11
    assert gap(state.modes, torch.view_as_real(last)) < 1e-11


def test_zero_order_hold_and_bilinear_by_hand():
    """One mode, dt = 1/2, A = -1 + 2i, B = 1: e^(A/2), (e^(A/2) - 1) / A; and (1 + A/4) / (1 - A/4)."""
    a = complex(-1, 2)
    for rule, decay, b in (
        ("zoh", np.exp(a / 2), (np.exp(a / 2) - 1) / a),
        ("bilinear", (1 + a / 4) / (1 - a / 4), 0.5 / (1 - a / 4)),
    ):
        layer = S4D(1, 2, discretization=rule).double()
        with torch.no_grad():
            layer.log_dt.fill_(math.log(0.5))
            layer.log_fading.zero_()
            layer.frequency.fill_(2.0)
        found = layer.discrete()
        assert found[0].item() == pytest.approx(decay, abs=1e-14)
        assert found[1].item() == pytest.approx(b, abs=1e-14)


def test_legs_is_hippo():
    """Its modes are eigenvalues of HiPPO-LegS with the rank-one part taken off, its B in their basis."""
    N = 8
    n = np.arange(N)
    root = np.sqrt(2 * n + 1)
    hippo = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    normal = hippo + np.outer(np.sqrt(n + 0.5), np.sqrt(n + 0.5))
    wanted = np.linalg.eigvals(normal)
    layer = S4D(1, N, init="legs")
    found = torch.complex(-layer.log_fading.exp(), layer.frequency)[0].detach().numpy()
    assert np.allclose(np.sort(found.imag), np.sort(wanted[wanted.imag > 0].imag), atol=1e-5)
    assert np.allclose(found.real, -0.5)
    # the response of c^T h through the modes is that of the full matrix: |B| is preserved pairwise
    assert np.isclose(
        2 * (torch.view_as_complex(layer.b).abs() ** 2).sum().item(), (root**2).sum(), rtol=1e-5
    )


def test_inv_and_lin_by_hand():
    lin = S4D(1, 6, init="lin")
    assert torch.allclose(lin.frequency[0], math.pi * torch.arange(3.0))
    inv = S4D(1, 6, init="inv")
    assert torch.allclose(inv.frequency[0], 6 / math.pi * (6 / (2 * torch.arange(3.0) + 1) - 1))


def test_a_gate_is_behind_the_layer_that_has_none():
    """Its other weights, their order and their names are those of a layer without one."""
    layer, x = made("s4d gate"), noise(70, B, D)
    settings = layer.constructor()
    assert settings.pop("gate") is True
    assert settings["features"] == layer.outputs == D // 2
    assert layer.inputs == layer.features == D
    plain = S4D(**settings).double()
    assert (plain.inputs, plain.features, plain.gate_bias) == (D // 2, D // 2, None)
    weights = layer.state_dict()
    bias = weights.pop("gate_bias")
    assert list(weights) == list(plain.state_dict())
    plain.load_state_dict(weights)
    z, values = x.chunk(2, -1)
    wanted, last = plain(values)
    y, state = layer(x)
    assert gap(y, wanted * F.silu(z + bias)) < 1e-12
    assert same(state.modes, last.modes)
    assert layer(x, final_state=False)[1] is None


@needs_compiler
def test_the_gate_of_s4d_runs_in_its_kernel(monkeypatch):
    from marsnn.ssm import gate

    calls, kernel = [], gate._Gate.apply
    monkeypatch.setattr(gate._Gate, "apply", lambda *given: calls.append(given[0].shape) or kernel(*given))
    layer, x = made("s4d gate"), noise(70, B, D)
    layer.step(x[0], layer(x)[1])
    assert calls == [(70, B, D // 2), (1, B, D // 2)]


def test_the_kernel_is_kept_until_weights_change():
    layer = made("s4d")
    with torch.no_grad():
        first = layer.kernel(50)
        assert layer.kernel(50).data_ptr() == first.data_ptr()
        layer.c.mul_(2.0)
        assert gap(layer.kernel(50), 2 * first) < 1e-14
    assert layer.kernel(50).requires_grad
    assert same(layer(noise(50, 1, D))[0].detach(), layer(noise(50, 1, D), final_state=False)[0].detach())
    assert layer(noise(50, 1, D), final_state=False)[1] is None


# ---- SSD: padding and packed sequences ---------------------------------------------------------------


@ssds
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    layer = made(name)
    lengths = (70, 41, 0)
    mask = torch.zeros(70, B, dtype=torch.bool)
    x = noise(70, B, D)
    for sample, length in enumerate(lengths):
        mask[70 - length :, sample] = True
        if side == "right":
            mask[:, sample] = mask[:, sample].flip(0)
    y, state = layer(x, mask=mask)
    z, after = layer(noise(5, B, D, seed=3), state)
    for sample, length in enumerate(lengths[:2]):
        own = x[mask[:, sample], sample].unsqueeze(1)
        assert len(own) == length
        wanted, last = layer(own)
        assert gap(y[mask[:, sample], sample], wanted[:, 0]) < 1e-10
        more, end = layer(noise(5, B, D, seed=3)[:, [sample]], last)
        assert gap(z[:, [sample]], more) < 1e-10
        assert after.position[sample] == end.position
    rest = layer.initial_state(x[0])
    assert same(state.memory[2], rest.memory[2])
    assert state.position[2] == 0
    assert same(state.recent[:, 2], rest.recent[:, 2])


@ssds
def test_packed_sequences_never_meet(name):
    layer, x = made(name), noise(130, 1, D).requires_grad_()
    ends = [0, 3, 40, 64, 65, 130]
    ids = torch.repeat_interleave(torch.arange(5), torch.tensor(ends).diff()).unsqueeze(1)
    y, state = layer(x, segments=ids)
    assert same(y, layer(x, segments=torch.tensor(ends))[0])
    for a, z in itertools.pairwise(ends):
        wanted, last = layer(x[a:z])
        assert gap(y[a:z], wanted) < 1e-10
        (slope,) = torch.autograd.grad(y[a:z].sum(), x, retain_graph=True)
        assert slope[:a].abs().sum() == 0
        assert slope[z:].abs().sum() == 0
    assert gap(tuple(state)[:2], tuple(last)[:2]) < 1e-10
    assert same(state.position, last.position)


@ssds
def test_the_first_packed_sequence_goes_on_and_the_last_is_left(name):
    layer, x = made(name), noise(60, 2, D)
    before = layer(noise(7, 2, D, seed=4))[1]
    ids = torch.zeros(60, 2, dtype=torch.long)
    ids[20:, 0] = 1
    ids[59:, 1] = 5
    y, state = layer(x, before, segments=ids)
    for sample, end in ((0, 20), (1, 59)):
        own = type(before)(before.recent[:, [sample]], before.memory[[sample]], before.position[[sample]])
        assert gap(y[:end, [sample]], layer(x[:end, [sample]], own)[0]) < 1e-10
        wanted, last = layer(x[end:, [sample]])
        assert gap(y[end:, [sample]], wanted) < 1e-10
        assert gap(state.memory[[sample]], last.memory) < 1e-10
        assert gap(state.recent[:, [sample]], last.recent) < 1e-10 if state.recent.numel() else True
        assert state.position[sample] == last.position


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"mask": torch.ones(5, 1)}, r"expected a mask of bools \[5, 1\], got torch.float32 \[5, 1\]"),
        ({"mask": torch.ones(4, 1, dtype=torch.bool)}, r"expected a mask of bools \[5, 1\]"),
        ({"mask": torch.ones(5, 1, dtype=torch.bool, device="meta")}, "x is on cpu, mask on meta"),
        ({"segments": torch.zeros(5, 1)}, "segments must be whole numbers"),
        ({"segments": torch.zeros(5, 1, dtype=torch.long, device="meta")}, "x is on cpu, segments on meta"),
        ({"segments": torch.tensor([0, 3, 6])}, r"expected segments \[5, 1\], or for one sample the starts"),
        ({"segments": torch.tensor([0, 3, 3, 5])}, "expected segments"),
        (
            {"mask": torch.ones(5, 1, dtype=torch.bool), "segments": torch.tensor([0, 5])},
            "give mask or segments",
        ),
    ],
)
def test_masks_and_segments_that_do_not_fit_are_refused(more, says):
    with pytest.raises((InputError, ShapeError), match=says):
        made("ssd")(noise(5, 1, D), **more)


# ---- SSD: what it is ----------------------------------------------------------------------------------


def test_ssd_by_its_equations():
    """Written again from the module's docstring, head by head, in plain loops."""
    layer, x = made("ssd groups silu"), noise(12, 1, D)
    core = layer.core
    z, raw, a = layer.in_proj(x)[:, 0].split(core.widths, -1)
    mixed = torch.stack(
        [
            core.conv_bias + sum(core.conv_weight[k] * raw[t - k] for k in range(4) if t - k >= 0)
            for t in range(12)
        ]
    )
    values, keys, queries = F.silu(mixed).split((12, 8, 8), -1)
    decay = torch.sigmoid(-(a + core.decay_bias))
    y = torch.zeros(12, 4, 3, dtype=torch.float64)
    for h in range(4):
        memory = torch.zeros(4, 3, dtype=torch.float64)
        for t in range(12):
            key, query = (each[t].view(2, 4)[h // 2] for each in (keys, queries))
            value = values[t].view(4, 3)[h]
            memory = decay[t, h] * memory + torch.outer(key, value)
            y[t, h] = memory.t() @ query + core.skip[h] * value
    out = layer.out_proj(y.flatten(1) * F.silu(z + core.gate_bias))
    assert gap(layer(x)[0][:, 0], out) < 1e-12


def test_ssd_without_decay_is_softmax_feature_attention():
    """With decay 1, normalised, it is linear attention over the feature map."""
    core = SSDCore(
        1, 3, 4, conv_size=1, gate=False, feature_map="softmax", normalize=True, skip=False
    ).double()
    with torch.no_grad():
        core.conv_weight.fill_(1.0)
        core.decay_bias.fill_(-1e4)
    x = noise(20, 1, core.inputs)
    value, key, query = x[:, 0, :-1].split((3, 4, 4), -1)
    key, query = (torch.cat([v, -v], -1).softmax(-1) for v in (key, query))
    weights = (query @ key.t()).tril()
    assert gap(core(x)[0][:, 0], weights @ value / weights.sum(-1, keepdim=True)) < 1e-12


def test_rope_depends_on_distances_alone():
    """Queries and keys turned by their positions: shifting both by the same number changes nothing."""
    core = SSDCore(1, 3, 4, conv_size=1, rope=50.0).double()
    x = noise(9, 2, core.inputs)
    state = core.initial_state(x[0])
    later = state._replace(position=torch.tensor([0, 1000]))
    y, shifted = core(x, state)[0], core(x, later)[0]
    assert gap(shifted, y) < 1e-9
    assert gap(SSDCore.forward(core, x, state)[0], y) == 0
    core.rope = None
    assert gap(core(x)[0], y) > 1e-3


def test_the_decay_starts_from_two_to_a_thousand_tokens():
    core = SSDCore(4)
    tau = 1 / (1 - torch.sigmoid(-core.decay_bias))
    assert tau.tolist() == pytest.approx([2.0, 15.87, 125.99, 1000.0], rel=1e-3)


def test_the_state_does_not_grow_with_the_sequence():
    layer = made("ssd")
    sizes = {L: [field.shape for field in layer(noise(L, 1, D))[1]] for L in (1, 10, 500)}
    assert sizes[1] == sizes[10] == sizes[500]
    assert isinstance(layer(noise(3, 1, D))[1], SSDState)


# ---- the convolution ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["chunked", pytest.param("auto", marks=needs_compiler)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("L", "K", "C"), [(2, 4, 3), (3, 5, 1), (64, 4, 20), (1000, 4, 17), (70, 3, 600), (9, 1, 8)]
)
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_both_fast_convolutions_are_the_shifted_sum(path, dtype, L, K, C, limited, begun, silu):
    x = noise(L, 2, C + 3, dtype=dtype)[..., :C].requires_grad_()
    weight, bias = noise(K, C, dtype=dtype).requires_grad_(), noise(C, dtype=dtype).requires_grad_()
    before = noise(K - 1, 2, C, dtype=dtype, seed=2).requires_grad_() if begun else None
    seen = torch.randint(0, K + 1, (L, 2), dtype=torch.int32) if limited else None
    upstream = noise(L, 2, C, dtype=dtype, seed=3)
    wanted_of = [x, weight, bias, *([before] if begun else [])]
    outcomes = []
    for backend in (path, "reference"):
        y = causal_convolution(x, weight, bias, before, seen, backend, silu)
        outcomes.append([y, *torch.autograd.grad(y, wanted_of, upstream)])
    assert gap(*outcomes) < {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]


def test_the_convolution_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    weight = torch.tensor([[10.0], [100.0]])
    y = causal_convolution(x, weight, torch.tensor([0.5]), torch.tensor([7.0]).view(1, 1, 1))
    assert y.flatten().tolist() == [10 + 700 + 0.5, 20 + 100 + 0.5, 30 + 200 + 0.5]
    apart = torch.tensor([[1], [0], [1]], dtype=torch.int32)
    y = causal_convolution(x, weight, None, None, apart)
    assert y.flatten().tolist() == [10.0, 20.0, 30 + 200]


# ---- one token in one call -----------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "silu", "groups": 2},
        {"gate": False, "scale_input": True},
        {"skip": False, "conv_size": 1, "groups": 4},
        {"conv_size": 2, "head_dim": 17, "state_size": 3},
        {"rope": 10000.0, "state_size": 6, "groups": 4},
        {"rope": 50.0, "state_size": 2, "groups": 2, "gate": False, "conv_size": 3},
        {"rope": 100000.0, "state_size": 64, "head_dim": 65, "scale_input": True},  # shared by threads
    ],
)
def test_the_step_kernel_is_the_step_in_torch(settings, dtype):
    torch.manual_seed(0)
    core = SSDCore(4, **{"head_dim": 3, "state_size": 5, **settings}).to(dtype)
    for parameter in core.parameters():
        torch.nn.init.normal_(parameter)
    x = noise(6, B, core.inputs, dtype=dtype)
    begun = torch.tensor([0, 1, 5000])[torch.arange(B) % 3]
    outcomes = []
    for backend in ("auto", "reference"):
        core.backend = backend
        with torch.no_grad():
            state = core.initial_state(x[0])._replace(position=begun)
            y, state = stepped(core, x, state)
        outcomes.append((y, state.recent, state.memory))
        assert torch.equal(state.position, begun + 6)
    assert gap(*outcomes) < {torch.float64: 1e-13, torch.float32: 1e-5}[dtype]
    assert not same(outcomes[0][0], outcomes[1][0])  # it did run


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_step_may_write_where_it_read(threads):
    core = SSDCore(4, 64, 64, groups=4, rope=1e4).double()
    x, state = noise(2, core.inputs), core.initial_state(noise(2, core.inputs))
    recent, memory = noise(*state.recent.shape, seed=2), noise(*state.memory.shape, seed=3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            y, *after = decode.step(core, x, recent, memory, state.position)
            again = decode.Step(core)(x, recent, memory, state.position, recent, memory)
    finally:
        torch.set_num_threads(before)
    assert same((y, *after), (again, recent, memory))


STEP_MUTANTS = [
    ("k + 1 < p.K ? recent + (k * p.B + s) * C : token;", "token;"),
    ("const F value = decay * S[n * p.P + i]", "const F value = S[n * p.P + i]"),
    ("recent + ((p.K - 1 - k) * p.B + s) * C", "recent + ((k - 1) * p.B + s) * C"),
    ("h / (p.H / p.G) * p.N", "h % p.G * p.N"),
    ("v[half] = second * turn + first * lift", "v[half] = second * turn - first * lift"),
    ("(double)position", "(double)(position + 1 > 3)"),
]


@needs_compiler
@pytest.mark.parametrize("number", range(len(STEP_MUTANTS)))
def test_mutants_of_the_step_are_caught(number, monkeypatch, tmp_path):
    right, wrong = STEP_MUTANTS[number]
    sources = tmp_path / "kernels"
    shutil.copytree(fused.SOURCES, sources)
    text = (sources / "step.h").read_text()
    assert right in text
    (sources / "step.h").write_text(text.replace(right, wrong))
    monkeypatch.setattr(fused, "SOURCES", sources)
    monkeypatch.setenv("MARSNN_CACHE", str(tmp_path / "cache"))
    native.cache_folder.cache_clear()
    decode._library.cache_clear()
    try:
        core = SSDCore(4, 3, 6, groups=2, rope=20.0).double()
        x = noise(6, B, core.inputs)
        with torch.no_grad():
            wanted = core(x)[0]
            assert gap(stepped(core, x)[0], wanted) > 1e-6
    finally:
        native.cache_folder.cache_clear()
        decode._library.cache_clear()


# ---- the gate ------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("C", [1, 16, 37, 600])
def test_the_gates_kernel_is_the_gate_in_torch(dtype, C):
    z = (20 * noise(50, 2, C + 3, dtype=dtype))[..., 2 : C + 2].requires_grad_()
    y, bias = noise(50, 2, C, dtype=dtype, seed=2).requires_grad_(), noise(C, dtype=dtype).requires_grad_()
    outcomes = []
    for backend in ("auto", "reference"):
        out = gated(y, z, bias, backend)
        outcomes.append([out, *torch.autograd.grad(out, (y, z, bias), noise(50, 2, C, dtype=dtype, seed=3))])
    assert gap(*outcomes) < {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_kernels_exponential_is_the_exponential(dtype):
    """Through the gate, whose z turns 1 into silu(z) = z / (1 + e^-z): a few units, at both ends too."""
    z = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([0.0, -0.0, 1e-30, -1000.0, 1000.0])]).to(
        dtype
    )
    out = gated(torch.ones(1, 1, len(z), dtype=dtype), z.view(1, 1, -1), torch.zeros(len(z), dtype=dtype))
    exact = z.double() * torch.sigmoid(z.double())
    error = (out.flatten().double() - exact).abs() / exact.abs().clamp(min=1e-30)
    assert error[exact.abs() > 1e-25].max() < 8 * torch.finfo(dtype).eps
    assert bool(torch.isfinite(out).all())


def test_gradients_of_gate_and_convolution_can_be_differentiated_again():
    inputs = [
        noise(*shape, seed=i).requires_grad_() for i, shape in enumerate(((9, 2, 3), (9, 2, 3), (3,), (4, 3)))
    ]
    y, z, bias, weight = inputs
    twice = []
    for backend in ("auto", "reference"):
        out = gated(causal_convolution(y, weight, bias, backend=backend, silu=True), z, bias, backend)
        slopes = torch.autograd.grad((out**2).sum(), inputs, create_graph=True)
        twice.append(torch.autograd.grad(sum((slope**2).sum() for slope in slopes), inputs))
    assert gap(*twice) < 1e-10
