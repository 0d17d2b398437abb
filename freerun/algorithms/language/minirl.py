"""MiniRL: the plainest policy gradient that is right to first order: one weight for everything that happened, one mask.

Paper       "Stabilizing Reinforcement Learning with LLMs: Formulation and Practices" (arXiv 2512.01374).
Estimator   the token gradient as a first-order approximation of the gradient of the expected reward of whole responses: good
            where engines agree and the policy is near, which weight, mask and routing replay keep so.
Equation    loss_t = -sg(M min(pi / mu, cap)) A logp_t,   A = r - mean, summed over the tokens of a response
            M = 0 where A > 0, pi / proximal > 1 + high, and where A < 0, pi / proximal < 1 - low;   1 elsewhere
            pi / mu = (pi / proximal) (proximal / mu): staleness, times how far trainer and generator disagree
Assumption  as for AIPO. Summing over tokens makes a step's size depend on lengths: clip gradients, keep the batch size.
Degenerate  a group of one, or of equal rewards, has gradient 0. Without the mask it is AIPO with rho = cap, but for the
            reduction; with one update per batch the mask is 1.
Named       `routing`, for mixtures of experts: which experts a token goes to is a choice that flips under rounding and under
            updates. "update" (the paper's R2) replays the choices that the trainer made at the start of the step in its later
            minibatches; "rollout" (R3) those that the generator made when it sampled; "free" neither. Gates come from the
            current router, so gradients reach the scores of the chosen experts. The paper: none is best on-policy, R2 at two
            minibatches, R3 at four or more.
State       none.

Shapes: B trajectories, T action tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses, ratios
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    clip_low: float = 0.2
    """How far below 1 the ratio to the proximal policy may fall for a negative advantage before its gradient stops."""
    clip_high: float = 0.27
    """How far above 1 it may rise for a positive advantage before its gradient stops."""
    cap: float = 5.0
    """Largest importance weight."""
    routing: Literal["free", "update", "rollout"] = "free"
    """Whose choice of experts is replayed, in a mixture of experts."""
    reduction: Reduction = Reduction.SEQUENCE_MEAN_TOKEN_SUM
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {"0 <= clip_low <= 1": 0 <= self.clip_low <= 1, "clip_high >= 0": self.clip_high >= 0, "cap > 0": self.cap > 0}
        check(self, rules)

    def build(self) -> Algorithm:
        return Algorithm(
            name="minirl",
            credit=advantages.credit(advantages.group_mean),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage", "logp_behaviour", "logp_proximal"}),
            group_baseline=True,
            advantage_gates=True,
            routing=self.routing,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, advantage_BT = outputs["logp"], batch["advantage"]
    weight_BT = ratios.truncated(losses.log_ratio(logp_BT, batch["logp_behaviour"]), config.cap)
    u_BT = losses.log_ratio(logp_BT, batch["logp_proximal"])
    masked_BT = losses.beyond(u_BT.exp(), advantage_BT, 1.0 - config.clip_low, 1.0 + config.clip_high)
    loss_BT = losses.score_loss(logp_BT, advantage_BT, weight_BT * ~masked_BT)
    metrics = {"moved": u_BT.abs(), "weight": weight_BT, "ratio/clipped": masked_BT}
    return LossOut(loss_BT, means(batch["mask"], **metrics))
