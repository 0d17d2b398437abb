"""SAC swings up a pendulum whose simulator takes 20 ms a step: four actors and the trainer each at their own pace (APT), with
up to four updates per step where the trainer would have to wait. About two minutes; one environment and turns take five."""

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
        control=EnvSchedule(phases=(Phase(env_steps=12_000, start=1_000, random=1_000, utd_most=4.0),), chunk=8, ahead=4),
        sources=(ReplayConfig(capacity=20_000),),
        actor=ActorConfig(envs=1, delay_median=0.02),
        actors=4,
        trainer=ControlTrainerConfig(batch=128),
    )
