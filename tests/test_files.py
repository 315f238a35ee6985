"""Property: whatever goes wrong while writing, the old file is there whole, or none; and nothing else."""

import errno
import os
import stat

import numpy as np
import pytest

from marsnn import files
from marsnn.errors import FileError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tree(folder):
    """Every file below a folder, hidden ones too, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def failing(error):
    def call(*arguments, **settings):
        raise error

    return call


BREAKS = pytest.mark.parametrize("call", ["fsync", "replace", "fdopen"])
ERRORS = pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["disk-full", "interrupted"])


# ---- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, b"the old"])
@BREAKS
@ERRORS
def test_a_failed_write_changes_nothing(tmp_path, monkeypatch, old, call, error):
    path = tmp_path / "a.bin"
    if old is not None:
        path.write_bytes(old)
    before = tree(tmp_path)
    monkeypatch.setattr(os, call, failing(error))
    expected = FileError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        files.write_bytes(path, b"the new")
    assert tree(tmp_path) == before
    if expected is FileError:
        told = str(caught.value)
        assert str(path) in told
        assert "no space left on device" in told
        assert "nothing was changed" in told


def test_a_write_that_fails_half_way(tmp_path, monkeypatch):
    """The disk fills after some bytes: a real file object that stops."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"the old")
    fdopen = os.fdopen

    def small(handle, mode):
        file = fdopen(handle, mode)

        class Small:
            def write(self, data):
                file.write(data[:3])
                file.flush()
                raise FULL

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

        return Small()

    monkeypatch.setattr(os, "fdopen", small)
    with pytest.raises(FileError, match="no space left"):
        files.write_bytes(path, b"the new")
    assert tree(tmp_path) == {"a.bin": b"the old"}


def test_writing_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    assert files.write_text(path, "grün") == path
    assert path.read_bytes() == "grün".encode()
    files.write_text(str(path), "new")
    assert tree(tmp_path / "deep") == {"er": None, "er/a.txt": b"new"}


def test_written_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    files.write_bytes(tmp_path / "a", b"1")
    assert order == ["fsync", "replace"]


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = files.write_bytes(tmp_path / "a", b"")
        with files.new_folder(tmp_path / "folder"):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(old)


def test_a_place_where_nothing_can_be_written(tmp_path):
    """A parent that is a file refuses root as well."""
    (tmp_path / "file").write_bytes(b"here")
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    for path in (tmp_path / "file" / "x", "/dev/null/x", tmp_path / ("n" * 300), tmp_path / "folder"):
        with pytest.raises(FileError, match="can't write"):
            files.write_bytes(path, b"1")
    for path in (tmp_path / "file" / "x", "/dev/null/x"):
        with pytest.raises(FileError, match="can't write"), files.new_folder(path):
            pytest.fail("the block must not run")
    assert tree(tmp_path) == before


# ---- formats ----------------------------------------------------------------------------------------


def test_npz_is_the_same_bytes_for_the_same_arrays(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b/c": np.array(1.5), "empty": np.zeros((0, 3), np.int8)}
    assert files.npz_bytes(arrays) == files.npz_bytes(arrays)
    path = files.write_bytes(tmp_path / "a.npz", files.npz_bytes(arrays))
    again = files.read_npz(path)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)
    with pytest.raises(ValueError, match="pickle"):
        files.npz_bytes({"a": np.array([{}], dtype=object)})


def test_json(tmp_path):
    value = {"a": [1, 2.5, None], "b": "grün"}
    path = files.write_text(tmp_path / "a.json", files.json_text(value))
    assert files.read_json(path) == value
    assert path.read_text().endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        files.json_text({"a": float("nan")})


@pytest.mark.parametrize(
    ("content", "told"), [(b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (None, "no such file")]
)
def test_json_that_can_not_be_read(tmp_path, content, told):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=rf"a\.json: {told}"):
        files.read_json(path)
    with pytest.raises(FileError, match="can't read"):
        files.read_json(tmp_path)


# ---- folders ----------------------------------------------------------------------------------------


def fill(folder, text):
    files.write_text(folder / "sub" / "a", text)


@pytest.mark.parametrize("old", [False, True])
def test_new_folder_takes_its_name_at_the_end(tmp_path, old):
    path = tmp_path / "bundle"
    if old:
        fill(path, "old")
        files.write_text(path / "only-old", "")
    before = tree(tmp_path / "bundle")
    with files.new_folder(path) as folder:
        assert folder.parent == tmp_path
        fill(folder, "new")
        assert tree(path) == before
        assert path.exists() == old
    assert tree(tmp_path) == {"bundle": None, "bundle/sub": None, "bundle/sub/a": b"new"}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("mine"), FileError("as it is")])
def test_new_folder_after_an_error_in_the_block(tmp_path, old, error):
    path = tmp_path / "bundle"
    if old:
        fill(path, "old")
    before = tree(tmp_path)

    def write():
        with files.new_folder(path) as folder:
            fill(folder, "new")
            raise error

    with pytest.raises(FileError if error is FULL else type(error)) as caught:
        write()
    assert tree(tmp_path) == before
    if error is FULL:
        assert "no space left" in str(caught.value)
    else:
        assert caught.value is error


@pytest.mark.parametrize("at", [1, 2])
def test_new_folder_when_the_swap_fails(tmp_path, monkeypatch, at):
    """First rename: the old one away; second: the new one in, after which the old one comes back."""
    path, replace, calls = tmp_path / "bundle", os.replace, []
    fill(path, "old")

    def sometimes(source, target):
        calls.append(target)
        if len(calls) == at:
            raise FULL
        replace(source, target)

    def write():
        with files.new_folder(path) as folder:
            fill(folder, "new")
            monkeypatch.setattr(os, "replace", sometimes)

    before = tree(tmp_path)
    with pytest.raises(FileError, match="no space left"):
        write()
    assert len(calls) == (1 if at == 1 else 3)
    assert tree(tmp_path) == before


def test_new_folder_does_not_replace_a_file_or_a_link(tmp_path):
    fill(tmp_path / "elsewhere", "old")
    (tmp_path / "file").write_bytes(b"here")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(FileError, match="is a file, not a folder"), files.new_folder(tmp_path / name):
            pass
    assert tree(tmp_path) == before
    assert (tmp_path / "link").is_symlink()
