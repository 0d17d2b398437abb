"""REINFORCE on data of another policy goes where that policy likes to be, not where the reward is."""

from dataclasses import replace

from freerun.algorithms.language import reinforce
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation

STATIC = replace(tabular.BANDIT, steps=800, lr=1.0, groups=16)
"""As long as the 4000 steps at 0.2 of the reference numbers."""


def arm(refresh: int) -> Arm:
    setting = replace(STATIC, refresh=refresh)
    return lambda seed: tabular.train(reinforce.Config(), tabular.bandit(), setting, seed=seed).numbers()


def claim() -> Claim:
    return Claim(
        sentence=(
            "On data that a fixed policy keeps making, REINFORCE converges to a worse arm than on its own data: to the one "
            "with the largest product of the sampler's probability and advantage. A sampler that is refreshed every 20 "
            "updates is good enough."
        ),
        paper='"Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm" (arXiv 2509.24203)',
        method=reinforce,
        arms={"own data": arm(1), "refreshed every 20": arm(20), "fixed sampler": arm(0)},
        metric="value",
        expected=(
            Expectation(better="own data", worse="fixed sampler", margin=0.1),
            Expectation(better="refreshed every 20", worse="own data", margin=-0.02),
        ),
        quick=True,
        minutes=0.5,
    )
