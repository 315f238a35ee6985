"""How many cores a graph needs: each stage split over cores by the limits of a profile.

Counts cores and their filling; it does not choose their position on the chip, so no hops follow from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marsnn.errors import FileError
from marsnn.files import PathLike, read_toml
from marsnn.hardware.stages import IntegerGraph

PROFILES = Path(__file__).parent / "profiles"
LIMITS = (
    "cores",
    "neurons_per_core",
    "synapse_bytes_per_core",
    "input_axons_per_core",
    "output_axons_per_core",
    "rails_per_ternary_spike",
)


def load_profile(profile: PathLike = "loihi1") -> dict[str, Any]:
    """A chip's limits, by the name of a shipped profile or the path of a TOML file."""
    shipped = PROFILES / f"{profile}.toml"
    path = shipped if shipped.is_file() else Path(profile)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.toml")))
        raise FileError(f"{path}: no such profile; shipped ones: {known}")
    limits = read_toml(path)
    for key in LIMITS:
        if not isinstance(limits.get(key), int) or limits[key] < 1:
            raise FileError(f"{path}: {key} is {limits.get(key)!r}, expected a whole number >= 1")
    return limits


def assign_cores(graph: IntegerGraph, profile: PathLike = "loihi1") -> dict[str, Any]:
    """Cores per stage, whether the whole fits one chip, and why not.

    A core holds some of a stage's neurons, one byte for each of their synapses, and one input axon for each
    sender and rail (two rails where the sender's spikes are ternary). A neuron of a gate takes the place of
    two, for its two sums, and each of its cores two bytes for every entry of the table. Neurons behind a gate
    have one input axon each and no synapse.
    """
    limits = load_profile(profile)
    rows, refusals = [], []
    ternary = False  # the graded input is one axon a feature
    for stage in graph.stages:
        neurons, sums = stage.neurons, len(stage.bias) // stage.neurons
        per_neuron = stage.weight.shape[1] * sums  # bytes
        table = 0 if stage.gate is None else 2 * len(stage.gate.table)
        memory = limits["synapse_bytes_per_core"] - table
        per_core = limits["neurons_per_core"] // sums
        if per_neuron:
            per_core = max(min(per_core, memory // per_neuron), 0)
        if stage.arrival == "direct":
            axons = min(neurons, per_core)
        else:
            axons = stage.inputs * (limits["rails_per_ternary_spike"] if ternary else 1)
        if axons > limits["input_axons_per_core"] or per_core == 0:
            refusals.append(f"{stage.name}: needs {axons} input axons a core; split its inputs over layers")
        cores = -(-neurons // max(per_core, 1))
        rows.append(
            {
                "name": stage.name,
                "cores": cores,
                "neurons": neurons,
                "synapse_bytes": neurons * per_neuron + cores * table,
                "input_axons_per_core": axons,
                "filled_neurons": neurons * sums / (cores * limits["neurons_per_core"]),
                "filled_synapses": (neurons * per_neuron / cores + table) / limits["synapse_bytes_per_core"],
            }
        )
        ternary = stage.kind == "atmn"
    used = sum(int(row["cores"]) for row in rows)
    if used > limits["cores"]:
        refusals.append(f"needs {used} cores of {limits['cores']}; make the layers smaller or use more chips")
    return {
        "profile": limits.get("name", str(profile)),
        "source": limits.get("source", "not stated"),
        "verified": bool(limits.get("verified", False)),
        "cores_used": used,
        "cores": limits["cores"],
        "fits": not refusals,
        "refusals": refusals,
        "stages": rows,
    }
