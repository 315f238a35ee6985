"""Unit: the verbs as a user types them; exit codes, one-line errors, JSON that parses."""

import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.checkpoint import save_network
from marsnn.cli import main
from marsnn.hardware import export
from marsnn.network import Network
from marsnn.neurons import ATMN
from marsnn.record import Recording
from marsnn.tidy import read_table

VERBS = (
    "demo", "simulate", "energy", "export", "verify", "bench", "ablate", "refine", "evaluate", "generate",
    "pretrain", "distill",
)  # fmt: skip


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    torch.manual_seed(0)
    net = Network([nn.Linear(64, 12), ATMN(12, threshold=0.3), nn.Linear(12, 10)])
    return save_network(net, tmp_path_factory.mktemp("cli") / "net.safetensors")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(call, verb):
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert f"Example:  marsnn {verb}" in out
    assert "--json" in out
    assert "--seed" in out


def test_help_and_verify_never_load_torch(tmp_path, network_file):
    bundle = tmp_path / "bundle"
    assert _exit(["export", str(network_file), "-i", "digits", "--samples", "5", "--out", str(bundle)]) == 0
    for arguments in (["--help"], ["verify", str(bundle), "--simulator", "integer"], ["verify", "/none"]):
        code = (
            "import sys\nfrom marsnn.cli.main import run\n"
            f"try:\n    run({arguments!r})\nexcept SystemExit:\n    pass\n"
            "heavy = {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)\nassert not heavy, heavy\n"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr


def _exit(arguments):
    with pytest.raises(SystemExit) as stop:
        main.run(arguments)
    return stop.value.code


def test_version(call):
    code, out, _ = call("--version")
    assert code == 0
    assert out.startswith("marsnn ")


def test_simulate(call, network_file, tmp_path):
    code, out, _ = call(
        "simulate", network_file, "-i", "digits", "--samples", 7,
        "--save", tmp_path / "r.npz", "--raster", tmp_path / "r.png", "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert (result["L"], result["B"], result["T"]) == (1, 7, 4)
    recording = Recording.load(tmp_path / "r.npz")
    assert result["layers"]["atmn1"]["positive"] == (recording.spikes["atmn1"] == 1).sum() > 0
    assert result["layers"]["atmn1"]["negative"] == (recording.spikes["atmn1"] == -1).sum() > 0
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = call("simulate", network_file, "-i", "digits", "--samples", 7)
    assert code == 0
    assert f"{result['layers']['atmn1']['rate']:.3f} spikes per neuron-step" in out


def test_own_arrays_as_input(call, network_file, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2, 3, 64)))
    code, out, _ = call("simulate", network_file, "-i", tmp_path / "x.npy", "--json")
    assert code == 0
    assert (json.loads(out)["L"], json.loads(out)["B"]) == (2, 3)


def test_images_as_input(call, tmp_path):
    conv = Network([nn.Conv2d(1, 2, 3), ATMN(2, feature_dim=-3), nn.Flatten(), nn.Linear(72, 3)])
    path = save_network(conv, tmp_path / "conv.safetensors")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(1, 2, 1, 8, 8)))
    code, out, _ = call("simulate", path, "-i", tmp_path / "x.npy")
    assert code == 0
    assert "atmn1" in out


def test_bare_command_prints_its_help(call):
    code, out, _ = call()
    assert code == 0
    assert "Start with:  marsnn demo" in out


def test_unexpected_errors_are_one_line_too(call, network_file, monkeypatch):
    monkeypatch.setattr("marsnn.cli.inputs.load_network", lambda path: 1 / 0)
    code, _, err = call("simulate", network_file, "-i", "digits")
    assert code == 2
    assert err == "error: unexpected ZeroDivisionError: division by zero (MARSNN_DEBUG=1 shows where)\n"


def test_energy(call, network_file):
    code, out, _ = call("energy", network_file, "-i", "digits", "--samples", 5)
    assert code == 0
    assert "45nm-fp32" in out
    assert "45nm-int8" in out
    assert "estimated" in out.lower()
    code, out, _ = call("energy", network_file, "-i", "digits", "--samples", 5, "--json")
    assert code == 0
    assert json.loads(out)


def test_export_then_verify(call, network_file, tmp_path):
    code, out, _ = call("export", network_file, "-i", "digits", "--samples", 5, "--out", tmp_path / "b")
    assert code == 0
    assert "not parity" in out
    code, out, _ = call("verify", tmp_path / "b", "--simulator", "integer", "--json")
    assert code == 0
    assert json.loads(out)["slots"] == 5 * 4 * 12
    code, out, _ = call(
        "export", network_file, "-i", "digits", "--samples", 5, "--out", tmp_path / "b", "--json"
    )
    assert code == 0
    assert json.loads(out)["tokens"] == 5


def test_verify_exits_1_and_says_where(call, tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = Network([nn.Linear(4, 6), ATMN(6, threshold=0.3), nn.Linear(6, 2)])
    bundle = export(net, torch.randn(2, 3, 4), tmp_path / "b")
    from marsnn.hardware import integer

    monkeypatch.setattr(integer, "fires", lambda h, fire: h > 2 * fire)
    code, out, _ = call("verify", bundle.path, "--simulator", "integer")
    assert code == 1
    assert "first mismatch: atmn1: token" in out


def test_ablate(call, tmp_path):
    task = Path(__file__).parent / "small_task.py"
    own = ["ablate", "--task", f"{task}:corners", "--steps", "1,2", "--seeds", "2", "--epochs", "2"]
    own += ["--hidden", "5", "--workers", "1", "--out", tmp_path / "a.parquet"]
    code, out, err = call(*own, "--plot", tmp_path / "a.png")
    assert code == 0
    row = r"^\| LIF +\| 2 \| \d+\.\d\d \+- \d+\.\d\d +\| [+-]\d+\.\d\d \+- "
    assert re.search(row, out, flags=re.MULTILINE)
    assert "(8 networks, " in out
    assert err == ""
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(*own, "--json", "--seed", "1")
    result = json.loads(out)
    assert code == 0
    assert [row["seed"] for row in result["rows"]] == [1, 2] * 4
    assert result["rows"] == read_table(tmp_path / "a.parquet")
    assert result["plot"] is None
    assert [group["accuracy"]["n"] for group in result["groups"]] == [2] * 4


BAD = {
    "no such network": ("simulate", "none.safetensors", "-i", "digits"),
    "no such input": ("simulate", "NET", "-i", "none.npy"),
    "wrong width": ("simulate", "NET", "-i", "digits-rows"),
    "input not an array": ("energy", "NET", "-i", "TEXT"),
    "input of objects": ("energy", "NET", "-i", "OBJECTS"),
    "input of two axes": ("energy", "NET", "-i", "FLAT"),
    "input with NaN": ("simulate", "NET", "-i", "NAN"),
    "unknown table": ("energy", "NET", "-i", "digits", "--table", "none"),
    "unknown target": ("export", "NET", "-i", "digits", "--out", "b", "--target", "abacus"),
    "unwritable": ("export", "NET", "-i", "digits", "--out", "TEXT/b"),
    "unwritable recording": ("simulate", "NET", "-i", "digits", "--save", "TEXT/r.npz"),
    "not a bundle": ("verify", "none"),
    "unknown simulator": ("verify", "none", "--simulator", "abacus"),
    "unknown verb": ("dance",),
    "missing argument": ("verify",),
    "bad number": ("demo", "--seeds", "0"),
    "demo to a place that can't be": ("demo", "--out", "TEXT"),
    "bench to a place that can't be": ("bench", "digits", "--save", "TEXT/x.json"),
    "a price beyond floats": ("energy", "NET", "-i", "digits", "--table", "HUGE", "--json"),
    "unknown benchmark": ("bench", "none"),
    "too few rounds": ("bench", "neurons", "--rounds", "1"),
    "speed to a place that can't be": ("bench", "neurons", "--save", "TEXT/x.json"),
    "mixers to a place that can't be": ("bench", "ssm", "--save", "TEXT/x.json"),
    "a task nobody knows": ("bench", "memory", "--task", "chess"),
    "models of nothing": ("bench", "models", "--model", "none", "--work", "w"),
    "models that keep nothing": ("bench", "models", "--model", "none", "--work", "w", "--pruned", "0"),
    "models at contexts in words": ("bench", "models", "--model", "n", "--work", "w", "--contexts", "far"),
    "unknown neuron": ("ablate", "--neurons", "ATMN,ATNM", "--out", "a.csv"),
    "no task": ("ablate", "--task", "none.py:task", "--out", "a.csv"),
    "task that is no task": ("ablate", "--task", "json:dumps", "--out", "a.csv"),
    "steps in words": ("ablate", "--steps", "1,two", "--out", "a.csv"),
    "tau below one": ("ablate", "--neurons", "LIF", "--tau", "0.5", "--out", "a.csv"),
    "a tuning seed": ("ablate", "--seed", "98", "--out", "a.csv"),
    "a table of another kind": ("ablate", "--out", "a.xlsx"),
    "ablation to a place that can't be": ("ablate", "--out", "TEXT/a.csv"),
    "plot to a place that can't be": ("ablate", "--out", "a.csv", "--plot", "TEXT/a.png"),
    "unknown engine": ("ablate", "--engine", "dask", "--out", "a.csv"),
    "ablation without a place": ("ablate",),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_2(call, name, network_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEXT").write_text("hello")
    table = (files("marsnn.energy.tables") / "45nm-fp32.toml").read_text().replace("45nm-fp32", "own")
    (tmp_path / "HUGE").write_text(table.replace("value = 4.6", "value = 1" + "0" * 400))
    np.save(tmp_path / "OBJECTS.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "FLAT.npy", np.zeros((3, 64)))
    np.save(tmp_path / "NAN.npy", np.full((1, 1, 64), np.nan))
    replaced = {"NET": network_file, "OBJECTS": "OBJECTS.npy", "FLAT": "FLAT.npy", "NAN": "NAN.npy"}
    before = sorted(os.listdir())
    code, _, err = call(*(replaced.get(word, word) for word in BAD[name]))
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(os.listdir()) == before


def test_lava_missing_is_one_line(call, network_file, tmp_path, monkeypatch):
    call("export", network_file, "-i", "digits", "--samples", 2, "--out", tmp_path / "b")
    monkeypatch.setenv("MARSNN_LAVA_PYTHON", "/nowhere/python")
    code, _, err = call("verify", tmp_path / "b")
    assert code == 2
    assert err.count("\n") == 1
    assert "MARSNN_LAVA_PYTHON" in err
