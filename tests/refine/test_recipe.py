"""Round trip: a recipe from text to a report; killed, shared and sharded to the same end; refusals."""

import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainingArguments

from marsnn.errors import DivergedError, FileError, InputError
from marsnn.refine import (
    LearnConfig,
    MarForCausalLM,
    Recipe,
    distill,
    learn,
    learning,
    load_recipe,
    loop,
    recipe,
)
from marsnn.refine.job import load_refined
from marsnn.refine.loading import load_tokenizer
from marsnn.refine.loop import Rows, last_whole_checkpoint
from tests.helpers import same
from tests.refine import folders
from tests.refine.recipes import ALONE, Stop, command, pretrain_arguments, write_recipe

ROOT = Path(__file__).parent.parent.parent
STAGES = ("teacher", "refined", "distilled", "sparse")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a recipe and what an unbroken run of it left in out."""
    folder = tmp_path_factory.mktemp("whole")
    distill(load_recipe(write_recipe(folder)))
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def course(folder):
    told = json.loads((folder / "refinement.json").read_text())["distillation"]["course"]
    return [
        {name: value for name, value in each.items() if name != "train_runtime"}
        for each in told
        if "loss" in each
    ]


def rows(out):
    return json.loads((out / "report.json").read_text())["rows"]


def equal(out, whole):
    """The same end, but for how long it took."""
    for stage in STAGES:
        assert same(weights(out / stage), weights(whole / stage)), stage
    for stage in STAGES[2:]:
        assert course(out / stage) == course(whole / stage)
    assert str(rows(out)) == str(rows(whole)).replace(str(whole.parent), str(out.parent))
    visible = lambda folder: {str(p.relative_to(folder)) for p in folder.rglob("[!.]*")}  # noqa: E731
    assert visible(out) == visible(whole)


def learned_only(folder, whole, *changes, sparse=False):
    """A recipe that begins with the teacher and the student of another run."""
    path = write_recipe(folder, *changes)
    text = path.read_text()
    begin, end = text.index("[pretrain]"), text.index("[distill]")
    text = text[:begin] + text[end:]
    if not sparse:
        text = text[: text.index("[sparse]")] + text[text.index("[evaluate]") :]
    given = f'teacher = "{whole}/out/teacher"\nstudent = "{whole}/out/refined"\n'
    path.write_text(given + text)
    return path


# ---- what comes out -------------------------------------------------------------------------------------


def test_a_recipe_leaves_every_stage_and_a_report(whole):
    out = whole / "out"
    assert {each.name for each in out.iterdir()} == {
        *STAGES, "recipe.json", "report.json", "report.txt", "report.html",
    }  # fmt: skip
    assert not list(out.rglob("work"))
    assert list(rows(out)) == [
        "dense", "refined, 1/2 zeroed", "refined, 1/2 SSM", "refined, 1/2 SSM + FFN 0.5",
        "refined, 1/2 SSM + FFN 0.5 + ATMN T=3", "distilled, without spikes", "distilled",
        "sparse, without spikes", "sparse",
    ]  # fmt: skip
    positions = {name: row.get("positions") for name, row in rows(out).items()}
    assert positions.pop("refined, 1/2 zeroed") is None
    assert all(list(each["100"]) == [f"{whole}/held.txt"] for each in positions.values())
    student = AutoModelForCausalLM.from_pretrained(out / "sparse")
    assert isinstance(student, MarForCausalLM)
    assert student.config.spikes["settings"]["steps"] == 3  # T came down from 5 to its own


def test_every_stage_changes_what_it_is_for(whole):
    before, learnt, last = (weights(whole / "out" / stage) for stage in STAGES[1:])
    changed = {name for name in learnt if not torch.equal(before[name], learnt[name])}
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.ffn_in.neuron.log_threshold"} <= changed
    assert not any("mask" in name for name in changed)
    changed = {name for name in last if not torch.equal(learnt[name], last[name])}
    assert all(".mlp." in name for name in changed)
    assert any("down_proj.mask" in name for name in changed)


def test_the_course_is_told_update_by_update_with_the_curve_between(whole):
    told = json.loads((whole / "out" / "distilled" / "refinement.json").read_text())["distillation"]
    losses = [each for each in told["course"] if "loss" in each]
    assert [each["step"] for each in losses] == list(range(1, 9))
    for each in losses:
        assert each["loss"] == pytest.approx(each["loss_logits"] + 0.01 * each["loss_features"], rel=1e-4)
    curve = [each for each in told["course"] if "seen_tokens" in each]
    assert [each["seen_tokens"] for each in curve] == [0, 512, 1024]
    text = f"{whole}/held.txt"
    last = rows(whole / "out")["distilled"]["texts"][text]
    assert curve[-1][f"{text}_kl"] == pytest.approx(last["kl"], rel=1e-4)
    assert told["settings"]["steps_from"] == 5
    assert (told["tokens"], told["processes"]) == (1024, 1)


def test_the_curve_looks_at_texts_alone():
    found = recipe._within(recipe.EvaluationConfig(positions=(64,), context=1024), folders.model())
    assert (found.tasks, found.contexts, found.positions, found.context) == (0, (), (), 255)


def test_the_same_again_does_nothing_new_and_another_recipe_is_refused(whole, call, monkeypatch):
    out = whole / "out"
    before = times(out)
    for name in ("learn", "run_job", "evaluate"):
        monkeypatch.setattr(recipe, name, None)  # whoever calls it fails
    code, said, err = call("distill", whole / "recipe.toml")
    assert code == 0, err
    assert "sparse, without spikes" in said
    assert said.endswith(f"report: {out}/report.html\n")
    code, said, _ = call("distill", whole / "recipe.toml", "--json")
    assert json.loads(said)["rows"] == rows(out)
    text = (whole / "recipe.toml").read_text()
    other = whole / "other.toml"
    other.write_text(text.replace("learning_rate = 1e-3", "learning_rate = 2e-3", 1))
    code, _, err = call("distill", other)
    assert code == 2
    assert "holds a run of another recipe: [distill] learning_rate was 0.001, now 0.002" in err
    assert err.count("\n") == 1
    code, _, err = call("distill", whole / "recipe.toml", "--seed", 4)
    assert code == 2
    assert "seed was 0, now 4" in err
    assert times(out) == before


def times(out):
    return {str(p): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != "recipe.json"}


# ---- killed ---------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bits(whole, tmp_path):
    path = write_recipe(tmp_path)
    out = tmp_path / "out"
    draw = random.SystemRandom()
    begins = draw.choice([
        out / "teacher" / "work" / "tokens.safetensors", out / "refined" / "plan.json",
        out / "distilled" / "work", out / "sparse" / "work", out / "report.txt",
    ])  # fmt: skip
    process = subprocess.Popen(
        command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **ALONE}
    )
    try:
        until = time.monotonic() + 120
        while not begins.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.5))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    distill(load_recipe(path))
    equal(out, whole / "out")


def test_a_kill_between_any_two_files_of_a_result(whole, tmp_path, monkeypatch):
    """Of `refinement.json`, which is last, of what then is cleared, and of the report."""
    path = learned_only(tmp_path, whole)
    read = load_recipe(path)
    for where, name in ((learning, "save_refined"), (learning, "clear"), (recipe, "save_report")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                distill(read)
    assert not (tmp_path / "out" / "distilled" / "work").exists()
    distill(read)
    assert same(weights(tmp_path / "out" / "distilled"), weights(whole / "out" / "distilled"))
    assert course(tmp_path / "out" / "distilled") == course(whole / "out" / "distilled")


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def killed(whole, tmp_path_factory):
    """A folder in which `learned_only` was killed in update 6 of its first stage."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Tell", lambda progress: Stop())
        with pytest.raises(KeyboardInterrupt):
            distill(load_recipe(learned_only(folder, whole)))
    return folder


def broken(killed, folder):
    """A copy of it, and its recipe; two checkpoints are there, of updates 2 and 4."""
    shutil.copytree(killed, folder, dirs_exist_ok=True)
    for name in ("recipe.toml", "out/recipe.json", "out/distilled/work/settings.json"):
        path = folder / name
        path.write_text(path.read_text().replace(str(killed), str(folder)))
    read = load_recipe(folder / "recipe.toml")
    assert last_whole_checkpoint(read.out / "distilled" / "work").name == "checkpoint-4"
    return read


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt"])
def test_a_corrupt_checkpoint_is_passed_over(whole, killed, tmp_path, name):
    read = broken(killed, tmp_path)
    work = read.out / "distilled" / "work"
    held = bytearray((work / "checkpoint-4" / name).read_bytes())
    held[len(held) // 2] ^= 0xFF  # as long as it was
    (work / "checkpoint-4" / name).write_bytes(held)
    assert last_whole_checkpoint(work).name == "checkpoint-2"
    distill(read)
    assert same(weights(read.out / "distilled"), weights(whole / "out" / "distilled"))


def test_nan_keeps_the_last_good_checkpoint(whole, tmp_path):
    change = ("learning_rate = 1e-3\nwarmup = 1\nsteps_from", "learning_rate = 1e30\nwarmup = 1\nsteps_from")
    read = load_recipe(learned_only(tmp_path, whole, change))
    with pytest.raises(DivergedError, match=r"became NaN or infinite in update \d"):
        distill(read)
    assert not (read.out / "distilled" / "refinement.json").exists()


def test_a_disk_that_is_full_is_one_line_and_the_last_checkpoint_stays(whole, killed, tmp_path, call):
    """A file may grow to 20 kB: weights can't be written, neither for a checkpoint nor at the end."""
    read = broken(killed, tmp_path)
    work, path = read.out / "distilled" / "work", tmp_path / "recipe.toml"
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        code, said, err = call("distill", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (code, said) == (2, "")
    assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]
    assert "can't write a checkpoint" in err
    assert "make room" in err
    assert last_whole_checkpoint(work).name == "checkpoint-4"
    distill(read)
    assert same(weights(read.out / "distilled"), weights(whole / "out" / "distilled"))


# ---- several processes ----------------------------------------------------------------------------------


def test_two_processes_come_to_what_one_does(whole, tmp_path):
    """Pretraining; the whole road; learning by shared batches; the same by FSDP 2, killed; in one start."""
    for name in ("road", "shared", "parts"):
        (tmp_path / name).mkdir()
    recipes = [
        write_recipe(tmp_path / "road"),
        *(learned_only(tmp_path / name, whole, sparse=True) for name in ("shared", "parts")),
    ]
    pretrained = tmp_path / "pretrained"
    arguments = pretrain_arguments(load_recipe(whole / "recipe.toml").pretrain, pretrained)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
            "tests.refine.two_processes", *map(str, recipes), json.dumps(arguments),
        ],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, **ALONE, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, evaluated, went_on = done.stdout.split("\n}\n")  # one of them speaks
    pretrained_alike(pretrained, json.loads(first + "}"), whole / "out" / "teacher")
    assert json.loads(evaluated + "}")["rows"] == rows(tmp_path / "shared" / "out")
    assert went_on == "2 processes went on from checkpoint-4, which lies in parts\n"
    for name in ("shared", "parts"):
        together(tmp_path / name / "out", whole / "out")
    road = tmp_path / "road" / "out"
    assert list(rows(road)) == list(rows(whole / "out"))
    told = json.loads((road / "teacher" / "pretraining.json").read_text())
    pretrained_alike(road / "teacher", told, whole / "out" / "teacher")


def pretrained_alike(out, told, whole):
    """By two processes as by one, within what another order of sums makes of float32."""
    assert json.loads((out / "pretraining.json").read_text()) == told
    assert told["processes"] == 2
    one = json.loads((whole / "pretraining.json").read_text())
    assert told["curve"] == pytest.approx(one["curve"], abs=1e-4)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(out)[name], weight, rtol=0, atol=1e-4)
    assert not (out / "work").exists()


def together(out, whole):
    """Equal within what another order of sums makes of float32."""
    for stage in STAGES[2:]:
        told = json.loads((out / stage / "refinement.json").read_text())["distillation"]
        assert told["processes"] == 2
        mine, one = course(out / stage), course(whole / stage)
        assert [each["loss"] for each in mine] == pytest.approx([each["loss"] for each in one], abs=1e-4)
        for name, weight in weights(whole / stage).items():
            torch.testing.assert_close(weights(out / stage)[name], weight, rtol=0, atol=1e-4, msg=name)


def test_pretraining_is_not_sharded(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="pretrain it without FSDP"):
        distill(load_recipe(write_recipe(tmp_path)))


def test_fsdp_one_is_refused(whole, tmp_path, monkeypatch):
    class Old:
        fsdp_version = 1

    plain = loop.Trainer.__init__

    def told(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.is_fsdp_enabled = True
        self.accelerator.state.fsdp_plugin = Old()

    monkeypatch.setattr(loop.Trainer, "__init__", told)
    with pytest.raises(InputError, match="FSDP_VERSION=2"):
        distill(load_recipe(learned_only(tmp_path, whole)))


# ---- learning alone -------------------------------------------------------------------------------------


def test_learn_by_a_remembered_teacher_with_lora(whole, tmp_path):
    pytest.importorskip("peft")
    path = learned_only(
        tmp_path, whole,
        ("curve_every = 4", 'lora = 2\nremember_teacher = true\nfeatures = "none"\ntensorboard = true'),
        ("keep = 0.5", "keep = 0.5"),
    )  # fmt: skip
    read = load_recipe(path)
    teacher, tokenizer = load_refined(whole / "out" / "teacher"), load_tokenizer(whole / "out" / "teacher")
    student = load_refined(whole / "out" / "refined")
    with pytest.raises(InputError, match="a mask chooses among weights"):
        learn(student, teacher, tokenizer, read.distill, tmp_path / "no")
    from marsnn.refine.stages import View

    student = View(student, sparse=False).alone()
    before = {name: each.clone() for name, each in student.state_dict().items()}
    made = learn(student, teacher, tokenizer, read.distill, tmp_path / "learnt", seed=3)
    found = load_refined(tmp_path / "learnt")
    assert same(dict(found.state_dict()), dict(made.state_dict()))
    assert found.state_dict().keys() == before.keys()
    assert not torch.equal(
        found.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"]
    )
    assert torch.equal(found.lm_head.weight, before["lm_head.weight"])
    assert list((tmp_path / "learnt" / "runs").rglob("events.out*"))
    assert not (tmp_path / "learnt" / "work").exists()
    with pytest.raises(FileError, match="holds a student already"):
        learn(student, teacher, tokenizer, read.distill, tmp_path / "learnt")


def test_learning_goes_on_with_its_own_settings_text_and_student_only(killed, tmp_path):
    read = broken(killed, tmp_path)
    (tmp_path / "learnt.txt").write_text((tmp_path / "learnt.txt").read_text()[::-1])
    with pytest.raises(FileError, match="holds a run of other settings: text's digest was"):
        distill(read)


# ---- refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("together = 2", "to_gether = 2"), r"\[distill\] has no key 'to_gether'; did you mean together\?"),
        (("[sparse]", "[sparce]"), "no key 'sparce'; did you mean sparse"),
        (("kv_heads = 2", "zzz = 2"), r"\[pretrain\] has no key 'zzz'; known: text, "),
        (("heads = 4", "heads = 5"), r"\[pretrain\]: 5 heads can't share"),
        (("budget = 1", 'budget = "lots"'), r"\[refine\]: can't read the budget 'lots'"),
        (("keep = 0.5", "keep = 0"), r"\[refine\]: keep is the share"),
        (('sparsity = "mask"', 'sparsity = "hole"'), "sparsity's mode must be one of"),
        (("steps = 3", 'neuron = "Nobody"'), r"\[refine\]: spikes: .*Nobody"),
        (("calibration = 128", 'mixer = "mamba"'), "mixer must be one of ssd, s4d"),
        (("calibration = 128", 'policy = "manual"'), "policy must be one of"),
        (("together = 2", "together = 0"), r"\[distill\]: together must be a whole number >= 1"),
        (("together = 2", "alpha = -1"), r"\[distill\]: alpha must be finite and >= 0"),
        (("together = 2", 'alpha = "much"'), r"\[distill\]: alpha must be finite"),
        (("together = 2", 'precision = "int8"'), "precision must be float32 or bfloat16"),
        (("together = 2", 'features = "all"'), "features must be one of"),
        (("together = 2", "remember_teacher = true"), "only remembered has no features"),
        (("together = 2", "text = 3"), r"not valid TOML"),
        (("contexts = [64, 128]", 'contexts = "64"'), r"\[evaluate\]"),
        (('out = "{folder}/out"', 'out = ""'), "says nowhere to write to"),
        (('out = "{folder}/out"', 'out = "x"\nseed = "one"'), "seed must be a whole number"),
        (('out = "{folder}/out"', 'out = "x"\nteacher = "y"'), "needs a teacher, either"),
        (('out = "{folder}/out"', 'out = "x"\nstudent = "y"'), "student and .refine. are there"),
    ],
)  # fmt: skip
def test_a_recipe_that_can_not_be(call, tmp_path, change, said):
    path = write_recipe(tmp_path, change)
    with pytest.raises((InputError, FileError), match=said):
        load_recipe(path)
    code, told, err = call("distill", path)
    assert (code, told) == (2, "")
    assert err.startswith(f"error: {path}: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_its_parts(call, tmp_path):
    path = tmp_path / "recipe.toml"
    for text, said in (
        ('out = "x"', "needs a teacher"),
        ('out = "x"\nteacher = "y"', "needs a student"),
        ('out = "x"\nteacher = "y"\nstudent = "z"', "nothing is learnt"),
        ('out = "x"\nteacher = "y"\nstudent = "z"\ndistill = 3', "must be a section"),
        ("out = ", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises((InputError, FileError), match=said):
            load_recipe(path)
    code, _, err = call("distill", tmp_path / "nowhere.toml")
    assert code == 2
    assert "no such file" in err
    path.write_text(f'out = "{tmp_path}/out"\nteacher = "{tmp_path}/none"\nstudent = "z"\n[distill]\n')
    code, _, err = call("distill", path)
    assert code == 2
    assert "none: not a model's folder" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no tokens"), ("tiny " * 40, "are too few to learn from; 8 sequences of 32 are the least")],
)
def test_an_empty_or_a_tiny_text(call, whole, tmp_path, text, said):
    path = learned_only(tmp_path, whole)
    (tmp_path / "learnt.txt").write_text(text)
    code, _, err = call("distill", path)
    assert code == 2
    assert said in err.splitlines()[-1]
    assert not (tmp_path / "out" / "distilled").exists()


def test_fewer_sequences_than_a_batch_are_too_few(whole, tmp_path):
    change = ("batch = 4\ntogether = 2", "batch = 1000\ntogether = 2")
    with pytest.raises(InputError, match="1000 sequences of 32 are the least"):
        distill(load_recipe(learned_only(tmp_path, whole, change)))


def test_sequences_make_whole_updates(whole):
    tokenizer = load_tokenizer(whole / "out" / "teacher")
    config = LearnConfig(text=str(whole / "learnt.txt"), length=32, batch=7)
    found = learning.rows_of_text(tokenizer, config)
    assert len(found) % 7 == 0
    assert len(found) >= 98
    few = learning.rows_of_text(tokenizer, LearnConfig(text=config.text, length=32, batch=7, tokens=2000))
    assert len(few) == 2000 // 32 // 7 * 7
    assert torch.equal(few, found[: len(few)])


def test_vocabularies_that_differ_and_students_that_are_none(call, whole, tmp_path):
    folders.write_model(tmp_path / "other")
    path = learned_only(tmp_path, whole)
    text = path.read_text()
    path.write_text(text.replace(f"{whole}/out/refined", f"{tmp_path}/other"))
    code, _, err = call("distill", path)
    assert code == 2
    assert "other: not a refined model; marsnn refine makes one" in err
    shutil.rmtree(tmp_path / "out")
    path.write_text(text.replace(f"{whole}/out/teacher", f"{tmp_path}/other"))
    vocabulary = len(folders.tokenizer())
    if vocabulary == 300:  # the same number by chance: take another
        model = folders.model.__wrapped__()
        model.resize_token_embeddings(310)
        model.save_pretrained(tmp_path / "other")
        vocabulary = 310
    code, _, err = call("distill", path)
    assert code == 2
    assert f"the teacher tells {vocabulary} tokens apart, the student 300" in err.splitlines()[-1]


def test_a_folder_of_somebody_elses(whole, tmp_path):
    read = load_recipe(learned_only(tmp_path, whole))
    read.out.mkdir()
    (read.out / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="holds something that no recipe left there"):
        distill(read)
    assert [each.name for each in read.out.iterdir()] == ["notes.txt"]


def test_several_gpus_want_several_processes(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(InputError, match=r"sees 8 GPUs .*torchrun --nproc-per-node 8"):
        distill(load_recipe(learned_only(tmp_path, whole)))
    assert not (tmp_path / "out").exists()


# ---- the recipes that are shipped, and the pages --------------------------------------------------------

SHIPPED = sorted((ROOT / "docs" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_can_be_read(path):
    read = load_recipe(path)
    assert isinstance(read, Recipe)
    assert read.out == Path("runs") / path.stem
    assert f"marsnn distill docs/recipes/{path.name}" in path.read_text()
    json.dumps(read.to_dict())


def test_there_are_recipes():
    assert {path.stem for path in SHIPPED} >= {"small", "smollm2"}


def test_every_setting_is_in_the_page():
    page = (ROOT / "docs" / "distill.md").read_text()
    for each in fields(LearnConfig):
        assert f"`{each.name}`" in page, each.name


def test_the_pages_python_runs(whole, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "distill.md").read_text()
    block = next(
        each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "MarTrainer(student" in each
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text((whole / "learnt.txt").read_text())
    arguments = functools.partial(TrainingArguments, use_cpu=True, disable_tqdm=True, report_to="none")
    teacher = folders.model.__wrapped__()
    names = {
        "teacher": teacher, "tokenizer": folders.tokenizer(), "TrainingArguments": arguments,
        "tokens": torch.randint(2, 250, (4, 64)), "rows": Rows(torch.randint(2, 250, (40, 16))),
    }  # fmt: skip
    exec(compile(block.replace("=100", "=2").replace("=20)", "=2)"), "docs/distill.md", "exec"), names)
    found = load_refined(tmp_path / "distilled")
    assert found.config.ssm_layers == [1, 3]
    assert len(course(tmp_path / "distilled")) == 2


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom marsnn.cli.main import run\n"
        "try: run(['distill', '--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "marsnn distill docs/recipes/small.toml" in done.stdout
