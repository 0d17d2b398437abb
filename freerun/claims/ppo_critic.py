"""A critic tells which symbol of a response earned the reward, which the mean of a group cannot."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import grpo, ppo, rloo
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation
from freerun.ops.reduce import Reduction

SETTING = tabular.Setting(steps=100)


def arm(algorithm: AlgorithmConfig) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        return tabular.train(algorithm, tabular.chain(), SETTING, seed=seed).numbers()

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "On the sequence task, where a response has eight decisions and one reward, GAE over a critic learns faster "
            "from the same samples than a baseline of siblings: expected reward, mean over 100 updates on fresh data."
        ),
        paper="GAE (arXiv 1506.02438), PPO (arXiv 1707.06347)",
        method=ppo,
        arms={
            "critic": arm(ppo.Config()),
            "critic, no decay": arm(ppo.Config(decay=1.0)),
            "group z-score": arm(grpo.Config()),
            "leave one out": arm(rloo.Config(reduction=Reduction.TOKEN_MEAN)),
        },
        metric="mean_value",
        expected=(
            Expectation(better="critic", worse="group z-score", margin=0.05),
            Expectation(better="critic", worse="leave one out", margin=0.05),
        ),
        seeds=10,
        quick=True,
        minutes=0.5,
        tried="A table of values learns without error from shared parameters; a network's critic is slower to be of use.",
    )
