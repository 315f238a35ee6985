"""The integer model at speed: the same spikes, values and saturations as `integer.run`, by compiled loops.

    simulator = FastIntegers(graph)
    simulator.run(inputs)                     as integer.run(graph, inputs)

What takes the time is spikes through weights, and neurons over their steps; both are in `kernels/integer.h`.

    spikes through a matrix     event by event: each adds its column, in 16 bits, to 64 neurons at once
    8-bit inputs likewise       each a multiple of its column, in 32 bits
    other values                a product in float32 where no sum can reach 2^24, else in float64
    ATMN, and the LIF-like      all steps of 64 neurons, one after the other
    those that hear themselves  step by step, what comes back event by event
    everything else             as in `integer`, by its functions

On a train of 4 steps, event by event took less time than a float32 product of each step at all rates up to 1,
for 64 to 4096 neurons. A product of the summed train, which is the same only where nothing can be clipped on
the way, would be faster from about one slot in four on.

Where the loops can't be exact (numbers wider than those of a bundle) a stage runs by `integer`, too, and so
does everything where there is no compiler. Samples go through the stages in pieces that a cache holds. Needs
numpy alone.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn import native
from marsnn.errors import InputError
from marsnn.hardware import integer
from marsnn.hardware.arithmetic import saturate
from marsnn.hardware.stages import (
    INPUT,
    INPUT_MAX,
    KINDS,
    LARGEST_LEVEL,
    STATE_MAX,
    UNITY,
    WEIGHT_MAX,
    IntegerGraph,
    IntegerRun,
    Stage,
    Synapse,
)

SOURCES = Path(__file__).parent / "kernels"
BLOCK = 64
"""Neurons that the loops take at once."""
IN_CACHE = 1 << 16
"""Sums of a stage that are simulated before the next stage runs: what one leaves, the next finds."""
EXACT = 2**24
"""Up to here float32 has every whole number."""

Doubles = NDArray[np.float64]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled loops; None, said once, where they can't be built."""
    try:
        path = native.built(SOURCES, "integer", native.source("integer", ()), native.EXACT)
        loaded = ctypes.CDLL(str(path))
    except (native.BuildError, OSError) as error:
        native.say_once(f"{error}; integers run in numpy")
        return None
    tensor, long, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    loaded.arrive.argtypes = [*[tensor] * 4, *[long] * 4, *[number] * 3]
    loaded.atmn.argtypes = [tensor, tensor, ctypes.c_double, tensor, *[long] * 4]
    loaded.lif.argtypes = [*[tensor] * 3, *[long] * 4, *[number] * 5, tensor, ctypes.c_double]
    for name in ("arrive", "atmn", "lif"):
        getattr(loaded, name).restype = long
    return loaded


class FastIntegers:
    """An integer graph made ready: its weights are laid out once, for every run.

    Args:
        graph: of an export, or any other.
        threads: that take pieces of a run, each some whole samples.

    Example:
        >>> import numpy as np
        >>> from marsnn.hardware.fast import FastIntegers
        >>> from marsnn.hardware.stages import IntegerGraph, Stage, Synapse
        >>> weight = np.array([[3, -2]])
        >>> synapse = Synapse("w", "input", "in", "dense", "value", weight)
        >>> stage = Stage("out", "sum", (1,), (synapse,), {"in": np.array([10])}, {})
        >>> FastIntegers(IntegerGraph(1, (2,), (stage,))).run(np.array([[1, 1]])).values["out"]
        array([[11]], dtype=int32)
    """

    def __init__(self, graph: IntegerGraph, threads: int = 1) -> None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        self.graph, self.threads = graph, threads
        self.stages = [_Prepared(graph, stage) for stage in graph.stages]
        lasting = any(stage.carry == "sequence" or KINDS[stage.kind].remembers for stage in graph.stages)
        whole = graph.tokens_per_sample if lasting else 1
        size = max(
            stage.neurons * (graph.steps if stage.takes == "step" else 1) * whole for stage in graph.stages
        )
        self.tokens = whole * max(1, IN_CACHE // size)

    def run(self, inputs: NDArray[np.integer]) -> IntegerRun:
        """Run W tokens of graded input [W, D], as `integer.run` does."""
        graph, W = self.graph, len(inputs)
        if W % graph.tokens_per_sample:
            raise InputError(f"{W} tokens don't divide into samples of {graph.tokens_per_sample}")
        flat = np.asarray(inputs, dtype=np.int64).reshape(W, -1)
        if _largest(flat) <= INPUT_MAX:
            flat = flat.astype(np.int8)
        result = IntegerRun(saturations=dict.fromkeys((stage.name for stage in graph.stages), 0))
        for stage in graph.stages:
            if stage.sends == "train":
                result.spikes[stage.name] = np.empty((W, graph.steps, stage.neurons), dtype=np.int8)
            else:
                result.values[stage.name] = np.empty((W, stage.neurons), dtype=np.int32)

        def piece(begin: int) -> list[int]:
            part = slice(begin, begin + self.tokens)
            sent: dict[str, NDArray[Any]] = {INPUT: flat[part]}
            saturations = []
            for prepared in self.stages:
                name = prepared.stage.name
                output, clipped = prepared.run(sent)
                saturations.append(clipped)
                result.of(name)[part] = output
                sent[name] = result.of(name)[part]
            return saturations

        pieces = range(0, max(W, 1), self.tokens)
        if self.threads == 1 or len(pieces) == 1:
            counted = list(map(piece, pieces))
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                counted = list(pool.map(piece, pieces))
        for name, *each in zip(result.saturations, *counted, strict=True):
            result.saturations[name] = sum(each)
        return result


class _Prepared:
    """One stage, and what its loops read."""

    def __init__(self, graph: IntegerGraph, stage: Stage) -> None:
        self.graph, self.stage = graph, stage
        self.events: dict[str, NDArray[np.int16]] = {}
        self.factors: dict[str, Doubles] = {}
        self.products: dict[str, _Product] = {}
        for synapse in stage.synapses:
            if synapse.form == "dense" and graph.sends(synapse.source) == "value":
                self.products[synapse.name] = _Product(synapse)
            if synapse.form == "dense" and _narrow(graph, synapse):
                self.events[synapse.name] = in_blocks(synapse.weight)
                self.factors[synapse.name] = _factors(synapse, graph.steps)
        # What comes back is one matrix of narrow numbers, or `integer` runs the stage.
        self.back = self.events.get(stage.loops[0].name) if len(stage.loops) == 1 else None
        self.numbers = _numbers(stage) if self.back is not None or not stage.loops else None
        self.kept = threading.local()

    def run(self, sent: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], int]:
        """What the stage sends, and its saturations."""
        loops = library()
        if loops is None:
            wide = {source: sent[source].astype(np.int64) for source in self.sources()}
            return integer.run_stage(self.graph, self.stage, wide)
        stage = self.stage
        totals, clipped = {}, 0
        for port in stage.bias:
            totals[port], more = self.arrive(loops, port, sent)
            clipped += more
        if self.numbers is not None:
            of = (loops, self.graph, stage, self.numbers, totals["in"])
            spikes, more = _atmn(*of) if stage.kind == "atmn" else _lif(*of, self.back)
            return spikes, clipped + more
        arrived = {}
        for port, bias in stage.bias.items():
            whole = totals[port][..., : len(bias)].astype(np.int64) + bias
            if stage.takes == "token":
                whole, more = saturate(whole)
                clipped += more
            arrived[port] = whole
        output, more = integer.POPULATIONS[stage.kind](self.graph, stage, arrived)
        return output, clipped + more

    def sources(self) -> set[str]:
        return {synapse.source for synapse in self.stage.synapses} - {self.stage.name}

    def arrive(self, loops: ctypes.CDLL, port: str, sent: Mapping[str, NDArray[Any]]) -> tuple[Doubles, int]:
        """What a port takes without its bias, [W, columns] or [W, T, columns], and its saturations."""
        graph, stage = self.graph, self.stage
        N, T = len(stage.bias[port]), graph.steps
        columns = -(-N // BLOCK) * BLOCK
        tokens = len(next(iter(sent.values())))
        each = stage.takes == "step"
        shape = (tokens, T, columns) if each else (tokens, columns)
        total = getattr(self.kept, port, None)
        if total is None or total.shape != shape:
            total = np.empty(shape)
            setattr(self.kept, port, total)
        clipped, fresh = 0, True  # nothing is in `total` yet
        own = [each for each in stage.synapses if each.port == port and each.source != stage.name]
        for synapse in sorted(own, key=lambda synapse: synapse.name not in self.events):
            signal = sent[synapse.source]
            if synapse.name in self.events and signal.dtype == np.int8:
                held = synapse.arrival == "held"
                target = np.empty((tokens, columns)) if held else total
                signal = np.ascontiguousarray(signal)
                M, horner = signal.shape[-1], int(synapse.arrival == "horner")
                length = T if signal.ndim == 3 else 1
                clipped += loops.arrive(
                    signal.ctypes.data, self.events[synapse.name].ctypes.data, target.ctypes.data,
                    self.factors[synapse.name].ctypes.data, tokens, length, M, columns, horner, int(each),
                    int(fresh or held),
                )  # fmt: skip
                if held:
                    total[:] = target[:, None] if fresh else total + target[:, None]
                fresh = False
                continue
            if fresh:
                total.fill(0.0)
                fresh = False
            if synapse.name in self.products:
                sums, more = self.products[synapse.name].of(signal)
                clipped += more
                total[..., :N] += sums[:, None] if each else sums
                continue
            arrivals = _reach(synapse, signal)
            if each:
                arrivals = integer.currents(synapse.arrival, arrivals, T)
            else:
                arrivals, more = integer.accumulate(synapse.arrival, arrivals)
                clipped += more
            total[..., :N] += arrivals
        if fresh:
            total.fill(0.0)
        return total, clipped


# ---- synapses ----------------------------------------------------------------------------------------


class _Product:
    """A matrix that takes values, in both types of numbers as they are needed."""

    def __init__(self, synapse: Synapse) -> None:
        self.synapse = synapse
        self.largest = int(np.abs(synapse.weight).sum(1).max(initial=0)) << synapse.shift
        self._weights: dict[Any, NDArray[Any]] = {}

    def of(self, signal: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """Sums [W, N] in whole numbers of a floating type, and their saturations as a token's."""
        largest = self.largest * _largest(signal)
        dtype = np.dtype(np.float32 if largest < EXACT else np.float64)
        if dtype not in self._weights:
            shifted = self.synapse.weight.T << self.synapse.shift
            self._weights[dtype] = np.ascontiguousarray(shifted, dtype=dtype)
        sums = signal.astype(dtype) @ self._weights[dtype]
        if self.synapse.arrival == "held" or largest <= STATE_MAX:
            return sums, 0
        kept = np.clip(sums, -STATE_MAX, STATE_MAX)
        return kept, int(np.count_nonzero(kept != sums))


def _reach(synapse: Synapse, signal: NDArray[Any]) -> NDArray[np.int64]:
    """`integer.reach`; a kernel in float32 where that is exact."""
    if synapse.conv is None:
        return integer.reach(synapse, signal.astype(np.int64))
    kernel = synapse.weight
    sums = int(np.abs(kernel).reshape(len(kernel), -1).sum(1).max(initial=0))
    largest = sums * _largest(signal)
    number = np.float32 if largest < EXACT else np.float64
    return integer.convolve(signal, kernel, synapse.conv, number) << synapse.shift  # type: ignore[arg-type]


def _largest(signal: NDArray[Any]) -> int:
    """The largest magnitude."""
    return max(int(signal.max(initial=0)), -int(signal.min(initial=0)))


def _narrow(graph: IntegerGraph, synapse: Synapse) -> bool:
    """Whether the loops can take 8-bit numbers through a matrix: weights of 8 bits, sums of 32, 52 in all."""
    size = np.abs(synapse.weight)
    sums = int(size.sum(1).max(initial=0)) * LARGEST_LEVEL
    return bool((size <= WEIGHT_MAX).all()) and sums < 2**31 and sums << (synapse.shift + graph.steps) < 2**52


def in_blocks(weight: NDArray[np.int64]) -> NDArray[np.int16]:
    """Weights [N, M] as the loops read them, [blocks, M, 64]."""
    N, M = weight.shape
    padded = np.zeros((-(-N // BLOCK) * BLOCK, M), dtype=np.int16)
    padded[:N] = weight
    return np.ascontiguousarray(padded.reshape(-1, BLOCK, M).swapaxes(1, 2))


def _factors(synapse: Synapse, steps: int) -> Doubles:
    """By what the sums of each step [T] are multiplied."""
    t = np.arange(steps)
    exponent = {"power": t, "stream_up": t, "stream_down": steps - 1 - t}.get(synapse.arrival, 0 * t)
    return np.ldexp(1.0, exponent + synapse.shift)


# ---- populations -------------------------------------------------------------------------------------


def _numbers(stage: Stage) -> Doubles | None:
    """A population's numbers by neuron, padded to whole blocks; None where the loops don't have it."""
    if stage.kind not in POPULATIONS:
        return None
    of = stage.arrays
    rows: list[NDArray[Any]] = [stage.bias["in"], of["fire"], of["amplitude"]]
    decays = [of["decay"]]
    if stage.kind == "lif":
        decays += [of["current_decay"], of["adaptation_decay"]]
        rows += [
            of["decay"] / UNITY,
            of["current_decay"] / UNITY,
            of["adaptation"],
            of["adaptation_decay"] / UNITY,
        ]
    most = 2 * UNITY if stage.kind == "atmn" else UNITY
    fit = all((d >= 0).all() and (d <= most).all() for d in decays)
    fit = fit and all((np.abs(each) <= STATE_MAX).all() for each in rows[1:])
    if not fit or (np.abs(rows[0]) > 2**51).any():
        return None
    numbers = np.zeros((len(rows), -(-stage.neurons // BLOCK) * BLOCK))
    numbers[1:3] = 1.0  # padding never fires
    for row, values in zip(numbers, rows, strict=True):
        row[: stage.neurons] = values
    return numbers


def _atmn(
    loops: ctypes.CDLL, graph: IntegerGraph, stage: Stage, numbers: Doubles, sums: Doubles
) -> tuple[NDArray[np.int8], int]:
    spikes = np.empty((len(sums), graph.steps, stage.neurons), dtype=np.int8)
    clipped = loops.atmn(
        sums.ctypes.data, numbers.ctypes.data, stage.number("decay") / UNITY, spikes.ctypes.data,
        len(sums), graph.steps, stage.neurons, sums.shape[-1],
    )  # fmt: skip
    return spikes, clipped


def _lif(
    loops: ctypes.CDLL,
    graph: IntegerGraph,
    stage: Stage,
    numbers: Doubles,
    currents: Doubles,
    back: NDArray[np.int16] | None,
) -> tuple[NDArray[np.int8], int]:
    """`back`: weights by which its spikes come back, in blocks."""
    tokens = len(currents)
    spikes = np.empty((tokens, graph.steps, stage.neurons), dtype=np.int8)
    length = graph.together(stage.carry)
    clipped = loops.lif(
        currents.ctypes.data, numbers.ctypes.data, spikes.ctypes.data, tokens // length, length * graph.steps,
        stage.neurons, currents.shape[-1], stage.number("most"), stage.number("signed"),
        int(stage.reset == "zero"), int(stage.arrays["current_decay"].any()),
        int(stage.arrays["adaptation"].any()), None if back is None else back.ctypes.data,
        0.0 if back is None else float(2 ** stage.loops[0].shift),
    )  # fmt: skip
    return spikes, clipped


POPULATIONS = ("atmn", "lif")
"""Kinds that have a loop of their own."""
