"""IQL improves on its data without valuing an action outside of it, the more so the higher the expectile."""

from dataclasses import replace

from freerun.algorithms.control import bc, iql
from freerun.algorithms.control_base import ControlConfig
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Made, on_recorded
from freerun.recipes import pendulum_iql


def arm(algorithm: ControlConfig) -> Arm:
    return on_recorded(replace(pendulum_iql.recipe(), algorithm=algorithm), Made(grade="medium-replay"))


def claim() -> Claim:
    return Claim(
        sentence=(
            "From what SAC collected on Pendulum until it was mediocre, IQL with an expectile of 0.7 scores higher than "
            "behaviour cloning by more than 20 of 100, and higher than IQL with an expectile of 0.5, which values the "
            "data's own policy."
        ),
        paper="IQL (arXiv 2110.06169)",
        method=iql,
        arms={
            "0.7": arm(iql.Config(hidden=(64, 64), lr=1e-3)),
            "0.5": arm(iql.Config(hidden=(64, 64), lr=1e-3, expectile=0.5)),
            "0.9": arm(iql.Config(hidden=(64, 64), lr=1e-3, expectile=0.9)),
            "bc": arm(bc.Config(hidden=(64, 64), lr=1e-3)),
        },
        metric="score",
        expected=(Expectation(better="0.7", worse="bc", margin=20.0), Expectation(better="0.7", worse="0.5")),
        minutes=8.0,
    )
