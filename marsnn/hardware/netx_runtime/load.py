"""netx without torch: lava.lib.dl.netx loads and runs a file, though lava-dl is built on torch.

`lava.lib.dl.netx` asks the torch half of lava-dl for one function, and needs it for resonate-and-fire
neurons only. That half is replaced by a module whose function refuses them, and netx is entered past its
`__init__`. Everything that builds and runs the network is lava-dl's and Lava's own.
"""

import sys
import types
import warnings
from importlib.util import find_spec


def refuse(*_):
    raise ValueError("resonate-and-fire neurons need lava-dl with torch")


def hdf5():
    """The module lava.lib.dl.netx.hdf5."""
    name = "lava.lib.dl.netx"
    if name not in sys.modules:
        try:
            folder = find_spec("lava.lib.dl")
        except ModuleNotFoundError:
            folder = None
        if folder is None:
            raise ImportError("lava-dl is not installed: pip install --no-deps lava-dl")
        package = types.ModuleType(name)
        package.__path__ = [place + "/netx" for place in folder.submodule_search_locations]
        sys.modules[name] = package
        # Lava's compiler imports every file beside a process, so also netx's own one for torch.
        for part in ("slayer", "slayer.neuron", "slayer.neuron.rf", "netx.sequential_modules"):
            stub = types.ModuleType("lava.lib.dl." + part)
            stub.__path__, stub.__file__ = [], package.__path__[0] + "/" + part
            sys.modules[stub.__name__] = stub
        sys.modules["lava.lib.dl.slayer.neuron.rf"].neuron_params = refuse
    # Lava's compiler tries that file once more by its path, and warns.
    warnings.filterwarnings("ignore", "Cannot import module .*sequential_modules")
    from lava.lib.dl.netx import hdf5

    return hdf5
