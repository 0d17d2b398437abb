"""REINFORCE++ needs one response a prompt, and the step's std bends its gradient less than a group's own."""

from collections.abc import Mapping
from typing import Any

import torch

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import grpo, reinforce, reinforce_pp
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.lengths import Choices

SUCCESS = (0.05, 0.3, 0.6, 0.9)
"""How often each of four prompts is solved."""
NUM_GROUPS, SIZE = 8192, 4
"""A step so large that what is left of an update's error is bias."""


def arm(single: AlgorithmConfig, grouped: AlgorithmConfig) -> Arm:
    """`single` learns from one response to each of 128 prompts; the update of `grouped` is looked at."""

    def run(seed: int) -> Mapping[str, Any]:
        make = torch.Generator().manual_seed(seed)
        success_P = torch.tensor(SUCCESS, dtype=torch.float64)
        choices = Choices(lengths=(1, 1), rewards=(1.0, 0.0), start_PR=torch.stack([success_P, 1 - success_P], -1).log())
        update_PR = choices.sampled(grouped.build(), choices.start_PR, NUM_GROUPS, SIZE, make)
        truth_PR = choices.gradient(choices.start_PR)
        setting = tabular.Setting(steps=100, groups=128, group_size=1)
        return {
            "cosine": float(torch.cosine_similarity(update_PR.flatten(), truth_PR.flatten(), dim=0)),
            **tabular.train(single, tabular.chain(), setting, seed=seed).numbers(),
        }

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "With one response to each of 128 prompts, REINFORCE++ learns the sequence task faster than REINFORCE without "
            "a baseline (expected reward, mean over 100 updates); with groups of four, its update is closer in direction "
            "to the gradient of the expected reward than GRPO's, on prompts that are solved 5 to 90% of the time."
        ),
        paper="REINFORCE++ (arXiv 2501.03262)",
        method=reinforce_pp,
        arms={
            "reinforce++": arm(reinforce_pp.Config(), reinforce_pp.Config(baseline="group_mean")),
            "other": arm(reinforce.Config(baseline="none"), grpo.Config()),
        },
        metric="mean_value",
        expected=(
            Expectation(better="reinforce++", worse="other", margin=0.02),
            Expectation(better="reinforce++", worse="other", margin=0.005, metric="cosine"),
        ),
        quick=True,
        minutes=2.0,
        tried="The other arm is REINFORCE without a baseline in the first comparison, and GRPO in the second.",
    )
