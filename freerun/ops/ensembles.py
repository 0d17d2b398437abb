"""What several critics of the same action say together: their least, in part or whole, and how alike their slopes are.

Shapes: M members of an ensemble, B rows (any leading dimensions), A width of a continuous action.
"""

import torch
from torch import Generator, Tensor


def least_of_some(value_MB: Tensor, num: int, generator: Generator) -> Tensor:
    """The least value of `num` members that are drawn at random for the whole batch, without replacement (REDQ, arXiv
    2101.05982). With as many as there are, or more, nothing is drawn."""
    if num >= len(value_MB):
        return value_MB.amin(0)
    chosen_K = torch.randperm(len(value_MB), generator=generator, device=value_MB.device)[:num]
    return value_MB[chosen_K].amin(0)


def likeness(slope_MBA: Tensor) -> Tensor:
    """Of the slopes `dQ_i/da`, the sum over ordered pairs of different members of their cosine, over `M - 1`: [B], from `M` for
    slopes that all point the same way down to `-M / (M - 1)` (EDAC, arXiv 2110.01548). It takes two members."""
    num = len(slope_MBA)
    unit_MBA = slope_MBA / (slope_MBA.norm(dim=-1, keepdim=True) + 1e-10)
    # The sum over all pairs is the square of the sum; a member with itself has the square of its own length.
    pairs_B = unit_MBA.sum(0).square().sum(-1) - unit_MBA.square().sum((0, -1))
    mean_B: Tensor = pairs_B / (num - 1)
    return mean_B
