"""Returns to go of what actors play: known when an episode is over, and then written beside its rows.

Shapes: T steps of a chunk, N environments, E rows of an episode.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freerun.ops.values import returns_to_go
from freerun.trainer.storage import Storage

COLUMN = "mc_return"


class Open(NamedTuple):
    """An episode under way: its number, and the positions of its rows."""

    episode: int
    positions: list[int]


class Returns:
    """Keeps, for each stream of each actor, where the rows of the episode under way are. Rows of an episode that is not over,
    or whose end was lost with its actor, have the return NaN."""

    def __init__(self, gamma: float) -> None:
        self._gamma = gamma
        self._open: dict[tuple[int, int], Open] = {}

    def unknown(self, columns_TN: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The chunk with a column for its returns."""
        return {**columns_TN, COLUMN: torch.full_like(columns_TN["reward"], math.nan)}

    def inserted(self, storage: Storage, actor: int, columns_TN: Mapping[str, Tensor]) -> None:
        """The chunk is the last that `storage` has taken: write the returns of the episodes that ended in it."""
        steps, envs = columns_TN["reward"].shape
        episode_TN = columns_TN["episode"].tolist()
        over_TN = (columns_TN["terminated"] | columns_TN["truncated"]).tolist()
        first = storage.total - steps * envs
        for n in range(envs):
            for t in range(steps):
                going = self._open.get((actor, n))
                if going is None or going.episode != episode_TN[t][n]:
                    going = self._open[actor, n] = Open(episode_TN[t][n], [])
                going.positions.append(first + t * envs + n)
                if over_TN[t][n]:
                    self._write(storage, going.positions)
                    del self._open[actor, n]

    def _write(self, storage: Storage, positions: list[int]) -> None:
        # An episode that is longer than the storage has lost its beginning; the return from any later row is still whole.
        kept = [position for position in positions if position >= storage.total - storage.capacity]
        place_E = torch.tensor(kept) % storage.capacity
        storage.columns[COLUMN][place_E] = returns_to_go(storage.columns["reward"][place_E], self._gamma)

    def state(self) -> list[list[Any]]:
        return [[*key, going.episode, going.positions] for key, going in self._open.items()]

    def load(self, state: list[list[Any]]) -> None:
        """Undo `state`."""
        self._open = {(actor, n): Open(episode, list(positions)) for actor, n, episode, positions in state}
