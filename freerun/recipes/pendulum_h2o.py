"""H2O swings up a pendulum with what a training run left behind and a simulator whose gravity is twice the real one; it is
judged in reality. About three minutes, and the first time another one to make the data."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import h2o
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig


def recipe() -> ControlRun:
    phase = Phase(env_steps=12_000, start=1_000, random=1_000, sources=(Portion(source="dataset"), Portion(source="replay")))
    return ControlRun(
        env=GymConfig(id="Pendulum-v1", physics={"g": 20.0}),
        judge_env=GymConfig(id="Pendulum-v1"),
        algorithm=h2o.Config(hidden=(64, 64), lr=1e-3),
        control=EnvSchedule(phases=(phase,), chunk=8),
        sources=(DatasetConfig(data=Grade(env="pendulum", grade="medium-replay")), ReplayConfig(capacity=20_000)),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
    )
