"""Speed and memory of every neuron, ours and other libraries', beside a copy of the same memory.

What is measured, in float32, over currents [T, 1, N]:

    forward    spikes from currents, no gradients wanted.
               Its floor is one copy of the currents into memory that is there.
    both       forward, and backward from a given gradient of the spikes to that of the currents.
               Its floor is four such copies: currents, spikes, and the gradients of both.
    memory     how far the peak of a fresh process rises above currents and given gradient, in `both`.
    first use  building a kernel, and loading one that was built before.

Every part runs in fresh processes. While times are taken, glibc is told to keep freed memory: page faults
would otherwise cost whoever allocates more (on one machine half of a peer's time), and the arithmetic is the
question. Peak memory is measured with the allocator as it comes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from marsnn.bench import timing
from marsnn.bench.contestants import Contestant, entries, installed
from marsnn.bench.parts import KEEP_MEMORY, aimed, aims_table, machine, milliseconds, part, risen, spread
from marsnn.errors import InputError
from marsnn.neurons import fused
from marsnn.progress import track

T, N = 16, 1 << 18
"""The size at which everything is compared."""
SCALED = ("LIF", "ATMN")
"""Neurons that are followed over T and N."""
OVER_T = (1, 2, 4, 8, 16, 32, 64)  # at N
OVER_N = tuple(1 << power for power in range(12, 25, 2))  # at T
QUICK_N = 1 << 14


# ---- parts, each in a process of its own ----------------------------------------------------------------


def speed(model: str, features: int, steps: int, count: int, device: str) -> list[dict[str, Any]]:
    """All contestants of one model, and the floors, in the same rounds."""
    own = [each for each in entries() if each.model == model]
    currents, upstream = _tensors(features, steps, device)
    runs: dict[str, Callable[[], Any]] = {}
    copies = [(torch.randn_like(currents), torch.empty_like(currents)) for _ in range(4)]
    runs["copy"] = partial(_copy, copies[:1])
    runs["copies"] = partial(_copy, copies)
    for each in own:
        run = each.make(features, steps, device)
        runs[f"{_key(each)} forward"] = partial(timing.forward, run, currents)
        runs[f"{_key(each)} both"] = partial(timing.both, run, currents, upstream)
    seconds = timing.rounds(runs, count, device)
    found = []
    for each in own:
        forward, both = seconds[f"{_key(each)} forward"], seconds[f"{_key(each)} both"]
        row = {
            "model": model,
            "library": each.library,
            "what": each.what,
            "forward_ms": milliseconds(forward),
            "both_ms": milliseconds(both),
            "forward_to_copy": timing.ratio(forward, seconds["copy"]),
            "both_to_copies": timing.ratio(both, seconds["copies"]),
            "forward_to_ours": timing.ratio(forward, seconds[f"{_key(own[0])} forward"]),
            "both_to_ours": timing.ratio(both, seconds[f"{_key(own[0])} both"]),
        }
        found.append(row)
    floor = {"copy_ms": milliseconds(seconds["copy"]), "copies_ms": milliseconds(seconds["copies"])}
    return [{**row, **floor} for row in found]


def scaling(model: str, sizes: Sequence[Sequence[int]], count: int, device: str) -> list[dict[str, Any]]:
    """Our neuron over sizes (T, N), and the floors."""
    ours = next(each for each in entries() if each.model == model)
    found = []
    for steps, features in sizes:
        currents, upstream = _tensors(features, steps, device)
        target = torch.empty_like(currents)
        run = ours.make(features, steps, device)
        repeats = max(
            1, (1 << 20) // (steps * features)
        )  # what is too short to be timed is run several times
        runs: dict[str, Callable[[], Any]] = {
            "copy": partial(timing.again, repeats, partial(_copy, [(currents, target)])),
            "forward": partial(timing.again, repeats, partial(timing.forward, run, currents)),
            "both": partial(timing.again, repeats, partial(timing.both, run, currents, upstream)),
        }
        seconds = timing.rounds(runs, count, device)
        nanoseconds = {
            f"{name}_ns": timing.summary([1e9 * s / (repeats * steps * features) for s in values])
            for name, values in seconds.items()
        }
        found.append({"model": model, "T": steps, "N": features, **nanoseconds})
        del currents, upstream, target, run, runs
    return found


def memory(model: str, library: str, what: str, features: int, steps: int, device: str) -> dict[str, Any]:
    """How far memory rises in one forward and backward, in 10^6 bytes: of three the middle; or None."""
    each = next(c for c in entries() if (c.model, c.library, c.what) == (model, library, what))
    run = each.make(features, steps, device)
    few = each.make(64, 2, device)
    timing.both(few, *_tensors(64, 2, device))  # code that is loaded on first use
    currents, upstream = _tensors(features, steps, device)
    rises = [risen(partial(timing.both, run, currents, upstream), device) for _ in range(3)]
    extra = None if None in rises else sorted(rises)[1]  # type: ignore[type-var]
    return {"model": model, "library": library, "what": what, "extra_mb": extra}


def first_use(model: str) -> dict[str, Any]:
    """Seconds of the first forward and backward of a process."""
    run = next(each for each in entries() if each.model == model).make(64, 4)
    currents, upstream = _tensors(64, 4, "cpu")
    started = time.perf_counter()
    timing.both(run, currents, upstream)
    return {
        "model": model,
        "seconds": time.perf_counter() - started,
        "fused": sum(fused.LAUNCHES.values()) == 2,
    }


def _key(each: Contestant) -> str:
    return f"{each.library} {each.what}"


def _tensors(features: int, steps: int, device: str) -> tuple[Tensor, Tensor]:
    """Currents and an upstream gradient [T, 1, N]."""
    draw = torch.Generator().manual_seed(0)
    shape = (steps, 1, features)
    currents = torch.randn(shape, generator=draw).to(device).requires_grad_()
    return currents, torch.randn(shape, generator=draw).to(device)


def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for source, target in pairs:
            target.copy_(source)


# ---- the whole ------------------------------------------------------------------------------------------


def run(quick: bool = False, device: str | None = None, count: int = 40) -> dict[str, Any]:
    """Measure everything.

    Args:
        quick: N = 2^14 where time is taken, few neurons, rounds and sizes: whether it works, not how fast.
        device: "cpu" or "cuda"; None takes the CPU, and a GPU too where there is one.
        count: rounds in which all run once.

    Returns:
        JSON-ready: machine, versions, and rows of speed, memory, scaling and first use; under "cuda" the same
        of a GPU, if both were measured.

    Raises:
        InputError: no GPU here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch finds no CUDA device here; take --device cpu")
    result = _run(quick, device or "cpu", count)
    if device is None and torch.cuda.is_available():
        result["cuda"] = _run(quick, "cuda", count)
    return result


def _run(quick: bool, device: str, count: int) -> dict[str, Any]:
    features = QUICK_N if quick else N
    count = min(count, 3) if quick else count
    models = SCALED if quick else list(dict.fromkeys(each.model for each in entries()))
    sizes = {
        "T": [(steps, features) for steps in (OVER_T[::3] if quick else OVER_T)],
        "N": [(T, size) for size in (OVER_N[:2] if quick else OVER_N)],
    }
    jobs: list[tuple[str, Callable[[], Any]]] = []
    for model in models:
        call = partial(
            part, "neurons", "speed", KEEP_MEMORY, model=model, features=features, steps=T, count=count
        )
        jobs.append(("speed", partial(call, device=device)))
    for model in SCALED[:1] if quick else SCALED:
        for axis in sizes:
            call = partial(part, "neurons", "scaling", KEEP_MEMORY, model=model, sizes=sizes[axis])
            jobs.append((f"over_{axis}", partial(call, count=max(3, count // 2), device=device)))
    for each in entries():
        if not quick or each.what in ("LIF", "LIFNode"):
            call = partial(
                part, "neurons", "memory", None, model=each.model, library=each.library, what=each.what
            )
            # never small: Linux counts a process's pages to within half a megabyte or so
            jobs.append(("memory", partial(call, features=N, steps=T, device=device)))
    result: dict[str, Any] = {
        "benchmark": "neurons",
        "command": f"marsnn bench neurons --device {device} --rounds {count}" + " --quick" * quick,
        "machine": machine(device),
        "libraries": installed(),
        "T": T,
        "N": features,
        "rounds": count,
        "speed": [],
        "over_T": [],
        "over_N": [],
        "memory": [],
    }
    for heading, job in track(jobs, f"neurons on {device}"):
        found = job()
        result[heading] += found if isinstance(found, list) else [found]
    result["first_use"] = _first_use() if device == "cpu" else None
    result["targets"] = [] if quick else targets(result)
    return result


def _first_use() -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as cache:
        for what in ("build", "load"):
            row = part("neurons", "first_use", {"MARSNN_CACHE": cache}, model="LIF")
            found.append({"what": what, **row})
    return found


# ---- what was aimed at ----------------------------------------------------------------------------------


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, each with its value and whether it is met; what can't be told is left out."""
    speeds, memories = result["speed"], result["memory"]
    found: list[dict[str, Any]] = []

    def aim(*row: Any) -> None:
        found.extend(aimed(*row))

    lif = _ours_of(speeds, "LIF")
    aim("LIF forward, in copies of the currents", lif["forward_to_copy"]["median"], "<=", 1.3)
    copies = "LIF forward + backward, in copies of currents, spikes and both gradients"
    aim(copies, lif["both_to_copies"]["median"], "<=", 1.5)
    peers = [row["both_to_ours"]["median"] for row in _peers_of(speeds, "LIF")]
    aim("LIF forward + backward: time of the fastest peer, in ours", min(peers, default=None), ">=", 4.0)
    ternary = [row["both_to_ours"]["median"] for row in _peers_of(speeds, "ATMN")]
    jelly = "ATMN forward + backward: time of SpikingJelly's TernaryLIFNode, in ours"
    aim(jelly, min(ternary, default=None), ">=", 10.0)
    own = _ours_of(memories, "LIF")["extra_mb"]
    lean = [row["extra_mb"] for row in _peers_of(memories, "LIF") if row["extra_mb"] is not None]
    share = own / min(lean) if own is not None and lean else None
    aim("LIF peak extra memory of forward + backward, in the leanest peer's", share, "<=", 0.5)
    for axis in ("T", "N"):
        rows = [row for row in result[f"over_{axis}"] if row["model"] == "LIF"]
        last, middle = rows[-1], rows[len(rows) // 2]
        growth = last["both_ns"]["median"] / middle["both_ns"]["median"]
        linear = f"LIF time per neuron-step at {axis} = {last[axis]:,}, in that at {middle[axis]:,}"
        aim(linear, growth, "<=", 1.2)
    return found


def _ours_of(rows: Sequence[dict[str, Any]], model: str) -> dict[str, Any]:
    return next(row for row in rows if row["model"] == row["what"] == model)


def _peers_of(rows: Sequence[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["model"] == model and row["library"] != "marsnn"]


# ---- as text --------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    here, libraries = result["machine"], result["libraries"]
    versions = ", ".join(f"{name} {number}" for name, number in libraries.items())
    copy, copies = (summaries(result, name) for name in ("copy_ms", "copies_ms"))
    parts = [
        f"{here['device']}, {here['threads']} threads; torch {here['torch']}, {versions}. "
        f"float32, T = {result['T']}, N = {result['N']:,}; medians of {result['rounds']} rounds, quartiles "
        f"in brackets. One copy of the currents takes {copy} ms, the four of the second floor {copies} ms.",
        _speed_table(result),
    ]
    if result["targets"]:
        parts.append(aims_table(result["targets"]))
    parts += [_scaling_table(result, "T"), _scaling_table(result, "N")]
    if result["first_use"]:
        built, loaded = (row["seconds"] for row in result["first_use"])
        parts.append(
            f"First use of a kernel: {built:.2f} s to build forward and backward, {1000 * loaded:.0f} ms to "
            "load them in a later process."
        )
    if result.get("cuda"):
        parts += ["On a GPU:", markdown(result["cuda"])]
    return "\n\n".join(parts)


def summaries(result: dict[str, Any], name: str) -> str:
    """The range of a floor's medians over the models' processes."""
    medians = [row[name]["median"] for row in result["speed"]]
    return f"{min(medians):.2f} to {max(medians):.2f}"


def _speed_table(result: dict[str, Any]) -> str:
    extra = {(row["model"], row["library"], row["what"]): row["extra_mb"] for row in result["memory"]}
    lines = [
        "| model | library | forward ms | in copies | fwd + bwd ms | in 4 copies | time in ours | extra MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["speed"]:
        mb = extra.get((row["model"], row["library"], row["what"]))
        named = row["what"] if row["library"] == "marsnn" else f"`{row['what']}`"
        own = row["library"] == "marsnn" and row["what"] == row["model"]
        cells = (
            f"**{row['model']}**" if own else "",
            f"marsnn{', step by step' if 'step by step' in named else ''}"
            if row["library"] == "marsnn"
            else f"{row['library']} {named}",
            f"{row['forward_ms']['median']:.2f}",
            spread(row["forward_to_copy"]),
            f"{row['both_ms']['median']:.2f}",
            spread(row["both_to_copies"]),
            "" if own else spread(row["both_to_ours"]),
            "" if mb is None else f"{mb:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _scaling_table(result: dict[str, Any], axis: str) -> str:
    rows = result[f"over_{axis}"]
    sizes = list(dict.fromkeys(row[axis] for row in rows))
    fixed = f"N = {result['N']:,}" if axis == "T" else f"T = {result['T']}"
    lines = [
        f"| ps per neuron-step, {fixed} | " + " | ".join(f"{axis} = {size:,}" for size in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        for field, name in (
            ("copy_ns", "copy"),
            ("forward_ns", "forward"),
            ("both_ns", "forward + backward"),
        ):
            own = {row[axis]: 1000 * row[field]["median"] for row in rows if row["model"] == model}
            if field == "copy_ns" and model != rows[0]["model"]:
                continue
            label = "one copy" if field == "copy_ns" else f"{model} {name}"
            lines.append(f"| {label} | " + " | ".join(f"{own[size]:.0f}" for size in sizes) + " |")
    return "\n".join(lines)
