"""RLPD swings a pendulum up in few steps: half of each batch is recorded, and every step of the pendulum pays for four updates.

The data set is made by our own SAC when it is first needed, and kept.
"""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import rlpd
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig


def recipe() -> ControlRun:
    halves = (Portion(source="dataset"), Portion(source="replay"))
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=rlpd.Config(members=5, hidden=(64, 64), lr=1e-3, actor_every=4),
        control=EnvSchedule(phases=(Phase(env_steps=4_000, start=500, random=500, utd=4.0, sources=halves),), chunk=4),
        sources=(DatasetConfig(data=Grade(env="pendulum", grade="medium")), ReplayConfig(capacity=20_000)),
        actor=ActorConfig(envs=2),
        trainer=ControlTrainerConfig(batch=128),
    )
