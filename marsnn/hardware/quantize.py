"""From real stages to integer ones: weights of 4 to 8 bits with a scale per output channel, 24-bit states.

Every output channel j has its own unit: one integer step of its accumulator is worth `unit[j]`. The unit
cancels, because threshold, bias and weights of a channel are all counted in it; what is left of it is
rounding. The certificate shows by worst-case arithmetic that no accumulator can overflow.

Stages are chosen in order, each on what the integer stages before it made of the sample: so the scales inside
a state space layer, whose worst case says nothing, are those of what really arrives, with room for
`HEADROOM` times as much before anything is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.errors import ExportError, InputError
from marsnn.hardware.certificate import ARRIVING, WIDEST, bounds, certify, excess, largest_inputs
from marsnn.hardware.graph import Graph, RealStage, RealSynapse
from marsnn.hardware.integer import arrive, run_stage
from marsnn.hardware.linear_maps import Dense, Each, Kernel, Reals
from marsnn.hardware.stages import (
    ATMN_DECAYS,
    FACTOR_MAX,
    INPUT,
    INPUT_MAX,
    KINDS,
    LARGEST_EPSILON,
    LARGEST_SHIFT,
    LARGEST_TABLE,
    MULTIPLIER_MAX,
    NARROW_MAX,
    NORM_BITS,
    SHARE_MAX,
    STATE_MAX,
    TURN_MAX,
    UNITY,
    WIDE_INPUT_MAX,
    Form,
    IntegerGraph,
    IntegerRun,
    Ints,
    Stage,
    Synapse,
)

COARSE = 3
"""Bits that a channel's largest weight may lose to its worst case: of 8, 5 are left."""

MAX_SHIFT = 8
"""Extra low bits for the membrane: the leak of tau = 2 and of LIF rounds in them instead of in the code."""

HEADROOM = 4.0
"""How much more than the sample's largest fits inside a state space layer before it is clipped."""

TABLE_STEP = 1 / 128
"""Of the argument: with `LARGEST_TABLE` entries the table spans -16 to 16, at whose ends SiLU's share is 0
and 1 to 15 bits. A step moves a share by at most 1/256 of itself, less than 8-bit weights move x."""

SHARES: dict[str, Callable[[Reals], Reals]] = {"silu": lambda x: 1 / (1 + np.exp(-x))}
"""f of an activation x f(x)."""


@dataclass(frozen=True)
class Quantized:
    """An integer graph, what its numbers are worth, and what it did on the sample."""

    graph: IntegerGraph
    input_scale: float | Reals  # real value of an input of 1; [D] where each feature has its own
    units: dict[str, Reals]  # stage -> [N], real value of a state of 1
    certificate: dict[str, Any]
    inputs: Ints  # [W, D]
    run: IntegerRun


@dataclass(frozen=True)
class Narrow:
    """A target that is narrower than the stages are.

    Attributes:
        name: of what is narrow, for refusals.
        excess: graph, stage and the largest that its senders send -> by what factor [N] the stage exceeds it.
        input_max: the largest magnitude of an input.
    """

    name: str
    excess: Callable[[IntegerGraph, Stage, Mapping[str, Ints]], Reals]
    input_max: int = INPUT_MAX


def quantize(
    graph: Graph, sample: Reals, tokens_per_sample: int, bits: int = 8, narrow: Narrow | None = None
) -> Quantized:
    """Choose integers for a graph whose inputs look like `sample` [W, D].

    Where no matrix of weights takes the input, each feature has a scale of its own, and 16 bits.

    Args:
        bits: of a weight with its sign, 4 to 8.
        narrow: what the stages have to fit beside their own 24 bits.

    Raises:
        ExportError: a stage whose worst case needs more than 24 bits, with what would make it fit.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 4 <= bits <= 8:
        raise InputError(f"weights take 4 to 8 bits, got {bits!r}")
    return _Chooser(graph, sample, tokens_per_sample, bits, narrow).chosen()


class _Chooser:
    """Integers for one stage after the other."""

    def __init__(
        self, graph: Graph, sample: Reals, tokens_per_sample: int, bits: int, narrow: Narrow | None = None
    ) -> None:
        self.real, self.bits, self.narrow = graph, bits, narrow
        self.weight_max = 2 ** (bits - 1) - 1
        free = all(
            isinstance(synapse.map, Each) and synapse.arrival == "value"
            for stage in graph.stages
            for synapse in stage.synapses
            if synapse.source == INPUT
        )
        most = narrow.input_max if narrow else WIDE_INPUT_MAX if free else INPUT_MAX
        self.scale: float | Reals = feature_scales(sample, most) if free else input_scale(sample, most)
        self.graph = IntegerGraph(graph.steps, graph.inputs, (), tokens_per_sample, most)
        self.inputs = quantize_inputs(sample, self.scale, most)
        size = int(np.prod(graph.inputs))
        self.units: dict[str, Reals] = {INPUT: np.broadcast_to(np.asarray(self.scale), (size,)).copy()}
        self.sent: dict[str, Ints] = {INPUT: self.inputs}
        self.largest: dict[str, Ints] = {INPUT: largest_inputs(self.graph)}
        self.refusals: list[str] = []

    def chosen(self) -> Quantized:
        run = IntegerRun()
        for real in self.real.stages:
            stage, unit = self.stage(real)
            self.graph = replace(self.graph, stages=(*self.graph.stages, stage))
            self.units[real.name] = unit
            self.largest[real.name] = bounds(self.graph, stage, self.largest).sent
            output, run.saturations[real.name] = run_stage(self.graph, stage, self.sent)
            self.sent[real.name] = output
            if stage.sends == "train":
                run.spikes[real.name] = output.astype(np.int8)
            else:
                run.values[real.name] = output.astype(np.int32)
        if self.refusals:
            raise ExportError(self.refusals)
        certificate = certify(self.graph)
        unsafe = [row["name"] for row in certificate["stages"] if not row["safe"]]
        if unsafe:
            raise ExportError(
                [
                    f"{name}: its worst case needs more than 24 bits; use fewer inputs, steps, or tokens a "
                    "sample"
                    for name in unsafe
                ]
            )
        units = {name: unit for name, unit in self.units.items() if name != INPUT}
        return Quantized(self.graph, self.scale, units, certificate, self.inputs, run)

    # ---- a stage ----------------------------------------------------------------------------------------

    def stage(self, real: RealStage) -> tuple[Stage, Reals]:
        """The stage in integers, and the unit [N] of what it sends."""
        if real.kind in ("gate", "ssd", "s4d"):
            return {"gate": self.gate, "ssd": self.ssd, "s4d": self.s4d}[real.kind](real)
        if any(synapse.source == real.name for synapse in real.synapses):
            self.largest[real.name] = np.full(real.neurons, real.of["most"])
        fit = self.fitted(real, "in", MAX_SHIFT)
        if fit.coarse:
            knobs = "steps" if KINDS[real.kind].takes == "token" else "tokens a sample, or a smaller beta"
            width = self.narrow.name if self.narrow else "24 bits"
            self.refusals.append(
                f"{real.name}: the worst case of {fit.coarse} of its channels fits {width} only with weights "
                f"of fewer than {self.bits - COARSE} bits; use fewer inputs or {knobs}"
            )
        stage = self.with_scale(real, "in", fit.scale, fit.shift)
        if real.kind != "norm":
            return stage, fit.unit
        gain, offset = np.abs(real.of["gain"]), real.of["offset"]
        unit = np.where(gain > 0, gain, np.maximum(np.abs(offset), 1e-30)) / 2**NORM_BITS
        return stage, unit

    def port(self, real: RealStage, port: str, low_bits: int) -> tuple[Stage, Reals]:
        """What arrives at one port of several, as a sum of its own; and its unit."""
        synapses = tuple(synapse for synapse in real.synapses if synapse.port == port)
        size = len(real.bias[port])
        alone = RealStage(real.name, "sum", (size,), synapses, {port: real.bias[port]})
        fit = self.fitted(alone, port, low_bits)
        if fit.coarse:
            self.refusals.append(
                f"{real.name}: the worst case of {fit.coarse} of its channels ({port}) fits 24 bits only "
                f"with weights of fewer than {self.bits - COARSE} bits; use fewer inputs or steps"
            )
        return self.with_scale(alone, port, fit.scale, fit.shift), fit.unit

    def fitted(self, real: RealStage, port: str, low_bits: int) -> _Fit:
        """The finest scale of a port that provably fits.

        A channel starts with its largest weight at 127, and takes a larger scale (smaller codes) only as far
        as its own worst case asks for. Low bits for the membrane are then added for all, never at the price
        of weight bits, but in channels whose weights don't matter.
        """
        matters = self.matters(real, port)
        start = self.start(real, port)

        def widened(scale: Reals, shift: int, may_change: NDArray[np.bool_]) -> tuple[Reals, bool]:
            for _ in range(12):
                stage = self.with_scale(real, port, scale, shift)
                found = bounds(self.graph, stage, self.largest)
                over = excess(stage, found)[port]
                if (
                    real.kind == "norm"
                ):  # its squares, and the epsilon that is added to them, have a width too
                    epsilon = real.of["epsilon"] / float(scale[0] / 2.0**shift) ** 2
                    over = np.maximum(over, max(found.between / WIDEST, epsilon / LARGEST_EPSILON) ** 0.5)
                if self.narrow:
                    over = np.maximum(over, self.narrow.excess(self.graph, stage, self.largest))
                if not (over > 1).any():
                    return scale, True
                if ((over > 1) & ~may_change).any():
                    return scale, False
                scale = np.where(over > 1, scale * over * 1.01, scale)
                if real.kind == "norm":
                    scale = np.full_like(scale, scale.max())
            return scale, False

        scale, _ = widened(start, 0, np.ones_like(matters))
        shift = 0
        for bits in range(low_bits, 0, -1):
            finer, fits = widened(scale, bits, ~matters)
            if fits:
                scale, shift = finer, bits
                break
        coarse = matters & self.coarse(real, port, scale)
        return _Fit(scale, shift, int(np.count_nonzero(coarse)))

    def start(self, real: RealStage, port: str) -> Reals:
        """The scale [N] at which the largest code of each channel is the largest that there is."""
        size = len(real.bias[port])
        scale = np.zeros(size)
        plain = np.full(size, np.inf)
        for synapse in real.synapses:
            if synapse.port != port:
                continue
            folded = self.folded(synapse)
            gain = self.gain(synapse)
            if isinstance(folded, Each):
                own = np.abs(folded.weight) / gain
                plain = np.where(own > 0, np.minimum(plain, own), plain)
            else:
                own = _rows(folded, np.maximum.reduce) / (
                    self.weight_max * gain * 2.0 ** self.alignment(real, synapse)
                )
                scale = np.maximum(scale, own)
        # neurons without a matrix count in the finest of what they are sent
        scale = np.where(scale > 0, scale, np.where(np.isfinite(plain), plain, 0.0))
        largest = np.abs(real.bias[port])
        if "threshold" in real.of:
            largest = np.maximum(largest, real.of["threshold"])
        blank = np.where(largest > 0, largest, 1.0) / 2**20
        scale = np.where(scale > 0, scale, blank)
        return np.full_like(scale, scale.max()) if real.kind == "norm" else scale

    def gain(self, synapse: RealSynapse) -> int:
        """By what the arrivals are scaled up, so that tau^t is an integer at every step."""
        return 2 ** (self.real.steps - 1) if synapse.arrival in ("horner", "stream_down") else 1

    def alignment(self, real: RealStage, synapse: RealSynapse) -> int:
        """Of several matrices that meet in one port, how many more low bits this one's codes stand above."""
        own = {
            each.name: float(np.median(_rows(self.folded(each), np.maximum.reduce))) / self.gain(each)
            for each in real.synapses
            if each.port == synapse.port and not isinstance(each.map, Each)
        }
        least = min((size for size in own.values() if size > 0), default=0.0)
        if not least or own[synapse.name] <= 0:
            return 0
        return int(np.clip(np.floor(np.log2(own[synapse.name] / least)), 0, 8))

    def is_train(self, source: str) -> bool:
        """Whether a sender sends spikes; one that isn't chosen yet can only be heard by itself, and does."""
        return source not in self.sent or self.graph.sends(source) == "train"

    def folded(self, synapse: RealSynapse) -> Dense | Kernel | Each:
        """The map with the unit of what its sender sends folded in; a spike counts as 1."""
        if self.is_train(synapse.source):
            return synapse.map
        if isinstance(synapse.map, Kernel):
            shape = self.graph.inputs if synapse.source == INPUT else self.graph[synapse.source].shape
            folded = synapse.map.columns(self.units[synapse.source], shape)
            assert not isinstance(folded, str), folded
            return folded
        found = synapse.map.columns(self.units[synapse.source], ())
        assert not isinstance(found, str)
        return found

    def synapse(self, real: RealStage, synapse: RealSynapse, scale: Reals, shift: int) -> Synapse:
        """A synapse in integers, whose channels count in scale / 2^shift."""
        folded, gain = self.folded(synapse), self.gain(synapse)
        if isinstance(folded, Each):
            train = self.is_train(synapse.source)
            factor, right = _as_factor(folded.weight * 2.0**shift / (scale * gain), whole=train)
            return Synapse(
                synapse.name, synapse.source, synapse.port, "each", synapse.arrival, factor, 0, right
            )
        above = self.alignment(real, synapse)
        per_row = scale * gain * 2.0**above
        if isinstance(folded, Dense):
            codes = folded.weight / per_row[:, None]
            form: Form = "dense"
            conv = None
        else:
            by_channel = per_row.reshape(len(folded.weight), -1)[:, 0]
            codes = folded.weight / by_channel.reshape(-1, *[1] * (folded.weight.ndim - 1))
            form, conv = "conv", folded.conv
        weight = np.clip(np.round(codes), -self.weight_max, self.weight_max).astype(np.int64)
        return Synapse(
            synapse.name,
            synapse.source,
            synapse.port,
            form,
            synapse.arrival,
            weight,
            shift + above,
            conv=conv,
        )

    def with_scale(self, real: RealStage, port: str, scale: Reals, shift: int) -> Stage:
        """Round everything to the units that a scale [N] and low bits give."""
        if any(isinstance(each.map, Kernel) for each in real.synapses):  # a kernel has one scale a channel
            by_channel = scale.reshape(real.shape[0], -1)
            scale = np.broadcast_to(by_channel.max(1, keepdims=True), by_channel.shape).reshape(-1)
        unit = scale / 2.0**shift
        synapses = tuple(self.synapse(real, each, scale, shift) for each in real.synapses)
        bias = np.clip(np.round(real.bias[port] / unit), -(2.0**40), 2.0**40).astype(np.int64)
        return Stage(
            real.name, real.kind, real.shape, synapses, {port: bias}, NUMBERS[real.kind](real, unit),
            real.reset, real.carry,
        )  # fmt: skip

    def matters(self, real: RealStage, port: str) -> NDArray[np.bool_]:
        """Channels [N] whose input can change a spike, or the output: not those all bias or asleep."""
        drive = np.zeros(len(real.bias[port]))
        for synapse in real.synapses:
            if synapse.port == port:
                times = ARRIVING[synapse.arrival](self.real.steps) / self.gain(synapse)
                sent = self.largest[synapse.source].astype(np.float64)
                drive += times * _reach(self.folded(synapse), sent)
        if "threshold" not in real.of:
            return drive > 0
        growth = 2 ** (self.real.steps - 1) if real.of.get("tau", 1.0) < 1 else 1
        if real.kind == "lif":
            growth = self.lasting(real)
        # How far the bias alone is from a change: below the firing level, or above it with all T spikes.
        threshold = real.of["threshold"]
        level, bias = real.of["fire_at"] * threshold, np.abs(real.bias[port])
        away = np.where(bias < level, level - bias, bias - level - 2**self.real.steps * threshold)
        return (drive > 0) & (drive * growth >= away)

    def lasting(self, real: RealStage) -> int:
        """Steps over which a membrane is kept."""
        return self.real.steps * self.graph.together(real.carry)

    def coarse(self, real: RealStage, port: str, scale: Reals) -> NDArray[np.bool_]:
        """Channels [N] that lost more than `COARSE` bits, and whose rounding shows at their threshold."""
        largest, error = np.zeros(len(scale)), np.zeros(len(scale))
        for synapse in real.synapses:
            if synapse.port != port or isinstance(synapse.map, Each):
                continue
            folded, above = self.folded(synapse), self.alignment(real, synapse)
            step = scale * self.gain(synapse) * 2.0**above
            largest = np.maximum(largest, _rows(folded, np.maximum.reduce) / step)
            # Rounding errors are uniform and independent: n weights have sqrt(n / 12) of one step.
            arriving = ARRIVING[synapse.arrival](self.real.steps) / self.gain(synapse)
            arriving = arriving * float(self.largest[synapse.source].max(initial=1))
            error += (
                (step * arriving) ** 2
                * _rows(folded, lambda each, axis: np.count_nonzero(each, axis=axis))
                / 12
            )
        few = (largest > 0) & (largest < (self.weight_max + 1) / 2**COARSE - 0.5)
        if "threshold" not in real.of:
            return few
        error = np.sqrt(error)
        if real.kind == "lif":  # a membrane sums the same error until it has leaked away
            error = error * np.minimum(self.lasting(real), 1 / np.maximum(1 - real.of["beta"], 1e-9))
        return few & (error > real.of["fire_at"] * real.of["threshold"] / 8)

    # ---- stages of several ports, or with a memory ------------------------------------------------------

    def gate(self, real: RealStage) -> tuple[Stage, Reals]:
        """The gate's shift is the least with which the worst case of its products fits 24 bits."""
        parts = {port: self.port(real, port, 0) for port in real.bias}
        of_g, of_u = (parts[port][1] for port in ("argument", "factor"))
        multiplier, argument_shift = _as_multiplier(of_g / TABLE_STEP)
        entering = {
            port: np.minimum(bounds(self.graph, stage, self.largest).entering[port], STATE_MAX)
            for port, (stage, _) in parts.items()
        }
        largest = entering["argument"].astype(np.float64) * entering["factor"] * SHARE_MAX / (STATE_MAX - 1)
        shift = np.clip(np.ceil(np.log2(np.maximum(largest, 1.0))), 0, LARGEST_SHIFT).astype(np.int64)
        products = of_g * of_u / SHARE_MAX * 2.0**shift
        level = np.clip(np.round(real.of["level"] / products), 0, STATE_MAX).astype(np.int64)
        arrays = {
            "multiplier": multiplier, "argument_shift": argument_shift, "product_shift": shift, "level":
            level, "table": share_table(real.of["activation"]),
        }  # fmt: skip
        return _joined(real, parts, arrays), products

    def s4d(self, real: RealStage) -> tuple[Stage, Reals]:
        part, unit = self.port(real, "in", MAX_SHIFT)
        x = self.samples(part, "in") * unit  # [S, L, N]
        decay, out, skip = real.of["decay"], real.of["out"], real.of["skip"]
        modes = np.zeros((len(x), *decay.shape), dtype=np.complex128)
        peak, top = np.zeros(decay.shape), np.zeros(len(unit))
        for token in range(x.shape[1]):
            modes = decay * modes + x[:, token, :, None]
            peak = np.maximum(peak, np.abs(modes).max(0))
            top = np.maximum(top, np.abs((out * modes).real.sum(-1) + skip * x[:, token]).max(0))
        right = _bits(HEADROOM * peak / (unit[:, None] * STATE_MAX), -22, 22)
        of_state = unit[:, None] * 2.0**right
        scaled = out * of_state
        finest = np.maximum(
            np.maximum(np.abs(scaled.real), np.abs(scaled.imag)).max(1) / NARROW_MAX,
            np.abs(skip) * unit / FACTOR_MAX,
        )
        finest = np.where(finest > 0, finest, unit)
        shift = _bits(HEADROOM * top / (finest * STATE_MAX), 0, LARGEST_SHIFT)
        arrays = {
            "real": np.trunc(decay.real * TURN_MAX), "imaginary": np.trunc(decay.imag * TURN_MAX),
            "enter_left": np.maximum(-right, 0), "enter_right": np.maximum(right, 0),
            "out_real": np.round(scaled.real / finest[:, None]),
            "out_imaginary": np.round(scaled.imag / finest[:, None]),
            "skip": np.round(skip * unit / finest), "out_shift": shift,
        }  # fmt: skip
        return _joined(real, {"in": (part, unit)}, _whole(arrays)), finest * 2.0**shift

    def ssd(self, real: RealStage) -> tuple[Stage, Reals]:
        of, H, G = real.of, real.of["heads"], real.of["groups"]
        shifted = {**real.bias, "forgetting": real.bias["forgetting"] + of["decay_bias"]}
        real = replace(real, bias=shifted)
        parts = {port: self.port(real, port, 0) for port in real.bias}
        channels = ("values", "keys", "queries")
        raw_unit = np.concatenate([parts[port][1] for port in channels])
        raw = np.concatenate([self.samples(parts[port][0], port) * parts[port][1] for port in channels], -1)
        mixed = np.broadcast_to(of["tap_bias"], raw.shape).copy()
        for k, taps in enumerate(of["taps"]):
            mixed[:, k:] += taps * raw[:, : raw.shape[1] - k]
        # One unit for a head's values, and for a group's keys and queries: they are multiplied and summed.
        widths = [len(real.bias[port]) for port in channels]
        ends = np.cumsum([0, *widths])
        of_values, of_keys, of_queries = (
            _headroom(mixed[..., begin:end].reshape(*mixed.shape[:2], number, -1), NARROW_MAX)
            for begin, end, number in zip(ends[:-1], ends[1:], (H, G, G), strict=True)
        )
        narrow = np.concatenate(
            [
                np.repeat(each, width // len(each))
                for each, width in zip((of_values, of_keys, of_queries), widths, strict=True)
            ]
        )
        taps = of["taps"] * raw_unit / narrow
        tap_shift = np.clip(22 - np.frexp(np.abs(taps).max(0))[1], 0, LARGEST_SHIFT - 16)
        multiplier, argument_shift = _as_multiplier(parts["forgetting"][1] / TABLE_STEP)
        table = fading_table()
        arrays: dict[str, Any] = {
            "taps": np.clip(np.round(taps * 2.0**tap_shift), -FACTOR_MAX, FACTOR_MAX),
            "tap_bias": np.round(of["tap_bias"] / narrow * 2.0**tap_shift), "tap_shift": tap_shift,
            "multiplier": multiplier, "argument_shift": argument_shift, "table": table,
            "cosine": np.trunc(np.cos(of["angles"]) * TURN_MAX),
            "sine": np.trunc(-np.sin(of["angles"]) * TURN_MAX),
            "scaled": int(of["scaled"]), "groups": G,
        }  # fmt: skip
        forgetting = self.samples(parts["forgetting"][0], "forgetting") * parts["forgetting"][1]
        by_group = np.arange(H) // (H // G)
        peak, top = self._ssd_peaks(real, mixed, widths, forgetting)
        of_keys, of_queries = of_keys[by_group], of_queries[by_group]
        product = of_keys * of_values / (SHARE_MAX if of["scaled"] else 1)
        right = _bits(HEADROOM * peak / (product * STATE_MAX), -22, LARGEST_SHIFT)
        of_state = product * 2.0**right
        shift = _bits(HEADROOM * top / (of_state * of_queries * STATE_MAX), 0, LARGEST_SHIFT)
        skip = of["skip"] * of_values / (of_state * of_queries)
        arrays |= {
            "enter_left": np.maximum(-right, 0), "enter_right": np.maximum(right, 0),
            "skip": np.clip(np.round(skip), -(2.0**40), 2.0**40), "out_shift": shift,
        }  # fmt: skip
        unit = np.repeat(of_state * of_queries * 2.0**shift, real.neurons // H)
        return _joined(real, parts, _whole(arrays)), unit

    def _ssd_peaks(
        self, real: RealStage, mixed: Reals, widths: list[int], forgetting: Reals
    ) -> tuple[Reals, Reals]:
        """Largest state and output of each head [H] on the sample."""
        of, H, G = real.of, real.of["heads"], real.of["groups"]
        values, keys, queries = np.split(mixed, np.cumsum(widths)[:-1], axis=-1)
        values = values.reshape(*values.shape[:2], H, -1)
        keys, queries = (
            np.repeat(each.reshape(*each.shape[:2], G, -1), H // G, axis=2) for each in (keys, queries)
        )
        decay = 1 / (1 + np.exp(np.clip(forgetting, -60, 60)))
        turning = np.exp(-1j * of["angles"])[:, None] if len(of["angles"]) else None
        state = np.zeros((len(values), H, keys.shape[-1], values.shape[-1]))
        peak, top = np.zeros(H), np.zeros(H)
        for token in range(values.shape[1]):
            d = decay[:, token, :, None, None]
            if turning is not None:
                first, second = np.split(state, 2, axis=-2)
                turned = (first + 1j * second) * turning
                state = np.concatenate([turned.real, turned.imag], axis=-2)
            entering = keys[:, token, ..., None] * values[:, token, :, None]
            state = d * state + entering * ((1 - d) if of["scaled"] else 1.0)
            read = (state * queries[:, token, ..., None]).sum(-2) + of["skip"][:, None] * values[:, token]
            peak = np.maximum(peak, np.abs(state).max(axis=(0, 2, 3)))
            top = np.maximum(top, np.abs(read).max(axis=(0, 2)))
        return peak, top

    def samples(self, part: Stage, port: str) -> Reals:
        """What arrives at a port on the sample, [S, L, N], in integers."""
        arrived, _ = arrive(self.graph, part, port, self.sent)
        return arrived.reshape(-1, self.graph.tokens_per_sample, arrived.shape[-1]).astype(np.float64)


@dataclass(frozen=True)
class _Fit:
    """Of a port: the scale [N], low bits, and how many channels became too coarse."""

    scale: Reals
    shift: int
    coarse: int

    @property
    def unit(self) -> Reals:
        """Real value of 1."""
        return self.scale / 2.0**self.shift


def _joined(real: RealStage, parts: Mapping[str, tuple[Stage, Reals]], arrays: Mapping[str, Ints]) -> Stage:
    """A stage of several ports from one stage for each of them."""
    synapses = tuple(synapse for part, _ in parts.values() for synapse in part.synapses)
    bias = {port: part.bias[port] for port, (part, _) in parts.items()}
    return Stage(real.name, real.kind, real.shape, synapses, bias, arrays)


# ---- the arrays of a kind ----------------------------------------------------------------------------


def _atmn_numbers(real: RealStage, unit: Reals) -> dict[str, Ints]:
    """A level is at least one step, also where it lies below the resolution of its channel."""
    threshold = real.of["threshold"]
    return {
        "fire": _at_least_one(real.of["fire_at"] * threshold / unit),
        "amplitude": _at_least_one(threshold / unit),
        "decay": np.array(ATMN_DECAYS[real.of["tau"]]),
    }


def _lif_numbers(real: RealStage, unit: Reals) -> dict[str, Ints]:
    of = real.of
    return {
        "fire": _at_least_one(of["fire_at"] * of["threshold"] / unit),
        "amplitude": _at_least_one(of["threshold"] / unit),
        "decay": np.round(of["beta"] * UNITY).astype(np.int64),
        "current_decay": np.round(of["alpha"] * UNITY).astype(np.int64),
        "adaptation": np.round(of["adaptation"] / unit).astype(np.int64),
        "adaptation_decay": np.round(of["rho"] * UNITY).astype(np.int64),
        "most": np.array(of["most"]),
        "signed": np.array(int(of["signed"])),
    }


def _norm_numbers(real: RealStage, unit: Reals) -> dict[str, Ints]:
    gain, offset = real.of["gain"], real.of["offset"]
    of_output = np.where(gain != 0, np.abs(gain), np.maximum(np.abs(offset), 1e-30)) / 2**NORM_BITS
    epsilon = real.of["epsilon"] / float(unit[0]) ** 2
    return {
        "center": np.array(int(real.of["center"])),
        "epsilon": np.array(min(round(epsilon), LARGEST_EPSILON)),
        "sign": np.sign(gain).astype(np.int64),
        "offset": np.clip(np.round(offset / of_output), -STATE_MAX, STATE_MAX).astype(np.int64),
    }


NUMBERS: dict[str, Callable[[RealStage, Reals], dict[str, Ints]]] = {
    "atmn": _atmn_numbers, "lif": _lif_numbers, "sum": lambda real, unit: {}, "norm": _norm_numbers,
}  # fmt: skip


def share_table(activation: str) -> Ints:
    """f of an activation x f(x), times 2^15, at the middle of each of the table's steps.

    A place counts whole steps toward zero, so place k > 0 stands for k to k + 1 steps, and place 0 for both
    sides of zero. The two ends stand for all that lies beyond them.
    """
    shares = SHARES[activation](_places())
    shares[0], shares[-1] = 0, 1
    return np.round(shares * SHARE_MAX).astype(np.int64)


def fading_table() -> Ints:
    """sigmoid(-x) times 2^15, and always below 2^15: nothing is remembered for ever."""
    return np.clip(np.round(SHARE_MAX / (1 + np.exp(_places()))), 0, SHARE_MAX - 1).astype(np.int64)


def _places() -> Reals:
    """The argument in the middle of each step of a table."""
    middle = LARGEST_TABLE // 2
    places = np.arange(-middle, middle + 1)
    return (places + np.sign(places) / 2) * TABLE_STEP


# ---- inputs ------------------------------------------------------------------------------------------


def input_scale(sample: Reals, most: int = INPUT_MAX) -> float:
    """The real value of an input of 1: a power of two if that is exact in so many bits, else max / most.

    Raises:
        InputError: nothing in the sample says how large inputs are.
    """
    largest = float(np.abs(sample).max())
    if largest < 1e-30:
        raise InputError("the sample is all zeros, so it can't set the input's scale; give real inputs")
    for exponent in range(-24, 25):
        step = 2.0**-exponent
        if largest / step > most:
            break
        if np.array_equal(np.round(sample / step) * step, sample):
            return step
    return largest / most


def feature_scales(sample: Reals, most: int = INPUT_MAX) -> Reals:
    """`input_scale` of each feature, [D]; a feature without any value takes that of all.

    Raises:
        InputError: nothing in the sample says how large inputs are.
    """
    common = input_scale(sample, most)
    silent = np.abs(sample).max(axis=0) < 1e-30
    return np.array([
        common if nothing else input_scale(column, most)
        for column, nothing in zip(sample.T, silent, strict=True)
    ])  # fmt: skip


def quantize_inputs(sample: Reals, scale: float | Reals, most: int = INPUT_MAX) -> Ints:
    """Inputs [W, D] as integers, clipped to their width."""
    return np.clip(np.round(sample / scale), -most, most).astype(np.int64)


# ---- numbers -----------------------------------------------------------------------------------------


def _rows(folded: Dense | Kernel | Each, reduce: Callable[..., Any]) -> Reals:
    """Something of each output's weights [N], in magnitude."""
    weight = np.abs(folded.weight)
    if isinstance(folded, Each):
        return weight
    flat = weight.reshape(len(weight), -1)
    found = np.asarray(reduce(flat, axis=1), dtype=np.float64) if flat.size else np.zeros(len(flat))
    if isinstance(folded, Kernel):
        return np.repeat(found, int(np.prod(folded.conv.target[1:])))
    return found


def _reach(folded: Dense | Kernel | Each, sent: Reals) -> Reals:
    """Largest magnitude [N] of what senders of magnitudes `sent` [M] bring."""
    if isinstance(folded, Each):
        return np.abs(folded.weight) * sent
    if isinstance(folded, Dense):
        return np.abs(folded.weight) @ sent
    flat = np.abs(folded.weight).reshape(len(folded.weight), -1).sum(1) * sent.max(initial=0.0)
    return np.repeat(flat, int(np.prod(folded.conv.target[1:])))


def _headroom(x: Reals, most: int) -> Reals:
    """The unit of each head or group, [*, number, *] to [number], with which `HEADROOM` times x fits."""
    axes = tuple(axis for axis in range(x.ndim) if axis != 2)
    largest = np.abs(x).max(axis=axes)
    return HEADROOM * np.where(largest > 0, largest, 1.0) / most


def _bits(ratio: Reals, least: int, most: int) -> Ints:
    """The least power of two that is not below a ratio."""
    return np.clip(np.ceil(np.log2(np.maximum(ratio, 1e-30))), least, most).astype(np.int64)


def _as_multiplier(factor: Reals) -> tuple[Ints, Ints]:
    """Factors [N] >= 0 as multiplier / 2^shift, the multiplier with 23 bits where the shift allows it."""
    exponent = np.frexp(factor)[1]
    shift = np.clip(23 - exponent, 0, LARGEST_SHIFT)
    scaled = np.round(np.minimum(factor, MULTIPLIER_MAX) * 2.0**shift)
    return np.minimum(scaled, MULTIPLIER_MAX).astype(np.int64), shift.astype(np.int64)


def _as_factor(factor: Reals, whole: bool) -> tuple[Ints, Ints]:
    """Factors [N] as integer / 2^right; as a whole number where it is one, or has to be."""
    sizes = np.abs(factor)
    exact = (np.round(factor) == factor) & (sizes <= FACTOR_MAX)
    exponent = np.frexp(sizes)[1]
    right = np.where(exact | whole, 0, np.clip(22 - exponent, 0, 38)).astype(np.int64)
    scaled = np.clip(np.round(factor * 2.0**right), -FACTOR_MAX, FACTOR_MAX)
    return scaled.astype(np.int64), right


def _at_least_one(x: Reals) -> Ints:
    return np.maximum(np.round(np.minimum(x, 2.0**40)), 1).astype(np.int64)


def _whole(arrays: Mapping[str, Any]) -> dict[str, Ints]:
    return {name: np.asarray(array).astype(np.int64) for name, array in arrays.items()}
