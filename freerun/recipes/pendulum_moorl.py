"""MOORL swings a pendulum up from recorded episodes of a mediocre policy and steps of its own: eight updates on either, drawn
at random, then half a step towards what they led to. About three minutes, and the first time one more to make the data."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import moorl
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig

INNER = 8


def recipe() -> ControlRun:
    both = (Portion(source="dataset"), Portion(source="replay"))
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=moorl.Config(inner=INNER, actor_lr=1e-3, hidden=(64, 64)),
        control=EnvSchedule(phases=(Phase(env_steps=10_000, start=500, random=500, sources=both, spell=INNER),), chunk=8),
        sources=(DatasetConfig(data=Grade(env="pendulum", grade="medium")), ReplayConfig(capacity=20_000)),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
    )
