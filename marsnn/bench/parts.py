"""Parts of a benchmark, each in a fresh process: what one allocates or loads can't help or hurt the next."""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from marsnn.bench import timing
from marsnn.bench.timing import Summary
from marsnn.errors import MarsnnError
from marsnn.workers import peak_memory_mb, start_peak_memory

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
"""Has glibc keep freed memory: page faults would otherwise cost whoever allocates more."""


def part(benchmark: str, name: str, environment: dict[str, str] | None = None, **arguments: Any) -> Any:
    """Call `marsnn.bench.<benchmark>.<name>` with JSON-ready arguments in a process of its own.

    Raises:
        MarsnnError: it failed; the last line it wrote says why.
    """
    done = subprocess.run(
        [sys.executable, "-c", "from marsnn.bench.parts import _child; _child()"],
        input=json.dumps([benchmark, name, arguments]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MarsnnError(f"bench {benchmark}: {name} {arguments} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _child() -> None:
    benchmark, name, arguments = json.load(sys.stdin)
    print(json.dumps(getattr(importlib.import_module(f"marsnn.bench.{benchmark}"), name)(**arguments)))


def risen(call: Callable[[], Any], device: str = "cpu") -> float | None:
    """How far memory rises in a call, in 10^6 bytes; None where the system doesn't tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    start = start_peak_memory()
    call()
    return peak_memory_mb(start)


def milliseconds(seconds: Sequence[float]) -> Summary:
    """Median and quartiles of times."""
    return timing.summary([1e3 * s for s in seconds])


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a result was measured on."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def aimed(what: str, value: float | None, sign: str, limit: float) -> list[dict[str, Any]]:
    """A row of what was aimed at and whether it is met; none where there is no value."""
    if value is None:
        return []
    met = value <= limit if sign == "<=" else value >= limit
    return [{"what": what, "value": value, "sign": sign, "limit": limit, "met": met}]


def aims_table(rows: Sequence[dict[str, Any]]) -> str:
    """What was aimed at, as Markdown."""
    lines = ["| aim | measured | wanted | |", "|---|---|---|---|"]
    for row in rows:
        verdict = "met" if row["met"] else "**not met**"
        value = f"{row['value']:.2f}" if row["value"] >= 0.1 else f"{row['value']:.3f}"
        lines.append(f"| {row['what']} | {value} | {row['sign']} {row['limit']:g} | {verdict} |")
    return "\n".join(lines)


def spread(of: Summary) -> str:
    """Median and quartiles as text."""
    return f"{of['median']:.2f} ({of['low']:.2f}, {of['high']:.2f})"
