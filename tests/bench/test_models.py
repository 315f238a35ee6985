"""Unit: rows as they are made once and measured; golden: energy by hand, what the page says; no timing."""

import importlib
import inspect
import json
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

pytest.importorskip("peft")

from marsnn.bench import models as benchmark
from marsnn.bench.models import ModelsConfig, as_run_nj
from marsnn.cli.bench import models as verb
from marsnn.errors import FileError, InputError, MissingDependencyError
from marsnn.refine import MarForCausalLM, convert
from marsnn.refine.config import MarConfig, config_from
from marsnn.refine.job import load_refined
from marsnn.refine.shapes import priced
from tests.refine.folders import model as dense_model
from tests.refine.folders import write_model, write_text

ROOT = Path(__file__).parents[2]

NAMES = [
    "dense", "LoRA-pruned", "dynamic int8", "MAR", "MAR + ATMN", "MAR + int8 weights", "MAR + LoRA",
]  # fmt: skip
LEARN = ["LoRA-pruned", "MAR", "MAR + ATMN", "MAR + LoRA"]

TINY = {
    "updates": 3, "length": 16, "batch": 2, "lora": 2, "align_updates": 2, "align_length": 32,
    "align_sequences": 2, "tokens": 64, "context": 32, "contexts": (8, 24), "rounds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of a model, a text, settings, where the rows are, and what was measured."""
    root = tmp_path_factory.mktemp("models")
    text = str(write_text(root))
    config = ModelsConfig(**TINY, text=text, texts=(text,))
    folder = write_model(root / "dense")
    return root, folder, config, benchmark.run(folder, root / "work", config)


def row(made, name):
    return next(each for each in made[3]["rows"] if each["name"] == name)


def test_every_row_is_there_and_is_what_it_says(made):
    root, _, config, result = made
    json.dumps(result, allow_nan=False)
    assert [each["name"] for each in result["rows"]] == NAMES
    assert all(list(each["cost"]) == ["8", "24"] for each in result["rows"])
    plans = {name: row(made, name)["plan"] for name in NAMES}
    for name in ("dense", "LoRA-pruned", "dynamic int8"):
        assert (plans[name]["ssm_layers"], plans[name]["sparsity"], plans[name]["spikes"]) == ([], None, None)
    assert len(plans["MAR"]["ssm_layers"]) == 2
    for name in ("MAR + int8 weights", "MAR + LoRA"):
        assert plans[name] == plans["MAR"]
    assert plans["MAR"]["spikes"] is None
    assert {**plans["MAR + ATMN"], "spikes": None} == plans["MAR"]
    assert plans["MAR + ATMN"]["spikes"]["steps"] == config.steps
    assert plans["MAR"]["sparsity"]["mean_keep"] == pytest.approx(config.keep)
    assert row(made, "MAR + ATMN")["rates"]
    assert not row(made, "MAR")["rates"]
    pruned = load_refined(root / "work" / "pruned")
    assert pruned.config.intermediate_size < 40
    assert row(made, "LoRA-pruned")["parameters"] == sum(p.numel() for p in pruned.parameters())
    assert row(made, "dynamic int8")["parameters"] == row(made, "dense")["parameters"]
    assert row(made, "MAR + int8 weights")["parameters"] == row(made, "MAR")["parameters"]
    assert row(made, "LoRA-pruned")["parameters"] < row(made, "dense")["parameters"]
    assert row(made, "LoRA-pruned")["learnt"]["kept"] == pytest.approx(config.pruned, abs=0.02)


def test_rows_that_learn_get_the_same_tokens_and_do_learn(made):
    root, folder, config, _ = made
    for name in LEARN:
        learnt = row(made, name)["learnt"]
        assert learnt["tokens"] == 3 * 2 * 16
        assert learnt["seconds"] > 0
        assert learnt["before"]["seconds"] > 0
    for name in ("dense", "dynamic int8"):
        assert row(made, name)["learnt"] is None
    assert row(made, "MAR + int8 weights")["learnt"] == row(made, "MAR")["learnt"]
    inside = [root / "work" / each for each in ("pruned", "mar", "mar-atmn", "mar-lora")]
    told = [json.loads((each / "refinement.json").read_text())["distillation"] for each in inside]
    assert len({each["text"] for each in told}) == 1  # the same rows, in an order that the seed decides
    assert [each["settings"]["lora"] for each in told] == [2, 0, 0, 2]
    assert [each["settings"]["features"] for each in told] == ["none", "pre", "pre", "pre"]
    start = benchmark._refined(root / "work" / "refined", spikes=False)
    for each in ("mar", "mar-lora"):
        now = load_refined(root / "work" / each)
        assert set(now.state_dict()) == set(start.state_dict())
        assert not torch.equal(
            now.model.layers[0].mlp.up_proj.weight, start.model.layers[0].mlp.up_proj.weight
        )
    # LoRA leaves an update of its rank
    now = load_refined(root / "work" / "mar-lora").model.layers[0].mlp.up_proj.weight
    change = torch.linalg.matrix_rank(now - start.model.layers[0].mlp.up_proj.weight, rtol=1e-3)
    assert change == config.lora
    pruned = benchmark._pruned(folder, _tokenizer(folder), config)
    after = load_refined(root / "work" / "pruned")
    assert torch.equal(pruned.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert not torch.equal(
        pruned.model.layers[0].mlp.up_proj.weight, after.model.layers[0].mlp.up_proj.weight
    )


def _tokenizer(folder):
    from marsnn.refine.loading import load_tokenizer

    return load_tokenizer(folder)


def test_quality_is_compared_with_the_dense_model(made):
    (text,) = made[2].texts
    assert "agreement" not in row(made, "dense")["texts"][text]
    for name in NAMES[1:]:
        found = row(made, name)["texts"][text]
        assert 0 <= found["agreement"] <= 1
        assert found["bits_per_byte"] > 0
    close, far = (row(made, name)["texts"][text]["kl"] for name in ("dynamic int8", "MAR + ATMN"))
    assert close < far


# ---- energy ---------------------------------------------------------------------------------------------


def test_energy_of_a_row_is_in_the_dense_models(made):
    config = config_from(dense_model().config)
    for context in (8, 24):
        dense = priced(config, context)
        for name in NAMES:
            cost = row(made, name)["cost"][str(context)]
            for table in ("45nm-fp32", "45nm-int8"):
                wanted = cost[f"{table} nJ"] / dense[f"{table} nJ"]
                assert cost[f"{table} ratio"] == pytest.approx(wanted)
            if name in ("dense", "LoRA-pruned", "MAR", "MAR + ATMN", "MAR + LoRA"):  # float32 throughout
                assert cost["as run ratio"] == pytest.approx(cost["45nm-fp32 ratio"])
        assert row(made, "dense")["cost"][str(context)]["45nm-fp32 ratio"] == 1
        integers = as_run_nj(config, context, int8="dynamic") / as_run_nj(config, context)
        assert row(made, "dynamic int8")["cost"][str(context)]["as run ratio"] == pytest.approx(integers)
        own, stored = (row(made, name)["cost"][str(context)] for name in ("MAR", "MAR + int8 weights"))
        assert stored["45nm-fp32 ratio"] == own["45nm-fp32 ratio"] < stored["as run ratio"]
        small = load_refined(made[0] / "work" / "pruned").config
        pruned = row(made, "LoRA-pruned")["cost"][str(context)]
        assert pruned["45nm-fp32 nJ"] == pytest.approx(priced(small, context)["45nm-fp32 nJ"])
        assert pruned["45nm-fp32 ratio"] < 1
        spiking = row(made, "MAR + ATMN")["cost"][str(context)]
        assert spiking["45nm-fp32 ratio"] < spiking["45nm-int8 ratio"]


def test_energy_as_it_runs_by_hand():
    """One layer, D 8, F 10, 2 heads of 4 over 1, vocabulary 20, context 3.

    Projections: q 64, k and v 32 each, o 64, net 240, head 160: 592 MACs; attention 2 x 2 x 4 x 3 = 48. They
    put out 8 + 4 + 4 + 8 + 10 + 10 + 8 + 20 = 72 values from 8 + 8 + 8 + 8 + 8 + 8 + 10 + 8 = 66.
    """
    config = MarConfig(
        hidden_size=8, intermediate_size=10, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=20,
    )  # fmt: skip
    assert as_run_nj(config, 3) == pytest.approx(640 * 4.6e-3)
    assert as_run_nj(config, 3, int8="dynamic") == pytest.approx(
        592 * 0.3e-3 + 48 * 4.6e-3 + (72 + 66) * 3.7e-3
    )
    assert as_run_nj(config, 3, int8="weights") == pytest.approx(640 * 4.6e-3 + 72 * 3.7e-3)


def test_bytes_follow_the_weights(made):
    size = {name: row(made, name)["cost"]["8"]["token_mb"] for name in NAMES}
    assert size["dynamic int8"] < 0.5 * size["dense"]
    assert size["MAR + int8 weights"] < 0.6 * size["MAR"]
    assert size["LoRA-pruned"] < size["dense"]


# ---- again ----------------------------------------------------------------------------------------------


def test_what_is_finished_is_not_made_again(made, monkeypatch):
    root, folder, config, result = made
    work = root / "again"
    shutil.copytree(root / "work", work)
    (work / "mar-lora" / "refinement.json").unlink()
    learn, learnt = benchmark.learn, []

    def watched(student, teacher, tokenizer, learning, out, *rest, **more):
        learnt.append(out.name)
        return learn(student, teacher, tokenizer, learning, out, *rest, **more)

    monkeypatch.setattr(benchmark, "learn", watched)
    monkeypatch.setattr(benchmark, "run_job", None)
    again = benchmark.run(folder, work, ModelsConfig(**{**vars(config), "contexts": (8,)}))
    assert learnt == ["mar-lora"]
    assert [each["texts"] for each in again["rows"]] == [each["texts"] for each in result["rows"]]
    assert list(again["rows"][0]["cost"]) == ["8"]


def test_a_resumed_row_tells_the_seconds_of_all_updates(made):
    root, _, config, _ = made
    folder = root / "resumed"
    folder.mkdir(exist_ok=True)
    (folder / "began.json").write_text('{"update": 2}')
    model = MarForCausalLM.from_pretrained(root / "work" / "mar")
    model.refinement = {"distillation": {"tokens": 96, "course": [{"loss": 1}, {"train_runtime": 4.0}]}}
    assert benchmark._took(model, folder, config)["seconds"] == pytest.approx(12.0)  # 1 of 3 took 4


def test_other_rows_and_strange_folders_are_refused(made, tmp_path):
    root, folder, config, _ = made
    with pytest.raises(FileError, match=r"other settings: updates was 3, now 4; choose another --work"):
        benchmark.run(folder, root / "work", ModelsConfig(**{**vars(config), "updates": 4}))
    other = write_model(tmp_path / "other", seed=1)
    with pytest.raises(FileError, match="other settings: model was"):
        benchmark.run(other, root / "work", config)
    with pytest.raises(FileError, match="no such benchmark left there"):
        benchmark.run(folder, folder, config)
    convert(dense_model(), [1]).save_pretrained(other)
    with pytest.raises(InputError, match="has state space layers already"):
        benchmark.run(other, tmp_path / "w", config)
    with pytest.raises(InputError, match="no text 'none'"):
        benchmark.run(folder, tmp_path / "w", ModelsConfig(**{**vars(config), "texts": ("none",)}))
    with pytest.raises(InputError, match="can't make up"):
        benchmark.run(folder, tmp_path / "w", ModelsConfig(**{**vars(config), "pruned": 0.01}))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"keep": 0}, {"pruned": 0}, {"pruned": 2}, {"lora": 0}, {"updates": 0}, {"steps": 0},
        {"contexts": ()}, {"contexts": (0,)}, {"texts": ()}, {"features": "some"}, {"learning_rate": 0},
        {"lora_learning_rate": -1}, {"rounds": 0}, {"align_updates": 0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError):
        ModelsConfig(**settings)


def test_without_peft_nothing_begins(made, monkeypatch):
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="peft"):
        benchmark.run(made[1], made[0] / "none", made[2])
    assert not (made[0] / "none").exists()


# ---- the verb, the page ---------------------------------------------------------------------------------


def test_the_verb_goes_on_with_the_rows_that_are_there(made, call, tmp_path):
    root, folder, config, result = made
    own = ["bench", "models", "--model", folder, "--work", root / "work", "--save", tmp_path / "m.json"]
    for name, value in {**TINY, "contexts": "8,24"}.items():
        own += [f"--{name.replace('_', '-')}", value]
    code, out, err = call(*own, "--text", config.text, "--held-out", config.text)
    assert code == 0, err
    found = json.loads((tmp_path / "m.json").read_text())
    assert [each["texts"] for each in found["rows"]] == [each["texts"] for each in result["rows"]]
    for name in NAMES:
        assert out.count(f"| {name} |") == 2
    assert "estimated" in out
    code, _, err = call(*own, "--text", config.text, "--steps", "5")
    assert code == 2
    assert err.endswith("steps was 4, now 5; choose another --work\n")


def test_options_are_the_settings():
    options = {name: each.default for name, each in inspect.signature(verb).parameters.items()}
    told = dict(zip(options, (each.__metadata__[0].help for each in hints(verb)), strict=True))
    for each in fields(ModelsConfig):
        if each.name == "texts":
            assert options["held_out"] is None
            continue
        usual = ",".join(map(str, each.default)) if each.name == "contexts" else each.default
        assert options[each.name] == usual
        assert told[each.name].startswith(each.metadata["help"][:12]) or each.name == "seed"


def hints(function):
    """Annotations of the parameters, in order."""
    found = get_type_hints(function, include_extras=True)
    return [found[name] for name in inspect.signature(function).parameters]


@pytest.fixture
def make_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield importlib.import_module("make_results")
    sys.modules.pop("make_results")


def test_the_page_holds_what_the_kept_results_say(make_results):
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert text.startswith("# Results\n")
    assert make_results.page(text) == text, "run  python docs/make_results.py"
    for file in make_results.results():
        assert f"`{file}`" in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_the_section_is_there_when_a_result_is(make_results, made):
    empty = "# Results\n\n<!-- models -->\n<!-- end -->\n"
    assert make_results.page(empty, {}) == empty
    result = json.loads(json.dumps(made[3]))
    for each in result["rows"]:  # weights are random: nothing is right
        each["texts"][made[2].text]["accuracy"] = 0.5
    full = make_results.page(empty, {"models.json": result})
    assert full.count("## Dense, pruned, quantized, refined") == 1
    assert make_results.page(full, {"models.json": result}) == full
    assert make_results.page(full, {}) == empty
    text = made[2].text
    assert (
        "    marsnn bench models --model dense --work work --lora 2 "
        f"--text {text} --updates 3 --length 16 --batch 2 --align-updates 2 --align-length 32 "
        f"--align-sequences 2 --held-out {text} --tokens 64 --context 32 --contexts 8,24 --rounds 1 "
        "--save benchmarks/models.json\n"
    ) in full
    assert benchmark.markdown(result) in full


def test_directions_are_told_as_they_are(make_results):
    def one(name, right, energy, speed):
        cost = {"as run ratio": energy, "decode_ratio": {"median": speed}}
        return {"name": name, "texts": {"a": {"accuracy": right}}, "cost": {"64": cost}}

    rows = [
        one("dense", 0.5, 1.0, 1.0), one("LoRA-pruned", 0.45, 0.8, 1.2), one("dynamic int8", 0.3, 0.1, 2.0),
        one("MAR", 0.4, 0.7, 1.5), one("MAR + ATMN", 0.55, 0.4, 0.6),
    ]  # fmt: skip
    told = make_results.beside({"rows": rows})
    assert (
        "| MAR-13B + ATMN | above dense | 0.48 | 2.1x | MAR + ATMN | 110.0% of dense, +5.0 points | 0.40 |"
        in told
    )
    assert (
        "there: MAR + ATMN, MAR, dynamic int8, LoRA-pruned; here: dynamic int8, MAR + ATMN, MAR, LoRA" in told
    )
    assert told.endswith(
        "Other directions than there: MAR + ATMN decodes slower than dense; MAR scores below LoRA-pruned."
    )
