"""TOPR: raise what went well as it is, lower what went badly only as far as the policy still does it.

Paper       "Tapered Off-Policy REINFORCE" (arXiv 2503.14286).
Estimator   a policy gradient in which good responses count by the sampler's probability, like supervised learning, and bad ones
            by the current policy's, as far as that is the smaller: what has been unlearnt is left alone.
Equation    loss_t = -sg(alpha) R logp_t,   alpha = clip(s, positive_low, positive_high) where R >= 0
            and clip(s, negative_low, negative_high) elsewhere,   s = pi / mu of the response
Assumption  rewards have signs: above 0 is to be imitated, below 0 to be avoided. On data that stays the same, any negative_low
            above 0 ends with bad responses at probability 0 and the rest of the policy dragged along.
Degenerate  a reward of 0 has gradient 0, which drops every wrong answer that a verifier scores 0: see `rewards`. All limits at
            1 is REINFORCE without a baseline; positive rewards alone are supervised learning weighted by them.
Named       `rewards`: "signed" takes them as they are, as the paper does with +1 and -1, and refuses a 0; "zero_one" maps 0 to
            -1 and 1 to 1, and refuses what lies outside; "group_mean" subtracts the mean of the group, as ROLL does. `baseline`
            is the paper's constant c: with a share p of +1 among -1 the positives then weigh p (1 - c) of 1 + c (1 - 2 p); 10
            to 20% did best. `ratio`: "sequence" is the paper's, "token" that of Trinity-RFT and ROLL, whose taper is weaker.
            `reduction`: the paper's runs divide a response by its length, as the default does; Trinity-RFT means over tokens.
State       none.

Shapes: B trajectories, T action tokens, G trajectories of a group.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.errors import DataError
from freerun.ops import advantages, losses, ratios
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    rewards: Literal["signed", "zero_one", "group_mean"] = "signed"
    """How rewards become signed."""
    baseline: float = 0.0
    """A constant that is subtracted from signed rewards."""
    positive_low: float = 1.0
    """Least weight of a response that went well."""
    positive_high: float = 1.0
    """Largest weight of a response that went well."""
    negative_low: float = 0.0
    """Least weight of a response that went badly."""
    negative_high: float = 1.0
    """Largest weight of a response that went badly."""
    ratio: Literal["sequence", "token"] = "sequence"
    """Whether the weight is made from the ratio of the response or of the token."""
    reduction: Reduction = Reduction.SEQUENCE_MEAN_TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {
            "0 <= positive_low <= 1 <= positive_high": 0 <= self.positive_low <= 1 <= self.positive_high,
            "0 <= negative_low <= 1 <= negative_high": 0 <= self.negative_low <= 1 <= self.negative_high,
            "baseline is finite": math.isfinite(self.baseline),
        }
        check(self, rules)

    def build(self) -> Algorithm:
        return Algorithm(
            name="topr",
            credit=partial(signed, config=self),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage", "logp_behaviour"}),
            group_baseline=self.rewards == "group_mean" and self.baseline == 0,
            advantage_gates=True,
        )


def signed(group: Group, state: State, *, config: Config) -> tuple[Tensor, State]:
    """Signed rewards [G]. Raises `DataError` for rewards that would silently lose their sign."""
    reward_G = torch.tensor([reward.value for reward in group.rewards], dtype=torch.float64)
    if config.rewards == "group_mean":
        return advantages.group_mean(reward_G) - config.baseline, state
    if config.rewards == "zero_one":
        if reward_G.min() < 0 or reward_G.max() > 1:
            raise _refused(group, "rewards between 0 and 1, which become -1 to 1", "use rewards='signed'")
        reward_G = 2 * reward_G - 1
    signed_G = reward_G - config.baseline
    if config.rewards == "signed" and bool((signed_G == 0).any()):
        expected = "rewards below 0 for what went badly: a 0 has no gradient, so wrong answers that score 0 would be left out"
        raise _refused(group, expected, "use rewards='zero_one', which makes a 0 of the verifier a -1, or another baseline")
    return signed_G.float(), state


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, advantage_BT, mask_BT = outputs["logp"], batch["advantage"], batch["mask"]
    u_BT = losses.log_ratio(logp_BT, batch["logp_behaviour"])
    if config.ratio == "sequence":
        u_BT = ratios.sequence_log_ratio(u_BT, mask_BT, mean=False).expand_as(logp_BT)
    up_BT = _within(u_BT, config.positive_low, config.positive_high)
    down_BT = _within(u_BT, config.negative_low, config.negative_high)
    weight_BT = torch.where(advantage_BT >= 0, up_BT, down_BT)
    loss_BT = losses.score_loss(logp_BT, advantage_BT, weight_BT)
    clipped_BT = (advantage_BT < 0) & (weight_BT != u_BT.exp())
    return LossOut(loss_BT, means(mask_BT, **{"weight": weight_BT, "ratio/clipped": clipped_BT}))


def _within(log_ratio_BT: Tensor, low: float, high: float) -> Tensor:
    """The ratio within its limits. They are applied before `exp`, so that a huge ratio cannot overflow."""
    return log_ratio_BT.clamp(math.log(low) if low > 0 else -math.inf, math.log(high)).exp()


def _refused(group: Group, expected: str, todo: str) -> DataError:
    return DataError(
        f"TOPR cannot tell good from bad in item {group.item} (prompt '{group.prompt.uid}')",
        given=f"rewards {[reward.value for reward in group.rewards]}",
        expected=expected,
        todo=f"{todo} (--algorithm.rewards, --algorithm.baseline)",
    )
