"""Arms of claims about data that stay the same: what the warm-started model said once, trained on again and again."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.claims import tiny
from freerun.claims.base import Arm


def arm(algorithm: AlgorithmConfig) -> Arm:
    """200 steps, which pass six times over 8 responses to each of 512 prompts."""

    def run(seed: int) -> Mapping[str, Any]:
        job = tiny.Job()
        data = tiny.Sampled(job=job, weights=str(tiny.warm_start(job, seed)), seed=seed)
        return tiny.train(algorithm, seed=seed, job=job, offline=data)

    return run
