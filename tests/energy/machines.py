"""Machines that tests make up: a clock that is moved by hand, a sysfs tree of RAPL, a driver of NVIDIA's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace


class Machine:
    """Time and energy: `pass_s` seconds at the power of the moment are booked on every counter.

    A call of `work` takes `call_s` seconds at `busy_w`; otherwise the machine draws `idle_w`.
    """

    def __init__(self, idle_w=10.0, busy_w=50.0, call_s=0.25):
        self.now = 1000.0
        self.idle_w, self.busy_w, self.call_s = idle_w, busy_w, call_s
        self.power_w = idle_w
        self.listeners = []  # each is told the joules of a time that passes
        self.calls = 0
        self.log = []

    def clock(self):
        return self.now

    def pass_s(self, seconds, power_w):
        self.power_w = power_w
        self.now += seconds
        for listener in self.listeners:
            listener(seconds * power_w)

    def sleep(self, seconds):
        self.log.append("sleep")
        self.pass_s(seconds, self.idle_w)

    def work(self):
        self.calls += 1
        self.log.append("work")
        self.pass_s(self.call_s, self.busy_w)


def zone(root, folder, name, energy_uj=0, span=262143328850):
    """A zone of RAPL as Linux shows it: all of them side by side, sub-zones too."""
    path = Path(root) / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{span}\n")
    return path


def count_up(path, microjoules):
    """What the kernel does: add, and wrap after max_energy_range_uj."""
    span = int((path / "max_energy_range_uj").read_text())
    now = int((path / "energy_uj").read_text()) + microjoules
    (path / "energy_uj").write_text(f"{now % span}\n")


def two_packages(root):
    """Two packages with cores, an integrated GPU and DRAM, the platform, and the same package by MMIO."""
    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "uncore",
        "intel-rapl:1:1": "dram",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    (Path(root) / "intel-rapl").mkdir(parents=True)  # the control type itself: no zone
    return {folder: zone(root, folder, name, 10**6) for folder, name in names.items()}


class Driver:
    """NVML as pynvml shows it: calls and errors by their own names.

    Attributes:
        energy_mj, power_mw: what the GPU tells; None: NVMLError_NotSupported.
    """

    class NVMLError(Exception):
        pass

    def __init__(self, name="NVIDIA H100 80GB HBM3", energy_mj=5000, power_mw=70000, gpus=1, starts=True):
        self.name, self.energy_mj, self.power_mw = name, energy_mj, power_mw
        self.gpus, self.starts = gpus, starts
        self.asked = []

    def nvmlInit(self):
        if not self.starts:
            raise self.NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self):
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index):
        self.asked.append(index)
        return SimpleNamespace(gpu=index)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        if uuid != "GPU-1234":
            raise self.NVMLError("Not Found")
        return SimpleNamespace(gpu=uuid)

    def nvmlDeviceGetName(self, handle):
        return self.name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self._told(self.energy_mj)

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._told(self.power_mw)

    def _told(self, value):
        if value is None:
            raise self.NVMLError("Not Supported")
        return value
