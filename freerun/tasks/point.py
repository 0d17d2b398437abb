"""A point that is to go to a place: an environment of a few lines whose best policy is known, and data sets of stated quality.

The point lies in a cube [-1, 1]^D and moves by a tenth of the action, [D] in [-1, 1]. What is paid is minus its distance from
the goal after the step. A wall may stand in the way, with a gap at one side. Episodes begin anywhere.

Data come from the best policy, from random actions, or from either, depending on where the point is, so that what a method
should learn where is known beforehand.

Shapes: D dimensions, R transitions.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from freerun.actors.environment import Step
from freerun.datasets.base import Episodes
from freerun.errors import ConfigError
from freerun.transitions import Spaces

STRIDE = 0.1
"""How far an action of length 1 moves the point."""
EDGE = 0.3
"""Where the wall ends, for its gap to begin; it stands where the first coordinate is 0."""
STRIPE = 0.16
"""Width of a stripe."""
Behaviour = Literal["best", "random", "halves", "stripes"]
JUDGED = 200
"""Episodes that reference returns come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointConfig:
    """The environment. Without a wall the best policy goes straight to the goal; with one, round its end."""

    dims: int = 2
    """Dimensions of the cube."""
    steps: int = 40
    """Steps of an episode; then it is cut."""
    goal: float = 0.7
    """Every coordinate of the goal."""
    wall: bool = False
    """Stand a wall at 0 of the first coordinate, with a gap where the second is above 0.3."""
    sparse: bool = False
    """Pay 1 within a tenth of the goal, and nothing elsewhere."""

    def __post_init__(self) -> None:
        if self.dims < 2 or self.steps < 1 or not -1 <= self.goal <= 1:
            raise _unusable(self, "dims >= 2, steps >= 1, a goal in [-1, 1]")

    def build(self, *, picture: bool = False) -> "PointEnvironment":
        return PointEnvironment(self)


class PointEnvironment:
    """See `environment.Environment`."""

    def __init__(self, config: PointConfig) -> None:
        self._config, self._taken = config, 0
        self.spaces = Spaces(obs=(config.dims,), actions=config.dims, discrete=False)
        self.at_D = np.zeros(config.dims)

    def reset(self, seed: int) -> np.ndarray:
        self._taken = 0
        self.at_D = np.random.default_rng(seed).uniform(-1.0, 1.0, self._config.dims)
        return self.at_D.astype(np.float32)

    def step(self, action: np.ndarray) -> Step:
        self._taken += 1
        to_D = np.clip(self.at_D + STRIDE * np.clip(action, -1.0, 1.0), -1.0, 1.0)
        if self._config.wall and (self.at_D[0] < 0) != (to_D[0] < 0) and to_D[1] < EDGE:
            to_D[0] = -1e-3 if self.at_D[0] < 0 else 1e-3
        self.at_D = to_D
        far = float(np.linalg.norm(to_D - self._config.goal))
        reward = float(far < STRIDE) if self._config.sparse else -far
        return Step(to_D.astype(np.float32), reward, False, self._taken == self._config.steps)

    def best(self) -> np.ndarray:
        """The action of the best policy, where the point is."""
        target_D = np.full(self._config.dims, self._config.goal)
        if self._config.wall and self.at_D[0] < 0:
            target_D[:2] = (-STRIDE, EDGE + STRIDE) if self.at_D[1] < EDGE else (STRIDE, EDGE + STRIDE)
        return np.clip((target_D - self.at_D) / STRIDE, -1.0, 1.0)

    def picture(self) -> np.ndarray | None:
        return None

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointData:
    """Episodes of a policy that is stated, with the returns of random actions and of the best policy as references."""

    env: PointConfig = field(default_factory=PointConfig)
    """The environment."""
    behaviour: Behaviour = "halves"
    """Who acts. `halves`: the best policy where the second coordinate is positive, random actions elsewhere. `stripes`: the
    best policy and its opposite in turn, as the second coordinate grows; the goal is where the best one acts."""
    noise: float = 0.3
    """Standard deviation of the noise on actions that are not random."""
    episodes: int = 250
    """Number of episodes."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        if self.behaviour not in get_args(Behaviour) or self.episodes < 1 or self.noise < 0:
            raise _unusable(self, f"a behaviour out of {', '.join(get_args(Behaviour))}, episodes >= 1, noise >= 0")

    def build(self) -> Episodes:
        scores = [float(np.mean(self._play(who, JUDGED, 0.0, self.seed + 1)["total"])) for who in ("random", "best")]
        rows = self._play(self.behaviour, self.episodes, self.noise, self.seed)
        num, steps = self.episodes * self.env.steps, self.env.steps
        step_R = torch.arange(steps, dtype=torch.int32).repeat(self.episodes)
        columns = {
            **{name: torch.from_numpy(rows[name].astype(np.float32)) for name in ("obs", "action", "reward", "next_obs")},
            "terminated": torch.zeros(num, dtype=torch.bool),
            "truncated": step_R == steps - 1,
            "episode": torch.arange(self.episodes).repeat_interleave(steps),
            "step": step_R,
            "log_prob": torch.full((num,), math.nan),
        }
        return Episodes(name=f"point-{self.behaviour}", columns=columns, about={"scores": scores})

    def _play(self, who: str, episodes: int, noise: float, seed: int) -> dict[str, np.ndarray]:
        env, draw = self.env.build(), np.random.default_rng(seed)
        rows: dict[str, list[Any]] = {name: [] for name in ("obs", "action", "reward", "next_obs", "total")}
        for _ in range(episodes):
            obs_D, total = env.reset(int(draw.integers(2**31))), 0.0
            for _ in range(self.env.steps):
                action_D = self._act(who, env, noise, draw).astype(np.float32)
                step = env.step(action_D)
                for name, value in {"obs": obs_D, "action": action_D, "reward": step.reward, "next_obs": step.obs}.items():
                    rows[name].append(value)
                obs_D, total = step.obs, total + step.reward
            rows["total"].append(total)
        return {name: np.array(values) for name, values in rows.items()}

    def _act(self, who: str, env: PointEnvironment, noise: float, draw: np.random.Generator) -> np.ndarray:
        height = env.at_D[1]
        if who == "random" or (who == "halves" and height <= 0):
            return draw.uniform(-1.0, 1.0, self.env.dims)
        sign = -1.0 if who == "stripes" and math.floor(height / STRIPE) % 2 else 1.0
        return np.clip(sign * env.best() + draw.normal(0.0, noise, self.env.dims), -1.0, 1.0)


def _unusable(config: PointConfig | PointData, expected: str) -> ConfigError:
    return ConfigError("a point cannot be sent about like this", given=config, expected=expected, todo="correct the recipe")
