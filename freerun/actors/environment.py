"""What an actor needs of an environment, and how a recipe describes one. Nothing here needs an environment library.

Shapes: A width of a continuous action.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from freerun.errors import ConfigError
from freerun.transitions import Spaces


class Step(NamedTuple):
    """What followed an action. `obs` is what was really seen, at the end of an episode too."""

    obs: np.ndarray
    reward: float
    terminated: bool
    truncated: bool


class Environment(Protocol):
    """One environment. After a step that terminated or truncated comes a reset. An episode follows from its seed and its
    actions.

    Both methods may raise anything, or hang: that costs the episode under way.
    """

    spaces: Spaces

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode; what is seen first."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """Act: [A] in [-1, 1], or the index of a discrete action as an array without dimensions."""
        ...

    def picture(self) -> np.ndarray | None:
        """The scene as [height, width, 3] bytes; None where it cannot be drawn."""
        ...

    def close(self) -> None: ...


class EnvConfig(Protocol):
    """A frozen, picklable description that builds the same environment wherever it is called."""

    def build(self, *, picture: bool = False) -> Environment:
        """`picture` asks for an environment that can be drawn."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """What Gymnasium calls a wrapper, around an environment: one that changes what is seen, done or paid."""

    name: str
    """Its module and class, as in `gymnasium.wrappers:FrameStackObservation`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GymConfig:
    """A Gymnasium environment by its id."""

    id: str
    """As for `gymnasium.make`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments for it."""
    modules: tuple[str, ...] = ()
    """Modules to import first, which register the id."""
    max_steps: int = 0
    """Steps after which an episode is truncated; 0 leaves it to the environment."""
    wrappers: tuple[Wrapper, ...] = ()
    """Put around it one after another, the outermost last."""
    see: Literal["flat", "image", "symbols", "whole"] = "flat"
    """What an observation becomes: one vector of all its parts; the image that it is or has, with channels first, those of
    stacked frames one after another; the same where its bytes are no colours but MiniGrid's symbols, up to 10; or itself."""
    physics: Mapping[str, float] = field(default_factory=dict)
    """Attributes of the innermost environment to set, such as `g` of Pendulum: a simulator that is wrong in a known way. For
    MuJoCo `gravity`, `friction` and `density`, which is that of the bodies, are factors."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What `gymnasium.make` is given beside the id."""
        return {**self.options, **({"max_episode_steps": self.max_steps} if self.max_steps else {})}

    def build(self, *, picture: bool = False) -> Environment:
        """Raises `ConfigError` if Gymnasium, or what the environment needs, is not installed."""
        from freerun.actors.gymnasium import make

        return make(self, picture=picture)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorConfig:
    """How an actor runs its environments."""

    envs: int = 8
    """Environments side by side in one actor; the policy sees them as one batch."""
    workers: int = 1
    """Threads that step them. More than one overlaps environments that wait, or that leave Python's lock alone."""
    deadline: float = 0.0
    """Seconds that a step or a reset may take before the environment counts as hung; 0 waits for ever and needs no thread."""
    retries: int = 5
    """How often in a row an environment may fail before the run ends."""
    delay_median: float = 0.0
    """For benchmarks: median seconds of a simulated lognormal delay in each step; 0 is off."""
    delay_sigma: float = 0.5
    """Standard deviation of the logarithm of the delay."""
    picture_frames: int = 40
    """Frames of a picture of the trained policy; 0 makes none."""

    def __post_init__(self) -> None:
        others = (self.deadline, self.retries, self.delay_median, self.delay_sigma, self.picture_frames)
        if min(self.envs, self.workers) < 1 or min(others) < 0:
            raise ConfigError(
                "an actor cannot run its environments like this",
                given=self,
                expected="at least one environment and one worker, the others not negative",
                todo="correct the section actor",
            )
