"""PEAR: supervised fine-tuning in which a token counts as much as the policy is likely to follow what comes after it.

Paper       "Good SFT Optimizes for SFT, Better SFT Prepares for RL" (arXiv 2602.01058).
Estimator   the likelihood gradient of demonstrations, each token weighted by the importance weight of the rest of its
            response: the expected loss under the policy's own continuations instead of the author's.
Equation    loss_t = -sg(G_t) logp_t,   d_t = log pi - log beta, cut off at `low` and `high`,   beta = the author
            block     G_t = gamma^(T - e) exp(sum over j > e of d_j),   e = last token of the block of t
            token     the same with blocks of one;   sequence   G_t = exp(sum over all j of d_j)
            log G is cut off at `log_low` and `log_high`. E_beta[exp(sum over j > t of log pi / beta)] = 1 without bounds.
Assumption  the author's log-probs are known, for these very tokens: another template or tokenizer gives other weights.
Degenerate  pi = beta leaves gamma^(T - e). A block as long as the response weighs 1: supervised fine-tuning. The last token
            (block) of every response weighs 1.
Named       `form`: "block" of 4 is what the paper's experiments use. No official code is known; this follows a published
            reading of the paper's algorithm. Its bounds on d are lopsided, so weights grow faster than they shrink; log G is
            bounded with gamma in it. It divides by the number of tokens, as `reduction` does by default.
State       none.

Shapes: B responses, T action tokens, K blocks of a response.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    form: Literal["block", "token", "sequence"] = "block"
    """What a weight looks at: what follows the token's block, what follows the token, or the whole response."""
    block: int = 4
    """Tokens of a block."""
    gamma: float = 0.999
    """Discount per token between a block and the end of the response."""
    low: float = -0.08
    """Least log-ratio of a token; -inf is no bound."""
    high: float = 0.3
    """Largest log-ratio of a token; inf is no bound."""
    log_low: float = -10.0
    """Least logarithm of a weight."""
    log_high: float = 5.0
    """Largest logarithm of a weight."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {
            "block >= 1": self.block >= 1,
            "0 < gamma <= 1": 0 < self.gamma <= 1,
            "low <= 0 <= high": self.low <= 0 <= self.high,
            "log_low <= 0 <= log_high": self.log_low <= 0 <= self.log_high,
        }
        check(self, rules)

    def build(self) -> Algorithm:
        term = Term(name="nll", loss=partial(nll_loss, config=self), reduction=Reduction(self.reduction))
        needs = frozenset({"mask", "logp_behaviour"})
        return Algorithm(name="pear", credit=credit, terms=(term,), needs=needs, reinforce_on_policy=False)


def credit(group: Group, state: State) -> tuple[Tensor, State]:
    """Every demonstration counts the same, whatever its reward: ones [G], which no term reads."""
    return torch.ones(len(group.trajectories)), state


def nll_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, mask_BT = outputs["logp"], batch["mask"]
    log_ratio_BT = losses.log_ratio(logp_BT.detach(), batch["logp_behaviour"])
    weight_BT = log_weight(log_ratio_BT, mask_BT, config=config).exp()
    nll_BT = losses.nll(logp_BT)
    return LossOut(weight_BT.detach() * nll_BT, means(mask_BT, nll=nll_BT, weight=weight_BT))


def log_weight(log_ratio_BT: Tensor, mask_BT: Tensor, *, config: Config) -> Tensor:
    """`log G` [B, T]. Tokens outside the mask neither count as positions nor add to any sum; there it means nothing."""
    d_BT = torch.where(mask_BT, log_ratio_BT.clamp(config.low, config.high), 0.0)
    length_B1 = mask_BT.sum(-1, keepdim=True)
    if config.form == "sequence":
        log_BT = d_BT.sum(-1, keepdim=True).expand_as(d_BT)
    else:
        size = 1 if config.form == "token" else config.block
        block_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0) // size
        sums_BK = torch.zeros_like(d_BT).scatter_add(-1, block_BT, d_BT)
        after_BK = sums_BK.flip(-1).cumsum(-1).flip(-1) - sums_BK
        left_BT = (length_B1 - (block_BT + 1) * size).clamp(min=0)
        log_BT = after_BK.gather(-1, block_BT) + left_BT * math.log(config.gamma)
    return log_BT.clamp(config.log_low, config.log_high)
