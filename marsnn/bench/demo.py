"""The whole journey on real data: train, simulate, draw, count, export, verify. Run by `marsnn demo`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from marsnn.bench import digits as benchmark
from marsnn.checkpoint import save_network
from marsnn.data import load_digits
from marsnn.energy import EnergyReport, count
from marsnn.energy.report import DEFAULT_TABLES
from marsnn.errors import LavaError
from marsnn.files import json_text, probe, write_text
from marsnn.hardware.exporter import export
from marsnn.hardware.lava import Verification, find_python, verify
from marsnn.plots import raster
from marsnn.plots.files import save_figure
from marsnn.simulator import simulate
from marsnn.training import accuracy

DRAWN = 12  # images in the raster, one token each


def demonstrate(out: Path, seeds: Sequence[int], epochs: int, quiet: bool = False) -> dict[str, Any]:
    """Run the demo into the folder `out`.

    Returns:
        JSON-ready: the accuracies, the energies, the drift, the verification and the paths of what it made.
    """
    probe(out / "digits.json")
    started = time.perf_counter()

    def say(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    def step(number: int, line: str) -> None:
        say(f"[{number}/6] {line} ({time.perf_counter() - started:.0f} s so far)")

    step(1, f"training ATMN, LIF and a dense ReLU net on digits: 6 settings each, then {len(seeds)} seeds")
    result = benchmark.run("flat", seeds=seeds, epochs=epochs)
    step(2, "training the networks that are taken on, and simulating the test images")
    digits = load_digits("flat")
    networks = {
        arm: benchmark.fit(arm, result["arms"][arm]["settings"], seeds[0], digits, epochs)
        for arm in ("ATMN", "LIF", "ReLU")
    }
    network, x = networks["ATMN"], digits.test.x
    saved = save_network(network, out / "atmn.safetensors")
    recording = simulate(network, x, progress=not quiet)
    few = simulate(network, x[:, :DRAWN].transpose(0, 1))  # one image after the other, as the chip gets them
    picture = save_figure(raster(few), out / "raster.png")

    step(3, "counting operations and pricing them")
    counts = {arm: count(net, x) for arm, net in networks.items()}
    reports = {arm: EnergyReport(counts[arm], dense=counts["ReLU"], name=arm) for arm in ("ATMN", "LIF")}
    write_text(out / "energy.json", json_text({arm: report.to_dict() for arm, report in reports.items()}))
    write_text(out / "digits.json", json_text(result))

    step(4, "exporting the ATMN network to integers")
    bundle = export(network, x, out / "bundle")
    floats = accuracy(network, x, digits.test.y)
    guessed = torch.as_tensor(bundle.outputs().argmax(-1))
    integers = (guessed == digits.test.y).float().mean().item()
    drift = bundle.report("drift")

    verification = compared(bundle.path, lambda line: step(5, line))
    step(6, "done")

    say("")
    say(benchmark.table(result))
    say("")
    say(energy_table(reports))
    say("")
    for row in drift["layers"]:
        say(f"drift of {row['name']}: {row['end_to_end']:.2%} of its spike slots differ from the floats'")
    say(f"accuracy of the exported network: {floats:.2%} in floats, {integers:.2%} in integers")
    rates = ", ".join(f"{name} {rate:.3f}" for name, rate in recording.rates().items())
    say(f"spikes per neuron and step: {rates}")
    say(f"network: {saved}")
    say(f"energy by layer: marsnn energy {saved} -i digits")
    say(f"raster: {picture}")
    say(f"bundle: {bundle.path}")
    say(verification.text())
    return {
        "accuracy": result,
        "energy": {arm: report.to_dict() for arm, report in reports.items()},
        "exported": {"float_accuracy": floats, "integer_accuracy": integers, "drift": drift},
        "rates": recording.rates(),
        "verification": verification.to_dict(),
        "network": str(saved),
        "raster": str(picture),
        "bundle": str(bundle.path),
        "seconds": time.perf_counter() - started,
    }


def compared(bundle: Path, say: Callable[[str], None]) -> Verification:
    """The bundle in Lava, or, only where Lava is missing, in the integer model again.

    Raises:
        LavaError: Lava is there and its run failed; that is no reason to ask an easier judge.
    """
    try:
        find_python()
    except LavaError as error:
        say(f"no Lava here, so only the integer model is repeated. {error}")
        return verify(bundle, simulator="integer")
    say("running the bundle in Lava's simulator")
    return verify(bundle)


def energy_table(reports: dict[str, EnergyReport]) -> str:
    """Models down, tables across: nJ per image, and the ratio to the dense net at equal precision."""
    first = next(iter(reports.values()))
    lines = [
        "Energy per image in nJ, estimated from counted operations, not measured; (x) is the ratio to the "
        "dense ReLU net at equal precision",
        f"{'model':<8}" + "".join(f"{table:>20}" for table in DEFAULT_TABLES),
    ]
    for arm, report in reports.items():
        cells = [
            _cell(report.totals[table].spiking_pj, report.totals[table].ratio) for table in DEFAULT_TABLES
        ]
        lines.append(f"{arm:<8}" + "".join(f"{cell:>20}" for cell in cells))
    dense = [_cell(first.totals[table].dense_pj, None) for table in DEFAULT_TABLES]
    lines.append(f"{'ReLU':<8}" + "".join(f"{cell:>20}" for cell in dense))
    return "\n".join(lines)


def _cell(energy_pj: float | None, ratio: float | None) -> str:
    if energy_pj is None:
        return "n/a"
    return f"{energy_pj / 1000:.2f}" + ("" if ratio is None else f" ({ratio:.2f}x)")
