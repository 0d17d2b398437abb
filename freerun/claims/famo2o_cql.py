"""CQL has one weight of the critic against entropy for all states; FamO2O has a policy that picks it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freerun.algorithms.control import cql, famo2o_cql
from freerun.algorithms.control_base import ControlConfig
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.calql_fine_tuning import DATA, PHASES, SMALL
from freerun.claims.control import since, switched, train

SWITCHED = (PHASES[0], replace(PHASES[1], settings={"online": 1.0}))


def arm(algorithm: ControlConfig, *, adapts: bool) -> Arm:
    """`offline` is the score at the switch, `online` the mean of all since."""

    def run(seed: int) -> Mapping[str, Any]:
        numbers = train(algorithm, phases=SWITCHED if adapts else PHASES, seed=seed, data=DATA)
        return numbers | switched(since(numbers, 0.5))

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "Learnt offline from mediocre episodes of a pendulum and then with actors, at a weight of 5 for conservatism, "
            "FamO2O on CQL with balances from 0.5 to 1.5 has a higher mean score since the switch than CQL."
        ),
        paper="FamO2O (arXiv 2310.17966)",
        method=famo2o_cql,
        arms={
            "famo2o": arm(famo2o_cql.Config(weight=5.0, **SMALL), adapts=True),
            "cql": arm(cql.Config(weight=5.0, **SMALL), adapts=False),
        },
        metric="online",
        seeds=5,
        expected=(Expectation(better="famo2o", worse="cql"),),
        minutes=6.0,
    )
