"""Sparse feed-forward nets: what is kept, what it costs, how layers share a budget."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from marsnn.errors import InputError
from marsnn.refine import convert, sparsify
from marsnn.refine.sparsity import GRID, MaskedLinear, Sparsifier, allocate, errors
from tests.refine.models import some_tokens, teacher

LAYERS = 3


def activations(tokens=200, features=20):
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(3)) ** 3


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.99, 1.0])
def test_topk_keeps_the_largest_of_each_token(keep):
    x = activations()
    kept = Sparsifier(20, "topk", keep)(x)
    number = max(1, round(keep * 20))
    assert ((kept != 0).sum(-1) == number).all()
    smallest = torch.where(kept != 0, x.abs(), torch.inf).amin(-1)
    dropped = torch.where(kept == 0, x.abs(), -torch.inf).amax(-1)
    assert (smallest >= dropped).all()
    assert torch.equal(kept[kept != 0], x[kept != 0])


def test_topk_keeps_its_number_where_values_are_equal():
    assert (Sparsifier(8, "topk", 0.5)(torch.ones(2, 3, 8)) != 0).sum(-1).eq(4).all()


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.42, 1.0])
def test_threshold_keeps_the_share_it_was_calibrated_for(keep):
    x = activations(2000)
    sparse = Sparsifier(20, "threshold", keep)
    sparse.calibrate(x)
    assert abs((sparse(x) != 0).float().mean().item() - keep) < 0.01


def test_a_mask_keeps_the_weights_of_largest_product():
    masked = MaskedLinear(4, 2, bias=False, keep=0.5)
    with torch.no_grad():
        masked.weight.copy_(torch.tensor([[1.0, -3.0, 0.5, 2.0], [4.0, 0.1, 0.2, 0.3]]))
    masked.refresh(torch.tensor([10.0, 1.0, 1.0, 1.0]))
    assert masked.mask.tolist() == [[True, True, False, False], [True, False, False, True]]
    assert torch.equal(masked(torch.eye(4)), (masked.weight * masked.mask).t())
    masked(torch.ones(1, 4)).sum().backward()
    assert torch.equal(masked.weight.grad != 0, masked.mask), "what is masked learns nothing"


@pytest.mark.parametrize("mode", ["topk", "threshold", "mask"])
def test_errors_are_those_of_the_sparse_product(mode):
    x, weight = activations(), torch.randn(7, 20, generator=torch.Generator().manual_seed(4))
    found = errors(x, weight, mode)
    assert found[-1] == 0
    assert (found.diff() <= 1e-6).all(), "more is never worse"
    share = 8
    if mode == "mask":
        masked = MaskedLinear(20, 7, bias=False, keep=GRID[share])
        masked.weight.data.copy_(weight)
        masked.refresh(x.abs().mean(0))
        y = masked(x)
    else:
        sparse = Sparsifier(20, mode, GRID[share])
        sparse.calibrate(x)
        y = sparse(x) @ weight.t()
    torch.testing.assert_close(found[share], (x @ weight.t() - y).square().sum(-1).mean())


@pytest.mark.parametrize("mode", ["topk", "threshold", "mask"])
def test_errors_stay_on_their_device(mode):
    with FakeTensorMode():  # devices without numbers
        x, weight = torch.empty(50, 20, device="cuda"), torch.empty(7, 20, device="cuda")
        assert errors(x, weight, mode).device.type == "cuda"


def test_a_budget_is_taken_from_where_it_costs_least():
    cheap, dear = [1 - share for share in GRID], [100 * (1 - share) for share in GRID]
    shares = allocate({0: cheap, 1: dear, 2: dear}, 0.8)
    assert shares[0] < 0.5
    assert shares[1] == shares[2] == 1.0
    assert abs(sum(shares.values()) / 3 - 0.8) < 0.02
    even = allocate({0: [x * x for x in dear], 1: [x * x for x in dear]}, 0.5)
    assert even == {0: 0.5, 1: 0.5}


@pytest.mark.parametrize("mode", ["topk", "threshold", "mask"])
def test_sparsify_meets_its_mean_and_survives_files(mode, tmp_path):
    model, tokens = convert(teacher(), [1]), some_tokens()
    dense = model(tokens).logits
    found = sparsify(model, tokens, 0.4, mode)
    shares = [each.keep for each in found]
    assert abs(sum(shares) / LAYERS - 0.4) < 0.03
    assert model.config.sparsity == {"mode": mode, "keep": shares}
    assert all(each.cost >= 0 for each in found)
    sparse = model(tokens).logits
    assert not torch.equal(sparse, dense)
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(tokens).logits, sparse)


def test_sparsify_takes_the_share_of_each_layer():
    model, tokens = convert(teacher(), []), some_tokens()
    seen = {}
    sparsify(model, tokens, [0.1, 0.5, 1.0])
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: seen.update({layer: (args[0] != 0).float().mean().item()})
        )
    model(tokens)
    assert seen == {0: pytest.approx(0.1), 1: pytest.approx(0.5), 2: pytest.approx(1.0)}


@pytest.mark.parametrize("mode", ["topk", "threshold", "mask"])
def test_costs_are_sane_at_every_share(mode):
    tokens = some_tokens()
    costs = {}
    for keep in (0.01, 0.5, 0.93, 0.95, 0.97, 0.98, 0.999, 1.0):
        each = sparsify(convert(teacher(), []), tokens, [keep] * LAYERS, mode)
        costs[keep] = sum(one.cost for one in each)
        mean = sparsify(convert(teacher(), []), tokens, keep, mode)
        assert all(0 <= one.cost < 10 for one in mean)
    assert 10 > costs[0.01] > costs[0.5] > costs[0.93] > costs[0.95] > costs[0.97] > costs[0.98]
    assert costs[0.98] == pytest.approx(0.4 * costs[0.95], rel=0.01), "between what was measured and nothing"
    assert costs[1.0] == 0


def test_an_error_at_no_share_costs_nothing():
    model, tokens = convert(teacher(), []), some_tokens()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    found = sparsify(model, tokens, 0.9)
    assert found[1].cost == 0
    assert all(each.cost < 1 for each in found)


def test_keeping_everything_changes_nothing():
    model, tokens = convert(teacher(), []), some_tokens()
    dense = model(tokens).logits
    sparsify(model, tokens, 1.0)
    assert torch.equal(model(tokens).logits, dense)


@pytest.mark.parametrize(
    ("keep", "mode", "said"),
    [
        (0, "topk", "keep is the share"),
        (1.5, "topk", "keep is the share"),
        (float("nan"), "topk", "keep is the share"),
        ([0.5, 0.5], "topk", "names 2 layers"),
        (0.5, "random", "mode must be"),
    ],
)
def test_bad_settings_leave_the_model_as_it_was(keep, mode, said):
    model = convert(teacher(), [])
    with pytest.raises(InputError, match=said):
        sparsify(model, some_tokens(), keep, mode)
    assert model.config.sparsity is None


def test_twice_is_refused():
    model, tokens = convert(teacher(), []), some_tokens()
    sparsify(model, tokens, 0.5)
    with pytest.raises(InputError, match="already"):
        sparsify(model, tokens, 0.5)
