"""GSPO: GRPO with one ratio per response, the geometric mean of its tokens' ratios, so that a response is clipped as a whole.

Paper       "Group sequence policy optimization" (arXiv 2507.18071).
Estimator   the policy gradient per response; the ratio's exponent 1 / length keeps its spread independent of the length, so one
            narrow clip fits all responses.
Equation    loss_t = -min(s_t A, clip(s_t, 1 - low, 1 + high) A),   A = (r - mean) / std,   averaged over each response's tokens
            s_t = sg(s) pi / sg(pi),   s = exp(mean over the response of log(pi / pi_proximal))
            below the clip the gradient is -s A / length sum_t score_t
Assumption  as for grpo the policy moved little since sampling; s is not the importance weight of the response, but its root.
Degenerate  a group of one, or of equal rewards, has gradient 0.
Named       the mean over each response's tokens belongs to the method: there is no choice. `normalise`, `proximal`: as in grpo.
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses, ratios
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

NORMALISE = {"std": advantages.z_score, "population_std": advantages.population_z_score, "none": advantages.group_mean}
PROXIMAL = {"behaviour": "logp_behaviour", "recomputed": "logp_proximal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip_low: float = 3e-4
    """How far below 1 the ratio of a response of negative advantage may fall before its gradient stops."""
    clip_high: float = 4e-4
    """How far above 1 the ratio of a response of positive advantage may rise before its gradient stops."""
    normalise: Literal["std", "population_std", "none"] = "std"
    """What the centred rewards of a group are divided by."""
    proximal: Literal["behaviour", "recomputed"] = "behaviour"
    """The policy around which the ratio is clipped."""

    def __post_init__(self) -> None:
        check(self, {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0})

    def build(self) -> Algorithm:
        reduction = Reduction.SEQUENCE_MEAN_TOKEN_MEAN
        return Algorithm(
            name="gspo",
            credit=advantages.credit(NORMALISE[self.normalise]),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=reduction),),
            needs=frozenset({"mask", "advantage", PROXIMAL[self.proximal]}),
            group_baseline=True,
            advantage_gates=True,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, mask_BT = outputs["logp"], batch["mask"]
    u_BT = losses.log_ratio(logp_BT.detach(), batch[PROXIMAL[config.proximal]])
    s_B1 = ratios.sequence_log_ratio(u_BT, mask_BT, mean=True)
    s_BT = s_B1 + losses.log_ratio(logp_BT, logp_BT)
    loss_BT, clipped_BT = losses.clipped_surrogate(s_BT, batch["advantage"], low=config.clip_low, high=config.clip_high)
    found = {"sequence_ratio": s_B1.exp().expand_as(u_BT), "ratio/clipped": clipped_BT}
    return LossOut(loss_BT, means(mask_BT, **found))
