"""The point and its goal: what it may do, that its best policy is the best, and that data are what they say."""

import numpy as np
import pytest

from freerun.errors import ConfigError
from freerun.tasks.point import STRIDE, STRIPE, PointConfig, PointData


def placed(config, *at):
    env = config.build()
    env.reset(0)
    env.at_D = np.array(at)
    return env


def test_an_action_moves_the_point_by_a_tenth_and_pays_minus_the_distance():
    env = placed(PointConfig(goal=0.5), 0.5, 0.2)
    step = env.step(np.array([0.0, 1.0]))
    assert step.obs.tolist() == pytest.approx([0.5, 0.3])
    assert step.reward == pytest.approx(-0.2)


def test_the_point_stays_in_the_cube_and_actions_in_their_bounds():
    env = placed(PointConfig(), 0.95, 0.0)
    assert env.step(np.array([9.0, -9.0])).obs.tolist() == pytest.approx([1.0, -0.1])


def test_a_wall_stops_what_would_go_through_it_and_nothing_above_it():
    config = PointConfig(wall=True)
    assert placed(config, -0.05, 0.0).step(np.array([1.0, 0.0])).obs[0] == pytest.approx(-1e-3)
    assert placed(config, 0.05, 0.0).step(np.array([-1.0, 0.0])).obs[0] == pytest.approx(1e-3)
    assert placed(config, -0.05, 0.5).step(np.array([1.0, 0.0])).obs[0] == pytest.approx(0.05)


def test_sparse_rewards_are_paid_near_the_goal_only():
    config = PointConfig(sparse=True, goal=0.5)
    assert placed(config, 0.5, 0.5).step(np.zeros(2)).reward == 1.0
    assert placed(config, 0.5, 0.3).step(np.zeros(2)).reward == 0.0


def test_an_episode_is_cut_after_its_steps_and_never_terminates():
    env = PointConfig(steps=3).build()
    env.reset(1)
    ends = [env.step(np.zeros(2))[2:] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize("wall", [False, True])
def test_the_best_policy_reaches_the_goal_from_everywhere(wall):
    env = PointConfig(wall=wall).build()
    for seed in range(50):
        env.reset(seed)
        for _ in range(40):
            step = env.step(env.best())
        assert step.reward == pytest.approx(0.0, abs=1e-6)


def test_the_best_policy_of_an_open_square_is_paid_what_no_other_can_be():
    """Each coordinate is brought as near as a step can, so the sum of distances is the least there is."""
    env = placed(PointConfig(goal=0.7), 0.45, 0.7)
    paid = [env.step(env.best()).reward for _ in range(4)]
    assert paid == pytest.approx([-(0.25 - STRIDE), -(0.25 - 2 * STRIDE), 0.0, 0.0], abs=1e-9)


def test_data_of_halves_is_good_above_and_random_below():
    columns = PointData(behaviour="halves", noise=0.0, episodes=50).build().columns
    env = PointConfig().build()
    above = columns["obs"][:, 1] > 0
    for obs, action in zip(columns["obs"][above][:200].numpy(), columns["action"][above][:200].numpy(), strict=True):
        env.at_D = obs.astype(float)
        assert action == pytest.approx(env.best(), abs=1e-4)
    assert columns["action"][~above].mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.1)


def test_data_of_stripes_is_good_in_every_other_stripe_and_its_opposite_between():
    columns = PointData(behaviour="stripes", noise=0.0, episodes=20).build().columns
    env, place_R = PointConfig().build(), columns["obs"][:, 1].numpy() / STRIPE
    inside = abs(place_R - place_R.round()) > 1e-3
    for obs, action, place in zip(*(x[inside][:200] for x in (columns["obs"], columns["action"], place_R)), strict=True):
        env.at_D = obs.double().numpy()
        good = np.floor(place) % 2 == 0
        assert action.numpy() == pytest.approx(env.best() if good else -env.best(), abs=1e-4)


def test_references_are_a_random_and_the_best_policy_and_the_same_for_all_data():
    low, high = PointData(behaviour="best", episodes=5).build().scores
    assert low < high < 0
    assert PointData(behaviour="random", episodes=3).build().scores == (low, high)


def test_data_follow_from_their_seed():
    first, same, other = (PointData(episodes=3, seed=seed).build().columns["obs"].tolist() for seed in (0, 0, 1))
    assert first == same != other


def test_a_point_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="a point"):
        PointConfig(dims=1)
    with pytest.raises(ConfigError, match="a point"):
        PointData(behaviour="clever")
