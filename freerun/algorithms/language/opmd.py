"""OPMD: policy mirror descent on responses of an earlier policy, its partition function estimated from their siblings.

Paper       Kimi k1.5 (arXiv 2501.12599); the pairwise form is that of arXiv 2509.24203.
Estimator   the gradient of a regression: log(pi / old) of a response is to be (r - baseline) / tau. No importance weight: the
            solution is right for every response, whoever sampled it.
Equation    loss = -sg(A - tau (s - c)) log pi(y),   s = log(pi / old) of the response,   A = r - baseline of its group
            kimi      c = 0:  the gradient of -A log pi(y) + (tau / 2) s^2
            pairwise  c = mean of s over the group, before each optimiser step: the gradient of Lhat / (2 tau), where
                      Lhat = (1 / K^2) sum over pairs (a_i - a_j)^2,  a_i = r_i - tau s_i
            simple    -A log pi(y) / (1 + tau), with no s
Assumption  old is the policy that the surrogate E[r] - tau KL(pi || old) is anchored to. It need not have sampled the data.
Degenerate  at pi = old this is REINFORCE (simple: divided by 1 + tau). A group of one, or of equal rewards, is pulled to old
            and nothing else. On data that stays the same, pi ends near old exp(r / tau).
Named       `form`: "kimi" is the paper's, "simple" Trinity-RFT's (its tau is 1), "pairwise" needs no estimate of a baseline.
            `penalty`: "sequence" is the paper's s, "token" the token's own log-ratio, as in ROLL and Trinity-RFT.
            `baseline`: "group_mean" is the paper's, "log_average_exp" tau log mean exp(r / tau), which the mean approximates.
            `forget_moments`: the paper starts every iteration, which is many optimiser steps there, with a new optimiser; with
            one step per batch Adam would be left with nothing but signs, so it is off. The paper's tau is not published.
State       pairwise: the mean log-ratio of each group, looked up before each optimiser step.

Shapes: B trajectories, T action tokens, N groups of a step.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses, ratios
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch

OLD = {"behaviour": "logp_behaviour", "recomputed": "logp_proximal"}
CENTRE = "mean_log_ratio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    form: Literal["kimi", "pairwise", "simple"] = "kimi"
    """Which surrogate."""
    tau: float = 0.1
    """Strength of the pull towards the old policy, in rewards per nat."""
    penalty: Literal["sequence", "token"] = "sequence"
    """Whether the log-ratio of the response or that of the token is penalised."""
    baseline: Literal["group_mean", "log_average_exp"] = "group_mean"
    """What is subtracted from a response's reward."""
    old: Literal["behaviour", "recomputed"] = "behaviour"
    """The policy that log-ratios are taken to."""
    forget_moments: bool = False
    """Begin every step with an optimiser that has no history."""
    reduction: Reduction = Reduction.SEQUENCE_MEAN_TOKEN_SUM
    """How token losses become one number."""

    def __post_init__(self) -> None:
        plain = self.form != "pairwise" or (self.penalty, self.baseline) == ("sequence", "group_mean")
        check(self, {"tau > 0": self.tau > 0, "the pairwise form has the penalty sequence and the baseline group_mean": plain})

    def build(self) -> Algorithm:
        average = partial(advantages.log_average_exp, temperature=self.tau)
        pairwise, compares = self.form == "pairwise", self.form != "simple"
        needs = {"mask", "advantage"} | ({OLD[self.old]} if compares else set()) | ({"group"} if pairwise else set())
        return Algorithm(
            name="opmd",
            credit=advantages.credit(average if self.baseline == "log_average_exp" else advantages.group_mean),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset(needs),
            group_baseline=True,
            advantage_gates=not compares,
            reinforce_on_policy=compares,
            init=no_centres if pairwise else dict,
            probe=partial(group_centres, config=self) if pairwise else None,
            forget_moments=self.forget_moments,
        )


def no_centres() -> State:
    return {CENTRE: torch.zeros(0)}


def group_centres(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> State:
    """The mean over each group's responses of their log-ratio now."""
    s_B = response_log_ratio(outputs["logp"], batch, config).squeeze(-1).detach()
    group_B, responded_B = batch["group"], batch["mask"].any(-1)
    total_N = s_B.new_zeros(int(group_B.max()) + 1)
    num_N = total_N.index_add(0, group_B, responded_B.to(s_B.dtype))
    return {CENTRE: total_N.index_add(0, group_B, s_B) / num_N.clamp(min=1.0)}


def response_log_ratio(logp_BT: Tensor, batch: Batch, config: Config) -> Tensor:
    u_BT = losses.log_ratio(logp_BT, batch[OLD[config.old]])
    return ratios.sequence_log_ratio(u_BT, batch["mask"], mean=False)


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    logp_BT, advantage_BT = outputs["logp"], batch["advantage"]
    if config.form == "simple":
        return LossOut(losses.score_loss(logp_BT, advantage_BT, 1.0 / (1.0 + config.tau)))
    if config.penalty == "token":
        s_BT = losses.log_ratio(logp_BT, batch[OLD[config.old]])
    else:
        s_BT = response_log_ratio(logp_BT, batch, config).expand_as(logp_BT)
    if config.form == "pairwise":
        s_BT = s_BT - state[CENTRE][batch["group"]][:, None]
    loss_BT = losses.score_loss(logp_BT, advantage_BT - config.tau * s_BT)
    return LossOut(loss_BT, means(batch["mask"], squared_log_ratio=s_BT.square()))
