"""The integers of an export: speed of simulation, cost of an export, accuracy at few bits, parity with Lava.

    speed     tokens per second of one network in the compiled loops, in numpy, and in other simulators
    export    seconds and memory of exporting 10^7 weights, in a fresh process
    digits    accuracy of the floats and of integers of 8 to 4 bits, rounded after training and trained with
    parity    random networks of everything that can be exported, in Lava's simulator: what differs

Every simulator gets the same bundle, and its spikes are compared with the golden ones before its time counts.
Starting another simulator (Lava compiles processes, Brian 2 code) is timed apart. In each round all run, one
after the other; ratios are taken within a round.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from marsnn.bench import timing
from marsnn.bench.parts import aimed, aims_table, machine, part
from marsnn.bench.random_nets import draws
from marsnn.data import Digits, load_digits
from marsnn.errors import InputError, LavaError, MarsnnError
from marsnn.files import read_npz
from marsnn.hardware import beside, integer
from marsnn.hardware.bundle import RUNTIME, Bundle
from marsnn.hardware.exporter import export
from marsnn.hardware.fast import FastIntegers, library
from marsnn.hardware.lava import compare, find_python, verify
from marsnn.hardware.qat import QuantizedNetwork
from marsnn.hardware.sanafe_process import find_sanafe
from marsnn.hardware.stages import IntegerRun
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF, Recurrent
from marsnn.progress import track
from marsnn.training import TrainConfig, accuracy, train
from marsnn.workers import peak_memory_mb, start_peak_memory

WIDTH, DEPTH, STEPS = 256, 3, 4
NEURONS = ("ATMN", "LIF")
BATCH = 64
"""Samples that are run at once in the second row of our simulators."""
BITS = (8, 6, 5, 4)
BRIAN2 = "MARSNN_BRIAN2_PYTHON"
SCRIPTS = Path(__file__).parent / "peer_runtime"


@dataclass(frozen=True)
class HardwareConfig:
    """How much is measured."""

    rounds: int = 5
    """of speed; each starts the other simulators anew"""
    tokens: int = 128
    """of the sample that others simulate"""
    width: int = WIDTH
    """neurons of each of the three layers whose speed is measured"""
    weights: int = 10_000_000
    """of the network whose export is measured"""
    exports: int = 3
    """exports of it, each in a process of its own"""
    seeds: int = 3
    """trainings of each network on digits"""
    epochs: int = 40
    """of its training"""
    more_epochs: int = 10
    """of training with the integers, from there"""
    networks: int = 40
    """random ones that are compared with Lava"""
    samples: int = 64
    """of each of them, of three tokens"""


QUICK = HardwareConfig(1, 4, 16, 20_000, 1, 1, 1, 1, 1, 2)
"""Whether it works, not how good it is."""


# ---- speed ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """Another simulator, which runs a bundle in a process of its own.

    The script is called as SCRIPT RUNTIME BUNDLE OUT.npz and leaves in OUT what `lava_clock.py` says.
    """

    name: str
    neurons: tuple[str, ...]  # what it can simulate
    script: Path
    python: Callable[[], str]  # that runs it; raises a MarsnnError where there is none


def _find_brian2() -> str:
    """The interpreter of Brian 2: of a setting, or that of SANA-FE's environment, where it stands too."""
    python = os.environ.get(BRIAN2) or find_sanafe()
    if beside.works(python, "import brian2"):
        return python
    raise InputError(f"{python} has no brian2; run  make sanafe , or set {BRIAN2} to a Python that has it")


PEERS = (
    Peer("Lava", NEURONS, SCRIPTS / "lava_clock.py", find_python),
    Peer(
        "Brian 2",
        ("LIF",),
        SCRIPTS / "brian2_clock.py",
        _find_brian2,
    ),
)


def network(neuron: str, width: int) -> Network:
    """Three hidden layers of a neuron, T = 4, and a readout; weights from a fixed seed."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        hidden = (
            ATMN(width, STEPS, 0.5)
            if neuron == "ATMN"
            else LIF(width, STEPS, threshold=0.07, carry="sequence")
        )
        layers += [nn.Linear(width, width), hidden]
    return Network([*layers, nn.Linear(width, 10)])


def speed(neuron: str, config: HardwareConfig, peers: Sequence[Peer] = PEERS) -> dict[str, Any]:
    """Tokens per second of one network in every simulator.

    Raises:
        MarsnnError: a simulator's spikes aren't the golden ones, or its process failed.
    """
    x = torch.randn(config.tokens, 1, config.width, generator=torch.Generator().manual_seed(1))
    found: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(network(neuron, config.width), x, Path(folder) / "bundle")
        assert isinstance(bundle, Bundle)
        simulator = FastIntegers(bundle.graph, torch.get_num_threads())
        ours: dict[str, tuple[Callable[[Any], IntegerRun], int]] = {
            "marsnn": (simulator.run, 1),
            f"marsnn, batch of {BATCH}": (simulator.run, BATCH),
            "marsnn, numpy alone": (partial(integer.run, bundle.graph), 1),
            f"marsnn, numpy alone, batch of {BATCH}": (partial(integer.run, bundle.graph), BATCH),
        }
        for name, (run, batch) in ours.items():
            _same(name, bundle, run(np.tile(bundle.inputs, (batch, 1))), batch)
        here = []
        for peer in peers:
            if neuron not in peer.neurons:
                continue
            try:
                here.append((peer, peer.python()))
            except MarsnnError as error:
                missing[peer.name] = str(error)
        names = [*ours, *(peer.name for peer, _ in here)]
        rates: dict[str, list[float]] = {name: [] for name in names}
        starts: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(config.rounds):
            for peer, python in here:
                rate, start_s = _clocked(peer, python, bundle)
                rates[peer.name].append(rate)
                starts[peer.name].append(start_s)
            for name, (run, batch) in ours.items():
                rates[name].append(_rate(run, np.tile(bundle.inputs, (batch, 1))))
    first = here[0][0].name if here and here[0][0].name == "Lava" else None
    for name in names:
        found[name] = {
            "tokens_per_s": timing.summary(rates[name]),
            "start_s": timing.summary(starts[name]) if starts[name] else None,
            "to_lava": timing.ratio(rates[name], rates[first]) if first else None,
        }
    spikes = {name: float(np.mean(train != 0)) for name, train in bundle.golden.spikes.items()}
    return {
        "neuron": neuron, "width": config.width, "tokens": config.tokens, "kernel": library() is not None,
        "spike_rates": spikes, "simulators": found, "missing": missing,
    }  # fmt: skip


def _rate(run: Callable[[Any], IntegerRun], inputs: np.ndarray[Any, Any]) -> float:
    """Tokens per second, of as many runs as a tenth of a second has."""
    runs, began = 0, time.perf_counter()
    while runs < 1 or time.perf_counter() - began < 0.1:
        run(inputs)
        runs += 1
    return runs * len(inputs) / (time.perf_counter() - began)


def _clocked(peer: Peer, python: str, bundle: Bundle) -> tuple[float, float]:
    """Tokens per second of a peer, and seconds until it ran; its spikes are those of the bundle."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        began = time.perf_counter()
        given = [RUNTIME, bundle.path.resolve(), out]
        beside.run(python, peer.script, given, out, f"{peer.name}'s run", LavaError)
        whole = time.perf_counter() - began
        arrays = read_npz(out)
    run = IntegerRun()
    counted = arrays.get("saturations", np.array(list(bundle.golden.saturations.values())))
    for stage, saturations in zip(bundle.graph.stages, counted, strict=True):
        (run.spikes if stage.sends == "train" else run.values)[stage.name] = arrays[f"sent/{stage.name}"]
        run.saturations[stage.name] = int(saturations)
    _same(peer.name, bundle, run)
    _, run_s, steps = (float(each) for each in arrays["clock"])
    return steps / bundle.steps / run_s, whole - run_s


def _same(name: str, bundle: Bundle, run: IntegerRun, batch: int = 1) -> None:
    """Abort where a run of the bundle's inputs, so many times, isn't the golden one."""
    for each in range(batch):
        piece = slice(each * len(bundle.inputs), (each + 1) * len(bundle.inputs))
        sent = {stage.name: run.of(stage.name)[piece] for stage in bundle.graph.stages}
        saturations = {key: value // batch for key, value in run.saturations.items()}
        found = compare(bundle, sent, saturations, "integer", 0.0)
        if not found.ok:
            raise MarsnnError(
                f"{name}: {found.mismatches} spikes or values differ from the golden run, first "
                f"{found.first}; nothing is timed"
            )


# ---- export ---------------------------------------------------------------------------------------------


def exported(weights: int, shape: str) -> dict[str, Any]:
    """One export, in this process: seconds, and the process's peak memory in 2^30 bytes.

    Args:
        shape: "deep", four Linear maps between ATMNs, or "wide", one Linear map of all the weights.
    """
    torch.manual_seed(0)
    layers = 4 if shape == "deep" else 1
    width = round((weights / layers) ** 0.5)
    parts = [each for _ in range(layers) for each in (nn.Linear(width, width), ATMN(width, STEPS))]
    made = Network(parts)
    x = torch.randn(4, 4, width)
    start = start_peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        bundle = export(made, x, Path(folder) / "bundle")
        seconds = time.perf_counter() - began
        assert isinstance(bundle, Bundle)
        size = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    risen = peak_memory_mb(start)
    return {
        "shape": shape,
        "weights": sum(each.weight.numel() for each in parts if isinstance(each, nn.Linear)),
        "seconds": seconds,
        "peak_gib": None if start is None or risen is None else (start + 1e6 * risen) / 2**30,
        "bundle_mb": size / 1e6,
    }


def exports(config: HardwareConfig) -> list[dict[str, Any]]:
    """Both shapes, each export in a process of its own."""
    rows = []
    for shape in ("deep", "wide"):
        found = [
            part("hardware", "exported", weights=config.weights, shape=shape) for _ in range(config.exports)
        ]
        peaks = [each["peak_gib"] for each in found if each["peak_gib"] is not None]
        rows.append(
            {
                "shape": shape,
                "weights": found[0]["weights"],
                "bundle_mb": found[0]["bundle_mb"],
                "seconds": timing.summary([each["seconds"] for each in found]),
                "peak_gib": max(peaks) if peaks else None,
            }
        )
    return rows


# ---- digits ---------------------------------------------------------------------------------------------


def trained(neuron: str, seed: int, config: HardwareConfig, digits: Digits) -> dict[str, Any]:
    """Accuracies on the test split: floats, integers of each width, and both after as much more training."""
    torch.manual_seed(seed)
    inputs, hidden = digits.train.x.shape[-1], 64

    def spikes() -> nn.Module:
        return ATMN(hidden, STEPS) if neuron == "ATMN" else LIF(hidden, STEPS, carry="sequence")

    floats = Network(
        [nn.Linear(inputs, hidden), spikes(), nn.Linear(hidden, hidden), spikes(), nn.Linear(hidden, 10)]
    )
    train(floats, digits.train.x, digits.train.y, TrainConfig(epochs=config.epochs, seed=seed))
    more = TrainConfig(epochs=config.more_epochs, learning_rate=1e-3, seed=seed)
    sample = digits.train.x[:, :128]

    def of(each: Network) -> float:
        return accuracy(each, digits.test.x, digits.test.y)

    longer = deepcopy(floats)
    train(longer, digits.train.x, digits.train.y, more)
    row: dict[str, Any] = {
        "neuron": neuron, "seed": seed, "float": of(floats), "float_longer": of(longer),
        "rounded": {}, "aware": {},
    }  # fmt: skip
    for bits in BITS:
        row["rounded"][str(bits)] = of(QuantizedNetwork(floats, sample, bits))
        aware = QuantizedNetwork(deepcopy(floats), sample, bits)
        train(aware, digits.train.x, digits.train.y, more)
        row["aware"][str(bits)] = of(aware)
    return row


# ---- parity ---------------------------------------------------------------------------------------------


def parity(config: HardwareConfig, seed: int = 0) -> dict[str, Any]:
    """Random networks of all families through Lava's simulator; what differs is counted, not raised.

    Raises:
        LavaError: Lava is missing, or a run failed.
    """
    find_python()
    families: dict[str, dict[str, int]] = {}
    first = None
    kinds: set[str] = set()
    nets = list(islice(draws(seed, tokens=3, samples=config.samples), config.networks))
    with tempfile.TemporaryDirectory() as folder:
        for number, (family, drawn, x) in enumerate(track(nets, "random networks in Lava")):
            bundle = export(drawn, x, Path(folder) / str(number))
            assert isinstance(bundle, Bundle)
            found = verify(bundle.path)
            row = families.setdefault(
                family, dict.fromkeys(("networks", "slots", "values", "spikes", "mismatches"), 0)
            )
            row["networks"] += 1
            row["slots"] += found.slots
            row["values"] += found.values + found.sums
            row["spikes"] += found.positive + found.negative
            row["mismatches"] += found.mismatches
            kinds |= {_named(layer) for layer in drawn.layers.values()}
            if found.first and first is None:
                first = f"{family}, network {number}: {found.first}"
    return {"seed": seed, "families": families, "first": first, "layers": sorted(kinds)}


def _named(layer: nn.Module) -> str:
    inner = f"({type(layer.neuron).__name__})" if isinstance(layer, Recurrent) else ""
    return type(layer).__name__ + inner


# ---- the whole ------------------------------------------------------------------------------------------

PARTS = ("speed", "export", "digits", "parity")


def run(
    only: Sequence[str] = PARTS, config: HardwareConfig | None = None, quick: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Measure what is asked for.

    Args:
        only: of `PARTS`.
        quick: tiny, whatever `config` says: whether it works.
        seed: of the first training on digits and of the first random network.

    Returns:
        JSON-ready: machine, settings, one entry for each part, and what was aimed at.

    Raises:
        InputError: a part that isn't known.   MarsnnError: a simulator's spikes are wrong.
    """
    unknown = [name for name in only if name not in PARTS]
    if unknown:
        raise InputError(f"no part named {unknown[0]!r}; known: {', '.join(PARTS)}")
    config = QUICK if quick else config or HardwareConfig()
    chosen = [name for name in PARTS if name in only]
    result: dict[str, Any] = {
        "benchmark": "hardware",
        "command": "marsnn bench hardware"
        + "".join(f" --only {name}" for name in chosen if len(chosen) < len(PARTS))
        + f" --rounds {config.rounds} --seeds {config.seeds} --networks {config.networks} --seed {seed}"
        + " --quick" * quick,
        "machine": machine(),
        "config": dict(config.__dict__),
    }
    if "speed" in chosen:
        result["speed"] = [speed(neuron, config) for neuron in track(NEURONS, "simulators")]
    if "export" in chosen:
        result["export"] = exports(config)
    if "digits" in chosen:
        digits = load_digits()
        jobs = [(neuron, seed + k) for neuron in NEURONS for k in range(config.seeds)]
        result["digits"] = [trained(*job, config, digits) for job in track(jobs, "digits")]
    if "parity" in chosen:
        result["parity"] = parity(config, seed)
    result["targets"] = [] if quick else targets(result)
    return result


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, each with its value and whether it is met; what can't be told is left out."""
    found: list[dict[str, Any]] = []
    for row in result.get("speed", ()):
        for suffix, limit in (("", 100.0), (f", batch of {BATCH}", 1000.0)):
            times = row["simulators"][f"marsnn{suffix}"]["to_lava"]
            at = f"3 x {row['width']} {row['neuron']}, T = {STEPS}{suffix}: speed in that of Lava's simulator"
            found += aimed(at, times and times["median"], ">=", limit)
    for row in result.get("export", ()):
        at = f"export of {row['weights'] / 1e6:.1f} M weights, {row['shape']}"
        found += aimed(f"{at}: seconds", row["seconds"]["median"], "<=", 20.0)
        found += aimed(f"{at}: peak memory of the process, GiB", row["peak_gib"], "<=", 2.0)
    for neuron, rows in _by_neuron(result):
        for bits in map(str, BITS):
            lost = 100 * statistics.mean(row["float"] - row["aware"][bits] for row in rows)
            at = f"digits, {neuron}, {bits} bits after training with them: points below the floats"
            found += aimed(at, lost, "<=", 0.5)
    if "parity" in result:
        rows = list(result["parity"]["families"].values())
        found += aimed("spike slots compared with Lava", sum(row["slots"] for row in rows), ">=", 1e6)
        found += aimed(
            "of them, and of all values, different", sum(row["mismatches"] for row in rows), "<=", 0
        )
    return found


def _by_neuron(result: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    rows = result.get("digits", [])
    return [
        (neuron, [row for row in rows if row["neuron"] == neuron])
        for neuron in dict.fromkeys(row["neuron"] for row in rows)
    ]


# ---- as text --------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    here = result["machine"]
    parts = [f"{here['device']}, {here['threads']} threads; torch {here['torch']}."]
    parts += [_speed_table(row) for row in result.get("speed", ())]
    if result.get("export"):
        parts.append(_export_table(result["export"]))
    if result.get("digits"):
        parts.append(_digits_table(result))
    if "parity" in result:
        parts.append(_parity_table(result["parity"]))
    if result["targets"]:
        parts.append(aims_table(result["targets"]))
    return "\n\n".join(parts)


def _speed_table(row: dict[str, Any]) -> str:
    rates = ", ".join(f"{100 * rate:.1f}" for rate in row["spike_rates"].values())
    how = "compiled loops" if row["kernel"] else "no compiler here: all in numpy"
    wanted = {"marsnn": ">= 100", f"marsnn, batch of {BATCH}": ">= 1,000"}
    lines = [
        f"3 x {row['width']} {row['neuron']}, T = {STEPS}, {row['tokens']} tokens a sample; {rates} % of "
        f"slots spike; {how}. All keep every stage's spikes. Start: what a peer's process does before its "
        "second step.",
        "",
        "| simulator | tokens/s | in Lava's | wanted | start, s |",
        "|---|---|---|---|---|",
    ]
    for name, each in row["simulators"].items():
        start, times, rate = each["start_s"], each["to_lava"], each["tokens_per_s"]
        lines.append(
            f"| {name} | {_wide(rate)} | {_wide(times) if times else ''} | {wanted.get(name, '')} | "
            f"{'' if start is None else format(start['median'], '.1f')} |"
        )
    lines += [f"| {name} | not here: {why} | | | |" for name, why in row["missing"].items()]
    return "\n".join(lines)


def _wide(of: timing.Summary) -> str:
    """Median and quartiles, to three figures."""
    median, low, high = (f"{float(f'{of[key]:.3g}'):,.10g}" for key in ("median", "low", "high"))
    return f"{median} ({low}, {high})"


def _export_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| export | weights | seconds | wanted | peak memory, GiB | wanted | bundle, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}"
        lines.append(
            f"| {row['shape']} | {row['weights']:,} | {_wide(row['seconds'])} | < 20 | {peak} | < 2 | "
            f"{row['bundle_mb']:.1f} |"
        )
    return "\n".join(lines)


def _digits_table(result: dict[str, Any]) -> str:
    lines = [
        f"Accuracy on held-out digits, %, mean +- standard deviation of {result['config']['seeds']} seeds; "
        "wanted: integers within 0.5 of the floats after training with them.",
        "",
        "| | floats | floats, trained longer | " + " | ".join(f"{bits} bits" for bits in BITS) + " |",
        "|---" * (3 + len(BITS)) + "|",
    ]
    for neuron, rows in _by_neuron(result):
        floats = [_percent([row[key] for row in rows]) for key in ("float", "float_longer")]
        for key, label in (("rounded", "rounded after training"), ("aware", "trained with them")):
            cells = [_percent([row[key][str(bits)] for row in rows]) for bits in BITS]
            begin = [floats[0], "" if key == "rounded" else floats[1]]
            lines.append(f"| {neuron}, {label} | " + " | ".join([*begin, *cells]) + " |")
    return "\n".join(lines)


def _percent(values: Sequence[float]) -> str:
    spread = f" +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def _parity_table(found: dict[str, Any]) -> str:
    lines = [
        f"Random networks, from seed {found['seed']}, in Lava's simulator: layers "
        f"{', '.join(found['layers'])}; "
        "wanted: 0 mismatches of at least 1,000,000 spike slots.",
        "",
        "| family | networks | spike slots | spikes | values | mismatches |",
        "|---|---|---|---|---|---|",
    ]
    total = dict.fromkeys(("networks", "slots", "spikes", "values", "mismatches"), 0)
    for family, row in found["families"].items():
        lines.append(f"| {family} | " + " | ".join(f"{row[key]:,}" for key in total) + " |")
        total = {key: total[key] + row[key] for key in total}
    lines.append("| all | " + " | ".join(f"{value:,}" for value in total.values()) + " |")
    return "\n".join(lines) + (f"\n\nFirst mismatch: {found['first']}" if found["first"] else "")
