"""SAC makes a two-legged robot run: MuJoCo's HalfCheetah, with the settings of `hopper-sac`, some minutes on one core."""

from dataclasses import replace

from freerun.actors.environment import GymConfig
from freerun.recipes import hopper_sac
from freerun.recipes.control_base import ControlRun


def recipe() -> ControlRun:
    return replace(hopper_sac.recipe(), env=GymConfig(id="HalfCheetah-v5"))
