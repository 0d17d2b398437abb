"""CQL learns to swing a pendulum up from recorded episodes of a mediocre and a good policy, without ever acting.

The data set is made by our own SAC when it is first needed, and kept. With weight 1 values of actions that the data does not
have win after some 4,000 updates, here as in other implementations: the policy gets worse again. Weight 5 holds them down.
"""

from freerun.actors.environment import GymConfig
from freerun.algorithms.control import cql
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig


def recipe() -> ControlRun:
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=cql.Config(weight=5.0, num_actions=4, hidden=(64, 64), actor_lr=3e-4, critic_lr=1e-3),
        control=EnvSchedule(phases=(Phase(name="offline", updates=10_000),)),
        sources=(DatasetConfig(data=Grade(env="pendulum", grade="medium-expert")),),
        trainer=ControlTrainerConfig(batch=128, observations="data"),
    )
