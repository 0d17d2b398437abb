"""Prior data in half of every batch, beside layer norm and several updates a step, saves steps of the environment."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import rlpd, sac
from freerun.algorithms.control_base import ControlConfig
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job, Made, train
from freerun.store.phases import Phase, Portion

DATA = Made(grade="medium")
HALVES = (Portion(source="dataset"), Portion(source="replay"))


def arm(algorithm: ControlConfig, *, utd: float, data: bool) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        phase = Phase(env_steps=1_600, start=400, random=400, utd=utd, sources=HALVES if data else ())
        job = Job(batch=64, chunk=4, envs=2, evaluations=16)
        return train(algorithm, phases=(phase,), seed=seed, job=job, data=DATA if data else None)

    return run


def claim() -> Claim:
    own = rlpd.Config(members=5, lr=1e-3, actor_every=4, hidden=(64, 64))
    soft = sac.Config(actor_lr=1e-3, hidden=(64, 64))
    return Claim(
        sentence=(
            "On Pendulum, with 1600 steps of which 400 are random and 20000 recorded ones of a mediocre policy, RLPD with "
            "four updates a step has a higher mean score on the way than without the data, than SAC with the data in half "
            "of its batches, and than SAC without."
        ),
        paper="RLPD (arXiv 2302.02948)",
        method=rlpd,
        arms={
            "rlpd": arm(own, utd=4.0, data=True),
            "rlpd, no data": arm(own, utd=4.0, data=False),
            "sac, data": arm(soft, utd=1.0, data=True),
            "sac": arm(soft, utd=1.0, data=False),
        },
        metric="mean",
        expected=(
            Expectation(better="rlpd", worse="rlpd, no data"),
            Expectation(better="rlpd", worse="sac, data"),
            Expectation(better="rlpd", worse="sac"),
        ),
        minutes=2.5,
    )
