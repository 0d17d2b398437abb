"""SAC's learned temperature finds the weight of the entropy at any scale of rewards; a fixed one fits one scale."""

from dataclasses import replace

from freerun.algorithms.control import sac
from freerun.claims import episodes
from freerun.claims.base import Arm, Claim, Expectation
from freerun.recipes import pendulum_sac

FIXED = 0.2
"""The weight that earlier versions of SAC were given, at rewards of this size."""
SMALLER = 0.01
"""What rewards are multiplied by, as another unit for them would."""


def arm(alpha: float | None, scale: float) -> Arm:
    run = pendulum_sac.recipe()
    algorithm = sac.Config(actor_lr=1e-3, hidden=(64, 64), alpha=alpha)
    return episodes.arm(replace(run, algorithm=algorithm, trainer=replace(run.trainer, reward_scale=scale)))


def claim() -> Claim:
    return Claim(
        sentence=(
            "With rewards divided by 100, SAC with a learned temperature swings the pendulum up and SAC with a fixed weight of "
            "0.2 does not, by more than 300 of return; with rewards as they are the learned one is not worse by 50."
        ),
        paper="SAC with a learned temperature (arXiv 1812.05905)",
        method=sac,
        arms={
            "learned": arm(None, 1.0),
            "fixed": arm(FIXED, 1.0),
            "learned, rewards / 100": arm(None, SMALLER),
            "fixed, rewards / 100": arm(FIXED, SMALLER),
        },
        metric="return",
        expected=(
            Expectation(better="learned, rewards / 100", worse="fixed, rewards / 100", margin=300.0),
            Expectation(better="learned", worse="fixed", margin=-50.0),
        ),
        minutes=10.0,
    )
