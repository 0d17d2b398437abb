"""Two short episodes that were recorded, for tests of data sets."""

import torch

from freerun.datasets.base import Episodes

LENGTHS = (3, 2)
"""Of the two episodes: the first terminates, the second is cut."""


def columns() -> dict[str, torch.Tensor]:
    """Two episodes whose observations count."""
    seen = torch.arange(7.0)
    first, after = torch.tensor([0, 1, 2, 4, 5]), torch.tensor([1, 2, 3, 5, 6])
    ended, cut = torch.zeros(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)
    ended[2] = cut[4] = True
    return {
        "obs": seen[first][:, None],
        "next_obs": seen[after][:, None],
        "action": torch.tensor([[0.5], [-0.5], [1.0], [-1.0], [0.0]]),
        "reward": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
        "terminated": ended,
        "truncated": cut,
        "episode": torch.tensor([0, 0, 0, 1, 1]),
        "step": torch.tensor([0, 1, 2, 0, 1], dtype=torch.int32),
    }


def episodes(**changed: torch.Tensor) -> Episodes:
    return Episodes(name="two", columns=columns() | changed)


def same(a: Episodes, b: Episodes, names: tuple[str, ...] = tuple(columns())) -> bool:
    return all(torch.equal(a.columns[name], b.columns[name]) for name in names)
