"""Where the data is good in one place and bad in another, no one inverse temperature suits both; FamO2O takes one for each."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import famo2o_iql, iql
from freerun.algorithms.control_base import ControlConfig
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job, since, switched, train
from freerun.store.phases import Phase, Portion
from freerun.tasks.point import PointConfig, PointData

DATA = PointData(env=PointConfig(wall=True), behaviour="halves")
PHASES = (
    Phase(name="offline", updates=2_000, sources=(Portion(source="dataset"),)),
    Phase(env_steps=2_000, start=400, settings={"online": 1.0}),
)
SMALL: Mapping[str, Any] = {"hidden": (64, 64), "lr": 1e-3}


def arm(algorithm: ControlConfig) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        job = Job(env=DATA.env, scores=DATA, chunk=10, batch=64)
        numbers = train(algorithm, phases=PHASES, seed=seed, job=job, data=DATA)
        return numbers | switched(since(numbers, 0.5))

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "On a plane with a wall, from data that is good in one half and random in the other, 2000 updates offline and "
            "2000 steps online: FamO2O with balances from 1 to 10 has a higher mean score online than IQL with an inverse "
            "temperature of 1 and of 3, and is within 5 points of 10."
        ),
        paper="FamO2O (arXiv 2310.17966)",
        method=famo2o_iql,
        arms={f"iql {b:g}": arm(iql.Config(inverse_temperature=b, **SMALL)) for b in (1.0, 3.0, 10.0)}
        | {"famo2o": arm(famo2o_iql.Config(low=1.0, high=10.0, **SMALL))},
        metric="online",
        expected=(
            Expectation(better="famo2o", worse="iql 1"),
            Expectation(better="famo2o", worse="iql 3"),
            Expectation(better="famo2o", worse="iql 10", margin=-5.0),
        ),
        minutes=3.0,
    )
