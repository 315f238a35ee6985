"""Unit: meters on machines that are made up, followed by hand: RAPL's files, NVML's calls, a clock."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from marsnn.energy import find_meters, meter
from marsnn.energy.meter import Counter, CounterMeter, PowerMeter, metered, nvml_meter, rapl_meter
from marsnn.errors import InputError, MeterError, MissingDependencyError
from tests.energy.machines import Driver, Machine, count_up, two_packages, zone

# ---- RAPL -------------------------------------------------------------------------------------------


def test_packages_and_dram_are_summed_and_nothing_twice(tmp_path):
    machine, zones = Machine(), two_packages(tmp_path)
    rapl = rapl_meter(tmp_path, machine.clock)
    rapl.start()
    for bit, path in enumerate(zones.values()):
        count_up(path, 10**bit * 1_000_000)  # each zone's joules are a decimal of their own
    machine.now += 4
    # package-0 1, its dram 100, package-1 1000, its dram 100,000; not core, uncore, psys, MMIO
    assert rapl.stop() == (pytest.approx(101_101.0), 4.0)
    assert rapl.label == "RAPL, 2 processor packages and DRAM"
    assert rapl.scope == (
        "the whole machine's intel-rapl:0 package-0, intel-rapl:0:1 dram, intel-rapl:1 package-1, "
        "intel-rapl:1:1 dram"
    )
    assert rapl.quantum_j == 1e-6


def test_a_package_without_dram(tmp_path):
    # as AMD's processors show it
    path = zone(tmp_path, "intel-rapl:0", "package-0", 7)
    core = zone(tmp_path, "intel-rapl:0:0", "core")
    rapl = rapl_meter(tmp_path)
    assert rapl.label == "RAPL, 1 processor package"
    rapl.start()
    count_up(path, 30)
    count_up(core, 20)
    assert rapl.stop().joules == pytest.approx(30e-6)


def test_a_counter_that_wraps_in_the_middle(tmp_path):
    # 990 of 1000 microjoules, 25 more: it stands at 15. The other does not wrap.
    first = zone(tmp_path, "intel-rapl:0", "package-0", 990, span=1000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 100, span=5000)
    rapl = rapl_meter(tmp_path)
    rapl.start()
    count_up(first, 25)
    count_up(second, 300)
    assert (first / "energy_uj").read_text() == "15\n"
    assert rapl.stop().joules == pytest.approx(325e-6)


def test_no_wrap_is_missed_between_polls(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0, span=1000)
    rapl = rapl_meter(tmp_path)
    rapl.start()
    for _ in range(5):
        count_up(path, 700)
        rapl.poll()
    assert rapl.stop().joules == pytest.approx(3500e-6)
    rapl.start()  # from zero again
    assert rapl.stop().joules == 0


def test_where_rapl_is_not(tmp_path):
    with pytest.raises(MeterError, match=r"/none is not there \(not Linux, a container, a virtual machine"):
        rapl_meter(tmp_path / "none")
    with pytest.raises(MeterError, match="no processor package"):
        rapl_meter(tmp_path)
    zone(tmp_path, "intel-rapl:0", "psys")
    with pytest.raises(MeterError, match="no processor package"):
        rapl_meter(tmp_path)


def test_a_file_that_only_root_may_read(tmp_path, monkeypatch):
    zones = two_packages(tmp_path)
    hidden = zones["intel-rapl:1"] / "energy_uj"
    whole = Path.read_text

    def read_text(path, **settings):  # the tests may run as root, who reads everything
        if path == hidden:
            raise PermissionError(13, "Permission denied")
        return whole(path, **settings)

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(MeterError) as caught:
        rapl_meter(tmp_path)
    assert str(caught.value) == (
        f"no permission to read {hidden}; run as root, or once  sudo chmod a+r {tmp_path}/*/energy_uj"
    )


@pytest.mark.parametrize("text", ["", "-5", "many", "1.5"])
def test_a_file_that_holds_no_number(tmp_path, text):
    path = zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj"
    path.write_text(text)
    with pytest.raises(MeterError, match="expected a whole number"):
        rapl_meter(tmp_path)


def test_a_file_that_goes_while_it_is_measured(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj"
    rapl = rapl_meter(tmp_path)
    rapl.start()
    path.unlink()
    with pytest.raises(MeterError, match=r"can't read .*energy_uj: no such file"):
        rapl.stop()


# ---- NVML -------------------------------------------------------------------------------------------


def test_a_gpu_with_an_energy_counter():
    machine, driver = Machine(), Driver(energy_mj=5000)
    gpu = nvml_meter(nvml=driver, clock=machine.clock)
    assert (gpu.label, gpu.method) == ("NVML, NVIDIA H100 80GB HBM3", "energy counter")
    gpu.start()
    driver.energy_mj += 1234
    machine.now += 2
    assert gpu.stop() == (pytest.approx(1.234), 2.0)
    assert gpu.quantum_j == 1e-3


def test_a_gpu_without_one_is_sampled():
    machine, driver = Machine(), Driver(energy_mj=None, power_mw=100_000)
    gpu = nvml_meter(nvml=driver, clock=machine.clock)
    assert gpu.method == "power samples every 20 ms, integrated"
    gpu.start()
    for seconds, power_w in ((1.0, 300), (0.5, 300), (2.0, 100)):
        machine.now += seconds
        driver.power_mw = power_w * 1000
        gpu.poll()
    machine.now += 1
    # by hand: 1 (100 + 300) / 2 + 0.5 * 300 + 2 (300 + 100) / 2 + 1 * 100
    assert gpu.stop() == (pytest.approx(200 + 150 + 400 + 100), 4.5)


def test_a_thread_samples_the_power_while_the_work_goes_on():
    # 10 W, and 110 W from the middle on: two samples alone would make 60 W of any such course
    begun = time.perf_counter()
    power = PowerMeter("NVML, a GPU", "the GPU", lambda: 10.0 if time.perf_counter() - begun < 0.4 else 110.0)
    with metered([power]) as windows:
        time.sleep(1.2)
    (window,) = windows
    late = window.seconds - 0.4
    assert window.joules == pytest.approx(10 * 0.4 + 110 * late, rel=0.1)


def test_a_meter_that_fails_on_the_way_is_told():
    def read_w():  # once, and then as if nothing had been
        power.read_w = lambda: 10.0
        raise MeterError("NVML, a GPU: no reading (GPU is lost)")

    power = PowerMeter("NVML, a GPU", "the GPU", lambda: 10.0)

    def work():
        with metered([power]):
            power.read_w = read_w
            time.sleep(0.2)

    with pytest.raises(MeterError, match="GPU is lost"):
        work()


def test_a_counter_that_goes_back_is_told():
    counts = iter([10, 4])
    counter = CounterMeter("NVML, a GPU", "the GPU", {"gpu": Counter(lambda: next(counts), 1e-3, None)})
    counter.start()
    with pytest.raises(MeterError, match="went back by 6"):
        counter.stop()


def test_a_gpu_is_found_by_its_own_name_not_by_its_number():
    driver = Driver(gpus=4)
    nvml_meter("GPU-1234", driver)
    nvml_meter(None, driver)
    assert driver.asked == ["GPU-1234", 0]
    with pytest.raises(MeterError, match=r"no access to GPU GPU-5 \(Not Found\)"):
        nvml_meter("GPU-5", driver)


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        (Driver(starts=False), r"no NVIDIA driver answers \(NVML Shared Library Not Found\)"),
        (Driver(gpus=0), "the driver sees no NVIDIA GPU"),
        (Driver(energy_mj=None, power_mw=None), r"tells neither its energy nor its power \(Not Supported\)"),
    ],
)
def test_where_nvml_gives_nothing(driver, told):
    with pytest.raises(MeterError, match=told):
        nvml_meter(nvml=driver)


def test_a_missing_library_is_one_line_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "marsnn\[meter\]"'):
        nvml_meter()


def test_the_calls_are_those_of_nvidias_own_module():
    pynvml = pytest.importorskip("pynvml")
    assert issubclass(pynvml.NVMLError_NotSupported, pynvml.NVMLError)
    for name in (name for name in vars(Driver) if name.startswith("nvml")):
        assert callable(getattr(pynvml, name))


# ---- finding them -----------------------------------------------------------------------------------


def test_a_run_on_the_cpu_is_not_measured_by_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    monkeypatch.setattr(meter, "POWERCAP", tmp_path)
    two_packages(tmp_path)
    found = find_meters("cpu")
    assert [each.label for each in found.meters] == ["RAPL, 2 processor packages and DRAM"]
    assert found.missing == {
        "NVML": "it sees NVIDIA H100 80GB HBM3, but this runs on the CPU; run it on cuda"
    }


def test_a_run_on_a_gpu_is_measured_by_that_gpu_and_its_host(tmp_path, monkeypatch):
    driver = Driver(gpus=2)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(meter, "POWERCAP", tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(meter, "gpu_uuid", lambda device: "GPU-1234" if device.index == 1 else "GPU-0")
    zone(tmp_path, "intel-rapl:0", "package-0")
    found = find_meters("cuda:1")
    assert [each.label for each in found.meters] == [
        "NVML, NVIDIA H100 80GB HBM3",
        "RAPL, 1 processor package",
    ]
    assert (driver.asked, found.missing) == (["GPU-1234"], {})


def test_devices_that_are_not_there():
    for device in ("tpu", "meta", 3.5, "cuda:99"):
        with pytest.raises(InputError, match="device"):
            find_meters(device)
