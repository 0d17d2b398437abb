"""Demonstrations in MiniGrid by a planner that sees the whole grid: data sets of stated diversity and quality.

A level follows from its seed. The planner finds the shortest way through doors, and fetches a key first where one is locked;
its actions may be mixed with random ones, after which it plans again. What is recorded is what an agent sees, so a policy that
imitates has to find its way with less.

Shapes: R transitions.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from freerun.actors.environment import GymConfig
from freerun.datasets.base import Episodes
from freerun.errors import ConfigError, DataError

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
"""Where one comes to by a step in each direction."""
State = tuple[int, int, int]
"""Column, row, direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridDemos:
    """Episodes of the planner, each in a level of its own."""

    env: GymConfig
    """A grid that shows its `image`."""
    levels: int = 50
    """Number of different levels."""
    episodes: int = 50
    """Number of episodes, spread evenly over the levels."""
    random: float = 0.0
    """Share of random actions."""
    seed: int = 0
    """Which levels, and which random actions."""

    def __post_init__(self) -> None:
        if not (1 <= self.levels <= self.episodes and 0.0 <= self.random < 1.0 and self.env.see in ("image", "symbols")):
            raise ConfigError(
                "these demonstrations cannot be made",
                given=self,
                expected="1 <= levels <= episodes, 0 <= random < 1, an environment that shows its image",
                todo="correct the data set in the recipe",
            )

    def build(self) -> Episodes:
        """Raises `DataError` for a level that the planner cannot solve."""
        from freerun.actors.gymnasium import make

        env, chance = make(self.env), np.random.default_rng(self.seed)
        levels = [int(level) for level in chance.integers(2**31, size=self.levels)]
        rows: dict[str, list[Any]] = {name: [] for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated")}
        episode_R, step_R = list[int](), list[int]()
        for episode in range(self.episodes):
            obs, over, step = env.reset(levels[episode % self.levels]), False, 0
            while not over:
                action = int(chance.integers(TOGGLE + 1)) if chance.random() < self.random else planned(env.inner)
                after = env.step(np.array(action))
                for name, value in zip(
                    rows, (obs, action, after.reward, after.obs, after.terminated, after.truncated), strict=True
                ):
                    rows[name].append(value)
                episode_R.append(episode)
                step_R.append(step)
                obs, over, step = after.obs, after.terminated or after.truncated, step + 1
        env.close()
        columns = {name: torch.from_numpy(np.array(values)) for name, values in rows.items()}
        columns["reward"] = columns["reward"].float()
        columns |= {"episode": torch.tensor(episode_R), "step": torch.tensor(step_R, dtype=torch.int32)}
        return Episodes(name=self.env.id, columns=columns, about={"env": self.env.id, "scores": [0.0, 1.0]})


def planned(world: Any) -> int:
    """The first action of a shortest plan in a MiniGrid environment. Raises `DataError` if there is none."""
    locked = _find(world, lambda thing: thing.type == "door" and thing.is_locked)
    if locked is None:
        return _towards(world, _find(world, lambda thing: thing.type == "goal"), ahead=FORWARD)
    if world.carrying is None:
        return _towards(world, _find(world, lambda thing: thing.type == "key"), ahead=PICKUP)
    return _towards(world, locked, ahead=TOGGLE)


def _find(world: Any, wanted: Callable[[Any], bool]) -> tuple[int, int] | None:
    """Where the first thing is of which `wanted` is true."""
    for x in range(world.grid.width):
        for y in range(world.grid.height):
            thing = world.grid.get(x, y)
            if thing is not None and wanted(thing):
                return x, y
    return None


def _towards(world: Any, target: tuple[int, int] | None, *, ahead: int) -> int:
    """The first action on a shortest way to where one faces `target`, and `ahead` if one does."""
    start: State = (int(world.agent_pos[0]), int(world.agent_pos[1]), int(world.agent_dir))
    queue, first = deque([start]), {start: -1}
    while queue:
        x, y, direction = state = queue.popleft()
        front = (x + int(STEPS[direction, 0]), y + int(STEPS[direction, 1]))
        if front == target:
            return ahead if state == start else first[state]
        turned = {LEFT: (x, y, (direction - 1) % 4), RIGHT: (x, y, (direction + 1) % 4)}
        moves: dict[int, State] = {**turned, **({FORWARD: (*front, direction)} if _passable(world, front) else {})}
        for action, reached in moves.items():
            if reached not in first:
                closed = action == FORWARD and _is_closed(world, front)
                first[reached] = (TOGGLE if closed else action) if state == start else first[state]
                queue.append(reached)
    raise DataError(
        "the planner finds no way",
        given=f"from {start} to {target}",
        expected="a level of rooms and doors, with the key of a locked one in reach",
        todo="use another environment",
    )


def _passable(world: Any, cell: tuple[int, int]) -> bool:
    """Whether one can go there, if need be after opening a door."""
    thing = world.grid.get(*cell)
    return thing is None or thing.can_overlap() or (thing.type == "door" and not thing.is_locked)


def _is_closed(world: Any, cell: tuple[int, int]) -> bool:
    thing = world.grid.get(*cell)
    return thing is not None and thing.type == "door" and not thing.is_open
