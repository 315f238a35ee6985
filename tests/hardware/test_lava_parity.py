"""Reference: Lava's simulator against the integer model, slot for slot, and mutants that Lava must expose."""

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.gated import GatedLinear
from marsnn.hardware import integer
from marsnn.hardware.bundle import RUNTIME, stage_row
from marsnn.hardware.exporter import in_order
from marsnn.hardware.graph import extract
from marsnn.hardware.linear_maps import Each, Kernel
from marsnn.hardware.stages import KINDS, UNITY, Stage, Synapse
from marsnn.network import Network
from marsnn.neurons import ALIF, ATMN, LIF, CubaLIF, IntegerLIF, Recurrent, TernaryLIF
from marsnn.simulator import simulate
from tests.hardware.case import write_case
from tests.hardware.cases import all_cases, directed_cases, random_cases
from tests.hardware.gate_mutants import GATE_MUTANTS
from tests.hardware.mutants import MUTANTS

DRIVER = Path(__file__).parent / "lava_driver.py"
LIMIT_S = 1200
pytestmark = [pytest.mark.lava, pytest.mark.xdist_group("lava")]


@pytest.fixture(scope="module")
def cases():
    """All of them in CI; elsewhere the directed ones and a few random ones, to save minutes."""
    if os.environ.get("CI"):
        return all_cases()
    return [*directed_cases(), *random_cases()[:8]]


def drive(python, folder, *options, parts=1):
    """The driver on a folder of cases, as so many processes side by side; stopped if it hangs."""
    running = [
        subprocess.Popen(
            [python, "-B", DRIVER, RUNTIME, folder, *options, "--part", f"{part}/{parts}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        for part in range(parts)
    ]  # fmt: skip
    try:
        for process in running:
            _, errors = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def sent_by_lava(cases, lava_python, tmp_path_factory):
    """Case name -> (what each stage sent, its saturations), from one run of the driver."""
    folder = tmp_path_factory.mktemp("cases")
    for case in cases:
        write_case(case, folder / case.name)
    drive(lava_python, folder, parts=2)
    result = {}
    for case in cases:
        with np.load(folder / case.name / "sent.npz") as file:
            result[case.name] = {key: file[key] for key in file.files}
    return result


def mismatches(case, sent):
    with np.errstate(all="ignore"):  # a mutant may overflow
        run = integer.run(case.graph, case.inputs)
    wrong = sum(int((sent[stage.name] != run.of(stage.name)).sum()) for stage in case.graph.stages)
    return wrong + int((sent["saturations"] != list(run.saturations.values())).sum())


def test_every_slot_is_the_same(cases, sent_by_lava):
    slots, kinds = 0, set()
    for case in cases:
        assert mismatches(case, sent_by_lava[case.name]) == 0, case.name
        for stage in case.graph.stages:
            kinds.add(stage.kind)
            slots += sent_by_lava[case.name][stage.name].size if stage.sends == "train" else 0
    assert slots >= (1_000_000 if os.environ.get("CI") else 10_000)
    if os.environ.get("CI"):
        page = (Path(__file__).parents[2] / "docs" / "lava.md").read_text(encoding="utf-8")
        assert f"over {len(cases)} graphs" in page
        assert f"{slots:,} spike slots of them" in page
        assert f"{len({**MUTANTS, **GATE_MUTANTS})} wrong variants" in page
    assert kinds == set(KINDS)


@pytest.mark.parametrize("name", [*MUTANTS, *GATE_MUTANTS])
def test_mutants_are_caught(name, cases, sent_by_lava, monkeypatch):
    mutant = {**MUTANTS, **GATE_MUTANTS}[name]
    mutant.patch(monkeypatch)
    for case in cases:
        changed = replace(case, graph=mutant.graph(case.graph))
        if mismatches(changed, sent_by_lava[case.name]):
            return
    pytest.fail(f"no case notices the mutant {name!r}")


FLOAT_NETWORKS = (
    {
        f"atmn tau={tau} fire_at={fire_at}": lambda tau=tau, fire_at=fire_at: Network(
            [
                nn.Linear(6, 9),
                ATMN(9, 5, tau=tau, threshold=0.4, fire_at=fire_at),
                nn.Linear(9, 7),
                ATMN(7, 5, tau=tau, threshold=0.2, fire_at=fire_at),
                nn.Linear(7, 3),
            ]
        )
        for tau in (0.5, 1.0, 2.0)
        for fire_at in (1.0, 0.5)
    }
    | {
        "lif": lambda: Network(
            [
                nn.Linear(6, 9),
                LIF(9, 5, beta=0.75, threshold=0.4, carry="sequence"),
                nn.Linear(9, 7),
                LIF(7, 5, beta=0.5, threshold=0.2, reset="zero", carry="sequence"),
                nn.Linear(7, 3),
            ]
        ),
        "mixed": lambda: Network(
            [
                ATMN(6, 5, tau=0.5, threshold=0.8),
                nn.Linear(6, 9),
                LIF(9, 5, beta=0.5, threshold=0.3),
                nn.Linear(9, 7),
                ATMN(7, 5, tau=2.0, threshold=0.1),
                nn.Linear(7, 5),
                LIF(5, 5, beta=0.25, threshold=0.2),
            ]
        ),
        "kinds of lif": lambda: Network(
            [
                nn.Linear(6, 9),
                CubaLIF(9, 5, alpha=0.5, beta=0.75, threshold=0.4, carry="sequence"),
                nn.Linear(9, 8),
                ALIF(8, 5, beta=0.5, rho=0.75, adaptation=0.25, threshold=0.2),
                nn.Linear(8, 7),
                TernaryLIF(7, 5, beta=0.5, threshold=0.2),
                nn.Linear(7, 3),
                IntegerLIF(3, 5, beta=0.5, threshold=0.05, max_level=4),
            ]
        ),
    }
    | {
        f"recurrent {carry}": lambda carry=carry: Network(
            [
                nn.Linear(6, 9),
                Recurrent(CubaLIF(9, 5, alpha=0.5, beta=0.75, threshold=0.4, carry=carry), bias=True),
                nn.Linear(9, 8),
                Recurrent(IntegerLIF(8, 5, beta=0.5, threshold=0.1, max_level=3, carry=carry)),
                nn.Linear(8, 7),
                ATMN(7, 5, tau=2.0, threshold=0.1),
                nn.Linear(7, 7),
                Recurrent(TernaryLIF(7, 5, beta=0.5, threshold=0.2)),
            ]
        )
        for carry in ("token", "sequence")
    }
    | {
        f"gate tau={tau}": lambda tau=tau: Network(
            {
                "ffn_in": ATMN(6, 5, tau=tau, threshold=0.4),
                "gated": GatedLinear(6, 9, level=0.02),
                "ffn_out": ATMN(9, 5, tau=tau, threshold=0.05),
                "linear3": nn.Linear(9, 3),
            }
        )
        for tau in (0.5, 1.0, 2.0)
    }
    | {
        f"skips tau={tau}": lambda tau=tau, neuron=neuron: Network(
            {
                "up": nn.Linear(6, 9),
                "first": ATMN(9, 5, tau=tau, threshold=0.4),
                "linear": nn.Linear(9, 9),
                "second": neuron(9, 5, threshold=0.3),
                "linear2": nn.Linear(9, 9),
                "third": ATMN(9, 5, tau=0.5, threshold=0.3),
                "linear3": nn.Linear(9, 3),
            },
            skips={"second": ["up"], "linear2": ["first"], "third": ["up", "second"], "linear3": ["first"]},
        )
        for tau, neuron in ((0.5, ATMN), (1.0, LIF), (2.0, ATMN))
    }
)

CONVOLUTIONS = {
    "2d": lambda: Network(
        [
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), groups=2),
            ATMN(4, 5, tau=0.5, threshold=0.3, feature_dim=-3),
            nn.Conv2d(4, 3, (2, 3), dilation=(1, 2)),
            LIF(3, 5, beta=0.5, threshold=0.1, feature_dim=-3),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(3, 3),
        ]
    ),
    "1d": lambda: Network(
        [
            nn.Conv1d(2, 4, 3, padding=2, dilation=2),
            Recurrent(LIF(4, 5, beta=0.5, threshold=0.2, feature_dim=-2)),
            nn.Conv1d(4, 6, 2, stride=2, groups=2),
            ATMN(6, 5, tau=2.0, threshold=0.1, feature_dim=-2),
        ]
    ),
}


def float_stage(real, steps):
    """A stage whose arrays are real numbers, each worth what it is: no unit, nothing rounded."""

    def synapse(each):
        # Horner and stream_down count in units of tau^(T - 1); undo it in the weights.
        weight = each.map.weight / (2.0 ** (steps - 1) if each.arrival in ("horner", "stream_down") else 1.0)
        form = "each" if isinstance(each.map, Each) else "conv" if isinstance(each.map, Kernel) else "dense"
        right = np.zeros(len(weight), dtype=np.int64) if form == "each" else None
        conv = each.map.conv if form == "conv" else None
        return Synapse(each.name, each.source, each.port, form, each.arrival, weight, 0, right, conv)

    of, arrays = real.of, {}
    if "threshold" in of:
        arrays = {"fire": of["fire_at"] * of["threshold"], "amplitude": of["threshold"]}
    if real.kind == "atmn":
        arrays["decay"] = UNITY / of["tau"]
    elif real.kind == "lif":
        for ours, theirs in (("decay", "beta"), ("current_decay", "alpha"), ("adaptation_decay", "rho")):
            arrays[ours] = UNITY * of[theirs]
        arrays |= {"adaptation": of["adaptation"], "most": of["most"], "signed": float(of["signed"])}
    elif real.kind == "gate":  # in floats only the level counts
        N = real.neurons
        arrays = dict.fromkeys(("multiplier", "argument_shift", "product_shift"), np.zeros(N))
        arrays |= {"level": np.full(N, of["level"]), "table": np.zeros(3)}
    synapses = tuple(synapse(each) for each in real.synapses)
    return Stage(real.name, real.kind, real.shape, synapses, real.bias, arrays, real.reset, real.carry)


def write_floats(folder, graph, x):
    stages = [float_stage(real, graph.steps) for real in graph.stages]
    arrays = {"inputs": in_order(x.numpy()).reshape(-1, int(np.prod(graph.inputs)))}
    for stage in stages:
        arrays |= {f"stages/{stage.name}/bias/{port}": bias for port, bias in stage.bias.items()}
        arrays |= {f"stages/{stage.name}/{key}": np.asarray(array) for key, array in stage.arrays.items()}
        for synapse in stage.synapses:
            arrays[f"synapses/{synapse.name}/weight"] = synapse.weight
            if synapse.right is not None:
                arrays[f"synapses/{synapse.name}/right"] = synapse.right
    folder.mkdir(parents=True)
    rows = [stage_row(stage, np.ones(stage.neurons)) for stage in stages]
    manifest = {"steps": graph.steps, "tokens_per_sample": len(x), "stages": rows}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    np.savez(folder / "tensors.npz", **arrays)


def test_float_networks_equal_floats_in_lava(lava_python, tmp_path):
    """The schedule alone: float64 torch against float64 Lava, no quantization between them."""
    torch.manual_seed(0)
    folder = tmp_path / "cases"
    runs = {}
    shapes = dict.fromkeys(FLOAT_NETWORKS, (6,)) | {"2d": (2, 5, 4), "1d": (2, 8)}
    for index, (name, build) in enumerate({**FLOAT_NETWORKS, **CONVOLUTIONS}.items()):
        network = build().double()
        x = 2 * torch.randn(3, 4, *shapes[name], dtype=torch.float64)
        graph = extract(network, shapes[name])
        write_floats(folder / f"{index:02}", graph, x)
        runs[name] = (folder / f"{index:02}", graph, simulate(network, x))
    drive(lava_python, folder, "--floating", parts=2)
    total = 0
    for name, (case, graph, recording) in runs.items():
        with np.load(case / "sent.npz") as sent:
            for layer, spikes in recording.spikes.items():
                ours = in_order(np.swapaxes(spikes, 1, 2))
                ours = ours.reshape(*ours.shape[:2], -1)
                assert np.array_equal(sent[layer], ours), f"{name}: {layer}"
                assert ours.any(), f"{name}: {layer} is silent"
                total += ours.size
            last = graph.stages[-1]
            if last.kind == "sum":
                expected = in_order(recording.output).reshape(len(sent[last.name]), -1)
                np.testing.assert_allclose(sent[last.name], expected, rtol=0, atol=1e-12, err_msg=name)
    assert total > 10_000
