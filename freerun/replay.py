"""Groups that were trained on, to be trained on again while they are young: a table whose consumer draws uniformly."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from freerun.store.selectors import Fifo, Uniform
from freerun.store.table import Consumer, Table, TableConfig
from freerun.types import Group, Source


class Replay:
    """`draws` groups a step out of those that earlier steps of `batch` groups trained on, none older than `max_age`
    versions."""

    def __init__(self, draws: int, *, batch: int, max_age: int, seed: int) -> None:
        self._draws = draws
        self._config = TableConfig(
            name="replay",
            capacity=max(1, max_age * batch),
            remover=Fifo(),
            max_age=max_age,
            seed=seed,
            consumers={"trainer": Consumer(needs=("group",), selector=Uniform(), uses=0)},
        )
        self._table = Table(self._config)
        self._next = 0
        self.groups: dict[int, Group] = {}

    def add(self, groups: Sequence[Group]) -> None:
        """These were trained on for the first time."""
        for group in groups:
            self.groups[self._next] = group
            self._table.insert(self._next, version=group.oldest_version, columns={"group": self._next})
            self._next += 1
        self.groups = {key: group for key, group in self.groups.items() if key in self._table}

    def draw(self, version: int) -> list[Group]:
        """Groups for the step that the trainer makes at `version`; none while there are none young enough."""
        draws = self._table.draw("trainer", self._draws, version)
        return [replace(self.groups[draw.key], source=Source.REPLAY) for draw in draws]

    def state(self) -> dict[str, Any]:
        """JSON-able; `groups` are the caller's to keep."""
        return {"next": self._next, "table": self._table.state()}

    def restore(self, state: dict[str, Any], groups: dict[int, Group]) -> None:
        """Go on from a saved state and the groups in it."""
        self._next, self.groups = state["next"], groups
        self._table = Table.from_state(self._config, state["table"], lambda key, column: key)
