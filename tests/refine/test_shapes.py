"""Reference: operations that follow from a configuration are those that are counted on a model that runs."""

import pytest

from marsnn.energy import count
from marsnn.refine import add_spikes, convert, firing_rates, sparsify
from marsnn.refine.shapes import head, image_counts, projections, token_counts
from marsnn.spiking import SpikingInput
from tests.refine.digits import digits, untrained
from tests.refine.models import some_tokens, teacher

LENGTH = 20
IMAGES = digits()["train"][0][:1].clamp(min=0.01)  # without zeros, which a count skips


def text(layers):
    return convert(teacher(), layers), some_tokens(1, LENGTH)


def pictures(layers):
    return convert(untrained(), layers), IMAGES


def expected(model):
    """Of a whole sequence or image, by layer."""
    if model.config.causal:
        of_token = token_counts(model.config, LENGTH)
        return {name: LENGTH * each.dense_mac for name, each in of_token.layers.items()}
    return {name: each.dense_mac for name, each in image_counts(model.config).layers.items()}


@pytest.mark.parametrize("make", [text, pictures])
def test_dense_operations_are_those_of_the_run(make):
    model, data = make([1])
    counted, found = count(model, data), expected(model)
    for layer, kind in enumerate(model.config.layer_types):
        for each in projections(model.config, kind):
            owner = "self_attn" if each.site.startswith("mixer") else "mlp"
            name = f"model.layers.{layer}.{owner}.{each.name}"
            assert counted.layers[name].dense_mac == found[f"model.layers.{layer}.{each.name}"] > 0, name
    for layer in (0, 2):
        name = f"model.layers.{layer}"
        assert counted.layers[f"{name}.self_attn"].dense_mac == found[f"{name}.mixing"] > 0
    last = head(model.config).name
    assert counted.layers[last].dense_mac == found[last]
    if not model.config.causal:
        name = "model.embeddings.patch_embeddings.projection"
        assert counted.layers[name].dense_mac == found[name] == 16 * 4 * 32
    gates = [name for name in counted.layers if "gate_proj" in name]
    assert bool(gates) == model.config.gated_ffn


@pytest.mark.parametrize("make", [text, pictures])
def test_spikes_are_those_of_the_run(make):
    model, data = make([1])
    sparsify(model, data, 0.5)
    add_spikes(model, data, steps=4, tau=0.5)
    heard = {}
    with firing_rates(model) as rates:
        model(data)
    for (_, site), rate in rates.items():
        heard.setdefault(site, []).extend(rate)
    for part in model.modules():
        if isinstance(part, SpikingInput):
            part.unrolled = True  # accumulates, one step after the other
    counted = count(model, data).total
    rate = {site: sum(each) / len(each) for site, each in heard.items()}
    if model.config.causal:
        own, times = token_counts(model.config, LENGTH, rate).total, LENGTH
    else:
        own, times = image_counts(model.config, rate).total, 1
    assert counted.dense_ac == times * own.dense_ac > 0
    assert counted.ac == pytest.approx(times * own.ac, rel=0.1)


def test_both_ways_mix_twice():
    model = convert(untrained(), [1])
    both = token_counts(model.config, 17).layers["model.layers.1.mixing"]
    causal = type(model.config)(**{**model.config.to_dict(), "causal": True})
    one = token_counts(causal, 17).layers["model.layers.1.mixing"]
    assert (both.mac, both.mul) == (2 * one.mac, 2 * one.mul) > (0, 0)


def test_an_image_is_its_tokens_its_patches_and_one_classifier():
    config = convert(untrained(), []).config
    token, image = token_counts(config, 17), image_counts(config)
    last = token.layers["classifier"].mac
    assert last == 32 * 10
    assert image.total.mac == 17 * (token.total.mac - last) + 16 * 4 * 32 + last
    assert image.tokens == 1
    assert image.total.baseline_mac == image.total.mac
