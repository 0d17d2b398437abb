"""On the combination lock offline data open what on-policy steps alone do not."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import hnpg
from freerun.claims import control
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job
from freerun.store.phases import Phase, Portion
from freerun.tasks.lock import LockConfig, LockData

LOCK = Job(env=LockConfig(), scores=LockData(episodes=1), batch=1000, envs=20, chunk=50, evaluations=12, episodes=100)
"""1000 environment steps per step, as in the paper: 200 episodes."""


def arm(weight: float) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        phase = Phase(env_steps=60_000, sources=(Portion(source="dataset"),))
        data, method = LockData(seed=seed), hnpg.Config(gamma=1.0, weight=weight)
        return control.train(method, phases=[phase], seed=seed, job=LOCK, data=data)

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "After 60,000 steps on a combination lock of five steps, HNPG with 10,000 logged episodes, of which a third "
            "succeeds, is at least 70 of 100 points above the same method without the data (TRPO)."
        ),
        paper="HNPG (arXiv 2311.08384)",
        method=hnpg,
        arms={"hnpg": arm(1.0), "trpo": arm(0.0)},
        metric="score",
        expected=(Expectation(better="hnpg", worse="trpo", margin=70.0),),
        minutes=2.5,
    )
