"""CISPO goes on learning from rare tokens that have become likely, where PPO's clip drops them for good."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import cispo, dapo, grpo
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation
from freerun.ops.reduce import Reduction

STATIC = replace(tabular.BANDIT, steps=800, lr=1.0, groups=16)
"""As long as the 4000 steps at 0.2 of the reference numbers."""
STALE = tabular.Setting(steps=100, refresh=100)
BEST = 2
"""The arm that the sampler draws one time in ten."""


def arm(config: AlgorithmConfig) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        bandit = tabular.train(config, tabular.bandit(), STATIC, seed=seed)
        stale = tabular.train(config, tabular.chain(), STALE, seed=seed).numbers()
        return {**bandit.numbers(), "best": float(bandit.policy_PTSV[0, 0, 0, BEST]), "stale_value": stale["value"]}

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "On data from a policy that never changes, CISPO's weights, capped at 1.28, take the policy further than a "
            "clip at 1.2 or 1.28, which freezes it: expected reward of the bandit, share of its rare best arm, and "
            "expected reward of the sequence task after 100 updates on data of the first policy."
        ),
        paper="MiniMax-M1 (arXiv 2506.13585)",
        method=cispo,
        arms={
            "cispo": arm(cispo.Config()),
            "clip at 1.2": arm(grpo.Config(reduction=Reduction.TOKEN_MEAN)),
            "clip at 1.28": arm(dapo.Config()),
            "cispo, cap 5": arm(cispo.Config(clip_high=4.0)),
        },
        metric="value",
        expected=(
            Expectation(better="cispo", worse="clip at 1.2", margin=0.05),
            Expectation(better="cispo", worse="clip at 1.28", margin=0.05),
            Expectation(better="cispo", worse="clip at 1.28", margin=0.05, metric="best"),
            Expectation(better="cispo", worse="clip at 1.28", margin=0.1, metric="stale_value"),
        ),
        seeds=10,
        minutes=3.0,
        tried="A cap of 5, ScaleRL's, is run beside.",
    )
