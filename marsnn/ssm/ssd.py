"""SSD: the discrete Mamba-2 layer, a selective state space model that can stand where attention stood.

    z, x, b, c, a = W_in u                        gate, value, key, query, forgetting: all from the token
    x, b, c   = convolution over the last K tokens, each channel by itself
    decay     = sigmoid(-(a + bias)) = exp(-softplus(a + bias))
    S         = decay S + b x^T                   for each head, N x P
    y         = S^T c + skip x
    out       = W_out (y * silu(z + gate bias))

`SSDCore` is all between the two projections: what a network needs where spikes stand before W_in and W_out,
which are then Linear layers of the network.

Sources: Dao and Gu 2024, arXiv 2405.21060 (Mamba-2, SSD); Bick et al. 2024, arXiv 2408.10189, and 2025, arXiv
2502.14458 (MOHAWK, Llamba) for the discrete form. Differs from Mamba-2 in: the input is not scaled by dt
(`scale_input` scales it by 1 - decay), no activation behind the convolution unless asked for, no norm before
the output projection.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.checks import count, finite, positive
from marsnn.errors import InputError, ShapeError
from marsnn.linear import Linear
from marsnn.ssm import decode
from marsnn.ssm.base import SequenceLayer
from marsnn.ssm.convolution import causal_convolution
from marsnn.ssm.gate import gated
from marsnn.ssm.scan import BACKENDS, Backend, ssd_scan

Activation = Literal["none", "silu"]
FeatureMap = Literal["none", "l2", "softmax"]


class SSDState(NamedTuple):
    """What is remembered between tokens."""

    recent: Tensor  # [K - 1, B, channels] what the convolution still sees, newest last
    memory: Tensor  # [B, H, N', P'] the states; N' = 2 N under "softmax", P' = P + 1 where normalised
    position: Tensor  # [B] tokens seen, for RoPE


class SSDCore(SequenceLayer):
    """Discrete Mamba-2 without its projections: x [L, B, inputs] to y [L, B, outputs].

    The inputs are, side by side, the gate z (H P), values (H P), keys (G N), queries (G N) and the forgetting
    a (H); the outputs are H P.

    Args:
        heads: H.
        head_dim: P, the width of a head's values.
        state_size: N, the width of keys and queries.
        groups: G, how many sets of keys and queries; G divides H, and G = H gives each head its own.
        conv_size: K, tokens that the convolution sees.
        activation: "silu" behind the convolution, or "none".
        gate: whether silu(z + bias) multiplies the output; without it there is no z.
        feature_map: of keys and queries: "none", "l2" (unit length) or "softmax" (over [v, -v]: 2 N positive
            features that sum to 1; Zhang et al. 2024, arXiv 2402.04347).
        rope: base of rotary positions on keys and queries, say 10000.0; None for none.
        normalize: divide by the sum of the weights, as attention does; wants "softmax".
        scale_input: multiply what enters the memory by 1 - decay.
        skip: whether skip x is added, with a number for each head.
        backend: of the scan, see `ssd_scan`; it may be reassigned and is not saved.

    State: `SSDState`. Calls also take `mask` and `segments`, see `forward`.

    Raises:
        InputError, ShapeError: what is wrong with a setting, a tensor or a state.

    Example:
        >>> import torch
        >>> from marsnn.ssm import SSDCore
        >>> core = SSDCore(heads=2, head_dim=16, state_size=8)
        >>> core(torch.randn(100, 3, core.inputs))[0].shape
        torch.Size([100, 3, 32])
    """

    State = SSDState
    wide_fields = ("memory",)
    whole_fields = ("position",)

    def __init__(
        self,
        heads: int,
        head_dim: int = 64,
        state_size: int = 64,
        groups: int = 1,
        conv_size: int = 4,
        activation: Activation = "none",
        gate: bool = True,
        feature_map: FeatureMap = "none",
        rope: float | None = None,
        normalize: bool = False,
        scale_input: bool = False,
        skip: bool = True,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = count("heads", heads), count("head_dim", head_dim)
        self.state_size, self.groups = count("state_size", state_size), count("groups", groups)
        self.conv_size = count("conv_size", conv_size)
        if self.heads % self.groups:
            raise InputError(f"groups must divide heads, got {self.groups} groups for {self.heads} heads")
        for name, value, known in (
            ("activation", activation, get_args(Activation)),
            ("feature_map", feature_map, get_args(FeatureMap)),
            ("backend", backend, BACKENDS),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if normalize and feature_map != "softmax":
            raise InputError(
                'normalize=True divides by a sum that must stay positive; use feature_map="softmax" with it'
            )
        if rope is not None:
            positive("rope", rope)
            if self.state_size % 2:
                raise InputError(f"rope turns pairs, so state_size must be even, got {state_size}")
        self.activation, self.feature_map, self.rope = activation, feature_map, rope
        self.normalize, self.scale_input = bool(normalize), bool(scale_input)
        self.backend: Backend = backend
        H, self.outputs = self.heads, self.heads * self.head_dim
        self.channels = self.outputs + 2 * self.groups * self.state_size
        self.widths = (self.outputs if gate else 0, self.channels, H)
        self.features = self.inputs = sum(self.widths)
        bound = 1 / math.sqrt(self.conv_size)
        self.conv_weight = nn.Parameter(torch.empty(self.conv_size, self.channels).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.zeros(self.channels))
        # time constants from 2 to 1,000 tokens, evenly in their logarithm: decay = 1 - 1 / tau
        tau = torch.exp(torch.linspace(math.log(2.0), math.log(1000.0), H))
        self.decay_bias = nn.Parameter(-torch.log(tau - 1))
        self.gate_bias = nn.Parameter(torch.zeros(self.outputs)) if gate else None
        self.skip = nn.Parameter(torch.ones(H)) if skip else None

    @property
    def silu(self) -> bool:
        """Whether SiLU follows the convolution."""
        return self.activation == "silu"

    # ---- calls ------------------------------------------------------------------------------------------

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        keys = 2 * self.state_size if self.feature_map == "softmax" else self.state_size
        recent = (self.conv_size - 1, batch, self.channels)
        return recent, (batch, self.heads, keys, self.head_dim + self.normalize), (batch,)

    def forward(
        self,
        x: Tensor,
        state: SSDState | None = None,
        final_state: bool = True,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, SSDState]:
        """All tokens by the scan; one token by the recurrence.

        Args:
            x: [L, B, inputs].
            state: of an earlier call, None for nothing remembered.
            final_state: accepted for uniformity; it costs nothing here.
            mask: [L, B] of bools, False where a token is padding, before or behind a sample's own tokens:
                nothing of it is remembered, its output is that of a zero token.
            segments: sequences packed one behind the other, which never see each other. [L, B] of whole
                numbers that change where a sequence starts, or, for B = 1, the starts themselves and L
                (`cu_seqlens`, [sequences + 1]). The first goes on from `state`.
        """
        return self._sequence(x, self._check(x, state, "L, B, D"), mask, segments)

    def _sequence(
        self, x: Tensor, state: SSDState, mask: Tensor | None, segments: Tensor | None
    ) -> tuple[Tensor, SSDState]:
        if len(x) == 1 and mask is None:
            if segments is not None:
                self._starts(x, segments)
            y, state = self._step(x[0], state)
            return y.unsqueeze(0), state
        if mask is not None and segments is not None:
            raise InputError("give mask or segments, not both; padding of packed sequences is one of them")
        if mask is not None:
            return self._masked(x, state, self._checked(x, mask))
        if segments is not None:
            return self._packed(x, state, self._starts(x, segments))
        z, raw, forgetting = self._parted(x)
        position = state.position + torch.arange(len(x), device=x.device).unsqueeze(1)
        mixed = causal_convolution(raw, *self._taps(), state.recent, None, self.backend, self.silu)
        y, memory = self._scanned(mixed, position, z, forgetting, state.memory)
        recent = torch.cat([state.recent, raw[1 - self.conv_size :]])[-(self.conv_size - 1) :]
        return y, SSDState(recent if self.conv_size > 1 else state.recent, memory, state.position + len(x))

    def step(self, x: Tensor, state: SSDState | None = None) -> tuple[Tensor, SSDState]:
        return self._step(x, self._check(x, state, "B, D"))

    # ---- ways through the convolution -------------------------------------------------------------------

    def _step(self, x: Tensor, state: SSDState) -> tuple[Tensor, SSDState]:
        done = decode.step(self, x, state.recent, state.memory, state.position)
        if done is not None:
            return done[0], SSDState(done[1], done[2], state.position + 1)
        z, raw, forgetting = (each.unsqueeze(0) for each in self._parted(x))
        window = torch.cat([state.recent, raw])
        weight, bias = self._taps()
        mixed = torch.addcmul(bias, window[-1:], weight[0])
        for k in range(1, self.conv_size):
            mixed = torch.addcmul(mixed, window[-1 - k : -k], weight[k])
        mixed = F.silu(mixed) if self.silu else mixed
        y, memory = self._scanned(mixed, state.position.unsqueeze(0), z, forgetting, state.memory)
        return y.squeeze(0), SSDState(window[1:], memory, state.position + 1)

    def _masked(self, x: Tensor, state: SSDState, mask: Tensor) -> tuple[Tensor, SSDState]:
        """Padding enters as zeros, brings nothing into the memory and lets nothing of it fade."""
        own = mask.unsqueeze(-1)
        z, raw, forgetting = self._parted(x.where(own, 0.0))
        number = mask.long().cumsum(0)
        mixed = causal_convolution(raw, *self._taps(), state.recent, None, self.backend, self.silu)
        y, memory = self._scanned(
            mixed, state.position + (number - 1).clamp(min=0), z, forgetting, state.memory, mask
        )
        # the window behind the last token that is not padding
        longer = torch.cat([state.recent, raw])
        tokens = torch.arange(1, len(x) + 1, device=x.device).unsqueeze(1)
        last = (tokens * mask).amax(0)  # 0: all of them are padding
        window = last + torch.arange(self.conv_size - 1, device=x.device).unsqueeze(1)  # [K - 1, B]
        recent = longer.gather(0, window.unsqueeze(-1).expand(-1, -1, self.channels))
        return y, SSDState(recent, memory, state.position + number[-1])

    def _packed(self, x: Tensor, state: SSDState, starts: Tensor) -> tuple[Tensor, SSDState]:
        """No tap, no memory and no position reaches over a start."""
        token = torch.arange(len(x), device=x.device).unsqueeze(1)
        begun = (token * starts).cummax(0).values  # where a token's sequence started; 0 for the first
        first = starts.cumsum(0) == 0
        age = torch.where(first, token + self.conv_size, token - begun)
        z, raw, forgetting = self._parted(x)
        seen = age.clamp(max=self.conv_size).to(torch.int32)
        mixed = causal_convolution(raw, *self._taps(), state.recent, seen, self.backend, self.silu)
        position = torch.where(first, state.position + token, token - begun)
        y, memory = self._scanned(mixed, position, z, forgetting, state.memory, starts=starts)
        longer = torch.cat([state.recent, raw])[len(x) :]  # [K - 1, B, channels]
        back = torch.arange(self.conv_size - 2, -1, -1, device=x.device).unsqueeze(1)
        recent = longer.where((back <= age[-1]).unsqueeze(-1), 0.0)
        return y, SSDState(recent, memory, position[-1] + 1)

    # ---- the parts --------------------------------------------------------------------------------------

    def _parted(self, x: Tensor) -> tuple[Tensor, ...]:
        """Gate, what the convolution takes, forgetting: [*, H P or 0], [*, channels], [*, H]."""
        return x.split(self.widths, -1)

    def _taps(self) -> tuple[Tensor, Tensor]:
        return self.conv_weight, self.conv_bias

    def _scanned(
        self,
        mixed: Tensor,
        position: Tensor,
        z: Tensor,
        forgetting: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From the convolution's output [L, B, channels] to y [L, B, H P], and the next memory."""
        N = self.groups * self.state_size
        values, keys, queries = mixed.split((self.channels - 2 * N, N, N), -1)
        values = values.unflatten(-1, (self.heads, self.head_dim))
        keys, queries = (
            self._featured(each.unflatten(-1, (self.groups, self.state_size)), position)
            for each in (keys, queries)
        )
        log_decay = -F.softplus(forgetting.to(memory.dtype) + self.decay_bias.to(memory.dtype))
        entering = self._entering(values, log_decay, mask)
        if mask is not None:
            log_decay = log_decay.where(mask.unsqueeze(-1), 0.0)
        inside = self.skip if entering is values else None
        y, memory = ssd_scan(
            entering, log_decay, keys, queries, inside, memory, reset=starts, backend=self.backend
        )
        if self.normalize:
            y = y[..., :-1] / y[..., -1:].clamp(min=1e-6)
        if self.skip is not None and inside is None:
            y = y + self.skip[:, None] * values
        y = y.flatten(-2)
        if self.gate_bias is not None:
            y = gated(y, z, self.gate_bias, self.backend)
        return y, memory

    def _featured(self, vectors: Tensor, position: Tensor) -> Tensor:
        """Keys or queries [L, B, G, N] with their position and through the feature map."""
        if self.rope is not None:
            vectors = rotated(vectors, position, self.rope)
        if self.feature_map == "l2":
            return F.normalize(vectors, dim=-1)
        if self.feature_map == "softmax":
            return torch.cat([vectors, -vectors], -1).softmax(-1)
        return vectors

    def _entering(self, values: Tensor, log_decay: Tensor, mask: Tensor | None) -> Tensor:
        """What is brought into the memory: values, as the settings have them; nothing of padding."""
        if self.normalize:
            values = F.pad(values, [0, 1], value=1.0)
        if self.scale_input:
            values = values * -torch.expm1(log_decay).unsqueeze(-1).to(values.dtype)
        return values if mask is None else values.where(mask[..., None, None], 0.0)

    # ---- what came with the tokens ----------------------------------------------------------------------

    def _checked(self, x: Tensor, mask: Tensor) -> Tensor:
        if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
            raise ShapeError(
                f"expected a mask of bools {list(x.shape[:2])}, got {mask.dtype} {list(mask.shape)}"
            )
        self._beside(x, "mask", mask)
        return mask

    def _beside(self, x: Tensor, name: str, tensor: Tensor) -> None:
        if tensor.device != x.device:
            raise InputError(
                f"{type(self).__name__}: x is on {x.device}, {name} on {tensor.device}; move one with .to()"
            )

    def _starts(self, x: Tensor, segments: Tensor) -> Tensor:
        """[L, B], True where a sequence starts behind another."""
        L, B, _ = x.shape
        if segments.is_floating_point() or segments.is_complex():
            raise InputError(f"segments must be whole numbers, got {segments.dtype}")
        if segments.ndim == 2 and segments.shape == (L, B):
            self._beside(x, "segments", segments)
            same = segments[1:] == segments[:-1]
            return F.pad(~same, [0, 0, 1, 0], value=False)
        if segments.ndim == 1 and B == 1 and len(segments) >= 2:
            ends = segments.tolist()
            if ends[0] == 0 and ends[-1] == L and all(a < b for a, b in pairwise(ends)):
                starts = torch.zeros((L, 1), dtype=torch.bool, device=x.device)
                starts[segments[1:-1].long()] = True
                return starts
        raise ShapeError(
            f"expected segments [{L}, {B}], or for one sample the starts 0 < ... < {L} with {L} behind "
            f"them, got {list(segments.shape)}"
        )

    # ---- settings ---------------------------------------------------------------------------------------

    def constructor(self) -> dict[str, Any]:
        names = (
            "heads", "head_dim", "state_size", "groups", "conv_size", "activation", "feature_map", "rope",
            "normalize", "scale_input",
        )  # fmt: skip
        settings = {name: getattr(self, name) for name in names}
        return {**settings, "gate": self.gate_bias is not None, "skip": self.skip is not None}


class SSD(SequenceLayer):
    """Discrete Mamba-2 mixer: x [L, B, D] to y [L, B, D], by `in_proj`, `core` and `out_proj`.

    Args:
        features: D.
        heads: H; by default as many as make H P = 2 D.
        head_dim: P.
        bias: of the two projections.
        settings: of the `SSDCore`: state_size, groups, conv_size, ...

    State and further calls: as of `SSDCore`.

    Example:
        >>> import torch
        >>> from marsnn.ssm import SSD
        >>> layer = SSD(32, head_dim=16, state_size=8)
        >>> y, state = layer(torch.randn(100, 2, 32))
        >>> layer.step(torch.randn(2, 32), state)[0].shape
        torch.Size([2, 32])
    """

    State = SSDState
    wide_fields = SSDCore.wide_fields
    whole_fields = SSDCore.whole_fields

    def __init__(
        self,
        features: int,
        heads: int | None = None,
        head_dim: int = 64,
        bias: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.features = self.outputs = count("features", features)
        head_dim = count("head_dim", head_dim)
        heads = max(1, 2 * self.features // head_dim) if heads is None else heads
        self.core = SSDCore(heads, head_dim, **settings)
        self.in_proj = Linear(self.features, self.core.inputs, bias=bias)
        self.out_proj = Linear(self.core.outputs, self.features, bias=bias)

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        return self.core.state_shapes(batch)

    def forward(
        self,
        x: Tensor,
        state: SSDState | None = None,
        final_state: bool = True,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, SSDState]:
        """As `SSDCore.forward`, x [L, B, D]."""
        self._check_tokens(x, "L, B, D")
        finite("SSD: x", x)
        projected = self.in_proj(x)
        state = self.core._check_state(projected, state, "L, B, D")
        y, state = self.core._sequence(projected, state, mask, segments)
        return self.out_proj(y), state

    def step(self, x: Tensor, state: SSDState | None = None) -> tuple[Tensor, SSDState]:
        self._check_tokens(x, "B, D")
        finite("SSD: x", x)
        projected = self.in_proj(x)
        y, state = self.core._step(projected, self.core._check_state(projected, state, "B, D"))
        return self.out_proj(y), state

    def constructor(self) -> dict[str, Any]:
        return {"features": self.features, "bias": self.in_proj.bias is not None, **self.core.constructor()}


def rotated(vectors: Tensor, position: Tensor, base: float) -> Tensor:
    """Rotary positions on vectors [L, B, G, N]: value i and value i + N / 2 turn by position base^(-2i / N).

    Source: Su et al. 2021, arXiv 2104.09864, in the pairing of Llama's code.
    """
    half = vectors.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=vectors.device, dtype=torch.float64) / half)
    angle = (position.double().unsqueeze(-1) * frequency).unsqueeze(2)  # [L, B, 1, N / 2]
    cos, sin = angle.cos().to(vectors.dtype), angle.sin().to(vectors.dtype)
    first, second = vectors[..., :half], vectors[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
