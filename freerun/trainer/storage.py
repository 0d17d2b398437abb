"""Transitions beside the trainer: preallocated columns, in memory or in memory-mapped files, used as a ring.

A row keeps its *position*, which counts all rows ever inserted; it lies at `position % capacity`. The oldest rows are
overwritten, and rows of chunks that the controller's table has given up are below `first`; what lies between `first` and
`total` is live. Each row knows the position of the row that follows it in its episode, however chunks of several actors are
interleaved.

Shapes: R rows that are inserted, B rows that are asked for, T and N of a chunk.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freerun.errors import ConfigError, MissingColumn
from freerun.transitions import TRANSITIONS

LINK = "link"
NOWHERE = -1
DERIVED = frozenset({"discount", "lag", "next_action", "weight", "row", "source"})
"""Columns that are made when rows are read."""


class Storage:
    """A ring of transitions. `directory` keeps the columns in files there, mapped into memory, for what does not fit into it.

    Columns are those of the first rows that come; all later rows must have the same.
    """

    def __init__(self, capacity: int, *, directory: Path | None = None) -> None:
        self.capacity, self.total, self.first = capacity, 0, 0
        self.columns: dict[str, Tensor] = {}
        # The same memory, written through NumPy: a chunk is small, and a call of PyTorch's costs several times as much.
        self._arrays: dict[str, np.ndarray] = {}
        self._directory = directory
        self._last: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._starts: dict[int, int] = {}

    def __len__(self) -> int:
        return self.total - self.first

    # --- inserting -----------------------------------------------------------------------------------------------------------

    def insert_chunk(self, key: int, actor: int, columns_TN: Mapping[str, Tensor]) -> Tensor:
        """Add a chunk's rows, time first; returns their places. Rows of a stream go on where its last chunk ended."""
        episode_TN, step_TN = columns_TN["episode"].numpy(), columns_TN["step"].numpy()
        steps, envs = episode_TN.shape
        position_TN = np.arange(self.total, self.total + steps * envs).reshape(steps, envs)
        link_TN = position_TN + envs
        link_TN[:-1][episode_TN[1:] != episode_TN[:-1]] = NOWHERE
        link_TN[-1] = NOWHERE
        self._starts[key] = self.total
        before = self._last.get(actor)
        places = self.insert(
            {name: column.flatten(0, 1) for name, column in columns_TN.items()}, torch.from_numpy(link_TN.reshape(-1))
        )
        # Copies, so that a chunk is not kept for its last step.
        self._last[actor] = position_TN[-1].copy(), episode_TN[-1].copy(), step_TN[-1].copy()
        if before is not None and len(before[0]) == envs:
            last_N, episode_N, step_N = before
            joined_N = (episode_N == episode_TN[0]) & (step_N + 1 == step_TN[0]) & (last_N >= self.total - self.capacity)
            self._arrays[LINK][last_N[joined_N] % self.capacity] = position_TN[0, joined_N]
        return places

    def insert(self, columns_R: Mapping[str, Tensor], link_R: Tensor) -> Tensor:
        """Add rows with the positions of those that follow them; returns the places of the rows."""
        rows = {**columns_R, LINK: link_R}
        num = len(link_R)
        if num > self.capacity:
            raise ConfigError(
                "a storage is smaller than what is inserted at once",
                given=f"{num} rows, capacity {self.capacity}",
                expected="room for a whole chunk",
                todo="raise the capacity of the source",
            )
        if not self.columns:
            self._allocate(rows)
        if rows.keys() != self.columns.keys():
            raise MissingColumn(
                "rows have other columns than those before",
                given=sorted(rows.keys() - {LINK}),
                expected=sorted(self.columns.keys() - {LINK}),
                todo="let every actor and data set record the same columns",
            )
        place = self.total % self.capacity
        room = self.capacity - place
        for name, column_R in rows.items():
            stored, added_R = self._arrays[name], column_R.numpy()
            stored[place : place + num] = added_R[:room]
            if num > room:
                stored[: num - room] = added_R[room:]
        self.total += num
        self.first = max(self.first, self.total - self.capacity)
        place_R = torch.arange(place, place + num)
        return place_R if num <= room else place_R % self.capacity

    def keep_from(self, key: int) -> None:
        """Chunks with keys below `key` are given up, and so are rows that lie before the first chunk that is not."""
        gone = [k for k in self._starts if k < key]
        for k in gone:
            del self._starts[k]
        if gone:
            start = next(iter(self._starts.values()), self.total)
            self.first = max(self.first, start)

    def _allocate(self, like: Mapping[str, Tensor]) -> None:
        self.columns = {name: self._column_like(name, column) for name, column in like.items()}
        self._arrays = {name: column.numpy() for name, column in self.columns.items()}

    def _column_like(self, name: str, like: Tensor) -> Tensor:
        shape = (self.capacity, *like.shape[1:])
        if self._directory is None:
            return torch.empty(shape, dtype=like.dtype)
        self._directory.mkdir(parents=True, exist_ok=True)
        size = torch.Size(shape).numel()
        return torch.from_file(str(self._directory / name), shared=True, size=size, dtype=like.dtype).view(shape)

    # --- reading -------------------------------------------------------------------------------------------------------------

    def read(self, place_B: Tensor, names: Iterable[str], *, gamma: float, steps: int = 1) -> dict[str, Tensor]:
        """Columns of the rows at these places. With `steps` above 1, `reward`, `next_obs`, `discount` and the two flags are
        those of up to so many steps on: fewer where the episode, or what is stored of it, ends before."""
        names = set(names)
        last_B, paid_B, power_B = self._ahead(place_B, gamma, steps) if steps > 1 else (place_B, None, None)
        found: dict[str, Tensor] = {}
        for name in names:
            if name == "reward" and paid_B is not None:
                found[name] = paid_B
            elif name == "discount":
                alive_B = ~self.columns["terminated"][last_B]
                found[name] = alive_B * (gamma if power_B is None else power_B)
            elif name == "next_action":
                found[name] = self._next_action(place_B)
            elif name in ("next_obs", "terminated", "truncated"):
                found[name] = self._column(name)[last_B]
            elif name not in DERIVED:
                found[name] = self._column(name)[place_B]
        return found

    def _column(self, name: str) -> Tensor:
        if name in self.columns:
            return self.columns[name]
        raise MissingColumn(
            f"column '{name}' is asked of transitions that do not have it",
            given=sorted(self.columns.keys() - {LINK}),
            expected=f"'{name}' ({TRANSITIONS[name].meaning})" if name in TRANSITIONS else name,
            todo="use an algorithm that does not read it, or actors or a data set that record it",
        )

    def _ahead(self, place_B: Tensor, gamma: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where up to `steps` steps end, the discounted rewards on the way, and gamma to their number."""
        reward, link = self.columns["reward"], self.columns[LINK]
        last_B, paid_B = place_B, reward[place_B]
        power_B = torch.full_like(paid_B, gamma)
        going_B = torch.ones_like(place_B, dtype=torch.bool)
        for _ in range(steps - 1):
            link_B = link[last_B]
            going_B = going_B & (link_B != NOWHERE)
            last_B = torch.where(going_B, link_B % self.capacity, last_B)
            paid_B = torch.where(going_B, paid_B + power_B * reward[last_B], paid_B)
            power_B = torch.where(going_B, power_B * gamma, power_B)
        return last_B, paid_B, power_B

    def _next_action(self, place_B: Tensor) -> Tensor:
        link_B = self.columns[LINK][place_B]
        action = self.columns["action"][link_B.clamp(min=0) % self.capacity]
        known = (link_B != NOWHERE).view(-1, *[1] * (action.dim() - 1))
        return torch.where(known, action, torch.zeros_like(action))

    # --- checkpoints ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, as numbers and tensors; of the columns, the part that is in use."""
        used = min(self.total, self.capacity)
        return {
            "total": self.total,
            "first": self.first,
            "columns": {name: column[:used] for name, column in self.columns.items()},
            "last": [[actor, *map(torch.from_numpy, ends)] for actor, ends in self._last.items()],
            "starts": [list(pair) for pair in self._starts.items()],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        columns: Mapping[str, Tensor] = state["columns"]
        self.total, self.first = int(state["total"]), int(state["first"])
        self._allocate(columns)
        for name, column in columns.items():
            self.columns[name][: len(column)] = column
        self._last = {actor: tuple(end.numpy() for end in ends) for actor, *ends in state["last"]}
        self._starts = dict(map(tuple, state["starts"]))
