"""RED: REINFORCE on data of any policy, with its groups reweighted towards what went well.

Paper       "Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm" (arXiv 2509.24203), its two ways to shape the data.
Estimator   the policy gradient of a data set in which failures are no more than successes (drop), or of one in which each
            response counts by how good it was (weight).
Equation    loss_t = -A logp_t
            drop:    of the responses below the mean, as many as reach it are kept, drawn at random; A = r - mean of the kept,
                     0 for the dropped
            weight:  A = exp((r - mean) / temperature) (r - mean), the exponent cut off at 20
Assumption  none on who sampled: the data is a distribution to improve on, not an estimate of the current policy's.
Degenerate  a group of one, or of equal rewards, has gradient 0 (Trinity-RFT gives a lone survivor its raw reward). A group
            with as many successes as failures drops none; a high temperature weighs all alike: both are then REINFORCE.
Named       `mode`: "drop" and "weight" are the paper's RED-Drop and RED-Weight. Dropped responses stay in the denominator, as
            in Trinity-RFT. What is dropped follows from `seed`, item and prompt alone, so it is the same after a resume and
            at every use of the group.
State       none.

Shapes: B trajectories, T action tokens; G trajectories of a group.
"""

import random
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, CreditFunction, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction
from freerun.types import Batch, Group

NORMALISE = {"none": advantages.group_mean, "population_std": advantages.population_z_score}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    mode: Literal["drop", "weight"] = "drop"
    """How a group is reweighted."""
    temperature: float = 1.0
    """Of the weights: low is greedy."""
    normalise: Literal["none", "population_std"] = "none"
    """What the centred rewards are divided by; with `drop`, the std of those kept."""
    seed: int = 0
    """Of what is dropped."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        check(self, {"temperature > 0": self.temperature > 0})

    def build(self) -> Algorithm:
        weigh = advantages.credit(partial(weighted, config=self))
        credit: CreditFunction = partial(balanced, config=self) if self.mode == "drop" else weigh
        return Algorithm(
            name="red",
            credit=credit,
            terms=(Term(name="policy", loss=policy_loss, reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage"}),
            group_baseline=True,
            advantage_gates=True,
        )


def balanced(group: Group, state: State, *, config: Config) -> tuple[Tensor, State]:
    """Advantages [G] after dropping failures until they are no more than the successes."""
    reward_G = torch.tensor([reward.value for reward in group.rewards], dtype=torch.float64)
    failed_G = advantages.group_mean(reward_G) < 0
    failures = failed_G.nonzero().flatten().tolist()
    surplus = len(failures) - (len(reward_G) - len(failures))
    draw = random.Random(f"{config.seed}/{group.item}/{group.prompt.uid}")
    kept_G = torch.ones_like(failed_G)
    kept_G[draw.sample(failures, max(0, surplus))] = False
    advantage_G = torch.zeros(len(reward_G))
    advantage_G[kept_G] = NORMALISE[config.normalise](reward_G[kept_G])
    return advantage_G, state


def weighted(reward_G: Tensor, *, config: Config) -> Tensor:
    """Advantages [G] times the exponential of themselves. Cut off, because rewards may be any number."""
    advantage_G = NORMALISE[config.normalise](reward_G)
    return (advantage_G / config.temperature).clamp(max=losses.LOG_RATIO_LIMIT).exp() * advantage_G


def policy_loss(outputs: Outputs, batch: Batch, state: State) -> LossOut:
    return LossOut(losses.score_loss(outputs["logp"], batch["advantage"]))
