"""Reference: Lava's simulator against the integer model, slot for slot, and mutants that Lava must expose."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.gated import GatedLinear
from marsnn.hardware import integer
from marsnn.hardware.bundle import RUNTIME
from marsnn.hardware.exporter import in_order
from marsnn.hardware.graph import extract
from marsnn.hardware.integer import DECAY_BITS, STATE_MAX
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF
from marsnn.simulator import simulate
from tests.hardware.cases import all_cases, write_case
from tests.hardware.gate_mutants import GATE_MUTANTS

DRIVER = Path(__file__).parent / "lava_driver.py"
pytestmark = [pytest.mark.lava, pytest.mark.xdist_group("lava")]


@pytest.fixture(scope="module")
def cases():
    return all_cases()


@pytest.fixture(scope="module")
def sent_by_lava(cases, lava_python, tmp_path_factory):
    """Case name -> (what each stage sent, its saturations), from one run of the driver."""
    folder = tmp_path_factory.mktemp("cases")
    for case in cases:
        write_case(case, folder / case.name)
    subprocess.run([lava_python, "-B", DRIVER, RUNTIME, folder], check=True, capture_output=True)
    result = {}
    for case in cases:
        with np.load(folder / case.name / "sent.npz") as file:
            result[case.name] = {key: file[key] for key in file.files}
    return result


def mismatches(case, sent):
    run = integer.run(case.graph, case.inputs)
    arrays = {**run.spikes, **run.products, **run.outputs}
    wrong = sum(int((sent[name] != array).sum()) for name, array in arrays.items())
    return wrong + int((sent["saturations"] != list(run.saturations.values())).sum())


def test_every_slot_is_the_same(cases, sent_by_lava):
    slots = 0
    for case in cases:
        assert mismatches(case, sent_by_lava[case.name]) == 0, case.name
        slots += sum(array.size for array in integer.run(case.graph, case.inputs).spikes.values())
    assert slots > 5000


def floor_leak(state, decay):
    return (state * decay) >> DECAY_BITS


def rounding_leak(state, decay):
    return np.sign(state) * ((np.abs(state) * decay + (1 << (DECAY_BITS - 1))) >> DECAY_BITS)


def leak_plus_one(state, decay):
    return np.sign(state) * ((np.abs(state) * (decay + 1)) >> DECAY_BITS)


def leak_minus_one(state, decay):
    return np.sign(state) * ((np.abs(state) * (decay - 1)) >> DECAY_BITS)


def wrapping(x):
    wrapped = (x + STATE_MAX) % (2 * STATE_MAX + 1) - STATE_MAX
    return wrapped, int(np.count_nonzero(wrapped != x))


def lopsided(x):
    clipped = np.clip(x, -STATE_MAX - 1, STATE_MAX)
    return clipped, int(np.count_nonzero(clipped != x))


MUTANTS = {
    "floor rounding": ("leak", floor_leak),
    "round to nearest": ("leak", rounding_leak),
    "decay + 1": ("leak", leak_plus_one),
    "decay - 1": ("leak", leak_minus_one),
    "> for >=": ("fires", lambda h, fire: h > fire),
    "no saturation": ("saturate", lambda x: (x, 0)),
    "wrapping": ("saturate", wrapping),
    "-2^23 for -(2^23 - 1)": ("saturate", lopsided),
    **GATE_MUTANTS,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, cases, sent_by_lava, monkeypatch):
    function, mutant = MUTANTS[name]
    monkeypatch.setattr(integer, function, mutant)
    caught = [case.name for case in cases if mismatches(case, sent_by_lava[case.name])]
    assert caught, f"no case notices the mutant {name!r}"


@pytest.mark.parametrize("wrong", ["sum", "horner", "power"])
def test_wrong_readout_weights_are_caught(wrong, cases, sent_by_lava):
    caught = 0
    for case in cases:
        stages = tuple(
            integer.Stage(**{**stage.__dict__, "arrival": wrong})
            if stage.arrival in ("sum", "horner", "power")
            else stage
            for stage in case.graph.stages
        )
        if stages == case.graph.stages or case.graph.steps == 1:
            continue
        graph = integer.IntegerGraph(case.graph.steps, stages, case.graph.tokens_per_sample)
        run = integer.run(graph, case.inputs)
        sent = sent_by_lava[case.name]
        caught += any((sent[key] != array).any() for key, array in {**run.spikes, **run.outputs}.items())
    assert caught >= 3


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
)


def test_float_networks_equal_floats_in_lava(lava_python, tmp_path):
    """The schedule alone: float64 torch against float64 Lava, no quantization between them."""
    torch.manual_seed(0)
    folder = tmp_path / "cases"
    runs = {}
    for index, (name, build) in enumerate(FLOAT_NETWORKS.items()):
        network = build().double()
        x = 2 * torch.randn(3, 4, 6, dtype=torch.float64)
        graph = extract(network, 6)
        stages, arrays = [], {"inputs": in_order(x.numpy())}
        for p in graph.populations:
            # Horner and stream_down count in units of tau^(T - 1); undo it in the weights.
            gain = 2.0 ** (graph.steps - 1) if p.arrival in ("horner", "stream_down") else 1.0
            stages.append(
                {
                    "name": p.name, "kind": p.kind, "arrival": p.arrival, "shift": 0, "reset": p.reset,
                    "decay": 4096 / p.tau if p.kind == "atmn" else 4096 * p.beta, "carry": p.carry,
                }
            )  # fmt: skip
            if p.kind == "gate":  # in floats only the level counts
                N = len(p.bias) // 2
                own = dict.fromkeys(("multiplier", "argument_shift", "product_shift"), np.zeros(N))
                own |= {"level": np.full(N, p.level), "table": np.zeros(3)}
                arrays |= {f"{p.name}/{key}": array for key, array in own.items()}
            arrays[f"{p.name}/weight"] = p.weight / gain
            arrays[f"{p.name}/bias"] = p.bias
            arrays[f"{p.name}/amplitude"] = p.threshold
            arrays[f"{p.name}/fire"] = p.fire_at * p.threshold
        case = folder / f"{index}"
        case.mkdir(parents=True)
        manifest = {"steps": graph.steps, "tokens_per_sample": 3, "stages": stages}
        (case / "manifest.json").write_text(json.dumps(manifest))
        np.savez(case / "tensors.npz", **arrays)
        runs[name] = (case, simulate(network, x))
    subprocess.run(
        [lava_python, "-B", DRIVER, RUNTIME, folder, "--floating"], check=True, capture_output=True
    )
    total = 0
    for name, (case, recording) in runs.items():
        with np.load(case / "sent.npz") as sent:
            for layer, spikes in recording.spikes.items():
                ours = in_order(np.swapaxes(spikes, 1, 2))
                assert np.array_equal(sent[layer], ours), f"{name}: {layer}"
                assert ours.any(), f"{name}: {layer} is silent"
                total += ours.size
            if "linear3" in sent.files:
                np.testing.assert_allclose(sent["linear3"], in_order(recording.output), rtol=0, atol=1e-12)
    assert total > 5000
