"""SAC makes a two-legged robot run: MuJoCo's HalfCheetah, one update per environment step, some minutes on one core."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import sac
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig


def recipe() -> ControlRun:
    return ControlRun(
        env=GymConfig(id="HalfCheetah-v5"),
        algorithm=sac.Config(hidden=(128, 128)),
        control=EnvSchedule(phases=(Phase(env_steps=30_000, start=2_000, random=2_000),), chunk=8),
        sources=(ReplayConfig(capacity=30_000),),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
    )
