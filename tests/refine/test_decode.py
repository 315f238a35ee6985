"""Reference: prepared models decode as the plain ones do, in every mode; what is changed is never stale."""

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from marsnn import native
from marsnn.errors import InputError
from marsnn.refine import add_spikes, convert, kernel, prepare, release, sparsify
from marsnn.refine.quick import QuickLayer
from marsnn.refine.sparsity import Sparsifier
from tests.refine.models import some_tokens, teacher

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")

STACKS = {"attention": (), "hybrid": (1,), "pure": (0, 1, 2)}
DTYPES = [torch.float32, torch.bfloat16]


def refined(stack="hybrid", mode=None, keep=0.4, kind="llama", **mixer):
    torch.manual_seed(1)
    model = convert(teacher(kind), STACKS[stack], **mixer)
    with torch.no_grad():  # leave the start, at which much is zero
        for name, parameter in model.named_parameters():
            if "self_attn.core" in name or "a_proj" in name or "z_proj" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    if mode is not None:
        sparsify(model, some_tokens(), keep, mode)
    return model


def greedy(model, batch=1, new=8, **settings):
    tokens = some_tokens(batch, 9)
    made = model.generate(
        tokens, max_new_tokens=new, do_sample=False, attention_mask=torch.ones_like(tokens),
        return_dict_in_generate=True, output_logits=True, **settings,
    )  # fmt: skip
    return made.sequences[:, 9:], torch.stack(made.logits)


@pytest.fixture
def calls(monkeypatch):
    """How many layers ran by kernels."""
    ran = []
    usual = kernel.FeedForward.__call__
    monkeypatch.setattr(kernel.FeedForward, "__call__", lambda *args: ran.append(1) or usual(*args))
    return ran


# ---- the kernels ------------------------------------------------------------------------------------


def close(found, wanted, dtype):
    torch.testing.assert_close(found, wanted, rtol=0, atol={torch.float32: 2e-5, torch.bfloat16: 0.15}[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("R", [1, 2, 3, 4])
@pytest.mark.parametrize(("K", "rows"), [(1, 1), (16, 5), (37, 70), (600, 301)])
def test_maps_are_norm_and_linear_maps(K, rows, R, dtype):
    first, second = torch.nn.Linear(K, rows).to(dtype), torch.nn.Linear(K, 6, bias=False).to(dtype)
    weight, x = torch.randn(K).to(dtype), torch.randn(R, K).to(dtype)
    with torch.no_grad():
        y = kernel.Maps([(first, 1), (second, 2)], kernel.Norm(weight, 1e-5), width=3)(x)
        n = F.rms_norm(x.float(), (K,), weight.float(), 1e-5).to(dtype)
        shared = second(n).unflatten(-1, (2, 3)).repeat_interleave(2, -2).flatten(-2)
        close(y, torch.cat([first(n), shared], -1), dtype)
        residual = torch.randn(R, rows).to(dtype)
        close(kernel.Maps([(first, 1)])(x, residual), residual + first(x), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("R", [1, 3])
@pytest.mark.parametrize(("N", "D"), [(1, 1), (40, 24), (50, 17), (301, 600)])
@pytest.mark.parametrize("skipping", [False, True])
def test_rows_are_passed_over_as_zeros_are(N, D, R, dtype, skipping):
    linear, x = torch.nn.Linear(N, D).to(dtype), torch.randn(R, N).to(dtype)
    x[:, ::3] = 0
    down = kernel.Down(linear, rows=kernel.transposed(linear.weight))
    with torch.no_grad():
        for choice in (kernel.ALL, kernel.NONZERO):
            down.choose(choice, 0, 0.0, skipping)
            close(down(x), linear(x), dtype)
        number = max(1, round(0.3 * N))
        down.choose(kernel.TOPK, number, 0.0, skipping)
        close(down(x), linear(Sparsifier(N, "topk", 0.3)(x)), dtype)
        down.choose(kernel.THRESHOLD, 0, 0.5, skipping)
        close(down(x), linear(x.where(x.abs() >= 0.5, 0.0)), dtype)


def test_equal_values_keep_the_number():
    linear = torch.nn.Linear(10, 1, bias=False)
    torch.nn.init.ones_(linear.weight)
    down = kernel.Down(linear, rows=kernel.transposed(linear.weight))
    x = torch.tensor([[1.0, -2, 2, 2, 2, 0, 0, 0, 0, 3]])
    for skipping in (False, True):
        down.choose(kernel.TOPK, 3, 0.0, skipping)
        assert down(x).item() == 3 - 2 + 2  # ties: the first ones
        down.choose(kernel.TOPK, 8, 0.0, skipping)
        assert down(x).item() == 8


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    linear, x = torch.nn.Linear(300, 700), torch.randn(2, 300)
    wanted = kernel.Maps([(linear, 1)])(x)
    down = kernel.Down(linear, rows=kernel.transposed(linear.weight))
    down.choose(kernel.TOPK, 100, 0.0, True)
    summed = down(x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(50):
            assert torch.equal(kernel.Maps([(linear, 1)])(x), wanted)
            assert torch.equal(down(x), summed)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_process_shares_its_own_work():
    linear, x = torch.nn.Linear(300, 700), torch.randn(2, 300)
    maps = kernel.Maps([(linear, 1)])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wanted = maps(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if all(torch.equal(maps(x), wanted) for _ in range(20)) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


def test_calls_side_by_side_do_not_meet():
    linears = [torch.nn.Linear(300, 700) for _ in range(4)]
    maps, x = [kernel.Maps([(each, 1)]) for each in linears], torch.randn(1, 300)
    wanted = [each(x) for each in maps]

    def repeated(number):
        return all(torch.equal(maps[number](x), wanted[number]) for _ in range(200))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(repeated, range(4)))
    finally:
        torch.set_num_threads(before)


# ---- the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("mode", [None, "topk", "threshold", "mask"])
def test_a_prepared_model_writes_the_same(stack, mode, calls):
    model = refined(stack, mode)
    tokens, logits = greedy(model, new=12)
    assert not calls
    choices = prepare(model, rounds=1)
    assert [each.layer for each in choices] == [0, 1, 2]
    assert all(each.path in ("rows", "dense") for each in choices)
    again, scores = greedy(model, new=12)
    assert len(calls) == 3 * 11
    assert torch.equal(again, tokens)
    torch.testing.assert_close(scores, logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["llama biases, head of 8, tied", "mistral", "qwen2"])
def test_every_kind_of_layer_can_be_prepared(kind, calls):
    model = refined("hybrid", "topk", kind=kind)
    wanted = greedy(model)
    prepare(model, rounds=1)
    found = greedy(model)
    assert calls
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "mixer",
    [
        {"mixer": "s4d"},
        {"mixer_settings": {"feature_map": "softmax", "normalize": True, "gate": False}},
        {"mixer_settings": {"rope": False, "conv_size": 1}},
    ],
)
def test_mixers_without_a_kernel_of_their_own_run_between_kernels(mixer, calls):
    model = refined("hybrid", "topk", **mixer)
    wanted = greedy(model)
    prepare(model, rounds=1)
    found = greedy(model)
    assert len(calls) == 3 * 7
    assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("skipping", [False, True])
@pytest.mark.parametrize("mode", ["topk", "threshold"])
def test_both_paths_are_the_same(mode, skipping):
    model = refined("pure", mode)
    wanted = greedy(model)
    prepare(model, rounds=1)
    for layer in model.model.layers:
        layer.quick.worthwhile = 1.0 if skipping else 0.0
    found = greedy(model)
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=2e-4)


def test_several_samples_and_beams(calls):
    model = refined("hybrid", "topk")
    wanted, beams = greedy(model, 3)[0], greedy(model, 1, num_beams=3)[0]
    prepare(model, rounds=1)
    assert torch.equal(greedy(model, 3)[0], wanted)
    assert torch.equal(greedy(model, 1, num_beams=3)[0], beams)
    assert len(calls) == 2 * 3 * 7
    del calls[:]
    greedy(model, 5)
    assert not calls, "many samples are matrix products"


def test_padding_in_front_is_as_before(calls):
    model = refined("hybrid", "threshold")
    tokens = some_tokens(2, 9)
    mask = torch.ones_like(tokens)
    tokens[0, :4], mask[0, :4] = 0, 0
    wanted = model.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
    prepare(model, rounds=1)
    assert torch.equal(model.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False), wanted)
    assert calls


@pytest.mark.parametrize("stack", ["attention", "hybrid"])
def test_bfloat16_agrees_within_its_rounding(stack, calls):
    model = refined(stack, "threshold").bfloat16()
    wanted = greedy(model, new=2)[1]
    prepare(model, rounds=1)
    found = greedy(model, new=2)[1]
    assert calls
    assert (found - wanted).abs().mean() < 0.03 * wanted.abs().mean()


def test_files_and_weights_know_nothing_of_it(tmp_path):
    model = refined("hybrid", "topk")
    names, wanted = list(model.state_dict()), greedy(model)[0]
    model.save_pretrained(tmp_path / "plain")
    prepare(model, rounds=1)
    prepare(model, rounds=1)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "prepared")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "prepared" / name).read_bytes()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.model.layers[0].quick is None
        assert copied.lm_head.quick is None
        assert torch.equal(greedy(copied)[0], wanted)
    assert isinstance(model.model.layers[0].quick, QuickLayer)
    release(model)
    assert model.model.layers[0].quick is None
    assert model.lm_head.quick is None
    assert torch.equal(greedy(model)[0], wanted)


def changed_by_loading(model):
    model.load_state_dict({name: 1.5 * value for name, value in model.state_dict().items() if "down" in name},
                          strict=False)  # fmt: skip


def changed_by_replacement(model):
    for layer in model.model.layers:
        layer.mlp.down_proj.weight = torch.nn.Parameter(1.5 * layer.mlp.down_proj.weight.detach())


def changed_by_an_optimizer(model):
    model(some_tokens(), labels=some_tokens()).loss.backward()
    torch.optim.SGD(model.parameters(), 1e-2).step()


def changed_by_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def changed_by_spikes(model):
    add_spikes(model, some_tokens(), steps=6)


def changed_by_keep(model):
    for layer in model.model.layers:
        layer.mlp.sparsifier.keep = 0.15


@pytest.mark.parametrize("mode", ["topk", "threshold"])
@pytest.mark.parametrize(
    "change",
    [
        changed_by_loading, changed_by_replacement, changed_by_an_optimizer, changed_by_data,
        changed_by_spikes, changed_by_keep,
    ],
)  # fmt: skip
def test_what_is_changed_is_never_stale(change, mode):
    model = refined("hybrid", mode)
    before = greedy(model)[1]
    prepare(model, rounds=1)
    change(model)
    found = greedy(model)[1]
    release(model)
    wanted = greedy(model)[1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
    assert not torch.allclose(wanted, before, atol=1e-2)


def test_a_hook_sees_every_token():
    model = refined("hybrid", "topk")
    prepare(model, rounds=1)
    seen = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[1])
    )
    greedy(model)
    assert seen == [9] + 7 * [1]


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_what_is_asked_for_is_right_and_kernels_run_again(asked, asked_before, calls):
    def states(model):
        cache = model(some_tokens(1, 9)).past_key_values
        with torch.no_grad():
            found = model(some_tokens(1, 1), past_key_values=cache, **{asked: True})
        return found.hidden_states if hidden else found.attentions

    hidden = asked == "output_hidden_states"
    plain, model = refined("hybrid", "topk"), refined("hybrid", "topk")
    for each in (plain, model):
        each.set_attn_implementation("eager")
    wanted, tokens = states(plain), greedy(plain)[0]
    if asked_before:
        states(model)
    assert [each.reason for each in prepare(model, rounds=1)] == ["", "", ""]
    for _ in range(2):
        found = states(model)
        assert len(calls) == (3 if hidden else 1), "what kernels pass by is not asked for"
        del calls[:]
        assert len(found) == len(wanted) == (4 if hidden else 2)
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)
        assert torch.equal(greedy(model)[0], tokens)
        assert len(calls) == 3 * 7, "kernels, though transformers left its hooks"
        del calls[:]


def test_hooks_that_were_there_are_a_reason():
    model = refined("hybrid", "topk")
    hook = model.model.layers[1].mlp.down_proj.register_forward_hook(lambda *args: None)
    model.model.layers[2].register_forward_hook(lambda *args: None)
    found = prepare(model, rounds=1)
    assert [each.path == "plain" for each in found] == [False, True, False], "round a layer they may be"
    assert "hooks" in found[1].reason
    hook.remove()
    assert prepare(model, rounds=1)[1].reason == ""


def test_training_and_gradients_go_the_usual_way(calls):
    model = refined("hybrid", "topk")
    prepare(model, rounds=1)
    model(some_tokens(1, 1), labels=some_tokens(1, 1))
    model(some_tokens(1, 1)).logits.sum().backward()
    assert not calls
    assert model.lm_head.weight.grad is not None


def test_layers_that_kernels_cannot_run_say_why():
    model = convert(teacher(), [1])
    add_spikes(model, some_tokens(), steps=4)
    wanted = greedy(model)[0]
    choices = prepare(model, rounds=1)
    assert {(each.path, each.reason) for each in choices} == {("plain", "it spikes")}
    assert torch.equal(greedy(model)[0], wanted)
    double = refined().double()
    assert "float32 or all bfloat16" in prepare(double, rounds=1)[0].reason
    with pytest.raises(InputError, match="convert it first"):
        prepare(teacher())
    with pytest.raises(InputError, match="rounds"):
        prepare(refined(), rounds=0)


def test_without_a_compiler_nothing_changes(monkeypatch):
    model = refined("hybrid", "topk")
    wanted = greedy(model)

    def fails(*args):
        raise native.BuildError("no C++ compiler found")

    monkeypatch.setattr(kernel, "library", fails)
    assert {each.path for each in prepare(model, rounds=1)} == {"plain"}
    assert torch.equal(greedy(model)[1], wanted[1])


def test_choices_say_what_was_measured():
    model = refined("pure", "topk", [0.1, 0.5, 1.0])
    first, second, third = prepare(model, some_tokens(), rounds=2)
    assert (first.share, second.share, third.share) == pytest.approx((0.1, 0.5, 1.0))
    assert all(each.dense_ms > 0 and each.rows_ms > 0 for each in (first, second, third))
    assert all((each.path == "rows") == (each.rows_ms <= each.dense_ms) for each in (first, second, third))
    assert prepare(refined("pure"), rounds=1)[0].rows_ms is None
