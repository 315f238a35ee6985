"""States whose fields are known only when a neuron is made: those of an adopted or a recurrent one."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

_MADE: dict[tuple[str, ...], Any] = {}
_PREFIX = "State__"


def state_type(fields: tuple[str, ...]) -> Any:
    """The NamedTuple of those fields, always the same one; pickle finds it, too.

    A neuron asks for it once when it is made, as torch.compile can't make one.
    """
    if fields not in _MADE:
        made: Any = namedtuple("State", fields)  # type: ignore[misc]
        made.__name__ = made.__qualname__ = _PREFIX + "__".join(fields)
        _MADE[fields] = made
    return _MADE[fields]


def __getattr__(name: str) -> Any:
    if name.startswith(_PREFIX):  # a pickled state asks for its class
        return state_type(tuple(name[len(_PREFIX) :].split("__")))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
