"""RLOO: REINFORCE on whole responses, with the mean reward of the siblings as the baseline.

Paper       "Back to basics" (arXiv 2402.14740); the baseline: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for
            free!".
Estimator   the policy gradient, unbiased: a response's own reward is no part of its baseline.
Equation    loss = 1 / N sum over responses of -A logp(response),   A = r' - mean r' of the others
            r' = r - kl_coefficient log(pi_proximal / pi_reference)(response)
Assumption  the current policy sampled the data; with `clip` it moved little since sampling.
Degenerate  a group of one has gradient 0; so has one of equal rewards, if there is no KL.
Named       `clip`: "none" is the paper's; "sequence" is PPO's clip on the ratio of whole responses, as in TRL, which leaves the
            proximal policy at the first step alone. `proximal`: as in grpo; the KL in the reward is that of this policy. The
            mean over responses of sums over tokens is the paper's reduction.
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, groups, losses, ratios
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

PROXIMAL = {"behaviour": "logp_behaviour", "recomputed": "logp_proximal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip: Literal["none", "sequence"] = "none"
    """Whether the ratio of a response to the proximal policy has bounds."""
    clip_low: float = 0.2
    """With "sequence": how far below 1 the ratio of a negative advantage may fall before its gradient stops."""
    clip_high: float = 0.2
    """With "sequence": how far above 1 the ratio of a positive advantage may rise before its gradient stops."""
    proximal: Literal["behaviour", "recomputed"] = "behaviour"
    """The policy around which the ratio is clipped, and whose KL is in the reward."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference policy in the reward; at 0 no reference is needed."""
    reduction: Reduction = Reduction.SEQUENCE_MEAN_TOKEN_SUM
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0}
        check(self, {**rules, "kl_coefficient >= 0": self.kl_coefficient >= 0})

    def build(self) -> Algorithm:
        penalised, proximal = self.kl_coefficient > 0, PROXIMAL[self.proximal]
        read = ({proximal} if self.clip == "sequence" else set()) | ({"logp_reference"} if penalised else set())
        return Algorithm(
            name="rloo",
            credit=advantages.credit(advantages.leave_one_out),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage"} | read),
            group_baseline=True,
            advantage_gates=not penalised,
            prepare=partial(prepare, config=self) if penalised else None,
            uses=frozenset({"mask", "advantage", "group", "logp_reference", proximal}) if penalised else frozenset(),
            makes=frozenset({"advantage"}) if penalised else frozenset(),
        )


def prepare(batch: Batch, state: State, *, config: Config) -> dict[str, Tensor]:
    """The baseline is linear, so the penalty gets its own, and is added."""
    mask_BT = batch["mask"]
    u_BT = losses.log_ratio(batch[PROXIMAL[config.proximal]], batch["logp_reference"])
    penalty_B = -config.kl_coefficient * ratios.sequence_log_ratio(u_BT, mask_BT, mean=False).squeeze(-1)
    penalty_B = groups.leave_one_out(penalty_B, batch["group"], mask_BT.any(-1))
    return {"advantage": batch["advantage"] + penalty_B[:, None]}


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, advantage_BT, mask_BT = outputs["logp"], batch["advantage"], batch["mask"]
    found = {}
    if config.kl_coefficient > 0:
        found["kl/reference"] = losses.log_ratio(logp_BT, batch["logp_reference"])
    if config.clip == "none":
        return LossOut(losses.score_loss(logp_BT, advantage_BT), means(mask_BT, **found))
    u_BT = losses.log_ratio(logp_BT, batch[PROXIMAL[config.proximal]])
    u_B1 = ratios.sequence_log_ratio(u_BT, mask_BT, mean=False).clamp(-losses.LOG_RATIO_LIMIT, losses.LOG_RATIO_LIMIT)
    loss_BT, clipped_BT = losses.clipped_surrogate(u_B1, advantage_BT, low=config.clip_low, high=config.clip_high)
    # The loss of a response is spread over its tokens, which add up to it.
    loss_BT = loss_BT / mask_BT.sum(-1, keepdim=True).clamp(min=1)
    found |= {"proximal_ratio": u_B1.exp().expand_as(u_BT), "ratio/clipped": clipped_BT}
    return LossOut(loss_BT, means(mask_BT, **found))
