"""WSRL on a pendulum: pre-trained on recorded episodes, warmed up with the policy as it is, then online without those episodes.

The data set is made by our own SAC when it is first needed, and kept.
"""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import wsrl
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig


def recipe() -> ControlRun:
    online = Phase(
        env_steps=4_000, utd=4.0, every={"actor": 4}, settings={"conservatism": 0.0}, sources=(Portion(source="replay"),)
    )
    phases = (
        Phase(name="offline", updates=3_000, sources=(Portion(source="dataset"),)),
        Phase(name="warm-up", env_steps=1_000, utd=0.0),
        online,
    )
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=wsrl.Config(weight=1.0, members=5, num_actions=4, hidden=(64, 64), actor_lr=1e-3, critic_lr=1e-3),
        control=EnvSchedule(phases=phases, chunk=4),
        sources=(DatasetConfig(data=Grade(env="pendulum", grade="medium")), ReplayConfig(capacity=20_000)),
        actor=ActorConfig(envs=2),
        trainer=ControlTrainerConfig(batch=128),
    )
