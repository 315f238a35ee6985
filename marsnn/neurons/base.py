"""The contract that every neuron keeps, and the registry that finds them by name.

A neuron is a pure step function (`lif_step`, `atmn_step`, ...) and a thin Module that owns its settings
and parameters. State goes in and comes out; the Module never keeps it:

    spikes, state = neuron.step(current, state)      one micro-step, [*, N]
    spikes, state = neuron(currents, state)          T micro-steps, [T, *, N]
    spikes = neuron.encode(x)                        a static activation, [*, N] -> [T, *, N]
    x_hat  = neuron.decode(spikes)                   the activation that spikes stand for, [T, *, N] -> [*, N]

To add a neuron, write one file with its State, Params, step function and Module, and put
`@register("Name")` on the Module: the contract tests, the network, the simulator, the energy counter and
the plots then know it. A kernel in `kernels/` makes it fast; without one it runs step by step.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from marsnn import surrogate as surrogates
from marsnn.checks import count, finite, positive
from marsnn.errors import InputError, ShapeError
from marsnn.neurons import fused
from marsnn.neurons.fused import Drive, Kernel

Backend = Literal["auto", "reference", "fused"]
Carry = Literal["token", "sequence"]
CHOICES: dict[str, tuple[str, ...]] = {"carry": get_args(Carry), "backend": get_args(Backend)}
"""Settings that are one of a few words."""


class UpdateCost(NamedTuple):
    """Arithmetic of one neuron in one micro-step, beside its synapses."""

    mul: int
    add: int


class Neuron(nn.Module, ABC):
    """A population of N neurons; see the module's docstring for the calls.

    Args:
        features: N, or None for settings shared by every neuron of any shape.
        steps: T, the micro-steps of one token.
        surrogate: spike function, `marsnn.surrogate.atan(2.0)` if None.
        feature_dim: the axis of N counted from the end: -1 for [*, N], -3 for [*, N, height, width].
        carry: "token" forgets the state when a token ends, "sequence" hands it to the next token. Used by
            `Network`; the calls above never forget anything by themselves.
        backend: how T steps are run, never what they give. "reference" loops over `step`; "fused" runs them
            in one pass over memory, or says why it can't; "auto" is fused where it can be. It may be
            reassigned at any time, and is not saved.
    """

    State: ClassVar[type[tuple[Any, ...]]]
    """NamedTuple of tensors [*, N]; its first field is the membrane."""

    integrates: ClassVar[Literal["token", "step"]] = "step"
    """How it takes a train: "token" sums it and injects once, "step" takes each step's current. A static
    activation likewise: "token" receives it at t = 0 alone, "step" at every step."""

    _kernel_fits: ClassVar[bool] = False

    levels: tuple[int, ...] = (0, 1)
    """Values that a spike can take; empty for a neuron that emits its membrane."""

    def __init__(
        self,
        features: int | None,
        steps: int,
        surrogate: surrogates.SpikeFunction | None,
        feature_dim: int,
        carry: Carry,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.features = None if features is None else count("features", features)
        self.steps = steps
        self.surrogate = surrogates.resolve(surrogate)
        if not isinstance(feature_dim, int) or feature_dim >= 0:
            raise InputError(
                f"feature_dim counts from the end and must be negative, got {feature_dim!r}; "
                "use -1 for [*, N], -3 for [*, N, height, width]"
            )
        self.feature_dim = feature_dim
        self.carry: Carry = carry
        self.backend: Backend = backend

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings are checked whenever they are set: a misspelt one would be taken for the other one."""
        if name == "steps":
            value = count(name, value)
        elif name in CHOICES and value not in CHOICES[name]:
            *most, last = (f'"{choice}"' for choice in CHOICES[name])
            raise InputError(f"{name} must be {', '.join(most)} or {last}, got {value!r}")
        super().__setattr__(name, value)

    # ---- the equation -------------------------------------------------------------------------------

    @staticmethod
    def equation(current: Tensor, state: Any, params: Any) -> tuple[Tensor, Any]:
        """The pure step function, as `lif_step` is for LIF."""
        raise NotImplementedError

    def params(self, like: Tensor) -> Any:
        """What the equation needs beside current and state: a NamedTuple, its tensors broadcastable against
        currents such as `like` and in their dtype.
        """
        raise NotImplementedError

    def kernel(self, like: Tensor) -> Kernel | None:
        """The fused form of the equation for currents such as `like`, None where there is none."""
        return None

    def step(self, current: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One micro-step: current [*, N] and a state (None: at rest) to (spikes [*, N], next state)."""
        self._check_current("current", current)
        self._check_fields(state)
        state = self.initial_state(current) if state is None else state
        return self.equation(current, state, self.params(current))

    @abstractmethod
    def step_gain(self, train: Tensor) -> Tensor:
        """What a spike of `train` [T, *, N] is worth to a receiver that takes every step.

        Broadcastable against the train, and scaled so that the mean over the steps of `step_gain * train`
        is `decode(train)`: a rate code keeps its rate, whatever T is.
        """

    def firing_level(self, spikes: Tensor) -> Tensor | None:
        """Where the membrane of each step fires, for plots: broadcastable against spikes [T, *, N] from rest.

        The first positive level, in the units of the membrane; None where the neuron has no threshold.
        """
        threshold = getattr(self, "threshold", None)
        if threshold is None:
            return None
        level: Tensor = getattr(self, "fire_at", 1.0) * self._along_features(threshold, spikes)
        return level

    @property
    @abstractmethod
    def update_cost(self) -> UpdateCost:
        """Multiplications and additions of one neuron in one micro-step."""

    # ---- calls that follow from it ------------------------------------------------------------------

    def forward(self, currents: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """T micro-steps over given currents.

        Args:
            currents: [T, *, N]; T may differ from `self.steps`.
            state: where an earlier call ended, or None for rest.

        Returns:
            spikes [T, *, N] and the final state.

        Raises:
            ShapeError: an axis is missing or N is wrong.   NonFiniteError: NaN or infinite currents.
        """
        self._check_train("currents", currents)
        spikes, _, state = self._run(currents, state, Drive("given", len(currents)), membrane=False)
        return spikes, state

    def trace(self, currents: Tensor, state: Any = None) -> tuple[Tensor, Tensor, Any]:
        """As `forward`, with the membrane [T, *, N] after each step: (spikes, membrane, state)."""
        self._check_train("currents", currents)
        spikes, membrane, state = self._run(currents, state, Drive("given", len(currents)), membrane=True)
        assert membrane is not None
        return spikes, membrane, state

    def respond(self, x: Tensor, membrane: bool = False) -> tuple[Tensor, Tensor | None]:
        """Spikes [T, *, N] of a static activation x [*, N] from rest, and the membrane if asked for.

        As `forward(present(x))`, without laying out the T currents.
        """
        self._check_current("x", x)
        drive = Drive("held" if self.integrates == "step" else "impulse", self.steps)
        spikes, trace, _ = self._run(x, None, drive, membrane)
        return spikes, trace

    def present(self, x: Tensor) -> Tensor:
        """The currents [T, *, N] by which this neuron receives a static activation x [*, N].

        Held at every step, or at t = 0 alone where the neuron `integrates` by the token.
        """
        if self.integrates == "step":
            return x.expand(self.steps, *x.shape)
        silence = x.new_zeros(()).expand(self.steps - 1, *x.shape)
        return torch.cat([x.unsqueeze(0), silence])

    def encode(self, x: Tensor) -> Tensor:
        """Spikes [T, *, N] of a static activation x [*, N], from rest, over T = `self.steps`."""
        return self.respond(x)[0]

    def decode(self, spikes: Tensor) -> Tensor:
        """The activation [*, N] that spikes [T, *, N] stand for."""
        self._check_train("spikes", spikes)
        return (self.step_gain(spikes) * spikes).mean(0)

    def initial_state(self, current: Tensor) -> Any:
        """The state at rest for currents [*, N]: all zeros."""
        return self.State(*(torch.zeros_like(current) for _ in self.state_fields()))

    @classmethod
    def state_fields(cls) -> tuple[str, ...]:
        """Names of the state's tensors, the membrane first."""
        return cls.State._fields  # type: ignore[attr-defined]

    def state_from(self, fields: Mapping[str, Tensor]) -> Any:
        """Rebuild a state from its named tensors, as a saved Recording holds them."""
        return self.State(**{name: fields[name] for name in self.state_fields()})

    # ---- settings travel with the parameters --------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """JSON-ready settings that are not tensors."""
        return {
            "features": self.features,
            "steps": self.steps,
            "carry": self.carry,
            "feature_dim": self.feature_dim,
            "surrogate": surrogates.to_settings(self.surrogate),
        }

    def apply_settings(self, settings: Mapping[str, Any]) -> None:
        """Take over what `settings` wrote; a surrogate of another library is left as it is."""
        who = type(self).__name__
        unknown = sorted(set(settings) - set(self.settings()))
        if unknown:
            raise InputError(f"{who}: no settings named {unknown}; the state is that of another neuron")
        self._check_settings({**self.settings(), **settings})
        features = settings.get("features")
        if self.features is not None and features not in (None, self.features):
            raise ShapeError(f"{who}: has features={self.features}, the state features={features}")
        for name, value in settings.items():
            if name == "surrogate":
                self.surrogate = self.surrogate if value is None else surrogates.from_settings(value)
            elif name != "features" or self.features is None:
                setattr(self, name, value)

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        """Refuse what the constructor would refuse, and values of another kind than ours."""
        who = type(self).__name__
        for name, value in settings.items():
            own = getattr(self, name)
            if isinstance(own, bool | str) and (type(value) is not type(own)):
                raise InputError(f"{who}: the setting {name} can't be {value!r}; ours is {own!r}")
        accepted = inspect.signature(type(self)).parameters
        if "carry" not in accepted and settings["carry"] != self.carry:
            raise InputError(f"{who}: carry can't be {settings['carry']!r}, it is always {self.carry!r}")
        known = {name: value for name, value in settings.items() if name in accepted and name != "surrogate"}
        type(self)(**known)

    def get_extra_state(self) -> Tensor:
        """The settings as a tensor of UTF-8 bytes, so that safetensors can hold a whole state_dict."""
        return torch.tensor(list(json.dumps(self.settings()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.apply_settings(json.loads(bytes(state.tolist())))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # The settings come first, for they say which tensors to expect; a setting tensor then takes the
        # shape in which it was saved: one number, or one for each feature.
        if prefix + "_extra_state" in state_dict:
            self.set_extra_state(state_dict[prefix + "_extra_state"])
        shapes = {(), (1,), (self.features,)}
        for name, own in [*self._parameters.items(), *self._buffers.items()]:
            saved = state_dict.get(prefix + name)
            if own is None or saved is None or own.shape == saved.shape:
                continue
            if {tuple(own.shape), tuple(saved.shape)} <= shapes:
                own.data = own.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[arg-type]

    def check_tensors(self) -> None:
        """Refuse settings that became NaN or left their range since the constructor checked them."""
        for name in ("threshold", "tau"):
            value = getattr(self, name, None)
            if isinstance(value, Tensor):
                positive(name, value.detach())

    def constructor(self) -> dict[str, Any]:
        """Arguments that build an equal neuron, whose state_dict then fits."""
        accepted = inspect.signature(type(self)).parameters.keys() - {"surrogate"}
        return {name: value for name, value in self.settings().items() if name in accepted}

    def extra_repr(self) -> str:
        return f"features={self.features}, steps={self.steps}"

    # ---- inside -------------------------------------------------------------------------------------

    def _run(
        self, currents: Tensor, state: Any, drive: Drive, membrane: bool
    ) -> tuple[Tensor, Tensor | None, Any]:
        """T steps by the backend: spikes, the membrane after each step if asked for, the final state."""
        sample = currents.shape[1:] if drive.kind == "given" else currents.shape
        if state is None and type(self).initial_state is not Neuron.initial_state:
            state = self.initial_state(currents[0] if drive.kind == "given" else currents)
        self._check_fields(state)
        for field in state or ():
            if field.shape != sample:
                raise ShapeError(
                    f"{type(self).__name__}: expected a state {list(sample)}, got {list(field.shape)}; "
                    "pass the state that an earlier call of the same shape returned"
                )
        done = fused.unroll(self, currents, state, drive, membrane)
        if done is not None:
            return done
        finite(f"{type(self).__name__}: currents", currents)
        spikes, trace = [], []
        for current in currents if drive.kind == "given" else self.present(currents):
            spike, state = self.step(current, state)
            spikes.append(spike)
            if membrane:
                trace.append(state[0])
        return torch.stack(spikes), torch.stack(trace) if membrane else None, state

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # A kernel belongs to the equation beside it: a subclass that changes a step without giving a
        # kernel of its own has none.
        super().__init_subclass__(**kwargs)
        home = {
            name: next(i for i, base in enumerate(cls.__mro__) if name in vars(base))
            for name in ("kernel", "equation", "params", "step")
        }
        cls._kernel_fits = all(home["kernel"] <= home[name] for name in ("equation", "params", "step"))

    def _along_features(self, setting: Tensor, like: Tensor) -> Tensor:
        """A setting, [] or [N], in the dtype of `like` and broadcastable against [*, N]."""
        if setting.dtype != like.dtype:
            setting = setting.to(like.dtype)
        return setting.reshape(-1, *[1] * (-self.feature_dim - 1)) if setting.ndim else setting

    def _check_current(self, name: str, current: Tensor) -> None:
        who = type(self).__name__
        if not current.is_floating_point():
            raise InputError(
                f"{who}: {name} must be floating point, got {current.dtype}; call .float() on it"
            )
        if self.features is not None and (
            current.ndim < -self.feature_dim or current.shape[self.feature_dim] != self.features
        ):
            axis = "" if self.feature_dim == -1 else f" at axis {self.feature_dim}"
            raise ShapeError(f"{who}: expected {name} [*, {self.features}]{axis}, got {list(current.shape)}")

    def _check_fields(self, state: Any) -> None:
        """Refuse another neuron's state; a kernel would read fields that aren't there."""
        fields = self.state_fields()
        if state is not None and len(state) != len(fields):
            raise InputError(
                f"{type(self).__name__}: expected the state ({', '.join(fields)}), got a tuple of "
                f"{len(state)}; pass the state that an earlier call of the same neuron returned"
            )

    def _check_train(self, name: str, train: Tensor) -> None:
        who = type(self).__name__
        if train.ndim < 1 - self.feature_dim if self.features is not None else train.ndim < 1:
            raise ShapeError(
                f"{who}: expected {name} [T, *, N], got {list(train.shape)}; "
                "give one step's current to step(), a static activation to encode()"
            )
        if len(train) == 0:
            raise ShapeError(f"{who}: {name} has T = 0 steps, expected at least 1")
        self._check_current(name, train)


def setting_tensor(name: str, value: float | Tensor, features: int | None) -> Tensor:
    """A threshold or time constant as a tensor, [] or [features], float32 unless it came otherwise."""
    if not isinstance(value, Tensor | Real) and hasattr(value, "__array__"):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor | Real):
        raise InputError(f"{name} must be a number or a tensor, got {value!r}")
    tensor = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value))
    if not tensor.is_floating_point():
        tensor = tensor.float()
    if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.numel() not in (1, features)):
        raise ShapeError(
            f"{name} must be a number or a tensor [{features if features is not None else 'features'}], "
            f"got a tensor {list(tensor.shape)}; a tensor needs features=N in the constructor"
        )
    return tensor


def per_feature(name: str, value: float | Tensor, features: int | None) -> Tensor:
    """As `setting_tensor`, but always [features] where the number of features is known."""
    tensor = setting_tensor(name, value, features)
    return tensor.reshape(()) if features is None else tensor.expand(features).clone()


_REGISTRY: dict[str, type[Neuron]] = {}
NeuronClass = TypeVar("NeuronClass", bound=type[Neuron])


def register(name: str) -> Callable[[NeuronClass], NeuronClass]:
    """Class decorator: make a neuron known by `name`. A name can be taken only once."""

    def add(cls: NeuronClass) -> NeuronClass:
        if name in _REGISTRY and _REGISTRY[name] is not cls:
            raise InputError(f"a neuron named {name!r} is registered already: {_REGISTRY[name]}")
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> tuple[str, ...]:
    """The registered neurons' names, in order of registration."""
    return tuple(_REGISTRY)


def get(name: str) -> type[Neuron]:
    """The neuron class of that name; the error lists the known ones."""
    try:
        return _REGISTRY[name]
    except KeyError:
        raise InputError(f"no neuron named {name!r}; known: {', '.join(_REGISTRY)}") from None
