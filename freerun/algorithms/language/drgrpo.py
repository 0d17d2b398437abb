"""Dr.GRPO: GRPO without its two divisions, by the group's standard deviation and by the length of each response.

Paper       "Understanding R1-Zero-like training" (arXiv 2503.20783).
Estimator   GRPO's, of the policy gradient itself: up to a constant its expectation is the gradient of the expected reward,
            where GRPO's division by the std favours prompts that are nearly solved or nearly hopeless, and its division by the
            length makes long wrong answers cheap.
Equation    loss = 1 / N sum over responses of 1 / length sum_t -min(u A, clip(u, 1 - low, 1 + high) A)
            u = pi / pi_proximal,   A = r - mean of the group
Assumption  as for grpo the policy moved little since sampling.
Degenerate  a group of one, or of equal rewards, has gradient 0.
Named       `length` is one number for all responses, the budget of tokens: the paper's formula has no such division, its code
            divides by the budget (so do verl and TRL, over N responses; Trinity-RFT leaves 1 / N out). It scales the loss and
            does nothing else. `proximal`: as in grpo.
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

PROXIMAL = {"behaviour": "logp_behaviour", "recomputed": "logp_proximal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    length: int = 1024
    """The constant by which the sum over a response's tokens is divided: the most tokens that a response may have."""
    clip_low: float = 0.2
    """How far below 1 the ratio of a negative advantage may fall before its gradient stops."""
    clip_high: float = 0.2
    """How far above 1 the ratio of a positive advantage may rise before its gradient stops."""
    proximal: Literal["behaviour", "recomputed"] = "behaviour"
    """The policy around which the ratio is clipped."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0}
        check(self, {**rules, "length >= 1": self.length >= 1})

    def build(self) -> Algorithm:
        term = Term(
            name="policy",
            loss=partial(policy_loss, config=self),
            reduction=Reduction.SEQUENCE_MEAN_TOKEN_SUM,
            weight=1.0 / self.length,
        )
        return Algorithm(
            name="drgrpo",
            credit=advantages.credit(advantages.group_mean),
            terms=(term,),
            needs=frozenset({"mask", "advantage", PROXIMAL[self.proximal]}),
            group_baseline=True,
            advantage_gates=True,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    u_BT = losses.log_ratio(outputs["logp"], batch[PROXIMAL[config.proximal]])
    loss_BT, clipped_BT = losses.clipped_surrogate(u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high)
    return LossOut(loss_BT, means(batch["mask"], **{"proximal_ratio": u_BT.exp(), "ratio/clipped": clipped_BT}))
