"""The combination lock: a chain of states in which one action of many goes on, seen through noise and a rotation.

Paper       HNPG (arXiv 2311.08384), which takes it from Misra et al. 2020.

At each of H steps one is in one of two good states or in the bad one. In a good state one of ten actions leads on, to either
good state of the next step; any other leads to the bad state, for good. Being in a good state at the end pays 1. Falling pays
0.1 half of the time (`anti_shaped`), so that whoever looks one step ahead is led astray: random play finds the end once in 10^H
episodes.

What is seen is a Hadamard matrix times the one-hot state and step with noise. A continuous action is ten numbers, of which the
action is drawn by a softmax at temperature 0.1.

In the authors' code a fall pays nothing, and whoever is in the bad state at the end gets 0.1 half of the time (`pays`).

Shapes: H steps, E episodes, R transitions, O width of what is seen.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from freerun.actors.environment import Step
from freerun.datasets.base import Episodes
from freerun.errors import ConfigError
from freerun.transitions import Spaces

ACTIONS, STATES, BAD = 10, 3, 2
TEMPERATURE, NOISE = 0.1, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LockConfig:
    """A lock."""

    steps: int = 5
    """Steps of an episode, H."""
    discrete: bool = False
    """Let the policy name one of ten actions, in place of ten numbers."""
    anti_shaped: float = 0.1
    """What falling pays, half of the time."""
    pays: Literal["fall", "end"] = "fall"
    """When it pays that: at once (paper), or at the end of the episode (code)."""
    seed: int = 0
    """Which actions are the right ones."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.pays not in ("fall", "end"):
            raise ConfigError(
                "there is no such lock", given=self, expected="steps >= 1, pays fall or end", todo="correct the environment"
            )

    @property
    def right(self) -> np.ndarray:
        """The action that leads on, [H, 2]."""
        return np.random.default_rng(self.seed).integers(ACTIONS, size=(self.steps, BAD))

    @property
    def width(self) -> int:
        """Width of what is seen: the smallest power of two in which state and step have room."""
        return 1 << (STATES + self.steps).bit_length()

    def build(self, *, picture: bool = False) -> "LockEnvironment":
        return LockEnvironment(self)


class LockEnvironment:
    """See `environment.Environment`."""

    def __init__(self, config: LockConfig) -> None:
        self._config, self._right = config, config.right
        self._rotation_OO = hadamard(config.width)
        self._chance = np.random.default_rng(0)
        self.state = self.taken = 0
        self._owed = 0.0
        self.spaces = Spaces(obs=(config.width,), actions=ACTIONS, discrete=config.discrete)

    def reset(self, seed: int) -> np.ndarray:
        self._chance = np.random.default_rng(seed)
        self.state, self.taken, self._owed = int(self._chance.integers(BAD)), 0, 0.0
        return self._seen()

    def step(self, action: np.ndarray) -> Step:
        chosen = int(action) if self._config.discrete else self._drawn(action)
        paid = self._go(chosen)
        return Step(self._seen(), paid, self.taken == self._config.steps, False)

    def _drawn(self, action: np.ndarray) -> int:
        odds = np.exp((action - np.max(action)) / TEMPERATURE)
        return int(np.searchsorted(np.cumsum(odds), self._chance.random() * odds.sum()))

    def _go(self, chosen: int) -> float:
        paid, config = 0.0, self._config
        if self.state != BAD and chosen != self._right[self.taken, self.state]:
            self.state = BAD
            self._owed = config.anti_shaped * float(self._chance.random() < 0.5)
            if config.pays == "fall":
                paid, self._owed = self._owed, 0.0
        elif self.state != BAD:
            self.state = int(self._chance.integers(BAD))
        self.taken += 1
        if self.taken == config.steps:
            paid += self._owed if self.state == BAD else 1.0
        return paid

    def best(self) -> int:
        """The action that leads on; in the bad state, any."""
        return int(self._right[self.taken, self.state]) if self.state != BAD else 0

    def _seen(self) -> np.ndarray:
        code_O = self._chance.normal(0.0, NOISE, self._config.width)
        code_O[self.state] += 1.0
        code_O[STATES + self.taken] += 1.0
        return (self._rotation_OO @ code_O).astype(np.float32)

    def picture(self) -> np.ndarray | None:
        return None

    def close(self) -> None:
        """Nothing to close."""


def hadamard(width: int) -> np.ndarray:
    """Sylvester's matrix of ones and minus ones, of a width that is a power of two; its columns are orthogonal."""
    matrix = np.ones((1, 1))
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class LockData:
    """Episodes of the best policy with random actions in between, without log-probs. As in the paper one action in H is random,
    so that about a third of the episodes reach the end. Where actions are continuous, the best one is one-hot, and a random one
    is ten numbers between 0 and 1."""

    env: LockConfig = field(default_factory=LockConfig)
    """The lock."""
    episodes: int = 10_000
    """Number of episodes."""
    random: float | None = None
    """Share of random actions; none is 1 / H. At 1 the data are useless."""
    seed: int = 0
    """Seed of what is played."""

    def build(self) -> Episodes:
        env, steps, chance = LockEnvironment(self.env), self.env.steps, np.random.default_rng(self.seed)
        share = 1.0 / steps if self.random is None else self.random
        num = self.episodes * steps
        obs_RO, next_RO = (np.empty((num, self.env.width), np.float32) for _ in range(2))
        action_R, reward_R = np.empty(num, np.int64), np.empty(num, np.float32)
        action_RA = np.zeros((num, ACTIONS), np.float32)
        for row in range(num):
            if row % steps == 0:
                obs = env.reset(int(chance.integers(2**31)))
            obs_RO[row] = obs
            if chance.random() < share:
                action_R[row], action_RA[row] = chance.integers(ACTIONS), chance.random(ACTIONS)
            else:
                action_R[row] = env.best()
                action_RA[row, action_R[row]] = 1.0
            after = env.step(action_R[row] if self.env.discrete else action_RA[row])
            obs = next_RO[row] = after.obs
            reward_R[row] = after.reward
        step_R = torch.arange(steps, dtype=torch.int32).repeat(self.episodes)
        columns = {
            "obs": torch.from_numpy(obs_RO),
            "action": torch.from_numpy(action_R if self.env.discrete else action_RA),
            "reward": torch.from_numpy(reward_R),
            "next_obs": torch.from_numpy(next_RO),
            "terminated": step_R == steps - 1,
            "truncated": torch.zeros(num, dtype=torch.bool),
            "episode": torch.arange(self.episodes).repeat_interleave(steps),
            "step": step_R,
        }
        return Episodes(name=f"lock-{steps}", columns=columns, about={"env": f"lock-{steps}", "scores": [0.05, 1.0]})
