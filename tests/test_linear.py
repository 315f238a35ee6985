"""Unit: a Linear by either library is torch's Linear, and which one runs is settled by size and machine."""

from unittest.mock import mock_open

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize

from marsnn import linear as module
from marsnn.linear import Linear, linear

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)

SHAPES = {"wide": (48, 33, 70), "narrow": (48, 70, 33), "one": (1, 5, 3), "square": (64, 64, 64)}


@pytest.fixture
def launched(monkeypatch):
    """oneDNN for products of every size, on any processor; the list of its calls."""
    calls = []
    product = module._product

    def watched(*operands):
        calls.append(operands)
        return product(*operands)

    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "WORTHWHILE", 0)
    monkeypatch.setattr(module, "_product", watched)
    return calls


def operands(shape, bias=True, dtype=torch.float32):
    M, K, N = shape
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(size, generator=draw, dtype=dtype) for size in ((M, K), (N, K), (N,))]
    return [each.requires_grad_() for each in (made if bias else made[:2])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_torch(launched, shape, bias):
    inputs = operands(shape, bias)
    y, wanted = linear(*inputs), F.linear(*inputs)
    assert torch.allclose(y, wanted, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(wanted)
    ours, theirs = (torch.autograd.grad(each, inputs, upstream) for each in (y, wanted))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-4)
    assert len(launched) == 3


@pytest.mark.parametrize("frozen", [0, 1])
def test_no_product_is_made_for_a_gradient_that_nobody_wants(launched, frozen):
    inputs = operands((8, 5, 6))
    inputs[frozen].requires_grad_(False)
    linear(*inputs).sum().backward()
    assert inputs[frozen].grad is None
    assert inputs[1 - frozen].grad is not None
    assert len(launched) == 2


def test_any_leading_axes_and_strides(launched):
    x = torch.randn(4, 3, 5, 8).transpose(0, 1)
    weight = torch.randn(8, 6).t()
    y = linear(x, weight)
    assert y.shape == (3, 4, 5, 6)
    assert torch.allclose(y, F.linear(x, weight), atol=1e-5)
    assert len(launched) == 1


@pytest.mark.parametrize("gaps", ["expanded", "slice"])
def test_operands_with_gaps_or_repetitions_are_copied(monkeypatch, launched, gaps):
    """oneDNN takes them, by a loop that is a thousand times slower."""
    seen = []
    operator = torch.ops.mkldnn._linear_pointwise

    def watched(a, b, *others):
        seen.append((a, b))
        return operator(a, b, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", watched)
    x, weight, _ = operands((48, 33, 70))
    y, wanted = linear(x, weight), F.linear(x, weight)
    upstream = torch.ones(()).expand(48, 70) if gaps == "expanded" else torch.randn(48, 99)[:, 3:73]
    ours, theirs = (torch.autograd.grad(each, [x, weight], upstream) for each in (y, wanted))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-4)
    assert len(seen) == 3
    for pair in seen:
        assert all(each.is_contiguous() or each.t().is_contiguous() for each in pair)


def test_second_derivatives(launched):
    inputs = operands((6, 5, 4))

    def twice(of):
        (slope,) = torch.autograd.grad(of(*inputs).tanh().sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(slope.square().sum(), inputs)

    for mine, other in zip(twice(linear), twice(F.linear), strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)
    assert launched


@pytest.mark.filterwarnings("ignore:TF32")  # of torch.backends.mkldnn.flags
@pytest.mark.parametrize("case", ["float64", "bfloat16", "small", "vmap", "compiled", "autocast", "off"])
def test_torchs_own_runs_elsewhere(launched, monkeypatch, case):
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(case, torch.float32)
    x, weight = (torch.randn(8, 8, dtype=dtype) for _ in range(2))
    wanted = F.linear(x, weight)
    if case == "small":
        monkeypatch.setattr(module, "WORTHWHILE", 8**3 + 1)
    if case == "vmap":
        y = torch.vmap(lambda row: linear(row, weight))(x)
    elif case == "compiled":
        y = torch.compile(lambda x: linear(x, weight), backend="eager")(x)
    elif case == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            y = linear(x, weight)
        assert y.dtype == torch.bfloat16
        wanted = F.linear(x.bfloat16(), weight.bfloat16())
    elif case == "off":
        with torch.backends.mkldnn.flags(enabled=False):
            y = linear(x, weight)
    else:
        y = linear(x, weight)
    assert torch.allclose(y, wanted, atol=1e-5)
    assert not launched


def test_the_layer_is_torchs_with_its_hooks_and_parametrizations(launched):
    torch.manual_seed(0)
    layer = Linear(8, 6)
    plain = torch.nn.Linear(8, 6)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 8)
    assert torch.allclose(layer(x), plain(x), atol=1e-6)
    assert launched
    parametrize.register_parametrization(layer, "weight", torch.nn.Softmax(-1))
    parametrize.register_parametrization(plain, "weight", torch.nn.Softmax(-1))
    assert torch.allclose(layer(x), plain(x), atol=1e-6)
    layer.register_forward_hook(lambda *_: torch.zeros(1))
    assert torch.equal(layer(x), torch.zeros(1))


@pytest.mark.parametrize(
    ("vendor", "vectors", "faster"),
    [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
)
def test_only_amds_processors_with_avx_512_get_onednn(monkeypatch, vendor, vectors, faster):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    cpuinfo = mock_open(read_data=f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(module, "open", cpuinfo, raising=False)
    module.onednn_is_faster.cache_clear()
    try:
        assert module.onednn_is_faster() == faster
    finally:
        module.onednn_is_faster.cache_clear()
