"""AsymRE: REINFORCE on data of any policy, with a baseline a little below the mean reward.

Paper       "Asymmetric REINFORCE for off-policy reinforcement learning" (arXiv 2506.20520).
Estimator   the gradient of E_mu[(r - V) log pi]: no importance weight, no reference. With V below the mean, good responses are
            raised more than bad ones are lowered, which keeps the optimum away from a single response.
Equation    loss_t = -(r - (mean + shift)) logp_t
Assumption  none on who sampled, but that its data is worth imitating a little: the shift adds -shift times the likelihood of
            everything sampled, which is the gradient of -shift KL(mu || pi).
Degenerate  a group of one, or of equal rewards, has the credit -shift: it is imitated. shift = 0 is REINFORCE, and on data that
            stays the same it ends at one response; above 0 it has no optimum.
Named       with the loss of rec, `regulariser="forward_kl"` of coefficient -shift is the same gradient. The paper's baseline
            is any number below the mean; mean + shift is that of its experiments and of Trinity-RFT.
State       none.

Shapes: B trajectories, T action tokens; G trajectories of a group.
"""

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    shift: float = -0.1
    """What is added to the mean reward of a group to make its baseline (the paper's delta V)."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        check(self, {"shift is finite": math.isfinite(self.shift)})

    def build(self) -> Algorithm:
        return Algorithm(
            name="asymre",
            credit=advantages.credit(partial(above_shifted_mean, shift=self.shift)),
            terms=(Term(name="policy", loss=policy_loss, reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage"}),
            group_baseline=self.shift == 0,
            advantage_gates=True,
        )


def above_shifted_mean(reward_G: Tensor, *, shift: float) -> Tensor:
    return advantages.group_mean(reward_G) - shift


def policy_loss(outputs: Outputs, batch: Batch, state: State) -> LossOut:
    return LossOut(losses.score_loss(outputs["logp"], batch["advantage"]))
