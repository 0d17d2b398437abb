"""Returns, advantages against a critic, and whitening, against sums worked by hand."""

import pytest
import torch

from freerun.ops import returns

MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
VALUES = torch.tensor([[0.5, 1.0, 2.0], [3.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
REWARD = torch.tensor([[0.0, 1.0, 4.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]])


def test_a_reward_lies_on_the_last_token_and_nowhere_if_there_is_none():
    found = returns.at_the_end(torch.tensor([2.0, 3.0, 4.0]), MASK)
    assert found.tolist() == [[0, 0, 2], [3, 0, 0], [0, 0, 0]]


def test_generalised_advantages_by_hand():
    # d = (0 + .5*1 - .5, 1 + .5*2 - 1, 4 - 2) = (0, 1, 2); A_3 = 2, A_2 = 1 + .5*.5*2, A_1 = 0 + .25 * 1.5.
    advantage, target = returns.gae(REWARD, VALUES, MASK, discount=0.5, decay=0.5)
    assert advantage.tolist() == [[0.375, 1.5, 2.0], [2.0, 0, 0], [0, 0, 0]]
    assert target.tolist() == [[0.875, 2.5, 4.0], [5.0, 0, 0], [0, 0, 0]]


def test_with_decay_one_the_advantage_is_the_return_minus_the_value():
    advantage, target = returns.gae(REWARD, VALUES, MASK, discount=1.0, decay=1.0)
    assert torch.equal(target, returns.to_go(REWARD, MASK))
    assert torch.equal(advantage, torch.where(MASK, target - VALUES, 0.0))


def test_with_decay_zero_the_advantage_is_the_one_step_error():
    advantage, _ = returns.gae(REWARD, VALUES, MASK, discount=1.0, decay=0.0)
    assert advantage.tolist() == [[0.5, 2.0, 2.0], [2.0, 0, 0], [0, 0, 0]]


def test_a_perfect_critic_leaves_no_advantage():
    advantage, _ = returns.gae(REWARD, returns.to_go(REWARD, MASK), MASK, discount=1.0, decay=0.95)
    assert torch.equal(advantage, torch.zeros(3, 3))


def test_rewards_to_go_add_up_from_the_end():
    assert returns.to_go(REWARD, MASK).tolist() == [[5, 5, 4], [5, 0, 0], [0, 0, 0]]


def test_whitening_gives_the_tokens_of_the_step_mean_zero_and_variance_one():
    value = torch.tensor([[1.0, 2.0, 3.0], [6.0, 1e9, 1e9], [1e9, 1e9, 1e9]])
    white = returns.whitened(value, MASK)
    assert white[MASK].mean() == pytest.approx(0.0, abs=1e-6)
    assert white[MASK].var() == pytest.approx(1.0, rel=1e-6)
    assert white[~MASK].tolist() == [0.0] * 5


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e6])
@pytest.mark.parametrize("mask", [MASK, MASK[1:2], MASK[2:]])
def test_whitening_of_equal_values_of_one_and_of_none_is_exactly_zero(value, mask):
    assert torch.equal(returns.whitened(torch.full(mask.shape, value), mask), torch.zeros(mask.shape))
