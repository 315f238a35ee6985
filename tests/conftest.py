"""What every test shares: the same random numbers each run, one thread, no deadline."""

import gc
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

import marsnn
from marsnn import native
from marsnn.cli import main
from marsnn.errors import LavaError, SanafeError
from marsnn.hardware import beside, find_python
from marsnn.hardware.sanafe_process import find_sanafe

settings.register_profile("marsnn", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("marsnn")
torch.set_num_threads(1)  # tests run side by side under xdist

LAVA_LIMIT_S = 600
"""Of one run in Lava, which hangs where one of its processes fails."""


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """Keep what was imported out of the garbage collector's sight: each Trainer.train() collects it all."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def lava_python():
    """Lava's Python for the tests that need it: required in CI, skipped with the reason elsewhere."""
    try:
        return find_python()
    except LavaError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _lava_server(lava_python):
    """Lava's Python with Lava imported, which forks for each run: see lava_server.py."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [lava_python, "-B", Path(__file__).with_name("lava_server.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as server:
        yield server


@pytest.fixture
def warm_lava(lava_python, _lava_server, monkeypatch, tmp_path_factory):
    """`beside.run` under Lava's Python forks a process that has imported Lava, instead of starting one."""

    def run(command, **options):
        if command[:2] != [lava_python, "-B"]:
            return subprocess.run(command, **options)
        script, *arguments = command[2:]
        output, errors = (tmp_path_factory.mktemp("run") / name for name in ("output", "errors"))
        asked = [script, arguments, os.getcwd(), options["env"], str(output), str(errors), LAVA_LIMIT_S]
        _lava_server.stdin.write(json.dumps(asked) + "\n")
        _lava_server.stdin.flush()
        code = int(_lava_server.stdout.readline())
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(command, LAVA_LIMIT_S)
        return subprocess.CompletedProcess(command, code, output.read_text(), errors.read_text())

    stand_in = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(beside, "subprocess", stand_in)


@pytest.fixture(scope="session")
def sanafe_python():
    """SANA-FE's Python, likewise."""
    try:
        return find_sanafe()
    except SanafeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def brian_python(sanafe_python):
    """A Python with Brian 2, which stands beside SANA-FE because it needs an older numpy than marsnn's."""
    probe = subprocess.run([sanafe_python, "-c", "import brian2"], capture_output=True, check=False)
    if probe.returncode:
        missing = f"{sanafe_python} has no brian2: run  make sanafe"
        if os.environ.get("CI"):
            raise ModuleNotFoundError(missing)
        pytest.skip(missing)
    return sanafe_python


@pytest.fixture(scope="session")
def _kernels_of_tests(pytestconfig, tmp_path_factory):
    """A folder in pytest's cache, of these sources: those of others are removed."""
    cache = getattr(pytestconfig, "cache", None)
    if cache is None:
        return tmp_path_factory.mktemp("kernels")
    headers = [path.read_text() for path in sorted(Path(marsnn.__file__).parent.rglob("*.h"))]
    name = native.fingerprint(Path(__file__).parent, *headers, *native._FLAGS)
    every = cache.mkdir("kernels")
    for other in every.iterdir():
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)
    return every / name


@pytest.fixture
def kernel_cache(_kernels_of_tests, monkeypatch):
    """Kernels that only tests build, mutants for example, are kept from one run of the tests to the next."""
    monkeypatch.setenv("MARSNN_CACHE", str(_kernels_of_tests))
    native.cache_folder.cache_clear()
    yield
    native.cache_folder.cache_clear()


@pytest.fixture
def call(capsys):
    """Run a verb; give its exit code, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run
