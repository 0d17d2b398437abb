"""H2O makes a cheetah run with what a training run left behind and a simulator whose gravity is twice the real one; it is
judged in reality. Some minutes on one core, and the first time a quarter of an hour to make the data."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import h2o
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig


def recipe() -> ControlRun:
    phase = Phase(env_steps=20_000, start=1_000, random=1_000, sources=(Portion(source="dataset"), Portion(source="replay")))
    return ControlRun(
        env=GymConfig(id="HalfCheetah-v5", physics={"gravity": 2.0}),
        judge_env=GymConfig(id="HalfCheetah-v5"),
        algorithm=h2o.Config(hidden=(128, 128)),
        control=EnvSchedule(phases=(phase,), chunk=8, eval_episodes=4, final_eval_episodes=10),
        sources=(DatasetConfig(data=Grade(env="halfcheetah", grade="medium-replay")), ReplayConfig(capacity=20_000)),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
    )
