"""Joules by meters of made-up machines: idle subtracted to the digit, spread, and how a report shows them."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import nn

from marsnn import ATMN, Network
from marsnn.checkpoint import save_network
from marsnn.energy import (
    EnergyReport,
    LayerCounts,
    MeasuredEnergy,
    Measurement,
    OperationCounts,
    measure,
    measure_network,
    meter,
)
from marsnn.energy.measured import Repeat, joules_text
from marsnn.energy.meter import rapl_meter
from marsnn.errors import InputError
from marsnn.intervals import Interval, interval
from tests.energy.machines import Driver, Machine, count_up, zone

H100 = "NVML, NVIDIA H100 80GB HBM3"


def gpu(machine, driver=None):
    """NVML on a made-up machine: its counter gets the machine's joules."""
    driver = driver or Driver(energy_mj=0)

    def book(joules):
        driver.energy_mj += round(joules * 1000)

    machine.listeners.append(book)
    return meter.nvml_meter(nvml=driver, clock=machine.clock)


def measured_on(machine, meters, **settings):
    settings = {"tokens": 10, "repeats": 3, "seconds": 2.0, **settings}
    return measure(machine.work, meters=meters, clock=machine.clock, sleep=machine.sleep, **settings)


# ---- measuring --------------------------------------------------------------------------------------


def test_idle_is_subtracted_to_the_digit():
    machine = Machine(idle_w=10, busy_w=50, call_s=0.25)
    (told,) = measured_on(machine, [gpu(machine)]).measurements
    # 8 calls of 0.25 s fill 2 s: 100 J gross, 20 J idle, 80 J net, so 10 J a call and 1 J a token
    assert told.idle_w == Interval(10.0, 0.0, 3)
    assert told.repeats == (Repeat(100.0, 2.0, 8),) * 3
    assert told.net_j == (10.0, 10.0, 10.0)
    assert told.per_call_j == Interval(10.0, 0.0, 3)
    assert told.per_token_j == Interval(1.0, 0.0, 3)
    assert told.gross_w == 50.0
    assert not told.below_resolution
    assert told.label == f"measured ({H100}; idle subtracted)"
    assert "1 J a token" in told.text()
    assert "10 W +- 0 idle" in told.text()


def test_idle_comes_before_the_repeats_and_the_first_window_is_not_kept():
    machine = Machine()
    measured_on(machine, [gpu(machine)])
    # calls until they take 1/8 of 2 s: one, and one of 0.25 s; a rest and 3 idle windows; 1 + 3 of 8 calls
    assert machine.log == ["work"] * 2 + ["sleep"] * 4 + ["work"] * 32


def test_a_long_call_runs_once_in_a_window():
    machine = Machine(call_s=7.0)
    (told,) = measured_on(machine, [gpu(machine)], tokens=1).measurements
    assert told.repeats == (Repeat(350.0, 7.0, 1),) * 3
    assert told.per_token_j.mean == 280.0  # 7 s of 50 W less 10 W


def test_rapl_that_wraps_while_it_is_measured(tmp_path):
    machine = Machine(idle_w=10, busy_w=50)
    # The package wraps every 110 J; DRAM takes a fifth beside it, and its cores are within it.
    package = zone(tmp_path, "intel-rapl:0", "package-0", 29_000_000, span=110_000_000)
    dram = zone(tmp_path, "intel-rapl:0:1", "dram")
    core = zone(tmp_path, "intel-rapl:0:0", "core")
    for path, share in ((package, 1.0), (dram, 0.2), (core, 0.9)):
        machine.listeners.append(
            lambda joules, path=path, share=share: count_up(path, round(share * joules * 1e6))
        )
    (told,) = measured_on(machine, [rapl_meter(tmp_path, machine.clock)]).measurements
    assert told.idle_w.mean == pytest.approx(12.0)
    assert [run.joules for run in told.repeats] == pytest.approx([120.0] * 3)
    assert told.per_token_j.mean == pytest.approx(1.2)


def test_a_gpu_is_waited_for_before_its_meter_is_read(monkeypatch):
    machine = Machine()
    pending = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def ask():
        assert len(pending) < 1000, "nobody waits"
        pending.append(1)

    def wait(device):  # only now is the work done that was asked for
        while pending:
            pending.pop()
            machine.work()

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    told = measure(
        ask, 10, "cuda", 3, 2.0, [gpu(machine)], machine.clock, machine.sleep
    )  # fmt: skip
    assert told.measurements[0].repeats == (Repeat(100.0, 2.0, 8),) * 3
    assert told.device == "cuda"


def test_both_meters_see_the_same_windows():
    machine = Machine()
    first, second = gpu(machine, Driver("A", 0)), gpu(machine, Driver("B", 0))
    told = measured_on(machine, [first, second])
    assert [each.meter for each in told.measurements] == ["NVML, A", "NVML, B"]
    assert [each.per_token_j.mean for each in told.measurements] == [1.0, 1.0]
    assert machine.calls == 34


def test_sampled_power_makes_the_same_joules():
    machine = Machine()
    driver = Driver(energy_mj=None)
    sampled = meter.nvml_meter(nvml=driver, clock=machine.clock)
    sampled.read_w = lambda: machine.power_w
    (told,) = measured_on(machine, [sampled]).measurements
    # two samples a window at least; the first of a window still sees what was before it
    assert told.repeats == (Repeat(100.0, 2.0, 8),) * 3
    assert told.method.startswith("power samples")


def spread_of(*joules, idle=(10.0, 0.0), calls=4, tokens=5):
    runs = tuple(Repeat(each, 2.0, calls) for each in joules)
    return Measurement(H100, "energy counter", "the GPU", Interval(*idle, len(runs)), runs, tokens, 1e-3)


def test_repeats_and_their_spread():
    told = spread_of(100.0, 104.0, 102.0)
    # net: 80, 84, 82 J in 4 calls of 5 tokens: 4, 4.2, 4.1 J a token; t of 2 degrees of freedom is 4.303
    assert told.net_j == (20.0, 21.0, 20.5)
    assert told.per_token_j.mean == pytest.approx(4.1)
    assert told.per_token_j.half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert told.per_token_j.half == pytest.approx(interval([4.0, 4.2, 4.1]).half)
    assert told.to_dict()["sd_j_per_token"] == pytest.approx(0.1)


def test_an_unsteady_idle_widens_the_interval():
    calm, unsteady = spread_of(100.0, 104.0, 102.0), spread_of(100.0, 104.0, 102.0, idle=(10.0, 3.0))
    # 3 W over the half second of a call, as an error apart from the repeats'
    assert unsteady.per_call_j.mean == calm.per_call_j.mean
    assert unsteady.per_call_j.half == pytest.approx(math.hypot(calm.per_call_j.half, 3.0 * 0.5))


def test_negative_net_energy_is_below_the_resolution_and_still_told():
    told = spread_of(19.0, 18.0, 17.0)  # idle alone would have drawn 20 J
    assert told.per_token_j.mean == pytest.approx(-0.1)
    assert told.below_resolution
    assert "below the meter's resolution: -100 mJ a token net" in told.text()
    assert told.to_dict()["net_j_per_token"]["mean"] == pytest.approx(-0.1)
    assert told.to_dict()["below_resolution"] is True
    steady = spread_of(10.0, 10.0, 10.0)  # far below zero, and sure of it
    assert steady.per_token_j == Interval(-0.5, 0.0, 3)
    assert steady.below_resolution
    assert "-500 mJ a token net, for it drew less than at rest before" in steady.text()


def test_energy_within_the_spread_is_below_the_resolution():
    assert spread_of(20.0, 24.0, 22.0).below_resolution  # 2 +- 4.97 J
    assert not spread_of(26.0, 30.0, 28.0).below_resolution  # 8 +- 4.97 J
    assert spread_of(28.0, 28.0, 28.0, idle=(10.0, 4.0)).below_resolution  # 8 J, idle's +- 8 J


def test_energy_below_the_meters_step_is_below_the_resolution():
    for joules, below in ((20.0005, True), (20.002, False)):  # of 1 mJ a window
        told = spread_of(joules, joules, joules)
        assert told.resolution_j == pytest.approx(1e-3 / 20)
        assert told.below_resolution is below


def test_without_a_meter_nothing_runs_and_the_reason_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(meter, "POWERCAP", tmp_path / "powercap")
    machine = Machine()
    told = measure(machine.work)
    assert machine.calls == 0
    assert told.measurements == ()
    assert told.reason == (
        'no meter on this machine: NVML: nvidia-ml-py is not installed: run  pip install "marsnn[meter]"; '
        f"RAPL: {tmp_path}/powercap is not there "
        "(not Linux, a container, a virtual machine, or no intel_rapl)"
    )
    assert told.lines() == [told.reason]
    assert told.to_dict() == {
        "measured": False,
        "reason": told.reason,
        "device": "cpu",
        "missing": told.missing,
        "meters": [],
    }


def test_a_meter_that_is_missing_beside_one_that_measures():
    told = MeasuredEnergy((spread_of(100.0, 104.0),), {"RAPL": "not there"}, "cuda")
    assert told.reason is None
    assert told.lines()[1] == "not measured by RAPL: not there"


def test_settings_that_are_refused():
    for settings, message in (
        ({"repeats": 1}, "spread"),
        ({"repeats": 0}, "repeats"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": math.inf}, "seconds"),
        ({"tokens": 0}, "tokens"),
        ({"device": "tpu"}, "device"),
    ):
        with pytest.raises(InputError, match=message):
            measure(lambda: None, meters=[], **settings)
    with pytest.raises(InputError, match="lambda"):
        measure(nn.Linear(1, 1).weight)


def test_what_the_call_raises_comes_through():
    machine = Machine()
    meters = [gpu(machine)]
    machine.work = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        measured_on(machine, meters)


def tiny():
    return Network({"fc1": nn.Linear(4, 6), "atmn": ATMN(6), "fc2": nn.Linear(6, 2)})


def test_a_network_infers_while_it_is_measured():
    network, machine, seen = tiny(), Machine(), []
    network.train()

    def before(*_):
        machine.work()
        seen.append((network.training, torch.is_grad_enabled()))

    network["fc1"].register_forward_pre_hook(before)
    told = measure_network(
        network, torch.randn(3, 2, 4), "cpu",
        meters=[gpu(machine)], repeats=2, clock=machine.clock, sleep=machine.sleep,
    )  # fmt: skip
    assert set(seen) == {(False, False)}
    assert network.training
    assert told.measurements[0].tokens == 6
    assert told.measurements[0].per_token_j.mean == pytest.approx(10 / 6)
    assert told.device == "cpu"


def test_joules_for_people():
    told = [joules_text(each) for each in (12_345.0, 1.5, -2e-3, 3.456e-6, 2e-9, 4e-13, 0.0)]
    assert told == ["12.3 kJ", "1.5 J", "-2 mJ", "3.46 µJ", "2 nJ", "0.4 pJ", "0 pJ"]


# ---- beside estimates -------------------------------------------------------------------------------


def counts():
    fc = LayerCounts(mac=40, ac=200, baseline_mac=400)
    return OperationCounts({"fc": fc, "<out>": LayerCounts(ac=20, baseline_mac=20)}, tokens=20, steps=4)


def report(*measurements, missing=()):
    return EnergyReport(counts(), name="net", measured=MeasuredEnergy(measurements, dict(missing), "cuda:0"))


def test_the_text_shows_both_and_says_which_is_which():
    text = report(spread_of(100.0, 104.0, 102.0)).text()
    lines = text.splitlines()
    assert (
        lines[0] == "net: energy per token, ESTIMATED from counted operations; MEASURED only where it says so"
    )
    start = lines.index("energy per token of the whole network, pJ: estimated | measured")
    block = lines[start + 1 : lines.index("", start)]
    left, right = zip(*(line.split(" |") for line in block), strict=True)
    assert left[0].split() == ["estimated"] * 3
    assert left[1].split() == ["(45nm-fp32)", "(45nm-int8)", "(loihi1)"]
    assert " ".join("".join(right[:-2]).split()) == f"measured ({H100}; idle subtracted)"
    # 2 MAC and 11 AC a token: 19.1 pJ and 1.7 pJ, 13 synaptic operations; 4.1 J a token measured
    assert (left[-2].split(), right[-2].strip()) == (["total", "19.10", "1.70", "306.80"], "4.1e+12")
    assert (left[-1].split(), right[-1].strip()) == (["+-", "95", "%"], "2.48e+11")
    assert sum(f"measured ({H100}; idle subtracted): 4.1 J a token +- 248 mJ" in line for line in lines) == 1
    assert "never measured" not in text
    assert "nothing was measured" not in text
    assert max(len(line) for line in lines if not line.startswith("measured (")) <= 100


def test_estimates_are_the_same_with_a_measurement_beside_them():
    with_one, without = report(spread_of(100.0, 104.0)), EnergyReport(counts(), name="net")
    assert with_one.totals == without.totals
    assert with_one.to_dict()["total"] == without.to_dict()["total"]


def test_what_is_below_the_resolution_is_no_number_of_a_column():
    text = report(spread_of(19.0, 18.0, 17.0)).text()
    line = next(line for line in text.splitlines() if line.startswith("total") and "|" in line)
    assert line.split("|")[1].strip() == "below resolution"
    bound = next(line for line in text.splitlines() if line.startswith("+- 95 %"))
    assert bound.split("|")[1].strip() == "< 1.24e+11"  # 2.48 J a call is 0.124 J a token


def test_many_tables_and_many_meters_stay_within_the_width(tmp_path):
    meters = []
    for name in ("NVML, NVIDIA A", "RAPL, 2 processor packages and DRAM", "a third meter of somebody's own"):
        told = spread_of(100.0, 104.0)
        meters.append(Measurement(name, told.method, told.scope, told.idle_w, told.repeats, 5, 1e-3))
    text = report(*meters).text()
    assert max(len(line) for line in text.splitlines() if not line.startswith("measured (")) <= 100
    assert sum(line.startswith("total") and "|" in line for line in text.splitlines()) == 2


def test_the_json_keeps_them_apart():
    told = json.loads(report(spread_of(100.0, 104.0, 102.0), missing=[("RAPL", "not there")]).to_json())
    assert (told["estimated"], told["measured"]) == (True, False)  # of the energies by table
    measurement = told["measurement"]
    (nvml,) = measurement["meters"]
    assert (measurement["measured"], nvml["measured"], nvml["estimated"]) == (True, True, False)
    assert nvml["label"] == f"measured ({H100}; idle subtracted)"
    assert nvml["net_j_per_token"]["mean"] == pytest.approx(4.1)
    assert nvml["idle_w"]["mean"] == 10.0
    assert [run["net_j_per_call"] for run in nvml["repeats"]] == [20.0, 21.0, 20.5]
    assert measurement["missing"] == {"RAPL": "not there"}
    assert all(set(row["energy"]) == set(told["tables"]) for row in (told["total"], *told["layers"]))
    assert "measurement" not in EnergyReport(counts()).to_dict()


def test_the_page_keeps_them_apart(tmp_path):
    page = report(spread_of(100.0, 104.0, 102.0)).html()
    assert page.count("<th class=estimated>estimated (") == 3 * 3
    assert page.count(f"<th class=measured>measured ({H100}; idle subtracted)<br>J</th>") == 1
    assert "<td class=measured>4.1 &plusmn; 0.25</td>" in page
    assert page.count("<td class=measured></td>") == 2  # no layer is measured
    assert "&lt;out&gt;" in page
    assert "<out>" not in page
    saved = report(spread_of(100.0, 104.0, 102.0)).save(tmp_path / "energy.html")
    assert saved.read_text() == page
    alone = EnergyReport(counts()).html()
    assert "class=measured>" not in alone
    assert "never measured" in alone
    below = report(spread_of(19.0, 18.0, 17.0)).html()
    assert "<td class=measured>below the meter's resolution of 0.124</td>" in below


def test_without_a_meter_the_report_says_why_and_stays_an_estimate():
    told = report(missing=[("NVML", "no GPU"), ("RAPL", "<hidden>")])
    reason = "no meter on this machine: NVML: no GPU; RAPL: <hidden>"
    assert reason in told.text().splitlines()
    assert "ESTIMATED from counted operations, never measured" in told.text()
    assert "measured (" not in told.text()
    assert told.to_dict()["measurement"]["reason"] == reason
    assert "class=measured>" not in told.html()
    assert "RAPL: &lt;hidden&gt;" in told.html()


def test_what_is_no_measurement_is_refused():
    with pytest.raises(InputError, match="measured must be MeasuredEnergy, got float"):
        EnergyReport(counts(), measured=3.0)


# ---- the verb ---------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path):
    path = save_network(Network([nn.Linear(64, 6), ATMN(6), nn.Linear(6, 2)]), tmp_path / "net.safetensors")
    return "energy", path, "-i", "digits", "--samples", 5, "--device", "cpu", "--measure"


def test_the_verb_without_a_meter(call, arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Driver(starts=False))
    monkeypatch.setattr(meter, "POWERCAP", tmp_path / "none")
    code, out, _ = call(*arguments)
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("no meter on this machine: "))
    assert "NVML: no NVIDIA driver answers" in line
    assert f"RAPL: {tmp_path}/none is not there" in line
    code, out, _ = call(*arguments, "--json")
    assert code == 0
    assert json.loads(out)["measurement"]["reason"] == line


def test_the_verb_with_one(call, arguments, tmp_path, monkeypatch):
    # A processor that takes 10 J for each call of a network, and nothing at rest.
    monkeypatch.setattr(meter, "POWERCAP", tmp_path / "powercap")
    path = zone(tmp_path / "powercap", "intel-rapl:0", "package-0")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    forward = Network.forward

    def works(network, *given, **settings):
        count_up(path, 10_000_000)
        return forward(network, *given, **settings)

    monkeypatch.setattr(Network, "forward", works)
    monkeypatch.setattr("marsnn.energy.measured.REST_S", 0.0)
    options = ("--repeats", 2, "--seconds", 0.05, "--save", tmp_path / "energy.html")
    code, out, err = call(*arguments, *options, "--json")
    assert code == 0, err
    measurement = json.loads(out)["measurement"]
    (rapl,) = measurement["meters"]
    assert rapl["label"] == "measured (RAPL, 1 processor package; idle subtracted)"
    assert rapl["idle_w"]["mean"] == 0
    assert rapl["net_j_per_call"]["mean"] == pytest.approx(10.0)
    assert rapl["net_j_per_token"]["mean"] == pytest.approx(2.0)
    assert "measured (RAPL, 1 processor package; idle subtracted)" in (tmp_path / "energy.html").read_text()
    code, out, _ = call(*arguments, *options)
    assert code == 0
    assert "measured (RAPL, 1 processor package; idle subtracted): 2 J a token" in out
    assert "not measured by NVML: nvidia-ml-py is not installed" in out


def test_the_verb_refuses_what_can_not_be(call, arguments):
    for more, message in (
        (("--seconds", 0), "seconds must be finite and > 0"),
        (("--repeats", 1), "repeats"),
        (("--device", "tpu"), "tpu"),
    ):
        code, _, err = call(*arguments, *more)
        assert code == 2
        assert err.count("\n") == 1
        assert message in err
    code, _, err = call("energy", "--shape", "llama-7b", "--measure")
    assert (code, err.count("\n")) == (2, 1)
    assert "--measure and --save need a NETWORK" in err
    if not torch.cuda.is_available():
        code, _, err = call(*arguments, "--device", "cuda")
        assert code == 2
        assert "torch finds no device 'cuda' here; take --device cpu" in err
