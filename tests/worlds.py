"""Environments of a few lines, as Gymnasium knows them and by ids that anybody can make: importing this file registers them.

| id                              | what it does                                                                              |
|---------------------------------|-------------------------------------------------------------------------------------------|
| freerun-tests/Count-v0          | sees how many steps were taken; pays minus the square of what the action lacks to a half  |
| freerun-tests/CountDiscrete-v0  | the same, with the actions 2, 3 and 4, of which 3 pays                                    |

Both are cut after five steps.
"""

import gymnasium
import numpy as np


class Count(gymnasium.Env):
    """Actions from -2 to 4, so that a half, in units of -1 to 1, is 2.5."""

    action_space = gymnasium.spaces.Box(-2.0, 4.0, (1,), np.float32)
    observation_space = gymnasium.spaces.Box(-100.0, 100.0, (1,), np.float32)
    best = 2.5

    def __init__(self) -> None:
        self._num = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._num = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._num += 1
        return np.full(1, self._num, np.float32), -float((np.sum(action) - self.best) ** 2), False, False, {}


class CountDiscrete(Count):
    action_space = gymnasium.spaces.Discrete(3, start=2)
    best = 3.0


COUNT, COUNT_DISCRETE = "freerun-tests/Count-v0", "freerun-tests/CountDiscrete-v0"
gymnasium.register(COUNT, entry_point="worlds:Count", max_episode_steps=5, order_enforce=False)
gymnasium.register(COUNT_DISCRETE, entry_point="worlds:CountDiscrete", max_episode_steps=5, order_enforce=False)
