"""SOPHIA: imitation of reasoning that someone else did on the policy's own report of what it sees, if report and answer hold.

Paper       "Semi-off-Policy Reinforcement Learning for Vision-Language Slow-Thinking Reasoning" (arXiv 2507.16814).
Estimator   the policy gradient of a reward of 0 or 1, on responses whose first half (the report) is the policy's and whose
            second (the reasoning) is not; its importance weight is taken to be 1.
Equation    loss_t = -R logp_t(response | original prompt)
            R = 1 if the answer is right, R(report) > alpha, and no such response to the prompt is shorter; else 0
            R(report) = mean over its reasonings of [the answer is right]: a report is as good as what can be made of it
Assumption  where the policy would reason as the other did, its ratio to that author is near 1; the bias is at most the
            largest distance from 1.
Degenerate  R = 0 everywhere is gradient 0; R = 1 everywhere is supervised fine-tuning.
Named       `reduction`: the paper names none; the mean over tokens is what fine-tuning does. Reward propagation and selection
            happen where the data is made: `Selection` says by which rules, the paper's ablations among them.
State       none: one round of collection, then training.

Shapes: K reports of a prompt, N reasonings of each.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which responses of a prompt are worth imitating. Without its three rules the choice is blind."""

    alpha: float = 0.75
    """A report counts if the share of right answers drawn from it is larger than this."""
    report: bool = True
    """Whether that is asked at all."""
    correct: bool = True
    """Whether a response has to have the right answer."""
    shortest: bool = True
    """Whether the shortest are taken; else the first, which is a choice at random."""
    keep: int = 1
    """Responses kept of each prompt, at most."""

    def __post_init__(self) -> None:
        check(self, {"0 <= alpha < 1": 0 <= self.alpha < 1, "keep >= 1": self.keep >= 1})

    def rewards(self, correct_KN: Tensor, length_KN: Tensor) -> Tensor:
        """The reward of each response, float32 [K, N], 0 or 1. Equal lengths are decided by the order of reports, then of
        reasonings."""
        eligible_KN = torch.ones_like(correct_KN, dtype=torch.bool)
        if self.report:
            eligible_KN &= (report_reward(correct_KN) > self.alpha)[:, None]
        if self.correct:
            eligible_KN &= correct_KN.bool()
        length_KN = length_KN if self.shortest else torch.zeros_like(length_KN)
        listed = eligible_KN.flatten().nonzero().flatten()
        chosen = listed[length_KN.flatten()[listed].argsort(stable=True)[: self.keep]]
        return torch.zeros(correct_KN.numel()).index_fill(0, chosen, 1.0).view_as(correct_KN)


def report_reward(correct_KN: Tensor) -> Tensor:
    """`R(report)` [K]: the share of right answers among the reasonings on it."""
    return correct_KN.float().mean(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        check(self, {})

    def build(self) -> Algorithm:
        return Algorithm(
            name="sophia",
            credit=advantages.credit(advantages.raw),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage"}),
            advantage_gates=True,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    return LossOut(losses.score_loss(outputs["logp"], batch["advantage"]))
