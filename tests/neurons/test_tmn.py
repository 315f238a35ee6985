"""TMN. Golden values with their working, and the error it promises."""

import pytest
import torch

from marsnn.neurons import ATMN, TMN
from tests.helpers import same


def test_golden():
    """.75: h .75 -> 1, u -.25 | h -.5 -> -1, a tie, u .5 | h 1 -> 1:  1 - 1/2 + 1/4.
    -.375: h -.375 -> 0 | h -.75 -> -1, u .25 | h .5 -> 1, a tie:  -1/2 + 1/4.
    1.25: h 1.25 -> 1, u .25 | h .5 -> 1, u -.5 | h -1 -> -1:  1 + 1/2 - 1/4."""
    tmn = TMN(3, steps=3)
    train = tmn.encode(torch.tensor([0.75, -0.375, 1.25]))
    assert train.T.tolist() == [[1, -1, 1], [0, -1, 1], [1, 1, -1]]
    assert tmn.decode(train).tolist() == [0.75, -0.25, 1.25]


@pytest.mark.parametrize("T", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("V", [1.0, 0.5, 3.0])
def test_the_error_is_at_most_half_a_last_digit(T, V):
    """Up to 3/2 V a number is written to within V 2^-T (T = 1 has no digit for it); beyond, all fire."""
    tmn = TMN(None, steps=T, threshold=V).double()
    x = torch.linspace(-1.5 * V, 1.5 * V, 4001, dtype=torch.float64)
    error = (tmn.decode(tmn.encode(x)) - x).abs().max()
    assert error <= V * 2.0**-T * (1 + 1e-6) + V / 2 * (T == 1)
    beyond = tmn.decode(tmn.encode(torch.tensor([2.5 * V], dtype=torch.float64)))
    assert beyond.item() == pytest.approx(V * (2 - 2.0 ** (1 - T)), rel=1e-6)


def test_it_is_a_setting_of_atmn():
    x = torch.randn(50)
    atmn = ATMN(None, steps=6, tau=0.5, fire_at=0.5, learn_threshold=False)
    assert same(TMN(None, steps=6).encode(x), atmn.encode(x))
    assert not any(parameter.requires_grad for parameter in TMN(4).parameters())
    assert any(parameter.requires_grad for parameter in TMN(4, learn_threshold=True).parameters())
