"""Which rows of a storage come next, for a whole batch at a time. The same choices as the store's selectors, of rows in place
of items: the configs are theirs.

Shapes: B rows that are drawn, L leaves of a tree.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from freerun.errors import ConfigError
from freerun.store.selectors import Prioritised, Recency, SelectorConfig, Uniform
from freerun.trainer.storage import Storage

FLOOR = 1e-6
"""Added to a priority, so that no row is lost for ever."""


class Sampler(Protocol):
    """Draws places of live rows, with replacement."""

    def draw(self, storage: Storage, num: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """`num` places, and the probability of each row relative to the uniform one; None if it is 1."""
        ...

    def inserted(self, place_B: Tensor) -> None:
        """Rows were written to these places."""
        return None

    def surprised(self, place_B: Tensor, surprise_B: Tensor) -> None:
        """So far off were these rows when they were last trained on."""
        return None

    def state(self) -> Mapping[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        return None


def sampler_of(config: SelectorConfig, capacity: int) -> Sampler:
    """The sampler that does with rows what `config` does with items. Raises `ConfigError` if there is none."""
    match config:
        case Uniform():
            return Newest(None)
        case Recency(last):
            return Newest(last)
        case Prioritised(exponent):
            return ByPriority(exponent, capacity)
    raise ConfigError(
        "rows of a storage cannot be drawn like this",
        given=config,
        expected="Uniform, Recency or Prioritised",
        todo="change the source's `sampler` in the recipe",
    )


class Newest(Sampler):
    """Uniform over the `last` newest live rows, or over all."""

    def __init__(self, last: int | None) -> None:
        self._last = last

    def draw(self, storage: Storage, num: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        low = storage.first if self._last is None else max(storage.first, storage.total - self._last)
        position_B = torch.randint(low, storage.total, (num,), generator=generator)
        return position_B if storage.total <= storage.capacity else position_B.remainder_(storage.capacity), None


class ByPriority(Sampler):
    """In proportion to `surprise ** exponent` (Schaul et al. 2016, eq. 1); a new row has the largest weight so far.

    Strata: one draw from each of `num` equal parts of the whole weight. Rows that are no longer live are drawn again.
    """

    def __init__(self, exponent: float, capacity: int) -> None:
        self._exponent, self._tree, self._largest = exponent, SumTree(capacity), 1.0

    def draw(self, storage: Storage, num: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        strata_B = torch.arange(num, dtype=torch.float64)
        share_B = (strata_B + torch.rand(num, generator=generator, dtype=torch.float64)) / num
        place_B, weight_B = self._tree.find(share_B.numpy())
        dead = _dead(storage, place_B)
        while dead.any():
            self._tree.set(place_B[dead], np.zeros(int(dead.sum())))
            again_B, again_weight_B = self._tree.find(
                torch.rand(int(dead.sum()), generator=generator, dtype=torch.float64).numpy()
            )
            place_B[dead], weight_B[dead] = again_B, again_weight_B
            dead = _dead(storage, place_B)
        relative_B = weight_B * len(storage) / self._tree.total
        return torch.from_numpy(place_B), torch.from_numpy(relative_B).float()

    def inserted(self, place_B: Tensor) -> None:
        self._tree.set(place_B.numpy(), np.full(len(place_B), self._largest))

    def surprised(self, place_B: Tensor, surprise_B: Tensor) -> None:
        weight_B = (surprise_B.double().numpy() + FLOOR) ** self._exponent
        self._largest = max(self._largest, float(weight_B.max()))
        self._tree.set(place_B.numpy(), weight_B)

    def state(self) -> Mapping[str, Any]:
        return {"largest": self._largest, "weights": torch.from_numpy(self._tree.leaves.copy())}

    def load(self, state: Mapping[str, Any]) -> None:
        self._largest = state["largest"]
        self._tree.set(np.arange(len(state["weights"])), state["weights"].numpy())


def _dead(storage: Storage, place_B: np.ndarray) -> np.ndarray:
    """Where a place holds a row that was given up, or none yet."""
    start, num = storage.first % storage.capacity, len(storage)
    return (place_B - start) % storage.capacity >= num


class SumTree:
    """Weights at the leaves of a binary tree whose nodes hold sums; changes and searches are of many leaves at once.

    Node `i` has the children `2i` and `2i + 1`; leaves begin at `width`. A sum is always made anew from its two parts.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity, self._width = capacity, 1 << max(0, capacity - 1).bit_length()
        self._sums = np.zeros(2 * self._width)

    @property
    def total(self) -> float:
        return float(self._sums[1])

    @property
    def leaves(self) -> np.ndarray:
        return self._sums[self._width : self._width + self._capacity]

    def set(self, leaf_B: np.ndarray, weight_B: np.ndarray) -> None:
        """Change leaves; of one that is named twice, the last counts."""
        node_B = leaf_B + self._width
        self._sums[node_B] = weight_B
        while node_B.size and node_B[0] > 1:
            node_B = np.unique(node_B >> 1)
            self._sums[node_B] = self._sums[2 * node_B] + self._sums[2 * node_B + 1]

    def find(self, share_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The leaves in which these shares of the total weight lie, and their weights."""
        mass_B = share_B * self.total
        node_B = np.ones(len(share_B), dtype=np.int64)
        for _ in range(self._width.bit_length() - 1):
            node_B *= 2
            left_B = self._sums[node_B]
            right_B = (mass_B >= left_B) & (self._sums[node_B + 1] > 0)
            mass_B -= np.where(right_B, left_B, 0.0)
            node_B += right_B
        return node_B - self._width, self._sums[node_B]
