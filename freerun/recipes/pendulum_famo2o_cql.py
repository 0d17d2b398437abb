"""FamO2O on CQL swings a pendulum up: a family of policies from recorded episodes, then one of them per state, with actors.

The data set is made by our own SAC when it is first needed, and kept.
"""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import famo2o_cql
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig


def recipe() -> ControlRun:
    phases = (
        Phase(name="offline", updates=5_000, sources=(Portion(source="dataset"),)),
        Phase(env_steps=4_000, start=400, settings={"online": 1.0}),
    )
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=famo2o_cql.Config(num_actions=4, hidden=(64, 64), actor_lr=3e-4, critic_lr=1e-3),
        control=EnvSchedule(phases=phases, chunk=8),
        sources=(DatasetConfig(data=Grade(env="pendulum", grade="medium")), ReplayConfig(capacity=20_000)),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
    )
