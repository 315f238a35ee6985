"""Unit: refine, evaluate, generate and energy --shape as a user types them; one-line errors, exit codes."""

import functools
import json

import pytest
import torch

from marsnn.hardware import load
from marsnn.refine import add_spikes, convert
from marsnn.refine.estimate import estimate, load_shape
from tests.refine import folders

QUICK = (
    "--updates", 4, "--length", 64, "--sequences", 6, "--tokens", 130, "--context", 64, "--tasks", 1,
    "--contexts", "32,128",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folders.write_model(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return folders.write_text(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def refined(source, text, tmp_path_factory):
    from marsnn.cli import main

    out = tmp_path_factory.mktemp("refined") / "out"
    with pytest.raises(SystemExit) as stop:
        main.run([
            str(part)
            for part in ("refine", source, "-o", out, "--budget", 2, "--text", text, "--steps", 4, *QUICK)
        ])  # fmt: skip
    assert stop.value.code == 0
    return out


def test_refine_ends_with_a_report_a_folder_and_the_next_step(call, source, text, tmp_path):
    out = tmp_path / "out"
    code, told, err = call("refine", source, "-o", out, "--budget", "half", "--text", text, *QUICK)
    assert code == 0
    assert "quality at a context of 64" in told
    assert f"next:  marsnn generate {out}" in told
    for stage in ("planning half", "stage 1", "stage 2", "stage 3", "evaluating", "about"):
        assert stage in err
    code, _, err = call("refine", source, "-o", out, "--budget", "half", "--text", text, *QUICK)
    assert code == 2
    assert "holds a model already" in err


def test_a_plan_alone_then_by_hand(call, source, text, tmp_path):
    out = tmp_path / "out"
    code, told, _ = call("refine", source, "-o", out, "--budget", 1, "--text", text, "--plan-only", *QUICK)
    assert code == 0
    assert "cost 1 of 4" in told
    assert f"--plan {out / 'plan.json'}" in told
    raw = json.loads((out / "plan.json").read_text())
    raw["layers"][3]["choice"] = "ssm"
    (out / "plan.json").write_text(json.dumps(raw))
    code, told, _ = call(
        "refine", source, "-o", out, "--plan", out / "plan.json", "--text", text, "--no-evaluate", "--json",
        *QUICK,
    )  # fmt: skip
    assert code == 0
    assert json.loads(told)["plan"]["layers"][3]["choice"] == "ssm"


@pytest.mark.parametrize(
    "options",
    [
        ("--mixer", "s4d", "--sparsity", "threshold", "--neuron", "LIF"),
        ("--policy", "manual", "--layers", "0,3", "--keep", 1, "--no-spikes"),
        ("--policy", "density", "--sparsity", "mask", "--sites", "ffn_in,ffn_out", "--per-token"),
        ("--budget", "energy=0.7", "--context", 256),
        ("--budget", 2, "--tau", 1, "--fire-at", 1, "--dtype", "bfloat16"),
    ],
)
def test_other_settings(call, source, text, tmp_path, options):
    code, told, err = call(
        "refine", source, "-o", tmp_path / "out", "--text", text, *QUICK, "--no-evaluate", "--json", *options
    )
    assert code == 0, err
    assert json.loads(told)["plan"]["layers"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--keep", 0), "keep is the share"),
        (("--keep", "nan"), "keep is the share"),
        (("--budget", "lots"), "can't read the budget"),
        (("--budget", 9), "the model has 4"),
        (("--policy", "luck"), "luck"),
        (("--policy", "manual"), "manual"),
        (("--layers", "1,x"), "whole numbers"),
        (("--policy", "manual", "--layers", "7"), "no layer 7"),
        (("--neuron", "Neuron9"), "Neuron9"),
        (("--sites", "ears"), "ears"),
        (("--text", "nowhere"), "no text"),
        (("--plan", "nowhere.json"), "nowhere.json"),
        (("--steps", 0), "steps"),
        (("--learning-rate", 0), "learning_rate"),
        (("--budget", "energy=0.7", "--tau", 1), "no measured rates"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(call, source, text, tmp_path, options, said):
    out = tmp_path / "out"
    code, told, err = call("refine", source, "-o", out, "--text", text, *QUICK, *options)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2
    assert told == ""
    assert len(lines) == 1
    assert said in lines[0]
    assert not (out / "config.json").exists()


def test_evaluate_against_the_model_it_came_from(call, source, refined, text, tmp_path):
    code, told, _ = call(
        "evaluate", refined, "--against", source, "--text", text, "--out", tmp_path / "report",
        "--tokens", 130, "--context", 64, "--tasks", 1, "--contexts", "32,128", "--json",
        "--positions", "50", "--windows", 2,
    )  # fmt: skip
    assert code == 0
    assert json.loads(told)["settings"]["position_windows"] == {"50": {str(text): 2}}
    rows = json.loads(told)["rows"]
    assert list(rows["2/4 SSM"]["positions"]["50"][str(text)]) == ["50"]
    assert list(rows) == [
        "dense",
        "2/4 zeroed",
        "2/4 SSM",
        "2/4 SSM + FFN 0.4",
        "2/4 SSM + FFN 0.4 + ATMN T=4",
    ]
    assert (tmp_path / "report" / "report.html").read_text().count("<svg") == 5
    code, told, _ = call("evaluate", source, "--text", text, "--tokens", 65, "--context", 64, "--tasks", 0)
    assert code == 0
    assert "dense" in told


def test_evaluate_measures_speed_and_the_int8_model(call, source, refined, text):
    code, told, err = call(
        "evaluate", refined, "--against", source, "--text", text, "--tokens", 65, "--context", 64,
        "--tasks", 0, "--contexts", "32,128", "--speed", "--rounds", 2, "--json",
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(told)["rows"]
    assert "dense, dynamic int8" in rows
    assert "speed" not in rows.pop("2/4 zeroed")
    for row in rows.values():
        assert set(row["speed"]) == {"32", "128"}
        assert row["speed"]["32"]["decode"]["median"] > 0
    assert rows["dense"]["speed"]["32"]["decode_ratio"]["median"] == 1


def test_evaluate_runs_a_local_task_of_the_harness(call, refined, text, tmp_path, monkeypatch):
    from lm_eval import tasks

    # its own are thousands of files, which take seconds to read; bad input below reads them
    alone = functools.partial(tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", alone)
    questions = [
        {"question": "the cat sat on the", "choices": ["mat", "sky"], "answer": 0},
        {"question": "the dog ran to the", "choices": ["cat", "sun"], "answer": 0},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, questions)) + "\n")
    (tmp_path / "task.yaml").write_text(
        "task: two_questions\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {data}\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    arguments = ("evaluate", refined, "--text", text, "--tokens", 65, "--context", 64, "--tasks", 0, "--json")
    code, told, err = call(*arguments, "--lm-eval", "two_questions", "--task-folder", tmp_path)
    assert code == 0, err
    for row in json.loads(told)["rows"].values():
        assert set(row["lm_eval"]["two_questions"]) >= {"acc"}
    accs = [row["lm_eval"]["two_questions"]["acc"] for row in json.loads(told)["rows"].values()]
    assert accs[0] == _right(refined, questions)
    code, _, err = call(*arguments, "--lm-eval", "three_questions", "--task-folder", tmp_path)
    assert code == 2
    assert "three_questions" in err


def _right(folder, questions):
    """Share of questions whose answer the first row, attentions left out, finds likelier."""
    from marsnn.refine.job import load_refined
    from marsnn.refine.stages import stages

    right = 0
    with next(iter(stages(load_refined(folder)).values())).shown() as model:
        for each in questions:
            scores = []
            for choice in each["choices"]:
                before, after = (
                    folders.tokenizer()(part).input_ids for part in (each["question"], f" {choice}")
                )
                with torch.no_grad():
                    logs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
                scores.append(sum(logs[len(before) + i - 1, token].item() for i, token in enumerate(after)))
            right += scores.index(max(scores)) == each["answer"]
    return right / len(questions)


def test_generate_continues_by_the_model_and_its_cache(call, refined):
    from transformers import AutoModelForCausalLM

    import marsnn.refine  # noqa: F401

    code, told, err = call("generate", refined, "the cat", "--max-new-tokens", 9, "--json")
    assert code == 0, err
    found = json.loads(told)
    model = AutoModelForCausalLM.from_pretrained(refined)
    ids = folders.tokenizer()("the cat", return_tensors="pt").input_ids
    plain = model.generate(ids, max_new_tokens=9, do_sample=False, use_cache=False)
    assert found["text"] == folders.tokenizer().decode(plain[0], skip_special_tokens=True)
    assert found["tokens"] == 9
    code, told, err = call("generate", refined, "the cat", "--max-new-tokens", 5, "--plain")
    assert code == 0
    assert told.startswith("the cat")
    assert "ms a token" in err


def test_a_layer_is_exported_and_its_bundle_verifies(call, refined, source, text, tmp_path):
    out = tmp_path / "bundle"
    arguments = ("-i", text, "--samples", 12, "--out", out)
    code, told, err = call("export", refined, "--layer", 2, *arguments)
    assert code == 0, err
    assert "12 golden tokens" in told
    code, told, _ = call("verify", out, "--simulator", "integer")
    assert code == 0
    assert "0 mismatches of" in told
    for folder, layer, said in ((refined, 9, "no layer 9"), (source, 0, "not a refined model")):
        code, _, err = call("export", folder, "--layer", layer, *arguments)
        assert code == 2
        assert said in err


@pytest.mark.parametrize("settings", [{}, {"gate": False}])
def test_a_layer_with_an_s4d_mixer_is_exported_from_its_folder(call, text, tmp_path, settings):
    made = convert(folders.model(), [2], mixer="s4d", mixer_settings=settings)
    add_spikes(made, folders.tokenizer()(folders.TEXT[:200], return_tensors="pt").input_ids, steps=4)
    folder, out = tmp_path / "refined", tmp_path / "bundle"
    made.save_pretrained(folder)
    folders.tokenizer().save_pretrained(folder)
    code, _, err = call("export", folder, "--layer", 2, "-i", text, "--samples", 12, "--out", out)
    assert code == 0, err
    stages = {stage.name: stage.kind for stage in load(out).graph.stages}
    assert stages["core"] == "s4d"
    assert stages.get("core.gate") == (None if settings else "gate")
    code, told, _ = call("verify", out, "--simulator", "integer")
    assert code == 0
    assert "0 mismatches of" in told


def test_generate_samples_by_its_seed(call, refined):
    def drawn(seed):
        options = ("--max-new-tokens", 8, "--temperature", 2, "--seed", seed)
        return call("generate", refined, "the cat", *options)[1]

    assert drawn(1) == drawn(1)
    assert len({drawn(1), drawn(2), drawn(3)}) > 1


def test_generate_within_a_latency(call, refined, source):
    code, told, err = call(
        "generate", refined, "the cat", "--max-new-tokens", 9, "--latency-ms", 1000, "--json"
    )
    assert code == 0, err
    assert json.loads(told)["latency"]["tokens"] >= 8
    code, _, err = call("generate", source, "the cat", "--latency-ms", 10)
    assert code == 2
    assert "sparse" in err
    code, _, err = call("generate", refined, "the cat", "--latency-ms", 0)
    assert code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "REFINED", ""), "no tokens"),
        (("generate", "REFINED", "the cat", "--max-new-tokens", 300), "beyond"),
        (("generate", "REFINED", "the cat", "--chat"), "chat template"),
        (("generate", "nowhere", "the cat"), "not a model's folder"),
        (("evaluate", "nowhere"), "not a model's folder"),
        (("evaluate", "REFINED", "--context", 64, "--text", "nowhere"), "no text"),
        (("evaluate", "REFINED", "--context", 999), "beyond"),
        (("evaluate", "REFINED", "--contexts", "a"), "whole numbers"),
        (("evaluate", "REFINED", "--positions", "9000000"), "a window takes 9,000,001"),
        (("energy", "--shape", "nowhere"), "no such file"),
        (("energy", "--shape", "llama-7b", "--ssm", 99), "the model has 32"),
        (("energy", "--shape", "llama-7b", "--ssm", "quality=0.1"), "how many layers"),
        (("energy", "--shape", "llama-7b", "--keep", 0), "keep"),
        (("energy", "--shape", "llama-7b", "--steps", 9), "no measured rates"),
        (("energy",), "--shape"),
        (("energy", "--shape", "llama-7b", "--rate", -2), "0 to 1"),
        (("energy", "--shape", "llama-7b", "--rate", "nan"), "0 to 1"),
        (("energy", "--shape", "llama-7b", "--contexts", "-5"), "context"),
        (("energy", "--shape", "llama-7b", "--contexts", ","), "no contexts"),
        (("evaluate", "REFINED", "--context", 64, "--speed", "--contexts", "999"), "no context"),
        (("evaluate", "REFINED", "--lm-eval", "nothing-like-it"), "knows no task"),
    ],
)
def test_other_bad_input_is_one_line(call, refined, arguments, said):
    code, told, err = call(*(refined if part == "REFINED" else part for part in arguments))
    assert code == 2
    assert told == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


# ---- energy --shape -------------------------------------------------------------------------------------


def test_a_7b_model_is_counted_from_its_shape(call, tmp_path):
    code, told, _ = call("energy", "--shape", "llama-7b", "--contexts", "4096", "--json")
    assert code == 0
    rows = json.loads(told)["rows"]
    assert rows["dense"]["parameters"] == 6_738_415_616  # as published
    D, F, V, L = 4096, 11008, 32000, 32
    macs = L * (4 * D * D + 3 * D * F + 2 * D * 4096) + D * V
    assert rows["dense"]["contexts"]["4096"]["mac"] == macs
    assert rows["dense"]["contexts"]["4096"]["45nm-fp32 nJ"] == pytest.approx(macs * 4.6 / 1e3)
    code, told, _ = call("energy", "--shape", "llama-13b")
    assert code == 0
    assert "13.02 B" in told
    assert "ESTIMATED" in told
    path = tmp_path / "config.json"
    load_shape("llama-7b").to_json_file(path)
    code, again, _ = call("energy", "--shape", path, "--contexts", "4096", "--json")
    assert code == 0
    assert json.loads(again)["rows"] == rows


def test_a_shape_agrees_with_its_model():
    shape = folders.model().config
    rows = estimate(shape, "2", 0.5, 4, contexts=(32,))["rows"]
    assert rows["dense"]["parameters"] == sum(each.numel() for each in folders.model().parameters())
    names = list(rows)
    assert names == ["dense", "2 SSM", "2 SSM + FFN 0.5", "2 SSM + FFN 0.5 + ATMN T=4"]
    spiking = rows[names[3]]["contexts"]["32"]
    assert spiking["ac"] > 0
    assert rows[names[1]]["contexts"]["32"]["ac"] == 0


def test_keeping_less_costs_less_with_and_without_spikes():
    for row in (2, 3):
        prices = [
            list(estimate(load_shape("llama-7b"), "half", keep)["rows"].values())[row]["contexts"]["1024"][
                "45nm-fp32 nJ"
            ]
            for keep in (0.8, 0.4, 0.1)
        ]
        assert prices[0] > prices[1] > prices[2]
