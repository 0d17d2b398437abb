"""CHORD: GRPO on the policy's own responses and weighted imitation of an expert's, mixed in one step.

Paper       "On-Policy RL Meets Off-Policy Experts" (arXiv 2508.11408).
Estimator   the clipped policy gradient of the rollouts, and the likelihood gradient of the demonstrations in which a token
            counts by how undecided the policy is about it.
Equation    loss = (1 - m) mean over rollout tokens of -min(u A, clip(u, 1 - low, 1 + high) A)
                     + m   mean over expert tokens of  -sg(phi) logp_t
            u = pi / mu,   A = (r - mean) / std,   phi = p (1 - p) | p | 1,   p = pi(token)
            m: up to `peak` in `warmup` steps, by half a cosine down to `valley` in `decay` steps, then constant.
Assumption  each demonstration is worth imitating, and the expert may be unlike the policy: nobody knows its log-probs, so
            nothing corrects for them.
Degenerate  a step without demonstrations is GRPO scaled by 1 - m; m = 1 with `weight` "none" is supervised fine-tuning. With
            phi = p (1 - p) the gradient of a logit is phi (onehot - p): tokens that the policy finds impossible teach almost
            nothing (from p = .001 to .9 takes 60 times as long as without weight).
Named       the default is the paper's CHORD-phi, a constant m of 0.1. CHORD-mu is `weight` "none", peak 0.9, valley 0.05,
            decay 200 (so the paper's figure; its appendix has 30 in one place, and the code's example turns phi on as well).
            The constant share is the default because it needs no schedule. `weight`: "likelihood" is the paper's importance-
            sampling ablation, under which entropy collapses. `cutoff`: a bound on p in the code, above which a token teaches
            nothing. `dual_clip`: 3 in the code. Each branch has its own denominator over the whole step. The code averages
            each micro-batch by itself and then over samples, which would make the gradient depend on how a step is cut; its
            two ends are `expert_reduction` "token_mean" (one micro-batch) and "sequence_mean_token_mean" (one each).
State       `step` and `mixing` (m), replaced at the end of every iteration.

Shapes: B trajectories, T action tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch, Mean, Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    peak: float = 0.1
    """Largest share of the expert's loss, reached after `warmup` steps."""
    valley: float = 0.1
    """Its share once `decay` further steps are over."""
    warmup: int = 0
    """Steps in which the share rises linearly from 0."""
    decay: int = 0
    """Steps in which it then falls."""
    weight: Literal["undecided", "likelihood", "none"] = "undecided"
    """How much a demonstrated token counts: p (1 - p), p, or 1."""
    cutoff: float = 1.0
    """Demonstrated tokens with p above this have no gradient; 1 leaves none out."""
    clip_low: float = 0.2
    """How far below 1 the ratio of a negative advantage may fall before its gradient stops."""
    clip_high: float = 0.2
    """How far above 1 the ratio of a positive advantage may rise before its gradient stops."""
    dual_clip: float | None = None
    """Largest ratio of a negative advantage that still has a gradient; none: no bound."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How the losses of rollout tokens become one number."""
    expert_reduction: Reduction = Reduction.TOKEN_MEAN
    """How those of demonstrated tokens do."""

    def __post_init__(self) -> None:
        rules = {
            "0 <= valley <= peak <= 1": 0 <= self.valley <= self.peak <= 1,
            "warmup, decay >= 0": min(self.warmup, self.decay) >= 0,
            "0 < cutoff <= 1": 0 < self.cutoff <= 1,
            "0 <= clip_low <= 1": 0 <= self.clip_low <= 1,
            "clip_high >= 0": self.clip_high >= 0,
            "dual_clip > 1": self.dual_clip is None or self.dual_clip > 1,
        }
        check(self, rules)

    def build(self) -> Algorithm:
        policy = Term(
            name="policy",
            loss=partial(policy_loss, config=self),
            mask="mask_rollout",
            reduction=Reduction(self.reduction),
        )
        expert = Term(
            name="expert",
            loss=partial(expert_loss, config=self),
            mask="mask_expert",
            reduction=Reduction(self.expert_reduction),
        )
        return Algorithm(
            name="chord",
            credit=advantages.credit(advantages.z_score),
            terms=(policy, expert),
            needs=frozenset({"mask_rollout", "mask_expert", "advantage", "logp_behaviour"}),
            group_baseline=True,
            reinforce_on_policy=False,
            init=partial(state_at, 0, config=self),
            events={"iteration_end": partial(next_state, config=self)},
        )

    def mixing(self, step: int) -> float:
        """Share of the expert's loss in step `step`, counted from 0."""
        if step < self.warmup:
            return self.peak * step / self.warmup
        done = min(1.0, (step - self.warmup) / self.decay) if self.decay else 1.0
        return self.valley + (self.peak - self.valley) * 0.5 * (1.0 + math.cos(math.pi * done))


def state_at(step: int, *, config: Config) -> State:
    return {"step": step, "mixing": config.mixing(step)}


def next_state(state: State, metrics: Mapping[str, Metric], *, config: Config) -> State:
    return state_at(state["step"] + 1, config=config)


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    u_BT = losses.log_ratio(outputs["logp"], batch["logp_behaviour"])
    loss_BT, clipped_BT = losses.clipped_surrogate(
        u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high, dual=config.dual_clip
    )
    return LossOut((1.0 - state["mixing"]) * loss_BT, means(batch["mask_rollout"], **{"ratio/clipped": clipped_BT}))


def expert_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, mask_BT = outputs["logp"], batch["mask_expert"]
    p_BT = logp_BT.detach().exp()
    weight_BT = {"undecided": p_BT * (1.0 - p_BT), "likelihood": p_BT, "none": torch.ones_like(p_BT)}[config.weight]
    loss_BT = state["mixing"] * weight_BT * losses.nll(logp_BT.clamp(max=math.log(config.cutoff)))
    metrics = means(mask_BT, expert_nll=losses.nll(logp_BT), expert_weight=weight_BT)
    return LossOut(loss_BT, {**metrics, "mixing": Mean(state["mixing"], 1)})
