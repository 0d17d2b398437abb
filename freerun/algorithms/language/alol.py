"""A-LoL: offline policy gradient that treats a response as one action and learns only from those better than expected.

Paper       "Leftover Lunch: Advantage-based Offline RL for Language Models" (arXiv 2305.14718); wBC: weighted cloning.
Estimator   the policy gradient on a fixed data set, its importance weight taken to the reference policy in place of the
            unknown author.
Equation    loss_t = -sg(w A) logp_t + beta (logp_t - log ref_t),   A = max(R - V_ref(x), 0),   V_ref(x) = E_ref[R]
            w: response  clip(exp(sum over t of log pi / ref), 1 - c, 1 + c);   token  clip(pi / ref, 1 - c, 1 + c);   none  1
Assumption  the reference is near the policy that wrote the data (it was fine-tuned on it), and V_ref holds for the prompts.
Degenerate  a data set without a response above V_ref has gradient 0. At pi = ref, and beta = 0, all weights are 1: fine-tuning
            weighted by A. The product of clipped token weights is not the clipped weight of the response.
Named       `ratio`: "response" is A-LoL, "token" A-LoL seq., "none" A-LoL ref-free. A-LoL KL: `kl_coefficient` > 0, with
            "none" in the paper, times the ratio in the code unless its clip is 0. R-LoL: `signal` "reward"; wBC: "reward" and
            "none"; neither reads V_ref. `clip`: 0.9 in the code's script for dialogues, no bound in its others.
            "squared_advantage": the dialogue script draws responses in proportion to A and multiplies their loss by A, so that
            each counts A^2; this is that weight under uniform draws, and what the paper wants is not clear. Leaving responses
            without advantage out, or drawing by A, is decided where the data is (`reference_value.select` of a run).
State       none; V_ref is fitted before the run and then fixed.

Shapes: B responses, T action tokens.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.ratios import sequence_log_ratio
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    ratio: Literal["response", "token", "none"] = "response"
    """The importance weight to the reference policy."""
    clip: float | None = 0.9
    """How far from 1 a weight may be; none: no bound."""
    signal: Literal["advantage", "squared_advantage", "reward"] = "advantage"
    """What a response counts."""
    kl_coefficient: float = 0.0
    """Weight of the log-ratio to the reference on the data."""
    reduction: Reduction = Reduction.SEQUENCE_MEAN_TOKEN_SUM
    """How token losses become one number; the paper's is the default."""

    def __post_init__(self) -> None:
        rules = {"clip >= 0": self.clip is None or self.clip >= 0, "kl_coefficient >= 0": self.kl_coefficient >= 0}
        check(self, rules)

    def build(self) -> Algorithm:
        needs = {"mask", "reward"}
        if self.ratio != "none" or self.kl_coefficient > 0:
            needs.add("logp_reference")
        if self.signal != "reward":
            needs.add("value_reference")
        term = Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction))
        return Algorithm(
            name="alol",
            credit=advantages.credit(advantages.raw),
            terms=(term,),
            needs=frozenset(needs),
            reinforce_on_policy=False,
        )


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, mask_BT = outputs["logp"], batch["mask"]
    signal_B1 = batch["reward"][:, None]
    if config.signal != "reward":
        signal_B1 = (signal_B1 - batch["value_reference"][:, None]).clamp(min=0.0)
    metrics = {"advantage": signal_B1.expand_as(logp_BT), "above_value": (signal_B1 > 0).expand_as(logp_BT)}
    if config.signal == "squared_advantage":
        signal_B1 = signal_B1.square()
    weight_BT: Tensor = torch.ones_like(logp_BT)
    if config.ratio != "none":
        weight_BT = importance(logp_BT.detach(), batch["logp_reference"], mask_BT, config=config)
        metrics["weight"] = weight_BT
    loss_BT = losses.score_loss(logp_BT, signal_B1, weight_BT)
    if config.kl_coefficient > 0:
        u_BT = losses.log_ratio(logp_BT, batch["logp_reference"])
        loss_BT = loss_BT + config.kl_coefficient * u_BT
        metrics["kl/reference"] = u_BT
    return LossOut(loss_BT, means(mask_BT, **metrics))


def importance(logp_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, *, config: Config) -> Tensor:
    """The clipped weight of each token [B, T]."""
    u_BT = losses.log_ratio(logp_BT, reference_BT)
    if config.ratio == "response":
        sum_B1 = sequence_log_ratio(u_BT, mask_BT, mean=False)
        u_BT = sum_B1.clamp(max=losses.LOG_RATIO_LIMIT).expand_as(u_BT)
    low, high = (0.0, math.inf) if config.clip is None else (max(0.0, 1.0 - config.clip), 1.0 + config.clip)
    return u_BT.exp().clamp(low, high)
