"""With a sampler that is refreshed every 20 updates, shaping the data does at least as well as clipping the ratio."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import grpo, red
from freerun.claims import tiny
from freerun.claims.base import Arm, Claim, Expectation


def arm(algorithm: AlgorithmConfig) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        return tiny.train(algorithm, seed=seed, rounds=20)

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "With a sampler refreshed every 20 updates, RED-Drop and RED-Weight end with an accuracy no more than 2 points "
            "below GRPO's."
        ),
        paper="REC (arXiv 2509.24203), sync interval 20",
        method=red,
        arms={
            "grpo": arm(grpo.Config()),
            "drop": arm(red.Config(mode="drop")),
            "weight": arm(red.Config(mode="weight")),
        },
        metric="accuracy",
        expected=(
            Expectation(better="drop", worse="grpo", margin=-0.02),
            Expectation(better="weight", worse="grpo", margin=-0.02),
        ),
        minutes=4.0,
    )
