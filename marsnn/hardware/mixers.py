"""State space layers in integers: 24-bit states, fixed-point decays, products rounded toward zero.

S4D, for each feature and mode; |real + i imaginary| < 1 is a fraction of 2^20:

    S_re' = ((real S_re - imaginary S_im) >> 20) + ((x << enter_left) >> enter_right)
    S_im' =  (real S_im + imaginary S_re) >> 20
    y     = (sum over modes of (out_real S_re' - out_imaginary S_im') + skip x) >> out_shift

SSD, for each head; channels are values, keys and queries, one behind the other:

    m       = clip16((sum_k taps[k] x[w - k] + tap_bias) >> tap_shift)       of each channel
    place   = forgetting * multiplier >> argument_shift
    decay   = table[place]                                                  a fraction of 2^15
    S       = (decay (turn S) >> 35) + enter(key value)                     turn is a fraction of 2^20
    y       = (sum_n S[n] query[n] + skip value) >> out_shift

`enter(p)` is `p (2^15 - decay) << left >> right` where the layer scales its input, else `p << left >> right`.

Rotary positions are a turn of the state. Attention's keys and queries are turned by their positions, and
only the difference of two positions is seen; so a state whose pairs (n, n + N / 2) turn by one position's
angle a token holds the same, and there is no position that could grow without end. With `cosine` of no
entries nothing turns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from marsnn.hardware.arithmetic import look_up, saturate, toward_zero
from marsnn.hardware.stages import NARROW_MAX, SHARE_BITS, SHARE_MAX, TURN_BITS, IntegerGraph, Ints, Stage


def s4d(graph: IntegerGraph, stage: Stage, arrived: Mapping[str, Ints]) -> tuple[Ints, int]:
    """Values [W, N] of sums [W, N]."""
    of = stage.arrays
    x = _samples(graph, arrived["in"])  # [S, L, N]
    real = imaginary = np.zeros((len(x), *of["real"].shape), dtype=np.int64)
    y = np.zeros_like(x)
    total = 0
    for token in range(x.shape[1]):
        now = x[:, token, :, None]
        entering = toward_zero(now << of["enter_left"], of["enter_right"])
        turned = turn(real, imaginary, of["real"], of["imaginary"])
        real, clipped = saturate(toward_zero(turned[0], TURN_BITS) + entering)
        imaginary, more = saturate(toward_zero(turned[1], TURN_BITS))
        modes = of["out_real"] * real - of["out_imaginary"] * imaginary
        y[:, token], clipped_y = saturate(
            toward_zero(modes.sum(-1) + of["skip"] * x[:, token], of["out_shift"])
        )
        total += clipped + more + clipped_y
    return y.reshape(len(arrived["in"]), -1), total


def ssd(graph: IntegerGraph, stage: Stage, arrived: Mapping[str, Ints]) -> tuple[Ints, int]:
    """Values [W, N] of the projections' sums."""
    of = stage.arrays
    mixed, total = _convolved(graph, stage, arrived)
    forgetting = _samples(graph, arrived["forgetting"])
    H = forgetting.shape[-1]
    widths = [arrived[port].shape[-1] for port in ("values", "keys", "queries")]
    values, keys, queries = np.split(mixed, np.cumsum(widths)[:-1], axis=-1)
    values = values.reshape(*values.shape[:2], H, -1)
    groups = stage.number("groups")
    keys, queries = (
        np.repeat(each.reshape(*each.shape[:2], groups, -1), H // groups, axis=2) for each in (keys, queries)
    )
    decay = look_up(of["table"], toward_zero(forgetting * of["multiplier"], of["argument_shift"]))
    state = np.zeros((len(values), H, keys.shape[-1], values.shape[-1]), dtype=np.int64)
    y = np.zeros_like(values)
    for token in range(values.shape[1]):
        d = decay[:, token, :, None, None]
        product = keys[:, token, ..., None] * values[:, token, :, None]
        if stage.number("scaled"):
            product = product * (SHARE_MAX - d)
        left, right = (of[name][:, None, None] for name in ("enter_left", "enter_right"))
        entering = toward_zero(product << left, right)
        state, clipped = saturate(faded(of, state, d) + entering)
        read = (state * queries[:, token, ..., None]).sum(-2) + of["skip"][:, None] * values[:, token]
        y[:, token], more = saturate(toward_zero(read, of["out_shift"][:, None]))
        total += clipped + more
    return y.reshape(len(arrived["forgetting"]), -1), total


def faded(of: Mapping[str, Ints], state: Ints, decay: Ints) -> Ints:
    """What is left of the state [*, N, P], turned by one position."""
    if not len(of["cosine"]):
        return toward_zero(state * decay, SHARE_BITS)
    first, second = np.split(state, 2, axis=-2)
    turned = turn(first, second, of["cosine"][:, None], of["sine"][:, None])
    return toward_zero(np.concatenate(turned, axis=-2) * decay, SHARE_BITS + TURN_BITS)


def turn(real: Ints, imaginary: Ints, cosine: Ints, sine: Ints) -> tuple[Ints, Ints]:
    """The product of two complex numbers."""
    return cosine * real - sine * imaginary, cosine * imaginary + sine * real


def _convolved(graph: IntegerGraph, stage: Stage, arrived: Mapping[str, Ints]) -> tuple[Ints, int]:
    """Channels [S, L, C] behind the causal convolution, in 16 bits."""
    of = stage.arrays
    raw = _samples(graph, np.concatenate([arrived[port] for port in ("values", "keys", "queries")], axis=-1))
    total = np.broadcast_to(of["tap_bias"], raw.shape).copy()
    for k, taps in enumerate(of["taps"]):
        total[:, k:] += taps * raw[:, : raw.shape[1] - k]
    return saturate(toward_zero(total, of["tap_shift"]), NARROW_MAX)


def _samples(graph: IntegerGraph, values: Ints) -> Ints:
    """Tokens [W, N] as samples [S, L, N]: what is remembered ends with a sample."""
    return values.reshape(-1, graph.tokens_per_sample, values.shape[-1])
