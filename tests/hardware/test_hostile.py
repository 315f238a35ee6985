"""Hostile bundles: every entry of a manifest and every array replaced; nothing is run, nothing blows up."""

import hashlib
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from copy import deepcopy

import numpy as np
import pytest

from marsnn.errors import BundleError
from marsnn.hardware import export, load, verify
from tests.hardware.networks import build

KINDS = ["integers", "pictures", "turned", "s4d", "block", "counted"]
"""Bundles that hold every kind of stage and form of synapse between them."""

WRONG = [None, True, -1, 0, 2**31, 10**400, 0.5, math.nan, "a\nb", [], [2**31], [[]], {"x": 1}, "gone"]

MAY_CHANGE = {
    "scale",
    "unit",
    "shift",
    "input_max",
    "tokens_per_sample",
    "carry",
    "reset",
    "padding",
    "stride",
}
"""Entries of which another number makes another bundle, not a bad one."""

LEFT_ALONE = {"marsnn", "target", "mode", "micro_steps", "bits", "files", "format", "bytes"}
"""Said of the bundle, and without effect; or refused before anything else, in `test_bundle.py`."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    modes = {"counted": {"mode": "count"}}
    networks = {name: build("chain" if name == "counted" else name) for name in KINDS}
    return {name: export(*networks[name], folder / name, **modes.get(name, {})).path for name in KINDS}


@pytest.fixture(params=KINDS)
def path(request, originals, tmp_path):
    return shutil.copytree(originals[request.param], tmp_path / "copy")


def refused(path):
    """The one line of why a bundle is refused, or None where it's read and can be run."""
    try:
        verify(path, simulator="integer")
    except BundleError as error:
        told = str(error)
    else:
        return None
    assert "\n" not in told
    assert len(told) < 1000
    return told


def entries(value, place=()):
    """Places of all entries of a manifest; of a list of numbers, of its first."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key not in LEFT_ALONE:
                yield (*place, key)
                yield from entries(each, (*place, key))
    elif isinstance(value, list):
        for index, each in enumerate(value[: None if value and isinstance(value[0], dict) else 1]):
            yield (*place, index)
            yield from entries(each, (*place, index))


@pytest.mark.parametrize("path", ["pictures", "turned"], indirect=True)
def test_every_entry_of_a_manifest_replaced(path):
    original = json.loads((path / "manifest.json").read_text())
    places = list(entries(original))
    assert len(places) > 50
    tried = told = 0
    for place in places:
        for wrong in WRONG:
            manifest = deepcopy(original)
            inner = manifest
            for step in place[:-1]:
                inner = inner[step]
            if wrong == "gone" and isinstance(inner, list):
                continue  # what is left may be a whole bundle
            elif wrong == "gone":
                del inner[place[-1]]
            elif inner[place[-1]] == wrong and type(inner[place[-1]]) is type(wrong):
                continue
            else:
                inner[place[-1]] = wrong
            (path / "manifest.json").write_text(json.dumps(manifest))
            tried += 1
            why = refused(path)
            told += why is not None
            if why is None:
                assert MAY_CHANGE & set(place), (place, wrong)
                assert not isinstance(wrong, str | bool | dict | None), (place, wrong)
    assert tried > 500
    assert told > 0.9 * tried


def changed(array):
    """Arrays that must not stand where this one stands."""
    wide = array.astype(np.int64)
    yield "floats", array.astype(np.float64)
    yield "unsigned", array.astype(np.uint8)
    yield "booleans", array.astype(bool)
    yield "objects", np.full(array.shape, None, dtype=object)
    yield "words", np.full(array.shape, "x")
    yield "complex", array.astype(complex)
    yield "dates", wide.astype("datetime64[s]")
    yield "records", np.zeros(array.shape, dtype=[("a", "i4")])
    yield "an axis more", wide[None]
    yield "the least", np.full_like(wide, -(2**63))
    yield "the most", np.full_like(wide, 2**63 - 1)
    for axis in range(array.ndim):
        yield f"axis {axis} cut", np.delete(wide, 0, axis)
        yield f"axis {axis} empty", np.take(wide, [], axis)
        yield f"axis {axis} twice", np.concatenate([wide, wide], axis)


FREE = ("/table", "/taps")
"""Arrays with an axis of any length; a kernel, too, where its stride leaves room."""


@pytest.mark.parametrize("path", KINDS, indirect=True)
def test_every_array_replaced(path):
    _replace_every_array(path, "tensors.npz")


@pytest.mark.parametrize("path", ["pictures", "turned"], indirect=True)
def test_every_golden_array_replaced(path):
    _replace_every_array(path, "golden.npz")


def _replace_every_array(path, file):
    original = json.loads((path / "manifest.json").read_text())
    with np.load(path / file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    tried = told = 0
    for name, array in arrays.items():
        for kind, other in changed(array):
            replaced = io.BytesIO()
            np.savez(replaced, **{**arrays, name: other})
            put(path, file, replaced.getvalue(), original)
            tried += 1
            why = refused(path)
            told += why is not None
            if why is None:
                assert kind.endswith(("cut", "empty", "twice")), (name, kind)
                assert name.endswith(FREE) or "conv" in name, (name, kind)
            elif kind in (
                "floats",
                "unsigned",
                "booleans",
                "objects",
                "words",
                "complex",
                "dates",
                "records",
            ):
                assert f"{name} holds " in why
    assert tried > 10
    assert told >= tried - 3


def put(path, name, data, manifest=None):
    """Write a file and make the manifest agree, as a careful forger would."""
    manifest = manifest or json.loads((path / "manifest.json").read_text())
    (path / name).write_bytes(data)
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def npz(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(shape, dtype="|i1", data=b""):
    """An array's file that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def members(path, file):
    with zipfile.ZipFile(path / file) as archive:
        return {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}


def claims(shape, dtype="|i1"):
    """Every array of the tensors claims a shape, behind which nothing follows."""

    def change(path):
        put(path, "tensors.npz", npz(dict.fromkeys(members(path, "tensors.npz"), npy(shape, dtype))))

    return change


def bomb(path):
    """An array that nothing needs, of a gigabyte in a megabyte."""
    put(path, "tensors.npz", npz({"more": npy((2**28,), data=bytes(2**28)), **members(path, "tensors.npz")}))


def needed_bomb(path):
    name = "synapses/conv2d1/weight"
    put(path, "tensors.npz", npz({**members(path, "tensors.npz"), name: npy((2**28,), data=bytes(2**28))}))


def manifest_with(change):
    def apply(path):
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return apply


def conv_of(manifest):
    return manifest["stages"][0]["synapses"][0]["conv"]


def wide_input(manifest):
    manifest["inputs"] = [1, 2**15, 2**16]
    conv_of(manifest).update(source=[1, 2**15, 2**16], stride=[2**15, 2**15], target=[4, 1, 2])


def padded(manifest):
    conv_of(manifest).update(padding=[2**15, 2**15], stride=[5000, 5000])


def negative_size(path):
    data = npy((-5,), data=bytes(3))
    put(path, "tensors.npz", npz(dict.fromkeys(members(path, "tensors.npz"), data)))


def lies_about_its_size(path):
    """Its directory says 2^40 bytes for each entry."""
    data = bytearray((path / "tensors.npz").read_bytes())
    at = data.find(b"PK\x01\x02")
    assert at > 0
    data[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    put(path, "tensors.npz", bytes(data))


def squeezed(method):
    def change(path):
        put(path, "tensors.npz", npz(members(path, "tensors.npz"), method))

    return change


def nested(path):
    (path / "manifest.json").write_text('{"format": "marsnn.bundle/2", "stages": ' + "[" * 10**6)


def endless(path):
    with (path / "manifest.json").open("r+b") as file:
        file.truncate(2**40)  # a hole


def lined_up(manifest):
    manifest["stages"] = [{"name": f"s{k}", "synapses": []} for k in range(50_000)]


HUGE = {
    "a stage of 2^31": (
        manifest_with(lambda m: m["stages"][0].update(shape=[2**31])),
        "its N should be 2147483648",
    ),
    "a stage beyond counting": (
        manifest_with(lambda m: m["stages"][0].update(shape=[2**31] * 4)),
        "more than 2",
    ),
    "an input of 2^31": (
        manifest_with(lambda m: m.update(inputs=[2**31])),
        r"inputs is \[12, 168\], expected",
    ),
    "an input of 2^31 that a kernel takes": (manifest_with(wide_input), r"inputs is \[12, 168\], expected"),
    "padding without end": (manifest_with(padded), "conv2d1 convolves an image of"),
    "tokens without end": (manifest_with(lambda m: m.update(tokens=3 * 2**29)), "inputs is"),
    "arrays that claim 2^31": (claims((2**31,)), "says that it is"),
    "arrays that claim 2^62": (claims((2**31, 2**31)), "says that it is"),
    "arrays that claim more than counts": (claims((2**32, 2**32, 2**32)), "says that it is"),
    "arrays of negative sizes": (negative_size, "not a readable .npz"),
    "wide numbers that claim 2^40": (claims((2**40,), "<i8"), "says that it is"),
    "a bomb where an array was": (needed_bomb, r"is no convolution from"),
    "a lie about sizes": (lies_about_its_size, "unpacks to"),
    "bzip2": (squeezed(zipfile.ZIP_BZIP2), "compressed in a way that numpy does not use"),
    "lzma": (squeezed(zipfile.ZIP_LZMA), "compressed in a way that numpy does not use"),
    "nested without end": (nested, "not valid JSON"),
    "a manifest of a terabyte": (endless, "is larger than"),
    "stages without end": (manifest_with(lined_up), "has 50000 stages, expected at most"),
}

WATCHED = """
import sys, time
import numpy
from marsnn.errors import BundleError
from marsnn.hardware import load
started = time.perf_counter()
try:
    load(sys.argv[1])
    print("read")
except BundleError as error:
    print(error)
seconds = time.perf_counter() - started
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak.split()[1]) / 1024)
assert "torch" not in sys.modules
"""


def watched(path):
    """What a process of its own says of a bundle, in seconds and MB."""
    run = subprocess.run(
        [sys.executable, "-c", WATCHED, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    said, figures = run.stdout.strip().rsplit("\n", 1)
    return said, *map(float, figures.split())


@pytest.mark.parametrize("name", HUGE)
def test_what_claims_to_be_huge_is_refused_at_once(name, originals, tmp_path):
    change, told = HUGE[name]
    path = shutil.copytree(originals["pictures"], tmp_path / "copy")
    change(path)
    with pytest.raises(BundleError, match=told):
        load(path)
    said, seconds, megabytes = watched(path)
    assert "\n" not in said
    assert seconds < 1
    assert megabytes < 200


def test_what_nothing_needs_is_never_unpacked(originals, tmp_path):
    path = shutil.copytree(originals["pictures"], tmp_path / "copy")
    bomb(path)
    said, _, megabytes = watched(path)
    assert said == "read"
    assert megabytes < 200


def test_a_wide_input_has_no_weights(originals, tmp_path):
    path = shutil.copytree(originals["pictures"], tmp_path / "copy")
    manifest_with(lambda m: m.update(input_max=200))(path)
    assert "conv2d1 has weights for the graded values of 'input'" in refused(path)


def groups_of(number):
    def change(path):
        with np.load(path / "tensors.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
        arrays["stages/ssdcore1/groups"] = np.array(number)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        put(path, "tensors.npz", buffer.getvalue())

    return change


@pytest.mark.parametrize(("groups", "told"), [(3, "has 3 groups"), (4, "has 4 groups"), (1, "turns 4 pairs")])
def test_groups_that_dont_fit_heads(groups, told, originals, tmp_path):
    path = shutil.copytree(originals["turned"], tmp_path / "copy")
    groups_of(groups)(path)
    assert told in refused(path)


# ---- links, names and what would be run ------------------------------------------------------------------


def link(name, target):
    def change(path, outside):
        shutil.move(path / name, outside / "moved")
        os.symlink(outside / "moved" if target is None else target, path / name)

    return change


def loops(path, outside):
    os.symlink(".", path / "again")


def pipe(path, outside):
    (path / "golden.npz").unlink()
    os.mkfifo(path / "golden.npz")


def listed(name):
    def change(path, outside):
        (outside / "moved").write_text("{}")
        edited = manifest_with(lambda m: m["files"].update({name.format(outside=outside): {"sha256": "0"}}))
        edited(path)

    return change


LINKS = {
    "arrays": (link("tensors.npz", None), "points outside"),
    "a report": (link("drift.json", None), "points outside"),
    "the manifest": (link("manifest.json", None), "a link"),
    "the manifest to a device": (link("manifest.json", "/dev/zero"), "not a bundle"),
    "a folder": (link("runtime_lava", None), "runtime_lava"),
    "a device": (link("golden.npz", "/dev/zero"), "points outside"),
    "nothing": (link("golden.npz", "nowhere"), "is missing"),
    "a loop": (loops, "holds 'again'"),
    "a pipe": (pipe, "is missing"),
    "a path up": (listed("../moved"), "points outside"),
    "a path up in between": (listed("runtime_lava/../../moved"), "points outside"),
    "an absolute path": (listed("{outside}/moved"), "points outside"),
    "another system's path": (listed("..\\moved"), "points outside"),
    "no name": (listed(""), "points outside"),
    "a folder as a file": (listed("runtime_lava"), "is missing"),
}


@pytest.mark.parametrize("name", LINKS)
def test_links_and_paths_are_refused(name, originals, tmp_path):
    change, told = LINKS[name]
    path = shutil.copytree(originals["block"], tmp_path / "copy")
    (tmp_path / "outside").mkdir()
    change(path, tmp_path / "outside")
    assert told in refused(path)


class Trap:
    """Says so when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("file", ["tensors.npz", "golden.npz"])
def test_pickles_are_not_opened(file, originals, tmp_path):
    path = shutil.copytree(originals["block"], tmp_path / "copy")
    sprung = tmp_path / "sprung"
    for name in members(path, file):
        buffer = io.BytesIO()
        np.save(buffer, np.array([Trap(str(sprung))], dtype=object), allow_pickle=True)
        put(path, file, npz({**members(path, file), name: buffer.getvalue()}))
        assert "holds object" in refused(path)
        break
    raw = b"\x80\x04" + buffer.getvalue()[buffer.getvalue().index(b"\x80") + 2 :]
    put(path, file, raw)
    assert "not a readable .npz" in refused(path)
    assert not sprung.exists()


def test_every_refusal_is_one_line_and_exit_2(originals, tmp_path, call):
    path = shutil.copytree(originals["block"], tmp_path / "copy")
    manifest_with(lambda m: m["stages"][0].update(kind=["a\nb"]))(path)
    code, out, err = call("verify", path, "--simulator", "integer")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_verifying_takes_numpy_alone(originals, tmp_path):
    path = shutil.copytree(originals["block"], tmp_path / "copy")
    (path / "torch.py").write_text("raise SystemExit('executed')")
    shutil.move(path / "torch.py", tmp_path / "torch.py")
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "marsnn",
        "verify",
        str(path),
        "--simulator",
        "integer",
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-500:]
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "numpy" in imported
    assert not imported & {"torch", "sklearn", "matplotlib", "pandas", "scipy"}
