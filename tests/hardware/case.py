"""An integer graph to try, with its inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marsnn.hardware.bundle import stage_row, tensors_of
from marsnn.hardware.stages import IntegerGraph


@dataclass(frozen=True)
class Case:
    """A graph and its inputs [W, D]."""

    name: str
    graph: IntegerGraph
    inputs: np.ndarray


def write_case(case: Case, folder: Path) -> None:
    """The files that the runtime reads, without the golden run."""
    folder.mkdir(parents=True)
    manifest = {
        "steps": case.graph.steps,
        "tokens": len(case.inputs),
        "tokens_per_sample": case.graph.tokens_per_sample,
        "stages": [stage_row(stage, np.ones(stage.neurons)) for stage in case.graph.stages],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    np.savez(folder / "tensors.npz", inputs=case.inputs, **tensors_of(case.graph))
