"""Energy meters of this machine: NVML for NVIDIA GPUs, RAPL for processors.

    NVML    nvmlDeviceGetTotalEnergyConsumption, mJ since the driver was loaded (Volta and later); where the
            GPU has no such counter nvmlDeviceGetPowerUsage, mW, sampled by a thread and integrated
    RAPL    Linux powercap, /sys/class/powercap/intel-rapl:*/energy_uj, microjoules; AMD's processors have the
            same files under the same name

Sources: NVML API reference, "Device Queries"; Linux, Documentation/power/powercap/powercap.rst.

A package's energy holds its cores and its integrated GPU (sub-zones "core" and "uncore") but not its DRAM.
So packages and "dram" zones are summed, and nothing else: "core" and "uncore" would count twice, and so would
"psys", the whole platform.

What a meter measures between two readings is all of its device, other programs included. `measured` subtracts
what the device draws at rest.
"""

from __future__ import annotations

import importlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from marsnn.errors import InputError, MarsnnError, MeterError, MissingDependencyError
from marsnn.files import PathLike

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows RAPL."""

SAMPLE_S = 0.02
"""Between two samples of a GPU's power, where it has no energy counter."""

LOOK_S = 5.0
"""Between two looks at a counter: a RAPL counter wraps after a minute at the earliest, so none is missed."""

Clock = Callable[[], float]
"""Seconds from any start, never going back."""


class Window(NamedTuple):
    """What one meter saw between `start` and `stop`."""

    joules: float
    seconds: float


class Meter(ABC):
    """One device's energy: `start`, then `poll` at least every `period_s` seconds, then `stop`.

    Attributes:
        label: the interface and the device, as "NVML, NVIDIA H100 80GB HBM3".
        method: how its readings become joules.
        scope: what its joules hold.
        quantum_j: the smallest difference that it can tell, in J.
        period_s: the longest time between two polls, in s.
    """

    def __init__(self, label: str, method: str, scope: str, quantum_j: float, period_s: float) -> None:
        self.label = label
        self.method = method
        self.scope = scope
        self.quantum_j = quantum_j
        self.period_s = period_s

    @abstractmethod
    def start(self) -> None:
        """Begin at zero joules."""

    @abstractmethod
    def poll(self) -> None:
        """Look, so that nothing between `start` and `stop` is lost."""

    @abstractmethod
    def stop(self) -> Window:
        """Joules and seconds since `start`."""


class Counter(NamedTuple):
    """One register that only counts up."""

    read: Callable[[], int]
    unit_j: float  # J of one count
    span: int | None  # what it wraps after, in counts; None: it never does


class CounterMeter(Meter):
    """The sum of energy counters.

        joules = sum over counters of  unit (now - before + span where now < before)

    Args:
        counters: name -> Counter; at least one.
        clock: seconds, read right after the counters.
    """

    def __init__(
        self, label: str, scope: str, counters: Mapping[str, Counter], clock: Clock = time.perf_counter
    ) -> None:
        quantum_j = max(counter.unit_j for counter in counters.values())
        super().__init__(label, "energy counter", scope, quantum_j, LOOK_S)
        self.counters = dict(counters)
        self.clock = clock
        self._last: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._since = 0.0

    def start(self) -> None:
        self._counts = dict.fromkeys(self.counters, 0)
        self._last = {name: counter.read() for name, counter in self.counters.items()}
        self._since = self.clock()

    def poll(self) -> None:
        for name, counter in self.counters.items():
            now = counter.read()
            step = now - self._last[name]
            if step < 0:
                if counter.span is None:
                    raise MeterError(f"{self.label}: its counter went back by {-step}; measure again")
                step += counter.span
            self._counts[name] += step
            self._last[name] = now

    def stop(self) -> Window:
        self.poll()
        seconds = self.clock() - self._since
        joules = sum(self._counts[name] * counter.unit_j for name, counter in self.counters.items())
        return Window(joules, seconds)


class PowerMeter(Meter):
    """Power samples, integrated by the trapezoidal rule.

        joules = sum over samples of  (p + p_before) / 2 (t - t_before)

    Args:
        read_w: the power now, in W.
        clock: seconds, read right after the power.
    """

    def __init__(
        self, label: str, scope: str, read_w: Callable[[], float], clock: Clock = time.perf_counter
    ) -> None:
        method = f"power samples every {SAMPLE_S * 1e3:g} ms, integrated"
        super().__init__(label, method, scope, 1e-3, SAMPLE_S)
        self.read_w = read_w
        self.clock = clock
        self._power_w = self._at = self._since = self._joules = 0.0

    def start(self) -> None:
        self._joules = 0.0
        self._power_w = self.read_w()
        self._at = self._since = self.clock()

    def poll(self) -> None:
        power_w = self.read_w()
        now = self.clock()
        self._joules += (power_w + self._power_w) / 2 * (now - self._at)
        self._power_w, self._at = power_w, now

    def stop(self) -> Window:
        self.poll()
        return Window(self._joules, self._at - self._since)


@contextmanager
def metered(meters: Sequence[Meter]) -> Iterator[list[Window]]:
    """Measure the block by all meters at once; the list holds a Window for each of them afterwards.

    A thread polls them meanwhile, as often as the most impatient one wants.

    Raises:
        MeterError: a meter failed; the block has run to its end.
    """
    windows: list[Window] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def poll() -> None:
        try:
            while not over.wait(min(meter.period_s for meter in meters)):
                for meter in meters:
                    meter.poll()
        except Exception as error:  # said below, by the thread that asked
            failed.append(error)

    for meter in meters:
        meter.start()
    poller = threading.Thread(target=poll, name="marsnn-meter", daemon=True)
    poller.start()
    try:
        yield windows
    finally:
        over.set()
        poller.join()
    if failed:
        raise failed[0]
    windows += [meter.stop() for meter in meters]


# ---- finding them -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The meters of a device, and why others can't be used."""

    meters: tuple[Meter, ...]
    missing: dict[str, str]  # "NVML" or "RAPL" -> why it gives nothing here, and what to do


def find_meters(device: str | torch.device = "cpu") -> Found:
    """The meters that see what runs on `device`, and the reason for each that does not.

    A run on the CPU is seen by RAPL. A run on a GPU is seen by NVML, and its host by RAPL.

    Raises:
        InputError: no such device.

    Example:
        >>> from marsnn.energy import find_meters
        >>> found = find_meters("cpu")
        >>> len(found.meters) + len(found.missing)
        2
    """
    where = usable_device(device)
    meters: list[Meter] = []
    missing: dict[str, str] = {}
    try:
        gpu = nvml_meter(gpu_uuid(where) if where.type == "cuda" else None)
        if where.type == "cuda":
            meters.append(gpu)
        else:
            seen = gpu.label.removeprefix("NVML, ")
            missing["NVML"] = f"it sees {seen}, but this runs on the CPU; run it on cuda"
    except MarsnnError as error:
        missing["NVML"] = str(error)
    try:
        meters.append(rapl_meter())
    except MarsnnError as error:
        missing["RAPL"] = str(error)
    return Found(tuple(meters), missing)


def usable_device(device: str | torch.device) -> torch.device:
    """That device, if this machine has it.

    Raises:
        InputError: it has not, or it is neither "cpu" nor "cuda".
    """
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError):
        where = torch.device("meta")
    if where.type not in ("cpu", "cuda"):
        raise InputError(f'device must be "cpu" or "cuda", got {device!r}')
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise InputError(f"torch finds no device {str(where)!r} here; take --device cpu")
    return where


def gpu_uuid(device: torch.device) -> str:
    """The name by which NVML knows a torch device: its numbers need not be torch's."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def nvml_meter(uuid: str | None = None, nvml: Any = None, clock: Clock = time.perf_counter) -> Meter:
    """One GPU by NVML.

    Args:
        uuid: "GPU-...", as `nvidia-smi -L` prints it; None: the first.
        nvml: the module `pynvml`, or one like it; None imports it.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.   MeterError: no driver, no GPU, or one that
        tells neither energy nor power.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError as error:
            raise MissingDependencyError("nvidia-ml-py", "meter") from error
    try:
        nvml.nvmlInit()  # counted by NVML, and never shut down: meters live as long as the process
    except nvml.NVMLError as error:
        raise MeterError(f"no NVIDIA driver answers ({error})") from error
    try:
        if nvml.nvmlDeviceGetCount() < 1:
            raise MeterError("the driver sees no NVIDIA GPU")
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else nvml.nvmlDeviceGetHandleByIndex(0)
        name = _text(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError as error:
        raise MeterError(f"the driver gives no access to GPU {uuid or 0} ({error})") from error

    def told(query: Callable[[Any], int]) -> int:
        try:
            return int(query(handle))
        except nvml.NVMLError as error:
            raise MeterError(f"NVML, {name}: no reading ({error})") from error

    label, scope = f"NVML, {name}", "the whole GPU, its memory included"
    try:
        told(nvml.nvmlDeviceGetTotalEnergyConsumption)
    except MeterError:
        try:
            told(nvml.nvmlDeviceGetPowerUsage)
        except MeterError as error:
            raise MeterError(f"{name} tells neither its energy nor its power ({error.__cause__})") from error
        return PowerMeter(label, scope, lambda: told(nvml.nvmlDeviceGetPowerUsage) * 1e-3, clock)
    counter = Counter(lambda: told(nvml.nvmlDeviceGetTotalEnergyConsumption), 1e-3, None)
    return CounterMeter(label, scope, {"gpu": counter}, clock)


def rapl_meter(root: PathLike | None = None, clock: Clock = time.perf_counter) -> Meter:
    """All processor packages of this machine and their DRAM by RAPL.

    Args:
        root: where the zones lie; None: /sys/class/powercap.

    Raises:
        MeterError: there are none, or one can't be read: a sum without it would be no sum.
    """
    root = POWERCAP if root is None else Path(root)
    if not root.is_dir():
        raise MeterError(f"{root} is not there (not Linux, a container, a virtual machine, or no intel_rapl)")
    counters: dict[str, Counter] = {}
    packages = drams = 0
    for zone in sorted(root.glob("intel-rapl:*")):
        name = _read(zone / "name")
        if zone.name.count(":") == 1 and name.startswith("package"):
            packages += 1
        elif name == "dram":
            drams += 1
        else:
            continue
        span = _whole(zone / "max_energy_range_uj")
        path = zone / "energy_uj"
        _whole(path)
        counters[f"{zone.name} {name}"] = Counter(partial(_whole, path), 1e-6, span)
    if not packages:
        raise MeterError(f"{root} has no processor package (a virtual machine, or no intel_rapl)")
    label = f"RAPL, {packages} processor package{'s' if packages > 1 else ''}{' and DRAM' if drams else ''}"
    return CounterMeter(label, "the whole machine's " + ", ".join(counters), counters, clock)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except PermissionError as error:
        files = path.parent.parent / "*" / path.name
        raise MeterError(
            f"no permission to read {path}; run as root, or once  sudo chmod a+r {files}"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MeterError(f"can't read {path}: {reason.lower()}") from error


def _whole(path: Path) -> int:
    text = _read(path)
    if not text.isdecimal():
        raise MeterError(f"{path} holds {text[:20]!r}, expected a whole number")
    return int(text)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
