"""Unit: the demo end to end, shortened in epochs only; with Lava, and where there is none."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from marsnn.bench import demo as journey
from marsnn.bench import digits
from marsnn.errors import LavaError
from marsnn.hardware import load


def demo(folder, **environment):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "marsnn",
            "demo",
            "--epochs",
            "2",
            "--seeds",
            "2",
            "--out",
            str(folder),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.lava
@pytest.mark.xdist_group("lava")
def test_demo_ends_verified_in_lava(tmp_path, lava_python):
    run = demo(tmp_path / "out", MARSNN_LAVA_PYTHON=lava_python)
    assert run.returncode == 0, run.stderr
    last = run.stdout.strip().splitlines()
    assert last[-1].startswith("0 mismatches of 368640 spike slots (")
    assert "Lava's simulator" in last[-1]
    for heading in ("Accuracy on 360 held-out digits", "Energy per image", "45nm-int8", "loihi1", "raster: "):
        assert heading in run.stdout
    for name in ("atmn.safetensors", "raster.png", "energy.json", "digits.json"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    bundle = load(tmp_path / "out" / "bundle")
    for spikes in bundle.golden.spikes.values():
        assert (spikes == 1).sum() > 1000
        assert (spikes == -1).sum() > 1000


def test_demo_without_lava_says_so_and_still_ends(tmp_path, call, monkeypatch):
    monkeypatch.setenv("MARSNN_LAVA_PYTHON", "/nowhere/python")
    monkeypatch.setattr(journey.benchmark, "run", partial(digits.run, workers=1))  # in this process
    code, out, err = call("demo", "--epochs", 2, "--seeds", 2, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["verification"]["simulator"] == "integer"
    assert result["verification"]["ok"] is True
    assert set(result["accuracy"]["arms"]) == {"ATMN", "LIF", "ReLU", "SVM"}
    assert result["exported"]["integer_accuracy"] > 0.5


def test_a_lava_that_fails_is_not_taken_for_a_lava_that_is_missing(tmp_path, monkeypatch):
    def fails(path, simulator="lava"):
        raise LavaError(f"Lava's run of {path} failed (exit 1): no message")

    monkeypatch.setattr(journey, "find_python", lambda: "python3.10")
    monkeypatch.setattr(journey, "verify", fails)
    said = []
    with pytest.raises(LavaError, match="failed"):
        journey.compared(tmp_path, said.append)
    assert said == ["running the bundle in Lava's simulator"]
