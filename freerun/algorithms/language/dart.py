"""DART: tis for agents, on the steps of highest entropy only, with a KL to the reference policy.

Paper       DART (arXiv 2509.23866), eqs. 1 and 2; its code is dart-gui.
Estimator   PPO's trust region times a capped behaviour weight, on the steps at which the policy was least sure: those decide.
Equation    loss_t = 1[H >= H_keep] (-sg(min(w, cap)) min(u A, clip(u, 1 - low, 1 + high) A) + kl_coefficient k3_t)
            u = pi / pi_proximal,   w = pi_proximal / mu,   A = (r - mean) / std
            H = mean entropy of the proximal policy over the step, H_keep so that ceil(keep n) of a group's n steps remain
Assumption  as for tis. A step of the paper, one thought and action of an agent, is a trajectory here; the group is all of them.
Degenerate  a group of one, or of equal rewards, has no policy gradient. keep = 1 and no KL is tis.
Named       the default is the paper's; numbers that it does not give are those of its code: cap 1, which never amplifies; clip
            0.1 and 0.28; `kl_coefficient` 0.1. `NAMED` has the code's own run, where the entropy filter is commented out and
            `ratio` is "geometric", GSPO's, with a dual clip of 10. Dropped steps stay in the denominator: the paper's indicator
            is inside its mean. The pool of stored successes and the adaptation of group size and length are no part of a loss.
State       none.

Shapes: B trajectories, T action tokens.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, groups, kl, losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    keep: float = 0.8
    """Share of a group's steps that count: those of highest entropy."""
    cap: float = 1.0
    """Largest behaviour weight, proximal over behaviour."""
    clip_low: float = 0.1
    """How far below 1 the ratio to the proximal policy may fall for a negative advantage before its gradient stops."""
    clip_high: float = 0.28
    """How far above 1 it may rise for a positive advantage before its gradient stops."""
    dual_clip: float | None = None
    """Largest ratio of a negative advantage that still has a gradient; none: no bound."""
    ratio: Literal["token", "geometric"] = "token"
    """The ratio that is clipped: the token's own, or the geometric mean of its step's."""
    kl_coefficient: float = 0.1
    """Weight of the KL to the reference policy; at 0 no reference is needed."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0}
        rules |= {"dual_clip > 1": self.dual_clip is None or self.dual_clip > 1}
        rules |= {"0 < keep <= 1": 0 < self.keep <= 1, "cap > 0": self.cap > 0, "kl_coefficient >= 0": self.kl_coefficient >= 0}
        check(self, rules)

    def build(self) -> Algorithm:
        reduction, uses_kl = Reduction(self.reduction), self.kl_coefficient > 0
        policy = Term(name="policy", loss=partial(policy_loss, config=self), reduction=reduction)
        reference = Term(name="kl", loss=kl_loss, reduction=reduction, weight=self.kl_coefficient)
        read = {"mask", "mask_selected", "advantage", "logp_behaviour", "logp_proximal"}
        return Algorithm(
            name="dart",
            credit=advantages.credit(advantages.z_score),
            terms=(policy, reference) if uses_kl else (policy,),
            needs=frozenset(read | ({"logp_reference"} if uses_kl else set())),
            group_baseline=True,
            advantage_gates=not uses_kl,
            reinforce_on_policy=self.keep == 1.0,
            prepare=partial(prepare, config=self),
            uses=frozenset({"mask", "group", "entropy_proximal"}),
            makes=frozenset({"mask_selected"}),
        )


NAMED = {"code": Config(keep=1.0, ratio="geometric", dual_clip=10.0, reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN)}
"""The loss of the released script. Its mean over tokens is that of GSPO, inside each step first."""


def prepare(batch: Batch, state: State, *, config: Config) -> dict[str, Tensor]:
    mask_BT = batch["mask"]
    entropy_B = step_mean(batch["entropy_proximal"], mask_BT)
    kept_B = groups.highest(entropy_B, batch["group"], mask_BT.any(-1), config.keep)
    return {"mask_selected": mask_BT & kept_B[:, None]}


def step_mean(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over the tokens of each step [B]; 0 for a step without tokens."""
    return torch.where(mask_BT, value_BT, 0.0).sum(-1) / mask_BT.sum(-1).clamp(min=1)


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    proximal_BT, kept_BT = batch["logp_proximal"], batch["mask_selected"]
    before_BT = losses.log_ratio(proximal_BT, batch["logp_behaviour"])
    weight_BT = torch.where(kept_BT, before_BT.clamp(max=math.log(config.cap)).exp(), 0.0).detach()
    logp_BT = outputs["logp"]
    u_BT = losses.log_ratio(logp_BT, proximal_BT)
    if config.ratio == "geometric":
        # The value is the step's, the gradient each token's own.
        u_BT = step_mean(u_BT.detach(), batch["mask"])[:, None] + losses.log_ratio(logp_BT, logp_BT)
    loss_BT, clipped_BT = losses.clipped_surrogate(
        u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high, dual=config.dual_clip
    )
    beyond_BT = before_BT > math.log(config.cap)
    found = {"proximal_ratio": u_BT.exp(), "weight": weight_BT, "beyond_cap": beyond_BT, "kept": kept_BT}
    return LossOut(weight_BT * loss_BT, means(batch["mask"], **found, **{"ratio/clipped": clipped_BT | beyond_BT}))


def kl_loss(outputs: Outputs, batch: Batch, state: State) -> LossOut:
    k3_BT = kl.k3(losses.log_ratio(outputs["logp"], batch["logp_reference"]))
    return LossOut(torch.where(batch["mask_selected"], k3_BT, 0.0), means(batch["mask"], **{"kl/reference": k3_BT}))
