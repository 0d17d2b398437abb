"""From element-wise losses to a gradient: weights per element, and the one global denominator.

Shapes: B trajectories, T action tokens. A reduction is a pair (element weights, count); the loss of a step is
`sum over micro-batches of sum(weight * loss)  /  sum over micro-batches of count`, divided once, by the trainer. So the
gradient depends neither on how a step was cut into micro-batches nor on the number of ranks. The constant of Dr.GRPO's sum is
a term's `weight`.

Sources of the names: verl `agg_loss`, Dr.GRPO (arXiv 2503.20783), SkyRL; see `docs/algorithms.md`.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from freerun.types import Mean

NO_COLUMNS: Mapping[str, Tensor] = MappingProxyType({})


class Reduction(enum.StrEnum):
    """How element-wise losses become one number."""

    TOKEN_MEAN = "token_mean"
    """Sum over all tokens of the step, divided by their number: every token weighs the same."""
    SEQUENCE_MEAN_TOKEN_MEAN = "sequence_mean_token_mean"
    """Mean inside each trajectory, then mean over trajectories that have tokens."""
    SEQUENCE_MEAN_TOKEN_SUM = "sequence_mean_token_sum"
    """Sum inside each trajectory, then mean over trajectories that have tokens."""
    PROMPT_MEAN = "prompt_mean"
    """Mean over the tokens of each group, then mean over groups: every prompt weighs the same, however long its responses."""

    @property
    def columns(self) -> frozenset[str]:
        """Batch columns, besides the mask, that it reads."""
        return frozenset({"group_tokens"} if self is Reduction.PROMPT_MEAN else ())


def element_weights(mask_BT: Tensor, reduction: Reduction, batch: Mapping[str, Tensor] = NO_COLUMNS) -> Tensor:
    """Weight of each element [B, T], float32; exactly 0 where `mask_BT` is False. `batch` has the columns that the reduction
    names: a micro-batch may hold a part of a group, and cannot count its tokens."""
    mask = mask_BT.float()
    if reduction is Reduction.SEQUENCE_MEAN_TOKEN_MEAN:
        return mask / mask.sum(-1, keepdim=True).clamp(min=1.0)
    if reduction is Reduction.PROMPT_MEAN:
        return mask / batch["group_tokens"][:, None].clamp(min=1)
    return mask


def count(mask_BT: Tensor, reduction: Reduction, batch: Mapping[str, Tensor] = NO_COLUMNS) -> Tensor:
    """This micro-batch's share of the global denominator, a scalar. Trajectories without tokens do not count."""
    if reduction is Reduction.TOKEN_MEAN:
        return mask_BT.sum().float()
    if reduction is Reduction.PROMPT_MEAN:
        return element_weights(mask_BT, reduction, batch).sum()
    return mask_BT.any(-1).sum().float()


def weighted_sum(loss_BT: Tensor, weight_BT: Tensor) -> Tensor:
    """`sum(weight * loss)` in which elements of weight 0 contribute exactly nothing, to the value and to the gradient, even
    where their loss is not finite."""
    return torch.where(weight_BT > 0, loss_BT * weight_BT, loss_BT.new_zeros(())).sum()


def means(mask_BT: Tensor, **value_BT: Tensor) -> dict[str, Mean]:
    """The masked mean of each named value as a detached record of sum and count; one transfer from the device for all."""
    zero = torch.zeros((), device=mask_BT.device)
    sums = [torch.where(mask_BT, value.detach().float(), zero).sum() for value in value_BT.values()]
    *totals, num = torch.stack([*sums, mask_BT.sum().float()]).tolist()
    return {name: Mean(total, num) for name, total in zip(value_BT, totals, strict=True)}
