"""Comparing the trajectories of a group in the columns of a batch, after it was formed: by what a network says of them.

Shapes: B trajectories. `group_B` is the column of group indices, `there_B` is True for trajectories that count (those that have
tokens). Results are 0 or False for the others.
"""

import torch
from torch import Tensor


def leave_one_out(value_B: Tensor, group_B: Tensor, there_B: Tensor) -> Tensor:
    """`v_i - mean of the others`; 0 for a group of one."""
    value_B = torch.where(there_B, value_B, 0.0)
    num_B, total_B = _sums(there_B.to(value_B.dtype), group_B), _sums(value_B, group_B)
    others_B = (total_B - value_B) / (num_B - 1).clamp(min=1)
    return torch.where(there_B & (num_B > 1), value_B - others_B, 0.0)


def first_of_the_highest(value_B: Tensor, group_B: Tensor, there_B: Tensor) -> Tensor:
    """True for one trajectory of each group: the one of the highest value, the earliest of equals."""
    earlier_BB = torch.ones(len(value_B), len(value_B), dtype=torch.bool, device=value_B.device).tril(-1)
    ahead_BB = (value_B > value_B[:, None]) | ((value_B == value_B[:, None]) & earlier_BB)
    return there_B & ~(_siblings(group_B, there_B) & ahead_BB).any(-1)


def highest(value_B: Tensor, group_B: Tensor, there_B: Tensor, share: float) -> Tensor:
    """True for the `ceil(share * n)` trajectories of highest value in each group of n, and for all that equal the last of
    them."""
    siblings_BB = _siblings(group_B, there_B)
    num_higher_B = (siblings_BB & (value_B > value_B[:, None])).sum(-1)
    # 0.8 * 15 is 12.000000000000002.
    wanted_B = (share * siblings_BB.sum(-1).double() - 1e-9).ceil()
    return there_B & (num_higher_B < wanted_B)


def _siblings(group_B: Tensor, there_B: Tensor) -> Tensor:
    """True at [i, j] if j is in the group of i and counts."""
    return (group_B == group_B[:, None]) & there_B


def _sums(value_B: Tensor, group_B: Tensor) -> Tensor:
    """Each trajectory's sum over its group."""
    num = int(group_B.max()) + 1 if group_B.numel() else 0
    return value_B.new_zeros(num).index_add(0, group_B, value_B)[group_B]
