"""Round trip and bad input: a bundle reads back whole, and every way of damaging it is refused by name."""

import hashlib
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.errors import BundleError, LavaError
from marsnn.gated import GatedLinear
from marsnn.hardware import export, integer, load, verify
from marsnn.hardware.lava import candidates
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, Recurrent

lava = [pytest.mark.lava, pytest.mark.xdist_group("lava")]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    torch.manual_seed(0)
    net = Network([nn.Linear(6, 12), ATMN(12, threshold=0.5), nn.Linear(12, 8), ATMN(8), nn.Linear(8, 3)])
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    return export(net, torch.randn(3, 10, 6), path)


@pytest.fixture
def bundle(original, tmp_path):
    return load(shutil.copytree(original.path, tmp_path / "copy"))


def rehash(path, name):
    """Make the manifest agree with a changed file, as a careful forger would."""
    manifest = json.loads((path / "manifest.json").read_text())
    data = (path / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def edit_manifest(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def edit_arrays(path, name, change):
    with np.load(path / name) as file:
        arrays = {key: file[key] for key in file.files}
    change(arrays)
    np.savez(path / name, **arrays)
    rehash(path, name)


def test_round_trip(original):
    again = load(original.path)
    assert again.manifest == original.manifest
    assert again.graph.steps == 4
    assert again.graph.tokens_per_sample == 3
    run = integer.run(again.graph, again.inputs)
    for name, spikes in run.spikes.items():
        assert np.array_equal(spikes, again.golden.spikes[name])
        assert spikes.any()
    for name in ("manifest", "certificate", "drift", "counts", "energy", "placement"):
        assert again.report(name)


def test_exported_twice_gives_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    net = Network([nn.Linear(4, 5), ATMN(5), nn.Linear(5, 2)])
    x = torch.randn(1, 3, 4)
    one, two = (export(net, x, tmp_path / name).path for name in ("one", "two"))
    hashes = [json.loads((path / "manifest.json").read_text())["files"] for path in (one, two)]
    assert hashes[0] == hashes[1]


def test_holds_integers_and_no_pickle(original):
    for name in ("tensors.npz", "golden.npz"):
        with np.load(original.path / name, allow_pickle=False) as file:
            assert all(file[key].dtype.kind in "iu" for key in file.files)


def test_the_integer_model_repeats_it(original):
    verification = verify(original.path, simulator="integer")
    assert verification.ok
    assert verification.slots == 30 * 4 * (12 + 8)
    assert verification.positive == sum((s > 0).sum() for s in original.golden.spikes.values()) > 100
    assert verification.negative == sum((s < 0).sum() for s in original.golden.spikes.values()) > 100
    assert f"0 mismatches of {verification.slots} spike slots" in verification.text()
    assert "Lava was not asked" in verification.text()


DAMAGE = {
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "not a bundle"),
    "manifest is no JSON": (lambda p: (p / "manifest.json").write_text("{"), "not valid JSON"),
    "manifest is a list": (lambda p: (p / "manifest.json").write_text("[]"), "format"),
    "other format": (lambda p: edit_manifest(p, lambda m: m.update(format="x/9")), "format 'x/9'"),
    "no files": (lambda p: edit_manifest(p, lambda m: m.pop("files")), "lists no files"),
    "no steps": (lambda p: edit_manifest(p, lambda m: m.pop("steps")), "lacks or misuses 'steps'"),
    "T = 0": (lambda p: edit_manifest(p, lambda m: m.update(steps=0)), "steps is 0"),
    "T is text": (lambda p: edit_manifest(p, lambda m: m.update(steps="4")), "steps is '4'"),
    "T is huge": (lambda p: edit_manifest(p, lambda m: m.update(steps=10**9)), "steps is 1000000000"),
    "missing file": (lambda p: (p / "tensors.npz").unlink(), "tensors.npz: is missing"),
    "truncated": (
        lambda p: (p / "golden.npz").write_bytes((p / "golden.npz").read_bytes()[:-100]),
        "golden.npz: is truncated",
    ),
    "edited": (
        lambda p: (p / "certificate.json").write_text(
            (p / "certificate.json").read_text().replace("no accumulator", "an accumulator")
        ),
        "certificate.json: was changed",
    ),
    "edited runtime": (
        lambda p: (p / "runtime_lava" / "run.py").write_text("import os\n"),
        r"run\.py: (was changed|is truncated)",
    ),
    "wrong hash": (
        lambda p: edit_manifest(p, lambda m: m["files"]["golden.npz"].update(sha256="0" * 64)),
        "golden.npz: was changed",
    ),
    "outside": (
        lambda p: edit_manifest(p, lambda m: m["files"].update({"../evil": {"sha256": "0"}})),
        "points outside",
    ),
    "absolute": (
        lambda p: edit_manifest(p, lambda m: m["files"].update({"/etc/passwd": {"sha256": "0"}})),
        "points outside",
    ),
    "stage twice": (
        lambda p: edit_manifest(p, lambda m: m["stages"].append(m["stages"][0])),
        "stage atmn1 is there twice",
    ),
    "stage named as the input": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(name="input")),
        "stage input is there twice",
    ),
    "synapse twice": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(synapses=m["stages"][0]["synapses"] * 2)),
        "synapse linear1 is there twice",
    ),
    "a million synapses": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(synapses=[{"name": "x"}] * 10**6)),
        "has 1000002 synapses, expected at most",
    ),
    "stages without end": (
        lambda p: edit_manifest(p, lambda m: m.update(stages=m["stages"] * 5000)),
        "has 15000 stages",
    ),
    "no synapses": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(synapses=[])),
        "atmn1 has no synapses",
    ),
    "listens to a later stage": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0]["synapses"][0].update(source="atmn2")),
        "linear1 comes from 'atmn2', which is no stage before it",
    ),
    "listens to itself": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0]["synapses"][0].update(source="atmn1")),
        "which is no stage before it",
    ),
    "no such port": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0]["synapses"][0].update(port="out")),
        "linear1 ends at 'out', expected one of in",
    ),
    "no such form": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0]["synapses"][0].update(form="sparse")),
        "linear1 has unknown form 'sparse'",
    ),
    "weights for wide inputs": (
        lambda p: edit_manifest(p, lambda m: m.update(input_max=32767)),
        "linear1 has weights for the graded values of 'input'",
    ),
    "inputs beyond 16 bits": (
        lambda p: edit_manifest(p, lambda m: m.update(input_max=32768)),
        "input_max is 32768",
    ),
    "shape of no axes": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(shape=[])),
        "atmn1.shape is",
    ),
    "shape beyond counting": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(shape=[2**31, 2**31])),
        "more than 2",
    ),
    "samples that don't fit": (
        lambda p: edit_manifest(p, lambda m: m.update(tokens_per_sample=7)),
        "30 tokens don't divide",
    ),
    "bad name": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(name="../../x")),
        "is no name for a stage",
    ),
    "scale is NaN": (
        lambda p: edit_manifest(p, lambda m: m["input"].update(scale=float("nan"))),
        "input.scale is 'nan'",
    ),
    "scale is text": (lambda p: edit_manifest(p, lambda m: m["input"].update(scale="abc")), "input.scale"),
    "scale is huge": (
        lambda p: edit_manifest(p, lambda m: m["input"].update(scale=10**400)),
        "too large",
    ),
    "units are text": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(unit="a" * 12)),
        "atmn1.unit is no list",
    ),
    "units are null": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(unit=[None] * 12)),
        "atmn1.unit is 'None'",
    ),
    "stage is a list": (lambda p: edit_manifest(p, lambda m: m.update(stages=[[]])), "lacks or misuses"),
    "input is null": (lambda p: edit_manifest(p, lambda m: m.update(input=None)), "lacks or misuses"),
    "endless nesting": (lambda p: (p / "manifest.json").write_text("[" * 200_000), "not valid JSON"),
    "zero byte in a name": (
        lambda p: edit_manifest(p, lambda m: m["files"].update({"a\0b": {"sha256": "0"}})),
        "lacks or misuses",
    ),
    "link to itself": (
        lambda p: ((p / "tensors.npz").unlink(), os.symlink("tensors.npz", p / "tensors.npz")),
        "tensors.npz|misuses",
    ),
    "unlisted file": (lambda p: (p / "runtime_lava" / "numpy.py").write_text(""), "does not list"),
    "certificate is garbage": (
        lambda p: ((p / "certificate.json").write_text("garbage"), rehash(p, "certificate.json")),
        "certificate.json: not valid JSON",
    ),
    "could overflow": (
        lambda p: edit_manifest(p, lambda m: m["stages"][1]["synapses"][0].update(shift=16)),
        "atmn2 can overflow 24 bits",
    ),
    "the least int64": (
        lambda p: edit_arrays(
            p,
            "tensors.npz",
            lambda a: a.update({"stages/atmn1/bias/in": np.full(12, -(2**63), dtype=np.int64)}),
        ),
        "stages/atmn1/bias/in leaves -8388607 to 8388607",
    ),
    "unsigned": (
        lambda p: edit_arrays(
            p, "golden.npz", lambda a: a.update({"spikes/atmn1": a["spikes/atmn1"].astype(np.uint64)})
        ),
        "signed integers only",
    ),
    "unknown kind": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0].update(kind="magic")),
        "unknown kind 'magic'",
    ),
    "wrong arrival": (
        lambda p: edit_manifest(p, lambda m: m["stages"][1]["synapses"][0].update(arrival="value")),
        "can't have arrival 'value'",
    ),
    "wrong decay": (
        lambda p: edit_arrays(p, "tensors.npz", lambda a: a.update({"stages/atmn1/decay": np.array(-1)})),
        "atmn1/decay leaves 0 to 8192",
    ),
    "wrong width": (
        lambda p: edit_arrays(
            p,
            "tensors.npz",
            lambda a: a.update({"synapses/linear2/weight": a["synapses/linear2/weight"][:, 1:]}),
        ),
        r"linear2/weight is \[8, 11\], expected \[8, 12\]",
    ),
    "weight beyond 8 bit": (
        lambda p: edit_arrays(
            p,
            "tensors.npz",
            lambda a: a.update({"synapses/linear1/weight": a["synapses/linear1/weight"].astype(int) + 300}),
        ),
        "linear1/weight leaves -127 to 127",
    ),
    "floats": (
        lambda p: edit_arrays(
            p, "tensors.npz", lambda a: a.update({"stages/atmn1/bias/in": a["stages/atmn1/bias/in"] * 1.0})
        ),
        "holds float64",
    ),
    "pickled": (
        lambda p: edit_arrays(
            p, "tensors.npz", lambda a: a.update({"stages/atmn1/bias/in": np.array([{}] * 12, dtype=object)})
        ),
        "holds object, a bundle holds signed",
    ),
    "not a zip": (
        lambda p: ((p / "golden.npz").write_bytes(b"hello"), rehash(p, "golden.npz")),
        "not a readable .npz",
    ),
    "golden lacks a layer": (
        lambda p: edit_arrays(p, "golden.npz", lambda a: a.pop("spikes/atmn2")),
        "lacks spikes/atmn2",
    ),
    "golden of another size": (
        lambda p: edit_arrays(p, "golden.npz", lambda a: a.update(inputs=a["inputs"][:5])),
        "inputs is",
    ),
    "golden spike of 2": (
        lambda p: edit_arrays(p, "golden.npz", lambda a: a["spikes/atmn1"].__setitem__((0, 0, 0), 2)),
        "spikes/atmn1 leaves -1 to 1",
    ),
}


LOOP_DAMAGE = {
    "by another rule": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0]["synapses"][1].update(arrival="stream_up")),
        "recurrent1.recurrent can't have arrival 'stream_up'",
    ),
    "as values": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0]["synapses"][1].update(arrival="held")),
        "recurrent1.recurrent can't have arrival 'held'",
    ),
    "alone": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0]["synapses"].pop(0)),
        "no synapse ends at recurrent1.in",
    ),
    "by another matrix": (
        lambda p: edit_arrays(
            p,
            "tensors.npz",
            lambda a: a.update({"synapses/recurrent1.recurrent/weight": np.ones((4, 3), np.int8)}),
        ),
        r"recurrent1.recurrent/weight is \[4, 3\], expected \[4, 4\]",
    ),
    "beyond 24 bits": (
        lambda p: edit_manifest(p, lambda m: m["stages"][0]["synapses"][1].update(shift=20)),
        "recurrent1 can overflow 24 bits",
    ),
}


@pytest.mark.parametrize("how", LOOP_DAMAGE)
def test_a_stage_hears_itself_in_one_way(how, tmp_path):
    damage, message = LOOP_DAMAGE[how]
    torch.manual_seed(0)
    net = Network([nn.Linear(6, 4), Recurrent(LIF(4, threshold=0.2)), nn.Linear(4, 2)])
    path = export(net, torch.randn(3, 4, 6), tmp_path / "bundle").path
    assert load(path).graph.stages[0].loops[0].name == "recurrent1.recurrent"
    damage(path)
    with pytest.raises(BundleError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_in_one_line(name, bundle):
    damage, message = DAMAGE[name]
    damage(bundle.path)
    with pytest.raises(BundleError, match=message) as caught:
        verify(bundle.path, simulator="integer")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def gated_original(tmp_path_factory):
    torch.manual_seed(0)
    layers = {
        "ffn_in": ATMN(6), "gated": GatedLinear(6, 8), "ffn_out": ATMN(8, threshold=0.1),
        "down": nn.Linear(8, 3),
    }  # fmt: skip
    path = tmp_path_factory.mktemp("bundles") / "gated"
    return export(Network(layers), torch.randn(3, 10, 6), path)


def replaced(key, change):
    """Damage of one array of the gate."""
    return lambda p: edit_arrays(p, "tensors.npz", lambda a: a.update({key: change(a[key])}))


def edit_stage(index, **entries):
    return lambda p: edit_manifest(p, lambda m: m["stages"][index].update(entries))


def edit_synapse(stage, index, **entries):
    return lambda p: edit_manifest(p, lambda m: m["stages"][stage]["synapses"][index].update(entries))


def without_stage(index):
    return lambda p: edit_manifest(p, lambda m: m["stages"].pop(index))


GATE_DAMAGE = {
    "lacks a table": (
        lambda p: edit_arrays(p, "tensors.npz", lambda a: a.pop("stages/gated/table")),
        "lacks stages/gated/table",
    ),
    "lacks a level": (
        lambda p: edit_arrays(p, "tensors.npz", lambda a: a.pop("stages/gated/level")),
        "lacks stages/gated/level",
    ),
    "even table": (
        replaced("stages/gated/table", lambda a: a[1:]),
        "gated/table has 4094 entries, expected an odd",
    ),
    "endless table": (
        replaced("stages/gated/table", lambda a: np.tile(a, 3)),
        "gated/table has 12285 entries",
    ),
    "empty table": (replaced("stages/gated/table", lambda a: a[:0]), "gated/table has 0 entries"),
    "table of two axes": (replaced("stages/gated/table", lambda a: a[None]), r"gated/table is \[1, 4095\]"),
    "table above 1": (replaced("stages/gated/table", lambda a: a + 1), "gated/table leaves 0 to 32768"),
    "table below 0": (replaced("stages/gated/table", lambda a: a - 1), "gated/table leaves 0 to"),
    "floats": (replaced("stages/gated/table", lambda a: a / 2), "gated/table holds float64"),
    "negative multiplier": (
        replaced("stages/gated/multiplier", lambda a: -a),
        "gated/multiplier leaves 0 to",
    ),
    "large multiplier": (
        replaced("stages/gated/multiplier", lambda a: a.astype(np.int64) + 2**40),
        "gated/multiplier leaves 0 to",
    ),
    "negative shift": (
        replaced("stages/gated/argument_shift", lambda a: a - 99),
        "gated/argument_shift leaves",
    ),
    "large shift": (
        replaced("stages/gated/product_shift", lambda a: a + 60),
        "gated/product_shift leaves 0 to 62",
    ),
    "short shifts": (
        replaced("stages/gated/product_shift", lambda a: a[1:]),
        r"gated/product_shift is \[7\]",
    ),
    "one multiplier for all": (
        replaced("stages/gated/multiplier", lambda a: a[0]),
        r"gated/multiplier is \[\]",
    ),
    "negative level": (replaced("stages/gated/level", lambda a: a - 1), "gated/level leaves 0 to 8388607"),
    "the least int64": (
        replaced("stages/gated/level", lambda a: np.full(8, -(2**63), dtype=np.int64)),
        "gated/level leaves",
    ),
    "a product could overflow": (
        replaced("stages/gated/product_shift", lambda a: a - 1),
        "gated can overflow 24 bits",
    ),
    "one row less": (
        replaced("synapses/gated.up/weight", lambda a: a[:7]),
        r"gated.up/weight is \[7, 6\], expected \[8, 6",
    ),
    "a factor of 25 bits": (
        replaced("synapses/ffn_out.gated/weight", lambda a: a.astype(int) + 2**24),
        "ffn_out.gated/weight leaves",
    ),
    "a factor too few": (
        replaced("synapses/ffn_out.gated/weight", lambda a: a[1:]),
        "joins 8 senders to 8 neurons one by one",
    ),
    "a shift to the left as one to the right": (
        replaced("synapses/ffn_out.gated/right", lambda a: a * 0 - 1),
        "ffn_out.gated/right leaves 0 to 62",
    ),
    "gate of another kind": (edit_stage(1, kind="norm"), "lacks stages/gated/bias/in"),
    "gate with a step's arrival": (edit_synapse(1, 0, arrival="stream"), "gate can't have arrival 'stream'"),
    "gate that takes values": (edit_synapse(1, 0, arrival="value"), "gated.gate can't have arrival 'value'"),
    "neurons behind it with another arrival": (edit_synapse(2, 0, arrival="sum"), "can't have arrival 'sum'"),
    "weights for its products": (
        edit_synapse(2, 0, form="dense"),
        "ffn_out.gated has weights for the graded values of 'gated'",
    ),
    "a LIF behind it": (edit_stage(2, kind="lif"), r"stages/ffn_out/decay is \[\], expected 1 axes"),
    "no gate before them": (without_stage(1), "ffn_out.gated comes from 'gated', which is no stage before"),
    "no neurons between": (without_stage(2), "down comes from 'ffn_out', which is no stage before"),
    "no products": (
        lambda p: edit_arrays(p, "golden.npz", lambda a: a.pop("values/gated")),
        "lacks values/gated",
    ),
    "products beyond 24 bits": (
        lambda p: edit_arrays(p, "golden.npz", lambda a: a["values/gated"].__setitem__((0, 0), 2**23)),
        "values/gated leaves",
    ),
    "products of another size": (
        lambda p: edit_arrays(
            p, "golden.npz", lambda a: a.update({"values/gated": a["values/gated"][:, 1:]})
        ),
        r"values/gated is \[30, 7\]",
    ),
    "a scale too few": (
        lambda p: edit_manifest(p, lambda m: m["input"]["scale"].pop()),
        "input.scale has 5 values",
    ),
    "a scale of 0": (
        lambda p: edit_manifest(p, lambda m: m["input"]["scale"].__setitem__(2, 0)),
        "input.scale is '0'",
    ),
    "a scale in a list": (
        lambda p: edit_manifest(p, lambda m: m["input"]["scale"].__setitem__(2, [1])),
        "input.scale is",
    ),
}


@pytest.mark.parametrize("name", GATE_DAMAGE)
def test_damage_of_a_gate_is_refused_in_one_line(name, gated_original, tmp_path):
    damage, message = GATE_DAMAGE[name]
    path = shutil.copytree(gated_original.path, tmp_path / "copy")
    assert verify(path, simulator="integer").ok
    damage(path)
    with pytest.raises(BundleError, match=message) as caught:
        verify(path, simulator="integer")
    assert "\n" not in str(caught.value)


def test_another_product_is_a_mismatch_with_its_place(gated_original, tmp_path):
    path = shutil.copytree(gated_original.path, tmp_path / "copy")
    edit_arrays(path, "golden.npz", lambda a: a["values/gated"].__setitem__((7, 5), 12345))
    verification = verify(path, simulator="integer")
    assert verification.mismatches == 1
    assert verification.first.startswith("gated: token 7, neuron 5: sent ")


def test_links_to_the_outside_are_refused(bundle, tmp_path):
    secret = tmp_path / "secret.json"
    shutil.copy(bundle.path / "certificate.json", secret)
    (bundle.path / "certificate.json").unlink()
    os.symlink(secret, bundle.path / "certificate.json")
    with pytest.raises(BundleError, match="points outside"):
        load(bundle.path)


def test_an_unpacking_bomb_is_refused(bundle, monkeypatch):
    monkeypatch.setattr("marsnn.hardware.bundle.LARGEST_ARRAYS", 1000)
    with pytest.raises(BundleError, match="unpacks to"):
        load(bundle.path)


def test_consistent_files_with_other_spikes_are_a_mismatch_with_its_place(bundle):
    def flip(arrays):
        arrays["spikes/atmn2"][7, 2, 5] = 1 - abs(arrays["spikes/atmn2"][7, 2, 5])

    edit_arrays(bundle.path, "golden.npz", flip)
    verification = verify(bundle.path, simulator="integer")
    assert not verification.ok
    assert verification.mismatches == 1
    assert "atmn2: token 7, step 2, neuron 5" in verification.first


def test_lava_is_not_looked_for_in_the_current_folder(bundle, tmp_path, monkeypatch):
    trap = bundle.path / ".venv-lava" / "bin" / "python"
    trap.parent.mkdir(parents=True)
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path / 'sprung'}\n")
    trap.chmod(0o755)
    monkeypatch.chdir(bundle.path)
    monkeypatch.delenv("MARSNN_LAVA_PYTHON", raising=False)
    assert str(trap) not in list(candidates())
    with pytest.raises(BundleError, match="does not list"):
        verify(".")
    assert not (tmp_path / "sprung").exists()


def test_what_cant_be_read_back_does_not_replace_what_can(original, tmp_path, monkeypatch):
    path = shutil.copytree(original.path, tmp_path / "copy")
    monkeypatch.setattr("marsnn.hardware.bundle._NAME", re.compile("never"))
    with pytest.raises(BundleError, match="is no name"):
        export(Network([nn.Linear(6, 3), ATMN(3)]), torch.rand(1, 2, 6), path)
    monkeypatch.undo()
    assert load(path).manifest == original.manifest


def test_a_missing_lava_says_how_to_get_it(bundle, monkeypatch):
    monkeypatch.setenv("MARSNN_LAVA_PYTHON", "/nowhere/python")
    with pytest.raises(LavaError, match=r"not a Python 3\.10 that imports lava"):
        verify(bundle.path)
    monkeypatch.delenv("MARSNN_LAVA_PYTHON")
    monkeypatch.setattr("marsnn.hardware.lava.candidates", lambda: iter(["/nowhere/python"]))
    with pytest.raises(LavaError, match="make lava"):
        verify(bundle.path)


class TestInLava:
    pytestmark = lava

    @pytest.fixture(autouse=True)
    def _with(self, lava_python, monkeypatch):
        self.python = lava_python
        monkeypatch.setenv("MARSNN_LAVA_PYTHON", lava_python)

    def test_verify(self, original):
        verification = verify(original.path)
        assert verification.ok
        assert verification.simulator == "lava"
        assert verification.slots == 2400
        assert verification.sums == 90

    def test_verify_lif_over_sequences(self, tmp_path):
        torch.manual_seed(0)
        net = Network(
            [nn.Linear(6, 9), LIF(9, carry="sequence", threshold=0.4), nn.Linear(9, 7), LIF(7, reset="zero")]
        )
        bundle = export(net, 2 * torch.randn(5, 4, 6), tmp_path / "lif")
        verification = verify(bundle.path)
        assert verification.ok
        assert verification.positive > 50

    def test_verify_a_gate(self, gated_original, tmp_path):
        verification = verify(gated_original.path)
        assert verification.ok
        assert (verification.slots, verification.values, verification.sums) == (30 * 4 * 14, 240, 90)
        run = subprocess.run(
            [self.python, gated_original.path / "runtime_lava" / "run.py"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert (run.returncode, run.stdout) == (0, "0 mismatches of 1680 spike slots\n")

    def test_a_changed_table_is_found_in_lava(self, gated_original, tmp_path):
        path = shutil.copytree(gated_original.path, tmp_path / "copy")
        edit_arrays(
            path,
            "tensors.npz",
            lambda a: a.update({"stages/gated/table": a["stages/gated/table"][::-1].copy()}),
        )
        verification = verify(path)
        assert not verification.ok
        assert verification.first.startswith("gated: token 0")

    def test_changed_weight_is_found_in_lava(self, bundle):
        """Consistent files, other spikes: the place of the first mismatch is told."""

        def change(arrays):
            arrays["synapses/linear1/weight"][:] *= -1

        edit_arrays(bundle.path, "tensors.npz", change)
        verification = verify(bundle.path)
        assert not verification.ok
        assert verification.first.startswith("atmn1: token 0")

    def test_the_bundles_own_runtime_is_not_executed(self, bundle, tmp_path):
        trap = bundle.path / "runtime_lava" / "run.py"
        trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
        rehash(bundle.path, "runtime_lava/run.py")
        assert verify(bundle.path).ok
        assert not (tmp_path / "sprung").exists()

    def test_the_bundle_runs_without_marsnn(self, bundle, tmp_path):
        run = subprocess.run(
            [self.python, bundle.path / "runtime_lava" / "run.py"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert "0 mismatches of 2400 spike slots" in run.stdout
        assert load(bundle.path).manifest == bundle.manifest  # the run left nothing behind
        assert "marsnn" not in (bundle.path / "runtime_lava" / "window.py").read_text()
