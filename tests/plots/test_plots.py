"""Unit: what the plots draw, as numbers of marks, places, labels and errors; never pixels."""

from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from torch import nn

from marsnn import ATMN, LIF, EnergyReport, LeakyIntegrator, Network, plots, simulate
from marsnn.energy import count
from marsnn.errors import InputError
from marsnn.neurons import ALIF, Izhikevich, Recurrent
from marsnn.plots.style import NEGATIVE, POSITIVE
from marsnn.record import Recording
from tests.plots.test_placement import PLACED
from tests.plots.test_speed import RESULT as SPEED
from tests.test_tidy import ROWS


@pytest.fixture(autouse=True)
def no_figure_and_no_setting_stays():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def of_spikes(**spikes):
    return Recording(output=np.zeros((1, 1, 1)), spikes=spikes)


def ternary(L, T, B, *N, rate=0.3, seed=0):
    drawn = np.random.default_rng(seed).random((L, T, B, *N))
    return ((drawn < 2 * rate / 3).astype(np.int8) - (drawn > 1 - rate / 3)).astype(np.int8)


def marks(ax):
    """Colour -> [spikes, 2 ends, (x, y)]."""
    return {to_hex(c.get_color()[0]).upper(): np.array(c.get_segments()) for c in ax.collections}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ---- raster -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 1, 4), (6, 4, 2, 4), (100, 4, 1, 16), (3, 1, 1, 2, 3, 4)])
def test_raster_draws_one_mark_a_spike_in_the_colour_of_its_sign(shape):
    spikes = ternary(*shape)
    axes = plots.raster(of_spikes(a=spikes), sample=shape[2] - 1)
    last = spikes[:, :, -1]
    assert (last > 0).sum() > (last < 0).sum() > 0  # unequal, so that swapped signs would be seen
    drawn = marks(axes)
    assert len(drawn[POSITIVE]) == (last > 0).sum()
    assert len(drawn[NEGATIVE]) == (last < 0).sum()
    assert not axes.images
    assert legend(axes) == [f"+ {(last > 0).sum():,} spikes", f"− {(last < 0).sum():,} spikes"]  # noqa: RUF001


def test_raster_puts_marks_at_their_step_and_neuron():
    spikes = np.zeros((2, 4, 1, 5), dtype=np.int8)
    spikes[1, 2, 0, 3] = -1  # micro-step 1 * 4 + 2 = 6; neuron 3 of 5: its row is centred at 3.5 / 5
    axes = plots.raster(of_spikes(a=spikes))
    drawn = marks(axes)
    assert len(drawn[POSITIVE]) == 0
    assert drawn[NEGATIVE].mean(1).tolist() == [[6.0, pytest.approx(0.7)]]
    assert axes.get_xlim() == (-0.5, 7.5)
    assert axes.get_ylim() == (1.0, 0.0)  # neuron 0 on top


def test_raster_stacks_a_labelled_band_per_layer():
    recording = of_spikes(first=ternary(3, 4, 1, 30), second=ternary(3, 4, 1, 10, seed=1))
    axes = plots.raster(recording)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first (30)", "second (10)"]
    np.testing.assert_allclose(axes.get_yticks(), [0.375, 0.875])
    heights = np.concatenate(list(marks(axes).values()))[:, :, 1].mean(1)
    first, second = ((recording.spikes[name] != 0).sum() for name in ("first", "second"))
    assert ((heights < 0.75).sum(), (heights > 0.75).sum()) == (first, second)


def test_raster_draws_the_chosen_layers_in_the_chosen_order():
    recording = of_spikes(a=ternary(1, 4, 1, 3), b=ternary(1, 4, 1, 3, seed=1), c=ternary(1, 4, 1, 3, seed=2))
    axes = plots.raster(recording, layers=["c", "a"])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c (3)", "a (3)"]
    assert [label.get_text() for label in plots.raster(recording, layers="b").get_yticklabels()] == ["b (3)"]


def test_raster_keeps_a_small_layer_beside_a_large_one_visible():
    axes = plots.raster(of_spikes(large=ternary(5, 4, 1, 3990), small=ternary(5, 4, 1, 10)))
    large, small = axes.images
    top, bottom = sorted(small.get_extent()[2:])
    assert bottom - top > 0.07
    assert sorted(large.get_extent()[2:]) == [0.0, pytest.approx(top)]


@pytest.mark.parametrize("tokens", [1, 100])
def test_raster_of_4000_neurons_is_an_image_that_loses_no_spike(tokens):
    spikes = ternary(tokens, 4, 1, 4000, rate=0.02)
    axes = plots.raster(of_spikes(a=spikes))
    (image,) = axes.images
    picture = np.asarray(image.get_array())
    rows, columns = picture.shape[:2]
    assert columns == 4 * tokens
    assert rows < 600  # no more than the axes have pixels
    # each step keeps its cells apart in time; along the neurons a cell is marked where it holds a spike
    cell = np.searchsorted(np.arange(rows) * 4000 // rows, np.arange(4000), side="right") - 1
    flat = spikes[:, :, 0].reshape(4 * tokens, 4000)
    held = np.stack([np.bincount(cell, weights=step != 0, minlength=rows) > 0 for step in flat], axis=1)
    np.testing.assert_array_equal((picture < 1).any(-1), held)
    assert legend(axes)[0] == f"+ {(spikes > 0).sum():,} spikes"


def test_raster_image_shows_both_signs():
    spikes = np.zeros((1, 2, 1, 4000), dtype=np.int8)
    spikes[0, 0], spikes[0, 1] = 1, -1
    picture = np.asarray(plots.raster(of_spikes(a=spikes)).images[0].get_array())
    np.testing.assert_allclose(picture[:, 0], np.tile(to_rgb(POSITIVE), (len(picture), 1)))
    np.testing.assert_allclose(picture[:, 1], np.tile(to_rgb(NEGATIVE), (len(picture), 1)))


def test_raster_parts_few_tokens_but_not_many():
    few, many = (plots.raster(of_spikes(a=ternary(tokens, 4, 1, 4))) for tokens in (6, 100))
    assert [line.get_xdata()[0] for line in few.lines] == [3.5, 7.5, 11.5, 15.5, 19.5]
    assert not many.lines


def test_raster_of_silence_says_so():
    assert legend(plots.raster(of_spikes(a=np.zeros((1, 4, 1, 3), np.int8)))) == [
        "+ 0 spikes",
        "− 0 spikes",  # noqa: RUF001
    ]


def test_raster_files_stay_small(tmp_path):
    axes = plots.raster(of_spikes(a=ternary(100, 4, 1, 128)))
    axes.figure.savefig(tmp_path / "raster.svg")
    assert (tmp_path / "raster.svg").stat().st_size < 300_000


def test_raster_errors():
    recording = of_spikes(a=ternary(1, 4, 2, 3), b=ternary(1, 4, 2, 3))
    with pytest.raises(InputError, match=r"^no spikes of a layer 'c'; recorded are a, b$"):
        plots.raster(recording, layers=["a", "c"])
    with pytest.raises(InputError, match="layers is empty; recorded are a, b"):
        plots.raster(recording, layers=[])
    for sample in (2, -1, 0.5, True):
        with pytest.raises(InputError, match=f"sample must be a whole number from 0 to 1, got {sample}"):
            plots.raster(recording, sample=sample)
    with pytest.raises(InputError, match=r"^this Recording holds no spikes; .*$"):
        plots.raster(of_spikes())
    with pytest.raises(InputError, match=r"a: the recorded spikes \[0, 4, 1, 3\] are empty"):
        plots.raster(of_spikes(a=np.zeros((0, 4, 1, 3), np.int8)))
    assert not plt.get_fignums()  # a refusal leaves no figure behind


# ---- traces -----------------------------------------------------------------------------------------


def line_of(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def test_traces_draw_the_membrane_before_and_after_each_reset():
    # tau = 1/2, V = 1: h = 1.25, u = .25; h = .5; h = 1, u = 0; h = 0.   Then -0.75; -1.5, -.5; -1, 0; 0.
    network = Network([ATMN(1)])
    recording = simulate(network, torch.tensor([[[1.25]], [[-0.75]]]))
    axes = plots.traces(recording, network, "atmn1")
    x, y = line_of(axes, "membrane")
    np.testing.assert_allclose(x.reshape(-1, 4), np.arange(8)[:, None] + [-0.5, 0, 0, 0.5])
    np.testing.assert_allclose(y.reshape(-1, 4)[:, 1], [1.25, 0.5, 1, 0, -0.75, -1.5, -1, 0])
    np.testing.assert_allclose(y.reshape(-1, 4)[:, 2], [0.25, 0.5, 0, 0, -0.75, -0.5, 0, 0])
    up, down = line_of(axes, "+ 2 spikes"), line_of(axes, "− 2 spikes")  # noqa: RUF001
    np.testing.assert_allclose(up, [[0, 2], [1.25, 1]])
    np.testing.assert_allclose(down, [[5, 6], [-1.5, -1]])
    drops = marks(axes)
    assert (len(drops[POSITIVE]), len(drops[NEGATIVE])) == (2, 2)


def test_traces_draw_thresholds_of_the_very_neuron():
    threshold = torch.tensor([1.0, 2.0, 4.0])
    network = Network([ATMN(3, threshold=threshold, fire_at=0.5), LIF(3, threshold=threshold)])
    recording = simulate(network, torch.randn(2, 2, 3))
    atmn = plots.traces(recording, network, "atmn1", neuron=2, sample=1)
    assert line_of(atmn, "fires at 2")[1] == pytest.approx([2.0, 2.0])
    assert line_of(atmn, "at -2")[1] == pytest.approx([-2.0, -2.0])
    lif = plots.traces(recording, network["lif1"], "lif1", neuron=1)
    assert line_of(lif, "fires at 2")[1] == pytest.approx([2.0, 2.0])
    assert "at -2" not in legend(lif)


def test_traces_pick_the_sample_and_the_flat_neuron():
    atmn = ATMN(2, feature_dim=-3, threshold=torch.tensor([1.0, 3.0]))
    network = Network([atmn])
    recording = simulate(network, torch.randn(2, 3, 2, 4, 5))
    axes = plots.traces(recording, network, "atmn1", neuron=27, sample=2)  # 27 = 1 * 20 + 1 * 5 + 2
    after = line_of(axes, "membrane")[1].reshape(-1, 4)[:, 3]
    np.testing.assert_allclose(after, recording.membrane["atmn1"][:, :, 2, 1, 1, 2].ravel())
    assert "fires at 3" in legend(axes)


def test_traces_follow_a_threshold_that_moves():
    """ALIF's golden values: A = 1, 1.5, 1.25, 1.625, 1.3125 and spikes at steps 0, 2, 4."""
    alif = ALIF(1, steps=5, beta=0.5, rho=0.5, adaptation=0.5)
    recording = simulate(Network({"own": alif}), torch.zeros(1, 1, 1))
    currents = torch.tensor([1.0, 1.0, 1.25, 0.5, 1.5]).reshape(5, 1, 1)
    spikes, membrane, _ = alif.trace(currents)
    recording.spikes["own"], recording.membrane["own"] = spikes[None].numpy(), membrane[None].numpy()
    axes = plots.traces(recording, alif, "own")
    assert line_of(axes, "fires at")[1].tolist() == [1, 1.5, 1.25, 1.625, 1.3125, 1.3125]
    np.testing.assert_allclose(line_of(axes, "+ 3 spikes"), [[0, 2, 4], [1, 1.75, 1.9375]])
    for carry, begins in (("sequence", 1 + 0.5 * 1.3125), ("token", 1.0)):  # goes on, or from rest
        alif.carry = carry
        for kept in (recording.spikes, recording.membrane):
            kept["own"] = np.concatenate([kept["own"][:1]] * 2)
        level = line_of(plots.traces(recording, alif, "own"), "fires at")[1]
        assert level[5] == begins


def test_traces_of_a_reset_to_a_value():
    """Izhikevich fires at 30 mV and is set to -65: what it reached is drawn at the peak."""
    network = Network({"cell": Izhikevich(1, steps=200)})
    axes = plots.traces(simulate(network, torch.full((1, 1, 1), 20.0)), network, "cell")
    assert "fires at 30" in legend(axes)
    spikes = next(label for label in legend(axes) if label.endswith(" spikes"))
    assert set(line_of(axes, spikes)[1]) == {30}


def test_traces_after_a_reset_to_zero_put_the_peak_at_the_threshold():
    network = Network([LIF(1, threshold=0.5, reset="zero")])
    axes = plots.traces(simulate(network, torch.full((1, 1, 1), 0.8)), network, "lif1")
    np.testing.assert_allclose(line_of(axes, "+ 4 spikes"), [[0, 1, 2, 3], [0.5] * 4])
    np.testing.assert_allclose(line_of(axes, "membrane")[1].reshape(-1, 4)[:, 3], 0)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_traces_of_a_recurrent_neuron_are_those_of_the_neuron_in_it(reset):
    """It alone knows the threshold that a reset subtracts."""
    alone = LIF(1, beta=0.5, threshold=0.5, reset=reset)
    network = Network({"own": Recurrent(alone)})
    network["own"].recurrent.weight.data.zero_()
    recording = simulate(network, torch.full((1, 1, 1), 0.8))
    drawn, expected = (line_of(plots.traces(recording, of, "own"), "membrane")[1] for of in (network, alone))
    assert drawn.tolist() == expected.tolist()
    assert drawn[1] == pytest.approx(0.8 if reset == "subtract" else 0.5)


def test_traces_of_a_readout_have_no_threshold():
    network = Network([LeakyIntegrator(2, beta=1.0)])
    axes = plots.traces(simulate(network, torch.ones(1, 1, 2)), network, "leakyintegrator1")
    assert legend(axes) == ["membrane"]
    np.testing.assert_allclose(line_of(axes, "membrane")[1].reshape(-1, 4)[:, 1], [1, 2, 3, 4])


def test_traces_errors():
    network = Network([nn.Linear(2, 3), ATMN(3)])
    recording = simulate(network, torch.randn(2, 2, 2))
    with pytest.raises(InputError, match=r"^no membrane of a layer 'atmn2'; recorded are atmn1$"):
        plots.traces(recording, network, "atmn2")
    with pytest.raises(InputError, match="neuron must be a whole number from 0 to 2, got 3"):
        plots.traces(recording, network, "atmn1", neuron=3)
    with pytest.raises(InputError, match="sample must be a whole number from 0 to 1, got 2"):
        plots.traces(recording, network, "atmn1", sample=2)
    with pytest.raises(InputError, match=r"this Recording holds no membrane; .*record="):
        plots.traces(simulate(network, torch.randn(2, 2, 2), record="spikes"), network, "atmn1")
    with pytest.raises(InputError, match=r"this Recording holds no spikes; .*record="):
        plots.traces(simulate(network, torch.randn(2, 2, 2), record="membrane"), network, "atmn1")
    with pytest.raises(InputError, match=r"no neuron layer 'atmn1'; its neuron layers are lif1$"):
        plots.traces(recording, Network([LIF(3)]), "atmn1")
    with pytest.raises(InputError, match="needs the Network or the Neuron, got Linear"):
        plots.traces(recording, network["linear1"], "atmn1")
    with pytest.raises(InputError, match="this neuron has 4 features, atmn1 was recorded with"):
        plots.traces(recording, ATMN(4), "atmn1")
    assert not plt.get_fignums()


# ---- firing_rates and energy_bars -------------------------------------------------------------------


def test_firing_rates_stack_the_signs():
    recording = of_spikes(a=ternary(5, 4, 2, 7), b=np.abs(ternary(5, 4, 2, 7, rate=0.8)))
    axes = plots.firing_rates(recording)
    positive, negative = axes.containers
    a, b = recording.spikes.values()
    assert [bar.get_width() for bar in positive] == pytest.approx([np.mean(a > 0), np.mean(b > 0)])
    assert [bar.get_width() for bar in negative] == pytest.approx([np.mean(a < 0), 0.0])
    assert [bar.get_x() + bar.get_width() for bar in negative] == pytest.approx([*recording.rates().values()])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [to_hex(group[0].get_facecolor()).upper() for group in (positive, negative)] == [
        POSITIVE,
        NEGATIVE,
    ]


def test_firing_rates_errors():
    with pytest.raises(InputError, match="holds no spikes"):
        plots.firing_rates(of_spikes())


def totals(**tables):
    return SimpleNamespace(
        totals={
            name: SimpleNamespace(spiking_pj=few, dense_pj=many, ratio=few / many if many else None)
            for name, (few, many) in tables.items()
        }
    )


def test_energy_bars_end_at_the_energies():
    axes = plots.energy_bars(totals(fp32=(2.0e6, 8.0e6), int8=(1.5e5, 1.2e5), chip=(3400.0, None)))
    spiking, dense = axes.containers
    assert [bar.get_x() + bar.get_width() for bar in spiking] == pytest.approx([2.0e6, 1.5e5, 3400.0])
    assert [bar.get_x() + bar.get_width() for bar in dense][:2] == pytest.approx([8.0e6, 1.2e5])
    assert dense[2].get_width() == 0
    written = [text.get_text() for text in axes.texts]
    assert written == [
        "2 µJ  (0.25 of dense)", "8 µJ", "150 nJ  (1.25 of dense)", "120 nJ", "3.4 nJ", "dense n/a",
    ]  # fmt: skip
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fp32", "int8", "chip"]


def test_energy_bars_take_a_report():
    report = EnergyReport(
        count(Network([nn.Linear(8, 16), ATMN(16), nn.Linear(16, 4)]), torch.randn(3, 1, 8))
    )
    axes = plots.energy_bars(report)
    spiking = [bar.get_x() + bar.get_width() for bar in axes.containers[0]]
    assert spiking == pytest.approx([total.spiking_pj for total in report.totals.values()])


def test_energy_bars_of_nothing_at_all():
    axes = plots.energy_bars(totals(fp32=(0.0, 0.0)))
    assert [text.get_text() for text in axes.texts] == ["0 pJ", "0 pJ"]
    axes.figure.canvas.draw()
    with pytest.raises(InputError, match="no energy tables"):
        plots.energy_bars(totals())


# ---- all of them ------------------------------------------------------------------------------------

NETWORK = Network([nn.Linear(3, 8), ATMN(8), nn.Linear(8, 4), LIF(4)])
LENGTHS = {
    "whole": [
        {"L": L, "what": what, "both_ms": {"low": 0.9 * L, "median": L, "high": 1.2 * L}}
        for what in ("SSD", "attention", "projections")
        for L in (64, 128, 256)
    ],
    "memory": [{"L": L, "what": "SSD", "extra_mb": None if L == 64 else float(L)} for L in (64, 128, 256)],
}
SCORES = {"ablation_kl": 0.5, "fit_error": 0.25}
PLAN = {
    "policy": "sensitivity",
    "budget": "1",
    "layers": [
        {"layer": 0, "choice": "attention", "scores": SCORES},
        {"layer": 1, "choice": "ssm", "scores": {"ablation_kl": 0.1, "fit_error": 2.0}},
        {"layer": 2, "choice": "ssm", "scores": {}},
    ],
}


def row(bits, ratio, **more):
    price = {"45nm-fp32 ratio": ratio, "45nm-int8 ratio": 1.5 * ratio}
    return {
        "texts": {"a": {"bits_per_byte": bits}, "b": {"bits_per_byte": 2 * bits}},
        "energy": {"256": price, "1024": {name: value / 2 for name, value in price.items()}},
        "rates": {},
        **more,
    }


REPORT = {
    "settings": {"context": 64},
    "rows": {
        "dense": row(1.0, 1.0),
        "zeroed": {**row(2.0, 1.0), "energy": {}, "layers": [0.0, 0.5]},
        "spiking": row(1.1, 0.4, layers=[0.0, 0.2], rates={"0.ffn_in": 0.5, "1.ffn_in": 0.25}),
    },
    "refinement": {"plan": PLAN},
}

COURSE = [
    {"loss": 1.0, "step": 1},
    {"seen_tokens": 0, "topics_bits_per_byte": 1.2, "stdlib_bits_per_byte": 0.9},
    {"seen_tokens": 1_000_000, "topics_bits_per_byte": 0.99, "stdlib_bits_per_byte": 0.63},
]
ARMS = {
    "settings": {"held_out": ["library", "topics"]},
    "teacher": {"texts": {"library": {"bits_per_byte": 2.0}}},
    "tables": {"ladder": {"binary LIF": "a", "+ ATMN": "b"}},
    "cells": {
        key: {"seeds": {str(seed): {"texts": {"library": {"bits_per_byte": 2.2 + at + 0.01 * seed}}}
                        for seed in range(3)}}
        for at, key in enumerate("ab")
    },
}  # fmt: skip

DRAW = {
    "accuracy_energy": lambda recording, ax: plots.accuracy_energy(ROWS, ax=ax),
    "raster": lambda recording, ax: plots.raster(recording, ax=ax),
    "traces": lambda recording, ax: plots.traces(recording, NETWORK, "atmn1", ax=ax),
    "speed_bars": lambda recording, ax: plots.speed_bars(SPEED, ax=ax),
    "over_length": lambda recording, ax: plots.over_length(LENGTHS, ax=ax),
    "speed_scaling": lambda recording, ax: plots.speed_scaling(SPEED, ax=ax),
    "firing_rates": lambda recording, ax: plots.firing_rates(recording, ax=ax),
    "energy_bars": lambda recording, ax: plots.energy_bars(totals(fp32=(1.0, 2.0)), ax=ax),
    "plan_bars": lambda recording, ax: plots.plan_bars(PLAN, ax=ax),
    "quality_bars": lambda recording, ax: plots.quality_bars(REPORT, ax=ax),
    "energy_curves": lambda recording, ax: plots.energy_curves(REPORT, ax=ax),
    "layer_curves": lambda recording, ax: plots.layer_curves(REPORT, ax=ax),
    "rate_map": lambda recording, ax: plots.rate_map({"0.ffn_in": 0.5}, ax=ax),
    "recovery_curve": lambda recording, ax: plots.recovery_curve(
        COURSE, {"topics": 0.9, "stdlib": 0.6}, ax=ax
    ),
    "arm_intervals": lambda recording, ax: plots.arm_intervals(ARMS, "ladder", ax=ax),
    "core_map": lambda recording, ax: plots.core_map(PLACED, ax=ax),
}


def test_every_plot_is_drawn_here():
    assert sorted(DRAW) == plots.__all__


@pytest.mark.parametrize("name", DRAW)
def test_draws_on_the_axes_it_is_given_and_shows_nothing(name, ax, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show() was called"))
    recording = simulate(NETWORK, torch.randn(5, 2, 3))
    assert DRAW[name](recording, ax) is ax
    assert len(plt.get_fignums()) == 1  # the caller's
    ax.figure.canvas.draw()
    own = DRAW[name](recording, None)
    assert own.figure is not ax.figure
    own.figure.canvas.draw()


@pytest.mark.parametrize("name", DRAW)
def test_nothing_drawn_is_clipped_by_the_figure(name):
    own = DRAW[name](simulate(NETWORK, torch.randn(5, 2, 3)), None)
    own.figure.canvas.draw()
    box, page = own.get_tightbbox(), own.figure.bbox
    assert box.x0 >= 0 and box.y0 >= 0  # noqa: PT018, two sides of one box
    assert box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1  # noqa: PT018


def test_a_recovery_is_drawn_in_percent_of_the_teacher_and_arms_by_their_seeds():
    ax = plots.recovery_curve(COURSE, {"topics": 0.9, "stdlib": 0.6})
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()[:2]}
    assert lines["topics, +10.0 % at the end"] == pytest.approx([100 / 3, 10])
    assert lines["stdlib, +5.0 % at the end"] == pytest.approx([50, 5])
    ax = plots.arm_intervals(ARMS, "ladder")
    dots = [line.get_xdata() for line in ax.get_lines() if line.get_marker() == "."]
    assert [list(each) for each in dots] == [
        pytest.approx([2.2, 2.21, 2.22]),
        pytest.approx([3.2, 3.21, 3.22]),
    ]
    with pytest.raises(InputError, match="no looks"):
        plots.recovery_curve(COURSE[:1], {"topics": 0.9})
    with pytest.raises(InputError, match="no table 'code'"):
        plots.arm_intervals(ARMS, "code")


def test_what_is_no_recording_or_no_axes_is_refused():
    network = Network({"a": ATMN(3)})
    recording = simulate(network, torch.ones(1, 1, 3))
    for draw in (plots.raster, plots.firing_rates, lambda what: plots.traces(what, network, "a")):
        with pytest.raises(InputError, match="expected a Recording, got Network"):
            draw(network)
    with pytest.raises(InputError, match="ax must be matplotlib Axes, got Figure"):
        plots.raster(recording, ax=plt.figure())
    plt.close("all")
