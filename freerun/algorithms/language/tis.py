"""TIS: PPO's clip around the trainer's own policy, times a truncated weight for how differently the sampler saw the data.

Paper       truncated importance sampling: Ionides 2008; for two engines of one policy: Yao et al. 2025, "Your efficient RL
            framework secretly brings you off-policy RL training".
Estimator   PPO's trust region where the update happens; the importance weight of what happened before it (other kernels,
            another precision, older weights), with its tail cut off.
Equation    loss_t = -sg(min(w, cap)) min(u A, clip(u, 1 - low, 1 + high) A)
            u = pi / pi_proximal,   A = (r - mean) / std,   w = pi_proximal / mu of the token, or the product of the response's
Assumption  "token": prefixes from mu stand for prefixes from the proximal policy. "sequence": none but the truncation; the
            spread of a product grows with the length.
Degenerate  a group of one, or of equal rewards, has gradient 0. Proximal = behaviour is grpo.
Named       `level`: "token" is verl's and TRL's default with cap 2; "sequence" is SkyRL's with cap 5. "token" is also
            decoupled_ppo with `beyond_cap="clamp"`. `normalise`: as in grpo.
State       none.

Shapes: B trajectories, T action tokens.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses, ratios
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

NORMALISE = {"std": advantages.z_score, "population_std": advantages.population_z_score, "none": advantages.group_mean}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    cap: float = 2.0
    """Largest behaviour weight, proximal over behaviour."""
    level: Literal["token", "sequence"] = "token"
    """Whether each token has a weight of its own, or those of a response share one."""
    clip_low: float = 0.2
    """How far below 1 the ratio to the proximal policy may fall for a negative advantage before its gradient stops."""
    clip_high: float = 0.2
    """How far above 1 it may rise for a positive advantage before its gradient stops."""
    normalise: Literal["std", "population_std", "none"] = "std"
    """What the centred rewards of a group are divided by."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0}
        check(self, {**rules, "cap > 0": self.cap > 0})

    def build(self) -> Algorithm:
        return Algorithm(
            name="tis",
            credit=advantages.credit(NORMALISE[self.normalise]),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage", "logp_behaviour", "logp_proximal"}),
            group_baseline=True,
            advantage_gates=True,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    proximal_BT, mask_BT = batch["logp_proximal"], batch["mask"]
    before_BT = losses.log_ratio(proximal_BT, batch["logp_behaviour"])
    if config.level == "sequence":
        before_BT = ratios.sequence_log_ratio(before_BT, mask_BT, mean=False).expand_as(before_BT)
    weight_BT = ratios.truncated(before_BT, config.cap).detach()
    u_BT = losses.log_ratio(outputs["logp"], proximal_BT)
    loss_BT, clipped_BT = losses.clipped_surrogate(u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high)
    beyond_BT = before_BT > math.log(config.cap)
    found = {"proximal_ratio": u_BT.exp(), "weight": weight_BT, "beyond_cap": beyond_BT}
    return LossOut(weight_BT * loss_BT, means(mask_BT, **found, **{"ratio/clipped": clipped_BT | beyond_BT}))
