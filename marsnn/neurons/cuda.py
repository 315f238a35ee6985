"""Builds and launches the kernels on NVIDIA GPUs: the sources of `kernels/`, compiled by NVRTC.

torch brings NVRTC and the driver's library is there with the driver, so nothing else is needed. What is
built is kept where the libraries of a CPU are. A `Library` takes the same arguments as a CPU's
(`compiler.library`), for tensors of its device. Before a neuron first trusts a kernel, `marsnn.neurons.fused`
holds it against the steps on that very device.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from marsnn.native import BuildError, fingerprint, kept, source
from marsnn.neurons.compiler import SOURCES

SEGMENT = 32
"""Steps whose states a thread keeps for the backward."""
THREADS = 128
"""Of a block."""
_FIELDS, _PARAMS, _NUMBERS = 2, 4, 8  # room in Task of unroll_cuda.h

MACROS = ("ONE_COLUMN", f"SEGMENT={SEGMENT}", "NUMBERS_UNROUNDED")
"""Of every kernel here; torch on a GPU adds a Python number as it is, see scalar.h."""

_EXACT = ("--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false", "--std=c++17")


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's run-time compiler, of the version that torch was built for; None where there is none."""
    if torch.version.cuda is None:
        return None
    major = torch.version.cuda.split(".")[0]
    for name in (f"libnvrtc.so.{major}", "libnvrtc.so", f"nvrtc64_{major}0_0.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def compiled(header: str, macros: Sequence[str], architecture: str) -> bytes:
    """The kernel for an architecture: a binary for "sm_90", PTX for "compute_90".

    Raises:
        BuildError: with the compiler's first message.
    """
    rtc = nvrtc()
    if rtc is None:
        raise BuildError("no NVRTC found; it comes with torch's CUDA packages (nvidia-cuda-nvrtc)")
    unit = _unit(header, macros)
    options = [f"--gpu-architecture={architecture}", f"--include-path={SOURCES}", *_EXACT]
    program = ctypes.c_void_p()
    _check(rtc.nvrtcCreateProgram(ctypes.byref(program), unit.encode(), b"kernel.cu", 0, None, None))
    try:
        packed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if rtc.nvrtcCompileProgram(program, len(options), packed) != 0:
            log = _text(rtc.nvrtcGetProgramLogSize, rtc.nvrtcGetProgramLog, program).decode(errors="replace")
            said = [line for line in log.splitlines() if "error" in line] or ["no message"]
            raise BuildError(f"NVRTC could not build the kernel {header} for {architecture}: {said[0]}")
        if architecture.startswith("sm_"):
            return _text(rtc.nvrtcGetCUBINSize, rtc.nvrtcGetCUBIN, program)
        return _text(rtc.nvrtcGetPTXSize, rtc.nvrtcGetPTX, program)
    finally:
        rtc.nvrtcDestroyProgram(ctypes.byref(program))


def _unit(header: str, macros: Sequence[str]) -> str:
    return source(header, (*MACROS, *macros), "unroll_cuda.h")


def _built(header: str, macros: Sequence[str], architecture: str) -> bytes:
    """As `compiled`, from the cache where it is there."""

    def build(made: Path) -> None:
        made.write_bytes(compiled(header, macros, architecture))

    version = f"NVRTC of CUDA {torch.version.cuda} as {getattr(nvrtc(), '_name', None)}"
    name = fingerprint(SOURCES, _unit(header, macros), architecture, *_EXACT, version)
    return kept(header, f"{name}.cubin", build).read_bytes()


def _text(size_of: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer))
    return buffer.raw


def _check(status: int) -> None:
    if status != 0:
        raise BuildError(f"CUDA refused a call with status {status}")


# ---- launching ------------------------------------------------------------------------------------------


@functools.cache
def _driver() -> ctypes.CDLL:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BuildError("the NVIDIA driver's library (libcuda) can't be loaded")


@functools.cache
def library(header: str, macros: tuple[str, ...], device: int) -> Library:
    """The loaded kernel of `kernels/<header>.h` under these macros, on a device.

    Raises:
        BuildError: it can't be built or loaded.
    """
    return Library(header, macros, device)


class Library:
    """`forward` and `backward` of unroll_cuda.h on one device, called as those of unroll.h are."""

    def __init__(self, header: str, macros: tuple[str, ...], device: int) -> None:
        self.device = torch.device("cuda", device)
        major, minor = torch.cuda.get_device_capability(device)
        binary = _built(header, macros, f"sm_{major}{minor}")
        with torch.cuda.device(self.device):
            enter_context(device)
            module = ctypes.c_void_p()
            _check(_driver().cuModuleLoadData(ctypes.byref(module), binary))
            self._forward, self._backward = ctypes.c_void_p(), ctypes.c_void_p()
            for function, name in ((self._forward, b"forward"), (self._backward, b"backward")):
                _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, name))

    def forward(self, *arguments: Any) -> int:
        """Returns 1 where a state ended NaN or infinite; waits for the device to know it."""
        *problem, currents, state, params, spikes, membrane, after = arguments
        with torch.cuda.device(self.device):
            failed = torch.zeros(1, dtype=torch.int32, device=self.device)
            results = (spikes, membrane, _room(after, _FIELDS), failed.data_ptr())
            task = pack_task(problem, (currents, state, params), results)
            self._launch(self._forward, task, problem[1])
            return 0 if torch.cuda.is_current_stream_capturing() else int(failed.item())

    def backward(self, *arguments: Any) -> None:
        *problem, currents, state, params, spikes, stride, membrane, after, to, to_state, to_params = (
            arguments
        )
        steps, columns = problem[:2]
        with torch.cuda.device(self.device):
            length = scratch(steps, columns, len(state) // 8)
            starts = torch.empty(length, dtype=torch.float64, device=self.device)
            gradients = (spikes, membrane, after, to, to_state, to_params, starts.data_ptr())
            task = pack_task(problem, (currents, state, params), None, gradients, stride)
            self._launch(self._backward, task, columns)

    def _launch(self, function: ctypes.c_void_p, task: bytes, columns: int) -> None:
        enter_context(self.device.index)
        buffer = ctypes.create_string_buffer(task, len(task))
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
        blocks = -(-columns // THREADS)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _check(_driver().cuLaunchKernel(function, blocks, 1, 1, THREADS, 1, 1, 0, stream, arguments, None))


def enter_context(device: int) -> None:
    """Give this thread torch's context of a device where it has none.

    The driver's calls need one, and a thread of autograd has none before its first call of the runtime.
    """
    context = ctypes.c_void_p()
    _check(_driver().cuCtxGetCurrent(ctypes.byref(context)))
    if not context:
        handle = ctypes.c_int()
        _check(_driver().cuDeviceGet(ctypes.byref(handle), device))
        _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
        _check(_driver().cuCtxSetCurrent(context))


def scratch(steps: int, columns: int, fields: int) -> int:
    """Numbers that a backward leaves at the starts of its segments, eight bytes each for any dtype."""
    segments = -(-steps // SEGMENT)
    return segments * fields * columns if segments > 1 else 0


def pack_task(
    problem: Sequence[Any],
    inputs: Sequence[Any],
    results: Sequence[Any] | None,
    gradients: Sequence[Any] | None = None,
    grad_stride: int = 0,
) -> bytes:
    """Task of unroll_cuda.h from the arguments of unroll.h's functions, where arrays are packed bytes."""
    steps, columns, inner, features, stride, live, held, sizes, numbers, _threads = problem
    currents, state, params = inputs
    spikes, membrane, after, failed = results or (None, None, bytes(8 * _FIELDS), None)
    of_spikes, of_membrane, of_after, to, to_state, to_params, starts = gradients or (
        None, None, b"", None, b"", b"", None,
    )  # fmt: skip
    return b"".join(
        (
            struct.pack("8q", steps, columns, inner, features, stride, live, held, grad_stride),
            _room(sizes, _PARAMS),
            _room(numbers, _NUMBERS),
            _address(currents),
            _room(state, _FIELDS),
            _room(params, _PARAMS),
            _address(spikes) + _address(membrane),
            _room(after, _FIELDS),
            _address(failed),
            _address(of_spikes) + _address(of_membrane),
            _room(of_after, _FIELDS),
            _address(to),
            _room(to_state, _FIELDS),
            _room(to_params, _PARAMS),
            _address(starts),
        )
    )


def _address(pointer: int | None) -> bytes:
    return struct.pack("P", pointer or 0)


def _room(packed: bytes, count: int) -> bytes:
    """Eight-byte items, with zeros up to `count`."""
    if len(packed) > 8 * count:
        raise BuildError(f"Task of unroll_cuda.h has room for {count} items, needs {len(packed) // 8}")
    return packed.ljust(8 * count, b"\0")
