"""What differs between models of text and of images; everything else in this package serves both.

    Text     ids [number] of running text, cut into rows [B, L]; a prediction for each token
    Images   pixels [number, C, H, W], each of them a row; a prediction for each image

A modality says how data is cut into rows, how a stack is called on them, and what is predicted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from marsnn.errors import InputError
from marsnn.refine.config import VISION_SOURCES, image_tokens, sides

FIT_TOKENS, LOSS_TOKENS = 8192, 1024
"""Of a plan: for fits, and for the losses of text."""

LOSS_IMAGES, LEAST_IMAGES, IMAGE_TOKENS = 256, 16, 16384
"""For losses: 256 images, or as many as hold so many tokens where that is fewer, yet 16 at least."""

GAUGED = 512
"""Tokens of text on which predictions are compared."""


def modality(model: PreTrainedModel) -> Modality:
    """That of a model, refined or not."""
    config = model.config
    return Images(config) if config.model_type in VISION_SOURCES else Text(config.vocab_size)


class Modality(ABC):
    """How a model's data is cut, run and scored.

    Attributes:
        scored: what each prediction is of.
        predicted: what a prediction is one of, in the plural.
        outputs: how a plan calls their number.
        number: of them; None where nobody said.
    """

    scored: str
    predicted: str
    outputs: str
    number: int | None

    @abstractmethod
    def check(self, data: Tensor) -> None:
        """Refuse values or shapes that the model can't read, data or rows.

        Raises:
            InputError: so.
        """

    @abstractmethod
    def for_plan(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Rows for losses and rows for fits."""

    @abstractmethod
    def for_align(self, data: Tensor, length: int, sequences: int) -> Tensor:
        """Rows of at most so many tokens together as that number of sequences of `length` has."""

    @abstractmethod
    def for_calibration(self, data: Tensor, tokens: int, length: int) -> Tensor:
        """Rows of that many tokens together, each of at most `length`."""

    @abstractmethod
    def for_comparison(self, rows: Tensor) -> Tensor:
        """The part of rows on which predictions are compared."""

    @abstractmethod
    def together(self, length: int, rows: int) -> int:
        """How many of so many rows make one batch of about `length` tokens."""

    @abstractmethod
    def tokens_in(self, rows: Tensor) -> int:
        """Tokens of all rows."""

    @abstractmethod
    def context(self, asked: int) -> int:
        """Tokens that an attention sees, where that many were asked for."""

    @abstractmethod
    def embeddings(self, model: PreTrainedModel) -> tuple[str, Tensor]:
        """Name and weight of what turns data into tokens."""

    @abstractmethod
    def run(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        """The last hidden states [B, L, D], behind the last norm."""

    @abstractmethod
    def predictions(self, model: PreTrainedModel, last: Tensor) -> list[Tensor]:
        """Logarithms of probabilities, [predictions, number] each, in parts that fit into memory."""

    @abstractmethod
    def targets(self, rows: Tensor, predictions: list[Tensor], labels: Tensor | None) -> list[Tensor]:
        """What the first predictions of each part should have been."""

    def amount(self, rows: Tensor) -> int:
        """How many of `scored` rows hold."""
        return rows.numel()

    def check_labels(self, labels: Tensor | None, data: Tensor) -> None:
        """Refuse labels that don't belong to the data.

        Raises:
            InputError: so.
        """
        if labels is not None:
            raise InputError("labels are for images; what a language model predicts is the text itself")


class Text(Modality):
    """Running text and its next tokens.

    Args:
        vocabulary: how many ids there are; None for any.
    """

    scored, predicted, outputs = "token", "tokens", "vocabulary"

    def __init__(self, vocabulary: int | None = None) -> None:
        self.number = vocabulary

    def check(self, data: Tensor) -> None:
        if data.is_floating_point():
            raise InputError(f"expected token ids [number], got {data.dtype} {list(data.shape)}")
        low, high = data.min().item(), data.max().item()
        if low < 0 or (self.number is not None and high >= self.number):
            raise InputError(f"token ids must be 0 to {(self.number or 0) - 1}, got {low} to {high}")

    def for_plan(self, data: Tensor) -> tuple[Tensor, Tensor]:
        self._check_running(data)
        length = min(512, len(data) // 4)
        if length < 16:
            raise InputError(f"{len(data):,} tokens are too few to plan on; 64 are the least, 9,216 enough")
        self.check(data)
        rows = data[: len(data) // length * length].view(-1, length)
        losses = max(1, min(LOSS_TOKENS // length, len(rows) // 4))
        return rows[:losses], rows[losses : losses + max(2, FIT_TOKENS // length)]

    def for_align(self, data: Tensor, length: int, sequences: int) -> Tensor:
        self._check_running(data)
        there = len(data) // length
        if there < 2:
            raise InputError(f"{len(data):,} tokens are too few for 2 sequences of {length:,}")
        return data[: min(sequences, there) * length].view(-1, length)

    def for_calibration(self, data: Tensor, tokens: int, length: int) -> Tensor:
        length = min(length, len(data))
        rows = max(1, min(tokens, len(data)) // length)
        return data[: rows * length].view(rows, length)

    def for_comparison(self, rows: Tensor) -> Tensor:
        return rows[:1, :GAUGED]

    def together(self, length: int, rows: int) -> int:
        return 1

    def tokens_in(self, rows: Tensor) -> int:
        return rows.numel()

    def context(self, asked: int) -> int:
        return asked

    def embeddings(self, model: PreTrainedModel) -> tuple[str, Tensor]:
        return "model.embed_tokens.weight", model.get_input_embeddings().weight

    def run(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        if rows.ndim != 2:
            raise InputError(f"expected token ids [B, L], got {list(rows.shape)}")
        return model.model(rows.to(model.device), use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def predictions(self, model: PreTrainedModel, last: Tensor) -> list[Tensor]:
        return [model.lm_head(sequence).float().log_softmax(-1) for sequence in last]

    def targets(self, rows: Tensor, predictions: list[Tensor], labels: Tensor | None) -> list[Tensor]:
        if rows.shape[1] < 2:
            raise InputError(f"expected token ids [B, L] with L >= 2, got {list(rows.shape)}")
        return [ids[1:].to(part.device) for ids, part in zip(rows, predictions, strict=True)]

    def _check_running(self, data: Tensor) -> None:
        if data.ndim != 1 or data.is_floating_point():
            raise InputError(f"expected token ids [number], got {data.dtype} {list(data.shape)}")


class Images(Modality):
    """Images and their classes. What wants a number of tokens takes as many images as hold them.

    Args:
        config: a ViTConfig or MarVisionConfig.
    """

    scored, predicted, outputs = "image", "classes", "classes"

    def __init__(self, config: PreTrainedConfig) -> None:
        self.number = config.num_labels
        self.shape = [config.num_channels, *sides(config.image_size)]
        self.tokens = image_tokens(config)
        self.compared = min(LOSS_IMAGES, max(LEAST_IMAGES, IMAGE_TOKENS // self.tokens))

    def check(self, data: Tensor) -> None:
        if not data.is_floating_point() or data.ndim != 4 or list(data.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise InputError(
                f"expected images [number, {wanted}] in floating point, got {data.dtype} {list(data.shape)}"
            )

    def amount(self, rows: Tensor) -> int:
        return len(rows)

    def check_labels(self, labels: Tensor | None, data: Tensor) -> None:
        if labels is None:
            return
        if labels.shape != data.shape[:1] or labels.is_floating_point():
            raise InputError(
                f"expected a class for each of {len(data):,} images, got {labels.dtype} {list(labels.shape)}"
            )
        low, high = labels.min().item(), labels.max().item()
        if low < 0 or high >= (self.number or 0):
            raise InputError(f"labels must be 0 to {(self.number or 0) - 1}, got {low} to {high}")

    def for_plan(self, data: Tensor) -> tuple[Tensor, Tensor]:
        self._check_number(data, 8, "plan on")
        losses = min(self.compared, len(data) // 4)
        return data[:losses], data[losses : losses + max(2, FIT_TOKENS // self.tokens)]

    def for_align(self, data: Tensor, length: int, sequences: int) -> Tensor:
        self._check_number(data, 2, "learn from")
        batch = self.together(length, len(data))
        return data[: min(sequences, len(data) // batch) * batch]

    def for_calibration(self, data: Tensor, tokens: int, length: int) -> Tensor:
        self._check_number(data, 1, "calibrate on")
        return data[: max(1, tokens // self.tokens)]

    def for_comparison(self, rows: Tensor) -> Tensor:
        return rows[: self.compared]

    def together(self, length: int, rows: int) -> int:
        return max(1, min(length // self.tokens, rows // 2))

    def tokens_in(self, rows: Tensor) -> int:
        return len(rows) * self.tokens

    def context(self, asked: int) -> int:
        return self.tokens

    def embeddings(self, model: PreTrainedModel) -> tuple[str, Tensor]:
        return "patch_embeddings.projection.weight", model.get_input_embeddings().projection.weight

    def run(self, model: PreTrainedModel, rows: Tensor) -> Tensor:
        return model.model(rows.to(model.device)).last_hidden_state  # type: ignore[no-any-return]

    def predictions(self, model: PreTrainedModel, last: Tensor) -> list[Tensor]:
        return [model.classifier(last[:, 0]).float().log_softmax(-1)]

    def targets(self, rows: Tensor, predictions: list[Tensor], labels: Tensor | None) -> list[Tensor]:
        """The labels, or where there are none the likeliest classes."""
        if labels is None:
            return [part.argmax(-1) for part in predictions]
        return [labels.to(predictions[0].device)]

    def _check_number(self, data: Tensor, least: int, what: str) -> None:
        self.check(data)
        if len(data) < least:
            raise InputError(f"{len(data)} images are too few to {what}; {least} are the least")


TEXT = Text()
"""Of any vocabulary."""
