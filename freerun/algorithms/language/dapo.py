"""DAPO: GRPO with a wider clip upwards, equal weight for every token, and a soft penalty for running out of tokens.

Paper       DAPO (arXiv 2503.14476).
Estimator   GRPO's, with more room for unlikely tokens to become likely, which keeps entropy up.
Equation    loss_t = -min(u A, clip(u, 1 - low, 1 + high) A),   u = pi / pi_proximal,   averaged over all tokens
            A = (r' - mean) / std,   r' = r + clip((max_length - buffer - length) / buffer, -1, 0)
Assumption  as for grpo the policy moved little since sampling. `max_length` is the budget of the sampler.
Degenerate  a group of one, or of equal rewards and lengths within the budget, has gradient 0.
Named       `overlong`: "penalty" is the equation; "filter" gives responses that were cut off no credit, in place of a penalty
            (the paper's first remedy; their tokens stay in the denominator); "none" does neither. `proximal`: as in grpo. The
            paper's dynamic sampling, which makes a step of groups with unequal rewards only, is no part of the loss:
            control.skip_uniform.
State       none.

Shapes: G trajectories of a group, B of a batch, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch, Group, Stop

PROXIMAL = {"behaviour": "logp_behaviour", "recomputed": "logp_proximal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip_low: float = 0.2
    """How far below 1 the ratio of a negative advantage may fall before its gradient stops."""
    clip_high: float = 0.28
    """How far above 1 the ratio of a positive advantage may rise before its gradient stops."""
    overlong: Literal["penalty", "filter", "none"] = "penalty"
    """What happens to responses that are nearly, or entirely, too long."""
    max_length: int = 20480
    """Length from which a response loses a whole point: the budget of the sampler."""
    buffer: int = 4096
    """Tokens before `max_length` over which the penalty grows from 0 to 1."""
    proximal: Literal["behaviour", "recomputed"] = "behaviour"
    """The policy around which the ratio is clipped."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0}
        check(self, {**rules, "1 <= buffer <= max_length": 1 <= self.buffer <= self.max_length})

    def build(self) -> Algorithm:
        return Algorithm(
            name="dapo",
            credit=partial(credit, config=self),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage", PROXIMAL[self.proximal]}),
            group_baseline=True,
            advantage_gates=True,
        )


def credit(group: Group, state: State, *, config: Config) -> tuple[Tensor, State]:
    reward_G = torch.tensor([reward.value for reward in group.rewards], dtype=torch.float64)
    if config.overlong == "penalty":
        reward_G += length_penalty([t.num_actions for t in group.trajectories], config)
    advantage_G = advantages.z_score(reward_G)
    if config.overlong == "filter":
        cut_G = torch.tensor([t.stop in (Stop.LENGTH, Stop.CONTEXT) for t in group.trajectories])
        advantage_G = torch.where(cut_G, 0.0, advantage_G)
    return advantage_G, state


def length_penalty(lengths: list[int], config: Config) -> Tensor:
    """0 up to `max_length - buffer` tokens, then falling linearly to -1 at `max_length` [G]."""
    over_G = torch.tensor(lengths, dtype=torch.float64) - (config.max_length - config.buffer)
    return -(over_G / config.buffer).clamp(0.0, 1.0)


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    u_BT = losses.log_ratio(outputs["logp"], batch[PROXIMAL[config.proximal]])
    loss_BT, clipped_BT = losses.clipped_surrogate(u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high)
    return LossOut(loss_BT, means(batch["mask"], **{"proximal_ratio": u_BT.exp(), "ratio/clipped": clipped_BT}))
