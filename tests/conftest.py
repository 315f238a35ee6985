"""What every test shares: the same random numbers each run, one thread, no deadline."""

import gc
import os

import pytest
import torch
from hypothesis import settings

from marsnn.cli import main
from marsnn.errors import LavaError
from marsnn.hardware import find_python

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


@pytest.fixture
def call(capsys):
    """Run a verb; give its exit code, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run
