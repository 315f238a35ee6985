"""measure(): joules of a call by this machine's meters, idle power subtracted, repeats with their spread.

    idle_w  = joules / seconds of each idle window, then the mean over the windows
    net_j   = (joules - idle_w seconds) / calls of each repeat, then the mean over the repeats

What is measured first stays out: calls until their time is known, a pause, and one window of calls in which
the clocks rise. Idle comes before it, after the pause; at rest the device holds what the call needs there
(weights, a CUDA context). Idle windows and repeats are equally many and equally long.

The interval of the mean joins both spreads, each Student's half width at 95 %: that of the repeats and that
of idle_w, as independent errors (their squares add). Net energy that is smaller than this, or than the
smallest step of the meter, is not told from zero: it is reported as below the meter's resolution. So is
negative net energy, whatever its size.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from marsnn.checks import count as whole
from marsnn.checks import positive
from marsnn.energy.meter import Clock, Found, Meter, find_meters, metered, usable_device
from marsnn.errors import InputError
from marsnn.intervals import Interval, interval
from marsnn.network import Network, evaluating
from marsnn.progress import track

REPEATS = 5
SECONDS = 2.0
"""A window. NVML's counters move every 10 to 100 ms, so a shorter one would tell little."""

REST_S = 2.0
"""Between the first calls and the first idle window, for the clocks to fall."""


@dataclass(frozen=True)
class Repeat:
    """One window of calls, as the meter saw it: idle not subtracted."""

    joules: float
    seconds: float
    calls: int


@dataclass(frozen=True)
class Measurement:
    """One meter's verdict over repeats of a call. Measured, never estimated.

    Args:
        meter: the interface and the device.   method, scope: how it measures, and what its joules hold.
        idle_w: power at rest, in W.   repeats: at least two.   tokens: of one call.
        quantum_j: the meter's smallest step, in J.

    Example:
        >>> from marsnn.energy import Measurement
        >>> from marsnn.energy.measured import Repeat
        >>> from marsnn.intervals import Interval
        >>> runs = (Repeat(joules=30.0, seconds=2.0, calls=4), Repeat(joules=30.0, seconds=2.0, calls=4))
        >>> idle_w = Interval(10.0, 0.0, 2)
        >>> told = Measurement("NVML, a GPU", "energy counter", "the GPU", idle_w, runs, 5, 1e-3)
        >>> told.per_call_j.mean, told.per_token_j.mean, told.below_resolution
        (2.5, 0.5, False)
        >>> told.label
        'measured (NVML, a GPU; idle subtracted)'
    """

    meter: str
    method: str
    scope: str
    idle_w: Interval
    repeats: tuple[Repeat, ...]
    tokens: int
    quantum_j: float

    @property
    def label(self) -> str:
        """How a report heads its column."""
        return f"measured ({self.meter}; idle subtracted)"

    @property
    def net_j(self) -> tuple[float, ...]:
        """Of each repeat: joules of one call, idle subtracted; below zero where idle drew more."""
        return tuple((run.joules - self.idle_w.mean * run.seconds) / run.calls for run in self.repeats)

    @property
    def gross_w(self) -> float:
        """Mean power during the repeats, idle included, in W."""
        return sum(run.joules for run in self.repeats) / sum(run.seconds for run in self.repeats)

    @property
    def per_call_j(self) -> Interval:
        """Net joules of one call, with both spreads: the repeats' and idle's."""
        runs = interval(self.net_j)
        seconds = statistics.fmean(run.seconds / run.calls for run in self.repeats)
        half = math.hypot(runs.half or 0.0, (self.idle_w.half or 0.0) * seconds)
        return Interval(runs.mean, half, runs.n)

    @property
    def per_token_j(self) -> Interval:
        """Net joules of one token."""
        call = self.per_call_j
        return Interval(call.mean / self.tokens, (call.half or 0.0) / self.tokens, call.n)

    @property
    def resolution_j(self) -> float:
        """The smallest net energy of one token that would be told from zero, in J."""
        step = statistics.fmean(self.quantum_j / run.calls for run in self.repeats) / self.tokens
        return max(self.per_token_j.half or 0.0, step)

    @property
    def below_resolution(self) -> bool:
        """Whether the net energy is not told from zero: too small, or negative."""
        return self.per_token_j.mean <= self.resolution_j

    def text(self) -> str:
        """One line: joules per token, or that it is too little to tell, and how that was found."""
        token, first = self.per_token_j, self.repeats[0]
        if token.mean < -self.resolution_j:
            told = (
                f"below the meter's resolution: {joules_text(token.mean)} a token net, for it drew less than "
                "at rest before: idle is not what it was"
            )
        elif self.below_resolution:
            told = (
                f"below the meter's resolution: {joules_text(token.mean)} a token net, less than the "
                f"{joules_text(self.resolution_j)} that it tells from zero; longer windows may tell it"
            )
        else:
            told = f"{joules_text(token.mean)} a token +- {joules_text(token.half or 0.0)} (95 %)"
        seconds = statistics.fmean(run.seconds for run in self.repeats)
        return (
            f"{self.label}: {told}, sd {joules_text(statistics.stdev(self.net_j) / self.tokens)}; "
            f"{len(self.repeats)} repeats of {first.calls} calls of {self.tokens} tokens in {seconds:.3g} s; "
            f"{self.gross_w:.4g} W while it ran, {self.idle_w.mean:.4g} W +- {self.idle_w.half or 0.0:.2g} "
            f"idle before; {self.method}; {self.scope}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; energies in J, said so in their names."""
        return {
            "label": self.label,
            "estimated": False,
            "measured": True,
            "meter": self.meter,
            "method": self.method,
            "scope": self.scope,
            "below_resolution": self.below_resolution,
            "net_j_per_token": asdict(self.per_token_j),
            "net_j_per_call": asdict(self.per_call_j),
            "resolution_j_per_token": self.resolution_j,
            "sd_j_per_token": statistics.stdev(self.net_j) / self.tokens,
            "idle_w": asdict(self.idle_w),
            "gross_w": self.gross_w,
            "quantum_j": self.quantum_j,
            "tokens": self.tokens,
            "repeats": [
                {**asdict(run), "net_j_per_call": net}
                for run, net in zip(self.repeats, self.net_j, strict=True)
            ],
        }


@dataclass(frozen=True)
class MeasuredEnergy:
    """What all meters of a machine say about a call, or why there is none.

    Attributes:
        measurements: one for each meter.   missing: "NVML" or "RAPL" -> why it was not used.
        device: where the call ran, or would have.
    """

    measurements: tuple[Measurement, ...]
    missing: dict[str, str]
    device: str

    @property
    def reason(self) -> str | None:
        """One line where nothing was measured; None where something was."""
        if self.measurements:
            return None
        looked = "; ".join(f"{name}: {why}" for name, why in self.missing.items())
        return f"no meter on this machine: {looked or 'none was passed'}"

    def lines(self) -> list[str]:
        """A line for each meter and for each that was not used, or the one line of `reason`."""
        if self.reason is not None:
            return [self.reason]
        unused = [f"not measured by {name}: {why}" for name, why in self.missing.items()]
        return [told.text() for told in self.measurements] + unused

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "measured": bool(self.measurements),
            "reason": self.reason,
            "device": self.device,
            "missing": dict(self.missing),
            "meters": [told.to_dict() for told in self.measurements],
        }


def measure(
    call: Callable[[], Any],
    tokens: int = 1,
    device: str | torch.device = "cpu",
    repeats: int = REPEATS,
    seconds: float = SECONDS,
    meters: Sequence[Meter] | None = None,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    progress: bool = False,
) -> MeasuredEnergy:
    """Joules of `call()` by every meter that sees `device`.

    Where there is no meter the call is not run at all, and `reason` says in one line what was looked for.

    Args:
        call: the same work each time; its result is dropped.
        tokens: of one call; what "per token" divides by.
        device: where the call runs: "cpu", "cuda" or "cuda:1". A GPU is waited for.
        repeats: windows of calls, and as many of idle; at least 2, for a spread.
        seconds: the length of a window; longer calls run once in it.
        meters: these instead of those that `find_meters(device)` finds.
        clock, sleep: seconds and waiting, for tests.
        progress: draw a progress bar on a terminal.

    Raises:
        InputError: a setting.   MeterError: a meter failed on the way.   Whatever `call` raises.

    Example:
        >>> from marsnn.energy import measure
        >>> measure(lambda: sum(range(1000)), meters=[]).reason
        'no meter on this machine: none was passed'
    """
    tokens = whole("tokens", tokens)
    if whole("repeats", repeats) < 2:
        raise InputError("repeats must be at least 2, got 1: one alone has no spread")
    positive("seconds", seconds)
    if not callable(call):
        raise InputError(f"measure() runs a callable, got {type(call).__name__}; wrap it: lambda: network(x)")
    where = usable_device(device)
    found = find_meters(where) if meters is None else Found(tuple(meters), {})
    if not found.meters:
        return MeasuredEnergy((), found.missing, str(where))

    def run(calls: int) -> None:
        for _ in range(calls):
            call()
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    calls = _calls(run, seconds, clock)
    sleep(REST_S)
    idle: list[list[float]] = [[] for _ in found.meters]
    runs: list[list[Repeat]] = [[] for _ in found.meters]
    for number in track(range(-repeats, repeats + 1), "measuring", enabled=progress):
        with metered(found.meters) as windows:
            if number < 0:
                sleep(seconds)
            else:
                run(calls)
        for i, window in enumerate(windows):
            if number < 0:
                idle[i].append(window.joules / window.seconds)
            elif number > 0:  # at 0 the clocks rise
                runs[i].append(Repeat(window.joules, window.seconds, calls))
    return MeasuredEnergy(
        tuple(
            Measurement(
                meter.label, meter.method, meter.scope, interval(rest), tuple(ran), tokens, meter.quantum_j
            )
            for meter, rest, ran in zip(found.meters, idle, runs, strict=True)
        ),
        found.missing,
        str(where),
    )


def _calls(run: Callable[[int], None], seconds: float, clock: Clock) -> int:
    """How many calls fill a window: doubled until they take an eighth of it, twice at least."""
    run(1)  # what is loaded or compiled on first use
    calls = 1
    while True:
        started = clock()
        run(calls)
        took = clock() - started
        if took >= seconds / 8:
            return max(1, math.ceil(calls * seconds / took - 1e-9))
        calls *= 2


def measure_network(
    network: nn.Module, x: Tensor, device: str | torch.device | None = None, **settings: Any
) -> MeasuredEnergy:
    """`measure` of network(x) as it infers: eval mode, no gradients, moved to `device` and back.

    A token is one of the L B of a Network's x [L, B, *D], and one of the first axis of another module's.

    Args:
        network: a Network or another module.   x: its input.
        device: None takes the GPU where there is one, else the CPU.
        settings: repeats, seconds, meters, progress, ... of `measure`.
    """
    if not isinstance(network, nn.Module) or not isinstance(x, Tensor) or not x.ndim:
        raise InputError("measure_network() runs a torch.nn.Module on a tensor [L, B, *D]")
    if isinstance(network, Network):
        network.check_input(x)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = usable_device(device)
    tokens = x.shape[0] * x.shape[1] if isinstance(network, Network) else x.shape[0]
    back = next((tensor.device for tensor in network.state_dict().values()), x.device)
    try:
        network.to(where)
        there = x.to(where)
        with evaluating(network), torch.no_grad():
            return measure(lambda: network(there), tokens, where, **settings)
    finally:
        network.to(back)


JOULES = (("kJ", 1e3), ("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6), ("nJ", 1e-9), ("pJ", 1e-12))


def joules_text(joules: float) -> str:
    """Joules with the prefix that fits, as "1.23 mJ"."""
    for unit, worth in JOULES:
        if abs(joules) >= worth:
            return f"{joules / worth:.3g} {unit}"
    return f"{joules / 1e-12:.3g} pJ"
