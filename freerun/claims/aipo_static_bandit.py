"""On data from a policy that never changes, AIPO's bound on the weights decides how far from that policy it gets."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import aipo, reinforce
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation

SETTING = replace(tabular.BANDIT, steps=800, lr=1.0, groups=16)
"""As long as the 4000 steps at 0.2 of the reference numbers."""


def arm(algorithm: AlgorithmConfig) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        return tabular.train(algorithm, tabular.bandit(), SETTING, seed=seed).numbers()

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "On static data importance weights find the best arm where REINFORCE ends at the one that the sampler likes; "
            "cut off at rho = 2 they get half way, at rho = 10 all the way."
        ),
        paper="LlamaRL (arXiv 2505.24034); the bandit is that of arXiv 2509.24203",
        method=aipo,
        arms={
            "reinforce": arm(reinforce.Config()),
            "rho 2": arm(aipo.Config(rho=2.0)),
            "rho 10": arm(aipo.Config(rho=10.0)),
        },
        metric="value",
        expected=(
            Expectation(better="rho 2", worse="reinforce", margin=0.05),
            Expectation(better="rho 10", worse="rho 2", margin=0.05),
        ),
        quick=True,
        seeds=6,
        minutes=2.0,
        tried=(
            "With three seeds it was unclear: so six. "
            "Without a bound it is as with rho = 10: the sampler gives each arm a tenth at least, so no weight is larger."
        ),
    )
