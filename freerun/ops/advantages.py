"""Baselines: from the rewards of one group to the credit of its trajectories.

Shapes: G trajectories of a group. Advantages are float32 [G], computed in float64: the mean of equal rewards is then not off by
a rounding error that a division by `eps` would blow up. Functions that compare siblings give exactly 0 to a group of one and to
a group of equal rewards: there is nothing to compare. (verl gives a group of one its raw reward.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freerun.types import Group


def group_mean(reward_G: Tensor) -> Tensor:
    """`r_i - mean(r)`. Dr.GRPO (arXiv 2503.20783), LlamaRL (arXiv 2505.24034)."""
    return _centred(reward_G).float()


def leave_one_out(reward_G: Tensor) -> Tensor:
    """`r_i - mean of the others`, which is `K / (K - 1) * (r_i - mean(r))`: unbiased. RLOO (arXiv 2402.14740)."""
    num = reward_G.numel()
    return (_centred(reward_G) * num / max(num - 1, 1)).float()


def z_score(reward_G: Tensor, *, eps: float = 1e-6) -> Tensor:
    """`(r_i - mean(r)) / (std(r) + eps)` with the std that divides by `K - 1`. GRPO (arXiv 2402.03300) as in verl."""
    return _standardised(reward_G, max(reward_G.numel() - 1, 1), eps)


def population_z_score(reward_G: Tensor, *, eps: float = 1e-6) -> Tensor:
    """As `z_score`, with the std that divides by `K`, as in Trinity-RFT."""
    return _standardised(reward_G, reward_G.numel(), eps)


def log_average_exp(reward_G: Tensor, *, temperature: float) -> Tensor:
    """`r_i - t log(mean(exp(r / t)))`, t the temperature: from the best reward (t to 0) to the mean (t to infinity)."""
    scaled_G = _centred(reward_G) / temperature
    highest = scaled_G.max()
    return (temperature * (scaled_G - highest - (scaled_G - highest).exp().mean().log())).float()


def raw(reward_G: Tensor) -> Tensor:
    """The reward itself: no baseline."""
    return reward_G.float()


def credit(advantage: Callable[[Tensor], Tensor]) -> Callable[[Group, Any], tuple[Tensor, Any]]:
    """The stateless credit function that applies `advantage` to the rewards of a group."""

    def group_credit(group: Group, state: Any) -> tuple[Tensor, Any]:
        return advantage(torch.tensor([reward.value for reward in group.rewards], dtype=torch.float64)), state

    return group_credit


def _centred(reward_G: Tensor) -> Tensor:
    reward_G = reward_G.double()
    return torch.where(reward_G.max() == reward_G.min(), 0.0, reward_G - reward_G.mean())


def _standardised(reward_G: Tensor, degrees: int, eps: float) -> Tensor:
    centred_G = _centred(reward_G)
    return (centred_G / ((centred_G.square().sum() / degrees).sqrt() + eps)).float()
