"""export: a trained Network for a chip's simulator, with its proof and price, or for another framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import marsnn
from marsnn.checks import finite
from marsnn.energy.report import EnergyReport
from marsnn.errors import ExportError, InputError, ShapeError
from marsnn.files import PathLike
from marsnn.hardware import bundle as bundles
from marsnn.hardware import integer, place
from marsnn.hardware.bundle import Bundle
from marsnn.hardware.certificate import certify
from marsnn.hardware.graph import extract
from marsnn.hardware.modes import as_counts
from marsnn.hardware.netx import NetxExport, write_netx
from marsnn.hardware.netx_file import h5py_module
from marsnn.hardware.price import counts_of, price_of_run
from marsnn.hardware.qat import QuantizedNetwork, in_order
from marsnn.hardware.quantize import Quantized, quantize
from marsnn.hardware.stages import INPUT, IntegerGraph, Ints, Stage
from marsnn.hardware.stock_file import StockNet, write_stock
from marsnn.hardware.stock_graph import extract_stock, quantize_stock
from marsnn.network import Network
from marsnn.record import Recording
from marsnn.simulator import simulate

TARGETS = ("lava", "netx", "nir")
MODES = ("window", "count", "stock-lif")


@overload
def export(
    network: Network,
    sample: Tensor,
    path: PathLike,
    target: Literal["lava"] = ...,
    mode: Literal["window", "count"] = ...,
    allow: Sequence[str] = ...,
    bits: int = ...,
) -> Bundle: ...
@overload
def export(
    network: Network, sample: Tensor, path: PathLike, *, mode: Literal["stock-lif"], bits: int = ...
) -> StockNet: ...
@overload
def export(network: Network, sample: Tensor, path: PathLike, target: Literal["netx"]) -> NetxExport: ...
@overload
def export(
    network: Network, sample: Tensor, path: PathLike, target: Literal["nir"], *, allow: Sequence[str] = ...
) -> Path: ...
@overload
def export(
    network: Network,
    sample: Tensor,
    path: PathLike,
    target: str,
    mode: str,
    allow: Sequence[str] = ...,
    bits: int = ...,
) -> Bundle | StockNet | NetxExport | Path: ...


def export(
    network: Network,
    sample: Tensor,
    path: PathLike,
    target: str = "lava",
    mode: str = "window",
    allow: Sequence[str] = (),
    bits: int = 8,
) -> Bundle | StockNet | NetxExport | Path:
    """Write a network for a chip's simulator, or for another framework.

    Args:
        network: what has an exact form in the target, see `docs/lava.md`, `docs/netx.md` and `docs/nir.md`.
        sample: x [L, B, *D], representative inputs. They set the scales and become the golden run.
        path: the bundle's folder, replaced if it is a bundle already; the file of "netx", "stock-lif", "nir".
        target: "lava", what Lava's simulator runs spike for spike; "netx", LIF networks as lava-dl's HDF5; or
            "nir", a file in the Neuromorphic Intermediate Representation.
        mode: of "lava". "window" is the faithful train of T steps a token; "count" one graded event in the
            place of each train, see `marsnn.hardware.modes`; "stock-lif" the same counts from pairs of stock
            Lava's LIFs, in a netx file, for small networks, see `marsnn.hardware.stock`.
        bits: of "lava": of a weight with its sign, 4 to 8; `marsnn.hardware.QuantizedNetwork` trains with it.
        allow: of "nir", changes of meaning that are accepted by name, see `marsnn.hardware.nir`.

    Returns:
        What was written: a Bundle, which `marsnn.verify(path)` compares with Lava; a StockNet of "stock-lif"
        and a NetxExport of "netx", whose files `verify_netx(path)` compares; of "nir" the file's path.

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
    if target != "lava" and mode != "window":
        raise InputError(f'target "{target}" has no mode {mode!r}; leave it out')
    if target != "lava" and bits != 8:
        raise InputError(f'target "{target}" takes no bits; leave them out')
    if target == "nir":
        from marsnn.hardware import nir

        return nir.write_nir(network, sample, path, allow=tuple(allow))
    if allow:
        raise InputError('allow is of target "nir": a bundle changes nothing that could be allowed')
    if isinstance(network, QuantizedNetwork):
        network = network.plain()
    if target == "netx":
        shape = list(sample.shape[2:])
        if len(shape) not in (1, 3):
            raise ExportError(
                [f"{network.names[0]}: takes tokens {shape}; netx holds vectors and images (C, H, W)"]
            )
        return write_netx(network, sample, path)
    if mode == "stock-lif":
        return _stock(network, sample, path, bits)
    return _bundle(network, sample, path, mode, bits)


def _stock(network: Network, sample: Tensor, path: PathLike, bits: int) -> StockNet:
    h5py_module()  # before the work
    floats = simulate(network, sample, record=("spikes",))
    graph = extract_stock(network, tuple(sample.shape[2:]))
    reals = in_order(sample.detach().cpu().double().numpy())
    reals = reals.reshape(len(reals), -1)

    def distance(quantized: Quantized) -> float:
        return sum(row["end_to_end"] for row in drift(floats, reals, quantized)["layers"])

    quantized, lifs = quantize_stock(graph, reals, len(sample), bits, distance)
    header = {
        "marsnn": marsnn.__version__,
        "micro_steps": network.steps,
        "bits": bits,
        "input_scale": float(quantized.input_scale),
        "units": {name: unit.tolist() for name, unit in quantized.units.items()},
        "drift": drift(floats, reals, quantized),
    }
    return write_stock(path, lifs, quantized.inputs, header)


def _bundle(network: Network, sample: Tensor, path: PathLike, mode: str, bits: int) -> Bundle:
    floats = simulate(network, sample, record=("spikes",))  # its checks name the layer, so it comes first
    graph = extract(network, tuple(sample.shape[2:]))
    reals = in_order(sample.detach().cpu().double().numpy())
    reals = reals.reshape(len(reals), -1)
    quantized = quantize(graph, reals, len(sample), bits)
    inputs, integers, golden = quantized.inputs, quantized.graph, quantized.run
    told, certificate = drift(floats, reals, quantized), quantized.certificate
    if mode == "count":
        integers = as_counts(integers)
        golden, certificate = integer.run(integers, inputs), certify(integers)
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
            "certificate": certificate,
            "drift": told,
            "counts": counts.to_dict(),
            "energy": report.to_dict(),
            "price": price_of_run(integers, inputs, golden, mode).to_dict(),
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
        if stage.name not in floats:  # its rounding shows in the spikes of the neurons behind it
            sent[stage.name], _ = integer.run_stage(graph, stage, sent)
            continue
        expected = floats[stage.name]
        alone, _ = integer.run_stage(graph, *told_itself(graph, stage, sent, expected))
        sent[stage.name] = expected
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


def told_itself(
    graph: IntegerGraph, stage: Stage, sent: Mapping[str, Ints], spikes: Ints
) -> tuple[Stage, dict[str, Ints]]:
    """A stage that hears given spikes [W, T, N] in the place of its own, as if another one sent them."""
    if not stage.loops:
        return stage, dict(sent)
    runs = spikes.reshape(-1, graph.steps * graph.together(stage.carry), stage.neurons)
    late = np.zeros_like(runs)
    late[:, 1:] = runs[:, :-1]
    other = f"{stage.name}, a step ago"
    synapses = tuple(
        replace(each, source=other) if each.source == stage.name else each for each in stage.synapses
    )
    return replace(stage, synapses=synapses), {**sent, other: late.reshape(spikes.shape)}
