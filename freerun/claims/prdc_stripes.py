"""Where the data's own action is bad and a neighbour's is good, PRDC takes the neighbour's, and TD3+BC cannot."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import prdc, td3_bc
from freerun.algorithms.control_base import ControlConfig
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job, train
from freerun.store.phases import Phase
from freerun.tasks.point import PointData

DATA = PointData(behaviour="stripes")
SMALL: Mapping[str, Any] = {"hidden": (64, 64), "lr": 1e-3}


def arm(algorithm: ControlConfig) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        job = Job(env=DATA.env, scores=DATA, evaluations=10)
        phases = (Phase(name="offline", updates=3_000),)
        trainer = {"observations": "data"}
        return train(algorithm, phases=phases, seed=seed, job=job, data=DATA, trainer=trainer, watch=("algorithm/q",))

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "On a plane whose stripes hold the best policy's actions and their opposites in turn, PRDC with a small weight of "
            "states ends at least 20 points above TD3+BC, and above itself where a neighbour has to stand at the same place."
        ),
        paper="PRDC (arXiv 2306.06569): the data's own action is too strict a constraint",
        method=prdc,
        arms={
            "td3+bc": arm(td3_bc.Config(**SMALL)),
            "prdc 0.5": arm(prdc.Config(obs_scale=0.5, **SMALL)),
            "prdc 2": arm(prdc.Config(obs_scale=2.0, **SMALL)),
            "prdc 100": arm(prdc.Config(obs_scale=100.0, **SMALL)),
        },
        metric="score",
        expected=(
            Expectation(better="prdc 0.5", worse="td3+bc", margin=20.0),
            Expectation(better="prdc 0.5", worse="prdc 100", margin=20.0),
        ),
        minutes=2.0,
    )
