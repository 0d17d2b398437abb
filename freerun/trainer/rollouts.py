"""Chunks that terms read: those of the step, and of as many steps before it as the algorithm recalls.

Chunks of one actor that follow one another are put together in time, so that credit runs on from one to the next.

Shapes: T steps of a chunk, N environments, R rows of all chunks.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from freerun.algorithms.control_base import ControlAlgorithm, Networks, State
from freerun.transitions import Chunk, transitions
from freerun.types import Batch


class Rollouts:
    """What a step reads. Its length is the number of chunks that have come for the step in hand."""

    def __init__(self, algorithm: ControlAlgorithm, device: torch.device) -> None:
        self._algorithm, self._device = algorithm, device
        self._now: list[Chunk] = []
        self._before: deque[list[Chunk]] = deque(maxlen=algorithm.recall - 1)

    def __len__(self) -> int:
        return len(self._now)

    def add(self, chunk: Chunk) -> None:
        self._now.append(chunk)

    def end_step(self) -> None:
        """The chunks of the step in hand become those of the step before."""
        self._before.append(self._now)
        self._now = []

    def rows(self, networks: Networks, state: State, version: int) -> Batch:
        """The columns that terms read [R, ...], those that `prepare` makes included, with the networks as they are now. `lag`
        is always there."""
        algorithm = self._algorithm
        parts = []
        for columns in streams([*(c for chunks in self._before for c in chunks), *self._now]):
            columns = {name: column.to(self._device) for name, column in columns.items()}
            batch = transitions({**columns, "lag": version - columns["version"]})
            if algorithm.prepare is not None:
                reader = batch.read_by(f"algorithm '{algorithm.name}'")
                batch = batch.with_columns(**algorithm.prepare(networks, reader, state))
            parts.append({n: batch[n].flatten(0, 1) for n in batch if n in algorithm.needs or n == "lag"})
        return transitions({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def state(self) -> list[Any]:
        """The chunks of earlier steps; those of a step in hand are to be given again."""
        return [
            [{"item": c.item, "actor": c.actor, "oldest": c.oldest_version, "columns": dict(c.columns)} for c in chunks]
            for chunks in self._before
        ]

    def load(self, state: Sequence[Any]) -> None:
        """Undo `state`."""
        self._now = []
        self._before.clear()
        for chunks in state:
            self._before.append(
                [Chunk(item=c["item"], actor=c["actor"], columns=c["columns"], oldest_version=c["oldest"]) for c in chunks]
            )


def streams(chunks: Sequence[Chunk]) -> list[Mapping[str, Tensor]]:
    """Chunks as columns [T, N, ...], those of one actor one after another in time, and actors with as many steps side by side.
    Where an actor went on in another episode though none had ended, because it died, the last step counts as cut."""
    by_actor: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        by_actor.setdefault(chunk.actor, []).append(chunk)
    by_length: dict[int, list[Mapping[str, Tensor]]] = {}
    for parts in by_actor.values():
        columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
        if len(parts) > 1:
            changed_TN = columns["episode"][1:] != columns["episode"][:-1]
            truncated_TN = columns["truncated"].clone()
            truncated_TN[:-1] |= changed_TN & ~columns["terminated"][:-1]
            columns["truncated"] = truncated_TN
        by_length.setdefault(len(columns["reward"]), []).append(columns)
    return [{name: torch.cat([one[name] for one in alike], 1) for name in alike[0]} for alike in by_length.values()]
