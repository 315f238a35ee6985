"""Speed and memory of a state space mixer over the length of a sequence, beside others and beside its GEMMs.

All mixers take and give [L, 1, D] with D = 256, in float32, projections included:

    SSD            ours: 8 heads of 64, N = 64, one group, convolution of 4 with SiLU, gate; its kernels
    SSD, torch     the same without kernels: plain torch operations
    SSD, nn.Linear SSD with torch's Linear in the place of `marsnn.linear`
    SSD, steps     SSD, one token after the other
    Mamba2Mixer    transformers' torch path, same widths, at the chunk that is fastest at each L
    attention      causal torch SDPA, 4 heads of 64, its four projections by `marsnn.linear` as ours
    mambapy        its Mamba-1 block (parallel scan), expand 2, N = 16, the defaults

and floors, in the same rounds, forward and backward each by its own:

    projections    the two Linear layers of SSD alone, by `marsnn.linear`
    nn.Linear      the same two by torch
    GEMMs          the products that SSD's chunked scan needs at chunks of 64, whole squares, by torch.bmm
    best GEMM      as many multiplications at the speed of one large product by `marsnn.linear`
"""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marsnn.bench import timing
from marsnn.bench.parts import KEEP_MEMORY, aimed, aims_table, machine, milliseconds, part, risen, spread
from marsnn.bench.timing import Summary
from marsnn.linear import Linear, linear
from marsnn.progress import track
from marsnn.ssm import SSD, ssd_scan

D, HEADS, WIDTH, N, CHUNK = 256, 8, 64, 64, 64
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
DECODED = (1, 1024, 8192, 65536)
"""Tokens seen before the decode step that is timed."""
CHUNKS = (32, 64, 128, 256)
"""Of Mamba2Mixer; the fastest is reported."""
LONGEST = {"SSD, steps": 2048, "mambapy": 8192, "attention": 16384, "Mamba2Mixer": 16384}
"""Beyond it a contestant takes minutes or all memory."""
LIBRARIES = ("marsnn", "transformers", "mambapy")

Mixer = Callable[[Tensor], Tensor]


# ---- contestants ----------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal self-attention with its projections, as a Transformer has it: [L, B, D] to [L, B, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = Linear(D, 3 * D, bias=False)
        self.out = Linear(D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (-1, WIDTH)).permute(1, 2, 0, 3) for each in self.qkv(x).split(D, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.permute(2, 0, 1, 3).flatten(2))

    def step(self, x: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        """One token x [B, D] against a cache of keys and values [B, H, L, 64]."""
        q, k, v = (each.unflatten(-1, (-1, 1, WIDTH)) for each in self.qkv(x).split(D, -1))
        keys, values = (torch.cat([old, new], 2) for old, new in zip(cache, (k, v), strict=True))
        return self.out(F.scaled_dot_product_attention(q, keys, values).flatten(1))


class Projections(nn.Module):
    """The two Linear layers of SSD and nothing between them."""

    def __init__(self, torchs: bool = False) -> None:
        super().__init__()
        ssd = _with_torchs_linear(SSD(D, HEADS, WIDTH)) if torchs else SSD(D, HEADS, WIDTH)
        self.into, self.out = ssd.in_proj, ssd.out_proj
        self.between = torch.randn(1, 1, ssd.core.outputs)
        self.upstream = torch.randn(1, 1, ssd.core.inputs)

    def forward(self, x: Tensor) -> Tensor:
        made = self.into(x)
        if not made.requires_grad:
            return self.out(self.between.expand(len(x), -1, -1))
        return _Joined.apply(made, self.out, self.between, self.upstream)  # type: ignore[no-any-return]


class _Joined(torch.autograd.Function):
    """The output projection of a given tensor, the gradient of a given tensor: no work between the two."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, out: nn.Linear, between: Tensor, upstream: Tensor) -> Tensor:
        ctx.upstream = upstream.expand(len(made), -1, -1)
        with torch.enable_grad():
            ctx.y = out(between.expand(len(made), -1, -1).contiguous().requires_grad_())
        return ctx.y.detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        ctx.y.backward(grad)
        return ctx.upstream, None, None, None


def _with_torchs_linear(layer: SSD) -> SSD:
    for name in ("in_proj", "out_proj"):
        ours = getattr(layer, name)
        setattr(layer, name, nn.Linear(ours.in_features, ours.out_features, bias=False))
    return layer


def _ssd(backend: str, torchs: bool = False) -> Mixer:
    layer = SSD(D, HEADS, WIDTH, state_size=N, activation="silu", backend=backend)
    layer = _with_torchs_linear(layer) if torchs else layer
    return lambda x: layer(x)[0]


def _steps() -> Mixer:
    layer = SSD(D, HEADS, WIDTH, state_size=N, activation="silu")

    def run(x: Tensor) -> Tensor:
        state, outputs = None, []
        for token in x:
            y, state = layer.step(token, state)
            outputs.append(y)
        return torch.stack(outputs)

    return run


def _mamba2(chunk: int) -> Mixer:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    from transformers.utils import logging

    logging.set_verbosity_error()  # that it is the slow path is what is measured
    config = Mamba2Config(
        hidden_size=D, num_heads=HEADS, head_dim=WIDTH, expand=2, state_size=N, n_groups=1, chunk_size=chunk
    )
    layer = Mamba2Mixer(config, 0)
    return lambda x: layer(x.transpose(0, 1)).transpose(0, 1)


def _mambapy() -> Mixer:
    from mambapy.mamba import MambaBlock, MambaConfig

    layer = MambaBlock(MambaConfig(d_model=D, n_layers=1))
    return lambda x: layer(x.transpose(0, 1)).transpose(0, 1)


def _attention() -> Mixer:
    return Attention()


def installed() -> dict[str, str]:
    """The versions of those libraries that are here."""
    found = {}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def mixers(length: int, quick: bool = False) -> dict[str, Callable[[], Mixer]]:
    """Who runs at that length; Mamba2Mixer once for each chunk."""
    here = installed()
    every: dict[str, Callable[[], Mixer]] = {
        "SSD": partial(_ssd, "auto"),
        "SSD, torch": partial(_ssd, "chunked"),
        "SSD, nn.Linear": partial(_ssd, "auto", torchs=True),
        "SSD, steps": _steps,
        "attention": _attention,
    }
    if "transformers" in here:
        every |= {f"Mamba2Mixer {chunk}": partial(_mamba2, chunk) for chunk in CHUNKS[1 : 2 if quick else 4]}
        if not quick:
            every["Mamba2Mixer 32"] = partial(_mamba2, CHUNKS[0])
    if "mambapy" in here:
        every["mambapy"] = _mambapy
    return {name: make for name, make in every.items() if length <= LONGEST.get(_who(name), length)}


def _who(name: str) -> str:
    return "Mamba2Mixer" if name.startswith("Mamba2Mixer") else name


def _made(make: Callable[[], Mixer]) -> Mixer:
    torch.manual_seed(0)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return make()


def _tensors(length: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((length, 1, D), generator=draw).requires_grad_()
    return x, torch.randn((length, 1, D), generator=draw)


# ---- parts, each in a process of its own ----------------------------------------------------------------


def whole(length: int, count: int, quick: bool) -> list[dict[str, Any]]:
    """All mixers at one length, and the projections alone, in the same rounds."""
    x, upstream = _tensors(length)
    runs: dict[str, Callable[[], Any]] = {}
    floors: dict[str, Callable[[], Mixer]] = {
        "projections": Projections,
        "nn.Linear": partial(Projections, torchs=True),
    }
    for name, make in {**mixers(length, quick), **floors}.items():
        mixer = _made(make)
        runs[f"{name} forward"] = partial(timing.forward, mixer, x)
        runs[f"{name} both"] = partial(timing.both, mixer, x, upstream)
    seconds = timing.rounds(runs, count)
    names = [name.removesuffix(" both") for name in runs if name.endswith(" both")]
    best = {
        _who(name): name
        for name in sorted(names, key=lambda n: -timing.summary(seconds[f"{n} both"])["median"])
    }
    return [
        {
            "L": length,
            "what": who,
            "as": name,
            "forward_ms": milliseconds(seconds[f"{name} forward"]),
            "both_ms": milliseconds(seconds[f"{name} both"]),
            "both_to_ours": timing.ratio(seconds[f"{name} both"], seconds["SSD both"]),
            "both_to_torch": timing.ratio(seconds[f"{name} both"], seconds["SSD, torch both"]),
        }
        for who, name in sorted(best.items(), key=lambda item: names.index(item[1]))
    ]


def scan(length: int, count: int) -> list[dict[str, Any]]:
    """The scan alone, by its kernel and in torch, beside the matrix products that it needs."""
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    x, upstream = noise(length, 1, HEADS, WIDTH), noise(length, 1, HEADS, WIDTH)
    b, c = noise(length, 1, 1, N) / N**0.5, noise(length, 1, 1, N)
    log_decay = -torch.rand((length, 1, HEADS), generator=draw)
    inputs = [each.requires_grad_() for each in (x, log_decay, b, c)]
    products = _products(length, noise)

    def both(backend: Any) -> None:
        y, _ = ssd_scan(*inputs, backend=backend)
        torch.autograd.grad(y, inputs, upstream)

    def forward(backend: Any) -> None:
        with torch.no_grad():
            ssd_scan(*inputs, backend=backend)

    runs: dict[str, Callable[[], Any]] = {
        "GEMMs forward": partial(_multiply, products["forward"]),
        "GEMMs both": partial(_multiply, products["forward"] + products["backward"]),
        "large product": partial(linear, noise(2048, 512), noise(1024, 512)),
    }
    for name, backend in (("kernel", "auto"), ("torch", "chunked")):
        runs[f"{name} forward"] = partial(forward, backend)
        runs[f"{name} both"] = partial(both, backend)
    seconds = timing.rounds(runs, count)
    share = sum(map(_multiplications, products["forward"])) / (2048 * 512 * 1024)
    for way, products_of_each in (("forward", 1), ("both", 3)):
        seconds[f"best GEMM {way}"] = [products_of_each * share * s for s in seconds["large product"]]
    return [
        {
            "L": length,
            "what": name,
            **{f"{part}_ms": milliseconds(seconds[f"{name} {part}"]) for part in ("forward", "both")},
            **{
                f"{part}_to_{key}": timing.ratio(seconds[f"{name} {part}"], seconds[f"{floor} {part}"])
                for part in ("forward", "both")
                for key, floor in (("gemms", "GEMMs"), ("best", "best GEMM"))
            },
        }
        for name in ("kernel", "torch", "GEMMs", "best GEMM")
    ]


def _products(length: int, noise: Callable[..., Tensor]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Operands of the matrix products of the chunked form, and of the two gradients of each."""
    chunks = -(-length // CHUNK)
    per_chunk = (noise(chunks, CHUNK, N), noise(chunks, N, CHUNK))  # c b^T, shared by the heads
    forward = [
        per_chunk,
        (noise(chunks * HEADS, CHUNK, CHUNK), noise(chunks * HEADS, CHUNK, WIDTH)),  # within
        (noise(chunks, N, CHUNK), noise(chunks, CHUNK, HEADS * WIDTH)),  # brought
        (noise(chunks, CHUNK, N), noise(chunks, N, HEADS * WIDTH)),  # seen
    ]
    backward = []
    for a, b in forward:
        grad = noise(len(a), a.shape[1], b.shape[2])
        backward += [(grad, b.transpose(1, 2)), (a.transpose(1, 2), grad)]
    return {"forward": forward, "backward": backward}


def _multiplications(product: tuple[Tensor, Tensor]) -> int:
    a, b = product
    return a.numel() * b.shape[2]


def _multiply(products: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for a, b in products:
            torch.bmm(a, b)


def decode(count: int, tokens: Sequence[int]) -> list[dict[str, Any]]:
    """One more token after so many: the mixer, the update of its state alone, attention with a cache."""
    torch.manual_seed(0)
    layer = SSD(D, HEADS, WIDTH, state_size=N, activation="silu")
    core, attention = layer.core, Attention()
    token = torch.randn(1, D)
    found = []
    with torch.no_grad():
        x = torch.randn(1, 1, HEADS, WIDTH)
        b, c, log_decay = torch.randn(1, 1, 1, N), torch.randn(1, 1, 1, N), -torch.rand(1, 1, HEADS)
        for seen in tokens:
            state = None
            for piece in torch.randn(seen, 1, D).split(4096):
                state = layer(piece, state)[1]
            assert state is not None
            cache = (torch.randn(1, D // WIDTH, seen, WIDTH), torch.randn(1, D // WIDTH, seen, WIDTH))
            runs: dict[str, Callable[[], Any]] = {
                "SSD": partial(layer.step, token, state),
                "state update": partial(ssd_scan, x, log_decay, b, c, core.skip, state.memory),
                "attention": partial(attention.step, token, cache),
            }
            runs = {name: partial(timing.again, 20, call) for name, call in runs.items()}
            read = {"attention": runs.pop("attention")}  # a long cache would push the others out of theirs
            seconds = timing.rounds(runs, count) | timing.rounds(read, count)
            for name, values in seconds.items():
                found.append({"tokens": seen, "what": name, "ms": milliseconds([s / 20 for s in values])})
    return found


def memory(length: int, what: str) -> dict[str, Any]:
    """How far memory rises in a forward and backward."""
    mixer = _made(partial(_mamba2, CHUNK) if what == "Mamba2Mixer" else mixers(length)[what])
    timing.both(mixer, *_tensors(128))
    x, upstream = _tensors(length)
    started = time.perf_counter()
    extra = risen(partial(timing.both, mixer, x, upstream))
    return {"L": length, "what": what, "extra_mb": extra, "seconds": time.perf_counter() - started}


# ---- the whole ------------------------------------------------------------------------------------------


def run(quick: bool = False, count: int = 15) -> dict[str, Any]:
    """Measure everything.

    Args:
        quick: short sequences and few rounds: whether it works, not how fast it is.
        count: rounds in which all run once; fewer where a round takes seconds.

    Returns:
        JSON-ready: machine, versions, and rows of whole mixers, of the scan, of decode steps and of memory.
    """
    lengths = (64, 128) if quick else LENGTHS
    count = min(count, 3) if quick else count
    jobs: list[tuple[str, Callable[[], Any]]] = []

    def add(heading: str, name: str, keep: bool = True, **arguments: Any) -> None:
        jobs.append((heading, partial(part, "ssm", name, KEEP_MEMORY if keep else None, **arguments)))

    for length in lengths:
        fewer = max(3, count * 4096 // max(length, 4096))
        add("whole", "whole", length=length, count=fewer, quick=quick)
        add("scan", "scan", length=length, count=max(fewer, min(count, 5)))
        for what in dict.fromkeys(_who(name) for name in mixers(length)):
            if what not in ("SSD, steps", "SSD, nn.Linear") and (not quick or what.startswith("SSD")):
                add("memory", "memory", keep=False, length=length, what=what)
    add("decode", "decode", count=count, tokens=DECODED[: 2 if quick else None])
    result: dict[str, Any] = {
        "benchmark": "ssm",
        "command": f"marsnn bench ssm --rounds {count}" + " --quick" * quick,
        "machine": machine(),
        "libraries": installed(),
        "D": D,
        "rounds": count,
        "whole": [],
        "scan": [],
        "decode": [],
        "memory": [],
    }
    for heading, job in track(jobs, "state space mixers"):
        found = job()
        result[heading] += found if isinstance(found, list) else [found]
    result["targets"] = [] if quick else targets(result)
    return result


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, each with its value and whether it is met; what can't be told is left out."""
    found: list[dict[str, Any]] = []

    def row(heading: str, **keys: Any) -> dict[str, Any] | None:
        rows = (each for each in result[heading] if all(each[key] == value for key, value in keys.items()))
        return next(rows, None)

    for length in (2048, 8192):
        mamba = row("whole", L=length, what="Mamba2Mixer")
        if mamba:
            at = f"time of Mamba2Mixer at L = {length:,}, forward + backward"
            found += aimed(f"{at}, in ours without kernels", mamba["both_to_torch"]["median"], ">=", 1.6)
            found += aimed(f"{at}, in ours", mamba["both_to_ours"]["median"], ">=", 2.5)
    for length, factor in ((2048, 1.0), (8192, 3.5)):
        attention = row("whole", L=length, what="attention")
        if attention:
            at = f"time of attention at L = {length:,}, forward + backward, in ours"
            found += aimed(at, attention["both_to_ours"]["median"], ">=", factor)
    steps = [each for each in result["decode"] if each["what"] == "SSD"]
    updates = [each for each in result["decode"] if each["what"] == "state update"]
    if steps:
        medians = [each["ms"]["median"] for each in steps]
        found += aimed(
            "decode step after most tokens, in that after one", medians[-1] / medians[0], "<=", 1.2
        )
        found += aimed("decode step of the whole mixer, ms", max(medians), "<=", 0.1)
        found += aimed("update of its state, ms", max(each["ms"]["median"] for each in updates), "<=", 0.05)
    longest = row("memory", L=32768, what="SSD")
    half = row("memory", L=16384, what="SSD")
    if longest and half and longest["extra_mb"] and half["extra_mb"]:
        found += aimed(
            "memory of training at L = 32,768, in GiB", longest["extra_mb"] * 1e6 / 2**30, "<=", 4.0
        )
        found += aimed("the same in that at L = 16,384", longest["extra_mb"] / half["extra_mb"], "<=", 2.2)
    for length in (2048, 8192):
        for what, limit in (("torch", 6.0), ("kernel", 2.5)):
            own = row("scan", L=length, what=what)
            for floor, key in (("its GEMMs", "both_to_gemms"), ("the best GEMM", "both_to_best")):
                if own:
                    at = f"scan at L = {length:,} by {what}, forward + backward, in {floor}"
                    found += aimed(at, own[key]["median"], "<=", limit)
    return found


# ---- as text --------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    here = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in result["libraries"].items())
    parts = [
        f"{here['device']}, {here['threads']} threads; torch {here['torch']}, {versions}. float32, D = "
        f"{result['D']}; medians of up to {result['rounds']} rounds, quartiles in brackets where they stand.",
        _over_lengths(result["whole"], "both_ms", "forward + backward, ms"),
        _over_lengths(result["whole"], "forward_ms", "forward, ms"),
        _over_lengths(result["whole"], "both_to_ours", "forward + backward, in the time of SSD"),
        _over_lengths(result["scan"], "both_to_gemms", "scan, forward + backward, in the time of its GEMMs"),
        _over_lengths(result["scan"], "both_to_best", "scan, forward + backward, in that of the best GEMM"),
        _over_lengths(result["memory"], "extra_mb", "memory of forward + backward, MB"),
        _decode_table(result["decode"]),
    ]
    if result["targets"]:
        parts.append(aims_table(result["targets"]))
    return "\n\n".join(parts)


def _over_lengths(rows: Sequence[dict[str, Any]], key: str, title: str) -> str:
    lengths = list(dict.fromkeys(row["L"] for row in rows))
    lines = [f"| {title} | " + " | ".join(f"L = {length:,}" for length in lengths) + " |"]
    lines.append("|---" * (len(lengths) + 1) + "|")
    for what in dict.fromkeys(row["what"] for row in rows):
        own = {row["L"]: row for row in rows if row["what"] == what}
        lines.append(f"| {what} | " + " | ".join(_cell(own.get(length), key) for length in lengths) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None, key: str) -> str:
    if row is None or row[key] is None:
        return ""
    value: float | Summary = row[key]
    if not isinstance(value, dict):
        return f"{value:.0f}"
    return spread(value) if "_to_" in key else f"{value['median']:.{1 if value['median'] < 100 else 0}f}"


def _decode_table(rows: Sequence[dict[str, Any]]) -> str:
    tokens = list(dict.fromkeys(row["tokens"] for row in rows))
    lines = ["| one more token, ms | " + " | ".join(f"after {seen:,}" for seen in tokens) + " |"]
    lines.append("|---" * (len(tokens) + 1) + "|")
    for what in dict.fromkeys(row["what"] for row in rows):
        own = [row["ms"]["median"] for row in rows if row["what"] == what]
        lines.append(f"| {what} | " + " | ".join(f"{ms:.3f}" for ms in own) + " |")
    return "\n".join(lines)
