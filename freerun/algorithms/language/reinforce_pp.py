"""REINFORCE++: PPO's clip without a critic, with advantages that are normalised over the whole step and not over a group.

Paper       REINFORCE++ (arXiv 2501.03262).
Estimator   the clipped policy gradient. Mean and std come from many prompts, so they hardly depend on the sample that they
            normalise: the bias of a group's own std goes with the size of the step.
Equation    loss_t = -min(u A, clip(u, 1 - low, 1 + high) A),   u = pi / pi_proximal
            A_t = (C_t - mean over the step) / std over the step,   C_t = r - kl_coefficient sum of k1 from t on
Assumption  as for grpo the policy moved little since sampling; the rewards of all prompts are on one scale.
Degenerate  equal rewards in the whole step have gradient 0. With `baseline="group_mean"`, a group of equal rewards has it too
            if no KL is in the reward.
Named       `baseline`: "none" is the paper's first method, one response a prompt being enough; "group_mean" its second, which
            it uses for reasoning. `kl`: "reward" is the first's, k1 = log(pi_proximal / pi_reference); "loss" the second's,
            kl_coefficient k2 of the current policy, added to the loss. Statistics are over tokens, as in verl and OpenRLHF.
            `proximal`: as in grpo.
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, kl, losses, returns
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

BASELINES = {"none": advantages.raw, "group_mean": advantages.group_mean}
PROXIMAL = {"behaviour": "logp_behaviour", "recomputed": "logp_proximal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip_low: float = 0.2
    """How far below 1 the ratio of a negative advantage may fall before its gradient stops."""
    clip_high: float = 0.2
    """How far above 1 the ratio of a positive advantage may rise before its gradient stops."""
    baseline: Literal["none", "group_mean"] = "none"
    """What is subtracted from a reward before the step's mean."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference policy; at 0 no reference is needed."""
    kl: Literal["reward", "loss"] = "reward"
    """Where that KL counts."""
    proximal: Literal["behaviour", "recomputed"] = "behaviour"
    """The policy around which the ratio is clipped, and whose KL is in the reward."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0}
        check(self, {**rules, "kl_coefficient >= 0": self.kl_coefficient >= 0})

    def build(self) -> Algorithm:
        reduction, uses_kl, proximal = Reduction(self.reduction), self.kl_coefficient > 0, PROXIMAL[self.proximal]
        policy = Term(name="policy", loss=partial(policy_loss, config=self), reduction=reduction)
        reference = Term(name="kl", loss=kl_loss, reduction=reduction, weight=self.kl_coefficient)
        in_reward, in_loss = (uses_kl and self.kl == where for where in ("reward", "loss"))
        return Algorithm(
            name="reinforce_pp",
            credit=advantages.credit(BASELINES[self.baseline]),
            terms=(policy, reference) if in_loss else (policy,),
            needs=frozenset({"mask", "advantage", proximal} | ({"logp_reference"} if uses_kl else set())),
            group_baseline=self.baseline == "group_mean",
            advantage_gates=not uses_kl,
            prepare=partial(prepare, config=self),
            uses=frozenset({"mask", "advantage"} | ({proximal, "logp_reference"} if in_reward else set())),
            makes=frozenset({"advantage"}),
        )


def prepare(batch: Batch, state: State, *, config: Config) -> dict[str, Tensor]:
    mask_BT, credit_BT = batch["mask"], batch["advantage"]
    if config.kl == "reward" and config.kl_coefficient > 0:
        k1_BT = kl.k1(losses.log_ratio(batch[PROXIMAL[config.proximal]], batch["logp_reference"]))
        credit_BT = credit_BT - config.kl_coefficient * returns.to_go(k1_BT, mask_BT)
    return {"advantage": returns.whitened(credit_BT, mask_BT)}


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    u_BT = losses.log_ratio(outputs["logp"], batch[PROXIMAL[config.proximal]])
    loss_BT, clipped_BT = losses.clipped_surrogate(u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high)
    found = {"proximal_ratio": u_BT.exp(), "ratio/clipped": clipped_BT}
    if config.kl == "reward" and config.kl_coefficient > 0:
        found["kl/reference"] = kl.k1(losses.log_ratio(outputs["logp"], batch["logp_reference"]))
    return LossOut(loss_BT, means(batch["mask"], **found))


def kl_loss(outputs: Outputs, batch: Batch, state: State) -> LossOut:
    loss_BT = kl.k2(losses.log_ratio(outputs["logp"], batch["logp_reference"]))
    return LossOut(loss_BT, means(batch["mask"], **{"kl/reference": loss_BT}))
