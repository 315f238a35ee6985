"""Scores, policies, budgets, plans on disk, and refine() that carries them out."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from marsnn.errors import FileError, InputError, NonFiniteError
from marsnn.refine import AlignConfig, MarForCausalLM, Plan, RefineConfig, convert, plan, refine
from marsnn.refine.planner import Budget, density
from marsnn.refine.suffix import Nothing, Suffix, replaced
from tests.refine.models import SIZES, some_tokens, teacher, train_one_layer_then_interrupt, watch_training

TOKENS = some_tokens(1, 2000).flatten()
QUICK = RefineConfig(align=AlignConfig(updates=4, length=24, sequences=4, held_out=1), calibration=256)


def cross_entropy(model, tokens):
    logits = model(tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


def test_the_suffix_costs_what_the_whole_model_costs():
    model, tokens = convert(teacher(), [1]), some_tokens(3, 40)
    suffix = Suffix(model, tokens)
    before = cross_entropy(model, tokens)
    assert suffix.nats == pytest.approx(before, rel=1e-5)
    for layer in range(3):
        with replaced(model.model.layers[layer], "self_attn", Nothing()):
            cost = suffix.cost(layer)
            logits = model(tokens).logits
            assert cost.nats == pytest.approx(cross_entropy(model, tokens) - before, rel=1e-3, abs=1e-5)
        old, new = model(tokens).logits.log_softmax(-1), logits.log_softmax(-1)
        assert cost.kl == pytest.approx(((old - new) * old.exp()).sum(-1).mean().item(), rel=1e-3)
    assert abs(suffix.cost(0).kl) < 1e-6, "the model is what it was"


def test_density_of_weights_that_are_known():
    length = 200
    sink = torch.zeros(1, 1, length, length)
    sink[..., 0] = 1.0
    assert density(sink) == {"entropy": 0.0, "sink": 1.0, "far": 0.0}
    itself = torch.eye(length)[None, None]
    assert density(itself) == {"entropy": 0.0, "sink": 0.0, "far": 0.0}
    even = torch.ones(length, length).tril()
    even = (even / even.sum(-1, keepdim=True))[None, None]
    found = density(even)
    assert found["entropy"] == pytest.approx(1.0, rel=1e-5)
    rows = torch.arange(65, length)
    assert found["far"] == pytest.approx(((rows - 65).float() / (rows + 1)).mean().item(), rel=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_density_stays_on_its_device(causal):
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):  # only the first number is missing
        density(torch.empty(1, 2, 200, 200, device="cuda"), causal)


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        (2, "layers", 2), ("2", "layers", 2), ("50%", "layers", 3), ("half", "layers", 3),
        ("ALL", "layers", 6), ("quarter", "layers", 1), ("energy=0.6", "energy", 0.6),
        ("quality=0.05", "quality", 0.05),
    ],
)  # fmt: skip
def test_budgets(given, kind, value):
    found = Budget.parse(given, 6)
    assert (found.kind, found.value) == (kind, value)


@pytest.mark.parametrize(
    "given", ["", "lots", "7 layers", "speed=2", "-1", "1.5", "99", True, "energy=", "nan"]
)
def test_bad_budgets_are_one_line(given):
    with pytest.raises(InputError, match="budget") as caught:
        Budget.parse(given, 6)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["sensitivity", "density", "depth"])
def test_attentions_of_least_cost_go_first(policy):
    found = plan(teacher(), TOKENS, 1, policy=policy)
    costs = [each.scores["cost"] for each in found.layers]
    assert found.ssm_layers == [min(range(3), key=costs.__getitem__)]
    assert all(each.why for each in found.layers)
    for name in ("ablation", "fit_error", "depth", "entropy", "sink", "far"):
        assert all(name in each.scores for each in found.layers)


def test_the_reason_says_what_was_measured():
    for each in plan(teacher(), TOKENS, 1).layers:
        own = each.scores
        assert f"without it {own['ablation']:+.3f} nats (KL {own['ablation_kl']:.3f})" in each.why
        assert f"a fit alone explains {max(0.0, 1 - own['fit_error']):.0%} of its output" in each.why
        assert "recovers" not in each.why, "nobody measured nats behind a fit"


def test_an_attention_that_does_nothing_goes_first():
    model = convert(teacher(), [])
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.mul_(1e-4)
    found = plan(model, TOKENS, 1)
    assert found.ssm_layers == [2]
    assert abs(found.layers[2].scores["ablation"]) < 1e-3


def test_budgets_of_energy_and_quality():
    loose, tight = (plan(teacher(), TOKENS, f"quality={share}").ssm_layers for share in (10, 1e-9))
    assert (loose, tight) == ([0, 1, 2], [])
    assert plan(teacher(), TOKENS, "energy=1").ssm_layers == []
    few = plan(teacher(), TOKENS, "energy=0.8", context=4096).ssm_layers
    assert 0 < len(few) < 3
    with pytest.raises(InputError, match="can't be met"):
        plan(teacher(), TOKENS, "energy=0.01")


def test_by_hand():
    assert plan(teacher(), TOKENS, 0, policy="manual", layers=[2, 0]).ssm_layers == [0, 2]
    with pytest.raises(InputError, match="no layer 7"):
        plan(teacher(), TOKENS, 0, policy="manual", layers=[7])
    with pytest.raises(InputError, match="manual"):
        plan(teacher(), TOKENS, 1, layers=[1])


def test_the_file_is_the_plan_and_may_be_edited(tmp_path):
    made = plan(
        teacher(), TOKENS, 1, sparsity={"mode": "topk", "keep": 0.5}, spikes={"settings": {"steps": 4}}
    )
    path = tmp_path / "plan.json"
    made.save(path)
    assert Plan.load(path) == made
    raw = json.loads(path.read_text())
    raw["layers"][0]["choice"], raw["layers"][1]["choice"] = "ssm", "attention"
    raw["layers"][2]["choice"] = "ssm"
    path.write_text(json.dumps(raw))
    edited = Plan.load(path)
    model = refine(teacher(), edited, RefineConfig(tokens=TOKENS, align=QUICK.align, calibration=256))
    assert model.config.ssm_layers == [0, 2]
    assert model.config.spikes["settings"] == {"steps": 4}
    assert sum(model.config.sparsity["keep"]) / 3 == pytest.approx(0.5, abs=0.03)
    assert set(model.refinement) == {"plan", "seconds", "align", "sparsity", "spikes"}
    json.dumps(model.refinement, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda raw: raw.update(format="other"), FileError, "not a plan"),
        (lambda raw: raw.pop("policy"), FileError, "missing or unknown"),
        (lambda raw: raw.update(colour="red"), FileError, "missing or unknown"),
        (lambda raw: raw["layers"][1].update(choice="mamba"), InputError, "must be"),
        (lambda raw: raw["layers"].pop(0), InputError, "0, 1, 2"),
        (lambda raw: raw.update(sparsity={"keep": 0}), InputError, "keep"),
        (lambda raw: raw.update(spikes={"sites": ["ears"]}), InputError, "ears"),
        (lambda raw: raw.update(spikes={"sites": "ffn_in"}), InputError, "list of names"),
        (lambda raw: raw.update(spikes={"neuron": "Foo"}), InputError, "spikes: no neuron named 'Foo'"),
        (lambda raw: raw.update(spikes={"settings": {"tau": -1}}), InputError, "spikes: tau must be"),
        (lambda raw: raw.update(spikes={"settings": {"fire_at": 0}}), InputError, "spikes: fire_at must be"),
        (lambda raw: raw.update(spikes={"settings": {"tao": 1}}), InputError, "no setting 'tao'"),
        (lambda raw: raw.update(spikes={"settings": {"threshold": "high"}}), InputError, "spikes: "),
        (lambda raw: raw.update(spikes={"settings": [4]}), InputError, "name: value"),
    ],
)
def test_damaged_plans_are_one_line(tmp_path, change, error, said):
    path = tmp_path / "plan.json"
    plan(teacher(), TOKENS, 1).save(path)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(error, match=said) as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)


def test_a_plan_of_another_model_is_refused():
    made = plan(teacher(), TOKENS, 1)
    with pytest.raises(InputError, match="another model"):
        refine(teacher("qwen2 with windows"), Plan(**{**vars(made), "model": {**made.model, "layers": 4}}))
    other = convert(teacher(), [])
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.1)
    with pytest.raises(InputError, match="embeddings"):
        refine(other, made)


def test_a_plan_fits_its_model_in_every_dtype(tmp_path):
    convert(teacher(), []).save_pretrained(tmp_path)
    models = [
        MarForCausalLM.from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    for made_in, other in (models, models[::-1]):
        plan(made_in, TOKENS, 1).check(other)
    with torch.no_grad():
        models[1].model.embed_tokens.weight.mul_(1.1)
    with pytest.raises(InputError, match="embeddings"):
        plan(models[0], TOKENS, 1).check(models[1])


def test_refine_uses_the_tokens_of_the_plan_and_says_where_there_are_none(tmp_path):
    made = plan(teacher(), TOKENS, 1)
    assert refine(teacher(), made, QUICK).config.ssm_layers == made.ssm_layers
    made.save(tmp_path / "plan.json")
    with pytest.raises(InputError, match="tokens"):
        refine(teacher(), Plan.load(tmp_path / "plan.json"), QUICK)


def test_the_other_mixer_can_be_planned_for_a_model_of_ours():
    made = plan(convert(teacher(), []), TOKENS, 1, mixer="s4d")
    model = refine(convert(teacher(), []), made, QUICK)
    assert (model.config.mixer, model.config.ssm_layers) == ("s4d", made.ssm_layers)
    assert "state_size" in model.config.mixer_settings


def test_refining_goes_on_from_a_refined_model():
    first = refine(teacher(), plan(teacher(), TOKENS, 0, policy="manual", layers=[0]), QUICK)
    again = plan(first, TOKENS, 1)
    assert again.layers[0].why == "is one already"
    second = refine(first, again, QUICK)
    assert len(second.config.ssm_layers) == 2
    assert torch.equal(second.mixer(0).o_proj.weight, first.mixer(0).o_proj.weight)


def test_an_interrupted_refine_goes_on(tmp_path, monkeypatch):
    made = plan(teacher(), TOKENS, 2)
    settings = RefineConfig(align=QUICK.align, folder=tmp_path)
    whole = refine(teacher(), made, QUICK)
    trained = train_one_layer_then_interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        refine(teacher(), made, settings)
    again = watch_training(monkeypatch)
    resumed = refine(teacher(), made, settings)
    assert sorted(trained + again) == made.ssm_layers
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_models_and_tokens():
    broken = convert(teacher(), [])
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="up_proj"):
        plan(broken, TOKENS, 1)
    with pytest.raises(InputError, match="too few"):
        plan(teacher(), TOKENS[:30], 1)
    with pytest.raises(InputError, match="0 to 60"):
        plan(teacher(), TOKENS + SIZES["vocab_size"], 1)
    with pytest.raises(InputError, match="policy"):
        plan(teacher(), TOKENS, 1, policy="luck")
