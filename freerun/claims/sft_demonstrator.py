"""Supervised fine-tuning comes to do what the demonstrator does, and no better."""

from collections.abc import Mapping
from typing import Any

import torch

from freerun.algorithms.language import reinforce, sft
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation

SETTING = tabular.Setting(steps=300)
HALF_WAY = tabular.Setting(steps=40)
"""What the demonstrator was trained with: it solves about two thirds of the problems."""


def arm(learner: str) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        problem = tabular.chain()
        shown = tabular.train(reinforce.Config(), problem, HALF_WAY, seed=seed)
        if learner == "demonstrator":
            return {"value": shown.value}
        if learner == "start":
            return {"value": float(problem.value(problem.start_PTSV).mean())}
        if learner == "reinforce":
            return {"value": tabular.train(reinforce.Config(), problem, SETTING, seed=seed).value}
        return {"value": imitated(problem, shown.policy_PTSV.log(), seed)}

    return run


def imitated(problem: tabular.Problem, expert_PTSV: torch.Tensor, seed: int) -> float:
    """The value of a table that was fitted to fresh demonstrations in every step, as many as REINFORCE has responses."""
    make = torch.Generator().manual_seed(seed)
    student = tabular.Learner(sft.Config(), problem, SETTING, make)
    for _ in range(SETTING.steps):
        prompt_B = torch.randint(len(expert_PTSV), (SETTING.groups,), generator=make).repeat_interleave(SETTING.group_size)
        student.step(tabular.sample(problem, expert_PTSV, prompt_B, student.version, make))
    return float(problem.value(student.logits_PTSV.detach()).mean())


def claim() -> Claim:
    return Claim(
        sentence=(
            "After 300 steps on demonstrations of a policy that solves a part of the sequence task, the student's "
            "expected reward is within 0.1 of the demonstrator's on either side, far above the start's; REINFORCE, for as "
            "many steps, goes beyond."
        ),
        paper="behaviour cloning (Pomerleau 1991); InstructGPT (arXiv 2203.02155, step 1)",
        method=sft,
        arms={name: arm(name) for name in ("student", "demonstrator", "start", "reinforce")},
        metric="value",
        expected=(
            Expectation(better="student", worse="demonstrator", margin=-0.1),
            Expectation(better="demonstrator", worse="student", margin=-0.1),
            Expectation(better="student", worse="start", margin=0.2),
            Expectation(better="reinforce", worse="student", margin=0.1),
        ),
        quick=True,
        minutes=0.3,
    )
