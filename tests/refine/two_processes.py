"""What torchrun starts: a teacher, recipes by shared batches, then one by FSDP that is killed and goes on.

accelerate keeps FSDP for accelerators, so on a CPU its state is told that it is FSDP. Everything behind that
word is real: torch shards the weights over gloo, accelerate gathers and saves them.
"""

import contextlib
import gc
import json
import os
import sys
from pathlib import Path

import torch
from accelerate import state
from accelerate.utils import DistributedType

from marsnn.cli.main import run
from marsnn.refine import distill, load_recipe, loop
from marsnn.refine.loop import last_whole_checkpoint
from tests.refine.recipes import Stop

FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "MarDecoderLayer", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}  # fmt: skip

plain = state.AcceleratorState.__init__


def told(self, *arguments, **settings):
    """As ever, then FSDP where it was several processes."""
    plain(self, *arguments, **settings)
    plugin = settings.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.fsdp_plugin = plugin
        self.distributed_type = DistributedType.FSDP
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def main(road, shared, parts, pretraining):
    """All of them; the last recipe's first stage is left in update 6.

    Args:
        road, shared, parts: recipes.   pretraining: arguments of `marsnn pretrain`, a list in JSON.
    """
    gc.freeze()  # each training collects garbage, and what was imported is none
    with contextlib.suppress(SystemExit):
        run(["pretrain", *json.loads(pretraining), "--json"])
    distill(load_recipe(road))
    assert torch.distributed.get_world_size() == 2
    with contextlib.suppress(SystemExit):
        run(["distill", str(shared), "--json"])
    os.environ |= FSDP
    state.AcceleratorState.__init__ = told
    recipe = load_recipe(parts)
    usual, loop.Tell = loop.Tell, lambda progress: Stop()
    with contextlib.suppress(KeyboardInterrupt):
        distill(recipe)
    loop.Tell = usual
    last = last_whole_checkpoint(recipe.out / "distilled" / "work")
    assert (last / "pytorch_model_fsdp_0").is_dir()
    distill(recipe)
    if torch.distributed.get_rank() == 0:
        print(f"2 processes went on from {last.name}, which lies in parts")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4])
