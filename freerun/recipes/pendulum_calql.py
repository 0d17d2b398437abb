"""Cal-QL learns a pendulum's swing-up from recorded episodes, then goes on with actors: half of each batch stays recorded data.

The data set is made by our own SAC when it is first needed, and kept.
"""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import calql
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig


def recipe() -> ControlRun:
    offline = Phase(name="offline", updates=5_000, sources=(Portion(source="dataset"),))
    online = Phase(env_steps=8_000, start=1_000, sources=(Portion(source="dataset"), Portion(source="replay")))
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=calql.Config(weight=1.0, num_actions=4, hidden=(64, 64), actor_lr=3e-4, critic_lr=1e-3),
        control=EnvSchedule(phases=(offline, online), chunk=8),
        sources=(DatasetConfig(data=Grade(env="pendulum", grade="medium")), ReplayConfig(capacity=20_000)),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
    )
