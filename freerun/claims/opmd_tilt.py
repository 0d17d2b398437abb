"""On data from a policy that never changes, OPMD goes past the arm that the sampler likes, and its pairwise form furthest."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import opmd, reinforce
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation

SETTING = replace(tabular.BANDIT, steps=800, lr=1.0)
"""As long as the 4000 steps at 0.2 of the reference numbers."""


def arm(algorithm: AlgorithmConfig) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        return tabular.train(algorithm, tabular.bandit(), SETTING, seed=seed).numbers()

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "In the bandit with a static sampler Kimi's OPMD ends above REINFORCE, and the pairwise surrogate above Kimi's: "
            "its optimum is the sampler tilted by exp(r / tau) whoever sampled, worth 0.91, where the estimated baseline "
            "leaves 0.84."
        ),
        paper="Kimi k1.5 (arXiv 2501.12599) and arXiv 2509.24203, of which this tests the theory",
        method=opmd,
        arms={
            "reinforce": arm(reinforce.Config()),
            "simple": arm(opmd.Config(form="simple")),
            "kimi": arm(opmd.Config()),
            "pairwise": arm(opmd.Config(form="pairwise")),
        },
        metric="value",
        expected=(
            Expectation(better="kimi", worse="reinforce", margin=0.03),
            Expectation(better="kimi", worse="simple", margin=0.03),
            Expectation(better="pairwise", worse="kimi", margin=0.03),
        ),
        minutes=1.0,
    )
