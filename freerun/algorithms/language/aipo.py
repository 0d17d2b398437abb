"""AIPO: the policy gradient with token importance weights, cut off from above only.

Paper       LlamaRL (arXiv 2505.24034); the truncation is that of V-trace, IMPALA (arXiv 1802.01561).
Estimator   the on-policy token gradient, estimated from a stale sampler; tokens more than `rho` times likelier than then are
            damped.
Equation    loss_t = -sg(min(pi / mu, rho)) A logp_t,   A = r - mean of the group,   mu = the policy that sampled the token
            E_mu[min(pi / mu, rho) A score] = E_pi[min(1, rho mu / pi) A score]: exact but for the damping, at every prefix.
Assumption  prefixes from mu stand for prefixes from pi: the weights of earlier tokens are dropped, a bias that grows with lag
            and length and that no token weight removes.
Degenerate  a group of one, or of equal rewards, has gradient 0. rho = inf is the untruncated importance weight.
Named       `gradient`: "detached" keeps rho A score above rho, as the paper's formula does; "through_min" differentiates
            -min(pi / mu, rho) A, so such tokens have no gradient (cosmos-rl does this). Equal below rho. The paper's entropy
            and KL terms, whose coefficients are not published, are left out, as in prime-rl. It sums over tokens; the mean
            over tokens, the default here, is what public derivatives do.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    rho: float = 4.0
    """Largest importance weight (paper: 2 to 10)."""
    gradient: Literal["detached", "through_min"] = "detached"
    """What a token above `rho` gets: a weight of `rho`, or no gradient."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        check(self, {"rho > 0": self.rho > 0})

    def build(self) -> Algorithm:
        return Algorithm(
            name="aipo",
            credit=advantages.credit(advantages.group_mean),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage", "logp_behaviour"}),
            group_baseline=True,
            advantage_gates=True,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, advantage_BT = outputs["logp"], batch["advantage"]
    u_BT = losses.log_ratio(logp_BT, batch["logp_behaviour"])
    # Truncated before `exp`, so that a huge ratio cannot overflow.
    weight_BT = u_BT.clamp(max=math.log(config.rho)).exp()
    detached = config.gradient == "detached"
    loss_BT = losses.score_loss(logp_BT, advantage_BT, weight_BT) if detached else losses.ratio_loss(weight_BT, advantage_BT)
    return LossOut(loss_BT, means(batch["mask"], **{"weight": weight_BT, "ratio/clipped": u_BT > math.log(config.rho)}))
