"""Round trip: a refinement from folder to folder, interrupted and resumed; what is refused, in one line."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from marsnn.errors import FileError, InputError, NonFiniteError
from marsnn.refine import AlignConfig, convert
from marsnn.refine.evaluation import EvaluationConfig
from marsnn.refine.job import Job, load_refined, plan_only, run_job, save_refined
from tests.refine import folders
from tests.refine.models import train_one_layer_then_interrupt, watch_training

QUICK = AlignConfig(updates=4, length=64, sequences=6, held_out=2)
SPIKES = {"neuron": "ATMN", "settings": {"steps": 4, "tau": 0.5, "fire_at": 0.5}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folders.write_model(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture
def job(source, tmp_path):
    text = str(folders.write_text(tmp_path))
    looked_at = EvaluationConfig(texts=(text,), tokens=130, context=64, tasks=1, contexts=(32, 128))
    return Job(
        source, tmp_path / "out", budget="2", sparsity={"mode": "topk", "keep": 0.5}, spikes=SPIKES,
        text=text, align=QUICK, calibration=256, evaluation=looked_at,
    )  # fmt: skip


def test_a_job_leaves_an_ordinary_model_and_says_what_it_did(job):
    refined, evaluation = run_job(job)
    names = {path.name for path in job.out.iterdir()}
    assert {
        "config.json", "model.safetensors", "tokenizer.json", "plan.json", "plan.txt", "plan.png",
        "refinement.json", "report.json", "report.txt", "report.html",
    } <= names  # fmt: skip
    assert not {"work", ".part"} & names
    again = AutoModelForCausalLM.from_pretrained(job.out)
    tokens = AutoTokenizer.from_pretrained(job.out)("the cat sat", return_tensors="pt").input_ids
    assert torch.equal(again(tokens).logits, refined(tokens).logits)
    told = json.loads((job.out / "refinement.json").read_text())
    assert told["plan"]["budget"] == "2"
    assert len(told["align"]) == 2
    assert list(evaluation.rows) == [
        "dense",
        "2/4 zeroed",
        "2/4 SSM",
        "2/4 SSM + FFN 0.5",
        "2/4 SSM + FFN 0.5 + ATMN T=4",
    ]
    assert load_refined(job.out).refinement == told


def test_an_interrupted_job_goes_on_to_the_same_end(job, tmp_path, monkeypatch):
    whole, _ = run_job(replace(job, out=tmp_path / "whole"))
    trained = train_one_layer_then_interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_job(job)
    assert not (job.out / "config.json").exists()
    with pytest.raises(FileError, match="--resume"):
        run_job(job)
    with pytest.raises(InputError, match="other settings"):
        run_job(replace(job, resume=True, budget="3"))
    again = watch_training(monkeypatch)
    resumed, _ = run_job(replace(job, resume=True))
    assert len(trained + again) == 2
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_finished_job_is_not_written_over(job):
    run_job(replace(job, evaluation=None))
    before = (job.out / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(FileError, match="holds a model already"):
        run_job(job)
    assert (job.out / "model.safetensors").stat().st_mtime_ns == before
    run_job(replace(job, resume=True, evaluation=None))  # the same again, to the same end


def test_a_folder_that_no_refinement_made_is_never_written_over(job, source, tmp_path):
    shutil.copytree(source, job.out)
    before = (job.out / "model.safetensors").read_bytes()
    for resume in (False, True):
        with pytest.raises(FileError, match="holds a model"):
            run_job(replace(job, resume=resume))
    assert (job.out / "model.safetensors").read_bytes() == before
    assert not (job.out / "plan.json").exists()


def test_an_interrupted_evaluation_trains_nothing_again(job, monkeypatch):
    from marsnn.refine import job as module

    measure = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_job(job)
    monkeypatch.setattr(module, "evaluate", measure)
    monkeypatch.setattr(module, "refine", None)  # whoever calls it fails
    before = (job.out / "model.safetensors").stat().st_mtime_ns
    _, evaluation = run_job(replace(job, resume=True))
    assert (job.out / "model.safetensors").stat().st_mtime_ns == before
    assert (job.out / "report.txt").is_file()
    assert "2/4 SSM" in evaluation.rows


def test_texts_are_looked_at_before_anything_is_trained(job):
    bad = replace(job.evaluation, texts=("nowhere",))
    with pytest.raises(InputError, match="no text"):
        run_job(replace(job, evaluation=bad))
    assert not (job.out / "plan.json").exists()


def test_a_plan_is_made_edited_and_carried_out(job):
    made = plan_only(job)
    path = job.out / "plan.json"
    assert {each.name for each in job.out.iterdir()} == {"plan.json", "plan.txt", "plan.png"}
    raw = json.loads(path.read_text())
    other = next(each for each in raw["layers"] if each["choice"] == "attention")["layer"]
    raw["layers"][other]["choice"] = "ssm"
    raw["spikes"] = None
    path.write_text(json.dumps(raw))
    with pytest.raises(FileError, match="a plan is there already"):
        run_job(job)
    refined, _ = run_job(replace(job, plan=path, evaluation=None))
    assert refined.config.ssm_layers == sorted({*made.ssm_layers, other})
    assert refined.config.spikes is None
    assert refined.config.sparsity is not None


def broken(source, tmp_path, change):
    copy = tmp_path / "broken"
    shutil.copytree(source, copy)
    change(copy)
    return copy


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda folder: shutil.rmtree(folder), FileError, "not a model's folder"),
        (lambda folder: (folder / "config.json").write_text("{"), FileError, "config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), InputError, "gpt2"),
        (lambda folder: (folder / "model.safetensors").unlink(), FileError, "safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), FileError, "can't be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), FileError, "no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), FileError, "tokenizer"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_by_name(source, job, tmp_path, change, error, said):
    folder = broken(source, tmp_path, change)
    with pytest.raises(error, match=said) as caught:
        run_job(replace(job, model=folder))
    assert "\n" not in str(caught.value)
    assert not (job.out / "plan.json").exists()


def test_weights_that_are_nan_are_named(job, tmp_path):
    model = folders.model.__wrapped__()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.inf
    model.save_pretrained(tmp_path / "nan")
    folders.tokenizer().save_pretrained(tmp_path / "nan")
    with pytest.raises(NonFiniteError, match=r"layers\.2\.mlp\.down_proj"):
        run_job(replace(job, model=tmp_path / "nan"))


def test_what_can_not_be_is_refused_before_it_starts(job, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="keep"):
        run_job(replace(job, sparsity={"mode": "topk", "keep": 0}))
    with pytest.raises(InputError, match="ears"):
        run_job(replace(job, spikes={"sites": ["ears"]}))
    with pytest.raises(InputError, match="over itself"):
        run_job(replace(job, out=job.model))
    with pytest.raises(InputError, match="no text"):
        run_job(replace(job, text="nowhere"))
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(InputError, match="too few"):
        run_job(replace(job, text=str(short)))
    plan_only(replace(job, out=tmp_path / "plan"))
    folders.write_model(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="another model"):
        run_job(replace(job, model=tmp_path / "other", plan=tmp_path / "plan" / "plan.json"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(FileError, match="free on this disk"):
        run_job(job)
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**50, 0, 2**50))
    with pytest.raises(InputError, match="this machine's memory"):
        run_job(job)


def test_what_a_kill_left_of_a_save_goes_with_the_next(tmp_path):
    for torn in ("..part.abc", "..part.def.old"):
        (tmp_path / torn).mkdir()
        (tmp_path / torn / "config.json").write_text("{")
    save_refined(convert(folders.model(), [1]), folders.tokenizer(), tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert load_refined(tmp_path).config.ssm_layers == [1]
