"""SAC swings a pendulum up: replay with one update per environment step, collecting and learning in turns, in a minute or
two."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import sac
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig


def recipe() -> ControlRun:
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=sac.Config(actor_lr=1e-3, hidden=(64, 64)),
        control=EnvSchedule(phases=(Phase(env_steps=12_000, start=1_000, random=1_000),), chunk=8),
        sources=(ReplayConfig(capacity=20_000),),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
    )
