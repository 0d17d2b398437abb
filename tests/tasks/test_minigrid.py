"""The planner of MiniGrid demonstrations: it solves levels by the shortest way; data are as diverse and as good as stated."""

import numpy as np
import pytest

from freerun.actors.environment import GymConfig
from freerun.errors import ConfigError, DataError
from freerun.tasks.minigrid import FORWARD, LEFT, PICKUP, TOGGLE, GridDemos, planned


def grid(name, **options):
    return GymConfig(id=f"MiniGrid-{name}", modules=("minigrid",), see="symbols", **options)


ROOMS = grid("MultiRoom-N2-S4-v0")


class Cell:
    def __init__(self, type, *, is_open=False, is_locked=False, overlaps=False):
        self.type, self.is_open, self.is_locked, self._overlaps = type, is_open, is_locked, overlaps

    def can_overlap(self):
        return self._overlaps or self.is_open


class World:
    """A corridor of cells: the agent in one of them looks right."""

    def __init__(self, *cells, at=0, facing=0, carrying=None):
        self.grid, self.cells = self, cells
        self.width, self.height = len(cells), 1
        self.agent_pos, self.agent_dir, self.carrying = (at, 0), facing, carrying

    def get(self, x, y):
        return self.cells[x] if y == 0 and 0 <= x < len(self.cells) else Cell("wall")


GOAL = Cell("goal", overlaps=True)


def test_one_walks_towards_the_goal_and_turns_to_it():
    assert planned(World(None, None, GOAL)) == FORWARD
    assert planned(World(None, None, GOAL, facing=1)) == LEFT


def test_a_closed_door_is_opened_and_an_open_one_is_walked_through():
    assert planned(World(None, Cell("door"), GOAL)) == TOGGLE
    assert planned(World(None, Cell("door", is_open=True), GOAL)) == FORWARD


def test_the_key_of_a_locked_door_is_fetched_first():
    door = Cell("door", is_locked=True)
    assert planned(World(Cell("key"), None, door, GOAL, at=1)) == LEFT
    assert planned(World(Cell("key"), None, door, GOAL, at=1, facing=2)) == PICKUP
    assert planned(World(None, None, door, GOAL, at=1, carrying=Cell("key"))) == TOGGLE


def test_a_level_without_a_way_is_an_error():
    with pytest.raises(DataError, match="finds no way"):
        planned(World(None, Cell("wall"), GOAL))


@pytest.mark.parametrize("env", [ROOMS, grid("DoorKey-5x5-v0")])
def test_every_level_is_solved(env):
    data = GridDemos(env=env, levels=8, episodes=8).build()
    assert min(data.returns) > 0.5
    assert bool(data.columns["terminated"].sum() == 8)


def test_levels_are_as_many_as_stated_and_random_actions_cost_steps():
    same = GridDemos(env=ROOMS, levels=1, episodes=3).build()
    firsts = [obs[0].numpy() for obs in same.split("obs")]
    assert all(np.array_equal(firsts[0], first) for first in firsts)
    best, worse = (GridDemos(env=ROOMS, levels=20, episodes=20, random=share).build() for share in (0.0, 0.4))
    assert np.mean(worse.lengths) > np.mean(best.lengths)


def test_the_data_are_the_same_wherever_they_are_made():
    first, again = (GridDemos(env=ROOMS, levels=4, episodes=6, random=0.2, seed=3).build() for _ in range(2))
    assert all(bool((first.columns[name] == column).all()) for name, column in again.columns.items())


def test_demonstrations_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="cannot be made"):
        GridDemos(env=ROOMS, levels=5, episodes=3)
