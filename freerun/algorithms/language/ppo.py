"""PPO: the clipped ratio, with advantages from a critic that learns beside the policy.

Paper       "Proximal policy optimization algorithms" (arXiv 1707.06347); GAE (arXiv 1506.02438); dual clip (arXiv 1912.09729);
            with a KL penalty for language models InstructGPT (arXiv 2203.02155).
Estimator   the policy gradient with one advantage per token, which the critic's values spread over the response, cut off where
            the ratio has already moved past the clip in the wanted direction: several passes over a batch stay near its policy.
Equation    loss_t = -min(u A_t, clip(u, 1 - low, 1 + high) A_t),   u = pi / pi_proximal
            value_t = max((V - R_t)^2, (V_0 + clip(V - V_0, -value_clip, value_clip) - R_t)^2) / 2
            d_t = r_t + discount V_0,t+1 - V_0,t,   A_t = d_t + discount decay A_t+1 (then whitened),   R_t = A_t + V_0,t
            r_t = reward on the last token, - kl_coefficient log(pi_proximal / pi_reference) on every token
Assumption  as for grpo the policy moved little since sampling; V_0 is the critic at the start of the update.
Degenerate  a group of one is as good as any other. Equal rewards teach as much as the critic did not expect.
Named       `proximal`: as in grpo. `whiten`: mean 0 and variance 1 over the tokens of the step (verl, TRL), or the paper's raw
            advantages. `value_clip`: none is the plain squared error. `dual_clip`: verl adds 3. The critic is a network of its
            own with its own learning rate (trainer.critic_lr_share), so a coefficient of its loss has nothing to balance and
            is left out; so is the penalty of the paper's other variant.
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses, returns
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

PROXIMAL = {"behaviour": "logp_behaviour", "recomputed": "logp_proximal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip_low: float = 0.2
    """How far below 1 the ratio of a negative advantage may fall before its gradient stops."""
    clip_high: float = 0.2
    """How far above 1 the ratio of a positive advantage may rise before its gradient stops."""
    dual_clip: float | None = None
    """Largest ratio of a negative advantage that still has a gradient; none: no bound."""
    value_clip: float | None = 0.2
    """How far a value may move from the critic's at the start of the update before its gradient stops; none: no bound."""
    discount: float = 1.0
    """Discount of a reward per token."""
    decay: float = 0.95
    """Weight of later errors of the critic in an advantage (lambda): 1 trusts returns, 0 the critic."""
    whiten: bool = True
    """Whether advantages get mean 0 and variance 1 over the step."""
    proximal: Literal["behaviour", "recomputed"] = "behaviour"
    """The policy around which the ratio is clipped."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference policy in the reward; at 0 no reference is needed (InstructGPT: 0.02)."""
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0}
        rules |= {"dual_clip > 1": self.dual_clip is None or self.dual_clip > 1}
        rules |= {"value_clip > 0": self.value_clip is None or self.value_clip > 0}
        rules |= {"0 <= discount <= 1": 0 <= self.discount <= 1, "0 <= decay <= 1": 0 <= self.decay <= 1}
        rules |= {"coefficients >= 0": min(self.kl_coefficient, self.entropy_coefficient) >= 0}
        check(self, rules)

    def build(self) -> Algorithm:
        reduction, proximal = Reduction(self.reduction), PROXIMAL[self.proximal]
        terms = [
            Term(name="policy", loss=partial(policy_loss, config=self), reduction=reduction),
            Term(
                name="value",
                loss=partial(value_loss, config=self),
                trains=("value",),
                outputs=("values",),
                reduction=reduction,
            ),
        ]
        if self.entropy_coefficient > 0:
            bonus = Term(
                name="entropy",
                loss=entropy_loss,
                outputs=("entropy",),
                reduction=reduction,
                weight=self.entropy_coefficient,
            )
            terms.append(bonus)
        penalised = {proximal, "logp_reference"} if self.kl_coefficient > 0 else set()
        read = penalised | {proximal} | ({"values"} if self.value_clip is not None else set())
        return Algorithm(
            name="ppo",
            credit=advantages.credit(advantages.raw),
            terms=tuple(terms),
            needs=frozenset({"mask", "advantage", "returns"} | read),
            prepare=partial(prepare, config=self),
            uses=frozenset({"mask", "reward", "values"} | penalised),
            makes=frozenset({"advantage", "returns"}),
        )


def prepare(batch: Batch, state: State, *, config: Config) -> dict[str, Tensor]:
    mask_BT = batch["mask"]
    reward_BT = returns.at_the_end(batch["reward"].to(batch["values"].dtype), mask_BT)
    if config.kl_coefficient > 0:
        reward_BT = reward_BT - config.kl_coefficient * losses.log_ratio(
            batch[PROXIMAL[config.proximal]], batch["logp_reference"]
        )
    advantage_BT, returns_BT = returns.gae(reward_BT, batch["values"], mask_BT, discount=config.discount, decay=config.decay)
    return {"advantage": returns.whitened(advantage_BT, mask_BT) if config.whiten else advantage_BT, "returns": returns_BT}


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    u_BT = losses.log_ratio(outputs["logp"], batch[PROXIMAL[config.proximal]])
    loss_BT, clipped_BT = losses.clipped_surrogate(
        u_BT, batch["advantage"], low=config.clip_low, high=config.clip_high, dual=config.dual_clip
    )
    found = {"proximal_ratio": u_BT.exp(), "ratio/clipped": clipped_BT}
    if config.kl_coefficient > 0:
        found["kl/reference"] = losses.log_ratio(outputs["logp"], batch["logp_reference"])
    return LossOut(loss_BT, means(batch["mask"], **found))


def value_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    values_BT, returns_BT = outputs["values"], batch["returns"].detach()
    error_BT = (values_BT - returns_BT).square()
    if config.value_clip is not None:
        before_BT = batch["values"].detach()
        near_BT = before_BT + (values_BT - before_BT).clamp(-config.value_clip, config.value_clip)
        error_BT = torch.maximum(error_BT, (near_BT - returns_BT).square())
    return LossOut(error_BT / 2, means(batch["mask"], value=values_BT, **{"return": returns_BT}))


def entropy_loss(outputs: Outputs, batch: Batch, state: State) -> LossOut:
    return LossOut(-outputs["entropy"])
