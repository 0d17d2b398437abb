"""Prompts of different difficulty with a right and a wrong answer: where the std of a group stands for the difficulty."""

from collections.abc import Mapping
from typing import Any

import torch

from freerun.algorithms.base import AlgorithmConfig
from freerun.claims.base import Arm
from freerun.claims.lengths import Choices

SUCCESS = (0.05, 0.3, 0.6, 0.9)
"""How often each prompt is solved."""
SIZES = (4, 16, 64)
"""Responses per group."""
RESPONSES = 65536
"""Of a step so large that what is left of an update's error is bias."""


def arm(config: AlgorithmConfig) -> Arm:
    """The cosine between the update of one large step and the gradient of the expected reward, by the size of groups:
    `cosine_4` and so on."""

    def run(seed: int) -> Mapping[str, Any]:
        success_P = torch.tensor(SUCCESS, dtype=torch.float64)
        choices = Choices(lengths=(1, 1), rewards=(1.0, 0.0), start_PR=torch.stack([success_P, 1 - success_P], -1).log())
        truth_PR, found = choices.gradient(choices.start_PR), {}
        for size in SIZES:
            make = torch.Generator().manual_seed(seed)
            update_PR = choices.sampled(config.build(), choices.start_PR, RESPONSES // size, size, make)
            found[f"cosine_{size}"] = float(torch.cosine_similarity(update_PR.flatten(), truth_PR.flatten(), dim=0))
        return found

    return run
