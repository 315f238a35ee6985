"""Real data that needs no download: scikit-learn's handwritten digits, split once and for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from marsnn.errors import InputError, MissingDependencyError

Form = Literal["flat", "rows"]


@dataclass(frozen=True)
class Split:
    """One part of a data set."""

    x: Tensor  # [L, B, D]
    y: Tensor  # [B] class indices

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Digits:
    """Three disjoint parts: fit on `train`, choose settings on `validation`, look at `test` once."""

    train: Split
    validation: Split
    test: Split


def load_digits(form: Form = "flat", dtype: torch.dtype = torch.float32) -> Digits:
    """The 1,797 digits of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits, via scikit-learn).

    Args:
        form: "flat" gives one token of 64 pixels, x [1, B, 64]; "rows" gives the 8 rows of an image as a
            sequence of 8 tokens, x [8, B, 8].
        dtype: of x. Pixels are the integers 0 to 16 over 16, exact in every float type.

    Returns:
        Stratified parts of 1,077 / 360 / 360 images, the same in every call.
    """
    if form not in ("flat", "rows"):
        raise InputError(f'form must be "flat" or "rows", got {form!r}')
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "demo") from error
    images, labels = datasets.load_digits(return_X_y=True)
    rest_x, test_x, rest_y, test_y = train_test_split(
        images, labels, test_size=360, random_state=0, stratify=labels
    )
    train_x, val_x, train_y, val_y = train_test_split(
        rest_x, rest_y, test_size=360, random_state=0, stratify=rest_y
    )

    def split(x: object, y: object) -> Split:
        pixels = torch.as_tensor(x, dtype=dtype) / 16
        tokens = pixels.unsqueeze(0) if form == "flat" else pixels.unflatten(1, (8, 8)).transpose(0, 1)
        return Split(tokens.contiguous(), torch.as_tensor(y, dtype=torch.long))

    return Digits(split(train_x, train_y), split(val_x, val_y), split(test_x, test_y))
