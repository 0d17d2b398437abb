"""Episodes of several environments in turn: where a policy is judged, or trained, that has to do in all of them."""

import random
from dataclasses import dataclass

import numpy as np

from freerun.actors.environment import EnvConfig, Environment, Step
from freerun.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Each episode is one of a randomly chosen environment; which one follows from the episode's seed."""

    envs: tuple[EnvConfig, ...]
    """The environments, of equal spaces."""

    def build(self, *, picture: bool = False) -> Environment:
        """Raises `ConfigError` for environments with different spaces, and for none."""
        return Mixed([env.build(picture=picture) for env in self.envs])


class Mixed:
    """See `environment.Environment`."""

    def __init__(self, envs: list[Environment]) -> None:
        if len({env.spaces for env in envs}) != 1:
            raise ConfigError(
                "these environments cannot be mixed",
                given=[env.spaces for env in envs],
                expected="some, all with the same spaces",
                todo="correct the environment's section",
            )
        self._envs, self._now, self.spaces = envs, envs[0], envs[0].spaces

    def reset(self, seed: int) -> np.ndarray:
        self._now = self._envs[random.Random(seed).randrange(len(self._envs))]
        return self._now.reset(seed)

    def step(self, action: np.ndarray) -> Step:
        return self._now.step(action)

    def picture(self) -> np.ndarray | None:
        return self._now.picture()

    def close(self) -> None:
        for env in self._envs:
            env.close()
