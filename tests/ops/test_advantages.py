"""Baselines against hand-worked numbers."""

from functools import partial

import pytest
import torch

from freerun.ops import advantages
from freerun.types import Group, Prompt, RewardResult

ONE_OF_EIGHT = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
COMPARING = [
    advantages.group_mean,
    advantages.leave_one_out,
    advantages.z_score,
    advantages.population_z_score,
]


def winner_and_losers(winner: float, loser: float) -> torch.Tensor:
    return torch.tensor([winner] + 7 * [loser])


def test_group_mean_subtracts_the_mean_reward():
    assert torch.allclose(advantages.group_mean(ONE_OF_EIGHT), winner_and_losers(0.875, -0.125))


def test_leave_one_out_subtracts_the_mean_of_the_others():
    assert torch.allclose(advantages.leave_one_out(ONE_OF_EIGHT), winner_and_losers(1.0, -1 / 7))
    assert torch.allclose(advantages.leave_one_out(torch.tensor([3.0, 1.0, 2.0])), torch.tensor([1.5, -1.5, 0.0]))


def test_z_score_divides_by_the_sample_standard_deviation():
    # mean 1/8, sum of squares 7/8, so std = sqrt(1/8) and the winner gets (7/8) / sqrt(1/8) = 2.4749.
    assert torch.allclose(advantages.z_score(ONE_OF_EIGHT), winner_and_losers(2.4749, -0.3536), atol=5e-5)


def test_z_score_divides_by_the_population_standard_deviation_on_demand():
    assert torch.allclose(advantages.population_z_score(ONE_OF_EIGHT), winner_and_losers(2.6457, -0.3780), atol=1e-4)


def test_raw_is_the_reward():
    assert torch.equal(advantages.raw(ONE_OF_EIGHT), ONE_OF_EIGHT)


@pytest.mark.parametrize("advantage", [*COMPARING, partial(advantages.log_average_exp, temperature=0.3)])
@pytest.mark.parametrize("reward", [0.0, 0.1, -3.7, 1e6])
@pytest.mark.parametrize("num", [1, 2, 3, 7])
def test_equal_rewards_and_groups_of_one_get_exactly_zero(advantage, reward, num):
    # In float32 the mean of three times 0.1 is not 0.1; divided by eps, the difference would become a signal.
    assert torch.equal(advantage(torch.full((num,), reward)), torch.zeros(num))


@pytest.mark.parametrize("advantage", COMPARING)
def test_advantages_do_not_depend_on_a_constant_added_to_all_rewards(advantage):
    reward_G = torch.tensor([0.3, -1.2, 0.7, 0.0], dtype=torch.float64)
    assert torch.allclose(advantage(reward_G + 100.0), advantage(reward_G), atol=1e-6)
    assert abs(float(advantage(reward_G).sum())) < 1e-6


def test_z_scores_do_not_depend_on_the_scale_of_rewards():
    reward_G = torch.tensor([0.3, -1.2, 0.7, 0.0])
    assert torch.allclose(advantages.z_score(reward_G * 1000), advantages.z_score(reward_G), atol=1e-5)


def test_credit_applies_the_advantage_to_a_groups_rewards_and_keeps_the_state():
    rewards = tuple(RewardResult(value) for value in (3.0, 1.0, 2.0))
    group = Group(item=0, prompt=Prompt("p", "?"), trajectories=(), rewards=rewards)
    state = {"seen": 4}
    advantage_G, after = advantages.credit(advantages.group_mean)(group, state)
    assert torch.equal(advantage_G, torch.tensor([1.0, -1.0, 0.0]))
    assert after is state


@pytest.mark.parametrize(
    ("temperature", "baseline"), [(0.01, 0.9792), (0.1, 0.7921), (1.0, 0.1946), (10.0, 0.1306), (100.0, 0.1256)]
)
def test_log_average_exp_is_between_the_mean_and_the_best_reward(temperature, baseline):
    advantage_G = advantages.log_average_exp(ONE_OF_EIGHT, temperature=temperature)
    assert torch.allclose(advantage_G, winner_and_losers(1 - baseline, -baseline), atol=1e-4)
