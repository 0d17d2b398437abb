"""With the same environment steps, PROPS learns CartPole faster than PPO on fresh batches, and than PPO on a plain buffer."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import props
from freerun.claims import control
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.cartpole import CARTPOLE, RandomPlay
from freerun.claims.control import Job
from freerun.store.phases import Phase

JOB = Job(env=CARTPOLE, scores=RandomPlay(rows=400), envs=2, chunk=8, evaluations=20, last_episodes=10)
STEPS = 20_480
"""20 batches of 1024."""


def arm(*, batches: int, adapt: bool) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        method = props.Config(batches=batches, adapt=adapt)
        trainer = {"clip_norm": 0.5, "eps": 1e-5}
        return control.train(method, phases=[Phase(env_steps=STEPS)], seed=seed, job=JOB, trainer=trainer)

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "Over 20,480 steps of CartPole, PROPS on two batches has a higher mean return than PPO on one fresh batch, and "
            "than PPO on two batches without the behaviour policy."
        ),
        paper="PROPS (arXiv 2311.08290)",
        method=props,
        arms={
            "props": arm(batches=2, adapt=True),
            "ppo, two batches": arm(batches=2, adapt=False),
            "ppo": arm(batches=1, adapt=False),
        },
        metric="mean",
        expected=(Expectation(better="props", worse="ppo"), Expectation(better="props", worse="ppo, two batches")),
        minutes=5.0,
    )
