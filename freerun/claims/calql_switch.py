"""At the switch to actors, values that CQL pushed far below what was ever earned have to come up again; Cal-QL's need not."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import calql, cql
from freerun.algorithms.control_base import ControlConfig
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job, Made, since, switched, train
from freerun.store.phases import Phase, Portion

DATA = Made(grade="medium", episodes=20)
HALVES = (Portion(source="dataset"), Portion(source="replay"))
PHASES = (
    Phase(name="offline", updates=1_500, sources=(Portion(source="dataset"),)),
    Phase(env_steps=1_500, start=64, sources=HALVES),
)
SMALL: Mapping[str, Any] = {"num_actions": 4, "actor_lr": 1e-3, "critic_lr": 1e-3}


def arm(algorithm: ControlConfig) -> Arm:
    """`offline` is the score at the switch, `online` the mean of all since, `shallow` minus the dip: how far the worst
    of them is from the first."""

    def run(seed: int) -> Mapping[str, Any]:
        job = Job(batch=64, evaluations=20)
        numbers = train(algorithm, phases=PHASES, seed=seed, data=DATA, job=job, watch=("algorithm/q", "algorithm/gap"))
        way = since(numbers, 0.5)
        return numbers | switched(way) | {"shallow": min(way) - way[0]}

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "From 20 episodes of a mediocre policy of Pendulum, 1500 updates offline and 1500 steps online with half of "
            "each batch from the data: the mean score of Cal-QL online is above that of CQL with the same weight, and its "
            "dip after the switch is not deeper by more than 5 points."
        ),
        paper="Cal-QL (arXiv 2303.05479)",
        method=calql,
        arms={
            "cal-ql": arm(calql.Config(weight=5.0, hidden=(64, 64), **SMALL)),
            "cql": arm(cql.Config(weight=5.0, hidden=(64, 64), **SMALL)),
        },
        metric="online",
        expected=(
            Expectation(better="cal-ql", worse="cql"),
            Expectation(better="cal-ql", worse="cql", margin=-5.0, metric="shallow"),
        ),
        minutes=2.5,
    )
