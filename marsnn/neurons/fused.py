"""T steps in one pass over memory: the fast path of every neuron, forward and backward.

`Neuron` calls `unroll` here wherever it runs more than one step. The kernels (`kernels/*.h`) do the same
operations in the same order as the step functions, each rounded to the dtype, so spikes, membranes and states
are those of the reference bit for bit. What autograd keeps is the input alone: the backward runs the steps
once more, block by block, and then back.

    eager                  an autograd.Function around the kernel
    inside torch.compile   a custom operator, marsnn::unroll, which needs no graph break
    create_graph=True      the gradient is that of the reference, differentiable again

On a GPU the same sources are built by NVRTC (`cuda.py`); a kernel is believed there once it has done, on that
device, what the steps do.

The reference is taken instead for a surrogate of another library, a dtype or device without kernels, inside
torch.func transforms and other dispatch modes, and where there is no compiler, which is said once.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from marsnn import native
from marsnn import surrogate as surrogates
from marsnn.checks import finite
from marsnn.errors import InputError, NonFiniteError
from marsnn.native import say_once
from marsnn.neurons import compiler, cuda

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
PARALLEL = 1 << 15
"""Neuron-steps from which a second thread is worth waking."""

LAUNCHES: Counter[tuple[str, str, str]] = Counter()
"""How often kernels ran: (kernel, dtype, "forward" | "backward")."""


class Kernel(NamedTuple):
    """Which kernel a neuron wants, and what it knows beside the tensors."""

    header: str  # of kernels/
    macros: tuple[str, ...]
    numbers: tuple[float, ...]  # beside the surrogate's


def levels_are_distinct(fire_at: float) -> bool:
    """Whether comparing h with fire_at V decides as (h - fire_at V) / V >= 0 does, in every dtype.

    The quotient of a difference that is not zero could vanish only where fire_at is below the resolution
    of the dtype; 2^-10 leaves room for float16's subnormals.
    """
    return fire_at >= 2.0**-10


class Drive(NamedTuple):
    """How currents reach T steps: "given" for each step, "held" at every step, "impulse" at the first."""

    kind: str
    steps: int


class Call(NamedTuple):
    """One use of a kernel, but for its tensors: all that the backward must know again."""

    kernel: str  # header
    macros: tuple[str, ...]
    numbers: tuple[float, ...]
    drive: str
    steps: int
    inner: int  # elements of a sample that share one feature's settings
    features: int
    fields: int  # tensors of a state
    learned: int  # bit k: parameter k wants its gradient
    membrane: bool


def kernel_for(neuron: Any, currents: Tensor) -> Kernel | str:
    """The kernel that these currents want, or why the reference must run them."""
    kernel: Kernel | None = neuron.kernel(currents) if neuron._kernel_fits else None
    if kernel is None:
        return "it has no kernel for this step function and these settings"
    if isinstance(neuron.surrogate, surrogates._Foreign):
        return "the surrogate is another library's; take one of marsnn.surrogate"
    if currents.dtype not in DTYPES or currents.device.type not in ("cpu", "cuda"):
        return f"there are no kernels for {currents.dtype} on {currents.device.type}"
    compiling = torch.compiler.is_compiling()
    if not compiling and (
        type(currents) not in (Tensor, torch.nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    ):
        return "tensors are being transformed or traced (torch.func, a dispatch mode, a subclass)"
    if currents.device.type == "cpu":
        return kernel if _found_compiler() else "there is no C++ compiler (CXX, c++, g++, clang++)"
    if compiling:
        return "torch.compile fuses the steps by itself on a GPU"
    return kernel if cuda.nvrtc() else "torch brought no NVRTC, so it is not built for CUDA"


def _found_compiler() -> bool:
    if native.compiler() is None:
        say_once(
            "no C++ compiler found: neurons run step by step, slower and equal; install g++ to fuse them"
        )
        return False
    return True


# What torch.compiler.assume_constant_result does, which imports dynamo: as long as all of torch takes.
_found_compiler._dynamo_marked_constant = True  # type: ignore[attr-defined]


def unroll(
    neuron: Any, currents: Tensor, state: Any, drive: Drive, membrane: bool
) -> tuple[Tensor, Tensor | None, Any] | None:
    """T steps by the kernel, or None where the reference must run them.

    Args:
        neuron: a `Neuron`; its `backend` decides.
        currents: [T, *, N] if given, else [*, N].
        state: a state of [*, N] tensors, or None for zeros.
        drive: how the currents reach the steps.
        membrane: whether to return the membrane after every step.

    Returns:
        spikes [T, *, N], membrane [T, *, N] or None, and the final state.

    Raises:
        InputError: backend="fused" where no kernel can run.   NonFiniteError: NaN or infinite currents.
    """
    if neuron.backend == "reference":
        return None
    kernel = kernel_for(neuron, currents)
    if isinstance(kernel, str):
        if neuron.backend == "fused":
            raise InputError(f'{type(neuron).__name__}: backend="fused" can\'t run this: {kernel}')
        return None
    params = neuron.params(currents)
    tensors = [field for field in params if isinstance(field, Tensor)]
    learned = sum(tensor.requires_grad << k for k, tensor in enumerate(tensors))
    call = Call(
        kernel.header,
        (
            *kernel.macros,
            f"DTYPE_{DTYPES[currents.dtype]}",
            f"SURROGATE_{neuron.surrogate.name}",
            *((f"LEARNED={learned}",) if learned else ()),
        ),
        (neuron.surrogate.setting, *kernel.numbers),
        drive.kind,
        drive.steps,
        currents.shape[neuron.feature_dim + 1 :].numel() if neuron.feature_dim < -1 else 1,
        neuron.features or 1,
        len(neuron.state_fields()),
        learned,
        membrane,
    )
    given = () if state is None else tuple(state)
    if not _fit(currents, given, tensors, call.features):
        return None
    if torch.compiler.is_compiling():
        results = torch.ops.marsnn.unroll(
            currents, list(given), tensors, call.kernel, " ".join(call.macros), list(call.numbers), *call[3:]
        )
    else:
        reference = _Reference(neuron, params)
        try:
            if currents.device.type != "cpu" and not _agrees(reference, call, currents, tensors):
                return None
            if torch.is_grad_enabled():
                results = _Unroll.apply(call, reference, len(given), currents, *given, *tensors)
            else:
                results = run_forward(call, currents, given, tensors)
        except native.BuildError as error:
            if neuron.backend == "fused":
                raise
            say_once(f"{error}; neurons run step by step")
            return None
        except NonFiniteError as error:
            raise NonFiniteError(f"{type(neuron).__name__}: {error}") from None
    spikes, rest = results[0], results[1:]
    return spikes, rest[0] if membrane else None, neuron.State(*rest[membrane:])


def _fit(currents: Tensor, state: Sequence[Tensor], tensors: Sequence[Tensor], features: int) -> bool:
    """Whether a kernel may read these tensors as they are: the reference would convert or broadcast them."""
    alike = all(t.dtype == currents.dtype and t.device == currents.device for t in (*state, *tensors))
    return alike and all(tensor.numel() in (1, features) for tensor in tensors)


class _Reference(NamedTuple):
    """The steps as plain torch, of the tensors that autograd handed to the kernel."""

    neuron: Any
    params: Any

    def outputs(
        self, call: Call, currents: Tensor, state: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """spikes, membrane if wanted, and the final state's fields."""
        fresh = iter(tensors)
        params = type(self.params)(*(next(fresh) if isinstance(p, Tensor) else p for p in self.params))
        held, silence = call.drive == "held", torch.zeros_like(currents)
        sample = currents[0] if call.drive == "given" else currents
        now = self.neuron.State(*(state or [torch.zeros_like(sample)] * call.fields))
        spikes, membrane = [], []
        for t in range(call.steps):
            current = currents[t] if call.drive == "given" else currents if held or t == 0 else silence
            spike, now = self.neuron.equation(current, now, params)
            spikes.append(spike)
            membrane.append(now[0])
        return (torch.stack(spikes), *([torch.stack(membrane)] if call.membrane else []), *now)


_AGREEMENT: dict[tuple[Any, ...], bool] = {}


def _agrees(reference: _Reference, call: Call, currents: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether a GPU's kernel was found to do on this device what the steps do there; tried on first use.

    Raises:
        InputError: it doesn't, and the neuron's backend is "fused".
    """
    key = (call.kernel, call.macros, currents.device)
    if key not in _AGREEMENT:
        with torch.no_grad():
            first = [param.reshape(-1)[0] for param in params]
        _AGREEMENT[key] = probe(reference, call, currents, first)
    if not _AGREEMENT[key]:
        differs = f"the {call.kernel} kernel and its steps differ on {currents.device}"
        if reference.neuron.backend == "fused":
            raise InputError(f'{type(reference.neuron).__name__}: backend="fused" can\'t run this: {differs}')
        say_once(f"{differs}; neurons run step by step there")
    return _AGREEMENT[key]


def probe(reference: _Reference, call: Call, like: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether the kernel of a call does what its steps do: spikes, membranes and states bit for bit,
    gradients within rounding, on currents of which half are multiples of the settings' quarters, which lie
    on thresholds.

    Args:
        reference: the steps.   call: which kernel; its sizes don't matter.   like: any tensor of the dtype
        and device.   params: one number each.
    """
    steps, columns = 7, 512
    call = call._replace(drive="given", steps=steps, inner=1, features=1, membrane=True)
    draw = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, *(abs(float(param)) for param in params)])
    quarters = torch.randint(-12, 13, (steps, columns), generator=draw) / 4
    ties = quarters * scale[torch.randint(len(scale), (steps, columns), generator=draw)]
    noise = 2 * torch.randn(steps, columns, generator=draw)
    currents = torch.where(torch.arange(columns) % 2 == 0, ties, noise).to(like)
    upstream = torch.randn(steps, columns, generator=draw).to(like)
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [each.detach().clone().requires_grad_() for each in (currents, *params)]
        state = list(reference.neuron.initial_state(currents[0]))
        wanted = reference.outputs(call, inputs[0], state, inputs[1:])
        slopes = torch.autograd.grad(wanted[0], inputs, upstream, allow_unused=True)
    with torch.no_grad():
        found = run_forward(call, currents, state, params)
        if not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)):
            return False
        back = run_backward(call, currents, state, params, [upstream, *[None] * (len(found) - 1)])
        gradients = [back[0], *back[1 + len(state) :]]
        for gradient, slope in zip(gradients, slopes, strict=True):
            if gradient is not None and slope is not None:
                allowed = 64 * torch.finfo(like.dtype).eps * slope.abs().max().clamp(min=1)
                if not bool(((gradient - slope).abs() <= allowed).all()):
                    return False
    return True


class _Unroll(torch.autograd.Function):
    """The kernel under autograd; keeps its inputs and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, reference: _Reference, fields: int, currents: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.call, ctx.reference, ctx.fields = call, reference, fields
        ctx.save_for_backward(currents, *tensors)
        ctx.set_materialize_grads(False)
        return tuple(run_forward(call, currents, tensors[:fields], tensors[fields:]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:  # type: ignore[override]
        currents, *tensors = ctx.saved_tensors
        state, params = tensors[: ctx.fields], tensors[ctx.fields :]
        if torch.is_grad_enabled():  # create_graph=True
            return (None, None, None, *_differentiable(ctx, currents, state, params, grads))
        found = run_backward(ctx.call, currents, state, params, grads)
        return (None, None, None, *found)


def _differentiable(
    ctx: Any, currents: Tensor, state: list[Tensor], params: list[Tensor], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients by the reference, so that they can be differentiated again."""
    # as tensors of their own: a state may have been made from the same parameters
    inputs = [each.view_as(each) for each in (currents, *state, *params)]
    currents, state, params = inputs[0], inputs[1 : 1 + len(state)], inputs[1 + len(state) :]
    outputs = ctx.reference.outputs(ctx.call, currents, state, params)
    followed = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
    wanted = [i for i, each in enumerate(inputs) if each.requires_grad]
    found: list[Tensor | None] = [None] * len(inputs)
    if followed and wanted:
        slopes = torch.autograd.grad(
            [y for y, _ in followed],
            [inputs[i] for i in wanted],
            [g for _, g in followed],
            create_graph=True,
            allow_unused=True,
        )
        for i, slope in zip(wanted, slopes, strict=True):
            found[i] = slope
    return found


# ---- the kernels, on tensors ----------------------------------------------------------------------------


def run_forward(
    call: Call, currents: Tensor, state: Sequence[Tensor], params: Sequence[Tensor]
) -> list[Tensor]:
    """spikes [T, *, N], the membrane [T, *, N] if wanted, and the fields of the final state [*, N].

    An empty `state` is one of zeros.
    """
    laid, state, params = _laid(call, currents), _contiguous(state), _contiguous(params)
    sample = _sample(call, currents)
    spikes = currents.new_empty((call.steps, *sample))
    membrane = torch.empty_like(spikes) if call.membrane else None
    after = [currents.new_empty(sample) for _ in range(call.fields)]
    failed = 0
    if spikes.numel():
        failed = _library(call, currents).forward(
            *_problem(call, laid, sample.numel(), params),
            laid.data_ptr(),
            _pointers(state or [None] * call.fields),
            _pointers(params),
            spikes.data_ptr(),
            _pointer(membrane),
            _pointers(after),
        )
        LAUNCHES[call.kernel, DTYPES[currents.dtype], "forward"] += 1
    if failed:
        finite("currents", currents)
    return [spikes, *([] if membrane is None else [membrane]), *after]


def run_backward(
    call: Call,
    currents: Tensor,
    state: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of currents, state and params from those of `run_forward`'s results, None for zero.

    Parameters get theirs where `call.learned` has their bit.
    """
    laid, state, params = _laid(call, currents), _contiguous(state), _contiguous(params)
    sample = _sample(call, currents)
    spikes, *rest = grads
    membrane = rest.pop(0) if call.membrane else None
    spikes, stride = (None, 0) if spikes is None else _laid_train(spikes)
    membrane = None if membrane is None else membrane.contiguous()
    after = [None if grad is None else grad.contiguous() for grad in rest]
    grad_currents = torch.empty_like(currents, memory_format=torch.contiguous_format)
    grad_state = [currents.new_empty(sample) for _ in state]
    wide = torch.float64 if currents.dtype == torch.float64 else torch.float32
    columns = [
        currents.new_empty(sample, dtype=wide) if call.learned >> k & 1 else None for k in range(len(params))
    ]
    if sample.numel():
        _library(call, currents).backward(
            *_problem(call, laid, sample.numel(), params),
            laid.data_ptr(),
            _pointers(state or [None] * call.fields),
            _pointers(params),
            _pointer(spikes),
            stride,
            _pointer(membrane),
            _pointers(after),
            grad_currents.data_ptr(),
            _pointers(grad_state or [None] * call.fields),
            _pointers(columns),
        )
        LAUNCHES[call.kernel, DTYPES[currents.dtype], "backward"] += 1
    summed = [_per_setting(call, column, param) for column, param in zip(columns, params, strict=True)]
    return [grad_currents, *grad_state, *summed]


def _per_setting(call: Call, column: Tensor | None, param: Tensor) -> Tensor | None:
    """Sum a gradient over the columns that share a setting."""
    if column is None:
        return None
    if param.numel() == 1:
        total = column.sum()
    else:
        total = column.reshape(-1, call.features, call.inner).sum((0, 2))
    return total.reshape(param.shape).to(param.dtype)


def _library(call: Call, currents: Tensor) -> Any:
    """`forward` and `backward` for the device that holds the currents."""
    if currents.device.type == "cuda":
        return cuda.library(call.kernel, call.macros, currents.device.index)
    return compiler.library(call.kernel, call.macros)


def _problem(call: Call, laid: Tensor, columns: int, params: Sequence[Tensor]) -> tuple[Any, ...]:
    """The first arguments of both functions."""
    return (
        call.steps,
        columns,
        call.inner,
        call.features,
        laid.stride(0) if call.drive == "given" else 0,
        1 if call.drive == "impulse" else call.steps,
        call.drive == "held",
        struct.pack(f"{len(params)}q", *(param.numel() for param in params)),
        struct.pack(f"{len(call.numbers)}d", *call.numbers),
        torch.get_num_threads() if call.steps * columns >= PARALLEL else 1,
    )


def _sample(call: Call, currents: Tensor) -> torch.Size:
    """The shape [*, N] of one step."""
    return currents.shape[1:] if call.drive == "given" else currents.shape


def _laid(call: Call, currents: Tensor) -> Tensor:
    """Currents whose samples are contiguous; the steps may lie anywhere."""
    if call.drive == "given":
        return currents if currents.is_contiguous() or currents[0].is_contiguous() else currents.contiguous()
    return currents.contiguous()


def _laid_train(grad: Tensor) -> tuple[Tensor, int]:
    """A gradient with contiguous samples, and the elements between its steps (0: the same at each)."""
    if not (grad.is_contiguous() or grad[0].is_contiguous()):
        grad = grad.contiguous()
    return grad, grad.stride(0)


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pointers(tensors: Sequence[Tensor | None]) -> bytes:
    return struct.pack(
        f"{len(tensors)}P", *(0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    )


# ---- inside torch.compile -------------------------------------------------------------------------------


@torch.library.custom_op("marsnn::unroll", mutates_args=())
def _unroll_op(
    currents: Tensor,
    state: list[Tensor],
    params: list[Tensor],
    kernel: str,
    macros: str,
    numbers: list[float],
    drive: str,
    steps: int,
    inner: int,
    features: int,
    fields: int,
    learned: int,
    membrane: bool,
) -> list[Tensor]:
    call = Call(
        kernel,
        tuple(macros.split()),
        tuple(numbers),
        drive,
        steps,
        inner,
        features,
        fields,
        learned,
        membrane,
    )
    return run_forward(call, currents, state, params)


@_unroll_op.register_fake
def _(
    currents: Tensor, state: Any, params: Any, kernel: Any, macros: Any, numbers: Any, drive: str, steps: int,
    inner: Any, features: Any, fields: int, learned: Any, membrane: bool,
) -> list[Tensor]:  # fmt: skip
    train = currents.new_empty((steps, *(currents.shape[1:] if drive == "given" else currents.shape)))
    trains = [train, torch.empty_like(train)] if membrane else [train]
    return [*trains, *(torch.empty_like(train[0]) for _ in range(fields))]


@torch.library.custom_op("marsnn::unroll_backward", mutates_args=())
def _unroll_backward_op(
    currents: Tensor,
    state: list[Tensor],
    params: list[Tensor],
    grads: list[Tensor],
    kernel: str,
    macros: str,
    numbers: list[float],
    drive: str,
    steps: int,
    inner: int,
    features: int,
    fields: int,
    learned: int,
    membrane: bool,
) -> list[Tensor]:
    call = Call(
        kernel,
        tuple(macros.split()),
        tuple(numbers),
        drive,
        steps,
        inner,
        features,
        fields,
        learned,
        membrane,
    )
    found = run_backward(call, currents, state, params, grads)
    return [tensor for tensor in found if tensor is not None]


@_unroll_backward_op.register_fake
def _(
    currents: Tensor, state: list[Tensor], params: list[Tensor], grads: Any, kernel: Any, macros: str,
    numbers: Any, drive: Any, steps: Any, inner: Any, features: Any, fields: Any, learned: int, membrane: Any,
) -> list[Tensor]:  # fmt: skip
    wanted = [param for k, param in enumerate(params) if learned >> k & 1]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (currents, *state, *wanted)]


_LEARNED = Call._fields.index("learned")


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    currents, state, params, *ctx.call = inputs
    ctx.fields, ctx.learned = len(state), ctx.call[_LEARNED]
    ctx.save_for_backward(currents, *state, *params)


def _op_backward(ctx: Any, grads: list[Tensor]) -> Any:
    currents, *tensors = ctx.saved_tensors
    state, params = tensors[: ctx.fields], tensors[ctx.fields :]
    found = torch.ops.marsnn.unroll_backward(currents, state, params, grads, *ctx.call)
    rest = iter(found[1 + ctx.fields :])
    grad_params = [next(rest) if ctx.learned >> k & 1 else None for k in range(len(params))]
    return found[0], found[1 : 1 + ctx.fields], grad_params, *[None] * len(ctx.call)


_unroll_op.register_autograd(_op_backward, setup_context=_setup)
