"""S4D: a diagonal, time-invariant state space model for each feature.

    h'(t) = A h(t) + B x(t)          A diagonal with Re A < 0, so that every mode fades
    y(t)  = 2 Re(C h(t)) + D x(t)

discretised with a step dt of each feature's own. In training the response to one sample, the kernel, is laid
out over all L and applied by FFT; in streaming the recurrence takes one token at a time. With a gate, what
comes out is y * silu(z + gate bias), as in `SSDCore`.

Source: Gu, Gupta, Goel, Re 2022, On the Parameterization and Initialization of Diagonal State Space Models,
arXiv 2206.11893. Of each conjugate pair of modes one is kept, as there. Differs in: no activation or mixing
of features behind it, which in a `Network` are layers of their own; B is fixed, for only the product of B and
C is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from marsnn.checks import count, positive
from marsnn.errors import InputError
from marsnn.ssm.base import SequenceLayer
from marsnn.ssm.gate import gated
from marsnn.ssm.reference import computed_in, s4d_step

Init = Literal["legs", "lin", "inv"]
Discretization = Literal["zoh", "bilinear"]

BLOCK = 64
"""Powers of the decays are products of two tables: of a block's samples, and of the blocks."""


class S4DState(NamedTuple):
    """What is remembered between tokens."""

    modes: Tensor  # [B, D, N / 2, 2] real and imaginary parts


class S4D(SequenceLayer):
    """Diagonal state space model: x [L, B, inputs] to y [L, B, D], features apart.

    The inputs are the D features; with a gate, side by side, the gate z (D) and the features (D).

    Args:
        features: D, as many as come out.
        state_size: N, modes of a feature, conjugates counted; even.
        init: A at the start. "lin": -1/2 + i pi n, a Fourier basis; "inv": -1/2 + i N/pi (N/(2n+1) - 1);
            "legs": the eigenvalues of HiPPO-LegS's normal part, with its B.
        discretization: "zoh", exact for inputs that are held between samples, or "bilinear".
        dt_min: step sizes dt start log-uniform between this
        dt_max: and this; a feature remembers some 1 / dt samples.
        gate: whether silu(z + bias) multiplies the output; without it there is no z.

    State: `S4DState`. Units: dt in the time of A, one sample apart.

    Raises:
        InputError, ShapeError: what is wrong with a setting, a tensor or a state.

    Example:
        >>> import torch
        >>> from marsnn.ssm import S4D
        >>> layer = S4D(8)
        >>> y, state = layer(torch.randn(100, 2, 8))
        >>> layer.step(torch.randn(2, 8), state)[0].shape
        torch.Size([2, 8])
    """

    State = S4DState
    wide_fields = ("modes",)

    def __init__(
        self,
        features: int,
        state_size: int = 64,
        init: Init = "lin",
        discretization: Discretization = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        gate: bool = False,
    ) -> None:
        super().__init__()
        self.outputs = count("features", features)
        self.widths = (self.outputs if gate else 0, self.outputs)
        self.features = self.inputs = sum(self.widths)
        self.state_size = count("state_size", state_size)
        if self.state_size % 2:
            raise InputError(f"state_size must be even, conjugate pairs are kept; got {state_size}")
        if init not in INITS:
            raise InputError(f"init must be one of {', '.join(INITS)}, got {init!r}")
        if discretization not in ("zoh", "bilinear"):
            raise InputError(f'discretization must be "zoh" or "bilinear", got {discretization!r}')
        positive("dt_min", dt_min)
        positive("dt_max", dt_max)
        if dt_min > dt_max:
            raise InputError(f"dt_min must be at most dt_max, got {dt_min} > {dt_max}")
        self.init, self.discretization = init, discretization
        self.dt_min, self.dt_max = float(dt_min), float(dt_max)
        a, b = INITS[init](self.state_size)
        D, half = self.outputs, self.state_size // 2
        span = math.log(dt_max) - math.log(dt_min)
        self.log_dt = nn.Parameter(math.log(dt_min) + span * torch.rand(D))
        self.log_fading = nn.Parameter((-a.real).log().float().expand(D, half).clone())
        self.frequency = nn.Parameter(a.imag.float().expand(D, half).clone())
        self.c = nn.Parameter(torch.randn(D, half, 2) * math.sqrt(0.5))
        self.skip = nn.Parameter(torch.randn(D))
        self.gate_bias = nn.Parameter(torch.zeros(D)) if gate else None
        self.register_buffer("b", torch.view_as_real(b).float())
        self._kept = Kept()

    # ---- the model --------------------------------------------------------------------------------------

    def discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """Decay, b and c [D, N / 2] of the recurrence, complex; kept as `kernel` is."""
        found: tuple[Tensor, Tensor, Tensor] = self._kept.get("discrete", self, self._discrete)
        return found

    def _discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        wide = computed_in(self.log_dt.dtype)
        dt = self.log_dt.to(wide).exp().unsqueeze(-1)
        a = torch.complex(-self.log_fading.to(wide).exp(), self.frequency.to(wide))
        assert isinstance(self.b, Tensor)
        b, c = (torch.view_as_complex(each.to(wide).contiguous()) for each in (self.b, self.c))
        if self.discretization == "zoh":
            return torch.exp(dt * a), torch.expm1(dt * a) / a * b, c
        return (1 + dt * a / 2) / (1 - dt * a / 2), dt / (1 - dt * a / 2) * b, c

    def kernel(self, length: int) -> Tensor:
        """The response [D, length] to a unit sample, without the skip.

        Kept while the weights stay the same and no gradients are wanted; otherwise made anew.
        """
        found: Tensor = self._kept.get(f"kernel {length}", self, lambda: self._kernel(length))
        return found

    def _kernel(self, length: int) -> Tensor:
        decay, b, c = self.discrete()
        near, far = self._powers(decay, length)
        # [D, blocks, N / 2] times [D, N / 2, BLOCK]
        response = 2 * real_product((b * c).unsqueeze(1) * far.transpose(1, 2), near)
        return response.flatten(1)[:, :length]

    @staticmethod
    def _powers(decay: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """decay^0 .. decay^(BLOCK - 1) [D, N / 2, BLOCK], and decay^0, decay^BLOCK, .. [D, N / 2, blocks]."""
        blocks = -(-length // BLOCK)
        return powers(decay, BLOCK), powers(decay**BLOCK, blocks)

    # ---- running it -------------------------------------------------------------------------------------

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        return ((batch, self.outputs, self.state_size // 2, 2),)

    def forward(
        self, x: Tensor, state: S4DState | None = None, final_state: bool = True
    ) -> tuple[Tensor, S4DState | None]:
        """All tokens by FFT; one token by the recurrence.

        Args:
            x: [L, B, inputs].
            state: of an earlier call, None for rest.
            final_state: False saves the work of the final state, and returns None for it.
        """
        fresh = state is None
        state = self._check(x, state, "L, B, D")
        if len(x) == 1:
            y, state = self._step(x[0], state)
            return y.unsqueeze(0), state
        L, wide = len(x), computed_in(x.dtype)
        z, values = self._parted(x)
        u = values.to(wide)
        y = convolved(u, self.kernel(L)) + self.skip.to(wide) * u
        after = None
        if final_state or not fresh:
            decay, b, c = self.discrete()
            near, far = self._powers(decay, L)
            modes = torch.view_as_complex(state.modes)
            if not fresh:  # decay^(l + 1) of what was there
                left = (c * decay * modes).permute(1, 2, 0)  # [D, N / 2, B]
                weighted = far.unsqueeze(-1) * left.unsqueeze(2)  # [D, N / 2, blocks, B]
                weighted = weighted.permute(0, 2, 3, 1)
                echo = 2 * real_product(weighted.flatten(1, 2), near).unflatten(1, weighted.shape[1:3])
                y = y + echo.permute(1, 3, 2, 0).flatten(0, 1)[:L]  # [L, B, D]
            if final_state:
                after = self._after(u, modes, decay, b, near, far)
        y = y.to(x.dtype)
        return y if self.gate_bias is None else gated(y, z, self.gate_bias), after

    def _parted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and features; without a gate, x is what the features are, whole."""
        if self.gate_bias is None:
            return x[..., :0], x
        z, values = x.split(self.widths, -1)
        return z, values

    def _after(
        self, u: Tensor, modes: Tensor, decay: Tensor, b: Tensor, near: Tensor, far: Tensor
    ) -> S4DState:
        """The state that samples u [L, B, D] leave, from `modes` [B, D, N / 2] before them."""
        L, blocks = len(u), far.shape[-1]
        front = blocks * BLOCK - L  # zeros in front, so that the last block is full
        samples = torch.nn.functional.pad(u, [0, 0, 0, 0, front, 0]).unflatten(0, (blocks, BLOCK))
        samples = samples.permute(3, 0, 2, 1).flatten(1, 2)  # [D, blocks B, BLOCK]
        fading = torch.view_as_real(near.flip(-1).transpose(1, 2).contiguous()).flatten(-2)  # [D, BLOCK, N]
        sums = torch.view_as_complex((samples @ fading).unflatten(-1, (-1, 2)))  # [D, blocks B, N / 2]
        sums = sums.unflatten(1, (blocks, -1))  # [D, blocks, B, N / 2]
        total = (sums * far.flip(-1).transpose(1, 2).unsqueeze(2)).sum(1)  # [D, B, N / 2]
        whole = decay**L * modes + b * total.transpose(0, 1)
        return S4DState(torch.view_as_real(whole))

    def step(self, x: Tensor, state: S4DState | None = None) -> tuple[Tensor, S4DState]:
        return self._step(x, self._check(x, state, "B, D"))

    def _step(self, x: Tensor, state: S4DState) -> tuple[Tensor, S4DState]:
        wide = computed_in(x.dtype)
        z, values = self._parted(x)
        y, modes = s4d_step(
            values.to(wide), *self.discrete(), self.skip.to(wide), torch.view_as_complex(state.modes)
        )
        y = y.to(x.dtype)
        if self.gate_bias is not None:
            y = gated(y.unsqueeze(0), z.unsqueeze(0), self.gate_bias).squeeze(0)
        return y, S4DState(torch.view_as_real(modes))

    def constructor(self) -> dict[str, Any]:
        names = ("state_size", "init", "discretization", "dt_min", "dt_max")
        settings = {name: getattr(self, name) for name in names}
        return {"features": self.outputs, **settings, "gate": self.gate_bias is not None}


class Kept:
    """What follows from a module's weights alone, made once for each state of them; never saved or copied."""

    def __init__(self) -> None:
        self.key: Any = None
        self.values: dict[str, Any] = {}

    def get(self, name: str, owner: nn.Module, make: Callable[[], Any]) -> Any:
        """The value of that name, made again where weights changed or gradients are wanted."""
        tensors = [*owner.parameters(), *owner.buffers()]
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if wanted or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return make()
        key = [(id(each), each.data_ptr(), each._version, each.dtype) for each in tensors]
        if self.key != key:
            self.key, self.values = key, {}
        if name not in self.values:
            if len(self.values) > 8:  # many lengths
                self.values.clear()
            self.values[name] = make()
        return self.values[name]

    def __deepcopy__(self, memo: Any) -> Kept:
        return Kept()

    def __reduce__(self) -> Any:
        return Kept, ()


# ---- small pieces ---------------------------------------------------------------------------------------


def powers(base: Tensor, number: int) -> Tensor:
    """base^0 .. base^(number - 1) [*, number], by doubling: each is a product of log2(number) factors."""
    found = torch.ones_like(base).unsqueeze(-1)
    square = base.unsqueeze(-1)
    while found.shape[-1] < number:
        found = torch.cat([found, found * square], -1)
        square = square * square
    return found[..., :number]


def real_product(a: Tensor, b: Tensor) -> Tensor:
    """The real part of a complex matrix product [*, m, k] @ [*, k, n], as one real product of twice the k."""
    rows = torch.view_as_real(a).flatten(-2)  # re, im, re, im, ...
    columns = torch.stack([b.real, -b.imag], -2).flatten(-3, -2)
    return rows @ columns


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution over the first axis: x [L, B, D], kernel [D, L]."""
    L = len(x)
    size = 1 << (2 * L - 1).bit_length()
    lines = x.permute(1, 2, 0)  # [B, D, L]
    spectrum = torch.fft.rfft(lines, n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :L].permute(2, 0, 1)


# ---- where A starts -------------------------------------------------------------------------------------


def _lin(N: int) -> tuple[Tensor, Tensor]:
    n = torch.arange(N // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), math.pi * n), torch.ones(N // 2, dtype=torch.complex128)


def _inv(N: int) -> tuple[Tensor, Tensor]:
    n = torch.arange(N // 2, dtype=torch.float64)
    imaginary = N / math.pi * (N / (2 * n + 1) - 1)
    return torch.complex(torch.full_like(n, -0.5), imaginary), torch.ones(N // 2, dtype=torch.complex128)


def _legs(N: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS without its rank-one part is normal: -1/2 and a skew-symmetric matrix (section 4.2)."""
    n = torch.arange(N, dtype=torch.float64)
    root = torch.sqrt(n + 0.5)
    low = torch.outer(root, root).tril(-1)
    values, vectors = torch.linalg.eigh(1j * (low.t() - low).to(torch.complex128))
    # A = -1/2 + S with S = (low^T - low) skew; i S is Hermitian with eigenvalues w, so S has -i w
    keep = values < 0  # of each pair, the one with positive imaginary part
    b = vectors.conj().t() @ torch.sqrt(2 * n + 1).to(torch.complex128)
    frequency = -values[keep]
    order = frequency.argsort()
    return torch.complex(torch.full_like(frequency, -0.5), frequency)[order], b[keep][order]


INITS = {"legs": _legs, "lin": _lin, "inv": _inv}
