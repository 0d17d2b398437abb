"""FamO2O on IQL: a point learns from data that is good in one half of the plane and random in the other, then on its own."""

from freerun.actors.environment import ActorConfig
from freerun.algorithms.control import famo2o_iql
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.tasks.point import PointConfig, PointData
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig


def recipe() -> ControlRun:
    data = PointData(env=PointConfig(wall=True), behaviour="halves")
    phases = (
        Phase(name="offline", updates=5_000, sources=(Portion(source="dataset"),)),
        Phase(env_steps=4_000, start=400, settings={"online": 1.0}),
    )
    return ControlRun(
        env=data.env,
        algorithm=famo2o_iql.Config(high=10.0, hidden=(64, 64), lr=1e-3),
        control=EnvSchedule(phases=phases, chunk=10),
        sources=(DatasetConfig(data=data), ReplayConfig(capacity=20_000)),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=128),
        scores=data.build().scores,
    )
