"""LIF networks to netx, the HDF5 format of lava-dl, which stock Lava runs without any process of ours.

What maps: chains of `Linear` or `Conv2d` and `LIF`, `PLIF` or `CubaLIF` with reset="zero", which is how
Lava's LIF resets; behind a Linear also `Recurrent` of these. `Flatten` stands between the two kinds of maps,
Dropout and Identity do nothing. Everything else is refused by name, all of it at once (`netx_graph.py`).

The clock. A token's input is held for T steps, so a sample is one long train. Lava's `LIFReset` clears the
states every so many steps, and netx lets it do so one step later in every layer, as the synapses' delays ask
for: every T steps for carry="token", every T L steps for carry="sequence" with L tokens a sample. That is an
argument of netx and no part of its format, so a group of ours in the file keeps it. The spikes that a
`Recurrent` has on their way outlive that clearing; the host drops them (`LoihiModel.drops`).

The units. A layer has one threshold V, so one scale for all its weights, `codes = s weight / threshold`; a
threshold for each neuron folds into its row, and what a spike is worth into the columns behind it. Lava fires
above V << 6, marsnn at the threshold: one step of the state, 2^-6 of a code, lies between. So

    s = V + 2^-6    in general: the firing level is exact, and the weights take the rounding
    s = V + 1       where all weights and biases are whole at that scale: a sum that just meets the threshold
                    fires in both; with a leak, so does one less than a code below it, and s is at least 64

with the largest V for which weights have 8 bits, biases 13, the threshold 17, and nothing outgrows 24: for
any input if that leaves 5 bits of the largest weight, else for twice what the sample reaches.
`LayerReport.overflow` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import marsnn
from marsnn.checks import finite
from marsnn.errors import ExportError, InputError, ShapeError
from marsnn.files import PathLike
from marsnn.hardware.chip import Chip
from marsnn.hardware.loihi import (
    ALIGN,
    BIAS_MAX,
    STATE_MAX,
    THRESHOLD_MAX,
    UNITY,
    Ints,
    Layer,
    LoihiModel,
    LoihiRun,
    dense,
    excess,
    keeps,
    run_layer,
    synapse,
)
from marsnn.hardware.netx_file import write_model
from marsnn.hardware.netx_graph import NetxStage, Reals, extract
from marsnn.hardware.place import events_of, place
from marsnn.hardware.placement import Placement
from marsnn.hardware.quantize import input_scale
from marsnn.network import Network
from marsnn.simulator import simulate

WEIGHT_MAX = 127
FLOAT32 = 2.0**-22
"""How far, relatively, a quotient of two rounded float32 can lie from the true one."""

FEWER_LEVELS = (63, 31, 15, 7, 3)
"""Levels of each sign that a graded input may have beside the finest."""

LEAST_LARGEST = 16
"""A layer whose largest weight has a smaller code keeps fewer than 5 bits with its sign: too coarse."""


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: of the neurons.   threshold: V, the mantissa.
        largest_code: of the weights, up to 127.   weakest_row: the least of the rows' largest codes.
        alpha, beta: as trained.   alpha_used, beta_used: as the chip's 12 bits hold them.
        exact: all weights, biases and decays are whole at this scale, so nothing was rounded.
        overflow: "impossible", whatever comes in, or "not on the sample".
        teacher_forced: share of spike slots that differ from the float network's, given its spikes as input.
        end_to_end: the same, given the integers of the layers before.
        float_spikes, integer_spikes: how many there were.
    """

    name: str
    threshold: int
    largest_code: int
    weakest_row: int
    alpha: float
    alpha_used: float
    beta: float
    beta_used: float
    exact: bool
    overflow: str
    teacher_forced: float
    end_to_end: float
    float_spikes: int
    integer_spikes: int


@dataclass(frozen=True)
class NetxExport:
    """A netx file as written.

    Attributes:
        path: the file.
        model: the integers; `model.run(inputs)` repeats the golden run.
        inputs: the sample in integers, [W, *D], the tokens of a sample and then the next sample.
        golden: what the model did with them.
        input_scale: real value of an input of 1.
        reports: one a layer. The distance from the float network is in them; it is not parity.
    """

    path: Path
    model: LoihiModel
    inputs: Ints
    golden: LoihiRun
    input_scale: float
    reports: tuple[LayerReport, ...]

    def placement(self, profile: PathLike | Chip = "loihi1", **search: Any) -> Placement:
        """Where its neurons lie, with the events of the golden run; see `marsnn.hardware.place`."""
        return place(self.model, profile, events_of(self.golden), **search)

    def text(self) -> str:
        """One line a layer, for people."""
        rows = [
            f"{each.name}: threshold {each.threshold}, weights to {each.largest_code}, "
            f"beta {each.beta:.5g} as {each.beta_used:.5g}, alpha {each.alpha:.5g} as {each.alpha_used:.5g}, "
            f"overflow {each.overflow}; {each.end_to_end:.2%} of spike slots differ from the floats, "
            f"{each.teacher_forced:.2%} by itself"
            for each in self.reports
        ]
        rows += [
            f"{layer.name}: hears itself, and Lava's clearing spares what is on its way back; before each "
            "clearing, write 0 to its synapse_rec.a_buff, as verify_netx does"
            for layer in self.model.layers
            if layer.recurrent is not None
        ]
        return "\n".join(rows)


def write_netx(network: Network, sample: Tensor, path: PathLike) -> NetxExport:
    """Write a network as a netx file, with a golden run; `verify_netx(path)` compares it with Lava.

    Args:
        network: see above; it ends with a neuron.
        sample: x [L, B, D] or [L, B, C, H, W]. It sets the input's scale, and L, the tokens of a sample.
        path: the file, replaced if it is there.

    Raises:
        ExportError: with every part of the network that netx can't hold.
        ShapeError, NonFiniteError: of the sample or the weights.   FileError: it can't be written.
        MissingDependencyError: h5py is not installed.
    """
    if not isinstance(network, Network):
        raise InputError(
            f"write_netx() takes a marsnn Network, got {type(network).__name__}; wrap its layers"
        )
    if not isinstance(sample, Tensor) or sample.ndim not in (3, 5):
        shape = list(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        raise ShapeError(f"expected a sample x [L, B, D] or [L, B, C, H, W], got {shape}")
    finite("sample", sample)
    recording = simulate(network, sample, record=("spikes",))  # its checks name the layer, so it comes first
    reals = _in_order(sample.detach().cpu().double().numpy())
    input_shape, stages, interval = extract(network, tuple(sample.shape[2:]), len(sample))
    reals = reals.reshape(-1, *input_shape)
    floats = [
        _in_order(np.swapaxes(recording.spikes[stage.name], 1, 2)).reshape(-1, *stage.layer.shape)
        for stage in stages
    ]

    model, inputs, scale = _input(reals, stages[0], floats[0], network.steps, interval)
    stages[0] = replace(stages[0], weight=stages[0].weight * scale)
    # Layer by layer, each fitted to what the integers before it send, in rows of one step.
    signal = given = np.repeat(inputs, network.steps, axis=0)
    layers: list[Layer] = []
    reports, refusals = [], []
    for stage, spikes in zip(stages, floats, strict=True):
        layer, overflow, complaint = _fit(stage, signal, model.arrives(bool(layers)), interval)
        layers.append(layer)
        if complaint:  # what follows is still looked at, behind its float spikes
            refusals.append(f"{stage.name}: {complaint}")
            signal = given = spikes.astype(np.int64)
            continue
        expected = spikes.astype(np.int64)
        alone, _, _ = run_layer(layer, given, interval, 1, drops=True, told=expected)
        signal, _, _ = run_layer(layer, signal, interval, 1, drops=True)
        given = expected
        reports.append(_report(stage, layer, overflow, alone, signal, given))
    if refusals:
        raise ExportError(refusals)
    model = replace(model, layers=tuple(layers), drops=any(layer.recurrent is not None for layer in layers))
    golden = model.run(inputs)
    header = {
        "marsnn": marsnn.__version__,
        "input_scale": scale,
        "layers": [asdict(each) for each in reports],
    }
    written = write_model(path, model, inputs, golden, header)
    return NetxExport(written, model, inputs, golden, scale, tuple(reports))


def _in_order(x: NDArray[Any]) -> NDArray[Any]:
    """x [L, B, *] as the chip receives it, [B L, *]: the tokens of a sample, then the next sample."""
    return np.ascontiguousarray(np.moveaxis(x, 1, 0)).reshape(-1, *x.shape[2:])


def _input(
    sample: Reals, stage: NetxStage, floats: NDArray[Any], steps: int, interval: int
) -> tuple[LoihiModel, Ints, float]:
    """A model without layers yet, the sample in its integers, and the real value of an input of 1.

    Spikes where there is but one value beside zero. Else graded, with so many levels as bring the first layer
    nearest to its float spikes: its 24 bits hold the product of input and weight, so bits of the one may have
    to be given for bits of the other.
    """
    values = np.unique(sample[sample != 0])
    if len(values) == 1 and values[0] > 0:
        model = LoihiModel((), sample.shape[1:], 0, 1, steps, interval)
        return model, (sample != 0).astype(np.int64), float(values[0])
    finest = float(input_scale(sample.reshape(len(sample), -1)))
    most = int(np.abs(np.round(sample / finest)).max())
    found = []
    for levels in [most, *(fewer for fewer in FEWER_LEVELS if fewer < most)]:
        scale = finest * most / levels
        inputs = np.clip(np.round(sample / scale), -levels, levels).astype(np.int64)
        arriving = np.repeat(inputs, steps, axis=0)
        layer, _, complaint = _fit(
            replace(stage, weight=stage.weight * scale), arriving, (-levels, levels), interval
        )
        spikes = None if complaint else run_layer(layer, arriving, interval, 1, drops=True)[0]
        differs = np.inf if spikes is None else float(np.mean(spikes != floats))
        found.append((differs, -levels, inputs, scale))
    _, negative, inputs, scale = min(found, key=lambda each: each[:2])
    return LoihiModel((), sample.shape[1:], 8, -negative, steps, interval), inputs, scale


# ---- from real numbers to integers -------------------------------------------------------------------


def _fit(stage: NetxStage, arriving: Ints, arrives: tuple[int, int], interval: int) -> tuple[Layer, str, str]:
    """The layer with the finest integers that fit, whether it can overflow, and why it can't be written.

    Args:
        stage: in real numbers.
        arriving: what the sample brings, [S, *M].   arrives: the least and the largest of what can come.
        interval: from clearing to clearing.
    """
    heaviest = float(np.abs(_weights(stage)).max())
    largest_bias = float(np.abs(stage.bias).max())
    if heaviest == 0:
        return stage.layer, "", "all weights are zero, which netx can't load; remove the layer"
    limits = {
        "weights": (WEIGHT_MAX + 0.49) / heaviest,
        "bias": (BIAS_MAX + 0.49) / largest_bias if largest_bias else np.inf,
        "threshold": THRESHOLD_MAX + 1.0,
    }
    finest = min(limits.values())
    if finest < 2:
        return stage.layer, "", (
            f"its largest weight is {heaviest:.4g} times the threshold, its largest bias {largest_bias:.4g}; "
            f"netx holds up to {WEIGHT_MAX // 2} and {BIAS_MAX // 2} times"
        )  # fmt: skip
    leaky = any(0 < decay < UNITY for decay in (stage.layer.current_decay, stage.layer.voltage_decay))
    least = 64 if leaky else 1
    values = np.concatenate([_weights(stage).reshape(-1), stage.bias])
    grid = {scale for scale in _whole_scales(values, int(finest)) if scale >= least}

    def fine(layer: Layer) -> bool:
        return layer.threshold + 1 in grid or int(np.abs(_weights(layer)).max()) >= LEAST_LARGEST

    def at(threshold: int) -> Layer:
        on_grid = threshold + 1 in grid
        return _with_threshold(stage, threshold, threshold + (1.0 if on_grid else 2.0**-ALIGN))

    def largest(over_by: Callable[[Layer], float]) -> Layer | None:
        """The finest layer that fits: on the grid where there is one, else the next found below."""
        limit = finest
        for scale in sorted(grid, reverse=True):
            if scale <= limit:
                over = over_by(layer := at(scale - 1))
                if over <= 1:
                    return layer
                limit = scale / over if over < np.inf else limit
        threshold = int(finest - 2.0**-ALIGN)
        while threshold >= 1:
            over = over_by(layer := at(threshold))
            if over <= 1:
                return layer
            if not _weights(layer).any():
                break
            coarser = int(threshold / over) if over < np.inf else threshold - threshold // 100
            threshold = min(threshold - 1, coarser)
        return None

    proven = largest(lambda layer: excess(layer, *arrives, interval) if _whole(layer) else np.inf)
    if proven is not None and fine(proven):
        return proven, "impossible", ""
    seen = largest(lambda layer: _reached(layer, arriving, interval) if _whole(layer) else np.inf)
    if seen is not None and fine(seen):
        return seen, "not on the sample", ""
    bound = min(limits, key=lambda key: limits[key])
    if bound == "bias" and largest_bias * LEAST_LARGEST > BIAS_MAX * heaviest:
        reason = f"its bias is {largest_bias / heaviest:.0f} times its largest weight, and has 13 bits"
    elif bound == "threshold":
        reason = "its weights are too small beside its threshold, which has 17 bits"
    else:
        reason = "its states outgrow 24 bits with more; use fewer inputs or steps, or a smaller alpha or beta"
    return stage.layer, "", f"only weights of fewer than 5 bits fit; {reason}"


def _weights(of: NetxStage | Layer) -> Reals | Ints:
    """Of a neuron in a row, those of its own layer at the end: they share a scale."""
    rows = of.weight.reshape(len(of.weight), -1)
    return rows if of.recurrent is None else np.concatenate([rows, of.recurrent], axis=1)


def _whole_scales(values: Reals, largest: int) -> set[int]:
    """The scales up to `largest` at which all values are whole, but for the rounding of their floats."""
    scales = np.arange(1, largest + 1, dtype=np.float64)
    for value in np.unique(np.abs(values)):
        scaled = value * scales
        scales = scales[np.abs(scaled - np.round(scaled)) <= FLOAT32 * scaled]
        if not len(scales):
            break
    return {int(scale) for scale in scales}


def _with_threshold(stage: NetxStage, threshold: int, scale: float) -> Layer:
    def codes(reals: Reals, limit: int) -> Ints:
        return np.clip(np.round(reals * scale), -limit, limit).astype(np.int64)

    return replace(
        stage.layer,
        weight=codes(stage.weight, WEIGHT_MAX),
        recurrent=None if stage.recurrent is None else codes(stage.recurrent, WEIGHT_MAX),
        bias=codes(stage.bias, BIAS_MAX),
        threshold=threshold,
    )


def _whole(layer: Layer) -> bool:
    """Whether Lava sums the weights as they are written: not so for some without a positive one."""
    return bool(_weights(layer).any()) and keeps(layer)


def _reached(layer: Layer, arriving: Ints, interval: int) -> float:
    """By what factor twice the states that the sample reaches exceed 24 bits."""
    bias = layer.bias.reshape(-1, *[1] * (len(layer.shape) - 1)) << ALIGN
    sums = synapse(layer, arriving) << ALIGN
    if layer.recurrent is not None:
        spikes, _, _ = run_layer(layer, arriving, interval, 1, drops=True)
        back = dense(spikes[:-1], layer.recurrent, 0) << ALIGN
        back[interval - 1 :: interval] = 0
        sums[1:] += back
    u: Reals = np.zeros(layer.shape)
    v: Reals = np.zeros(layer.shape)
    reached = 0.0
    for row, a in enumerate(sums):
        if row % interval == 0:
            u, v = np.zeros(layer.shape), np.zeros(layer.shape)
        u = u * (1 - layer.current_decay / UNITY) + a
        # Below zero no spike resets it, so this is what it reaches at least; above, clipping does no harm.
        v = np.minimum(v, 0) * (1 - layer.voltage_decay / UNITY) + u + bias
        reached = max(reached, float(np.abs(u).max()), -float(v.min()))
    return 2 * reached / STATE_MAX


def _report(
    stage: NetxStage, layer: Layer, overflow: str, alone: Ints, signal: Ints, floats: Ints
) -> LayerReport:
    used = {
        name: 1 - decay / UNITY
        for name, decay in (("alpha_used", layer.current_decay), ("beta_used", layer.voltage_decay))
    }
    # A layer that sits on the grid has s = V + 1, and nothing of its numbers was rounded.
    scale = layer.threshold + 1
    exact = all(
        np.allclose(real * scale, codes, rtol=FLOAT32, atol=0)
        for real, codes in ((_weights(stage), _weights(layer)), (stage.bias, layer.bias))
    )
    exact = exact and used["alpha_used"] == stage.alpha and used["beta_used"] == stage.beta
    rows = np.abs(_weights(layer)).max(axis=1)
    return LayerReport(
        name=stage.name,
        threshold=layer.threshold,
        largest_code=int(rows.max()),
        weakest_row=int(rows.min()),
        alpha=stage.alpha,
        beta=stage.beta,
        **used,
        exact=exact,
        overflow=overflow,
        teacher_forced=float(np.mean(alone != floats)),
        end_to_end=float(np.mean(signal != floats)),
        float_spikes=int(np.count_nonzero(floats)),
        integer_spikes=int(np.count_nonzero(signal)),
    )
