"""The combination lock, by hand, and the data that come of it."""

import numpy as np
import pytest

from freerun.errors import ConfigError
from freerun.tasks.lock import ACTIONS, BAD, LockConfig, LockData, hadamard


def played(config, choose, episodes=400):
    """Return of each episode of `choose(environment)`."""
    env, returns = config.build(), []
    for seed in range(episodes):
        env.reset(seed)
        total, over = 0.0, False
        while not over:
            step = env.step(choose(env))
            total, over = total + step.reward, step.terminated
        returns.append(total)
    return returns


def one_hot(action):
    return np.eye(ACTIONS)[action]


def test_the_rotation_is_orthogonal():
    for width in (1, 2, 8, 16):
        matrix = hadamard(width)
        assert np.array_equal(matrix @ matrix.T, width * np.eye(width))


@pytest.mark.parametrize("discrete", [True, False])
def test_whoever_knows_the_lock_opens_it(discrete):
    config = LockConfig(steps=4, discrete=discrete)
    returns = played(config, lambda env: env.best() if discrete else one_hot(env.best()))
    assert np.mean(returns) > 0.99


def test_a_wrong_action_leads_to_the_bad_state_for_good_and_pays_a_little_half_of_the_time():
    config = LockConfig(steps=3, discrete=True)
    returns = played(config, lambda env: (env.best() + 1) % ACTIONS, 2000)
    assert set(returns) == {0.0, 0.1}
    assert np.mean(returns) == pytest.approx(0.05, abs=0.004)
    env = config.build()
    env.reset(0)
    env.step(np.array((env.best() + 1) % ACTIONS))
    assert env.state == BAD
    env.step(np.array(env.best()))
    assert env.state == BAD


def test_random_play_opens_it_once_in_ten_to_the_number_of_steps():
    chance = np.random.default_rng(0)
    returns = played(LockConfig(steps=2, discrete=True), lambda env: chance.integers(ACTIONS), 5000)
    assert np.mean(np.array(returns) == 1.0) == pytest.approx(0.01, abs=0.005)


def test_in_the_authors_code_the_end_pays_for_a_fall():
    config = LockConfig(steps=3, discrete=True, pays="end")
    env = config.build()
    paid = []
    for seed in range(200):
        env.reset(seed)
        paid.append([env.step(np.array((env.best() + 1) % ACTIONS)).reward for _ in range(3)])
    assert not np.any(np.array(paid)[:, :2])
    assert np.mean(np.array(paid)[:, 2]) == pytest.approx(0.05, abs=0.015)


def test_ten_equal_numbers_are_a_uniform_choice_and_one_that_leads_by_one_is_sure():
    env = LockConfig().build()
    env.reset(0)
    drawn = [env._drawn(np.zeros(ACTIONS)) for _ in range(5000)]
    assert np.bincount(drawn, minlength=ACTIONS) / 5000 == pytest.approx(np.full(ACTIONS, 0.1), abs=0.02)
    assert np.mean([env._drawn(one_hot(7)) == 7 for _ in range(2000)]) > 0.99


def test_what_is_seen_says_state_and_step_through_little_noise():
    config = LockConfig(steps=3)
    env = config.build()
    for _ in range(20):
        seen = env.reset(1)
        for step in range(3):
            code = hadamard(config.width).T @ seen / config.width
            assert set(np.flatnonzero(code > 0.5)) == {env.state, 3 + step}
            seen = env.step(one_hot(env.best())).obs


def test_an_episode_follows_from_its_seed():
    env, other = LockConfig().build(), LockConfig().build()
    assert np.array_equal(env.reset(5), other.reset(5))
    assert all(np.array_equal(env.step(one_hot(1)).obs, other.step(one_hot(1)).obs) for _ in range(4))


def test_a_third_of_the_data_opens_the_lock_and_useless_data_none():
    data = LockData(env=LockConfig(steps=5), episodes=1000).build()
    assert data.lengths == [5] * 1000
    assert np.mean(np.array(data.returns) > 0.5) == pytest.approx((1 - 0.2 * 0.9) ** 5, abs=0.05)
    assert set(data.columns["action"][:5].sum(-1).tolist()) >= {1.0}, "the best action is one-hot"
    useless = LockData(env=LockConfig(steps=5, discrete=True), episodes=300, random=1.0).build()
    assert max(useless.returns) < 0.5
    assert useless.columns["action"].unique().tolist() == list(range(ACTIONS))


def test_a_lock_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="no such lock"):
        LockConfig(steps=0)
