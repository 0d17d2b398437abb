"""Uni-O4 on a pendulum: critics and clones from recorded episodes, clones improved by PPO's objective, then PPO with actors.

The data set is made by our own SAC when it is first needed, and kept.
"""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import unio4
from freerun.datasets.grades import Grade
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig

OFFLINE, ONLINE = ("values", "model", "clone", "improve", "old"), ("policy", "value")


def stage(name: str, updates: int, *on: str) -> Phase:
    """An offline phase of these terms and reviews."""
    return Phase(name=name, updates=updates, off=tuple(term for term in (*OFFLINE, *ONLINE) if term not in on))


def recipe() -> ControlRun:
    phases = (
        stage("values", 5_000, "values", "model"),
        stage("clone", 2_000, "clone"),
        stage("improve", 1_000, "improve", "old"),
        Phase(env_steps=30_000, off=OFFLINE),
    )
    return ControlRun(
        env=GymConfig(id="Pendulum-v1"),
        algorithm=unio4.Config(hidden=(64, 64), offline_lr=1e-3, lr=3e-4, value_lr=1e-3, entropy=0.0, clip=0.2),
        control=EnvSchedule(phases=phases, chunk=256),
        sources=(DatasetConfig(data=Grade(env="pendulum", grade="medium")),),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128, observations="data", rewards="range", epochs=10, minibatches=8, clip_norm=0.5),
    )
