"""On the combination lock offline data open what on-policy steps alone do not, and useless data cost learning nothing."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import hnpg
from freerun.claims import control
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.cartpole import CARTPOLE, RandomPlay
from freerun.claims.control import Job
from freerun.store.phases import Phase, Portion
from freerun.tasks.lock import LockConfig, LockData

LOCK = Job(env=LockConfig(), scores=LockData(episodes=1), batch=1000, envs=20, chunk=50, evaluations=12, episodes=100)
"""1000 environment steps per step, as in the paper: 200 episodes."""
POLE = Job(env=CARTPOLE, scores=RandomPlay(rows=200), batch=1000, envs=8, chunk=125, evaluations=12)


def lock(weight: float) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        phase = Phase(env_steps=60_000, sources=(Portion(source="dataset"),))
        data, method = LockData(seed=seed), hnpg.Config(gamma=1.0, weight=weight)
        return control.train(method, phases=[phase], seed=seed, job=LOCK, data=data)

    return run


def pole(weight: float) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        phase = Phase(env_steps=30_000, sources=(Portion(source="dataset"),))
        method = hnpg.Config(weight=weight)
        return control.train(method, phases=[phase], seed=seed, job=POLE, data=RandomPlay())

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "After 60,000 steps on a combination lock of five steps, HNPG with 10,000 logged episodes, of which a third "
            "succeeds, is at least 70 of 100 points above the same method without the data (TRPO); and on CartPole with data "
            "of random play it is, on average over training, no more than 10 points below."
        ),
        paper="HNPG (arXiv 2311.08384)",
        method=hnpg,
        arms={
            "hnpg on the lock": lock(1.0),
            "trpo on the lock": lock(0.0),
            "hnpg with useless data": pole(1.0),
            "trpo on CartPole": pole(0.0),
        },
        metric="score",
        expected=(
            Expectation(better="hnpg on the lock", worse="trpo on the lock", margin=70.0),
            Expectation(better="hnpg with useless data", worse="trpo on CartPole", margin=-10.0, metric="mean"),
        ),
        minutes=8.0,
    )
