"""A neuron of snntorch or spikingjelly under our contract, so that a Network takes it like one of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from marsnn.errors import InputError, ShapeError
from marsnn.neurons.base import Carry, Neuron, UpdateCost
from marsnn.neurons.foreign import guest_of, library
from marsnn.neurons.states import state_type
from marsnn.neurons.step_cost import measure

PROBES = 32
"""Samples of the step whose cost is measured: enough that a membrane is never mistaken for a spike."""

SPATIAL = {
    nn.Conv2d: -3,
    nn.AvgPool2d: -3,
    nn.MaxPool2d: -3,
    nn.Conv1d: -2,
    nn.AvgPool1d: -2,
    nn.MaxPool1d: -2,
}
FLAT = (nn.Linear, nn.Flatten)


def adopt(
    module: nn.Module,
    steps: int = 4,
    features: int | None = None,
    carry: Carry = "token",
    feature_dim: int = -1,
    levels: tuple[int, ...] | None = None,
    update_cost: UpdateCost | None = None,
) -> Adopted:
    """Take a neuron of snntorch or spikingjelly into our contract.

    Args:
        module: theirs, with its own settings, parameters and surrogate; it stays the module that it is.
        steps: T.
        features: N, where the shape should be checked; None for any.
        carry: "token" or "sequence", see `Neuron`.
        feature_dim: the axis of N from the end: -1 for [*, N], -3 for [*, N, height, width]. What stands
            before it is one batch to the module.
        levels: the values of its spikes, () for graded ones; needed for a class that we don't know.
        update_cost: multiplications and additions of a neuron and step, where they can't be measured.

    Raises:
        InputError: no such neuron, or one that has no step of its own: PSN, MaskedPSN, SlidingPSN,
        StateLeaky, LeakyParallel, ... The message has the reason.

    Example:
        >>> import torch
        >>> from spikingjelly.activation_based.neuron import IFNode
        >>> from marsnn.neurons.interop import adopt
        >>> neuron = adopt(IFNode(v_reset=None), steps=4)
        >>> neuron.encode(torch.tensor([[0.5, 0.3]])).int().flatten(1).tolist()
        [[0, 0], [1, 0], [0, 0], [1, 1]]
    """
    return Adopted(module, steps, features, carry, feature_dim, levels, update_cost)


class Adopted(Neuron):
    """Another library's neuron; made by `adopt`, which says what the arguments are.

    The equation, its decision (snntorch fires at >) and its gradient are theirs, bit for bit those of their
    own loop over single steps. Ours are: state goes in and comes out (what the module holds itself is
    neither read nor changed), spikes and state have the dtype of the current, and `decode` is
    threshold * mean(spikes) (threshold 1 where they have none, or where a spike carries its worth). In their
    own networks the next layer sees the bare spike: to move trained weights divide them by the threshold.

    Not in the registry, and in no file: its settings live in Python objects that only the other library can
    rebuild. `state_dict` holds the parameters and buffers as usual.
    """

    def __init__(
        self,
        module: nn.Module,
        steps: int = 4,
        features: int | None = None,
        carry: Carry = "token",
        feature_dim: int = -1,
        levels: tuple[int, ...] | None = None,
        update_cost: UpdateCost | None = None,
    ) -> None:
        guest = guest_of(module)
        super().__init__(
            features=features, steps=steps, surrogate=guest.surrogate, feature_dim=feature_dim, carry=carry
        )
        self.module = module
        self._guest = guest
        state_type(guest.fields)
        self._levels = None if levels is None else tuple(int(level) for level in levels)
        self._cost = None if update_cost is None else UpdateCost(*update_cost)
        if self._levels is None and guest.levels() is None:
            raise InputError(
                f"{type(module).__name__}: nobody has said which values its spikes take; write "
                "adopt(module, levels=(0, 1)), or levels=() for graded ones"
            )

    # ---- the contract -------------------------------------------------------------------------------

    @property
    def State(self) -> Any:  # type: ignore[override]
        """NamedTuple of their states, the membrane first, under their names."""
        return state_type(self._guest.fields)

    def state_fields(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._guest.fields

    @property
    def levels(self) -> tuple[int, ...]:  # type: ignore[override]
        """Values of a spike; empty where it is graded: analog, or scaled by a factor not whole or trained."""
        known = self._guest.levels() if self._levels is None else self._levels
        return known or ()

    def initial_state(self, current: Tensor) -> Any:
        """Their state before the first step, for currents [*, N]: v_reset where they have one."""
        return self._restored(self._guest.rest(self._as_batch(current)), current)

    def step(self, current: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self._check_current("current", current)
        state = self.initial_state(current) if state is None else state
        x = self._as_batch(current)
        fields = tuple(shaped(field, x.shape) for field in state)
        spikes, after = self._guest.advance(x, fields)
        if not isinstance(spikes, Tensor) or spikes.shape != x.shape:
            got = list(spikes.shape) if isinstance(spikes, Tensor) else type(spikes).__name__
            raise ShapeError(f"{self._who}: expected spikes {list(x.shape)} as the currents, got {got}")
        spikes = shaped(spikes.to(x.dtype), current.shape)
        self._check_levels(spikes)
        return spikes, self._restored(after, current)

    def step_gain(self, train: Tensor) -> Tensor:
        """Their threshold, at every step."""
        worth = self._guest.threshold()
        if not isinstance(worth, Tensor):
            return torch.full((), worth, dtype=train.dtype, device=train.device)
        if library(self.module) == "spikingjelly":
            return self._along_features(worth, train)
        return worth.to(train.dtype)

    @property
    def update_cost(self) -> UpdateCost:
        """Measured on a step of random currents and states, in the convention of our own neurons.

        See `marsnn.neurons.step_cost`. Recurrent weights inside the neuron are part of it, dense.

        Raises:
            InputError: an operation without a known cost; `adopt(module, update_cost=UpdateCost(mul, add))`.
        """
        if self._cost is not None:
            return self._cost
        reason = "it does not run"
        for dtype in (torch.float64, torch.float32):  # their float32 may be one opaque kernel
            try:
                return self._measured(dtype)
            except InputError as error:
                reason = str(error)
            except (RuntimeError, IndexError, ValueError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{self._who}: can't measure what a step costs ({reason}); write "
            "adopt(module, update_cost=UpdateCost(mul, add))"
        )

    # ---- settings -----------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Ours; theirs are in the module."""
        own = ("features", "steps", "carry", "feature_dim")
        return {"adopted": self._who, **{name: getattr(self, name) for name in own}}

    def apply_settings(self, settings: Mapping[str, Any]) -> None:
        theirs = settings.get("adopted", self._who)
        if theirs != self._who:
            raise InputError(f"the state is that of an adopted {theirs}, this is an adopted {self._who}")
        super().apply_settings({key: value for key, value in settings.items() if key != "adopted"})

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        adopt(self.module, levels=(), **{key: value for key, value in settings.items() if key != "adopted"})

    def constructor(self) -> dict[str, Any]:
        """There is none.

        Raises:
            InputError: only its library can rebuild the module.
        """
        raise InputError(
            f"{self._who} can't be rebuilt from settings; copy.deepcopy() it, or keep its state_dict()"
        )

    def extra_repr(self) -> str:
        return f"adopted, {super().extra_repr()}, carry={self.carry}"

    def _get_name(self) -> str:
        """The module's class: a Network calls its layer `leaky1`, however it was adopted."""
        return type(self.module).__name__

    # ---- inside -------------------------------------------------------------------------------------

    @property
    def _who(self) -> str:
        return f"{library(self.module)}.{type(self.module).__name__}"

    def _as_batch(self, current: Tensor) -> Tensor:
        """[*, N] as [B, N]: their neurons know one batch axis."""
        lead = max(current.ndim + self.feature_dim, 0)
        return shaped(current, (prod(current.shape[:lead]), *current.shape[lead:]))

    def _restored(self, fields: tuple[Any, ...], current: Tensor) -> Any:
        """Their state [B, N] in the shape and dtype of the current [*, N]."""
        return self.State(*(shaped(field.to(current.dtype), current.shape) for field in fields))

    def _check_levels(self, spikes: Tensor) -> None:
        """Refuse spikes that the recorder and the energy counter would misread."""
        if not self.levels or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return
        known = spikes.new_tensor(self.levels)
        odd = ~(spikes.detach().unsqueeze(-1) == known).any(-1)
        if bool(odd.any()):
            raise InputError(
                f"{self._who}: a spike is {spikes[odd][0].item():g}, expected one of {self.levels}; write "
                "adopt(module, levels=...) with its values, or levels=() for graded ones"
            )

    def _measured(self, dtype: torch.dtype) -> UpdateCost:
        with _evaluating(self.module), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x = self._probe(dtype)
            state = tuple(
                (torch.rand_like(x) < 0.5).to(dtype) if name == "spk" else 3 * torch.randn_like(x)
                for name in self._guest.fields
            )
            return measure(lambda: self._guest.advance(x, state), x.numel())

    def _probe(self, dtype: torch.dtype) -> Tensor:
        """Random currents of a shape that fits the module's own tensors."""
        held = set(self._guest.fields)
        tensors = [*self.module.named_parameters(recurse=False), *self.module.named_buffers(recurse=False)]
        shapes = [t.shape for name, t in tensors if t.ndim and name not in held]
        own = ("linear_features", "conv2d_channels", "hidden_size", "in_channels")
        widths = [self.features or 1, *(getattr(self.module, name, None) or 1 for name in own)]
        widths += [getattr(part, "num_features", 1) for part in self.module.modules()]
        if library(self.module) == "spikingjelly":
            widths += [shape[0] for shape in shapes if len(shape) == 1]
            shapes = []
        trailing = torch.broadcast_shapes(*shapes, (max(widths), *[4] * (-self.feature_dim - 1)))
        device = next((t.device for _, t in tensors), None)
        return 3 * torch.randn(PROBES, *trailing, dtype=dtype, device=device)


def adopt_layers(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The layers of a Network, their neurons adopted with the T that its other neurons have.

    The axis of the features follows from the last layer that has one.

    Raises:
        InputError: nobody says T, or a neuron can't be adopted; it is named.
    """
    steps = {layer.steps for layer in layers.values() if isinstance(layer, Neuron)}
    taken, feature_dim = {}, -1
    for name, layer in layers.items():
        feature_dim = next((dim for kind, dim in SPATIAL.items() if isinstance(layer, kind)), feature_dim)
        feature_dim = -1 if isinstance(layer, FLAT) else feature_dim
        if isinstance(layer, Neuron) or library(layer) is None:
            taken[name] = layer
            continue
        try:
            neuron = adopt(layer, steps=min(steps, default=1), feature_dim=feature_dim)
        except InputError as error:
            raise type(error)(f"{name}: {error}") from None
        if not steps:
            raise InputError(
                f"{name}: no neuron here says T, the micro-steps of a token; write "
                f"marsnn.neurons.interop.adopt({type(layer).__name__}(...), steps=T)"
            )
        taken[name] = neuron
    return taken


def shaped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A reshape that leaves no trace in the graph where there is nothing to reshape.

    So that gradients which meet are summed in the order of their own loop.
    """
    return tensor if tensor.shape == tuple(shape) else tensor.reshape(*shape)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Statistics of the module's own normalisation left alone."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
