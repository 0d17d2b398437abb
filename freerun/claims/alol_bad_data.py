"""How good the data is decides what imitation learns, and hardly matters to A-LoL, which learns from what beats expectation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import alol, reinforce, sft
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation
from freerun.ops.reduce import Reduction

GOOD, BAD = 0.75, 0.25
"""Shares of right responses in the two data sets."""
LOW = 0.4
"""Reward of a wrong response; a right one has 1. With 0, weighing by the reward would drop wrong responses altogether."""
SETTING = tabular.Setting(steps=600, dataset=128)
"""The sequence task's own batch and step length, on 1024 responses that never change."""


def author(problem: tabular.Problem, share: float, seed: int) -> Tensor:
    """The first policy of a REINFORCE run on its own responses that is right in at least `share` of the cases."""
    make = torch.Generator().manual_seed(seed)
    learner = tabular.Learner(reinforce.Config(), problem, tabular.Setting(lr=20.0), make)
    data = tabular.Data(learner, make)
    while float(problem.value(learner.logits_PTSV.detach()).mean()) < share:
        learner.step(data.draw())
    return learner.logits_PTSV.detach()


def arm(algorithm: AlgorithmConfig) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        right, problem = {}, tabular.chain()
        for share in (GOOD, BAD):
            written = replace(problem, start_PTSV=author(problem, share, seed)).scaled(LOW, 1.0)
            value = tabular.train(algorithm, written, SETTING, seed=seed).value
            right[share] = (value - LOW) / (1.0 - LOW)
        return {"gap": right[GOOD] - right[BAD], "wrong": 1.0 - right[BAD], "good": right[GOOD], "bad": right[BAD]}

    return run


def claim() -> Claim:
    mean = Reduction.TOKEN_MEAN
    return Claim(
        sentence=(
            "When the share of right responses in a fixed data set falls from three quarters to a quarter, and wrong ones "
            "still earn 0.4, A-LoL loses less of its final success rate than likelihood (by 0.2 at least) and than cloning "
            "weighted by reward (by 0.1 at least), and is better than the latter on the bad data."
        ),
        paper="A-LoL (arXiv 2305.14718): discarding what has no positive advantage makes it robust to bad training data",
        method=alol,
        arms={
            "likelihood": arm(sft.Config()),
            "weighted cloning": arm(alol.Config(signal="reward", ratio="none", reduction=mean)),
            "r-lol": arm(alol.Config(signal="reward", reduction=mean)),
            "a-lol ref-free": arm(alol.Config(ratio="none", reduction=mean)),
            "a-lol seq.": arm(alol.Config(ratio="token", reduction=mean)),
            "a-lol": arm(alol.Config(reduction=mean)),
        },
        metric="gap",
        better="lower",
        expected=(
            Expectation(better="a-lol", worse="likelihood", margin=0.2),
            Expectation(better="a-lol", worse="weighted cloning", margin=0.1),
            Expectation(better="a-lol", worse="weighted cloning", margin=0.1, metric="wrong"),
        ),
        minutes=2.0,
        tried=(
            "The value of the reference policy is exact here; fitting it is tested elsewhere. All arms mean over tokens, so "
            "that one step length suits them. In theory likelihood keeps the share p of right responses, weighing by reward "
            "gives p / (p + 0.4 (1 - p)), which is .88 and .45, and advantages leave out all that is wrong."
        ),
    )
