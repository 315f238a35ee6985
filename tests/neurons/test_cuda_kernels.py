"""The kernels of GPUs, without a GPU: NVRTC takes them, and the same source run thread by thread on this
processor gives what step after step gives."""

import ctypes
import os
import platform
import re
import shutil
import subprocess

import pytest
import torch

from marsnn import native, surrogate
from marsnn.errors import InputError
from marsnn.neurons import LIF, compiler, cuda, fused
from tests.helpers import same
from tests.neurons.test_contract import CASES, EVERY, N
from tests.neurons.test_fused import EPS, close, exact_gradients, pair, problem, results

THREADS = r"""
#define __device__
#define __global__
struct Index { unsigned x; };
static Index blockIdx, threadIdx, blockDim = {1};
#include <cmath>
using std::exp;
"""
LOOPS = r"""
extern "C" void run_forward(const Task* q) {
    for (blockIdx.x = 0; blockIdx.x < q->M + 3; blockIdx.x++) forward(*q);
}
extern "C" void run_backward(const Task* q) {
    for (blockIdx.x = 0; blockIdx.x < q->M + 3; blockIdx.x++) backward(*q);
}
extern "C" long size_of_task() { return sizeof(Task); }
"""
DTYPES = [torch.float64, torch.float32, torch.bfloat16]

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")


FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")


class Emulated:
    """A `cuda.Library` whose threads run one after the other here."""

    def __init__(self, header, macros, sources=compiler.SOURCES):
        text = native.source(header, ("ONE_COLUMN", f"SEGMENT={cuda.SEGMENT}", *macros), "unroll_cuda.h")
        unit = THREADS + text + LOOPS

        def build(made):
            source = made.with_name("emulated.cpp")
            source.write_text(unit)
            command = [native.compiler(), *FLAGS, f"-I{sources}", str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:2000]

        machine = (native.compiler(), str(os.stat(native.compiler()).st_mtime_ns), platform.platform())
        name = native.fingerprint(sources, unit, *FLAGS, *machine) + ".so"
        made = native.kept(f"emulated-{header}", name, build)
        self.made = ctypes.CDLL(str(made))
        self.made.run_forward.argtypes = self.made.run_backward.argtypes = [ctypes.c_char_p]
        self.made.size_of_task.restype = ctypes.c_long

    def forward(self, *arguments):
        *problem, currents, state, params, spikes, membrane, after = arguments
        failed = torch.zeros(1, dtype=torch.int32)
        given = (currents, state, params)
        task = cuda.pack_task(problem, given, (spikes, membrane, after, failed.data_ptr()))
        assert len(task) == self.made.size_of_task()
        self.made.run_forward(task)
        return int(failed)

    def backward(self, *arguments):
        *problem, currents, state, params, spikes, stride, membrane, after, to, to_state, to_params = (
            arguments
        )
        starts = torch.full((cuda.scratch(*problem[:2], len(state) // 8),), torch.nan, dtype=torch.float64)
        gradients = (spikes, membrane, after, to, to_state, to_params, starts.data_ptr())
        self.made.run_backward(cuda.pack_task(problem, (currents, state, params), None, gradients, stride))


@pytest.fixture(scope="module")
def _made():
    return {}


@pytest.fixture
def emulated(kernel_cache, monkeypatch, _made):
    """CPU tensors go through the kernels of GPUs."""
    made = _made

    def library(call, currents):
        key = (call.kernel, call.macros)
        if key not in made:
            made[key] = Emulated(*key)
        return made[key]

    monkeypatch.setattr(fused, "_library", library)
    return made


# ---- thread by thread ---------------------------------------------------------------------------------


@needs_compiler
@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_states_and_gradients(case, dtype, emulated):
    reference, fast = pair(*case, dtype)
    for T in (1, 5):
        given = problem(reference, T, 11, N, dtype=dtype)
        outputs, slopes, learned = results(reference, *given)
        ours, our_slopes, our_learned = results(fast, *given)
        assert same(ours, outputs)
        if exact_gradients(reference):
            assert same(our_slopes, slopes)
        close(our_slopes, slopes, EPS[dtype])
        close(our_learned, learned, 10 * EPS[dtype])
    assert emulated


@needs_compiler
@pytest.mark.parametrize("T", [2, 3, 7, 16, 31, 32, 33, 63, 64, 65, 96, 200])
@pytest.mark.parametrize("name", ["LIF", "ALIF"])
def test_segments(name, T, emulated):
    reference, fast = pair(name, {"features": 3})
    given = problem(reference, T, 5, 3)
    assert same(results(fast, *given), results(reference, *given))


@needs_compiler
@pytest.mark.parametrize("name", ["LIF", "ATMN", "ALIF"])
def test_static_activations(name, emulated):
    reference, fast = pair(name, {"features": 3, "steps": 40})
    for neuron_input in (torch.randn(4, 3), torch.randn(2, 4, 3)):
        found = []
        for neuron in (reference, fast):
            x = neuron_input.clone().requires_grad_()
            spikes = neuron.encode(x)
            found.append((spikes, *torch.autograd.grad((spikes * torch.linspace(-1, 1, 3)).sum(), x)))
        assert same(found[0][0], found[1][0])
        close(found[0], found[1], 1e-5)


@needs_compiler
def test_float16_is_rounded_as_torch_does(emulated):
    reference, fast = pair("LIF", {"features": None, "beta": 0.7}, torch.float16)
    given = problem(reference, 6, 500, dtype=torch.float16)
    assert same(results(fast, *given)[:2], results(reference, *given)[:2])


@needs_compiler
def test_infinite_states_are_noticed(emulated):
    x = torch.ones(3, 4)
    x[1, 2] = torch.inf
    with pytest.raises(ValueError, match=r"LIF: currents holds 1 NaN or infinite values of 12, .*\(1, 2\)"):
        LIF(backend="fused")(x)


# ---- the check before a kernel is believed ------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{len(case[1])}")
def test_kernels_are_believed(case, dtype, emulated):
    for learned in (False, True):
        assert verdict(case, dtype, learned)


def verdict(case, dtype, learned=True):
    _, neuron = pair(*case, dtype)
    like = torch.zeros(3, N, dtype=dtype)
    call, reference, params = asked(neuron, like, learned)
    return fused.probe(reference, call, like, [param.detach().reshape(-1)[0] for param in params])


def asked(neuron, like, learned=True):
    """The call that a neuron makes, as `fused.unroll` puts it together."""
    seen = {}
    neuron.requires_grad_(learned)
    with pytest.MonkeyPatch.context() as patch:

        def remember(call, reference, fields, currents, *tensors):
            seen.update(call=call, reference=reference, params=tensors[fields:])
            raise native.BuildError("enough")

        patch.setattr(fused._Unroll, "apply", remember)
        with pytest.raises(native.BuildError):
            neuron(like)
    return seen["call"], seen["reference"], seen["params"]


MUTANTS = [
    ("lif.h", "h >= p[THRESHOLD]", "value(h) > value(p[THRESHOLD])"),
    ("lif.h", "h - p[THRESHOLD], h)", "h * constant(0), h)"),
    ("lif.h", "S gx = gs * derivative", "S gx = gs * constant(2) * derivative"),
    ("lif.h", "gh = gh + gx", "gh = gh - gx"),
    ("unroll_cuda.h", "for (Long t = end - 1; t >= start; t--)", "for (Long t = start; t < end; t++)"),
    ("unroll_cuda.h", "store(q.spikes, t * q.M + c, spike)", "store(q.spikes, t * q.M, spike)"),
    ("unroll_cuda.h", "store(q.after[k], c, own.state[k])", "store(q.after[k], c, constant(0))"),
]


@needs_compiler
@pytest.mark.parametrize(("file", "right", "wrong"), MUTANTS, ids=range(len(MUTANTS)))
def test_a_wrong_kernel_is_not_believed(file, right, wrong, kernel_cache, monkeypatch, tmp_path):
    shutil.copytree(compiler.SOURCES, tmp_path / "kernels")
    text = (tmp_path / "kernels" / file).read_text()
    assert right in text
    (tmp_path / "kernels" / file).write_text(text.replace(right, wrong))
    monkeypatch.setattr(
        fused, "_library", lambda call, currents: Emulated(call.kernel, call.macros, tmp_path / "kernels")
    )
    assert not verdict(("LIF", {"features": None}), torch.float32)


def test_what_is_not_believed_is_said_once_and_run_step_by_step(monkeypatch):
    monkeypatch.setattr(native, "_SAID", set())
    monkeypatch.setattr(fused, "_AGREEMENT", {})
    monkeypatch.setattr(fused, "probe", lambda *_: False)
    like = torch.randn(3, 4)
    call, reference, params = asked(LIF(backend="fused"), like)
    with pytest.raises(InputError, match="the lif kernel and its steps differ on cpu"):
        fused._agrees(reference, call, like, params)
    reference.neuron.backend = "auto"
    with pytest.warns(UserWarning, match="differ on cpu; neurons run step by step there") as said:
        verdicts = [fused._agrees(reference, call, like, params) for _ in range(2)]
    assert verdicts == [False, False]
    assert len(said) == 1


# ---- NVRTC --------------------------------------------------------------------------------------------

SETTINGS = {
    "lif": [(), ("RESET_ZERO", "DETACH_RESET")],
    "atmn": [(), ("TAU_IS_POWER_OF_TWO", "DETACH_RESET")],
    "cuba_lif": [(), ("RESET_ZERO",)],
    "alif": [(), ("RESET_ZERO",)],
    "integer_lif": [("MAX_LEVEL=3",), ("MAX_LEVEL=2", "SIGNED", "RESET_ZERO")],
    "izhikevich": [()],
    "leaky_integrator": [()],
}
FUSED_OR_ROUGH = re.compile(r"\bfma\.\S*|\bmad\.\S*\.f\S*|\S*\.approx\S*|\S*\.ftz\S*")


@pytest.mark.skipif(cuda.nvrtc() is None, reason="this torch brought no NVRTC")
@pytest.mark.parametrize("architecture", ["compute_75", "compute_90", "sm_80"])
@pytest.mark.parametrize("dtype", sorted(fused.DTYPES.values()))
@pytest.mark.parametrize("header", SETTINGS)
def test_nvrtc_builds_every_kernel_without_contraction(header, dtype, architecture):
    for settings in SETTINGS[header]:
        macros = (*settings, f"DTYPE_{dtype}", "SURROGATE_atan", "LEARNED=1")
        built = cuda.compiled(header, macros, architecture)
        if architecture.startswith("sm_"):
            assert built.startswith(b"\x7fELF")
        else:
            text = built.decode()
            assert ".entry forward" in text
            assert ".entry backward" in text
            assert not FUSED_OR_ROUGH.findall(text)


@pytest.mark.skipif(cuda.nvrtc() is None, reason="this torch brought no NVRTC")
def test_every_kernel_and_surrogate_is_built():
    assert {f"{header}.h" for header in SETTINGS} == {
        path.name for path in compiler.SOURCES.glob("*.h") if "struct Neuron" in path.read_text()
    }
    for name in surrogate._KINDS:
        cuda.compiled("lif", ("DTYPE_float32", f"SURROGATE_{name}"), "compute_80")
    with pytest.raises(
        native.BuildError, match=r"NVRTC could not build the kernel lif for compute_80: .*error"
    ):
        cuda.compiled("lif", ("DTYPE_float32", "SURROGATE_none"), "compute_80")


def test_task_has_room_or_says_so():
    with pytest.raises(native.BuildError, match="room for 8 items, needs 9"):
        cuda.pack_task((1, 1, 1, 1, 1, 1, 0, b"", bytes(72), 1), (1, b"", b""), None)
