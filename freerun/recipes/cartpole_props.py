"""PROPS balances CartPole: PPO on the last two batches, whose actions a behaviour policy chooses so that they look on-policy.
About two minutes."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import props
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig


def recipe() -> ControlRun:
    return ControlRun(
        env=GymConfig(id="CartPole-v1"),
        algorithm=props.Config(batch_steps=64),
        control=EnvSchedule(phases=(Phase(env_steps=40_960),), chunk=8),
        actor=ActorConfig(envs=2),
        trainer=ControlTrainerConfig(clip_norm=0.5, eps=1e-5),
    )
