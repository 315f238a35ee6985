"""What the tests of neurons share."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _no_leftovers():
    """snntorch keeps every neuron of the process in a list, which `utils.reset` walks."""
    snntorch = sys.modules.get("snntorch")
    before = list(snntorch.SpikingNeuron.instances) if snntorch else []
    yield
    if snntorch:
        snntorch.SpikingNeuron.instances[:] = before
