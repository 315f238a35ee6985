"""The integer model of stock Lava: its LIF behind its Dense or Conv, as lava-dl's netx builds them.

A model is a chain of layers. A layer is a matrix or a convolution and the current-based LIF neurons that it
drives, which have one threshold and one pair of decays; behind a matrix they may hear themselves through a
second one. All numbers are integers of the widths below.

| quantity                | width            | remark                                                     |
|-------------------------|------------------|------------------------------------------------------------|
| weight                  | 8 bit and a sign | `lava_weights` says what Lava makes of them                |
| bias, threshold         | 13 bit, 17 bit   | mantissas: shifted left by 6                               |
| current u               | 24 bit           | wraps around at 2^23; every wrap is counted                |
| voltage v               | 24 bit           | clipped to +-(2^23 - 1); every clip is counted             |
| decays                  | 12 bit           | 0 keeps all, 4096 keeps nothing                            |

    a[n] = weight @ spikes[n - 1]                    the spikes of one step before: a synapse takes a step
           + recurrent @ s[n - 1]                    its own, where it hears itself
    u[n] = wrap(leak(u[n - 1], iDecay) + (a[n] << 6))
    v[n] = clip(leak(v[n - 1], vDecay) + u[n] + (bias << 6))
    s[n] = 1 where v[n] > threshold << 6, else 0;    v[n] = 0 where s[n] = 1

    leak(x, decay) = x (4096 - decay) / 4096         rounded toward zero

What clears u and v does not reach the synapses: s[n - 1] comes back into cleared states. Where the model
`drops` them, the host writes zeros over the recurrent sums before that step.

Source: `PyLifModelBitAcc`, `PyLifResetModelBitAcc`, `PyDenseModelBitAcc` and `PyConvModelFixed` of lava-nc
0.10.0 and `netx` of lava-dl 0.6.0 (BSD-3), whose `du = iDecay - 1` meets the one that the neuron adds.
Differs in: nothing known; `verify_netx` compares every step. Needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from marsnn.errors import InputError, ShapeError

Ints = NDArray[np.int64]

WIDTH = 2**23
STATE_MAX = WIDTH - 1
ALIGN = 6
"""Threshold, bias and synaptic sums are shifted left by so many bits."""
UNITY = 4096
BIAS_MAX = 4095
THRESHOLD_MAX = 2**17 - 1
INPUT_MAX = 127


@dataclass(frozen=True)
class Layer:
    """One synapse and the neurons behind it, with the integers as they stand in the file."""

    name: str
    weight: Ints  # dense [N, M]; conv [C, M / groups, height, width]
    bias: Ints  # [N] or [C], mantissas
    threshold: int  # mantissa
    current_decay: int  # iDecay
    voltage_decay: int  # vDecay
    shape: tuple[int, ...]  # of its neurons: (N,), or (C, H, W)
    stride: tuple[int, int] = (1, 1)  # conv: (y, x), as the two below
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    recurrent: Ints | None = None  # [N, N], of its own spikes one step before; dense alone

    @property
    def kind(self) -> Literal["dense", "conv"]:
        return "conv" if self.weight.ndim == 4 else "dense"


@dataclass
class LoihiRun:
    """What a run did.

    Attributes:
        spikes: layer name -> [W, T, *N] of 0 and 1, or [S, *N] at the chip's own steps.
        wraps: layer name -> how often a current left 24 bits and wrapped around.
        clips: layer name -> how often a voltage was clipped.
    """

    spikes: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    wraps: dict[str, int] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LoihiModel:
    """A chain of layers with its clock; runs in numpy alone.

    Attributes:
        layers: in order.
        input_shape: (M,) or (C, H, W).
        message_bits: 0 where the input is spikes, 8 where it is graded, -127 to 127.
        input_max: the largest magnitude of an input; 1 where it is spikes.
        steps: T, for how many steps a token is held.
        reset_interval: all states are cleared every so many steps, or never (None). Layer i (from 0) is
            cleared at the steps n with n = reset_offset + 1 + i modulo the interval, counted from 1, before
            what arrives is added.
        reset_offset: as `netx.hdf5.Network` takes it.
        drops: where states are cleared, what is on its way back to its own layer is dropped with them. Lava
            does not do that by itself: the host has to.
    """

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    message_bits: int = 0
    input_max: int = 1
    steps: int = 1
    reset_interval: int | None = None
    reset_offset: int = 1
    drops: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Layer names in order."""
        return tuple(layer.name for layer in self.layers)

    def arrives(self, behind: bool = False) -> tuple[int, int]:
        """The least and the largest of what can come into the first layer, or into one behind another."""
        return (0, 1) if behind or not self.message_bits else (-self.input_max, self.input_max)

    def run(self, inputs: NDArray[np.integer]) -> LoihiRun:
        """Tokens [W, *D], each held for T steps, one after the other: spikes [W, T, *N].

        Layer i answers a token's step t at the chip's step 2 + i + w T + t: the delay of its synapses and of
        those before it is taken out.
        """
        chip = self.run_chip(inputs)
        tokens = len(inputs)
        chip.spikes = {
            name: train[1 + index : 1 + index + tokens * self.steps].reshape(
                tokens, self.steps, *train.shape[1:]
            )
            for index, (name, train) in enumerate(chip.spikes.items())
        }
        return chip

    def run_chip(self, inputs: NDArray[np.integer]) -> LoihiRun:
        """As `run`, with the spikes at the chip's own steps 1 to S = W T + layers: [S, *N]."""
        data = np.asarray(inputs)
        if data.shape[1:] != self.input_shape or len(data) < 1:
            expected = ", ".join(map(str, self.input_shape))
            raise ShapeError(f"expected tokens [W, {expected}], got {list(data.shape)}")
        if data.dtype.kind not in "iub":
            raise InputError(f"expected tokens of integers, got {data.dtype}; divide by the scale and round")
        least, largest = self.arrives()
        if data.min() < least or data.max() > largest:
            raise InputError(
                f"tokens must lie in {least} to {largest}, got {int(data.min())} to {int(data.max())}"
            )
        total = len(data) * self.steps + len(self.layers)
        train = np.zeros((total, *self.input_shape), dtype=np.int64)
        train[: len(data) * self.steps] = np.repeat(data, self.steps, axis=0)
        result = LoihiRun()
        for index, layer in enumerate(self.layers):
            arriving = np.concatenate([np.zeros_like(train[:1]), train[:-1]])
            clear_at = None if self.reset_interval is None else (self.reset_offset + 1 + index)
            train, wraps, clips = run_layer(layer, arriving, self.reset_interval, clear_at, self.drops)
            result.spikes[layer.name] = train.astype(np.int8)
            result.wraps[layer.name], result.clips[layer.name] = wraps, clips
        return result


def run_layer(
    layer: Layer,
    arriving: Ints,
    interval: int | None = None,
    clear_at: int | None = None,
    drops: bool = False,
    told: Ints | None = None,
) -> tuple[Ints, int, int]:
    """Spikes [S, *N] of a layer for what arrives at its synapses at each step [S, *M], wraps and clips.

    Args:
        layer: the layer.
        arriving: what its senders sent one step before.
        interval, clear_at: states are cleared at the steps n = clear_at modulo the interval, from 1.
        drops: what the layer's own spikes would bring back at those steps is dropped.
        told: spikes [S, N] that come back in the place of its own.
    """
    sums = synapse(layer, arriving)
    own: tuple[NDArray[np.float64], int] | None = None
    if layer.recurrent is not None:
        codes, exponent = lava_weights(layer.recurrent, layer.weight)
        own = codes.astype(np.float64), exponent  # once, not at every step
    bias = aligned(layer.bias).reshape(-1, *[1] * (sums.ndim - 2))
    fire = layer.threshold << ALIGN
    u = np.zeros_like(sums[0])
    v = np.zeros_like(u)
    spikes = np.zeros_like(sums)
    wraps = clips = 0
    for row, a in enumerate(sums):
        cleared = interval is not None and clear_at is not None and (row + 1 - clear_at) % interval == 0
        if cleared:
            u, v = np.zeros_like(u), np.zeros_like(v)
        if own is not None and row and not (cleared and drops):
            back = spikes if told is None else told
            a = int32(a + dense(back[row - 1][None], *own)[0])
        u, wrapped = wrap(int32(leak(u, layer.current_decay) + aligned(a)))
        v, clipped = clip(int32(leak(v, layer.voltage_decay) + u + bias))
        s = fires(v, fire)
        spikes[row] = s
        v = after(v, s, fire)
        wraps, clips = wraps + wrapped, clips + clipped
    return spikes, wraps, clips


def excess(layer: Layer, least: int, largest: int, interval: float) -> float:
    """By what factor the worst case exceeds 24 bits, over all inputs from `least` to `largest`; to 1 is safe.

    Counted are currents of both signs, and voltages below zero. A voltage that is clipped above fires all the
    same, for the highest threshold lies below that.

    Args:
        layer: with its weights.
        least, largest: of one input; least is not above 0.
        interval: steps from clearing to clearing.
    """
    rows = layer.weight.reshape(len(layer.weight), -1).astype(np.float64)
    up, down = np.maximum(rows, 0).sum(axis=1), np.maximum(-rows, 0).sum(axis=1)
    high, low = up * largest - down * least, down * largest - up * least
    if layer.recurrent is not None:
        own = layer.recurrent.astype(np.float64)
        high, low = high + np.maximum(own, 0).sum(axis=1), low + np.maximum(-own, 0).sum(axis=1)
    high, low = (each * _lasting(layer.current_decay, interval) for each in (high, low))
    voltage = (low + np.maximum(-layer.bias, 0)) * _lasting(layer.voltage_decay, interval)
    return float(np.maximum(np.maximum(high, low), voltage).max()) * 2**ALIGN / STATE_MAX


def _lasting(decay: int, interval: float) -> float:
    """The sum of the shares that are left of 1 after 0, 1, 2, ... steps; `interval` of them."""
    return min(interval, UNITY / decay if decay else math.inf)


# ---- arithmetic: each of these is a place where a wrong model would differ ---------------------------


def int32(x: Ints) -> Ints:
    """As Lava's 32-bit integers hold it."""
    return x.astype(np.int32).astype(np.int64)


def aligned(x: Ints) -> Ints:
    """To the units of the states."""
    return int32(x << ALIGN)


def leak(state: Ints, decay: int) -> Ints:
    """What one step of decay leaves, rounded toward zero."""
    return np.sign(state) * ((np.abs(state) * (UNITY - decay)) >> 12)


def wrap(u: Ints) -> tuple[Ints, int]:
    """Wrap a current once around 24 bits, 2^23 itself staying, and say how many values were wrapped."""
    wrapped = np.where(u > WIDTH, u - 2 * WIDTH, u)
    wrapped = np.where(wrapped <= -WIDTH, u + 2 * WIDTH, wrapped)
    return wrapped, int(np.count_nonzero(wrapped != u))


def clip(v: Ints) -> tuple[Ints, int]:
    """Clip a voltage to 24 bits and say how many values were clipped."""
    clipped = np.clip(v, -STATE_MAX, STATE_MAX)
    return clipped, int(np.count_nonzero(clipped != v))


def fires(v: Ints, fire: int) -> NDArray[np.bool_]:
    """Above the threshold, not at it."""
    return v > fire


def after(v: Ints, s: NDArray[np.bool_], fire: int) -> Ints:
    """The voltage after the spikes s: zero where it fired, whatever the threshold."""
    return np.where(s, 0, v)


def synapse(layer: Layer, arriving: Ints) -> Ints:
    """Synaptic sums [S, *N] of [S, *M]; exact before Lava's own rounding, float64 holds integers to 2^53."""
    if layer.kind == "conv":
        return wrap24(convolve(layer, arriving))
    flat = arriving.reshape(len(arriving), -1)
    return dense(flat, *lava_weights(layer.weight, layer.recurrent))


def dense(arriving: Ints, weight: Ints | NDArray[np.float64], exponent: int) -> Ints:
    """Sums [S, N] of [S, M] by one Dense, which shifts its sum and not its weights."""
    matrix = weight.T.astype(np.float64, copy=False)
    sums = int32((arriving.astype(np.float64) @ matrix).astype(np.int64))
    return int32(sums << exponent) if exponent > 0 else sums >> -exponent


def lava_weights(weight: Ints, beside: Ints | None = None) -> tuple[Ints, int]:
    """What netx and Dense make of a matrix: the codes that are summed, and the exponent of 2 of the sum.

    netx shifts the matrix up into 8 bits (9 with a sign), and Dense drops bits below those that netx counted.
    This keeps every weight but those of a matrix without a positive one: there a least weight of -2^k becomes
    -256, which Dense holds as -255, and drops bits of.

    Args:
        weight: the matrix.
        beside: the other one of a layer that hears itself: netx shifts the two by the same, as if they were
            one, and each has a Dense of its own, which looks at its own signs.

    Raises:
        InputError: nothing but zeros, on which netx fails.
    """
    both = weight.reshape(-1) if beside is None else np.concatenate([weight, beside], axis=None)
    largest, least = int(both.max()), int(both.min())
    if largest == least == 0:
        raise InputError("all weights are zero, which netx can't load")
    if (largest > 254 and least < 0) or (least < -256 and largest > 0):
        weight, both = np.clip(weight, -256, 254), np.clip(both, -256, 254)
        largest, least = int(both.max()), int(both.min())
    signed = largest >= 0 > least  # as netx sees it
    if signed:
        scale = min(127 / largest if largest else math.inf, -128 / least)
    else:
        scale = -256 / least if least < 0 else 255 / largest
    scale_bits = math.floor(math.log2(scale)) + signed
    together = int(np.bitwise_or.reduce(both, axis=None))
    trailing = min((together & -together).bit_length() - 1, 8)  # bits that are 0 in all of them
    weight_bits = 8 - scale_bits - (trailing - signed)
    codes = shifted_left(weight, scale_bits)
    # Dense decides again, and calls a matrix without a positive weight inhibitory.
    negative = codes.max() <= 0 and codes.min() < 0
    mixed = codes.min() < 0 < codes.max()
    codes = -codes if negative else codes
    codes = np.clip(codes, -256 if mixed else 0, 255)
    dropped = 8 - weight_bits + mixed
    codes = shifted_left(codes >> dropped, dropped) if 0 <= dropped < 32 else np.zeros_like(codes)
    return -codes if negative else codes, -scale_bits


def keeps(layer: Layer) -> bool:
    """Whether Lava sums the weights of a layer as they are written."""
    if layer.kind == "conv":
        return True
    pairs: list[tuple[Ints, Ints | None]] = [(layer.weight, layer.recurrent)]
    if layer.recurrent is not None:
        pairs.append((layer.recurrent, layer.weight))
    for weight, beside in pairs:
        codes, exponent = lava_weights(weight, beside)
        if exponent > 0 or not np.array_equal(codes, weight << -exponent):
            return False
    return True


def shifted_left(x: Ints, bits: int) -> Ints:
    """As numpy shifts 32-bit integers: to zero where the shift is negative."""
    return int32(x << bits) if 0 <= bits < 32 else np.zeros_like(x)


def wrap24(x: Ints) -> Ints:
    """To the signed 24 bits of Conv's sums."""
    return (x + WIDTH) % (2 * WIDTH) - WIDTH


def convolve(layer: Layer, arriving: Ints) -> Ints:
    """Cross-correlation [S, C, H, W] of [S, M, H, W], zeros around it, as torch counts the axes."""
    (down, right), (sy, sx), (dy, dx) = layer.padding, layer.stride, layer.dilation
    rows, columns = layer.weight.shape[2:]
    padded = np.pad(arriving, ((0, 0), (0, 0), (down, down), (right, right))).astype(np.float64)
    windows = sliding_window_view(padded, (dy * (rows - 1) + 1, dx * (columns - 1) + 1), axis=(2, 3))
    windows = windows[:, :, ::sy, ::sx, ::dy, ::dx]  # [S, M, H, W, rows, columns]
    weight = layer.weight.astype(np.float64)
    sums = [
        np.einsum("smhwyx,cmyx->schw", part, kernel, optimize=True)
        for part, kernel in zip(
            np.split(windows, layer.groups, axis=1), np.split(weight, layer.groups), strict=True
        )
    ]
    return np.concatenate(sums, axis=1).astype(np.int64)


def conv_shape(layer: Layer, image: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) of the neurons behind a convolution of an image (M, H, W)."""
    height, width = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, padding, dilation, kernel, stride in zip(
            image[1:], layer.padding, layer.dilation, layer.weight.shape[2:], layer.stride, strict=True
        )
    )
    return len(layer.weight), height, width
