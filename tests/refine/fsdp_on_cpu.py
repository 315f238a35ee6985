"""`marsnn` with FSDP on CPUs, which accelerate keeps for accelerators: its state is told that it is FSDP.

Everything behind that word is real: torch shards the weights over gloo, accelerate gathers and saves them.
"""

import sys

import torch
from accelerate import state
from accelerate.utils import DistributedType

plain = state.AcceleratorState.__init__


def told(self, *arguments, **settings):
    """As ever, then FSDP where it was several processes."""
    plain(self, *arguments, **settings)
    plugin = settings.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.fsdp_plugin = plugin
        self.distributed_type = DistributedType.FSDP
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.device = torch.device("cpu")  # FSDP 1 compares it with a device that has no index


state.AcceleratorState.__init__ = told

if __name__ == "__main__":
    from marsnn.cli.main import run

    run(sys.argv[1:])
