"""A model's folder, as Hugging Face writes it, and its tokenizer."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from marsnn.errors import FileError, InputError
from marsnn.refine.config import SOURCES
from marsnn.refine.texts import read_text


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32, copies: int = 1) -> PreTrainedModel:
    """The model in a folder, in evaluation mode; weights from safetensors only, code from nowhere.

    Args:
        folder: as `save_pretrained` leaves it.   dtype: of the weights in memory.
        copies: how often they will be there; refused before anything is read where memory is too small.

    Raises:
        FileError: it is no folder of a model, or its weights are missing or damaged.
        InputError: its layers are not Llama's, or it is too large for this machine.
    """
    path = checked_folder(folder)
    if not any(path.glob("*.safetensors")):
        raise FileError(f"{path}: no weights in safetensors; save the model with save_pretrained()")
    with quietly():
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileError(f"{path}/config.json: {_first_line(error)}") from error
        if config.model_type not in SOURCES:
            raise InputError(
                f"{path}: a {config.model_type!r} model; those that can be refined are {', '.join(SOURCES)}"
            )
        _enough_memory(path, dtype, copies)
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise FileError(f"{path}: its weights can't be read: {_first_line(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise FileError(f"{path}: {len(missing)} weights are missing, such as {missing[0]}; save it again")
    return model.eval()  # type: ignore[no-any-return]


def usual_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checked_folder(folder: str | Path) -> Path:
    """The path of a model's folder.

    Raises:
        FileError: it is none.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise FileError(f"{path}: not a model's folder (no config.json); save_pretrained() writes one")
    return path


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer beside a model.

    Raises:
        FileError: there is none, or it can't be read.
    """
    path = checked_folder(folder)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise FileError(f"{path}: no tokenizer (tokenizer.json); save it beside the model")
    with quietly():
        try:
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers raises bare Exceptions
            raise FileError(f"{path}: its tokenizer can't be read: {_first_line(error)}") from error


def encoded(tokenizer: Any, source: str, most: int | None = None) -> Tensor:
    """Ids [number] of a text of `read_text`, at most so many.

    Raises:
        InputError: the text is empty.
    """
    enough = None if most is None else 8 * most  # no tokenizer's tokens are longer, on average
    text = read_text(source, enough)[:enough]
    with quietly():
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    if not len(ids):
        raise InputError(f"the text {source!r} holds no tokens")
    return ids if most is None else ids[:most]


def prefix_of(tokenizer: Any) -> Tensor:
    """What this tokenizer begins texts with, ids [number]: a BOS token with Llama 2 and 3, or nothing."""
    with quietly():
        found = tokenizer("").input_ids
    begins = tokenizer.bos_token_id
    return torch.tensor([token for token in found[:1] if token == begins], dtype=torch.long)


def begun(tokens: Tensor, prefix: Tensor, length: int) -> Tensor:
    """Running text [number] in which every sequence of `length` starts with the prefix, as models know it."""
    room = length - len(prefix)
    if not len(prefix) or room < 1:
        return tokens
    return torch.cat([torch.cat([prefix, part]) for part in tokens.split(room)])


def digest(*parts: str | Tensor) -> str:
    """SHA-256 of texts and tensors, in their order."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _enough_memory(path: Path, dtype: torch.dtype, copies: int) -> None:
    """Refuse weights that don't fit, by what their files say of their shapes."""
    elements = 0
    for file in path.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt") as stored:
                elements += sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
        except (SafetensorError, OSError):
            return  # a damaged file is told of when it is read
    needed = copies * elements * dtype.itemsize
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    if needed > there:
        raise InputError(
            f"{path}: {copies} x {elements / 1e9:.2f} B weights need {needed / 2**30:.1f} GiB, more than "
            f"this machine's memory of {there / 2**30:.1f} GiB; use a larger machine or --dtype bfloat16"
        )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' bars and notes."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
