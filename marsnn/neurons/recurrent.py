"""Recurrent: a population whose own spikes come back to it, one micro-step later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from marsnn.errors import InputError
from marsnn.neurons.base import Neuron, UpdateCost
from marsnn.neurons.states import state_type


def _forwarded(name: str) -> Any:
    """A setting that is the inner neuron's."""

    def write(self: Recurrent, value: Any) -> None:
        if "neuron" in self._modules:
            setattr(self.neuron, name, value)

    return property(lambda self: getattr(self.neuron, name), write)


def _is_setting(neuron: Neuron, name: str) -> bool:
    """Whether a neuron computes by it, unlike what libraries hang on a module."""
    return name in neuron._buffers or name in neuron._parameters or name in neuron.settings()


class Recurrent(Neuron):
    """Recurrent connections around any neuron that takes a current at every step.

        I'[t] = I[t] + W (g s[t-1]) + b,    s[-1] = 0

    g s is what any layer behind the neuron sees of its spike (`step_gain`): the threshold of a LIF and its
    kin. A spike comes back one micro-step later. Where `carry` is "token" what is on its way is forgotten
    with the rest of the state when the token ends.

    Source: Bellec et al. 2020, Nature Communications 11:3625, Methods (recurrent networks of LIF and ALIF;
    there W has no diagonal). Differs in: snntorch's RLeaky, spikingjelly's LinearRecurrentContainer and
    norse's recurrent cells bring back the bare spike, so their recurrent weights divided by the threshold are
    ours.

    Args:
        neuron: N features, `integrates == "step"`: LIF, ALIF, CubaLIF, ... It keeps its settings; T, carry
            and the like are read and set there. ATMN takes a token's sum once and has no such connection.
        bias: a learned current b [N] at every step.

    `recurrent` is the Linear from N to N. N lies where the neuron has it: with feature_dim=-3 the channels of
    an image are coupled, each place by itself. The state is the neuron's and the spikes of its last step.

    Raises:
        InputError: not a neuron, one without `features`, one that integrates by the token.

    Example:
        >>> import torch
        >>> from marsnn.neurons import LIF, Recurrent
        >>> memory = Recurrent(LIF(2, beta=0.5))
        >>> with torch.no_grad():
        ...     _ = memory.recurrent.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> spikes, state = memory(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
        >>> spikes.int().tolist()
        [[1, 0], [0, 1], [1, 0]]
    """

    features = _forwarded("features")
    steps = _forwarded("steps")
    carry = _forwarded("carry")
    feature_dim = _forwarded("feature_dim")
    surrogate = _forwarded("surrogate")

    def __init__(self, neuron: Neuron, bias: bool = False) -> None:
        if not isinstance(neuron, Neuron) or isinstance(neuron, Recurrent):
            raise InputError(
                f"Recurrent takes one of marsnn's neurons, got {type(neuron).__name__}; write "
                "Recurrent(LIF(128))"
            )
        who = type(neuron).__name__
        if neuron.integrates != "step":
            raise InputError(
                f"Recurrent: {who} takes its current once a token, so no spike can come back within it; use "
                "a neuron that takes every step, such as LIF or TernaryLIF"
            )
        if neuron.features is None:
            raise InputError(
                f"Recurrent: its weights are [N, N], so the {neuron._get_name()} in it needs features=N"
            )
        super().__init__(
            neuron.features, neuron.steps, neuron.surrogate, neuron.feature_dim, neuron.carry, neuron.backend
        )
        self.neuron = neuron
        state_type(self.state_fields())
        self.recurrent = nn.Linear(neuron.features, neuron.features, bias=bool(bias))

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get("_modules", {}).get("neuron")
        if inner is not None and not hasattr(self, name) and _is_setting(inner, name):
            raise InputError(
                f"Recurrent: {name} belongs to the {inner._get_name()} in it; set it at .neuron.{name}"
            )
        super().__setattr__(name, value)

    # ---- the equation -------------------------------------------------------------------------------

    @property
    def State(self) -> Any:  # type: ignore[override]
        """NamedTuple of the neuron's fields and `spikes`, each [*, N]."""
        return state_type(self.state_fields())

    def state_fields(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.neuron.state_fields(), "spikes")

    @property
    def levels(self) -> tuple[int, ...]:  # type: ignore[override]
        """Those of the neuron."""
        return self.neuron.levels

    def initial_state(self, current: Tensor) -> Any:
        """The neuron's, and silence."""
        return self.State(*self.neuron.initial_state(current), torch.zeros_like(current))

    def step(self, current: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self._check_current("current", current)
        state = self.initial_state(current) if state is None else state
        self._check_fields(state)
        *own, spikes = state
        spikes, after = self.neuron.step(current + self.returned(spikes), self.neuron.State(*own))
        return spikes, self.State(*after, spikes)

    def returned(self, spikes: Tensor) -> Tensor:
        """The current [*, N] that spikes [*, N] of the step before bring back, bias included."""
        dtype, axis = spikes.dtype, self.feature_dim
        sent = (self.neuron.step_gain(spikes.unsqueeze(0)) * spikes).movedim(axis, -1)
        bias = self.recurrent.bias
        arrived = nn.functional.linear(
            sent, self.recurrent.weight.to(dtype), None if bias is None else bias.to(dtype)
        )
        return arrived.movedim(-1, axis)

    def step_gain(self, train: Tensor) -> Tensor:
        return self.neuron.step_gain(train)

    def firing_level(self, spikes: Tensor) -> Tensor | None:
        return self.neuron.firing_level(spikes)

    @property
    def update_cost(self) -> UpdateCost:
        """The neuron's, and one addition of what came back, one of the bias. The synapses are counted apart,
        from the spikes."""
        cost = self.neuron.update_cost
        return UpdateCost(cost.mul, cost.add + 1 + (self.recurrent.bias is not None))

    # ---- settings -----------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The neuron's, and which one it is."""
        return {"recurrent": type(self.neuron).__name__, **self.neuron.settings()}

    def apply_settings(self, settings: Mapping[str, Any]) -> None:
        own = type(self.neuron).__name__
        given = settings.get("recurrent", own)
        if given != own:
            raise InputError(f"the state is that of a recurrent {given}, this is a recurrent {own}")
        self.neuron.apply_settings({key: value for key, value in settings.items() if key != "recurrent"})

    def check_tensors(self) -> None:
        self.neuron.check_tensors()

    def constructor(self) -> dict[str, Any]:
        """`bias`; the neuron has a constructor of its own."""
        return {"bias": self.recurrent.bias is not None}

    def extra_repr(self) -> str:
        return f"features={self.features}, steps={self.steps}, carry={self.carry}"
