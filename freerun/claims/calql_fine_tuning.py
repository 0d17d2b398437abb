"""At the switch to actors, values that CQL pushed far below what was ever earned have to come up again; Cal-QL's need not."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import calql, cql
from freerun.algorithms.control_base import ControlConfig
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Made, since, switched, train
from freerun.store.phases import Phase, Portion

DATA = Made(grade="medium", episodes=20)
HALVES = (Portion(source="dataset"), Portion(source="replay"))
PHASES = (
    Phase(name="offline", updates=3_000, sources=(Portion(source="dataset"),)),
    Phase(env_steps=3_000, start=200, sources=HALVES),
)
SMALL: Mapping[str, Any] = {"num_actions": 4, "hidden": (64, 64), "actor_lr": 1e-3, "critic_lr": 1e-3}


def arm(algorithm: ControlConfig) -> Arm:
    """`offline` is the score at the switch, `online` the mean of all since, `dip` how far the worst of them is below it."""

    def run(seed: int) -> Mapping[str, Any]:
        numbers = train(algorithm, phases=PHASES, seed=seed, data=DATA, watch=("algorithm/q",))
        way = since(numbers, 0.5)
        return numbers | switched(way) | {"dip": way[0] - min(way)}

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "Learnt offline from mediocre episodes of a pendulum and then with actors, at a weight of 5 for conservatism, "
            "Cal-QL has a higher mean score since the switch than CQL, whose values first have to recover."
        ),
        paper="Cal-QL (arXiv 2303.05479)",
        method=calql,
        arms={
            f"{name} {weight:g}": arm(method.Config(weight=weight, **SMALL))
            for name, method in (("cal-ql", calql), ("cql", cql))
            for weight in (1.0, 5.0)
        },
        metric="online",
        expected=(Expectation(better="cal-ql 5", worse="cql 5"),),
        minutes=6.0,
    )
