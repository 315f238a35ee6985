"""A tiny recipe of the whole road, as a TOML file and as a command."""

import sys
from pathlib import Path

from transformers import TrainerCallback

from marsnn.refine import pretraining
from marsnn.refine.texts import read_text

WHOLE = """
out = "{folder}/out"

[pretrain]
text = ["{folder}/learnt.txt"]
held_out = ["{folder}/held.txt"]
vocabulary = 300
hidden_size = 24
layers = 2
heads = 4
kv_heads = 2
ffn = 40
length = 32
context = 128
updates = 8
batch = 4
learning_rate = 1e-2
warmup = 2
save_every = 3

[refine]
budget = 1
keep = 0.5
sparsity = "mask"
steps = 3
text = "{folder}/learnt.txt"
updates = 3
length = 32
sequences = 6
calibration = 128

[distill]
text = ["{folder}/learnt.txt"]
length = 32
batch = 4
together = 2
updates = 8
learning_rate = 1e-3
warmup = 1
steps_from = 5
threshold_learning_rate = 1e-2
save_every = 2
curve_every = 4

[sparse]
text = ["{folder}/learnt.txt"]
length = 32
batch = 4
updates = 4
learning_rate = 1e-3
warmup = 1
refresh_every = 2
save_every = 2

[evaluate]
texts = ["{folder}/held.txt"]
tokens = 130
context = 64
tasks = 0
contexts = [64, 128]
positions = [100]
windows = 2
"""


def write_recipe(folder: Path, *changes: tuple[str, str]) -> Path:
    """Texts and a recipe in a folder; changes are of the recipe's text, each to be found once."""
    text = read_text("stdlib")
    (folder / "learnt.txt").write_text(text[:5000])
    (folder / "held.txt").write_text(text[50_000:51_000])
    recipe = WHOLE
    for old, new in changes:
        assert recipe.count(old) == 1, old
        recipe = recipe.replace(old, new)
    path = folder / "recipe.toml"
    path.write_text(recipe.replace("{folder}", str(folder)))
    return path


ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(recipe):
    """Of `marsnn distill`."""
    return [sys.executable, "-m", "marsnn", "distill", str(recipe)]


def pretrain_arguments(config, out):
    """Of `marsnn pretrain`, for this configuration."""
    given = ["--out", str(out)]
    for name, value in pretraining._settings(config).items():
        for each in value if isinstance(value, list) else [value]:
            given += [f"--{name.replace('_', '-')}", str(each)]
    return given


class Stop(TrainerCallback):
    """A kill in update 6."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt
