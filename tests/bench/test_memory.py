"""Golden: batches looked at token by token. Unit: networks, what a row says, the table."""

import json
import math
from pathlib import Path

import pytest
import torch

from marsnn import Network
from marsnn.bench import memory as benchmark
from marsnn.errors import InputError
from marsnn.neurons import ATMN, LIF
from marsnn.training import IGNORED

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks"
TASKS, ARMS = benchmark.TASKS, benchmark.ARMS


def drawn(name, batch=3, seed=0, part="train"):
    return TASKS[name].draw(batch, torch.Generator().manual_seed(seed), part)


@pytest.mark.parametrize("name", TASKS)
def test_batches_fit_their_task_and_follow_from_the_generator(name):
    x, targets = drawn(name)
    assert x.shape == (*targets.shape, TASKS[name].inputs)
    asked = targets[targets != IGNORED]
    assert len(asked) > 0
    assert 0 <= asked.min() <= asked.max() < TASKS[name].classes
    again = drawn(name)
    assert torch.equal(again[0], x)
    assert not torch.equal(drawn(name, seed=1)[0], x)


def test_copying_asks_for_the_symbols_in_order():
    x, targets = drawn("copying")
    tokens = x.argmax(-1).t()
    for row, wanted in zip(tokens, targets.t(), strict=True):
        symbols = row[row < 16]
        assert len(symbols) == 16
        assert torch.equal(wanted[256:], symbols)
        assert (row[256:] == 17).all()
        assert (wanted[:256] == IGNORED).all()


def test_induction_asks_for_what_followed_at_lengths_from_16_to_256():
    lengths = {len(drawn("induction", seed=seed)[0]) for seed in range(50)}
    assert 16 <= min(lengths) < 25 < 150 < max(lengths) <= 256
    for part in ("train", "test"):
        x, targets = drawn("induction", part=part)
        assert part == "train" or len(x) == 256
        last = len(x) - 1
        for row, wanted in zip(x.argmax(-1).t(), targets.t(), strict=True):
            places = (row == 16).nonzero().flatten().tolist()
            assert len(places) == 2
            assert places[1] == last
            assert wanted[last] == row[places[0] + 1]
            assert (wanted[:last] == IGNORED).all()


def test_digits_are_pixels_one_by_one():
    x, targets = drawn("digits", part="test")
    assert x.shape == (64, 360, 1)
    assert (targets[:-1] == IGNORED).all()
    assert 0 <= x.min() <= x.max() <= 1


def test_text_asks_for_the_next_byte_and_keeps_its_end_apart():
    x, targets = drawn("text")
    assert torch.equal(x.argmax(-1)[1:], targets[:-1])
    assert bytes(x.argmax(-1)[:, 0].tolist()).isascii()
    border = len(benchmark._text()) * 9 // 10
    for part, low, high in (("train", 0, border), ("test", border, len(benchmark._text()))):
        pieces = [bytes(drawn("text", 1, seed, part)[0].argmax(-1)[:, 0].tolist()) for seed in range(5)]
        whole = bytes(benchmark._text()[low:high].tolist())
        assert all(piece in whole for piece in pieces)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", TASKS)
def test_networks_score_every_token(name, arm):
    torch.manual_seed(0)
    network = benchmark.build(arm, TASKS[name])
    x, targets = drawn(name)
    assert network(x[:20]).shape == (20, *targets.shape[1:], TASKS[name].classes)
    neurons = network.neurons.values() if isinstance(network, Network) else ()
    kind = {"SSM + ATMN": ATMN, "SSM + LIF": LIF}.get(arm)
    assert (len(neurons) > 0) == (kind is not None)
    assert all(type(neuron) is kind for neuron in neurons)


def test_every_projection_of_a_block_sees_spikes():
    network = benchmark.build("SSM + ATMN", TASKS["copying"])
    for number in (1, 2):
        for site in ("into", "out"):
            place = network.names.index(f"{site}{number}")
            assert isinstance(network[network.names[place - 1]], ATMN)


def test_a_row_is_measured_and_repeats():
    row = benchmark.trained("digits", "SSM + ATMN", seed=3, updates=2)
    again = benchmark.trained("digits", "SSM + ATMN", seed=3, updates=2)
    for key in ("accuracy", "bits", "last_loss", "rate", "energy_pj"):
        assert row[key] == again[key]
    assert row["parameters"] == 7242
    assert 0 <= row["accuracy"] <= 1
    assert row["bits"] == pytest.approx(row["last_loss"] / math.log(2), rel=0.5)
    assert row["energy_pj"]["45nm-fp32"] > row["energy_pj"]["45nm-int8"] > 0


def test_the_table_has_mean_and_spread():
    base = {"task": "text", "arm": "SSM", "updates": 7, "parameters": 1000, "rate": None, "accuracy": 0.5}
    prices = {"45nm-fp32": 2000.0, "45nm-int8": 1000.0, "loihi1": None}
    rows = [{**base, "seed": seed, "bits": bits, "energy_pj": prices} for seed, bits in ((0, 2.0), (1, 4.0))]
    text = benchmark.markdown({"rows": rows})
    assert text.splitlines()[0].startswith("| text, 7 updates, 2 seeds | bits per byte |")
    assert text.splitlines()[2] == "| SSM | 3.00 +- 1.41 | 1,000 |  | 2.00 | 1.00 | n/a |"


def test_an_unknown_task_is_refused():
    with pytest.raises(InputError, match="no task named 'chess'; known: copying, induction, digits, text"):
        benchmark.run(["chess"])


# ---- what is kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_kept_results_are_of_the_task_as_it_is(name):
    kept = json.loads((KEPT / f"memory-{name}.json").read_text())
    assert f"`memory-{name}.json`" in (KEPT / "README.md").read_text(encoding="utf-8")
    assert kept["command"].startswith(f"marsnn bench memory --task {name} ")
    assert [row["arm"] for row in kept["rows"]] == [*ARMS] * (len(kept["rows"]) // len(ARMS))
    for row in kept["rows"]:
        network = benchmark.build(row["arm"], TASKS[name])
        assert row["parameters"] == sum(p.numel() for p in network.parameters())


def test_readme_has_the_table_of_sequential_digits():
    kept = json.loads((KEPT / "memory-digits.json").read_text())
    assert benchmark.markdown(kept) in (ROOT / "README.md").read_text(encoding="utf-8")
