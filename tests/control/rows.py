"""Chunks of rows made by hand."""

import torch
from torch import Tensor

GAMMA = 0.5


def chunk(
    rewards: list[list[float]], *, episodes: list[list[int]], steps: list[list[int]], ends: str = ""
) -> dict[str, Tensor]:
    """Columns of a chunk whose observations are its rewards. The last step of every episode that another one follows is
    "terminated" or "truncated", as `ends` says."""
    reward_TN, episode_TN = torch.tensor(rewards, dtype=torch.float32), torch.tensor(episodes)
    over_TN = torch.zeros_like(episode_TN, dtype=torch.bool)
    over_TN[:-1] = episode_TN[1:] != episode_TN[:-1]
    none_TN = torch.zeros_like(over_TN)
    return {
        "obs": reward_TN[..., None],
        "action": reward_TN[..., None],
        "next_obs": reward_TN[..., None] + 0.5,
        "reward": reward_TN,
        "terminated": over_TN if ends == "terminated" else none_TN,
        "truncated": over_TN if ends == "truncated" else none_TN,
        "episode": episode_TN,
        "step": torch.tensor(steps, dtype=torch.int32),
        "version": torch.zeros_like(episode_TN),
    }


def column(*values: float) -> list[list[float]]:
    return [[value] for value in values]
