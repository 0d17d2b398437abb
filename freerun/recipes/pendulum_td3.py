"""TD3 swings a pendulum up, from replay with one update per environment step, in a minute or two."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import td3
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig


def recipe() -> ControlRun:
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=td3.Config(actor_lr=1e-3, critic_lr=1e-3, hidden=(64, 64)),
        control=EnvSchedule(phases=(Phase(env_steps=12_000, start=1_000, random=1_000),), chunk=8),
        sources=(ReplayConfig(capacity=20_000),),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
    )
