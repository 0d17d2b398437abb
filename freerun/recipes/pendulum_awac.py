"""AWAC swings a pendulum up: first from recorded episodes alone, then with actors whose experience joins the same union.

The data set is made by our own SAC when it is first needed, and kept.
"""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import awac
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig


def recipe() -> ControlRun:
    offline = Phase(name="offline", updates=5_000, sources=(Portion(source="dataset"),))
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=awac.Config(hidden=(64, 64), lr=1e-3),
        control=EnvSchedule(phases=(offline, Phase(env_steps=8_000, start=1_000)), chunk=8),
        sources=(DatasetConfig(data=Grade(env="pendulum", grade="medium-replay")), ReplayConfig(capacity=20_000)),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128, observations="data"),
    )
