"""DQN balances CartPole: replay, a target network, and exploration that falls with the steps of the run, in about a minute."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import dqn
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig


def recipe() -> ControlRun:
    return ControlRun(
        env=GymConfig(id="CartPole-v1"),
        algorithm=dqn.Config(lr=1e-3, target_every=100, double=True, explore_steps=10_000),
        control=EnvSchedule(phases=(Phase(env_steps=40_000, start=1_000, utd=0.5),), chunk=16),
        sources=(ReplayConfig(capacity=40_000),),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
    )
