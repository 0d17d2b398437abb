"""What PPO's clip is for: using a batch more than once."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import grpo, reinforce
from freerun.claims import tiny
from freerun.claims.base import Arm, Claim, Expectation

STEPS = 100


def arm(algorithm: AlgorithmConfig, epochs: int) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        return tiny.train(algorithm, seed=seed, control={"steps": STEPS}, trainer={"epochs": epochs})

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "Four passes over each batch with a clipped ratio learn more from the same responses than one pass of REINFORCE, "
            "and more than four passes of REINFORCE, which has no clip."
        ),
        paper="PPO (arXiv 1707.06347), with the group baseline of DeepSeekMath (arXiv 2402.03300)",
        method=grpo,
        arms={
            "grpo, four passes": arm(grpo.Config(), 4),
            "reinforce, four passes": arm(reinforce.Config(), 4),
            "reinforce, one pass": arm(reinforce.Config(), 1),
        },
        metric="accuracy",
        expected=(
            Expectation(better="grpo, four passes", worse="reinforce, one pass"),
            Expectation(better="grpo, four passes", worse="reinforce, four passes"),
        ),
        minutes=4.0,
    )
