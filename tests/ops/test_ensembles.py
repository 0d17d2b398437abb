"""What several critics say together, by hand.

Shapes: M members, B rows, A action dimensions.
"""

import pytest
import torch

from freerun.ops import ensembles


def test_the_least_of_all_members_takes_no_chance():
    value_MB = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    make = torch.Generator().manual_seed(0)
    before = make.get_state()
    assert ensembles.least_of_some(value_MB, 2, make).tolist() == [2.0, 1.0]
    assert torch.equal(make.get_state(), before)


def test_the_least_of_some_is_that_of_one_choice_for_the_whole_batch():
    """With two of three members, a batch gives one of three rows, each about as often."""
    value_MB = torch.tensor([[1.0, 6.0], [2.0, 5.0], [3.0, 4.0]])
    make = torch.Generator().manual_seed(0)
    drawn = [tuple(ensembles.least_of_some(value_MB, 2, make).tolist()) for _ in range(3000)]
    assert set(drawn) == {(1.0, 5.0), (1.0, 4.0), (2.0, 4.0)}
    assert all(drawn.count(row) / 3000 == pytest.approx(1 / 3, abs=0.04) for row in set(drawn))


def test_likeness_of_slopes_by_hand():
    same = torch.tensor([2.0, 0.0]).expand(3, 1, 2)
    assert ensembles.likeness(same).item() == pytest.approx(3.0)
    opposite = torch.tensor([[[1.0, 0.0]], [[-5.0, 0.0]]])
    assert ensembles.likeness(opposite).item() == pytest.approx(-2.0)
    apart = torch.tensor([[[1.0, 0.0]], [[0.0, 7.0]]])
    assert ensembles.likeness(apart).item() == pytest.approx(0.0, abs=1e-6)


def test_likeness_is_the_mean_over_pairs_of_their_cosine():
    slope_MBA = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))
    cosines = torch.nn.functional.cosine_similarity(slope_MBA[:, None], slope_MBA[None], dim=-1)
    by_pairs = sum(cosines[i, j] for i in range(4) for j in range(4) if i != j) / 3
    assert torch.allclose(ensembles.likeness(slope_MBA), by_pairs, atol=1e-5)


def test_a_flat_critic_is_like_nobody_and_stays_finite():
    slope_MBA = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]], requires_grad=True)
    likeness = ensembles.likeness(slope_MBA)
    likeness.sum().backward()
    assert likeness.item() == 0.0
    assert bool(slope_MBA.grad.isfinite().all())
