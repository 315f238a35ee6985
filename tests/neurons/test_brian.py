"""Reference: networks of LIF in Brian 2, a simulator by other people, spike for spike."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from marsnn import LIF, Network, simulate
from marsnn.neurons import Recurrent

RUNNER = Path(__file__).parent / "brian_run.py"
pytestmark = [pytest.mark.sanafe, pytest.mark.xdist_group("brian")]

T = 4
LOOP_MUTANTS = {
    "a step late": lambda made: {"late": 1},
    "not dropped": lambda made: {"drops": False},
    "transposed": lambda made: {"loop/1": made["recurrent2"].recurrent.weight.detach().numpy().T},
    "the bare spike": lambda made: {"loop/0": made["recurrent1"].recurrent.weight.detach().numpy() / 1.5},
}
SETTINGS = [(reset, carry) for reset in ("subtract", "zero") for carry in ("token", "sequence")]


def network(reset, carry, exact, loops=False):
    """5 -> 12 -> 7 -> 6 in float64; `exact`: weights are multiples of 1/32, so that no sum is rounded.

    `loops`: the first two populations hear themselves.
    """
    around = Recurrent if loops else lambda neuron: neuron
    settings = {"steps": T, "reset": reset, "carry": carry}
    layers = [
        nn.Linear(5, 12),
        around(LIF(12, beta=torch.linspace(0.5, 1, 12), threshold=1.5, **settings)),
        nn.Linear(12, 7),
        around(LIF(7, beta=0.83, **settings)),
        nn.Linear(7, 6),
        LIF(6, tau=3.0, threshold=0.75, **settings),
    ]
    made = Network(layers).double()
    for name, parameter in made.named_parameters():
        parameter.data = values(*parameter.shape, exact=exact) + (0.5 if name.endswith("bias") else 0)
        if "recurrent." in name:
            parameter.data /= 4
    return made


def values(*shape, exact):
    return torch.randint(-40, 41, shape).double() / 32 if exact else 0.7 * torch.randn(*shape).double()


def case(made, x, fires=">="):
    """What `brian_run.py` reads."""
    arrays = {"x": x.numpy(), "steps": T, "layers": 3, "fires": fires, "late": 0, "drops": True}
    layers = [made[name] for name in made.names]
    for k, (linear, lif) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        if isinstance(lif, Recurrent):
            arrays[f"loop/{k}"] = lif.recurrent.weight.detach().numpy()
            lif = lif.neuron
        arrays |= {f"{name}/{k}": value.detach().numpy() for name, value in linear.named_parameters()}
        arrays |= {f"beta/{k}": lif.beta.numpy(), f"threshold/{k}": lif.threshold.numpy()}
        arrays |= {f"reset/{k}": lif.reset, f"carry/{k}": lif.carry}
    return arrays


def ties():
    """Currents that reach thresholds exactly: 1.5 at once, 0.75 at the second step where nothing leaks."""
    made = network("subtract", "token", exact=True)
    for parameter in made.parameters():
        parameter.data = torch.zeros_like(parameter)
    made["linear1"].weight.data[:, 0] = 1.0
    made["linear2"].weight.data[:, 0] = 1.0 / 1.5
    made["linear3"].weight.data[:, 0] = 0.75
    return made, torch.tensor([[[1.5, 0, 0, 0, 0]], [[0.75, 0, 0, 0, 0]]], dtype=torch.float64)


@pytest.fixture(scope="module")
def answers(brian_python, tmp_path_factory):
    """Case name -> (our recording, Brian's arrays); one run of Brian for all."""
    torch.manual_seed(0)
    folder, recordings = tmp_path_factory.mktemp("brian"), {}
    for exact, loops in ((True, False), (False, False), (True, True), (False, True)):
        for reset, carry in SETTINGS:
            made, x = network(reset, carry, exact, loops), values(6, 3, 5, exact=exact)
            name = f"{reset}-{carry}-{exact}-{loops}"
            recordings[name] = simulate(made, x)
            np.savez(folder / f"{name}.npz", **case(made, x))
    made, x = network("subtract", "token", True, loops=True), values(6, 3, 5, exact=True)
    for name, change in LOOP_MUTANTS.items():
        recordings[name] = simulate(made, x)
        np.savez(folder / f"{name}.npz", **{**case(made, x), **change(made)})
    made, x = ties()
    recordings |= {"ties": simulate(made, x), "greater": simulate(made, x)}
    np.savez(folder / "ties.npz", **case(made, x))
    np.savez(folder / "greater.npz", **case(made, x, fires=">"))
    made, x = network("subtract", "sequence", True), values(6, 3, 5, exact=True)
    recordings["forgets"] = simulate(made, x)
    np.savez(folder / "forgets.npz", **{**case(made, x), "carry/1": "token"})
    done = subprocess.run([brian_python, "-B", RUNNER, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, recording in recordings.items():
        with np.load(folder / f"{name}.out") as file:
            found[name] = recording, {key: file[key] for key in file.files}
    return found


def mismatches(answer):
    recording, theirs = answer
    ours = list(recording.spikes.values())
    return sum(int((theirs[f"spikes/{k}"] != spikes).sum()) for k, spikes in enumerate(ours))


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("reset", "carry"), SETTINGS)
def test_spike_for_spike(answers, reset, carry, exact, loops):
    """Membranes are the same bits where no sum is rounded; elsewhere the order of summation shows in them."""
    recording, theirs = answers[f"{reset}-{carry}-{exact}-{loops}"]
    assert mismatches((recording, theirs)) == 0
    for k, (spikes, membrane) in enumerate(
        zip(recording.spikes.values(), recording.membrane.values(), strict=True)
    ):
        assert 0.02 < spikes.mean() < 0.98
        assert np.abs(theirs[f"membrane/{k}"] - membrane).max() <= (0 if exact else 1e-12)


def test_the_page_says_how_many_slots_were_compared(answers):
    alike = [recording for name, (recording, _) in answers.items() if name.endswith(("-True", "-False"))]
    slots = sum(spikes.size for recording in alike for spikes in recording.spikes.values())
    page = (Path(__file__).parents[2] / "docs" / "validators.md").read_text(encoding="utf-8")
    assert f"No mismatch in {slots:,} spike slots." in page


def test_a_tie_fires_in_both(answers):
    recording, _ = answers["ties"]
    assert recording.spikes["lif1"][0, 0].all()
    assert recording.spikes["lif1"][1, :, 0, -1].tolist() == [0, 1, 0, 1]
    assert mismatches(answers["ties"]) == 0


@pytest.mark.parametrize("mutant", ["greater", "forgets", *LOOP_MUTANTS])
def test_another_rule_in_brian_is_seen(answers, mutant):
    """> for >=, and a layer that forgets at the end of a token."""
    assert mismatches(answers[mutant]) > 0
