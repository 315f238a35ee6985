"""What survives: four tasks that need memory, each by a dense state space net, spiking ones, and an LSTM.

    copying    16 symbols of 16 stand at random places among 256 tokens, and are asked for in order (selective
               copying, Gu and Dao 2023, arXiv 2312.00752, 4.1.1); accuracy of the 16 answers, chance 1 in 16
    induction  a special token stood once before, followed by a symbol; it stands at the end, and that symbol
               is asked for (induction heads, 4.1.2 there); 256 tokens, accuracy, chance 1 in 16. Batches to
               train on have from 16 to 256 tokens: with 256 alone nobody learnt it in as many updates
    digits     the 64 pixels of scikit-learn's digits one by one; accuracy of the class, told at the last
    text       the bytes of Python's own `pydoc_data.topics`, each from those before it; bits per byte on its
               last 10 percent, in pieces of 256

All networks of a task get the same batches, updates and learning rate. The block, of which there are two but
for digits, is MAR's (arXiv 2601.21503): norm, [spikes], Linear, SSDCore, [spikes], Linear, added to what came
in. Digits have the pipeline Linear - S4D - neuron - Linear - neuron - Linear: which pixel stood where is a
matter of time constants and frequencies, which S4D has and SSD, whose memory only fades, has not.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.bench.parts import machine
from marsnn.data import load_digits
from marsnn.energy import EnergyReport, OperationCounts
from marsnn.energy import count as count_operations
from marsnn.energy.report import DEFAULT_TABLES
from marsnn.errors import InputError, MarsnnError
from marsnn.network import Network, evaluating
from marsnn.neurons import ATMN, LIF
from marsnn.progress import track
from marsnn.ssm import S4D, SSDCore
from marsnn.training import IGNORED, StreamConfig, train_stream
from marsnn.workers import Failed, engine

WIDTH, STATE, PIPELINE_STATE, STEPS = 64, 64, 16, 4
ARMS = ("SSM", "SSM + ATMN", "SSM + LIF", "LSTM")
SYMBOLS, STORED, LENGTH, SHORTEST = 16, 16, 256, 16
PIECE = 256
TEST_SEED = 1_000_000
"""Test batches are drawn from seeds that no training uses."""

Draw = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Memory:
    """One task.

    Attributes:
        draw: (batch size, generator, "train" or "test") to x [L, B, D] and targets [L, B].
        inputs: D.   classes: C.
    """

    name: str
    draw: Callable[[int, torch.Generator, str], tuple[Tensor, Tensor]]
    inputs: int
    classes: int
    batch: int
    updates: int
    learning_rate: float
    test: int  # batches


# ---- tasks ----------------------------------------------------------------------------------------------


def draw_copying(batch: int, draw: torch.Generator, part: str) -> tuple[Tensor, Tensor]:
    """x [272, B, 18]: symbols, noise, and the token that asks; the answers at the last 16."""
    symbols = torch.randint(SYMBOLS, (batch, STORED), generator=draw)
    places = torch.rand(batch, LENGTH, generator=draw).argsort(1)[:, :STORED].sort(1).values
    tokens = torch.full((batch, LENGTH + STORED), SYMBOLS)
    tokens.scatter_(1, places, symbols)
    tokens[:, LENGTH:] = SYMBOLS + 1
    targets = torch.full_like(tokens, IGNORED)
    targets[:, LENGTH:] = symbols
    return _one_hot(tokens, SYMBOLS + 2), targets.t().contiguous()


def draw_induction(batch: int, draw: torch.Generator, part: str) -> tuple[Tensor, Tensor]:
    """x [L, B, 17]: symbols, the special token once among them and again at the end; L = 256 to test."""
    shorter = torch.rand(1, generator=draw).item() if part == "train" else 0.0
    length = round(LENGTH * (SHORTEST / LENGTH) ** shorter)
    tokens = torch.randint(SYMBOLS, (batch, length), generator=draw)
    place = torch.randint(length - 2, (batch, 1), generator=draw)
    tokens.scatter_(1, place, SYMBOLS)
    tokens[:, -1] = SYMBOLS
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -1:] = tokens.gather(1, place + 1)
    return _one_hot(tokens, SYMBOLS + 1), targets.t().contiguous()


def draw_digits(batch: int, draw: torch.Generator, part: str) -> tuple[Tensor, Tensor]:
    """x [64, B, 1]: the pixels of an image one by one; its class at the last."""
    digits = load_digits("flat")
    split = digits.train if part == "train" else digits.test
    chosen = (
        torch.randint(len(split), (batch,), generator=draw) if part == "train" else torch.arange(len(split))
    )
    x = split.x[0, chosen].t().unsqueeze(-1).contiguous()
    targets = torch.full(x.shape[:2], IGNORED)
    targets[-1] = split.y[chosen]
    return x, targets


def draw_text(batch: int, draw: torch.Generator, part: str) -> tuple[Tensor, Tensor]:
    """x [256, B, 256] bytes; the next byte at each."""
    text = _text()
    border = len(text) * 9 // 10
    first, last = (0, border) if part == "train" else (border, len(text))
    starts = torch.randint(first, last - PIECE - 1, (batch, 1), generator=draw)
    pieces = text[starts + torch.arange(PIECE + 1)]
    return _one_hot(pieces[:, :-1], 256), pieces[:, 1:].t().contiguous()


@cache
def _text() -> Tensor:
    from pydoc_data.topics import topics

    joined = "\n".join(topics[name] for name in sorted(topics))
    return torch.tensor(list(joined.encode()))


def _one_hot(tokens: Tensor, classes: int) -> Tensor:
    return F.one_hot(tokens, classes).float().transpose(0, 1).contiguous()


TASKS = {
    task.name: task
    for task in (
        Memory("copying", draw_copying, SYMBOLS + 2, SYMBOLS, 32, 6000, 5e-3, 16),
        Memory("induction", draw_induction, SYMBOLS + 1, SYMBOLS, 32, 6000, 5e-3, 16),
        Memory("digits", draw_digits, 1, 10, 64, 1200, 5e-3, 1),
        Memory("text", draw_text, 256, 256, 16, 2000, 5e-3, 32),
    )
}


# ---- networks -------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """torch's LSTM, two layers: x [L, B, D] to scores [L, B, C]."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, 2 * WIDTH, num_layers=2)
        self.head = nn.Linear(2 * WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])  # type: ignore[no-any-return]


def build(arm: str, task: Memory) -> nn.Module:
    """A network of an arm, its weights on the random numbers as they stand."""
    if arm == "LSTM":
        return Recurrent(task.inputs, task.classes)
    spikes = {"SSM": None, "SSM + ATMN": _atmn, "SSM + LIF": _lif}[arm]
    return _pipeline(spikes, task) if task.name == "digits" else _blocks(spikes, task)


def _atmn(features: int) -> nn.Module:
    return ATMN(features, steps=STEPS)


def _lif(features: int) -> nn.Module:
    return LIF(features, steps=STEPS)


def _blocks(spikes: Callable[[int], nn.Module] | None, task: Memory, blocks: int = 2) -> Network:
    layers: dict[str, nn.Module] = {"embed": nn.Linear(task.inputs, WIDTH)}
    skips: dict[str, list[str]] = {}
    stream: list[str] = ["embed"]
    for number in range(1, blocks + 1):
        core = SSDCore(4, WIDTH // 2, STATE, activation="silu", scale_input=True)
        own = {"norm": nn.RMSNorm(WIDTH), "into": nn.Linear(WIDTH, core.inputs), "core": core,
               "out": nn.Linear(core.outputs, WIDTH)}  # fmt: skip
        for name, layer in own.items():
            if spikes is not None and name in ("into", "out"):
                layers[f"spikes_{name}{number}"] = spikes(layer.in_features)  # type: ignore[arg-type]
            layers[f"{name}{number}"] = layer
        if number > 1:
            skips[f"norm{number}"] = stream[:-1]
        stream.append(f"out{number}")
    layers["norm"] = nn.RMSNorm(WIDTH)
    skips["norm"] = stream[:-1]
    layers["head"] = nn.Linear(WIDTH, task.classes)
    return Network(layers, skips)


def _pipeline(spikes: Callable[[int], nn.Module] | None, task: Memory) -> Network:
    make = spikes or (lambda features: nn.SiLU())
    ssm = S4D(WIDTH, PIPELINE_STATE, dt_min=1 / 50, dt_max=1 / 5)  # remembers 5 to 50 of 64 pixels
    return Network(
        [nn.Linear(task.inputs, WIDTH), ssm, make(WIDTH), nn.Linear(WIDTH, WIDTH), make(WIDTH),
         nn.Linear(WIDTH, task.classes)]
    )  # fmt: skip


# ---- one network ----------------------------------------------------------------------------------------


def trained(
    name: str, arm: str, seed: int, updates: int | None = None, progress: bool = False
) -> dict[str, Any]:
    """Train and test one network.

    Returns:
        JSON-ready: task, arm, seed, accuracy of what is asked, bits per target, parameters, seconds, spikes
        per neuron and step, and its energy per token by table.
    """
    task = TASKS[name]
    torch.manual_seed(seed)
    network = build(arm, task)
    started = time.perf_counter()
    config = StreamConfig(updates=updates or task.updates, learning_rate=task.learning_rate)

    def draw(update: int) -> tuple[Tensor, Tensor]:
        own = torch.Generator().manual_seed(seed * 100_003 + update)
        return task.draw(task.batch, own, "train")

    losses = train_stream(network, draw, config, progress).loss
    seconds = time.perf_counter() - started
    right, bits, asked = 0.0, 0.0, 0
    with evaluating(network), torch.no_grad():
        for number in range(task.test):
            x, targets = task.draw(task.batch, torch.Generator().manual_seed(TEST_SEED + number), "test")
            scores = network(x)[targets != IGNORED]
            wanted = targets[targets != IGNORED]
            right += (scores.argmax(-1) == wanted).sum().item()
            bits += F.cross_entropy(scores, wanted, reduction="sum").item() / math.log(2)
            asked += len(wanted)
    counts = counted(network, task)
    report = EnergyReport(counts)
    return {
        "task": name,
        "arm": arm,
        "seed": seed,
        "updates": config.updates,
        "accuracy": right / asked,
        "bits": bits / asked,
        "last_loss": statistics.mean(losses[-20:]),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": seconds,
        "rate": _rate(counts),
        "energy_pj": {table: report.totals[table].spiking_pj for table in DEFAULT_TABLES},
    }


def counted(network: nn.Module, task: Memory) -> OperationCounts:
    """Operations of 4 test sequences, token by token."""
    x, _ = task.draw(4, torch.Generator().manual_seed(TEST_SEED), "test")
    x = x[:, :4]
    return count_operations(network, x, tokens=x.shape[0] * x.shape[1])


def _rate(counts: OperationCounts) -> float | None:
    total = counts.total
    return total.spikes / total.neuron_updates if total.neuron_updates else None


def _job(job: tuple[str, str, int, int | None]) -> dict[str, Any]:
    return trained(*job)


# ---- the whole ------------------------------------------------------------------------------------------


def run(
    tasks: Sequence[str] = tuple(TASKS),
    seeds: Sequence[int] = (0,),
    updates: int | None = None,
    workers: int = 2,
) -> dict[str, Any]:
    """Train and test every arm on every task.

    Args:
        tasks: of `TASKS`.   seeds: each arm is trained once with each.
        updates: instead of each task's own number.   workers: processes at a time.

    Returns:
        JSON-ready: machine, and a row for each task, arm and seed.
    """
    unknown = [name for name in tasks if name not in TASKS]
    if unknown:
        raise InputError(f"no task named {unknown[0]!r}; known: {', '.join(TASKS)}")
    jobs = [(name, arm, seed, updates) for name in tasks for seed in seeds for arm in ARMS]
    rows: dict[int, dict[str, Any]] = {}
    with engine("local", workers) as run_jobs:
        results = run_jobs(_job, jobs)
        for _ in track(range(len(jobs)), "tasks that need memory"):
            index, row = next(results)
            if isinstance(row, Failed):
                raise MarsnnError(f"{jobs[index]}: {row.message}")
            rows[index] = row
    chosen = "".join(f" --task {name}" for name in tasks)
    return {
        "benchmark": "memory",
        "command": f"marsnn bench memory{chosen} --seed {seeds[0]} --seeds {len(seeds)}"
        + (f" --updates {updates}" if updates else ""),
        "machine": machine(),
        "rows": [rows[index] for index in sorted(rows)],
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as one Markdown table a task."""
    return "\n\n".join(
        _task_table(result["rows"], name) for name in dict.fromkeys(r["task"] for r in result["rows"])
    )


def _task_table(rows: Sequence[dict[str, Any]], name: str) -> str:
    own = [row for row in rows if row["task"] == name]
    what = "bits per byte" if name == "text" else "accuracy %"
    heads = ["parameters", "spikes per step", *(f"{table}, nJ a token" for table in DEFAULT_TABLES)]
    seeds = len({row["seed"] for row in own})
    lines = [
        f"| {name}, {own[0]['updates']:,} updates, {seeds} seed{'s' * (seeds > 1)} | {what} | "
        + " | ".join(heads)
        + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in own):
        mine = [row for row in own if row["arm"] == arm]
        scores = [row["bits"] if name == "text" else 100 * row["accuracy"] for row in mine]
        score = f"{statistics.mean(scores):.2f}"
        if len(scores) > 1:
            score += f" +- {statistics.stdev(scores):.2f}"
        rates = [row["rate"] for row in mine if row["rate"] is not None]
        cells = [score, f"{mine[0]['parameters']:,}", f"{statistics.mean(rates):.3f}" if rates else ""]
        for table in DEFAULT_TABLES:
            prices = [row["energy_pj"][table] for row in mine]
            cells.append("n/a" if None in prices else f"{statistics.mean(prices) / 1000:.2f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
