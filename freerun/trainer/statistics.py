"""Running means and deviations of what was collected, for networks that see normalised observations and scaled rewards.

Shapes: R rows, T steps of a chunk, N environments.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LEAST = 1e-3
"""Smallest deviation of an observation: a constant one stays what it is, times a thousand."""


class Running:
    """Mean and variance of all rows so far, merged batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = torch.zeros(())
        self.square = torch.zeros(())

    def add(self, value_R: Tensor) -> None:
        value_R = value_R.double()
        num, mean = len(value_R), value_R.mean(0)
        square = (value_R - mean).square().sum(0)
        total, gap = self.count + num, mean - self.mean
        self.square = self.square + square + gap.square() * (self.count * num / total)
        self.mean, self.count = self.mean + gap * (num / total), total

    @property
    def std(self) -> Tensor:
        """Of the population; ones before the second row."""
        return (self.square / self.count).sqrt() if self.count > 1 else torch.ones_like(self.mean)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and a deviation to divide by, in single precision."""
        return self.mean.float(), (self.std + LEAST).float()

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load(self, state: Mapping[str, Any]) -> None:
        self.count, self.mean, self.square = state["count"], state["mean"], state["square"]


class RewardScale:
    """Rewards divided by the running deviation of the discounted return so far, stream by stream."""

    def __init__(self, gamma: float) -> None:
        self._gamma, self._running, self._so_far = gamma, Running(), dict[int, Tensor]()

    def scaled(self, actor: int, reward_TN: Tensor, ended_TN: Tensor) -> Tensor:
        """The rewards of a chunk, scaled by everything up to its end."""
        so_far_N = self._so_far.get(actor)
        if so_far_N is None or len(so_far_N) != reward_TN.shape[1]:
            so_far_N = torch.zeros_like(reward_TN[0])
        sums_TN = torch.empty_like(reward_TN)
        for t in range(len(reward_TN)):
            so_far_N = so_far_N * self._gamma + reward_TN[t]
            sums_TN[t] = so_far_N
            so_far_N = torch.where(ended_TN[t], 0.0, so_far_N)
        self._so_far[actor] = so_far_N
        self._running.add(sums_TN.flatten())
        return reward_TN / (self._running.std.float() + 1e-8)

    def state(self) -> dict[str, Any]:
        return {"running": self._running.state(), "so_far": [[actor, value] for actor, value in self._so_far.items()]}

    def load(self, state: Mapping[str, Any]) -> None:
        self._running.load(state["running"])
        self._so_far = dict(state["so_far"])
