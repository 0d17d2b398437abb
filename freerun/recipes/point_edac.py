"""EDAC sends a point to its goal, having seen others do so in one half of the plane and move at random in the other."""

from freerun.algorithms.control import edac
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.tasks.point import PointConfig, PointData
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig


def recipe() -> ControlRun:
    data = PointData(env=PointConfig(wall=True), behaviour="halves")
    return ControlRun(
        env=data.env,
        algorithm=edac.Config(hidden=(64, 64), lr=1e-3),
        control=EnvSchedule(phases=(Phase(name="offline", updates=5_000),)),
        sources=(DatasetConfig(data=data),),
        trainer=ControlTrainerConfig(batch=128),
        scores=data.build().scores,
    )
