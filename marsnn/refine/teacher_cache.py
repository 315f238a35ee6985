"""What a teacher said, kept on disk: its last hidden states, from which its head makes the logits again.

A token takes 2 D or 4 D bytes where its logits would take 4 V, and logits are those of the teacher to the
bit. It is heard in its own dtype, without autocast. Features are not kept: a student that is compared inside
needs its teacher beside it.

    FOLDER/hidden.bin          [rows, L, D], in the teacher's dtype
    FOLDER/head.safetensors    [V, D]
    FOLDER/teacher.json        shapes, dtype, and what it follows from; written last
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from marsnn.errors import FileError, InputError
from marsnn.files import PathLike, json_text, read_json, write_bytes, write_text
from marsnn.progress import track
from marsnn.refine.loading import digest

FORMAT = "marsnn.teacher/1"
_INTEGERS = {torch.float32: "<i4", torch.bfloat16: "<i2", torch.float16: "<i2", torch.float64: "<i8"}


class TeacherCache:
    """Hidden states of a teacher for every row of a dataset, read as they are needed.

    Args:
        folder: that `TeacherCache.build` has filled.

    Attributes:
        vocabulary: V.   rows: how many there are.   key: what they follow from.

    Raises:
        FileError: it isn't whole.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        told = read_json(self.folder / "teacher.json")
        try:
            if told["format"] != FORMAT:
                raise ValueError(f"format {told['format']!r}")
            self.shape = tuple(int(size) for size in told["shape"])
            self.dtype = {str(each): each for each in _INTEGERS}[told["dtype"]]
            self.key = str(told["key"])
            self.rows, self.length, self.width = self.shape
            wanted = math.prod(self.shape) * self.dtype.itemsize
            found = (self.folder / "hidden.bin").stat().st_size
            if found != wanted:
                raise ValueError(f"hidden.bin holds {found:,} bytes of {wanted:,}")
            self._head = load_file(self.folder / "head.safetensors")["weight"]
        except Exception as error:  # whatever is wrong with a file of ours, it is to be made again
            raise FileError(
                f"{self.folder}: not what a teacher said ({str(error).splitlines()[0]}); delete it"
            ) from error
        self.vocabulary = len(self._head)
        self._hidden = np.memmap(
            self.folder / "hidden.bin", _INTEGERS[self.dtype], mode="r", shape=self.shape
        )

    @classmethod
    def build(
        cls, folder: PathLike, teacher: PreTrainedModel, data: Dataset[Mapping[str, Tensor]], batch: int = 8,
        progress: bool = False,
    ) -> TeacherCache:  # fmt: skip
        """Run a teacher over all rows, or take what an earlier run left if it is the same.

        Args:
            folder: to be filled.   teacher: frozen.   batch: rows at a time.
            data: rows of equal length, each {"input_ids": [L], ...}.

        Raises:
            FileError: the folder can't be written, or the disk is full.   InputError: rows of unequal length.
        """
        rows = [data[index] for index in range(len(data))]  # type: ignore[arg-type]
        ids = _stacked(rows)
        masks = [row.get("attention_mask") for row in rows]
        path = Path(folder)
        seen_by = [each for each in masks if each is not None]
        key = digest(
            str(teacher.dtype), teacher.config.to_json_string(), ids, *seen_by, *teacher.parameters()
        )
        with contextlib.suppress(FileError):
            there = cls(path)
            if there.key == key:
                return there
        (path / "teacher.json").unlink(missing_ok=True)
        write_bytes(
            path / "head.safetensors", save({"weight": teacher.get_output_embeddings().weight.contiguous()})
        )
        try:
            with (path / "hidden.bin").open("wb") as file, torch.no_grad():
                for start in track(range(0, len(ids), batch), "teacher", progress):
                    part = ids[start : start + batch].to(teacher.device)
                    more = masks[start : start + batch]
                    seen = {} if more[0] is None else {"attention_mask": torch.stack(more).to(part.device)}  # type: ignore[arg-type]
                    hidden = teacher.model(part, use_cache=False, **seen).last_hidden_state
                    hidden = hidden.to(teacher.dtype).cpu().contiguous()
                    file.write(hidden.view(torch.uint8).numpy().tobytes())
                shape = [len(ids), ids.shape[1], hidden.shape[-1]]
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"{path}: can't write: {(error.strerror or str(error)).lower()}") from error
        told = {"format": FORMAT, "shape": shape, "dtype": str(teacher.dtype), "key": key}
        write_text(path / "teacher.json", json_text(told))
        return cls(path)

    def read(self, inputs: Mapping[str, Any], device: torch.device) -> Tensor:
        """Last hidden states [B, L, D] of a batch whose rows say their "index".

        Raises:
            InputError: they don't, or are others.
        """
        index = inputs.get("index")
        length = inputs["input_ids"].shape[1]
        if index is None or length != self.length or int(index.max()) >= self.rows:
            raise InputError(
                f"{self.folder}: keeps {self.rows:,} rows of {self.length} tokens; give the dataset that it "
                'was made from, whose rows have an "index"'
            )
        found = self._hidden[index.cpu().numpy()]
        return torch.from_numpy(found).view(self.dtype).to(device)

    def head(self, device: torch.device) -> Tensor:
        """The weight of the teacher's head [V, D]."""
        if self._head.device != device:
            self._head = self._head.to(device)
        return self._head


def _stacked(rows: Sequence[Mapping[str, Tensor]]) -> Tensor:
    lengths = {len(row["input_ids"]) for row in rows}
    if len(lengths) != 1:
        raise InputError(f"rows must be of one length to be kept, these have {sorted(lengths)[:5]} tokens")
    return torch.stack([row["input_ids"] for row in rows])
