"""Unit: what is measured of a model, against numbers worked out another way; stages as rows of one model."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from marsnn.energy import load_table
from marsnn.errors import InputError, NonFiniteError
from marsnn.refine import add_spikes, convert, evaluation, sparsify
from marsnn.refine.evaluation import EvaluationConfig, check_texts, evaluate
from marsnn.refine.positions import by_position, windows_of
from marsnn.refine.quality import bleu, copying, needle, rouge_l
from marsnn.refine.report import report_text, save_report
from marsnn.refine.shapes import dense_of, token_counts
from marsnn.refine.stages import View, stages
from tests.refine import folders
from tests.refine.models import some_tokens


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(folders.write_text(tmp_path_factory.mktemp("texts")))


@pytest.fixture(scope="module")
def refined():
    model = convert(folders.model(), [1, 2])
    tokens = torch.randint(1, 200, (2, 64), generator=torch.Generator().manual_seed(1))
    sparsify(model, tokens, 0.5)
    add_spikes(model, tokens, steps=5, fire_at=0.5)
    return model


def config(text, **changes):
    settings = {"texts": (text,), "tokens": 200, "context": 64, "tasks": 2, "contexts": (32, 256)}
    return EvaluationConfig(**{**settings, **changes})


def test_bits_perplexity_kl_and_agreement_worked_out_again(text):
    dense, other = folders.model(), folders.model(1)
    found = evaluate({"a": dense, "b": other}, folders.tokenizer(), config(text), teacher="a")
    ids = folders.tokenizer()(Path(text).read_text(), return_tensors="pt").input_ids[0]
    nats = kl = same = right = size = 0
    for start in range(0, 192, 64):
        window = ids[start : start + 65]
        with torch.no_grad():
            p, q = (each(window[None, :-1]).logits[0].double().softmax(-1) for each in (dense, other))
        nats -= q.log()[range(64), window[1:]].sum().item()
        kl += (p * (p / q).log()).sum().item()
        same += (p.argmax(-1) == q.argmax(-1)).sum().item()
        right += (q.argmax(-1) == window[1:]).sum().item()
        size += len(folders.tokenizer().decode(window[1:]).encode())
    row = found.rows["b"]["texts"][text]
    assert row["tokens"] == 192
    assert row["nats"] == pytest.approx(nats / 192, rel=1e-5)
    assert row["perplexity"] == pytest.approx(math.exp(nats / 192), rel=1e-4)
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert row["kl"] == pytest.approx(kl / 192, rel=1e-4)
    assert row["agreement"] == same / 192
    assert row["accuracy"] == right / 192
    assert "kl" not in found.rows["a"]["texts"][text]


def test_stages_are_rows_of_one_checkpoint(refined, text):
    before = refined(some_tokens()).logits
    views = stages(refined)
    assert list(views) == ["2/4 zeroed", "2/4 SSM", "2/4 SSM + FFN 0.5", "2/4 SSM + FFN 0.5 + ATMN T=5"]
    found = evaluate({"dense": folders.model(), **views}, folders.tokenizer(), config(text), "dense")
    plans = [row["plan"] for row in found.rows.values()]
    assert [plan["attention_layers"] for plan in plans] == [4, 2, 2, 2, 2]
    assert [plan["sparsity"] is not None for plan in plans] == [False, False, False, True, True]
    assert [plan["spikes"] is not None for plan in plans] == [False, False, False, False, True]
    kls = [row["texts"][text].get("kl", 0.0) for row in found.rows.values()]
    assert kls[0] == 0 < kls[1]
    assert len(set(kls)) == 5
    for row in list(found.rows.values())[1:]:
        assert len(row["layers"]) == 4
        assert row["layers"][1] > 0
    assert found.rows["2/4 SSM"]["layers"][0] < 1e-6 < found.rows["2/4 SSM"]["layers"][1]
    assert set(found.rows["2/4 SSM + FFN 0.5 + ATMN T=5"]["rates"]) == {
        f"{layer}.{site}" for layer in range(4) for site in ("mixer_in", "mixer_out", "ffn_in", "ffn_out")
    }
    nats = [row["texts"][text]["nats"] for row in found.rows.values()]
    recovered = (nats[1] - nats[2]) / (nats[1] - nats[0])
    expected = {text: pytest.approx(recovered)} if nats[1] > nats[0] else {}
    assert found.rows["2/4 SSM"]["recovered"] == expected
    assert torch.equal(refined(some_tokens()).logits, before), "looking leaves it as it was"


@pytest.mark.parametrize("mode", ["topk", "threshold", "mask"])
def test_a_view_without_stages_is_the_model_before_them(mode):
    tokens = some_tokens()
    plain = convert(folders.model(), [1])
    model = convert(folders.model(), [1])
    sparsify(model, tokens, 0.5, mode)
    sparse = model(tokens).logits
    add_spikes(model, tokens)
    with View(model, spiking=False).shown() as shown:
        assert torch.equal(shown(tokens).logits, sparse)
    with View(model, sparse=False, spiking=False).shown() as shown:
        assert torch.equal(shown(tokens).logits, plain(tokens).logits)
        assert shown.config.sparsity is None
    for view in stages(model).values():
        if view.mixing:
            with view.shown() as shown, torch.no_grad():
                expected = shown(tokens).logits
            with torch.no_grad():
                torch.testing.assert_close(view.alone()(tokens).logits, expected)
    with pytest.raises(RuntimeError, match="inside"), View(model, sparse=False, spiking=False).shown():
        raise RuntimeError("inside")
    assert model.config.sparsity is not None
    assert model.config.spikes is not None


def test_energy_of_a_row_is_its_counts_by_the_table(refined, text):
    found = evaluate(dict(stages(refined)), folders.tokenizer(), config(text))
    assert found.rows.pop("2/4 zeroed")["energy"] == {}
    for name, row in found.rows.items():
        with stages(refined)[name].shown() as model:
            counts = token_counts(model.config, 256, row["rates"]).total
            dense = token_counts(dense_of(model.config), 256).total
        for table in ("45nm-fp32", "45nm-int8"):
            prices = load_table(table)
            each = row["energy"]["256"]
            assert each[f"{table} nJ"] == pytest.approx(prices.spiking_pj(counts) / 1e3)
            ratio = prices.spiking_pj(counts) / prices.spiking_pj(dense)
            assert each[f"{table} ratio"] == pytest.approx(ratio)
    assert all(set(row["energy"]) == {"32", "256"} for row in found.rows.values())


def test_a_model_that_copies_scores_one():
    class Copies(torch.nn.Module):
        """Predicts what stood half of the sequence before."""

        config = folders.model().config
        device = torch.device("cpu")

        def forward(self, ids, use_cache=False):
            half = ids.shape[1] // 2
            wanted = torch.roll(ids, half - 1, dims=1)
            return type("Out", (), {"logits": F.one_hot(wanted, self.config.vocab_size).float()})

    assert copying(Copies(), 2, 256, 0) == {"32": 1.0, "128": 1.0}
    assert copying(folders.model(), 2, 256, 0)["32"] < 0.2


def test_a_needle_is_told_once_and_asked_for(text):
    seen = []

    class Listens(torch.nn.Module):
        config = folders.model().config
        device = torch.device("cpu")

        def forward(self, ids, use_cache=False, logits_to_keep=0):
            seen.append(folders.tokenizer().decode(ids[0]))
            wanted = torch.roll(ids, -1, dims=1)[:, -logits_to_keep:]
            return type("Out", (), {"logits": F.one_hot(wanted, self.config.vocab_size).float()})

    assert needle(Listens(), folders.tokenizer(), text, 4, 200, 0) == {"0.1": 1.0, "0.5": 1.0, "0.9": 1.0}
    for each in seen:
        assert each.count("The secret number of") == 2
        secret = each.rsplit(" ", 1)[1]
        assert each.count(secret) == 2


def test_bleu_and_rouge_by_hand():
    same = [["a", "b", "c", "d", "e"]]
    assert bleu(same, same) == pytest.approx(1.0)
    assert bleu([["x", "y"]], same) == 0.0
    # 3 of 4 words; (2 + 1) of (3 + 1) pairs, (1 + 1) of (2 + 1) triples, (0 + 1) of (1 + 1); no brevity
    expected = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert bleu([["a", "b", "c", "x"]], [["a", "b", "c", "d"]]) == pytest.approx(expected)
    shorter = bleu([["a", "b", "c"]], [["a", "b", "c", "d", "e", "f"]])
    assert shorter == pytest.approx(math.exp(1 - 6 / 3))
    assert rouge_l(["a", "x", "b", "c"], ["a", "b", "c", "d"]) == pytest.approx(2 * 3 / 8)
    assert rouge_l([], ["a"]) == 0.0


def test_the_report_names_plan_and_context_and_draws(refined, text, tmp_path):
    rows = {"dense": folders.model(), **stages(refined)}
    found = evaluate(rows, folders.tokenizer(), config(text), "dense")
    told = report_text(found)
    assert "context of 64 tokens" in told
    assert "ESTIMATED" in told
    for name in rows:
        assert told.count(name) >= 2
    save_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert (tmp_path / "report.json").stat().st_size > 1000
    assert (tmp_path / "report.txt").read_text() == told


def test_positions_are_of_every_row_that_mixes_and_of_every_text(refined, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("A dog sat on the sun; 54321 cats ran. " * 30)
    lengths = config(text, texts=(text, str(other)), tasks=0, positions=(40, 300), windows=3)
    rows = {"dense": folders.model(), **stages(refined)}
    found = evaluate(rows, folders.tokenizer(), lengths, "dense")
    assert found.settings["position_windows"]["40"] == {text: 3, str(other): 3}
    assert (
        found.settings["position_windows"]["300"][text]
        == 3
        > found.settings["position_windows"]["300"][str(other)]
    )
    assert "positions" not in found.rows["2/4 zeroed"]
    told = report_text(found)
    for length in (40, 300):
        assert f"by position in a window of {length} tokens, over 3" in told
        for source in lengths.texts:
            windows = windows_of(folders.tokenizer(), source, length, 3)
            dense = by_position(folders.model(), folders.tokenizer(), windows)
            for name in ("2/4 SSM", "2/4 SSM + FFN 0.5", "2/4 SSM + FFN 0.5 + ATMN T=5"):
                with stages(refined)[name].shown() as model:
                    expected = by_position(model, folders.tokenizer(), windows)
                assert found.rows[name]["positions"][str(length)][source] == expected
                end = str(length)
                share = f"({expected[end] / dense[end] - 1:+.1%})"
                assert f"{expected[end]:.4f}{share:>9}" in told
    with pytest.raises(InputError, match="a window takes 9,001"):
        check_texts(folders.tokenizer(), config(text, positions=(40, 9000)))


def test_recovered_is_the_share_of_what_leaving_out_costs(refined):
    views = {"dense": View(folders.model()), **stages(refined)}
    nats = dict(zip(views, (2.0, 5.0, 3.0, 4.0, 4.5), strict=True))  # dense, zeroed, SSM, sparse, spiking
    measured = {name: {"texts": {"a": {"nats": each}, "b": {"nats": 2.0}}} for name, each in nats.items()}
    evaluation._add_recovered(measured, views, "dense")
    told = {name: row["recovered"] for name, row in measured.items() if "recovered" in row}
    assert told == {"2/4 SSM": {"a": pytest.approx(2 / 3)}}  # of text b nothing was lost


def test_attentions_left_out_are_a_row_without_their_stages(refined, text):
    zeroed = next(iter(stages(refined).values()))
    rows = evaluate(
        {"dense": folders.model(), "zeroed": zeroed}, folders.tokenizer(), config(text), "dense"
    ).rows
    assert "recovered" not in rows["zeroed"]
    assert rows["zeroed"]["layers"][1] > 0


def test_bad_input_is_one_line(text, tmp_path):
    models, tokens = {"a": folders.model()}, folders.tokenizer()
    with pytest.raises(InputError, match="no model 'b'"):
        evaluate(models, tokens, config(text), teacher="b")
    with pytest.raises(InputError, match="beyond"):
        evaluate(models, tokens, config(text, context=512))
    with pytest.raises(InputError, match="no text 'nowhere'"):
        evaluate(models, tokens, config("nowhere"))
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(InputError, match="the least to measure on"):
        evaluate(models, tokens, config(str(short)))
    broken = convert(folders.model(), [1])
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="predicts NaN"):
        evaluate({"broken": broken}, tokens, config(text))
