"""Random integer graphs that are kept busy: every kind, form and arrival, skips, delays, saturation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from marsnn.hardware import integer
from marsnn.hardware.stages import (
    FACTOR_MAX,
    INPUT,
    INPUT_MAX,
    KINDS,
    LARGEST_TABLE,
    SHARE_MAX,
    STATE_MAX,
    TURN_MAX,
    UNITY,
    WEIGHT_MAX,
    WIDE_INPUT_MAX,
    Convolution,
    IntegerGraph,
    Stage,
    Synapse,
)
from tests.hardware.case import Case

LIF_NAMES = ("lif", "cuba", "alif", "integer", "ternary")


class Maker:
    """A graph that grows stage by stage, each on what the stages before it really send."""

    def __init__(
        self, seed: int, steps: int, shape: tuple[int, ...], samples: int, per_sample: int,
        saturating: bool = False, wide: bool = False,
    ) -> None:  # fmt: skip
        self.rng = np.random.default_rng(seed)
        self.own = np.random.default_rng(9000 + seed)  # of loops
        self.saturating = saturating
        most = WIDE_INPUT_MAX if wide else INPUT_MAX
        self.graph = IntegerGraph(steps, shape, (), per_sample, most)
        self.inputs = self.rng.integers(-most, most + 1, (samples * per_sample, int(np.prod(shape))))
        self.inputs[self.rng.random(self.inputs.shape) < 0.2] = 0
        self.sent: dict[str, np.ndarray] = {INPUT: self.inputs}
        self.shapes: dict[str, tuple[int, ...]] = {INPUT: shape}

    def case(self, name: str) -> Case:
        return Case(name, self.graph, self.inputs)

    def weighable(self, source: str) -> bool:
        """Whether a matrix of weights may take what a sender sends."""
        if source == INPUT:
            return self.graph.input_max <= INPUT_MAX
        return self.graph[source].kind in ("atmn", "lif", "count")

    # synapses

    def arrival(self, kind: str, source: str) -> str:
        step = KINDS[kind].takes == "step"
        if self.graph.sends(source) == "value":
            return "held" if step else "value"
        stage = self.graph[source]
        decay = stage.number("decay") if stage.kind == "atmn" else UNITY
        if decay == UNITY:
            return "stream" if step else "sum"
        if decay == 2 * UNITY:
            return "stream_down" if step else "horner"
        return "stream_up" if step else "power"

    def shift(self) -> int:
        return int(self.rng.integers(8, 12)) if self.saturating else int(self.rng.integers(0, 5))

    def codes(self, *shape: int) -> np.ndarray:
        weight = self.rng.integers(-WEIGHT_MAX, WEIGHT_MAX + 1, shape)
        weight[self.rng.random(weight.shape) < 0.25] = 0
        return weight

    def dense(self, name: str, kind: str, port: str, source: str, size: int) -> Synapse:
        weight = self.codes(size, self.graph.size(source))
        return Synapse(name, source, port, "dense", self.arrival(kind, source), weight, self.shift())

    def each(self, name: str, kind: str, port: str, source: str) -> Synapse:
        """Factors that bring what is sent to some thousands."""
        rng, size = self.rng, self.graph.size(source)
        sent = int(max(np.abs(self.sent[source]).max(), 1))
        target = 2 ** int(rng.integers(21, 23) if self.saturating else rng.integers(9, 15))
        right = rng.integers(0, 20, size) if sent > 1 else rng.integers(0, 4, size)
        factor = rng.uniform(-1.5, 1.5, size) * target / sent * 2.0**right
        factor = np.clip(np.round(factor), -FACTOR_MAX, FACTOR_MAX).astype(np.int64)
        return Synapse(name, source, port, "each", self.arrival(kind, source), factor, 0, right)

    def conv(
        self, name: str, kind: str, port: str, source: str, target: tuple[int, ...] | None = None
    ) -> Synapse | None:
        """A kernel; None where no kernel of the ones tried ends in the shape of `target`."""
        rng, image = self.rng, self.shapes[source]
        rank = len(image) - 1
        if rank not in (1, 2):
            return None
        for _ in range(20):
            size, stride, dilation, padding = (
                tuple(int(x) for x in rng.integers(*ends, rank)) for ends in ((1, 4), (1, 3), (1, 3), (0, 3))
            )
            out = tuple(
                (n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, p, d, k, s in zip(image[1:], padding, dilation, size, stride, strict=True)
            )
            groups = int(rng.choice([g for g in (1, 2, image[0]) if image[0] % g == 0]))
            channels = groups * int(rng.integers(1, max(2, 5 // groups)))
            shape = (channels, *out)
            if target is not None:
                if len(target) != rank + 1 or target[0] % groups or target[1:] != out:
                    continue
                shape = target
            if min(out) < 1 or (target is None and np.prod(shape) < np.prod(image) / 4):
                continue
            weight = self.codes(shape[0], image[0] // groups, *size)
            moves = Convolution(image, shape, stride, padding, dilation, groups)
            return Synapse(
                name, source, port, "conv", self.arrival(kind, source), weight, self.shift(), None, moves
            )
        return None

    def synapses(
        self,
        name: str,
        kind: str,
        port: str,
        shape: tuple[int, ...] | None,
        sources: Sequence[str],
        flat: int,
    ) -> tuple[tuple[Synapse, ...], tuple[int, ...]]:
        """From each source to a port; the first one sets the shape where none is given.

        A source that has neither weights nor the port's size can't be joined and is left out.
        """
        found: list[Synapse] = []
        for source in [*sources, INPUT, *reversed(list(self.sent))]:
            if len(found) >= len(sources) or (found and source not in sources):
                break
            for form in self.forms(source, shape):
                label, size = f"{name}.{port}{len(found)}", int(np.prod(shape)) if shape else flat
                if form == "dense":
                    synapse: Synapse | None = self.dense(label, kind, port, source, size)
                elif form == "conv":
                    synapse = self.conv(label, kind, port, source, shape)
                else:
                    synapse = self.each(label, kind, port, source)
                if synapse is None:
                    continue
                if shape is None:
                    shape = (flat,) if form == "dense" else self.shapes[source]
                    shape = synapse.conv.target if synapse.conv is not None else shape
                found.append(synapse)
                break
        assert found
        assert shape is not None
        return tuple(found), shape

    def forms(self, source: str, shape: tuple[int, ...] | None) -> list[str]:
        """How a source may be joined to a port of some shape, in the order in which to try."""
        found = []
        if self.weighable(source):
            found += ["conv"] if len(self.shapes[source]) > 1 else []
            found += ["dense"] if self.graph.size(source) <= 400 else []
        if shape is None or self.graph.size(source) == np.prod(shape):
            found.append("each")
        return found if self.rng.random() < 0.5 else found[::-1]

    def loop(self, name: str, shape: tuple[int, ...]) -> tuple[Synapse, ...]:
        """By which half of the populations hear themselves: a matrix, a kernel, or each neuron itself."""
        rng, N = self.own, int(np.prod(shape))
        form = str(rng.choice(["", "", "dense", "conv" if len(shape) > 1 else "dense", "each"]))
        if not form or (form == "dense" and N > 400):
            return ()
        conv, right, axes = None, None, len(shape) - 1
        weights = {"dense": (N, N), "conv": (shape[0], shape[0], *[3] * axes), "each": (N,)}[form]
        weight = rng.integers(-WEIGHT_MAX, WEIGHT_MAX + 1, weights)
        weight[rng.random(weights) < 0.25] = 0
        shift = int(rng.integers(8, 12) if self.saturating else rng.integers(0, 4))
        if form == "conv":
            one = (1,) * axes
            conv = Convolution(shape, shape, one, one, one)
        if form == "each":
            weight, shift, right = weight * 2**shift, 0, rng.integers(0, 4, N)
        return (Synapse(f"{name}.loop", name, "in", form, "stream", weight, shift, right, conv),)

    # stages

    def add(self, kind: str, sources: Sequence[str], flat: int, like: str | None = None) -> str:
        """A stage behind some of the others; `like` is a kind of LIF neuron."""
        name = f"s{len(self.graph.stages)}.{like or kind}"
        rng = self.rng
        synapses: tuple[Synapse, ...] = ()
        sizes: dict[str, int] = {}
        shape: tuple[int, ...] | None = None
        axes: dict[str, int] = {}
        if kind == "ssd":
            heads = int(rng.choice([1, 2, 4]))
            groups = int(rng.choice([g for g in (1, 2, 4) if heads % g == 0]))
            columns = max(1, flat // heads)
            axes = {
                "N": heads * columns,
                "H": heads,
                "G": groups * 2 * int(rng.integers(1, 3)),
                "groups": groups,
            }
        for port, axis in KINDS[kind].ports.items():
            wanted = (axes[axis],) if axis in axes else shape
            own, made = self.synapses(name, kind, port, wanted, sources, flat)
            shape = made if axis == "N" else shape
            sizes[port] = int(np.prod(made))
            synapses += own
        assert shape is not None
        if kind == "lif":
            synapses += self.loop(name, shape)
        size = 2 ** int(rng.integers(16, 20)) if self.saturating else 2 ** int(rng.integers(3, 11))
        bias = {port: rng.integers(-size, size + 1, n) for port, n in sizes.items()}
        stage = Stage(
            name, kind, shape, synapses, bias, {},
            str(rng.choice(["subtract", "zero"])), str(rng.choice(["token", "sequence"])),
        )  # fmt: skip
        arrived = {port: integer.arrive(self.graph, stage, port, self.sent)[0] for port in sizes}
        arrays = getattr(self, kind)(stage, arrived, axes=axes, like=like)
        stage = replace(
            stage, arrays={key: np.asarray(array, dtype=np.int64) for key, array in arrays.items()}
        )
        self.graph = replace(self.graph, stages=(*self.graph.stages, stage))
        self.shapes[name] = shape
        self.sent[name], _ = integer.run_stage(self.graph, stage, self.sent)
        return name

    def levels(self, arriving: np.ndarray, neurons: int) -> np.ndarray:
        """At a quantile of what really arrives, so that neurons fire, but not always."""
        typical = np.maximum(1, np.quantile(np.abs(arriving), self.rng.uniform(0.2, 0.6)))
        level = self.rng.uniform(0.5, 1.5, neurons) * typical
        return np.clip(level, 1, STATE_MAX // 2).astype(np.int64)

    def atmn(self, stage: Stage, arrived: dict, **_: Any) -> dict:
        level = self.levels(arrived["in"], stage.neurons)
        ratio = float(self.rng.choice([0.5, 1.0, 1.0, 1.3]))
        decay = self.rng.choice([2 * UNITY, UNITY, UNITY // 2])
        return {"fire": np.maximum(level * ratio, 1), "amplitude": level, "decay": decay}

    def count(self, stage: Stage, arrived: dict, **_: Any) -> dict:
        K = int(self.rng.integers(1, 6))
        levels = np.stack([self.levels(arrived["in"], stage.neurons) for _ in range(K)], 1)
        levels[self.rng.random(levels.shape) < 0.1] = STATE_MAX + 1
        return {"levels": levels, "worth": self.rng.integers(1, 40, K)}

    def lif(self, stage: Stage, arrived: dict, like: str = "lif", **_: Any) -> dict:
        rng, N = self.rng, stage.neurons
        level = self.levels(arrived["in"], N)
        ratio = float(rng.choice([0.5, 1.0, 1.3]))

        def decays(top: int = UNITY) -> np.ndarray:
            found = rng.integers(0, top + 1, N)
            found[rng.random(N) < 0.1] = rng.choice([0, top])
            return found

        none = np.zeros(N, dtype=np.int64)
        adapts = like == "alif" or (like == "integer" and rng.random() < 0.5)
        return {
            "fire": np.maximum(level * ratio, 1),
            "amplitude": level,
            "decay": decays(),
            "current_decay": decays(UNITY - 500) if like == "cuba" or rng.random() < 0.2 else none,
            "adaptation": (level * rng.uniform(0, 1.5, N)).astype(np.int64) if adapts else none,
            "adaptation_decay": decays() if adapts else none,
            "most": int(rng.integers(2, 6)) if like == "integer" else 1,
            "signed": {"ternary": 1, "integer": int(rng.integers(0, 2))}.get(like, 0),
        }

    def sum(self, stage: Stage, arrived: dict, **_: Any) -> dict:
        return {}

    def places(self, arrived: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
        """Multipliers and shifts with which the largest argument rests inside a table, or beyond it."""
        largest = np.maximum(np.abs(arrived).max(axis=0), 1)
        shift = self.rng.integers(0, 16, len(largest))
        factor = entries // 2 * self.rng.uniform(0.3, 2.0, len(largest)) * 2.0**shift / largest
        return np.clip(factor, 1, 2**24 - 1).astype(np.int64), shift

    def gate(self, stage: Stage, arrived: dict, **_: Any) -> dict:
        """The table is random, so that each of its places can be told from the next."""
        rng, N = self.rng, stage.neurons
        g, u = (np.maximum(np.abs(arrived[port]).max(axis=0), 1) for port in ("argument", "factor"))
        entries = int(rng.choice([3, 101, 511, LARGEST_TABLE]))
        multiplier, shift = self.places(arrived["argument"], entries)
        bits = np.floor(np.log2(g.astype(float) * u * SHARE_MAX)).astype(np.int64)
        product_shift = np.clip(bits - rng.integers(8, 26, N), 0, 62)
        largest = np.minimum(g * u * SHARE_MAX >> product_shift, STATE_MAX)
        return {
            "multiplier": multiplier, "argument_shift": shift, "product_shift": product_shift,
            "level": (largest * rng.uniform(0, 0.2, N)).astype(np.int64) * int(rng.integers(0, 2)),
            "table": rng.integers(0, SHARE_MAX + 1, entries),
        }  # fmt: skip

    def norm(self, stage: Stage, arrived: dict, **_: Any) -> dict:
        rng, N = self.rng, stage.neurons
        power = int(np.mean(arrived["in"].astype(float) ** 2))
        return {
            "center": rng.integers(0, 2),
            "epsilon": rng.integers(0, max(min(power, 2**45), 1) + 1) if rng.random() < 0.7 else 0,
            "sign": rng.choice([-1, 1, 1, 1, 0], N),
            "offset": rng.integers(-5000, 5001, N),
        }

    def s4d(self, stage: Stage, arrived: dict, **_: Any) -> dict:
        rng, N, M = self.rng, stage.neurons, int(self.rng.integers(1, 5))
        size = np.trunc(rng.uniform(0.5, 1.0, (N, M)) * TURN_MAX)
        angle = rng.uniform(-np.pi, np.pi, (N, M))
        x = int(np.abs(arrived["in"]).max()) + 1
        bits = 23 - x.bit_length() - (0 if self.saturating else 3)
        enter = np.clip(bits - rng.integers(0, 4, (N, M)), -22, 22)
        read = rng.integers(6, 15, (N, 1))
        return {
            "real": np.trunc(size * np.cos(angle)), "imaginary": np.trunc(size * np.sin(angle)),
            "enter_left": np.maximum(enter, 0), "enter_right": np.maximum(-enter, 0),
            "out_real": rng.integers(-(2**read), 2**read + 1, (N, M)),
            "out_imaginary": rng.integers(-(2**read), 2**read + 1, (N, M)),
            "skip": rng.integers(-FACTOR_MAX, FACTOR_MAX + 1, N) >> rng.integers(0, 22, N),
            "out_shift": np.clip(read[:, 0] - rng.integers(0, 6, N), 0, 62),
        }  # fmt: skip

    def ssd(self, stage: Stage, arrived: dict, axes: dict, **_: Any) -> dict:
        rng, H, state = self.rng, axes["H"], axes["G"] // axes["groups"]
        ports = ("values", "keys", "queries")
        raw = np.maximum(np.concatenate([np.abs(arrived[port]).max(axis=0) for port in ports]), 1)
        K, C = int(rng.integers(1, 5)), len(raw)
        entries = int(rng.choice([3, 101, LARGEST_TABLE]))
        multiplier, argument_shift = self.places(arrived["forgetting"], entries)
        tap_shift = rng.integers(4, 12, C)
        # up to some thousands behind the convolution, or, where it saturates, beyond 16 bits
        target = 2.0 ** (16 if self.saturating else 12)
        taps = rng.uniform(-1, 1, (K, C)) * target * 2.0**tap_shift / raw
        turns = rng.random() < 0.5
        angle = rng.uniform(-np.pi, np.pi, state // 2)
        scaled = int(rng.integers(0, 2))
        enter = (15 if scaled else 0) + rng.integers(-1, 6, H) + (2 if self.saturating else 0)
        return {
            "taps": np.clip(np.round(taps), -FACTOR_MAX, FACTOR_MAX),
            "tap_bias": rng.integers(-500, 501, C) * 2**tap_shift,
            "tap_shift": tap_shift,
            "multiplier": multiplier, "argument_shift": argument_shift,
            "table": rng.integers(0, SHARE_MAX, entries),
            "cosine": np.trunc(np.cos(angle) * TURN_MAX) if turns else [],
            "sine": np.trunc(np.sin(angle) * TURN_MAX) if turns else [],
            "scaled": scaled, "groups": axes["groups"],
            "enter_left": np.maximum(-enter, 0), "enter_right": np.maximum(enter, 0),
            "skip": rng.integers(-(2**22), 2**22, H),
            "out_shift": rng.integers(10, 18, H),
        }  # fmt: skip


def random_case(seed: int, large: bool = False) -> Case:
    """2 to 7 stages, T from 1 to 8: every kind, form and arrival, skips, several synapses to a port.

    Every fourth saturates. A large one has hundreds of neurons, and mostly ones that spike.
    """
    rng = np.random.default_rng(5000 + seed)
    steps = (4, 8)[seed % 2] if large else 1 + (seed // 2) % 8
    stages = 5 if large else 2 + seed % 6
    flat = int(rng.integers(200, 321)) if large else int(rng.integers(3, 10))
    pixel = int(rng.integers(9, 12)) if large else int(rng.integers(3, 5))
    shapes = [(flat,), (2, pixel * pixel // 2) if large else (2, 5), (2, pixel, pixel)]
    shape = shapes[int(rng.integers(0, 3))]
    samples, per_sample = (12, 2) if large else (int(rng.integers(1, 4)), int(rng.integers(1, 5)))
    maker = Maker(
        seed, steps, shape, samples, per_sample, saturating=seed % 4 == 3, wide=not large and seed % 9 == 8
    )
    likes = [LIF_NAMES[(seed + k) % 5] for k in range(stages)]
    others = ["count", "sum", "gate", "norm", "s4d", "ssd"]
    for k in range(stages):
        chance = 0.8 if large else 0.5
        spiking = rng.random() < chance or (k == 1 and maker.graph.stages[0].sends == "value")
        spiking = spiking or (k == 0 and not maker.weighable(INPUT))  # a train that weights can take
        kind = str(rng.choice(["atmn", "lif"])) if spiking else str(rng.choice(others))
        width = flat if large else int(rng.integers(2, 12))
        senders = list(maker.sent)
        number = int(rng.choice([1, 1, 2, 3]))
        sources = [senders[-1], *rng.permutation(senders[:-1])[: number - 1].tolist()]
        maker.add(kind, sources, width, likes[k] if kind == "lif" else None)
    return maker.case(f"{'large' if large else 'random'}{seed}")
