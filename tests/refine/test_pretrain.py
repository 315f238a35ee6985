"""Round trip: a Llama from scratch; killed and gone on with to the same bits; refused in one line."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from marsnn.errors import DivergedError, FileError, InputError
from marsnn.refine import PretrainConfig, loop, pretrain, pretraining
from marsnn.refine.loading import load_tokenizer
from marsnn.refine.loop import SEAL, Rows, last_whole_checkpoint, quiet_arguments, seal, token_rows
from marsnn.refine.pretraining import byte_tokenizer
from marsnn.refine.texts import read_text
from tests.helpers import same
from tests.refine.recipes import pretrain_arguments as arguments

TINY = {
    "vocabulary": 300, "hidden_size": 24, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 40, "length": 32,
    "context": 64, "updates": 30, "batch": 4, "learning_rate": 1e-2, "warmup": 3, "save_every": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A text of about 20 updates, so that a training begins it anew, and one that is held out."""
    folder = tmp_path_factory.mktemp("texts")
    text = read_text("stdlib")
    (folder / "learnt.txt").write_text(text[:5000])
    (folder / "held.txt").write_text(text[50_000:52_000])
    return folder


@pytest.fixture(scope="module")
def config(source):
    return PretrainConfig(text=str(source / "learnt.txt"), held_out=str(source / "held.txt"), **TINY)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """What an unbroken training leaves."""
    out = tmp_path_factory.mktemp("whole") / "out"
    pretrain(config, out)
    return out


def told(out):
    return json.loads((out / "pretraining.json").read_text())


def equal(out, whole):
    assert same(load_file(out / "model.safetensors"), load_file(whole / "model.safetensors"))
    assert told(out)["curve"] == told(whole)["curve"]
    assert told(out)["bits_per_byte"] == told(whole)["bits_per_byte"]
    assert not (out / "work").exists()
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


# ---- what comes out -------------------------------------------------------------------------------------


def test_it_leaves_an_ordinary_model_that_has_learnt(config, whole):
    assert {path.name for path in whole.iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "pretraining.json",
    }  # fmt: skip
    assert not (whole / "work").exists()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole), AutoTokenizer.from_pretrained(whole)
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 64
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(tokenizer) == model.config.vocab_size == 300
    said = told(whole)
    assert said["parameters"] == sum(each.numel() for each in model.parameters())
    assert said["tokens"]["seen"] == 30 * 4 * 32
    assert len(said["curve"]) == 30
    assert said["loss"] < said["curve"][0] - 0.5 < math.log(300)
    assert said["settings"]["text"] == list(config.text)
    assert (said["processes"], said["began_at"]) == (1, 0)


def test_bits_per_byte_are_those_of_the_held_out_text(source, whole):
    model = AutoModelForCausalLM.from_pretrained(whole)
    tokenizer = load_tokenizer(whole)
    text = (source / "held.txt").read_text()
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    nats = size = 0.0
    for start in range(0, len(ids) - 32, 32):
        window = ids[start : start + 33]
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
        size += len(tokenizer.decode(window[1:]).encode())
    (found,) = told(whole)["bits_per_byte"].values()
    assert found == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_several_texts_are_learnt_on_one_after_another(config, source, tmp_path):
    both = replace(config, text=(*config.text, str(source / "learnt.txt")), updates=2)
    pretrain(both, tmp_path / "both")
    assert told(tmp_path / "both")["tokens"]["there"] > 4000


def test_another_seed_is_another_model(config, whole, tmp_path):
    pretrain(replace(config, seed=1), tmp_path / "out")
    assert told(tmp_path / "out")["curve"] != told(whole)["curve"]


# ---- the tokenizer --------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(text=st.text())
def test_every_text_comes_back_from_its_tokens(whole, text):
    tokenizer = load_cached(whole)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert all(0 <= each < 300 for each in ids)


def load_cached(folder, kept={}):  # noqa: B006
    if folder not in kept:
        kept[folder] = load_tokenizer(folder)
    return kept[folder]


@pytest.mark.parametrize("text", ["don't  stop . \n\n  x", "é\u0301 \u200d 👩‍🔬 \x00", "a <pad> b", " , ."])
def test_awkward_texts_come_back_too(whole, text):
    assert load_cached(whole).decode(load_cached(whole)(text).input_ids) == text


def test_the_same_text_gives_the_same_tokenizer():
    text = read_text("stdlib")[:50_000]
    first, second = byte_tokenizer(text, 400), byte_tokenizer(text, 400)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(first) == 400


# ---- killed, and gone on with ---------------------------------------------------------------------------


def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bits(config, whole, tmp_path):
    out = tmp_path / "out"
    slowly = (  # 4.5 s at least, however fast the machine is
        "import sys, time\nfrom marsnn.cli.main import run\nfrom marsnn.refine.loop import Tell\n"
        "Tell.on_step_end = lambda *_, **__: time.sleep(0.15)\nrun(sys.argv[1:])"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", slowly, "pretrain", *arguments(config, out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not (out / "work" / "tokens.safetensors").exists() and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(random.SystemRandom().uniform(0, 2.5))
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert run.returncode == -signal.SIGKILL
    assert (out / "work").exists()
    pretrain(config, out)
    equal(out, whole)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", SEAL])
def test_a_checkpoint_that_is_half_written_is_not_gone_on_from(config, whole, tmp_path, monkeypatch, name):
    """The second one, of update 14, is torn: the first is taken."""
    out = tmp_path / "out"
    torn = str(out / "work" / "checkpoint-14" / name)

    def tear(write):
        def torn_write(*arguments):
            path = next(each for each in arguments if isinstance(each, str | os.PathLike))
            if str(path) == torn:
                with open(path, "wb") as file:
                    file.write(b"PK")
                raise KeyboardInterrupt
            return write(*arguments)

        return torn_write

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", tear(torch.save))
        patch.setattr(loop, "write_text", tear(loop.write_text))
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, out)
    assert last_whole_checkpoint(out / "work").name == "checkpoint-7"
    pretrain(config, out)
    assert told(out)["began_at"] == 7
    equal(out, whole)


def test_a_run_that_is_killed_after_its_last_update_only_ends(config, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for name in ("_save", "_bits_per_byte"):
        with monkeypatch.context() as patch:
            patch.setattr(pretraining, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                pretrain(config, out)
        assert not (out / "pretraining.json").exists()
    monkeypatch.setattr(loop.Loop, "train", None)  # whoever calls it fails
    pretrain(config, out)
    assert told(out)["began_at"] == 30
    equal(out, whole)


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_finished_folder_is_only_read(config, whole, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    monkeypatch.setattr(pretraining, "Loop", None)
    model = pretrain(config, whole)
    assert not model.training
    assert torch.equal(
        model.lm_head.weight, load_file(whole / "model.safetensors")["model.embed_tokens.weight"]
    )
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_whole_checkpoints(tmp_path):
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"12345")
        seal(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-12").mkdir()  # never sealed
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-11"
    (tmp_path / "checkpoint-11" / "model.safetensors").write_bytes(b"1234")  # truncated
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "model.safetensors").unlink()  # half deleted
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-9"
    (tmp_path / "checkpoint-9" / SEAL).write_text("[]")
    assert last_whole_checkpoint(tmp_path) is None


# ---- several processes; what two of them learn is in test_recipe.py ------------------------------------


def test_a_batch_that_processes_can_not_share_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes can't share a batch of 4"):
        pretrain(config, tmp_path / "out")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes, 2 GPUs"):
        pretrain(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the loop -------------------------------------------------------------------------------------------


def test_rows_are_running_text_in_order():
    rows = token_rows(torch.arange(11, dtype=torch.int32), 3)
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    row = Rows(rows)[1]
    assert row["input_ids"].tolist() == row["labels"].tolist() == [3, 4, 5]
    assert row["labels"].dtype == torch.long
    assert len(Rows(rows)) == 3
    with pytest.raises(InputError, match="2 tokens are there, a row takes 3"):
        token_rows(torch.arange(2), 3)


def test_the_rate_rises_then_falls_and_no_update_is_lost(config, tmp_path):
    model = pretraining.LlamaForCausalLM(pretraining.llama_config(config))
    made = loop.Loop(
        model=model,
        args=quiet_arguments(tmp_path, 6, 4, 1e-2, 2, 0.1, 6, 0),
        train_dataset=Rows(torch.randint(1, 300, (24, 32))),
    )
    assert len(made.go_on()) == 6
    rates = [entry["learning_rate"] for entry in made.state.log_history if "loss" in entry]
    cosine = [(1 + math.cos(math.pi * update / 6)) / 2 for update in range(6)]
    assert rates == pytest.approx([1e-2 * 1 / 2, *(1e-2 * each for each in cosine[1:])])


def test_tensorboard_gets_the_losses_where_it_is_asked_for(config, tmp_path):
    pytest.importorskip("tensorboard")
    quiet = quiet_arguments(tmp_path, 2, 4, 1e-2, 1, 0.1, 2, 5)
    assert quiet.seed == 5  # of the order, too
    assert quiet.report_to == []
    assert quiet.push_to_hub is False
    assert quiet_arguments(tmp_path, 2, 4, 1e-2, 1, 0.1, 2, 0, tensorboard=True).report_to == ["tensorboard"]


def test_a_loss_that_is_nan_stops_and_keeps_the_last_good_checkpoint(config, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        DivergedError, match=r"in update 2; .*checkpoint-1 is the last good .* below 1e\+30"
    ) as caught:
        pretrain(replace(config, learning_rate=1e30, save_every=1), out)
    assert "\n" not in str(caught.value)
    last = last_whole_checkpoint(out / "work")
    assert last.name == "checkpoint-1"
    assert all(bool(torch.isfinite(each).all()) for each in load_file(last / "model.safetensors").values())
    assert not (out / "pretraining.json").exists()


# ---- refused in one line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 25}, "4 heads can't share 25 features"),
        ({"hidden_size": 12}, "an even number each"),
        ({"kv_heads": 3}, "3 kv_heads can't serve 4 heads"),
        ({"vocabulary": 256}, "vocabulary must be >= 257"),
        ({"length": 65}, "beyond a context of 64"),
        ({"length": 1}, "length must be >= 2"),
        ({"updates": 0}, "updates must be a whole number >= 1"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"seed": -1}, "seed"),
        ({"text": ()}, "text is empty"),
        ({"held_out": ()}, "held_out is empty"),
        ({"text": "topics", "held_out": ("library", "topics")}, "'topics' can't be learnt on and held out"),
    ],
)
def test_settings_that_can_not_be(config, change, said):
    with pytest.raises(InputError, match=said) as caught:
        replace(config, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "change", "said"),
    [
        ("", {}, r"has 0 tokens; 128 are needed, one update of 4 x 32"),
        ("too short", {}, r"has \d tokens; 128 are needed"),
        ("the cat sat on the mat. " * 200, {"vocabulary": 300}, r"supports a vocabulary of 2\d\d, got 300"),
    ],
)
def test_too_little_text(config, tmp_path, text, change, said):
    (tmp_path / "text").write_text(text)
    with pytest.raises(InputError, match=said):
        pretrain(replace(config, text=str(tmp_path / "text"), **change), tmp_path / "out")
    assert not (tmp_path / "out" / "work" / "settings.json").exists()


def test_texts_that_are_not_there(config, tmp_path):
    for change in ({"text": "nowhere"}, {"held_out": "nowhere"}):
        with pytest.raises(InputError, match="no text 'nowhere'"):
            pretrain(replace(config, **change), tmp_path / "out")
    (tmp_path / "short").write_text("short")
    with pytest.raises(InputError, match="33 are the least to measure on"):
        pretrain(replace(config, held_out=str(tmp_path / "short")), tmp_path / "out")


def test_other_settings_are_refused_by_the_first_that_differs(config, whole, tmp_path, monkeypatch):
    before = (whole / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(InputError, match="holds a training with ffn 40, got 48"):
        pretrain(replace(config, ffn=48, seed=3), whole)
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
    out = tmp_path / "begun"
    monkeypatch.setattr(pretraining, "Loop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, out)
    with pytest.raises(InputError, match="holds a training with seed 0, got 3"):
        pretrain(replace(config, seed=3), out)


def test_a_folder_that_holds_something_else_is_left_alone(config, whole, tmp_path):
    for name in ("model.safetensors", "notes.txt"):
        out = tmp_path / name.split(".")[0]
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(FileError, match=f"holds {name}"):
            pretrain(config, out)
        assert [path.name for path in out.iterdir()] == [name]
    mine = tmp_path / "mine" / "work" / "letter.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(FileError, match=r"holds letter\.txt"):
        pretrain(config, tmp_path / "mine")
    assert mine.read_text() == "mine"
    with pytest.raises(FileError, match="is a file"):
        pretrain(config, mine)
    with pytest.raises(FileError, match="can't write"):
        pretrain(config, mine / "out")
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "pretraining.json").write_text("{")
    with pytest.raises(FileError, match="not valid JSON"):
        pretrain(config, tmp_path / "copy")


def test_a_disk_without_room_is_told_of_before_and_while_it_trains(config, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
        with pytest.raises(FileError, match="are free on this disk, training needs"):
            pretrain(config, out)

    for error, said in (
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64"), "written whole"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", failing(error))
            with pytest.raises(FileError, match=f"can't write a checkpoint: .*{said}; make room") as caught:
                pretrain(config, out)
            assert "\n" not in str(caught.value)
    pretrain(config, out)
    equal(out, whole)


def failing(error):
    def fail(*_):
        raise error

    return fail


# ---- the command line -----------------------------------------------------------------------------------


def test_the_verb_says_what_was_learnt_and_what_is_next(call, config, whole, tmp_path):
    out = tmp_path / "out"
    code, said, err = call("pretrain", *arguments(config, out))
    assert code == 0, err
    bits = told(out)["bits_per_byte"]
    assert f"({told(out)['parameters']:,} parameters)" in said
    assert "learnt on 3,840 tokens" in said
    assert f"held out, {config.held_out[0]}: {bits[config.held_out[0]]:.3f} bits per byte" in said
    assert said.endswith(f"next:  marsnn refine {out} --budget half --out refined\n")
    assert "update 15 of 30" in err
    equal(out, whole)
    code, said, err = call("pretrain", *arguments(config, out), "--json")
    assert (code, json.loads(said)) == (0, told(out))
    assert "trained already" in err


def test_the_verb_refuses_in_one_line(call, config, whole, tmp_path):
    for options, said in (
        (("--heads", 5), "5 heads can't share"),
        (("--updates", "many"), "updates"),
        (("--text", tmp_path / "nowhere"), "no text"),
    ):
        code, out, err = call("pretrain", *arguments(config, tmp_path / "out"), *options)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert said in err
    code, _, err = call("pretrain", *arguments(replace(config, batch=8), whole))
    assert code == 2
    assert "holds a training with batch 4, got 8" in err


def test_the_options_are_the_configuration_sentence_by_sentence():
    from typer.main import get_command

    from marsnn.cli.main import app

    options = {each.name: each for each in get_command(app).commands["pretrain"].params}
    assert set(options) == {each.name for each in fields(PretrainConfig)} | {"out", "as_json"}
    for each in fields(PretrainConfig):
        assert options[each.name].help == each.metadata["help"], each.name
        if each.name not in ("text", "held_out"):
            assert options[each.name].default == each.default, each.name


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom marsnn.cli.main import run\n"
        "try: run(['pretrain', '--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "marsnn pretrain --out teacher" in done.stdout
