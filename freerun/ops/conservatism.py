"""Values that are pushed down where the data has no actions: what CQL, Cal-QL and methods that build on them share.

Shapes: B rows, M critics, K actions per state, A width of a continuous action.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from freerun.ops.distributions import Distribution, repeated
from freerun.ops.values import conservative_gap


class Proposals(NamedTuple):
    """Actions at which values are looked at: `action_KBA`, and the log of the density with which each was drawn, `[K, B]`. The
    first `uniform` of the K come from no policy."""

    action_KBA: Tensor
    log_density_KB: Tensor
    uniform: int


def next_seen(obs_B: Tensor, next_obs_B: Tensor, discount_B: Tensor) -> Tensor:
    """The next observation, and the present one where the task ended: there what is recorded as the next one is anything."""
    goes_on_B = (discount_B > 0).view(-1, *[1] * (obs_B.dim() - 1))
    return torch.where(goes_on_B, next_obs_B, obs_B)


@torch.no_grad()
def proposals(
    policy: Callable[[Tensor], Distribution], obs_B: Tensor, next_obs_B: Tensor, num: int, generator: Generator
) -> Proposals:
    """`num` actions each from the uniform distribution over [-1, 1], from the policy at the state and from the policy at the
    next state: K is three times `num`. Without gradient."""
    here_KBA, logp_KB = repeated(policy(obs_B), num).sample(generator)
    next_KBA, next_logp_KB = repeated(policy(next_obs_B), num).sample(generator)
    uniform_KBA = torch.rand(here_KBA.shape, generator=generator, device=here_KBA.device) * 2.0 - 1.0
    density_KB = torch.full_like(logp_KB, -here_KBA.shape[-1] * math.log(2.0))
    # A policy without bounds is played clipped; the density stays that of what was drawn.
    actions = torch.cat([uniform_KBA, here_KBA, next_KBA]).clamp(-1.0, 1.0)
    return Proposals(actions, torch.cat([density_KB, logp_KB, next_logp_KB]), num)


def calibrated(value_MKB: Tensor, floor_B: Tensor, uniform: int) -> Tensor:
    """Values of proposals, those of policies nowhere below `floor` (Cal-QL, arXiv 2303.05479): where the floor decides, nothing
    is pushed down. Where the floor is not known, NaN, the values stay as they are."""
    floored_MKB = torch.fmax(value_MKB[:, uniform:], floor_B.detach())
    return torch.cat([value_MKB[:, :uniform], floored_MKB], 1)


def gap(value_MKB: Tensor, drawn: Proposals, data_MB: Tensor) -> Tensor:
    """How far the values of all actions, softly the largest, are above those of the data's actions, for each critic: [M, B]
    (CQL(H), arXiv 2006.04779, eq. 4). `value_MKB` are those of `drawn`."""
    return conservative_gap(value_MKB.transpose(0, 1), drawn.log_density_KB.unsqueeze(1), data_MB)


def held_to(gap_MB: Tensor, wanted: float, log_weight: Tensor) -> Tensor:
    """The gap's loss [B] where its weight is learned (CQL with a Lagrange multiplier): the critics see
    `weight (gap - wanted)` with the weight held still, and the weight grows as long as the gap is larger than wanted."""
    weight, excess_MB = log_weight.exp().clamp(max=1e6), gap_MB - wanted
    return (weight.detach() * excess_MB - weight * excess_MB.detach()).sum(0)
