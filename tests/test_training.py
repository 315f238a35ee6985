"""Unit: data splits, training, and what happens when the loss leaves the finite numbers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from marsnn.ablation import TUNING_SEEDS
from marsnn.bench import digits as benchmark
from marsnn.data import load_digits
from marsnn.errors import DivergedError, InputError, MarsnnError, NonFiniteError, ShapeError
from marsnn.network import Network
from marsnn.neurons import ATMN, LIF
from marsnn.training import IGNORED, StreamConfig, TrainConfig, accuracy, logits, train, train_stream


def test_splits_are_disjoint_whole_and_the_same_every_time():
    one, two = load_digits("flat"), load_digits("flat")
    parts = [one.train, one.validation, one.test]
    assert [len(part) for part in parts] == [1077, 360, 360]
    assert all(
        torch.equal(a.x, b.x) for a, b in zip(parts, [two.train, two.validation, two.test], strict=True)
    )
    from sklearn.datasets import load_digits as raw

    images = raw(return_X_y=True)[0]
    seen = np.concatenate([part.x[0].numpy() * 16 for part in parts])
    assert np.array_equal(np.sort(seen, axis=0), np.sort(images, axis=0).astype(np.float32))
    for part in parts:  # stratified: every digit has about a tenth
        assert 0.08 < np.bincount(part.y.numpy()).min() / len(part) < 0.11


def test_rows_are_the_same_images_as_sequences():
    flat, rows = load_digits("flat"), load_digits("rows")
    assert rows.test.x.shape == (8, 360, 8)
    assert torch.equal(rows.test.x.transpose(0, 1).flatten(1), flat.test.x[0])
    with pytest.raises(InputError, match='"flat" or "rows"'):
        load_digits("columns")


def small(neuron):
    torch.manual_seed(0)
    return Network([nn.Linear(64, 24), neuron(24), nn.Linear(24, 24), neuron(24), nn.Linear(24, 10)])


@pytest.mark.parametrize("neuron", [ATMN, LIF])
def test_learns_digits_and_repeats_by_its_seed(neuron):
    digits = load_digits("flat")
    config = TrainConfig(epochs=6, learning_rate=1e-2)
    results = []
    for _ in range(2):
        network = small(neuron)
        start = accuracy(network, digits.validation.x, digits.validation.y)
        history = train(network, digits.train.x, digits.train.y, config)
        results.append((history.loss, accuracy(network, digits.validation.x, digits.validation.y)))
        assert start < 0.3
    assert results[0] == results[1]
    assert results[0][1] > 0.9
    assert results[0][0][-1] < results[0][0][0] / 3
    assert not network.training


def test_thresholds_are_learned_and_stay_positive():
    digits = load_digits("flat")
    network = small(ATMN)
    train(network, digits.train.x, digits.train.y, TrainConfig(epochs=3, learning_rate=3e-2))
    V = network["atmn1"].threshold
    assert (V > 0).all()
    assert (V - 1).abs().max() > 0.05


def test_a_loss_that_leaves_the_finite_numbers_stops_with_finite_weights():
    class Explodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.scale * x * (math.nan if self.calls == 4 else 1.0)

    network = Explodes()
    with pytest.raises(MarsnnError, match="the loss became NaN or infinite in epoch 2"):
        train(network, torch.randn(1, 6, 3), torch.tensor([0, 1, 2] * 2), TrainConfig(epochs=5, batch_size=2))
    assert torch.isfinite(network.scale)
    assert network.scale != 1.0


def test_bad_arguments():
    network, x, y = nn.Linear(4, 3), torch.randn(1, 5, 4), torch.zeros(5, dtype=torch.long)
    for change in ({"epochs": 0}, {"batch_size": -1}, {"learning_rate": 0.0}, {"weight_decay": math.nan}):
        with pytest.raises(InputError):
            TrainConfig(**change)
    with pytest.raises(ShapeError, match=r"x \[L, B, \*D\] and y \[B\]"):
        train(network, x, y[:4])
    with pytest.raises(NonFiniteError):
        train(network, x * math.inf, y)
    with pytest.raises(ShapeError, match=r"\[L, B, C\]"):
        logits(nn.Flatten(), torch.randn(1, 5, 4, 4))


def test_every_arm_of_the_benchmark_is_tuned_over_as_many_settings():
    sizes = {arm.name: len(arm.grid) for arm in (*benchmark.NETWORKS, benchmark.MACHINE)}
    assert set(sizes) == {"ATMN", "LIF", "ReLU", "SVM"}
    assert set(sizes.values()) == {6}
    assert not set(TUNING_SEEDS) & set(range(5))


def test_a_gradient_that_leaves_the_finite_numbers_changes_no_weight():
    """The loss is finite, its gradient is not: nothing may be applied."""

    class BadGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * math.inf

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return BadGradient.apply(self.linear(x))

    network = Net()
    before = network.linear.weight.detach().clone()
    with pytest.raises(MarsnnError, match="the gradient became NaN or infinite in epoch 1"):
        train(network, torch.randn(1, 6, 3), torch.tensor([0, 1, 2] * 2), TrainConfig(epochs=1))
    assert torch.equal(network.linear.weight, before)
    assert not network.training


def test_an_absurd_rate_ends_with_weights_that_work():
    torch.manual_seed(0)
    network = Network([nn.Linear(3, 8), ATMN(8), nn.Linear(8, 3)])
    x, y = torch.randn(1, 60, 3), torch.tensor([0, 1, 2] * 20)
    with pytest.raises(MarsnnError, match="are kept"):
        train(network, x, y, TrainConfig(epochs=3, learning_rate=1e30))
    assert torch.isfinite(network(x)).all()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 1, 7]), "class 7, the network tells 2"),
        (torch.tensor([0, 1, -1]), "class indices >= 0"),
        (torch.tensor([0.0, 1.0, 1.0]), "class indices >= 0"),
        (np.array([0, 1, 1]), "must be tensors"),
    ],
)
def test_wrong_labels(y, message):
    with pytest.raises(InputError, match=message):
        train(nn.Linear(4, 2), torch.randn(1, 3, 4), y)


def test_small_integers_do_as_labels_and_nothing_to_train_is_an_error():
    train(
        nn.Linear(4, 2),
        torch.randn(1, 3, 4),
        torch.tensor([0, 1, 1], dtype=torch.int8),
        TrainConfig(epochs=1),
    )
    with pytest.raises(InputError, match="no parameters to train"):
        train(nn.Identity(), torch.randn(1, 3, 2), torch.tensor([0, 1, 1]))


def test_accuracy_leaves_every_submodule_in_its_mode():
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2), nn.Dropout(0.5))
    network[2].eval()
    accuracy(network, torch.randn(1, 4, 3), torch.tensor([0, 1, 0, 1]))
    assert [module.training for module in network] == [True, True, False]


# ---- batches that are drawn --------------------------------------------------------------------------


def stream(update):
    """The parity of the last two bits, told at every token but the first."""
    draw = torch.Generator().manual_seed(update)
    bits = torch.randint(2, (6, 32), generator=draw)
    targets = bits.clone()
    targets[1:] = (bits[1:] + bits[:-1]) % 2
    targets[0] = IGNORED
    x = torch.stack([bits, bits.roll(1, 0)], -1).float() - 0.5
    return x, targets


def streamed(**settings):
    torch.manual_seed(0)
    network = Network([nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)])
    history = train_stream(network, stream, StreamConfig(**settings))
    return network, history


def test_a_stream_is_learned_and_repeats():
    network, history = streamed(updates=150, learning_rate=2e-2, warmup=10)
    x, targets = stream(10_000)
    asked = targets != IGNORED
    assert (network(x).argmax(-1)[asked] == targets[asked]).float().mean() > 0.95
    assert len(history.loss) == 150
    assert not network.training
    again, _ = streamed(updates=150, learning_rate=2e-2, warmup=10)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), again.parameters(), strict=True))


def test_targets_that_are_ignored_teach_nothing():
    def changed(update):
        x, targets = stream(update)
        x = x.clone()
        x[0] += 100.0
        return x, targets

    networks = []
    for draw in (stream, changed):
        torch.manual_seed(0)
        network = Network([nn.Linear(2, 2)])
        train_stream(network, draw, StreamConfig(updates=3))
        networks.append(network)
    first, second = ([p.detach() for p in network.parameters()] for network in networks)
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def test_a_stream_that_diverges_keeps_the_last_good_weights():
    def poisoned(update):
        x, targets = stream(update)
        return (x * torch.inf if update == 2 else x), targets

    network = Network([nn.Linear(2, 2)])
    with pytest.raises(DivergedError, match=r"in update 3; .* Try a learning_rate below 0.005"):
        train_stream(network, poisoned, StreamConfig(updates=5))
    assert all(bool(torch.isfinite(p).all()) for p in network.parameters())


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"scores \[6, 32, 2\] need targets \[6, 32\], got \[32, 6\]"):
        train_stream(Network([nn.Linear(2, 2)]), lambda u: (stream(u)[0], stream(u)[1].t()))


@pytest.mark.parametrize("settings", [{"updates": 0}, {"learning_rate": 0.0}, {"clip": -1.0}, {"warmup": 0}])
def test_settings_of_a_stream_are_checked(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        StreamConfig(**settings)
