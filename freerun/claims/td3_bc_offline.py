"""On recorded data TD3 needs to be held near the data's actions, and then learns more than imitation does."""

from dataclasses import replace

from freerun.algorithms.control import bc, td3, td3_bc
from freerun.algorithms.control_base import ControlConfig
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Made, on_recorded
from freerun.datasets.grades import GradeName
from freerun.recipes import pendulum_td3_bc


def arm(algorithm: ControlConfig, grade: GradeName) -> Arm:
    return on_recorded(replace(pendulum_td3_bc.recipe(), algorithm=algorithm), Made(grade=grade))


def claim() -> Claim:
    held = td3_bc.Config(hidden=(64, 64), lr=1e-3)
    free = td3.Config(hidden=(64, 64), actor_lr=1e-3, critic_lr=1e-3)
    cloned = bc.Config(hidden=(64, 64), lr=1e-3)
    return Claim(
        sentence=(
            "On recorded Pendulum episodes, without ever acting, TD3+BC scores higher than behaviour cloning from a "
            "medium policy, and than TD3 without the term for imitation from the narrow data of an expert."
        ),
        paper="TD3+BC (arXiv 2106.06860)",
        method=td3_bc,
        arms={
            "td3+bc, medium": arm(held, "medium"),
            "bc, medium": arm(cloned, "medium"),
            "td3+bc, expert": arm(held, "expert"),
            "td3, expert": arm(free, "expert"),
        },
        metric="score",
        expected=(
            Expectation(better="td3+bc, medium", worse="bc, medium"),
            Expectation(better="td3+bc, expert", worse="td3, expert"),
        ),
        minutes=8.0,
    )
