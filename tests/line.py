"""An environment of a few lines that needs no package, and the shortest run on it."""

import time
from dataclasses import dataclass

import numpy as np

from freerun.actors.environment import ActorConfig, Step
from freerun.algorithms.control import dqn, ppo
from freerun.env_schedule import EnvSchedule
from freerun.recipes.base import PlacementConfig
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig
from freerun.transitions import Spaces


class Walk:
    """Sees where it is on a line; the actions go left, stay or go right; pays the distance to the left end. Five steps long."""

    spaces = Spaces(obs=(1,), actions=3, discrete=True)

    def __init__(self, seconds: float) -> None:
        self._seconds, self._place, self._steps = seconds, 0, 0

    def reset(self, seed: int) -> np.ndarray:
        self._place, self._steps = seed % 3, 0
        return np.full(1, self._place, np.float32)

    def step(self, action: np.ndarray) -> Step:
        time.sleep(self._seconds)
        self._place, self._steps = max(0, self._place + int(action) - 1), self._steps + 1
        return Step(np.full(1, self._place, np.float32), float(self._place), False, self._steps == 5)

    def picture(self) -> None:
        return None

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Line:
    """A step takes so many `seconds`."""

    seconds: float = 0.0

    def build(self, *, picture: bool = False) -> Walk:
        return Walk(self.seconds)


def walking(kind: str = "rollouts", *, seconds: float = 0.0, phases: tuple[Phase, ...] = (), **changes: object) -> ControlRun:
    """A run of twelve chunks of two steps in two environments; `changes` are of its schedule."""
    schedule = {"chunk": 2, "evaluations": 0, "final_eval_episodes": 2, "checkpoint_every": 3, **changes}
    return ControlRun(
        env=Line(seconds),
        algorithm=ppo.Config(hidden=(4,)) if kind == "rollouts" else dqn.Config(hidden=(4,)),
        control=EnvSchedule(phases=phases or (Phase(env_steps=48),), **schedule),
        sources=() if kind == "rollouts" else (ReplayConfig(capacity=200),),
        actor=ActorConfig(envs=2, picture_frames=0),
        trainer=ControlTrainerConfig(batch=4),
        placement=PlacementConfig(kind="inline", schedule="serial"),
    )
