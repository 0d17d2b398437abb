"""REC: group-relative REINFORCE read as an off-policy method, with its gate, its weight and its regulariser set apart.

Paper       "Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm" (arXiv 2509.24203); GSPO (arXiv 2507.18071).
Estimator   REINFORCE on whatever was sampled; a gate keeps the update near the old policy, and needs no importance weight.
Equation    loss_t = -sg(w M) A logp_t + coefficient R_t,   A = r - mean,   u = pi / old
            M:  one_side   u <= 1 + high where A > 0,  u >= 1 - low where A < 0;   two_side   1 - low <= u <= 1 + high
                ring       two_side, or u <= 1 - outer_low where A > 0, or u >= 1 + outer_high where A < 0
            w = 1 | u | clip(u, 1 - outer_low, 1 + outer_high);   R_t = (log u)^2 | -logp_t
Assumption  none on who sampled: at the old policy this is the gradient of a surrogate that asks all responses of a group for
            the same r - tau log u. Away from it the gate stands in for the surrogate's pull towards the old policy.
Degenerate  a group of one, or of equal rewards, has gradient 0 but for the regulariser. A weight of u with the one-sided gate
            is PPO's clip; no gate, weight or regulariser is REINFORCE.
Named       `NAMED` holds the paper's configurations; its wide clip is 0.6 and 2. The paper reasons about responses; this is per
            token, like Trinity-RFT's code, but for `ratio="geometric"`, GSPO's. R is not gated. `old`: `proximal` in grpo.
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses, ratios
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

NORMALISE = {"none": advantages.group_mean, "population_std": advantages.population_z_score}
OLD = {"behaviour": "logp_behaviour", "recomputed": "logp_proximal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip: Literal["one_side", "two_side", "ring", "none"] = "one_side"
    """Which tokens keep their gradient."""
    clip_low: float = 0.2
    """How far below 1 the ratio may be."""
    clip_high: float = 0.2
    """How far above 1 the ratio may be."""
    outer_low: float = 0.6
    """Ring: a positive advantage has a gradient again this far below 1. Truncated weights: their lower bound."""
    outer_high: float = 2.0
    """Ring: a negative advantage has a gradient again this far above 1. Truncated weights: their upper bound."""
    weight: Literal["none", "importance", "truncated"] = "none"
    """What a token's gradient is multiplied by: 1, its ratio, or that within the outer bounds."""
    ratio: Literal["token", "geometric"] = "token"
    """The ratio that gate and weight read: the token's own, or the geometric mean of its response's."""
    regulariser: Literal["none", "k2", "forward_kl"] = "none"
    """What is added: the squared log-ratio, or the negative log-likelihood."""
    coefficient: float = 0.1
    """Weight of the regulariser."""
    normalise: Literal["none", "population_std"] = "none"
    """What the centred rewards of a group are divided by."""
    old: Literal["behaviour", "recomputed"] = "behaviour"
    """The policy that ratios are taken to."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {
            "clip_low, clip_high and outer_high >= 0": min(self.clip_low, self.clip_high, self.outer_high) >= 0,
            "0 <= outer_low <= 1": 0 <= self.outer_low <= 1,
            "a ring's outer bounds are not inside its clip": self.clip != "ring"
            or (self.outer_low >= self.clip_low and self.outer_high >= self.clip_high),
            "coefficient > 0": self.coefficient > 0,
        }
        check(self, rules)

    def build(self) -> Algorithm:
        reduction = Reduction(self.reduction)
        compares = self.clip != "none" or self.weight != "none" or self.regulariser == "k2"
        policy = Term(name="policy", loss=partial(policy_loss, config=self), reduction=reduction)
        rest = Term(name="regulariser", loss=partial(regulariser, config=self), reduction=reduction, weight=self.coefficient)
        return Algorithm(
            name="rec",
            credit=advantages.credit(NORMALISE[self.normalise]),
            terms=(policy,) if self.regulariser == "none" else (policy, rest),
            needs=frozenset({"mask", "advantage"} | ({OLD[self.old]} if compares else set())),
            group_baseline=True,
            advantage_gates=self.regulariser == "none",
            reinforce_on_policy=self.regulariser != "forward_kl",
        )


GSPO = partial(Config, ratio="geometric", clip_low=3e-4, clip_high=4e-4, reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN)
NAMED = {
    "REINFORCE": Config(clip="none"),
    "REC-OneSide-NoIS": Config(),
    "REC-OneSide-NoIS wide": Config(clip_low=0.6, clip_high=2.0),
    "REC-OneSide-IS": Config(weight="importance"),
    "REC-TwoSide-IS": Config(clip="two_side", weight="importance"),
    "REC-Ring-NoIS": Config(clip="ring"),
    "REC-GSPO-NoIS": GSPO(weight="none"),
    "REC-GSPO-IS": GSPO(weight="importance"),
    "GRPO": Config(weight="importance", normalise="population_std"),
    "OPMD": Config(clip="none", regulariser="k2"),
    "AsymRE": Config(clip="none", regulariser="forward_kl"),
}
"""The paper's names, with the values of its examples in Trinity-RFT."""


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, advantage_BT, mask_BT = outputs["logp"], batch["advantage"], batch["mask"]
    if config.clip == "none" and config.weight == "none":
        return LossOut(losses.score_loss(logp_BT, advantage_BT))
    u_BT = losses.log_ratio(logp_BT, batch[OLD[config.old]])
    if config.ratio == "geometric":
        u_BT = ratios.sequence_log_ratio(u_BT, mask_BT, mean=True).expand_as(logp_BT)
    ratio_BT = u_BT.exp()
    bounded_BT = ratio_BT.clamp(1.0 - config.outer_low, 1.0 + config.outer_high)
    weight_BT = {"none": torch.ones_like(ratio_BT), "importance": ratio_BT, "truncated": bounded_BT}[config.weight]
    kept_BT = kept(ratio_BT, advantage_BT, config)
    loss_BT = losses.score_loss(logp_BT, advantage_BT, weight_BT * kept_BT)
    return LossOut(loss_BT, means(mask_BT, **{"weight": weight_BT, "ratio/clipped": ~kept_BT}))


def kept(ratio_BT: Tensor, advantage_BT: Tensor, config: Config) -> Tensor:
    """True on the tokens that keep their gradient. An advantage of 0 is on either side, and counts as kept where one is."""
    if config.clip == "none":
        return torch.ones_like(ratio_BT, dtype=torch.bool)
    least, most = 1.0 - config.clip_low, 1.0 + config.clip_high
    if config.clip == "one_side":
        return ~losses.beyond(ratio_BT, advantage_BT, least, most)
    inside_BT = (ratio_BT >= least) & (ratio_BT <= most)
    if config.clip == "two_side":
        return inside_BT
    back_up_BT = (advantage_BT >= 0) & (ratio_BT <= 1.0 - config.outer_low)
    back_down_BT = (advantage_BT <= 0) & (ratio_BT >= 1.0 + config.outer_high)
    return inside_BT | back_up_BT | back_down_BT


def regulariser(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    if config.regulariser == "forward_kl":
        return LossOut(losses.nll(outputs["logp"]))
    squared_BT = losses.log_ratio(outputs["logp"], batch[OLD[config.old]]).square()
    return LossOut(squared_BT, means(batch["mask"], squared_log_ratio=squared_BT))
