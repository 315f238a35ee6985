"""count(): run a module once and book every tensor operation that it does.

A TorchDispatchMode sees all of them, whether a layer, a functional call or an operator caused them; hooks
and the spike counter only say where they belong. Two kinds of module are taken at their meaning instead:

    a marsnn Neuron    its updates are booked at `update_cost`, not the tensor operations that compute them
    a marsnn Network   its linear maps and neurons are booked from the spikes, see `events`
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from marsnn.checks import count as whole
from marsnn.checks import finite
from marsnn.energy import arithmetic
from marsnn.energy.counts import OperationCounts
from marsnn.energy.events import SpikeCounter, book_neuron
from marsnn.errors import InputError, MarsnnError, ShapeError
from marsnn.gated import GatedLinear
from marsnn.network import LINEAR_MAPS, Network, evaluating
from marsnn.neurons.base import Neuron
from marsnn.ssm import SequenceLayer

QUIET = None
"""The scope in which operations are not audited: inside a neuron, and between the layers of a Network."""


def count(module: nn.Module, inputs: Any, tokens: int | None = None) -> OperationCounts:
    """Count the operations of one inference.

    Operations are booked under the innermost named submodule that runs them, and under the class name of
    `module` where that is `module` itself. A Network inside is counted from its spikes, so its unrolled
    and its one-matmul run count alike. The module runs once in eval mode without gradients, fused
    attention and recurrent kernels replaced by the operations they stand for, and gets its training flags
    back.

    State space layers (`marsnn.ssm`) are counted by their recurrence, one token after the other, as they run
    where tokens arrive; padded and packed calls of theirs as they are.

    In a module that is no Network a neuron's `decode` costs a multiplication and an addition per element
    of the train, and what it returns is graded: the matmul that follows is a MAC.

    Args:
        module: any torch.nn.Module.
        inputs: a tensor or a tuple of tensors for its arguments, or a mapping of names to tensors. A
            Network takes x [L, B, *D].
        tokens: what "per token" divides by; L B for a Network and otherwise the batch size, which is the
            first axis of the first input.

    Returns:
        OperationCounts of the whole run.

    Raises:
        InputError: not a module, not tensors, or the module refused them.   ShapeError: their shape is
        wrong.   NonFiniteError: they, or the parameters, hold NaN or infinity.

    Example:
        >>> import torch
        >>> from marsnn.energy import count
        >>> counts = count(torch.nn.Linear(3, 2), torch.tensor([[1.0, 0.0, -1.0]]))
        >>> counts.total.ac, counts.total.dense_ac, counts.total.add
        (4, 6, 2)
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"count() runs a torch.nn.Module, got {type(module).__name__}")
    args, kwargs = _arguments(inputs)
    for name, parameter in module.named_parameters():
        finite(f"{name}: the parameter", parameter.detach())
    counts = OperationCounts(tokens=_tokens(module, [*args, *kwargs.values()], tokens), steps=_steps(module))
    audit = Audit(module, counts)
    with evaluating(module), torch.no_grad(), _as_written(), audit, audit.listening():
        _call(module, args, kwargs)
    return counts


class Audit(TorchDispatchMode):
    """Books every operation under the scope that is open when it runs."""

    def __init__(self, module: nn.Module, counts: OperationCounts) -> None:
        super().__init__()
        self.module = module
        self.counts = counts
        self.names = {child: name or type(module).__name__ for name, child in module.named_modules()}
        self.scopes: list[str | None] = [self.names[module]]
        self.entered: set[nn.Module] = set()
        self.from_spikes: set[nn.Module] = set()  # maps within a Network's layer, which its spikes book
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters() if p.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        scope = self.scopes[-1]
        if scope is not QUIET and not _is_view(func):
            self._book(scope, _name(func), args, kwargs, out)
        return out

    def _book(self, scope: str, name: str, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        layer = self.counts.layer(scope)
        synaptic = arithmetic.synapses(name, args, kwargs, out, self._is_weight)
        if synaptic is not None:
            synapses, outside = synaptic
            if synapses.ternary:
                layer.ac += synapses.effective
                layer.dense_ac += synapses.dense
            else:
                layer.mac += synapses.effective
                layer.dense_mac += synapses.dense
            layer.baseline_mac += synapses.dense
        else:
            known = arithmetic.elementwise(name, args, kwargs, out)
            written = sum(tensor.numel() for tensor in _tensors(out))
            outside = arithmetic.Elementwise(rest=((name, written),)) if known is None else known
        layer.mul += outside.mul
        layer.add += outside.add
        for operation, elements in outside.rest:
            self.counts.leave_out(operation, elements)
        if not name.startswith(("empty", "new_empty")):
            layer.bytes_moved += sum(t.numel() * t.element_size() for t in _tensors([args, kwargs, out]))

    def _is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, or a view of one."""
        return tensor.untyped_storage().data_ptr() in self.weights

    # ---- where operations belong ----------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks and stand-ins on every submodule, taken off again whatever happens."""
        for network in [child for child in self.module.modules() if isinstance(child, Network)]:
            for name, layer in network.layers.items():
                for part in layer.modules():
                    self.names[part] = self._prefix(network) + name
                if isinstance(layer, GatedLinear):
                    self.from_spikes |= {layer.gate, layer.up}
        neurons = [child for child in self.module.modules() if isinstance(child, Neuron)]
        inside = {part for neuron in neurons for part in neuron.modules() if part is not neuron}
        with ExitStack() as stack:
            for child in self.module.modules():
                if child in inside:  # an adopted neuron's own modules belong to its updates
                    continue
                stack.callback(child.register_forward_pre_hook(self._enter).remove)
                stack.callback(child.register_forward_hook(self._leave, always_call=True).remove)
                if isinstance(child, Neuron):
                    stack.enter_context(_replaced(child, self._neuron_calls(child)))
                elif isinstance(child, SequenceLayer):
                    stack.enter_context(_replaced(child, {"forward": self._token_by_token(child)}))
                elif isinstance(child, Network):
                    stack.enter_context(_replaced(child, {"run": self._network_run(child)}))
            yield

    def _prefix(self, network: Network) -> str:
        return "" if network is self.module else self.names[network] + "."

    def _enter(self, module: nn.Module, args: Any) -> None:
        between_layers = self.scopes[-1] is QUIET and isinstance(module, (Neuron, *LINEAR_MAPS))
        quiet = between_layers or module in self.from_spikes
        self.scopes.append(QUIET if quiet else self.names[module])
        self.entered.add(module)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.scopes.pop()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        self.scopes.append(QUIET)
        try:
            yield
        finally:
            self.scopes.pop()

    # ---- modules that are taken at their meaning ------------------------------------------------

    def _network_run(self, network: Network) -> Callable[..., Any]:
        run, prefix = network.run, self._prefix(network)

        def counted(x: Tensor, state: Any = None, listeners: Any = (), final_state: bool = True) -> Any:
            counter = SpikeCounter(self.counts, network, prefix)
            # one of the two equal ways to run it, so that rounding can't make their counts differ
            with self._quietly(), _replaced(network, {"unrolled": False}):
                out = run(x, state, (*listeners, counter), final_state)
            for name, layer in network.layers.items():
                if layer not in self.entered and not isinstance(layer, (Neuron, *LINEAR_MAPS)):
                    self.counts.leave_out(f"{prefix}{name} ({type(layer).__name__})", out[0].numel())
            return out

        return counted

    def _token_by_token(self, layer: SequenceLayer) -> Callable[..., Any]:
        """The recurrence instead of the chunked or FFT form, whose work depends on how it is cut."""
        forward = layer.forward

        def counted(x: Tensor, state: Any = None, *rest: Any, **more: Any) -> Any:
            if any(each is not None for each in (*rest[1:], more.get("mask"), more.get("segments"))):
                return forward(x, state, *rest, **more)
            with self._quietly():
                layer.step(x[0], state)  # what follows from the weights alone is made here
            outputs = []
            for token in x:
                y, state = layer.step(token, state)
                outputs.append(y)
            return torch.stack(outputs), state

        return counted

    def _neuron_calls(self, neuron: Neuron) -> dict[str, Callable[..., Any]]:
        """The calls of a neuron, each booking its updates instead of its tensor operations."""
        forward, trace, step = neuron.forward, neuron.trace, neuron.step
        encode, decode = neuron.encode, neuron.decode

        def booked(spikes: Tensor, currents: Tensor, membrane: Tensor, before: Tensor) -> None:
            layer = self.counts.layer(self.names[neuron])
            book_neuron(layer, neuron, spikes, (spikes, currents, membrane, before))
            layer.bytes_moved += sum(t.numel() * t.element_size() for t in (currents, spikes))

        def over_steps(original: Callable[..., Any]) -> Callable[..., Any]:
            def counted(currents: Tensor, state: Any = None) -> Any:
                if self.scopes[-1] is QUIET:
                    return original(currents, state)
                with self._quietly():
                    out = original(currents, state)
                    membrane = trace(currents, state)[1]
                    first = torch.zeros_like(membrane[:1]) if state is None else state[0].unsqueeze(0)
                    booked(out[0], currents, membrane, torch.cat([first, membrane[:-1]]))
                return out

            return counted

        def counted_step(current: Tensor, state: Any = None) -> Any:
            if self.scopes[-1] is QUIET:
                return step(current, state)
            with self._quietly():
                spikes, after = step(current, state)
                before = torch.zeros_like(after[0]) if state is None else state[0]
                booked(*(each.unsqueeze(0) for each in (spikes, current, after[0], before)))
            return spikes, after

        def counted_encode(x: Tensor) -> Tensor:
            if self.scopes[-1] is QUIET:
                return encode(x)
            with self._quietly():
                spikes = encode(x)
                currents = neuron.present(x)
                membrane = trace(currents)[1]
                before = torch.cat([torch.zeros_like(membrane[:1]), membrane[:-1]])
                booked(spikes, currents, membrane, before)
            return spikes

        def counted_decode(spikes: Tensor) -> Tensor:
            if self.scopes[-1] is QUIET:
                return decode(spikes)
            with self._quietly():
                value = decode(spikes)
            layer = self.counts.layer(self.names[neuron])
            layer.mul += spikes.numel()
            layer.add += spikes.numel()
            layer.bytes_moved += sum(t.numel() * t.element_size() for t in (spikes, value))
            return value

        return {
            "forward": over_steps(forward),
            "trace": over_steps(trace),
            "step": counted_step,
            "encode": counted_encode,
            "decode": counted_decode,
        }


@contextmanager
def _replaced(owner: nn.Module, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of one instance, for a while; its class and every other instance keep theirs."""
    own = vars(owner)
    missing = object()
    kept = {name: own.get(name, missing) for name in attributes}
    own.update(attributes)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is missing:
                del own[name]
            else:
                own[name] = value


@contextmanager
def _as_written() -> Iterator[None]:
    """No fused attention, encoder, recurrent or compiled kernels: they hide the operations in them."""
    fast, cudnn, mkldnn = (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.enabled,
        torch._C._get_mkldnn_enabled(),  # its public switch warns about TF32 whatever one sets
    )
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cudnn.enabled = False
    torch._C._set_mkldnn_enabled(False)
    try:
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if "torch._dynamo" in sys.modules:  # slow to import, and nothing is compiled without it
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.cudnn.enabled = cudnn
        torch._C._set_mkldnn_enabled(mkldnn)


# ---- what came in ---------------------------------------------------------------------------------------


def _arguments(inputs: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    else:
        args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    named = {**{f"input {i}": value for i, value in enumerate(args)}, **kwargs}
    if not named:
        raise InputError("count() needs at least one input tensor, got none")
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} must be a tensor, got {type(value).__name__}; inputs is a tensor, a tuple of "
                "tensors or a mapping of names to tensors"
            )
        finite(name, value)
    return args, kwargs


def _tokens(module: nn.Module, tensors: list[Tensor], given: int | None) -> int:
    if given is not None:
        return whole("tokens", given)
    shape = tensors[0].shape
    axes = shape[:2] if isinstance(module, Network) else shape[:1]
    tokens = axes.numel()
    if tokens == 0:
        raise ShapeError(f"the first input {list(shape)} is empty: count() needs at least one token")
    return tokens


def _steps(module: nn.Module) -> int:
    return max((child.steps for child in module.modules() if isinstance(child, Neuron)), default=1)


def _call(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    try:
        module(*args, **kwargs)
    except (MarsnnError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (*args, *kwargs.values()))
        reason = (str(error) or type(error).__name__).splitlines()[0]
        kind = ShapeError if "shape" in reason or "size" in reason else InputError
        raise kind(f"{type(module).__name__} can't run on inputs {shapes}: {reason}") from error


# ---- reading an operation -------------------------------------------------------------------------------


def _name(func: Any) -> str:
    """aten.add_.Tensor -> add; operations of other libraries keep theirs: torchvision.nms."""
    name: str = func.overloadpacket.__name__
    if func.namespace not in ("aten", "prims"):
        return f"{func.namespace}.{name}"
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _is_view(func: Any) -> bool:
    """Whether the result shares its input's memory and nothing was written."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
