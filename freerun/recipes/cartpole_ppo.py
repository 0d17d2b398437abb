"""PPO balances CartPole: chunks of rollouts under the same admission as groups of a language model, in under a minute."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import ppo
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig


def recipe() -> ControlRun:
    return ControlRun(
        env=GymConfig(id="CartPole-v1"),
        algorithm=ppo.Config(lr=1e-3, value_lr=1e-3, entropy=0.01),
        control=EnvSchedule(phases=(Phase(env_steps=60_000),), chunk=128),
        actor=ActorConfig(envs=8),
        trainer=ControlTrainerConfig(epochs=4, minibatches=4, clip_norm=0.5, eps=1e-5, schedule="linear"),
    )
