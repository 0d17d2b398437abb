"""IcePop: PPO's clip around the trainer's own policy, without the tokens on which the sampler disagreed too much.

Paper       Ring-1T (arXiv 2510.18855).
Estimator   as tis, but a weight outside the window is 0 and not cut off: where two engines of one policy disagree that much,
            the token says more about the engines than about the policy.
Equation    loss_t = -sg(w 1[low <= w <= high]) min(u A, clip(u, 1 - clip_low, 1 + clip_high) A)
            u = pi / pi_proximal,   w = pi_proximal / mu,   A = (r - mean) / std
Assumption  what is dropped is noise: tokens that the sampler finds much likelier than the trainer, or the other way round.
Degenerate  a group of one, or of equal rewards, has gradient 0. Proximal = behaviour is grpo.
Named       `low`, `high`: 0.5 and 5 in verl and NeMo-RL, 0.5 and 2 in slime and SkyRL. Dropped tokens stay in the
            denominator, as in verl. `normalise`: as in grpo.
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses, ratios
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

NORMALISE = {"std": advantages.z_score, "population_std": advantages.population_z_score, "none": advantages.group_mean}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    low: float = 0.5
    """Smallest behaviour weight, proximal over behaviour, of a token that counts."""
    high: float = 5.0
    """Largest behaviour weight of a token that counts."""
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
        check(self, {**rules, "0 <= low <= 1 <= high": 0 <= self.low <= 1 <= self.high})

    def build(self) -> Algorithm:
        return Algorithm(
            name="icepop",
            credit=advantages.credit(NORMALISE[self.normalise]),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage", "logp_behaviour", "logp_proximal"}),
            group_baseline=True,
            advantage_gates=True,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    proximal_BT = batch["logp_proximal"]
    before_BT = losses.log_ratio(proximal_BT, batch["logp_behaviour"])
    kept_BT = ratios.within(before_BT, config.low, config.high)
    weight_BT = torch.where(kept_BT, before_BT.exp(), 0.0).detach()
    u_BT = losses.log_ratio(outputs["logp"], proximal_BT)
    loss_BT, clipped_BT = losses.clipped_surrogate(u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high)
    found = {"proximal_ratio": u_BT.exp(), "weight": weight_BT, "dropped": ~kept_BT}
    return LossOut(weight_BT * loss_BT, means(batch["mask"], **found, **{"ratio/clipped": clipped_BT | ~kept_BT}))
