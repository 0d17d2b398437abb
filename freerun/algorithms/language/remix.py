"""ReMix: train on earlier batches again, around where the update starts, then begin anew on-policy.

Paper       "Squeeze the Soaked Sponge" (arXiv 2507.06892); the window is that of generalised PPO (arXiv 2111.00072).
Estimator   PPO's policy gradient on a mixture of the current policy's data and that of its last ones: the importance-weighted
            gradient, stopped where a ratio has left the window around its value at the start of the update.
Equation    loss_t = -min(u A, clip(u, c - clip, c + clip) A) + kl_coefficient (l KL_reference + (1 - l) KL_previous) - e H
            u = pi / mu,   c = proximal / mu,   A = (r - mean) / std of the group when it was sampled
            l = max(1 - 0.1 ceil(max(step - kl_hold, 0) / 10), 0.5)
Assumption  policies of a few steps ago are near enough for single-token weights. Rewards of a replayed group stand for those
            that the current policy would get.
Degenerate  a group of one, or of equal rewards, has gradient 0 but for KL and entropy. Where the current policy sampled, c = 1,
            and the first part is PPO's clip. decoupled_ppo's window is c (1 - clip) to c (1 + clip).
Named       the paper's mixture is what `control.replay` adds (40% of a step: two replayed groups for three fresh ones) from the
            last two policies (`control.replay_age`), its updates per batch are `trainer.epochs` (2). This is its GRPO form; the
            PPO form has a critic. After `reincarnate` steps the reference becomes a copy of the policy, replayed groups are
            left out and a batch is passed over once (paper: 50, with a critic 50 or 100). Weights of KL and entropy are not
            published; those of verl, on which it is built, are the defaults.
State       the number of steps.

Shapes: B trajectories, T action tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, kl, losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch, Metric

NORMALISE = {"std": advantages.z_score, "none": advantages.group_mean}
KL_ESTIMATORS = {"k2": kl.k2, "k3": kl.k3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip: float = 0.2
    """How far a ratio may move from its value at the start of the update."""
    normalise: Literal["std", "none"] = "std"
    """What the centred rewards of a group are divided by."""
    kl_coefficient: float = 0.001
    """Weight of the two KLs; at 0 neither policy is needed."""
    kl_estimator: Literal["k3", "k2"] = "k3"
    """Estimator of the KLs."""
    kl_hold: int = 50
    """Steps before weight begins to move from the reference to the previous policy."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy, which is raised."""
    reincarnate: int = 50
    """Steps after which it goes on without replayed groups, from a new reference; 0: never."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {
            f"{name} >= 0": value >= 0
            for name, value in (
                ("clip", self.clip),
                ("kl_coefficient", self.kl_coefficient),
                ("kl_hold", self.kl_hold),
                ("entropy_coefficient", self.entropy_coefficient),
                ("reincarnate", self.reincarnate),
            )
        }
        check(self, rules)

    def build(self) -> Algorithm:
        reduction, pulls, explores = Reduction(self.reduction), self.kl_coefficient > 0, self.entropy_coefficient > 0
        terms = [Term(name="policy", loss=partial(policy_loss, config=self), reduction=reduction)]
        if pulls:
            pull = partial(kl_loss, config=self)
            terms.append(Term(name="kl", loss=pull, reduction=reduction, weight=self.kl_coefficient))
        if explores:
            terms.append(
                Term(
                    name="entropy",
                    loss=entropy_loss,
                    outputs=("entropy",),
                    reduction=reduction,
                    weight=self.entropy_coefficient,
                )
            )
        frozen = {"logp_reference", "logp_previous"} if pulls else set()
        return Algorithm(
            name="remix",
            credit=advantages.credit(NORMALISE[self.normalise]),
            terms=tuple(terms),
            needs=frozenset({"mask", "advantage", "logp_behaviour", "logp_proximal"} | frozen),
            group_baseline=True,
            advantage_gates=not pulls and not explores,
            reinforce_on_policy=not explores,
            init=first_step,
            events={"iteration_end": next_step},
            rebase=partial(reincarnates, config=self),
            fresh_only=partial(reborn, config=self),
        )


def first_step() -> State:
    return {"step": 0}


def next_step(state: State, metrics: Mapping[str, Metric]) -> State:
    return {"step": state["step"] + 1}


def reincarnates(state: State, *, config: Config) -> bool:
    return config.reincarnate > 0 and bool(state["step"] == config.reincarnate)


def reborn(state: State, *, config: Config) -> bool:
    return config.reincarnate > 0 and bool(state["step"] >= config.reincarnate)


def reference_share(step: int, hold: int) -> float:
    """Weight of the KL to the reference; the rest is that of the KL to the previous policy."""
    return max(1.0 - 0.1 * math.ceil(max(step - hold, 0) / 10), 0.5)


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    behaviour_BT = batch["logp_behaviour"]
    ratio_BT = losses.log_ratio(outputs["logp"], behaviour_BT).exp()
    centre_BT = losses.log_ratio(batch["logp_proximal"], behaviour_BT).exp().detach()
    least_BT, most_BT = centre_BT - config.clip, centre_BT + config.clip
    loss_BT, clipped_BT = losses.bounded_surrogate(ratio_BT, batch["advantage"], least_BT, most_BT)
    return LossOut(loss_BT, means(batch["mask"], **{"centre": centre_BT, "ratio/clipped": clipped_BT}))


def kl_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    estimate, share = KL_ESTIMATORS[config.kl_estimator], reference_share(state["step"], config.kl_hold)
    reference_BT = estimate(losses.log_ratio(outputs["logp"], batch["logp_reference"]))
    previous_BT = estimate(losses.log_ratio(outputs["logp"], batch["logp_previous"]))
    metrics = {"kl/reference": reference_BT, "kl_previous": previous_BT}
    return LossOut(share * reference_BT + (1.0 - share) * previous_BT, means(batch["mask"], **metrics))


def entropy_loss(outputs: Outputs, batch: Batch, state: State) -> LossOut:
    return LossOut(-outputs["entropy"])
