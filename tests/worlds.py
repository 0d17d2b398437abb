"""Environments of a few lines, as Gymnasium knows them and by ids that anybody can make: importing this file registers them.

| id                              | what it does                                                                              |
|---------------------------------|-------------------------------------------------------------------------------------------|
| freerun-tests/Count-v0          | sees how many steps were taken; pays minus the square of what the action lacks to a half  |
| freerun-tests/CountDiscrete-v0  | the same, with the actions 2, 3 and 4, of which 3 pays                                    |
| freerun-tests/Catch-v0          | shows a ball that falls and a plate, in pixels; pays 1 if they meet and -1 if not         |

The first two are cut after five steps; the ball is down after five.
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


class Catch(gymnasium.Env):
    """A board of six by six squares of six by six pixels: a ball falls in one column, a plate moves in the lowest row, to the
    left, not at all or to the right."""

    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._row, self._column, self._plate = 0, int(self.np_random.integers(6)), int(self.np_random.integers(6))
        return self._seen(), {}

    def step(self, action):
        self._row, self._plate = self._row + 1, min(max(self._plate + int(action) - 1, 0), 5)
        over = self._row == 5
        return self._seen(), (2.0 * (self._plate == self._column) - 1.0) * over, over, False, {}

    def _seen(self):
        board = np.zeros((6, 6, 1), np.uint8)
        board[5, self._plate] = 128
        board[self._row, self._column] = 255
        return board.repeat(6, 0).repeat(6, 1)


COUNT, COUNT_DISCRETE, CATCH = "freerun-tests/Count-v0", "freerun-tests/CountDiscrete-v0", "freerun-tests/Catch-v0"
gymnasium.register(COUNT, entry_point="worlds:Count", max_episode_steps=5, order_enforce=False)
gymnasium.register(COUNT_DISCRETE, entry_point="worlds:CountDiscrete", max_episode_steps=5, order_enforce=False)
gymnasium.register(CATCH, entry_point="worlds:Catch", order_enforce=False)
