"""GRPO: PPO's clipped ratio with the group's z-score in place of a critic.

Paper       DeepSeekMath (arXiv 2402.03300); separate clips: DAPO (arXiv 2503.14476); no std: Dr.GRPO (arXiv 2503.20783).
Estimator   the importance-weighted policy gradient, cut off where the ratio has already moved past the clip in the wanted
            direction.
Equation    loss_t = -min(u A, clip(u, 1 - low, 1 + high) A) + kl_coefficient KL_t
            u = pi / pi_proximal,   A = (r - mean) / std
Assumption  the policy moved little since sampling. With stale data tokens start outside the clip, so the signal shrinks with
            lag (2%, 16%, 31% of tokens at a log-ratio spread of .1, .2, .4): beyond lag 1 or 2 use decoupled_ppo or aipo.
Degenerate  a group of one, or of equal rewards, has gradient 0.
Named       `proximal`: "behaviour" is the paper's old policy, the one that sampled, and the only choice that corrects for
            staleness, so it is the default; "recomputed" is verl's: log-probs at the start of the update, as if that policy
            had sampled. `normalise`: "std" (n - 1, verl), "population_std", "none" (Dr.GRPO). `reduction`: the paper's is the
            default, verl's and DAPO's is token_mean. `dual_clip`: verl adds 3. `kl_estimator`: "k3" is the paper's, "k2" has
            the KL's gradient on-policy, "weighted_k3" anywhere (DeepSeek-V3.2; TRL's default).
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, kl, losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

NORMALISE = {"std": advantages.z_score, "population_std": advantages.population_z_score, "none": advantages.group_mean}
PROXIMAL = {"behaviour": "logp_behaviour", "recomputed": "logp_proximal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip_low: float = 0.2
    """How far below 1 the ratio of a negative advantage may fall before its gradient stops."""
    clip_high: float = 0.2
    """How far above 1 the ratio of a positive advantage may rise before its gradient stops (DAPO: 0.28)."""
    dual_clip: float | None = None
    """Largest ratio of a negative advantage that still has a gradient; none: no bound."""
    normalise: Literal["std", "population_std", "none"] = "std"
    """What the centred rewards of a group are divided by."""
    proximal: Literal["behaviour", "recomputed"] = "behaviour"
    """The policy around which the ratio is clipped."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference policy; at 0 no reference is needed (paper: 0.04)."""
    kl_estimator: Literal["k3", "k2", "weighted_k3"] = "k3"
    """Estimator of that KL."""
    reduction: Reduction = Reduction.SEQUENCE_MEAN_TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0}
        rules |= {
            "dual_clip > 1": self.dual_clip is None or self.dual_clip > 1,
            "kl_coefficient >= 0": self.kl_coefficient >= 0,
        }
        check(self, rules)

    def build(self) -> Algorithm:
        reduction, uses_kl = Reduction(self.reduction), self.kl_coefficient > 0
        policy = Term(name="policy", loss=partial(policy_loss, config=self), reduction=reduction)
        reference = Term(name="kl", loss=partial(kl_loss, config=self), reduction=reduction, weight=self.kl_coefficient)
        return Algorithm(
            name="grpo",
            credit=advantages.credit(NORMALISE[self.normalise]),
            terms=(policy, reference) if uses_kl else (policy,),
            needs=frozenset({"mask", "advantage", PROXIMAL[self.proximal]} | ({"logp_reference"} if uses_kl else set())),
            group_baseline=True,
            advantage_gates=not uses_kl,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    u_BT = losses.log_ratio(outputs["logp"], batch[PROXIMAL[config.proximal]])
    loss_BT, clipped_BT = losses.clipped_surrogate(
        u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high, dual=config.dual_clip
    )
    return LossOut(loss_BT, means(batch["mask"], **{"proximal_ratio": u_BT.exp(), "ratio/clipped": clipped_BT}))


def kl_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    u_BT = losses.log_ratio(outputs["logp"], batch["logp_reference"])
    if config.kl_estimator == "weighted_k3":
        loss_BT = kl.weighted_k3(u_BT, losses.log_ratio(outputs["logp"], batch[PROXIMAL[config.proximal]]))
    else:
        loss_BT = kl.k2(u_BT) if config.kl_estimator == "k2" else kl.k3(u_BT)
    return LossOut(loss_BT, means(batch["mask"], **{"kl/reference": loss_BT}))
