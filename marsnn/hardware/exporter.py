"""export: a trained Network to a bundle that a chip's simulator runs, with its proof and its price; or to NIR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import marsnn
from marsnn.checks import finite
from marsnn.energy.report import EnergyReport
from marsnn.errors import InputError, ShapeError
from marsnn.files import PathLike
from marsnn.hardware import bundle as bundles
from marsnn.hardware import integer, place
from marsnn.hardware.bundle import Bundle
from marsnn.hardware.certificate import certify
from marsnn.hardware.graph import extract
from marsnn.hardware.modes import as_counts
from marsnn.hardware.price import counts_of
from marsnn.hardware.qat import QuantizedNetwork, in_order
from marsnn.hardware.quantize import Quantized, quantize
from marsnn.hardware.stages import INPUT
from marsnn.network import Network
from marsnn.record import Recording
from marsnn.simulator import simulate

TARGETS = ("lava", "nir")
MODES = ("window", "count")


def export(
    network: Network,
    sample: Tensor,
    path: PathLike,
    target: Literal["lava", "nir"] = "lava",
    mode: Literal["window", "count"] = "window",
    allow: Sequence[str] = (),
    bits: int = 8,
) -> Bundle | Path:
    """Write a network for a chip's simulator, or for another framework.

    Args:
        network: what has an exact form in the target, see `docs/lava.md` and `docs/nir.md`; skips included.
        sample: x [L, B, *D], representative inputs. They set the scales and become the golden run.
        path: the bundle's folder, replaced if it is a bundle already; of "nir" the file.
        target: "lava", a bundle that Lava's simulator runs spike for spike; or "nir", a file in the Neuromorphic
            Intermediate Representation.
        mode: of "lava". "window" is the faithful train of T steps a token, "count" one graded event in the place
            of each train, see `marsnn.hardware.modes`.
        bits: of "lava": of a weight with its sign, 4 to 8; see `marsnn.hardware.QuantizedNetwork` for training
            with it.
        allow: of "nir", changes of meaning that are accepted by name, see `marsnn.hardware.nir`.

    Returns:
        The bundle as written, which `marsnn.verify(path)` compares with Lava; of "nir" the file's path.

    Raises:
        ExportError: with every part of the network that has no exact image.
        ShapeError, NonFiniteError: of the sample or the weights.   FileError: it can't be written.
    """
    if target not in TARGETS or mode not in MODES:
        raise InputError(
            f"can't export to target {target!r} in mode {mode!r}; known: target {', '.join(TARGETS)}, "
            f"mode {', '.join(MODES)}"
        )
    if not isinstance(network, Network):
        raise InputError(f"export() takes a marsnn Network, got {type(network).__name__}; wrap its layers")
    if not isinstance(sample, Tensor) or sample.ndim < 3:
        shape = list(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        raise ShapeError(f"expected a sample x [L, B, *D], got {shape}")
    finite("sample", sample)
    if target == "nir":
        if mode != "window":
            raise InputError(f'target "nir" has no mode {mode!r}; leave it out')
        from marsnn.hardware import nir

        return nir.write_nir(network, sample, path, allow=tuple(allow))
    if allow:
        raise InputError('allow is of target "nir": a bundle changes nothing that could be allowed')
    return _bundle(network, sample, path, mode, bits)


def _bundle(network: Network, sample: Tensor, path: PathLike, mode: str, bits: int) -> Bundle:
    if isinstance(network, QuantizedNetwork):
        network = network.plain()
    floats = simulate(network, sample, record=("spikes",))  # its checks name the layer, so it comes first
    graph = extract(network, tuple(sample.shape[2:]))
    reals = in_order(sample.detach().cpu().double().numpy())
    reals = reals.reshape(len(reals), -1)
    quantized = quantize(graph, reals, len(sample), bits)
    inputs, integers, golden = quantized.inputs, quantized.graph, quantized.run
    told = drift(floats, reals, quantized)
    if mode == "count":
        integers = as_counts(integers)
        golden = integer.run(integers, inputs)
    counts = counts_of(integers, inputs, golden)
    placed = place.place(integers, traffic=place.events_of(golden))
    report = EnergyReport(counts, name=f"{mode} bundle", placement=placed if placed.fits else None)
    return bundles.write(
        path,
        integers,
        inputs,
        golden,
        header={
            "marsnn": marsnn.__version__,
            "target": "lava",
            "mode": mode,
            "micro_steps": network.steps,
            "bits": bits,
            "input": {"scale": np.asarray(quantized.input_scale).tolist()},
        },
        units=quantized.units,
        reports={
            "certificate": certify(integers),
            "drift": told,
            "counts": counts.to_dict(),
            "energy": report.to_dict(),
            "placement": placed.to_dict(),
        },
    )


def drift(recording: Recording, sample: NDArray[np.float64], quantized: Quantized) -> dict[str, Any]:
    """How far the integers are from the trained floats' `recording`; not parity, which is integers in Lava.

    Per population of spikes: the share of slots that differ when all spikes before it are the float network's
    own ("teacher_forced": the rounding of what lies between) and when they are the integers' ("end_to_end").
    """
    graph, run = quantized.graph, quantized.run
    floats = {
        name: in_order(np.swapaxes(spikes, 1, 2)).reshape(len(sample), graph.steps, -1).astype(np.int64)
        for name, spikes in recording.spikes.items()
    }
    rows = []
    sent = {INPUT: quantized.inputs}
    for stage in graph.stages:
        alone, _ = integer.run_stage(graph, stage, sent)
        if stage.name not in floats:  # its rounding shows in the spikes of the neurons behind it
            sent[stage.name] = alone
            continue
        expected = sent[stage.name] = floats[stage.name]
        rows.append(
            {
                "name": stage.name,
                "teacher_forced": float(np.mean(alone != expected)),
                "end_to_end": float(np.mean(run.spikes[stage.name] != expected)),
                "float_spikes": int(np.count_nonzero(expected)),
                "integer_spikes": int(np.count_nonzero(run.spikes[stage.name])),
            }
        )
    result: dict[str, Any] = {
        "claim": "distance of the integer model from the trained float network; not parity",
        "input_max_error": float(np.abs(quantized.inputs * quantized.input_scale - sample).max()),
        "layers": rows,
    }
    name = graph.last.name
    if name in run.values:
        exact = in_order(recording.output.astype(np.float64)).reshape(len(sample), -1)
        reals = run.values[name] * quantized.units[name]
        result["output"] = {
            "name": name,
            "rms_error": float(np.sqrt(np.mean((reals - exact) ** 2))),
            "rms": float(np.sqrt(np.mean(exact**2))),
            "same_largest": float(np.mean(reals.argmax(-1) == exact.argmax(-1))),
        }
    return result
