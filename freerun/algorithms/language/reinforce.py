"""REINFORCE with a group baseline: the policy gradient, without any correction for data from older policies.

Paper       Williams 1992, "Simple statistical gradient-following algorithms"; leave-one-out baseline: RLOO (arXiv
            2402.14740).
Estimator   each token's score, weighted by how much better its response did than its siblings.
Equation    loss_t = -A logp_t,   A = r - mean of the group | r - mean of the others | r
Assumption  the current policy sampled the data. At lag 0 that holds; at a larger lag the gradient is biased, and nothing
            bounds the bias.
Degenerate  a group of one, or of equal rewards, has gradient 0; with `baseline="none"` neither has.
Named       `baseline`: "leave_one_out" is unbiased; "group_mean" differs by the factor (K - 1) / K and is what most code
            does.
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction
from freerun.types import Batch

BASELINES = {"group_mean": advantages.group_mean, "leave_one_out": advantages.leave_one_out, "none": advantages.raw}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    baseline: Literal["group_mean", "leave_one_out", "none"] = "group_mean"
    """What is subtracted from a trajectory's reward."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        check(self, {})

    def build(self) -> Algorithm:
        return Algorithm(
            name="reinforce",
            credit=advantages.credit(BASELINES[self.baseline]),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage"}),
            group_baseline=self.baseline != "none",
            advantage_gates=True,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    return LossOut(losses.score_loss(outputs["logp"], batch["advantage"]))
