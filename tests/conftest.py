"""What every test shares: the same random numbers each run, one thread, no deadline."""

import gc
import os
import subprocess

import pytest
import torch
from hypothesis import settings

from marsnn.cli import main
from marsnn.errors import LavaError, SanafeError
from marsnn.hardware import find_python
from marsnn.hardware.sanafe_process import find_sanafe

settings.register_profile("marsnn", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("marsnn")
torch.set_num_threads(1)  # tests run side by side under xdist


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


@pytest.fixture
def call(capsys):
    """Run a verb; give its exit code, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run
