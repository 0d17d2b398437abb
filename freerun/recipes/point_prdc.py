"""PRDC sends a point to its goal from data where the best policy and its opposite act in turn: good neighbours are copied."""

from freerun.algorithms.control import prdc
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.tasks.point import PointData
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig


def recipe() -> ControlRun:
    data = PointData(behaviour="stripes")
    return ControlRun(
        env=data.env,
        algorithm=prdc.Config(obs_scale=0.5, hidden=(64, 64), lr=1e-3),
        control=EnvSchedule(phases=(Phase(name="offline", updates=5_000),)),
        sources=(DatasetConfig(data=data),),
        trainer=ControlTrainerConfig(batch=128, observations="data"),
        scores=data.build().scores,
    )
