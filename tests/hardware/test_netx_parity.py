"""Reference: Lava's simulator, through lava-dl's own netx, against the integer model of it, step for step."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from marsnn.hardware import loihi, verify_netx, write_netx
from marsnn.hardware.loihi import STATE_MAX, UNITY, WIDTH
from marsnn.hardware.netx_lava import RUNTIME
from marsnn.network import Network
from marsnn.neurons import LIF, PLIF, CubaLIF, Recurrent
from tests.hardware.netx_cases import (
    NetxCase,
    directed_netx_cases,
    random_netx_case,
    tied_network,
    write_netx_case,
)

DRIVER = Path(__file__).parent / "netx_driver.py"
pytestmark = [pytest.mark.lava, pytest.mark.xdist_group("lava")]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    tied = [write_netx(*tied_network(carry, 2), folder / f"tied_{carry}") for carry in ("token", "sequence")]
    return [
        *(random_netx_case(seed) for seed in range(19)),
        *(random_netx_case(seed, loops=True) for seed in range(5)),
        *directed_netx_cases(),
        *(NetxCase(export.path.name, export.model, export.inputs) for export in tied),
    ]


@pytest.fixture(scope="module")
def sent_by_lava(cases, lava_python, tmp_path_factory):
    """Case name -> what each layer sent at each step of the chip, from one run of the driver."""
    folder = tmp_path_factory.mktemp("cases")
    for case in cases:
        write_netx_case(case, folder)
    subprocess.run([lava_python, "-B", DRIVER, RUNTIME, folder], check=True, capture_output=True)
    result = {}
    for case in cases:
        with np.load(folder / f"{case.name}.net.npz") as file:
            result[case.name] = [file[str(index)] for index in range(len(file.files))]
    return result


def mismatches(model, inputs, sent):
    run = model.run_chip(inputs)
    return sum(int((train != array).sum()) for train, array in zip(sent, run.spikes.values(), strict=True))


def test_every_step_is_the_same(cases, sent_by_lava):
    slots = spikes = 0
    for case in cases:
        assert mismatches(case.model, case.inputs, sent_by_lava[case.name]) == 0, case.name
        slots += sum(train.size for train in sent_by_lava[case.name])
        spikes += sum(int(train.sum()) for train in sent_by_lava[case.name])
    assert slots > 20_000
    assert slots / 10 < spikes < slots / 2


def test_the_cases_reach_every_rule(cases):
    """Wraps, clips, kept and forgotten states, convolutions, and matrices that Lava changes."""
    runs = [case.model.run_chip(case.inputs) for case in cases]
    assert sum(sum(run.wraps.values()) for run in runs) > 10
    assert sum(sum(run.clips.values()) for run in runs) > 10
    layers = [layer for case in cases for layer in case.model.layers]
    for decay in ("current_decay", "voltage_decay"):
        assert {0, UNITY} < {getattr(layer, decay) for layer in layers}
    assert {layer.kind for layer in layers} == {"dense", "conv"}
    assert {case.model.message_bits for case in cases} == {0, 8}
    assert sum(layer.recurrent is not None for layer in layers) > 15
    changed = 0
    for layer in layers:
        if layer.kind == "dense":
            changed += not loihi.keeps(layer)
    assert changed >= 3


# ---- mutants ---------------------------------------------------------------------------------------------

CODES, RUN_LAYER = loihi.lava_weights, loihi.run_layer


def no_lowest_bit(weight, beside=None):
    codes, exponent = CODES(weight, beside)
    step = 2 ** (1 - exponent) if (weight.min() < 0 < weight.max()) else 1
    return codes // step * step, exponent


def each_by_itself(weight, beside=None):
    return CODES(weight) if weight.any() else (weight, 0)


def one_dense(weight, beside=None):
    if beside is None:
        return CODES(weight)
    codes, exponent = CODES(np.hstack([weight, beside]))
    return codes[:, : weight.shape[1]], exponent


def looping(late=1, turned=False, drop=None):
    """run_layer with the loop written out on its own: spikes come back `late` steps later."""

    def run(layer, arriving, interval=None, clear_at=None, drops=False):
        if layer.recurrent is None:
            return RUN_LAYER(layer, arriving, interval, clear_at, drops)
        sums, loop = loihi.synapse(layer, arriving), loihi.lava_weights(layer.recurrent, layer.weight)
        loop = (loop[0].T, loop[1]) if turned else loop
        u = v = np.zeros_like(sums[0])
        spikes = np.zeros_like(sums)

        def step(a):
            new_u, wraps = loihi.wrap(loihi.leak(u, layer.current_decay) + (a << 6))
            new_v, clips = loihi.clip(loihi.leak(v, layer.voltage_decay) + new_u + (layer.bias << 6))
            return new_u, new_v, loihi.fires(new_v, layer.threshold << 6), wraps + clips

        total = 0
        for n, a in enumerate(sums):
            cleared = interval is not None and (n + 1 - clear_at) % interval == 0
            if cleared:
                u, v = np.zeros_like(u), np.zeros_like(v)
            if not late:
                sent = step(a)[2].astype(np.int64)
            else:
                sent = spikes[n - late] if n >= late else 0 * a
            if not (cleared and (drops if drop is None else drop)):
                a = a + loihi.dense(sent[None], *loop)[0]
            u, v, s, more = step(a)
            spikes[n], v, total = s, np.where(s, 0, v), total + more
        return spikes, total, 0

    return run


def wrong_end(u):
    wrapped = np.where(u >= WIDTH, u - 2 * WIDTH, u)
    wrapped = np.where(u < -WIDTH, u + 2 * WIDTH, wrapped)
    return wrapped, int((wrapped != u).sum())


FUNCTIONS = {
    "floor": ("leak", lambda x, decay: (x * (UNITY - decay)) >> 12),
    "round to nearest": (
        "leak",
        lambda x, decay: np.sign(x) * ((np.abs(x) * (UNITY - decay) + 2048) >> 12),
    ),
    "decay over 4095": ("leak", lambda x, decay: np.sign(x) * (np.abs(x) * (UNITY - decay) // 4095)),
    ">= for >": ("fires", lambda v, fire: v >= fire),
    "fires at one step more": ("fires", lambda v, fire: v > fire + 1),
    "no clip": ("clip", lambda v: (v, 0)),
    "clip at -2^23": ("clip", lambda v: (np.clip(v, -WIDTH, STATE_MAX), 0)),
    "current clipped": ("wrap", lambda u: (np.clip(u, -WIDTH, WIDTH), 0)),
    "current not wrapped": ("wrap", lambda u: (u, 0)),
    "wraps at the other end": ("wrap", wrong_end),
    "odd weights lose their lowest bit": ("lava_weights", no_lowest_bit),
    "weights as they are written": ("lava_weights", lambda weight, beside=None: (weight, 0)),
    "a scale for each of a loop's matrices": ("lava_weights", each_by_itself),
    "a loop's matrices in one Dense": ("lava_weights", one_dense),
    "spikes come back in their own step": ("run_layer", looping(late=0)),
    "spikes come back two steps later": ("run_layer", looping(late=2)),
    "loops transposed": ("run_layer", looping(turned=True)),
    "what is on its way is never dropped": ("run_layer", looping(drop=False)),
    "what is on its way is always dropped": ("run_layer", looping(drop=True)),
    "soft reset": ("after", lambda v, s, fire: np.where(s, v - fire, v)),
    "no reset": ("after", lambda v, s, fire: v),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mutants_of_the_arithmetic_are_caught(name, cases, sent_by_lava, monkeypatch):
    function, mutant = FUNCTIONS[name]
    monkeypatch.setattr(loihi, function, mutant)
    caught = [case.name for case in cases if mismatches(case.model, case.inputs, sent_by_lava[case.name])]
    assert caught, f"no case notices the mutant {name!r}"


def test_the_loop_written_out_is_the_model_s(cases, sent_by_lava, monkeypatch):
    """So it is their one change that the mutants made of it are caught by."""
    monkeypatch.setattr(loihi, "run_layer", looping())
    for case in cases:
        assert mismatches(case.model, case.inputs, sent_by_lava[case.name]) == 0, case.name


def in_layers(**changes):
    def change(model):
        return replace(
            model,
            layers=tuple(
                replace(layer, **{key: rule(getattr(layer, key)) for key, rule in changes.items()})
                for layer in model.layers
            ),
        )

    return change


MODELS = {
    "the one of the current decay missing": in_layers(current_decay=lambda d: max(d - 1, 0)),
    "one in the voltage decay": in_layers(voltage_decay=lambda d: min(d + 1, UNITY)),
    "decays swapped": lambda model: replace(
        model,
        layers=tuple(
            replace(each, current_decay=each.voltage_decay, voltage_decay=each.current_decay)
            for each in model.layers
        ),
    ),
    "stride (x, y)": in_layers(stride=lambda pair: pair[::-1]),
    "padding (x, y)": in_layers(padding=lambda pair: pair[::-1]),
    "dilation (x, y)": in_layers(dilation=lambda pair: pair[::-1]),
    "kernels turned": in_layers(weight=lambda w: w[:, :, ::-1, ::-1] if w.ndim == 4 else w),
    "cleared a step early": lambda model: replace(model, reset_offset=0),
    "cleared a step late": lambda model: replace(model, reset_offset=2),
    "never cleared": lambda model: replace(model, reset_interval=None),
}


@pytest.mark.parametrize("name", MODELS)
def test_mutants_of_the_model_are_caught(name, cases, sent_by_lava):
    caught = 0
    for case in cases:
        try:
            caught += bool(mismatches(MODELS[name](case.model), case.inputs, sent_by_lava[case.name]))
        except ValueError:  # an image of another shape
            caught += 1
    assert caught


# ---- from a Network to Lava ------------------------------------------------------------------------------


def networks():
    zero = {"reset": "zero", "steps": 5}
    kept = {"carry": "sequence", **zero}
    return {
        "graded, cleared by the token": (
            Network([
                nn.Linear(20, 32), LIF(32, beta=0.9, threshold=0.3, **zero),
                nn.Linear(32, 10, bias=False),
                CubaLIF(10, alpha=0.5, beta=0.75, threshold=0.2 + torch.rand(10) / 3, **zero),
            ]),
            torch.randn(3, 4, 20),
        ),
        "spikes, cleared by the sample": (
            Network([
                nn.Linear(9, 12), PLIF(12, threshold=0.3, **kept), nn.Linear(12, 7),
                LIF(7, beta=0.95, threshold=0.2, **kept),
            ]),
            (torch.rand(4, 3, 9) > 0.6).float(),
        ),
        "image": (
            Network([
                nn.Conv2d(2, 4, 3, stride=2, padding=1),
                LIF(4, beta=0.8, threshold=torch.tensor([0.2, 0.3, 0.4, 0.25]), feature_dim=-3, **zero),
                nn.Conv2d(4, 6, (2, 3), groups=2, dilation=(2, 1)), LIF(beta=0.6, threshold=0.1, **zero),
                nn.Flatten(), nn.Dropout(), nn.Linear(36, 5), LIF(5, beta=0.9, threshold=0.1, **zero),
            ]),
            torch.rand(2, 3, 2, 8, 9),
        ),
        "hears itself": (
            Network([
                nn.Linear(20, 16), Recurrent(PLIF(16, threshold=0.3 + torch.rand(16) / 5, **zero), bias=True),
                nn.Linear(16, 8, bias=False), Recurrent(CubaLIF(8, alpha=0.5, threshold=0.4, **zero)),
            ]),
            torch.randn(2, 3, 20),
        ),
        "neurons on the input": (
            Network([LIF(5, threshold=0.7, **zero), nn.Linear(5, 3), LIF(3, threshold=0.2, **zero)]),
            torch.rand(3, 4, 5),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", networks())
def test_a_network_runs_in_lava_as_its_integers_do(name, warm_lava, tmp_path):
    torch.manual_seed(0)
    network, x = networks()[name]
    export = write_netx(network, x, tmp_path / "net.net")
    assert all(report.end_to_end < 0.1 and report.float_spikes > 9 for report in export.reports)
    result = verify_netx(export.path)
    assert result.ok, result.text()
    assert result.text().startswith(f"0 mismatches of {result.slots} spike slots")
    assert result.simulator == "lava"
    assert result.slots == sum(train.size for train in export.golden.spikes.values()) > 300
    assert result.positive > result.slots / 50
    other = np.random.default_rng(1).integers(0, 2, export.inputs.shape)
    assert verify_netx(export.path, other).mismatches == 0


def test_an_edited_weight_is_found(lava_python, warm_lava, tmp_path):
    network, x = networks()["neurons on the input"]
    path = write_netx(network, x, tmp_path / "net.net").path
    with h5py.File(path, "r+") as file:
        weight = file["layer/2/weight"]
        weight[0] = -weight[0]
    result = verify_netx(path)
    assert not result.ok
    assert result.first.startswith("lif2: token ")
    run = subprocess.run(
        [lava_python, "-B", RUNTIME / "run.py", path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stdout.startswith(
        f"{result.mismatches} mismatches of {result.slots} spike slots\nfirst: layer 1,"
    )


def test_the_page_says_how_much_was_compared(cases):
    page = (Path(__file__).parents[2] / "docs" / "netx.md").read_text(encoding="utf-8")
    random = [case for case in cases if case.name.startswith("random")]
    looping_ones = [case for case in random if any(x.recurrent is not None for x in case.model.layers)]
    assert f"| {len(random)}, dense, convolutional and {len(looping_ones)} that hear themselves" in page
    loops = [name for name, (function, _) in FUNCTIONS.items() if function == "run_layer" or "loop" in name]
    others = len(FUNCTIONS) - len(loops)
    assert f"| {others} of the arithmetic, {len(MODELS)} of the model and {len(loops)} of the loops" in page


def test_the_page_s_example_runs(lava_python, warm_lava, tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[2] / "docs" / "netx.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARSNN_LAVA_PYTHON", lava_python)
    exec(compile(block, str(page), "exec"), {})  # our own page, not a user's file
    assert "\n0 mismatches of 6720 spike slots" in capsys.readouterr().out


def test_the_runtime_alone(lava_python, tmp_path):
    """Without marsnn: exit 0 and the count; 2 and one line for what is no file of ours."""
    network, x = networks()["neurons on the input"]
    export = write_netx(network, x, tmp_path / "net.net")
    command = [lava_python, "-B", RUNTIME / "run.py"]
    run = subprocess.run([*command, export.path], capture_output=True, text=True, check=False)
    slots = sum(train.size for train in export.golden.spikes.values())
    assert (run.returncode, run.stdout) == (0, f"0 mismatches of {slots} spike slots\n"), run.stderr
    (tmp_path / "bad.net").write_bytes(b"nothing")
    run = subprocess.run([*command, tmp_path / "bad.net"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
