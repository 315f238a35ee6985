"""The runtime on a host of a board: what it asks for, and that golden spikes decide there too.

No board is here. The vendor's package is stood in for by one that notes what it is asked for and simulates.
"""

import os
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.hardware import export
from marsnn.hardware.bundle import RUNTIME
from marsnn.network import Network
from marsnn.neurons import ATMN

pytestmark = [pytest.mark.lava, pytest.mark.xdist_group("lava")]

STAND_IN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import lava.magma.core.run_configs as configs
from lava.utils import loihi

class Board(configs.Loihi2SimCfg):
    def __init__(self, **settings):
        print("configuration", settings)
        super().__init__(**settings)

loihi.is_installed = lambda: True
loihi.use_ethernet_host = lambda address: print("board at", address)
loihi.use_slurm_host = lambda: print("board by SLURM")
configs.Loihi2HwCfg = Board
import run
sys.exit(run.main())
"""


FAILING = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import atmn

def fails(self, h):
    raise ArithmeticError("on purpose")

def ends(self, h):
    import os
    os._exit(7)

atmn.PyATMNFixed.spikes = {"raises": fails, "ends": ends}[sys.argv.pop(1)]
import run
sys.exit(run.main())
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    network = Network([nn.Linear(6, 8), ATMN(8, threshold=0.3), nn.Linear(8, 3)])
    return export(network, torch.randn(3, 4, 6), tmp_path_factory.mktemp("board") / "bundle")


def started(command, **variables):
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MARSNN_LOIHI"))
    }
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **variables}, timeout=120)


def test_without_a_board_it_says_what_is_missing(bundle, lava_python):
    found = started([lava_python, "-B", RUNTIME / "run.py", bundle.path, "--backend", "loihi2"])
    assert found.returncode == 2
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 2
    assert "Lava-Loihi is not installed" in lines[0]
    assert "set it to the address of the board's host" in lines[1]
    assert "MARSNN_LOIHI_HOST" in lines[1]
    found = started(
        [lava_python, "-B", RUNTIME / "run.py", bundle.path, "--backend", "loihi2"],
        MARSNN_LOIHI_HOST="10.0.0.1",
    )
    assert found.returncode == 2
    assert len(found.stderr.strip().splitlines()) == 1


def test_with_one_golden_spikes_decide(bundle, lava_python, tmp_path):
    command = [lava_python, "-B", "-c", STAND_IN, RUNTIME, bundle.path, "--backend", "loihi2"]
    found = started(command, MARSNN_LOIHI_HOST="10.0.0.1")
    assert found.returncode == 0, found.stderr
    assert "board at 10.0.0.1" in found.stdout
    assert "configuration {'select_tag': 'fixed_pt'}" in found.stdout
    assert "0 mismatches of 384 spike slots" in found.stdout
    # a board that sends another spike is found out
    golden = dict(np.load(bundle.path / "golden.npz"))
    golden["spikes/atmn1"][1, 0, 2] = 1 - abs(golden["spikes/atmn1"][1, 0, 2])
    for name in ("manifest.json", "tensors.npz"):
        (tmp_path / name).write_bytes((bundle.path / name).read_bytes())
    np.savez(tmp_path / "golden.npz", **golden)
    command[5] = tmp_path
    found = started(command, MARSNN_LOIHI_HOST="10.0.0.1")
    assert found.returncode == 1
    assert "first: atmn1: token 1, step 0, neuron 2" in found.stdout


@pytest.mark.parametrize(
    ("how", "told"), [("raises", "ArithmeticError: on purpose"), ("ends", "it ended without a word")]
)
def test_a_process_that_fails_ends_the_run(how, told, bundle, lava_python):
    """Lava would wait for it; the processes beside it are ended, too."""
    found = started([lava_python, "-B", "-c", FAILING, RUNTIME, how, bundle.path])
    assert found.returncode == 3, found.stderr
    assert f"error: a process of Lava's failed: {told}" in found.stderr.splitlines()
