"""ReMix gets more out of the same number of generated responses early on, and loses nothing later."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import grpo, remix
from freerun.claims import tiny
from freerun.claims.base import Arm, Claim, Expectation

FRESH = tiny.Job().groups
REPLAY = {"replay": FRESH * 2 // 3, "replay_age": 2}
"""The paper's mixture: 40% of a step from the last two policies."""
UPDATES = {"epochs": 2}
"""Its updates per batch."""


def arm(algorithm: AlgorithmConfig, steps: int, *, reuse: bool) -> Arm:
    """Every step generates 128 responses."""
    control, trainer = (REPLAY, UPDATES) if reuse else ({}, {})

    def run(seed: int) -> Mapping[str, Any]:
        job = replace(tiny.Job(), steps=steps)
        return tiny.train(algorithm, seed=seed, job=job, control=control, trainer=trainer)

    return run


def claim() -> Claim:
    plain, mixed = grpo.Config(reduction=remix.Config().reduction), remix.Config()
    return Claim(
        sentence=(
            "After 50 steps of 128 generated responses ReMix has at least 3 points more accuracy than GRPO on fresh data; "
            "after 200, of which the last 150 are on-policy, it has no more than 3 points less."
        ),
        paper="ReMix (arXiv 2507.06892), which claims 30 times fewer responses for an equal score of models of 1.5B and 7B",
        method=remix,
        arms={
            "grpo, 50": arm(plain, 50, reuse=False),
            "remix, 50": arm(mixed, 50, reuse=True),
            "grpo, 200": arm(plain, 200, reuse=False),
            "remix, 200": arm(mixed, 200, reuse=True),
            "no switch, 200": arm(replace(mixed, reincarnate=0), 200, reuse=True),
        },
        metric="accuracy",
        expected=(
            Expectation(better="remix, 50", worse="grpo, 50", margin=0.03),
            Expectation(better="remix, 200", worse="grpo, 200", margin=-0.03),
        ),
        minutes=7.0,
    )
