"""Supervised fine-tuning: maximum likelihood of the action tokens, as a warm start or on demonstrations.

Paper       behaviour cloning, Pomerleau 1991, "Efficient training of artificial neural networks for autonomous navigation";
            for language models InstructGPT (arXiv 2203.02155, step 1).
Estimator   the gradient of the negative log-likelihood; rewards play no part.
Equation    loss_t = -logp_t
Assumption  every trajectory in the batch is worth imitating.
Degenerate  a group of one is as good as any other.
Named       `reduction`: most code means over tokens, so long responses weigh more; sequence_mean_token_mean weighs responses
            equally.
State       none.

Shapes: G trajectories of a group, B of a batch, T action tokens.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        check(self, {})

    def build(self) -> Algorithm:
        term = Term(name="nll", loss=partial(nll_loss, config=self), reduction=Reduction(self.reduction))
        return Algorithm(name="sft", credit=credit, terms=(term,), needs=frozenset({"mask"}), reinforce_on_policy=False)


def credit(group: Group, state: State) -> tuple[Tensor, State]:
    """Every demonstration counts the same, whatever its reward: ones [G], which no term reads."""
    return torch.ones(len(group.trajectories)), state


def nll_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    loss_BT = losses.nll(outputs["logp"])
    return LossOut(loss_BT, means(batch["mask"], nll=loss_BT))
