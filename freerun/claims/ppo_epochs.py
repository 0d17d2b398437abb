"""PPO's clip lets a batch be used for sixteen updates, where the same updates without a clip destroy the policy."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import ppo, reinforce
from freerun.claims import tiny
from freerun.claims.base import Arm, Claim, Expectation

JOB = tiny.Job(steps=100)
SIXTEEN = {"minibatches": 4, "epochs": 4, "critic_lr_share": 10.0}
"""Updates per batch; the critic learns ten times as fast as the policy, as in verl's examples."""


def arm(algorithm: AlgorithmConfig, **trainer: Any) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        return tiny.train(algorithm, seed=seed, job=JOB, trainer=trainer)

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "Four epochs of four minibatches on each batch improve a policy whose ratios are clipped; without the clip, "
            "or as plain REINFORCE, the same sixteen updates ruin it."
        ),
        paper="PPO (arXiv 1707.06347)",
        method=ppo,
        arms={
            "clipped": arm(ppo.Config(), **SIXTEEN),
            "not clipped": arm(ppo.Config(clip_low=1.0, clip_high=1e6), **SIXTEEN),
            "reinforce": arm(reinforce.Config(), **SIXTEEN),
            "clipped, one update": arm(ppo.Config(), critic_lr_share=10.0),
        },
        metric="accuracy",
        expected=(
            Expectation(better="clipped", worse="not clipped", margin=0.1),
            Expectation(better="clipped", worse="reinforce", margin=0.1),
        ),
        minutes=5.0,
        tried="One update a batch is run beside it, to see whether the sixteen are worth anything.",
    )
