"""Our neurons in the form that snntorch and spikingjelly expect: state in the module, or by their order.

The equation, its decisions and its gradients stay ours. Nothing here imports either library before it is
asked for: the classes that inherit from theirs are made on first use.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from marsnn.errors import InputError, MissingDependencyError
from marsnn.neurons.base import Neuron


def as_spikingjelly(neuron: Neuron, step_mode: str = "s", store_v_seq: bool = False) -> Any:
    """One of our neurons as a spikingjelly `MemoryModule`.

    Its state lies in registered memories, the membrane under the name `v`, so that `functional.reset_net`,
    `set_step_mode`, `detach_net`, monitors and `base.to_functional_forward` find it. Single steps ("s") take
    [B, *N], sequences ("m") [T, B, *N]; a batch of another shape starts anew, as their neurons do.

    Our ATMN expects its current at the first step of a token and silence after it: drive it by
    `neuron.present(x)`, and reset it after each token.

    Args:
        neuron: any `Neuron`; it is shared, not copied.
        step_mode: "s" or "m".
        store_v_seq: keep the membrane of each step in `v_seq`, [T, B, *N], until the reset.

    Raises:
        MissingDependencyError: spikingjelly is not installed.

    Example:
        >>> import torch
        >>> from spikingjelly.activation_based import functional, layer
        >>> from marsnn.neurons import LIF
        >>> from marsnn.neurons.interop import as_spikingjelly
        >>> net = torch.nn.Sequential(layer.Linear(3, 2), as_spikingjelly(LIF(2)))
        >>> functional.set_step_mode(net, "m")
        >>> net(torch.rand(4, 5, 3)).shape, net[1].v.shape
        (torch.Size([4, 5, 2]), torch.Size([5, 2]))
        >>> functional.reset_net(net)
        >>> net[1].v
        0.0
    """
    return _spikingjelly_form()(_checked(neuron), step_mode, store_v_seq)


def as_snntorch(neuron: Neuron, init_hidden: bool = False, output: bool = False) -> SnnTorchForm:
    """One of our neurons as snntorch calls its own: `spk, mem = module(x, mem)`.

    A state of more fields comes in their order, the membrane last: `spk, syn, mem = module(x, syn, mem)` for
    CubaLIF, as of Synaptic. `reset_mem()` gives the state to start from, and a state of another shape starts
    anew, as with theirs.

    With `init_hidden=True` the module keeps the state and is called as `spk = module(x)` (`output=True`: with
    the states), so that it works in a Sequential and in `snntorch.backprop`. It is then an instance of Leaky,
    Synaptic or Alpha, whichever has as many states, because `snntorch.utils.reset` and `backprop` know no
    other way to find a neuron; like theirs it is reset with every network of the process that holds a neuron
    of that class, and has none of their settings.

    Args:
        neuron: any `Neuron`; it is shared, not copied.
        init_hidden: keep the state in the module.
        output: return the states even so.

    Raises:
        InputError: `init_hidden` with more than three fields, or with a rest that is not zero, to which
        `utils.reset` would set it.   MissingDependencyError: `init_hidden` without snntorch.

    Example:
        >>> import torch
        >>> from marsnn.neurons import LIF
        >>> from marsnn.neurons.interop import as_snntorch
        >>> lif = as_snntorch(LIF(beta=0.5))
        >>> mem = lif.reset_mem()
        >>> for x in torch.tensor([[0.75], [0.75]]):
        ...     spk, mem = lif(x, mem)
        >>> spk.tolist(), mem.tolist()
        ([1.0], [0.125])
    """
    _checked(neuron)
    if not init_hidden:
        return SnnTorchForm(neuron, init_hidden=False, output=output)
    fields = len(neuron.state_fields())
    if fields > len(HIDDEN):
        raise InputError(
            f"snntorch knows hidden neurons of up to {len(HIDDEN)} states, {type(neuron).__name__} has "
            f"{fields}; use init_hidden=False"
        )
    if any(value != 0.0 for value in _rest(neuron).values()):
        raise InputError(
            f"snntorch resets hidden states to zero, and {type(neuron).__name__} does not rest there; use "
            "init_hidden=False"
        )
    return _hidden_form(fields)(neuron, init_hidden=True, output=output)


# ---- snntorch ---------------------------------------------------------------------------------------------

HIDDEN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Leaky", ("mem",)),
    ("Synaptic", ("syn", "mem")),
    ("Alpha", ("syn_exc", "syn_inh", "mem")),
)
"""Class of snntorch and its states, by their number: what its `utils.reset` looks for."""


class SnnTorchForm(nn.Module):
    """A neuron that is called as snntorch's are; made by `as_snntorch`."""

    def __init__(self, neuron: Neuron, init_hidden: bool, output: bool) -> None:
        nn.Module.__init__(self)  # not theirs, which asks for a beta and makes buffers of its settings
        self.neuron = neuron
        self.init_hidden = bool(init_hidden)
        self.output = bool(output)
        self.states = _their_names(neuron)
        for name in self.states:
            self.register_buffer(name, torch.zeros(0), persistent=False)

    def forward(self, input_: Tensor, *states: Tensor, mem: Tensor | None = None) -> Any:
        """Spikes, and the states unless they are hidden.

        Args:
            input_: [B, *N] currents of one step.
            states: in the order of snntorch, the membrane last; none at the first step.
            mem: the membrane by its name.
        """
        given = states if mem is None else (*states, mem)
        if self.init_hidden:
            if given:
                raise TypeError("with init_hidden=True the module keeps its state; call it with the input")
            given = tuple(getattr(self, name) for name in self.states)
        spikes, after = self.neuron.step(input_, self._state(input_, given))
        after = (*after[1:], after[0])
        if self.init_hidden:
            for name, value in zip(self.states, after, strict=True):
                setattr(self, name, value)
        return spikes if self.init_hidden and not self.output else (spikes, *after)

    def _state(self, input_: Tensor, given: tuple[Tensor, ...]) -> Any:
        """Ours from theirs: the membrane comes first, and another shape means a fresh start."""
        if len(given) != len(self.states) or any(state.shape != input_.shape for state in given):
            return self.neuron.initial_state(input_)
        return self.neuron.State(given[-1], *given[:-1])

    def reset_mem(self) -> Any:
        """The state to start from: a tensor, or a tuple of them in snntorch's order."""
        for name in self.states:
            setattr(self, name, torch.zeros(0, device=getattr(self, name).device))
        empty = tuple(getattr(self, name) for name in self.states)
        return empty if len(empty) > 1 else empty[0]


@cache
def _hidden_form(fields: int) -> type[SnnTorchForm]:
    """SnnTorchForm that is also an instance of the class that snntorch.utils.reset looks for."""
    try:
        import snntorch
    except ImportError as error:
        raise MissingDependencyError("snntorch", "snn") from error

    class Hidden(SnnTorchForm, getattr(snntorch, HIDDEN[fields - 1][0])):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            SnnTorchForm.__init__(self, *args, **kwargs)
            snntorch.SpikingNeuron.instances.append(self)

    return _named(Hidden, f"SnnTorchForm{fields}")


def _their_names(neuron: Neuron) -> tuple[str, ...]:
    """Names of the states in snntorch's order; ours where snntorch has no neuron with as many."""
    fields = neuron.state_fields()
    return HIDDEN[len(fields) - 1][1] if len(fields) <= len(HIDDEN) else (*fields[1:], "mem")


# ---- spikingjelly -----------------------------------------------------------------------------------------


@cache
def _spikingjelly_form() -> Any:
    """The MemoryModule that drives a neuron of ours."""
    try:
        from spikingjelly.activation_based.base import MemoryModule
    except ImportError as error:
        raise MissingDependencyError("spikingjelly", "snn") from error

    class SpikingJellyForm(MemoryModule):  # type: ignore[misc]
        """A neuron whose state lies in spikingjelly's memories; made by `as_spikingjelly`."""

        def __init__(self, neuron: Neuron, step_mode: str, store_v_seq: bool) -> None:
            super().__init__()
            self.neuron = neuron
            for name, value in _rest(neuron).items():
                self.register_memory(name, value)
            self.step_mode = step_mode
            self.store_v_seq = bool(store_v_seq)
            self.v_seq: Tensor | None = None

        @property
        def v_threshold(self) -> Any:
            """The neuron's threshold, 1 where it has none."""
            return getattr(self.neuron, "threshold", 1.0)

        def materialize_states(self, inputs: Any, states: Any, step_mode: str) -> tuple[Tensor, ...]:
            """States [B, *N]: numbers spread over the neurons, another shape starts anew."""
            x = inputs[0][0] if step_mode == "m" else inputs[0]
            if any(isinstance(value, Tensor) and value.shape != x.shape for value in states):
                return tuple(self.neuron.initial_state(x))
            return tuple(v.to(x) if isinstance(v, Tensor) else torch.full_like(x, v) for v in states)

        def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
            spikes, after = self.neuron.step(inputs[0], self.neuron.State(*states))
            return (spikes,), tuple(after)

        def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
            spikes, after = self.neuron(inputs[0], self.neuron.State(*states))
            return (spikes,), tuple(after)

        def single_step_forward(self, x: Tensor) -> Any:
            spikes = super().single_step_forward(x)
            if self.store_v_seq:
                kept, step = self.v_seq, self.v.unsqueeze(0)
                if kept is not None and kept.shape[1:] == self.v.shape:
                    step = torch.cat([kept, step])
                self.v_seq = step
            return spikes

        def multi_step_forward(self, x_seq: Tensor) -> Any:
            if not self.store_v_seq:
                return super().multi_step_forward(x_seq)
            states = self.materialize_states((x_seq,), tuple(self._memories.values()), "m")
            spikes, self.v_seq, after = self.neuron.trace(x_seq, self.neuron.State(*states))
            self._memories.update(zip(self._memories, after, strict=True))
            return spikes

        def reset(self) -> None:
            super().reset()
            self.v_seq = None

        def detach(self) -> None:
            super().detach()
            self.v_seq = None if self.v_seq is None else self.v_seq.detach()

    return _named(SpikingJellyForm, "SpikingJellyForm")


# ---- both -------------------------------------------------------------------------------------------------


def _checked(neuron: object) -> Neuron:
    if not isinstance(neuron, Neuron):
        raise InputError(f"expected a marsnn Neuron, got {type(neuron).__name__}; say LIF(beta=0.9)")
    return neuron


def _rest(neuron: Neuron) -> dict[str, float]:
    """Where the fields of the state start, the membrane under the name v."""
    shape = (neuron.features or 1, *[1] * (-neuron.feature_dim - 1))
    state = neuron.initial_state(torch.zeros(shape, dtype=torch.float64))
    names = neuron.state_fields()
    taken = ("v", *names[1:]) if "v" not in names[1:] else names
    return {name: float(field.flatten()[0]) for name, field in zip(taken, state, strict=True)}


def _named(cls: Any, name: str) -> Any:
    """A class that pickle finds again, by `__getattr__` below."""
    cls.__name__ = cls.__qualname__ = name
    cls.__module__ = __name__
    return cls


def __getattr__(name: str) -> Any:
    if name == "SpikingJellyForm":
        return _spikingjelly_form()
    if name.startswith("SnnTorchForm") and name[len("SnnTorchForm") :] in ("1", "2", "3"):
        return _hidden_form(int(name[-1]))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
