"""With a sampler that is up to 100 updates old, how far a ratio may go decides how fast it learns; the weight does not."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import rec
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation

SETTING = tabular.Setting(steps=300, refresh=100)
"""Three rounds of a hundred updates, each on what the policy at the start of its round samples."""


def arm(algorithm: AlgorithmConfig) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        return tabular.train(algorithm, tabular.chain(), SETTING, seed=seed).numbers()

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "With a sampler refreshed every 100 updates, a one-sided clip of 0.6 and 2 earns at least 0.1 more reward per "
            "response over training than one of 0.2 and 0.2; an importance weight changes it by less than 0.03 either way."
        ),
        paper="REC (arXiv 2509.24203); the paper's models are of 1.5B to 8B parameters, this is its argument in tables",
        method=rec,
        arms={
            "0.2, weight": arm(rec.NAMED["REC-OneSide-IS"]),
            "0.2": arm(rec.NAMED["REC-OneSide-NoIS"]),
            "wide": arm(rec.NAMED["REC-OneSide-NoIS wide"]),
            "no clip": arm(rec.NAMED["REINFORCE"]),
        },
        metric="mean_value",
        expected=(
            Expectation(better="wide", worse="0.2", margin=0.1),
            Expectation(better="0.2, weight", worse="0.2", margin=-0.03),
            Expectation(better="0.2", worse="0.2, weight", margin=-0.03),
        ),
        minutes=2.0,
        tried="Tables share no parameters, so here nothing collapses without a clip. The claim rec-offline is about that.",
    )
