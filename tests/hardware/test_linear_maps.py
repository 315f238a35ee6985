"""Reference: merged maps against the layers one after the other, in float64, and what does not merge."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from marsnn.hardware import integer
from marsnn.hardware.linear_maps import Dense, Kernel, Merged, affine_of, merge
from marsnn.hardware.stages import WEIGHT_MAX


def merged(layers, shape):
    """The map and the bias of layers one behind the other; the map's refusal where there is one."""
    term, bias = Merged("input"), np.zeros(int(np.prod(shape)))
    for number, layer in enumerate(layers):
        own = affine_of(layer, shape)
        if isinstance(own, str):
            return own
        term = merge(f"layer{number}", own, term)
        if isinstance(term, str):
            return term
        bias, shape = own.apply(bias), own.shape
    return term.map, bias, shape


def applied(mapped, x):
    """A map on flat inputs [*, M], by torch."""
    if isinstance(mapped, Dense):
        return x @ mapped.weight.T
    conv = mapped.conv
    function = F.conv1d if len(conv.stride) == 1 else F.conv2d
    image = torch.from_numpy(x).reshape(-1, *conv.source)
    y = function(
        image, torch.from_numpy(mapped.weight), None, conv.stride, conv.padding, conv.dilation, conv.groups
    )
    assert y.shape[1:] == conv.target
    return y.reshape(len(x), -1).numpy()


def pooled(*arguments, rank=2, **settings):
    return (nn.AvgPool1d if rank == 1 else nn.AvgPool2d)(*arguments, **settings)


EXACT = {
    "Linear": (lambda: [nn.Linear(7, 5)], (7,), Dense),
    "without bias": (lambda: [nn.Linear(7, 5, bias=False)], (7,), Dense),
    "Flatten, Linear": (lambda: [nn.Flatten(), nn.Linear(12, 5)], (3, 4), Dense),
    "Conv1d": (lambda: [nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2)], (3, 13), Kernel),
    "Conv1d, same": (lambda: [nn.Conv1d(3, 4, 5, padding="same", dilation=2)], (3, 13), Kernel),
    "Conv1d, valid": (lambda: [nn.Conv1d(3, 4, 5, padding="valid")], (3, 13), Kernel),
    "Conv2d": (
        lambda: [nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 3))],
        (2, 9, 11),
        Kernel,
    ),
    "Conv2d by groups": (lambda: [nn.Conv2d(4, 6, 3, groups=2)], (4, 7, 8), Kernel),
    "each channel by itself": (lambda: [nn.Conv2d(4, 8, 3, groups=4, stride=2)], (4, 7, 8), Kernel),
    "pool 1d": (lambda: [pooled(3, rank=1)], (3, 13), Kernel),
    "pool, padded": (lambda: [pooled(3, stride=2, padding=1)], (2, 9, 11), Kernel),
    "pool of two sizes": (lambda: [pooled((2, 3), stride=(1, 2))], (2, 9, 11), Kernel),
    "pool with a divisor": (lambda: [pooled(2, divisor_override=3)], (2, 8, 8), Kernel),
    "pool, pool": (lambda: [pooled(2), pooled(2, stride=1)], (2, 9, 11), Kernel),
    "conv, pool": (lambda: [nn.Conv2d(2, 4, 3, padding=1), pooled(2)], (2, 9, 11), Kernel),
    "conv, pool that overlaps": (
        lambda: [nn.Conv2d(2, 4, 3, stride=2, dilation=2, padding=3), pooled(3, stride=1)],
        (2, 12, 13),
        Kernel,
    ),
    "conv by groups, pool": (lambda: [nn.Conv2d(4, 6, 3, groups=2), pooled(3, stride=2)], (4, 11, 9), Kernel),
    "conv, pool 1d": (lambda: [nn.Conv1d(2, 4, 4, stride=3), pooled(2, stride=1, rank=1)], (2, 26), Kernel),
    "conv, pool, pool": (lambda: [nn.Conv2d(2, 4, 3), pooled(2), pooled(2, stride=1)], (2, 13, 14), Kernel),
    "pool, conv": (lambda: [pooled(2), nn.Conv2d(2, 4, 3)], (2, 12, 14), Kernel),
    "pool, padded conv": (lambda: [pooled(2), nn.Conv2d(2, 4, 3, padding=1)], (2, 12, 14), Kernel),
    "pool, conv padded by two": (
        lambda: [pooled((2, 3)), nn.Conv2d(2, 4, 3, padding=(2, 1), dilation=2, stride=(1, 2))],
        (2, 12, 18),
        Kernel,
    ),
    "pool, padded conv 1d": (lambda: [pooled(4, rank=1), nn.Conv1d(2, 4, 3, padding=1)], (2, 20), Kernel),
    "overlapping pool, conv": (lambda: [pooled(3, stride=2), nn.Conv2d(2, 4, 3)], (2, 13, 14), Kernel),
    "padded pool, conv": (lambda: [pooled(3, stride=1, padding=1), nn.Conv2d(2, 4, 3)], (2, 9, 11), Kernel),
    "pool, conv by groups": (lambda: [pooled(2), nn.Conv2d(4, 8, 3, groups=2)], (4, 12, 14), Kernel),
    "pool, conv, pool": (lambda: [pooled(2), nn.Conv2d(2, 4, 3), pooled(2)], (2, 14, 16), Kernel),
    "pool, Linear": (lambda: [pooled(2), nn.Flatten(), nn.Linear(2 * 4 * 5, 3)], (2, 8, 10), Dense),
    "overlapping padded pool, Linear": (
        lambda: [pooled(3, stride=2, padding=1), nn.Flatten(), nn.Linear(2 * 5 * 6, 3)],
        (2, 9, 11),
        Dense,
    ),
    "pool that leaves a rest, Linear": (
        lambda: [pooled((3, 2)), nn.Flatten(), nn.Linear(2 * 3 * 5, 3)],
        (2, 11, 11),
        Dense,
    ),
    "pool 1d, Linear": (
        lambda: [pooled(3, stride=2, rank=1), nn.Flatten(), nn.Linear(3 * 6, 4)],
        (3, 14),
        Dense,
    ),
    "pool, pool, Linear": (
        lambda: [pooled(2), pooled(3, stride=1), nn.Flatten(), nn.Linear(2 * 2 * 3, 4)],
        (2, 8, 10),
        Dense,
    ),
    "Dropout and Identity between": (
        lambda: [nn.Conv2d(2, 4, 3), nn.Dropout(0.9), pooled(2), nn.Identity()],
        (2, 10, 12),
        Kernel,
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_merged_map_equals_its_layers(name):
    make, shape, kind = EXACT[name]
    layers = make()
    mapped, bias, target = merged(layers, shape)
    assert isinstance(mapped, kind)
    x = torch.randn(5, *shape, dtype=torch.float64)
    expected = nn.Sequential(*layers).double().eval()(x)
    assert tuple(expected.shape[1:]) == target
    found = applied(mapped, x.reshape(5, -1).numpy()) + bias
    np.testing.assert_allclose(found, expected.reshape(5, -1).detach(), rtol=0, atol=1e-12)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("name", [name for name, (_, _, kind) in EXACT.items() if kind is Kernel])
def test_the_integers_convolve_as_torch_does(name):
    """Exactly, on integers of the full width of weights and inputs."""
    make, shape, _ = EXACT[name]
    mapped, _, _ = merged(make(), shape)
    rng = np.random.default_rng(0)
    weight = rng.integers(-WEIGHT_MAX, WEIGHT_MAX + 1, mapped.weight.shape)
    x = rng.integers(-127, 128, (4, int(np.prod(shape))))
    expected = applied(Kernel(weight.astype(np.float64), mapped.conv), x.astype(np.float64))
    found = integer.convolve(x, weight, mapped.conv)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)
    trains = np.stack([x, -x], axis=1)
    assert np.array_equal(integer.convolve(trains, weight, mapped.conv), np.stack([found, -found], axis=1))


@pytest.mark.parametrize("name", [name for name, (_, _, kind) in EXACT.items() if kind is Kernel])
def test_columns_fold_what_a_sender_is_worth(name):
    make, shape, _ = EXACT[name]
    mapped, _, _ = merged(make(), shape)
    worth = np.repeat(np.random.default_rng(0).uniform(0.5, 2, shape[0]), int(np.prod(shape[1:])))
    x = np.random.default_rng(1).normal(size=(3, len(worth)))
    found = applied(mapped.columns(worth, shape), x)
    np.testing.assert_allclose(found, applied(mapped, worth * x), rtol=0, atol=1e-12)
    worth[-1] *= 2
    assert "thresholds differ within a channel" in mapped.columns(worth, shape)


REFUSED = {
    "Linear, Linear": (lambda: [nn.Linear(7, 5), nn.Linear(5, 3)], (7,), "merge the two into one Linear"),
    "conv, conv": (
        lambda: [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3)],
        (2, 9, 9),
        "merge the two into one convolution",
    ),
    "conv, pool, conv": (
        lambda: [nn.Conv2d(2, 4, 3), pooled(2), nn.Conv2d(4, 2, 3)],
        (2, 12, 12),
        "merge the two into one convolution",
    ),
    "conv, Linear": (lambda: [nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(28, 2)], (2, 9), "one Linear"),
    "conv, pool, Linear": (
        lambda: [nn.Conv1d(2, 4, 3), pooled(2, rank=1), nn.Flatten(), nn.Linear(12, 2)],
        (2, 9),
        "one Linear",
    ),
    "conv, padded pool": (
        lambda: [nn.Conv2d(2, 4, 3), pooled(3, padding=1)],
        (2, 9, 9),
        "pads what a kernel before",
    ),
    "overlapping pool, padded conv": (
        lambda: [pooled(3, stride=1), nn.Conv2d(2, 4, 3, padding=1)],
        (2, 9, 9),
        "pads what a kernel before it",
    ),
    "padded pool, padded conv": (
        lambda: [pooled(2, padding=1), nn.Conv2d(2, 4, 3, padding=1)],
        (2, 8, 8),
        "pads what a kernel before it",
    ),
    "pool that leaves a rest, padded conv": (
        lambda: [pooled(2), nn.Conv2d(2, 4, 3, padding=1)],
        (2, 9, 9),
        "pads what a kernel before it",
    ),
    "ceil": (lambda: [pooled(2, ceil_mode=True)], (2, 9, 9), "windows of an average that are cut"),
    "no padding counted": (
        lambda: [pooled(3, padding=1, count_include_pad=False)],
        (2, 9, 9),
        "windows of an average that are cut",
    ),
    "reflected": (
        lambda: [nn.Conv1d(2, 4, 3, padding=1, padding_mode="reflect")],
        (2, 9),
        "padding_mode = 'reflect'",
    ),
    "too small an image": (lambda: [nn.Conv2d(2, 4, 7)], (2, 3, 3), "can't take an input [2, 3, 3]"),
    "Linear on an image": (lambda: [nn.Linear(9, 4)], (2, 9), "a Linear on [2, 9]; put a Flatten"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_exact_is_refused(name):
    make, shape, told = REFUSED[name]
    found = merged(make(), shape)
    assert isinstance(found, str)
    assert told in found
    assert "\n" not in found


def test_a_pool_without_counted_padding_is_exact_where_there_is_none():
    mapped, _, _ = merged([pooled(2, count_include_pad=False)], (1, 4, 4))
    assert mapped.weight.ravel().tolist() == [0.25] * 4


def test_a_merged_kernel_by_hand():
    # pool of 2 behind the kernel (1, 2): outputs 2j and 2j + 1 halved: taps (1, 2 + 1, 2) / 2, stride 2
    conv = nn.Conv1d(1, 1, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, 2.0]]]))
    mapped, _, shape = merged([conv, pooled(2, rank=1)], (1, 9))
    assert mapped.weight.tolist() == [[[0.5, 1.5, 1.0]]]
    assert (mapped.conv.stride, mapped.conv.padding, shape) == ((2,), (0,), (1, 4))
