"""CISPO: the policy gradient with token importance weights, clipped on both sides, no token ever dropped.

Paper       MiniMax-M1 (arXiv 2506.13585).
Estimator   REINFORCE, each token weighted by how much likelier the current policy makes it, within bounds. Rare tokens, whose
            ratios soon leave a PPO clip, keep their gradient.
Equation    loss_t = -sg(clip(pi / mu, 1 - low, 1 + high)) A logp_t,   A = (r - mean) / std
Assumption  as for aipo: prefixes from mu stand for prefixes from pi.
Degenerate  a group of one, or of equal rewards, has gradient 0. low = 1 is aipo with rho = 1 + high, but for the std.
Named       the paper uses no lower bound and does not publish the upper one; 0.28 is Trinity-RFT's, ScaleRL (arXiv 2510.13786)
            has a cap of 5, which is `clip_high` 4. TRL's epsilon_high is the bound itself, 1 + clip_high. `normalise`: as in
            grpo.
State       none.

Shapes: B trajectories, T action tokens.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

NORMALISE = {"std": advantages.z_score, "population_std": advantages.population_z_score, "none": advantages.group_mean}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip_low: float = 1.0
    """How far below 1 a weight may be; 1 is no lower bound."""
    clip_high: float = 0.28
    """How far above 1 a weight may be."""
    normalise: Literal["std", "population_std", "none"] = "std"
    """What the centred rewards of a group are divided by."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        check(self, {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0})

    def build(self) -> Algorithm:
        return Algorithm(
            name="cispo",
            credit=advantages.credit(NORMALISE[self.normalise]),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage", "logp_behaviour"}),
            group_baseline=True,
            advantage_gates=True,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    u_BT = losses.log_ratio(outputs["logp"], batch["logp_behaviour"])
    low = math.log(1.0 - config.clip_low) if config.clip_low < 1 else -math.inf
    bounded_BT = u_BT.clamp(low, math.log(1.0 + config.clip_high))
    loss_BT = losses.score_loss(outputs["logp"], batch["advantage"], bounded_BT.exp())
    return LossOut(loss_BT, means(batch["mask"], weight=bounded_BT.exp(), **{"ratio/clipped": bounded_BT != u_BT}))
