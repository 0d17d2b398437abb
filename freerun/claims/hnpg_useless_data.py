"""Data of random play, which show nothing, cost HNPG's on-policy learning nothing."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import hnpg
from freerun.claims import control
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.cartpole import CARTPOLE, RandomPlay
from freerun.claims.control import Job
from freerun.store.phases import Phase, Portion

JOB = Job(env=CARTPOLE, scores=RandomPlay(rows=200), batch=1000, envs=8, chunk=125, evaluations=12)


def arm(weight: float) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        phase = Phase(env_steps=30_000, sources=(Portion(source="dataset"),))
        return control.train(hnpg.Config(weight=weight), phases=[phase], seed=seed, job=JOB, data=RandomPlay())

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "On CartPole with 5,000 steps of random play as data, HNPG's mean score over 30,000 steps is no more than 10 of "
            "100 points below that of the same method without the data (TRPO)."
        ),
        paper="HNPG (arXiv 2311.08384)",
        method=hnpg,
        arms={"hnpg": arm(1.0), "trpo": arm(0.0)},
        metric="mean",
        expected=(Expectation(better="hnpg", worse="trpo", margin=-10.0),),
        seeds=8,
        minutes=2.5,
    )
