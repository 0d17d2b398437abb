"""Decoupled PPO: clip around the policy at the start of the update, correct for the one that sampled.

Paper       AReaL (arXiv 2505.24298, eq. 5), after "Batch size-invariance for policy optimization" (arXiv 2110.00641).
Estimator   PPO's trust region where it belongs (this update), times the importance weight of everything that happened before
            it.
Equation    loss_t = -sg(w) min(u A, clip(u, 1 - low, 1 + high) A)
            u = pi / pi_proximal,   w = pi_proximal / mu, cut off at `cap`,   A = (r - mean) / std
Assumption  as for AIPO, prefixes from mu stand for prefixes from the proximal policy. Responses that span versions are
            samples of one behaviour policy: token by token, the one that sampled it.
Degenerate  a group of one, or of equal rewards, has gradient 0. Proximal = behaviour is PPO. With one minibatch and one epoch
            u = 1 at every token, and the method is an importance-weighted REINFORCE.
Named       `proximal`: "recomputed" by the trainer (paper); "interpolated" saves that forward pass: log-linear between
            behaviour and current, at lag / (lag + 1), as if versions were evenly spaced (AReaL's code). `beyond_cap`: "mask"
            drops a token (AReaL's default), "clamp" keeps it with weight `cap`. Dropped tokens stay in the denominator. The
            weight of a whole response, which AReaL's code has too, is tis with `level="sequence"`. `normalise`: as in grpo.
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
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

NORMALISE = {"std": advantages.z_score, "none": advantages.group_mean}
COLUMNS = {"recomputed": "logp_proximal", "interpolated": "lag"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip_low: float = 0.2
    """How far below 1 the ratio to the proximal policy may fall for a negative advantage before its gradient stops."""
    clip_high: float = 0.2
    """How far above 1 it may rise for a positive advantage before its gradient stops."""
    cap: float = 5.0
    """Largest behaviour weight, proximal over behaviour."""
    beyond_cap: Literal["mask", "clamp"] = "mask"
    """What becomes of a token whose behaviour weight is larger."""
    proximal: Literal["recomputed", "interpolated"] = "recomputed"
    """Where the log-probs of the proximal policy come from."""
    normalise: Literal["std", "none"] = "std"
    """What the centred rewards of a group are divided by."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0, "cap > 0": self.cap > 0}
        check(self, rules)

    def build(self) -> Algorithm:
        return Algorithm(
            name="decoupled_ppo",
            credit=advantages.credit(NORMALISE[self.normalise]),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage", "logp_behaviour", COLUMNS[self.proximal]}),
            group_baseline=True,
            advantage_gates=True,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, behaviour_BT = outputs["logp"], batch["logp_behaviour"]
    if config.proximal == "recomputed":
        proximal_BT = batch["logp_proximal"]
    else:
        proximal_BT = interpolated(behaviour_BT, logp_BT, batch["lag"])
    before_BT = losses.log_ratio(proximal_BT, behaviour_BT)
    beyond_BT = before_BT > math.log(config.cap)
    weight_BT = before_BT.clamp(max=math.log(config.cap)).exp()
    if config.beyond_cap == "mask":
        weight_BT = torch.where(beyond_BT, 0.0, weight_BT)
    u_BT = losses.log_ratio(logp_BT, proximal_BT)
    loss_BT, clipped_BT = losses.clipped_surrogate(u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high)
    metrics = {
        "proximal_ratio": u_BT.exp(),
        "weight": weight_BT,
        "beyond_cap": beyond_BT,
        "ratio/clipped": clipped_BT | beyond_BT,
    }
    return LossOut(weight_BT.detach() * loss_BT, means(batch["mask"], **metrics))


def interpolated(behaviour_BT: Tensor, current_BT: Tensor, lag_BT: Tensor) -> Tensor:
    """Log-probs `lag / (lag + 1)` of the way from behaviour (version v) to current (version v + lag + 1); lag 0: behaviour."""
    share_BT = (lag_BT / (lag_BT + 1.0)).clamp(0.0, 1.0)
    return torch.lerp(behaviour_BT, current_BT.detach(), share_BT.to(current_BT.dtype))
