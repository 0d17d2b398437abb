"""DPO: from pairs of responses to one prompt, make the better one likelier than the worse, measured from a reference policy.

Paper       "Direct preference optimization" (arXiv 2305.18290); `label_smoothing`: Mitchell 2023, "A note on DPO with noisy
            preferences".
Estimator   the gradient of the log-likelihood of the preferences, if rewards are beta log(pi / pi_reference): no reward model,
            and nothing is generated.
Equation    loss = -log sigmoid(m),   m = beta (log(pi / pi_reference)(better) - log(pi / pi_reference)(worse)), mean over pairs
            computed as -sg(beta sigmoid(-m)) logp_t on the better response and its opposite on the worse one
Assumption  preferences follow the Bradley-Terry model; both responses are likely enough under the reference to say something.
Degenerate  a group of one, or of equal rewards, is no pair and has gradient 0. At the reference, m = 0 and the loss is log 2.
Named       pairs: the response of highest reward in a group against that of lowest, the first of equals; a data set of pairs
            has groups of two. Others do not count. `label_smoothing`: 0 is the paper's.
State       the log-ratio between the two responses of each group of the minibatch, from a look before its update, so that the
            gradient is exact although micro-batches may cut a pair; the value of the loss is spread over the pair's tokens.

Shapes: B trajectories, T action tokens, G groups of the step.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, groups, losses
from freerun.ops.reduce import Reduction
from freerun.types import Batch, Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    beta: float = 0.1
    """How strongly the policy is held to the reference: the scale of the rewards that it stands for."""
    label_smoothing: float = 0.0
    """Probability that a preference is the wrong way round."""

    def __post_init__(self) -> None:
        check(self, {"beta > 0": self.beta > 0, "0 <= label_smoothing <= 0.5": 0 <= self.label_smoothing <= 0.5})

    def build(self) -> Algorithm:
        # Each of the two responses carries half of its pair's loss, and their number is that of the denominator.
        term = Term(
            name="pair",
            loss=partial(pair_loss, config=self),
            reduction=Reduction.SEQUENCE_MEAN_TOKEN_SUM,
            mask="mask_selected",
            weight=2.0,
        )
        return Algorithm(
            name="dpo",
            credit=advantages.credit(advantages.group_mean),
            terms=(term,),
            needs=frozenset({"mask_selected", "advantage", "group", "logp_reference"}),
            group_baseline=True,
            advantage_gates=True,
            reinforce_on_policy=False,
            init=lambda: {"margin_G": torch.zeros(0)},
            prepare=prepare,
            uses=frozenset({"mask", "advantage", "group"}),
            makes=frozenset({"mask_selected", "advantage"}),
            probe=probe,
        )


def prepare(batch: Batch, state: State) -> dict[str, Tensor]:
    """An advantage of 1 for the better response of each pair and -1 for the worse; `mask_selected` is True on both."""
    mask_BT, group_B = batch["mask"], batch["group"]
    there_B = mask_BT.any(-1)
    value_B = torch.where(mask_BT, batch["advantage"], 0.0).sum(-1) / mask_BT.sum(-1).clamp(min=1)
    best_B, worst_B = (groups.first_of_the_highest(v, group_B, there_B) for v in (value_B, -value_B))
    sign_BT = torch.where(mask_BT, best_B[:, None].to(value_B.dtype) - worst_B[:, None].to(value_B.dtype), 0.0)
    # Where all rewards are equal, the best is the worst.
    return {"mask_selected": sign_BT != 0, "advantage": sign_BT}


def probe(outputs: Outputs, batch: Batch, state: State) -> State:
    u_BT = outputs["logp"] - batch["logp_reference"]
    u_B = torch.where(batch["mask_selected"], batch["advantage"] * u_BT, 0.0).sum(-1)
    group_B = batch["group"]
    return {"margin_G": u_B.new_zeros(int(group_B.max()) + 1).index_add(0, group_B, u_B)}


def pair_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    mask_BT, sign_BT, wrong = batch["mask_selected"], batch["advantage"], config.label_smoothing
    m_B = config.beta * state["margin_G"][batch["group"]]
    slope_B = (1 - wrong) * torch.sigmoid(-m_B) - wrong * torch.sigmoid(m_B)
    value_B = -(1 - wrong) * F.logsigmoid(m_B) - wrong * F.logsigmoid(-m_B)
    score_BT = losses.score_loss(outputs["logp"], sign_BT, config.beta * slope_B[:, None])
    share_BT = (value_B / 2 / mask_BT.sum(-1).clamp(min=1))[:, None]
    better_B = (mask_BT & (sign_BT > 0)).any(-1)
    sums = torch.stack([m_B[better_B].sum(), (m_B[better_B] > 0).sum(), better_B.sum()]).tolist()
    metrics = {"margin": Mean(sums[0], sums[2]), "accuracy": Mean(sums[1], sums[2])}
    return LossOut(share_BT.detach() + score_BT - score_BT.detach(), metrics)
