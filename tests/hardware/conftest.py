"""Lava's Python for the tests that need it: required in CI, skipped with the reason elsewhere."""

import os
from pathlib import Path

import pytest

from marsnn.errors import LavaError
from marsnn.hardware.lava import find_python

DRIVER = Path(__file__).parent / "lava_driver.py"


@pytest.fixture(scope="session")
def lava_python():
    try:
        return find_python()
    except LavaError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
