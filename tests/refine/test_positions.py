"""Reference: quality by position and the cloze task, against loops that anyone can check."""

import math
import random

import pytest
import torch

from marsnn.errors import InputError
from marsnn.refine.loading import encoded
from marsnn.refine.positions import bands, by_position, windows_of
from marsnn.refine.quality import cloze
from tests.refine.folders import model, tokenizer, write_text


def test_bands_double_up_to_the_length():
    assert bands(8192) == [256, 512, 1024, 2048, 4096, 8192]
    assert bands(700) == [256, 512, 700]
    assert bands(100) == [100]


def test_bits_per_byte_of_each_band_are_those_of_a_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("marsnn.refine.positions.bands", lambda length: [3, 10, length])
    monkeypatch.setattr("marsnn.refine.positions.PART", 7)
    text = str(write_text(tmp_path))
    ids = encoded(tokenizer(), text, 41)
    windows = windows_of(tokenizer(), text, 20, 2)
    assert [each.tolist() for each in windows] == [ids[:21].tolist(), ids[20:].tolist()]
    found = by_position(model(), tokenizer(), windows)
    with torch.no_grad():
        logs = [model()(each[None, :20]).logits[0].log_softmax(-1) for each in windows]
    for begin, end in ((0, 3), (3, 10), (10, 20)):
        nats = size = 0
        for log, window in zip(logs, windows, strict=True):
            nats -= sum(log[i, window[i + 1]].item() for i in range(begin, end))
            size += len(tokenizer().decode(window[begin + 1 : end + 1]).encode())
        assert found[str(end)] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_as_many_windows_as_the_text_has(tmp_path):
    text = str(write_text(tmp_path))
    number = len(encoded(tokenizer(), text))
    assert len(windows_of(tokenizer(), text, 100, 10_000)) == (number - 1) // 100
    assert len(windows_of(tokenizer(), text, number - 1, 4)) == 1
    with pytest.raises(InputError, match=f"has {number:,} tokens, a window takes {number + 1:,}"):
        windows_of(tokenizer(), text, number)
    with pytest.raises(InputError, match="windows"):
        windows_of(tokenizer(), text, 100, 0)


class Knows:
    """Gives probability to one word's tokens alone."""

    device = torch.device("cpu")
    config = model().config

    def __init__(self, word):
        self.ids = tokenizer()(f" {word}", add_special_tokens=False).input_ids

    def __call__(self, rows, use_cache, logits_to_keep):
        logits = torch.zeros(*rows.shape, self.config.vocab_size)
        logits[..., self.ids] = 9.0
        return type("Out", (), {"logits": logits[:, -logits_to_keep:]})


def test_cloze_is_right_where_the_word_that_stands_there_is_the_likeliest():
    words = ["alpha", "bravo", "delta", "gamma"] * 20
    found = {word: cloze(Knows(word), tokenizer(), words, 40, 0, before=4)["accuracy"] for word in words[:4]}
    # each knows its own word alone, and all four stand at every place: just one of them is right there
    places = random.Random(0).sample(range(4, len(words)), 40)
    for word, accuracy in found.items():
        assert accuracy == pytest.approx(sum(words[place] == word for place in places) / 40)
    assert cloze(Knows("alpha"), tokenizer(), words[:3], 4, 0, before=4) == {}
