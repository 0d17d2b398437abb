"""REINFORCE++ learns from one response to each prompt."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import grpo, reinforce, reinforce_pp
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation
from freerun.ops.reduce import Reduction

SINGLE = tabular.Setting(steps=100, groups=128, group_size=1)
GROUPED = tabular.Setting(steps=100)
"""As many responses in groups of eight."""


def arm(algorithm: AlgorithmConfig, setting: tabular.Setting = SINGLE) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        return tabular.train(algorithm, tabular.chain(), setting, seed=seed).numbers()

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "With one response to each of 128 prompts, REINFORCE++ learns the sequence task faster than REINFORCE without "
            "a baseline: expected reward, mean over 100 updates."
        ),
        paper="REINFORCE++ (arXiv 2501.03262)",
        method=reinforce_pp,
        arms={
            "reinforce++": arm(reinforce_pp.Config()),
            "reinforce": arm(reinforce.Config(baseline="none")),
            "grpo, groups of 8": arm(grpo.Config(reduction=Reduction.TOKEN_MEAN), GROUPED),
        },
        metric="mean_value",
        expected=(Expectation(better="reinforce++", worse="reinforce", margin=0.02),),
        quick=True,
        minutes=0.3,
        tried="GRPO with as many responses in groups of eight is run beside.",
    )
