"""What several verbs share: options, and JSON as they print it."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]
Seed = Annotated[int, typer.Option(help="seed of everything random", min=0)]


class Device(StrEnum):
    """Where tensors lie."""

    cpu = "cpu"
    cuda = "cuda"


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=1, allow_nan=False))


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers by commas.

    Raises:
        InputError: something else stands there.
    """
    from marsnn.errors import InputError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{option} takes whole numbers by commas, such as 3,4,7; got {text!r}") from None
