"""Batches from several tables, in shares that are constant or move along a schedule: hybrid, offline to online, rehearsal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from freerun.errors import ConfigError
from freerun.store.table import Draw, Table


@dataclass(frozen=True, slots=True)
class Share:
    """A table's part of every batch: `start`, or a straight line from `start` to `end` over the first `steps` steps.
    Shares are relative: those of all tables are divided by their sum."""

    start: float
    end: float | None = None
    steps: int = 1

    def at(self, step: int) -> float:
        end = self.start if self.end is None else self.end
        return self.start + (end - self.start) * min(1.0, step / self.steps)


class Mix:
    """Batches of `n` draws for the consumer of one name from several tables. What rounding takes from a table in one batch it
    gets in a later one, so the shares hold over time. Raises `ConfigError` for shares that cannot make a batch, and where a
    table's limits could keep it from ever giving its part at once."""

    def __init__(self, tables: Mapping[str, Table], shares: Mapping[str, Share], *, consumer: str, n: int) -> None:
        bends = [[share.at(step) for share in shares.values()] for step in {0, *(share.steps for share in shares.values())}]
        if tables.keys() != shares.keys() or n < 1 or any(min(bend) < 0 or sum(bend) <= 0 for bend in bends):
            raise ConfigError(
                "the shares of a mix cannot make a batch",
                given=f"{dict(shares)} of {n}",
                todo="correct them",
                expected=f"a share for each of {', '.join(tables)}: never negative, never 0 for all; n above 0",
            )
        self.tables, self.shares, self.consumer, self.n = tables, shares, consumer, n
        self._owed = dict.fromkeys(shares, 0.0)
        for i, name in enumerate(shares):
            largest = max(bend[i] / sum(bend) for bend in bends)
            tables[name].config.refuse_batch(consumer, min(n, int(n * largest) + len(shares)))

    def draw(self, *, step: int, version: int) -> dict[str, list[Draw]]:
        """A batch by table; or nothing, and no change, while a table cannot give its part: no other one makes up for it."""
        owed, parts = dict(self._owed), dict.fromkeys(self.shares, 0)
        shares = {name: share.at(step) for name, share in self.shares.items()}
        total = sum(shares.values())
        for _ in range(self.n):
            for name, share in shares.items():
                owed[name] += share / total
            largest = max((name for name, share in shares.items() if share > 0), key=owed.__getitem__)
            owed[largest] -= 1.0
            parts[largest] += 1
        if any(self.tables[name].drawable(self.consumer, part, version) < part for name, part in parts.items()):
            return {}
        self._owed = owed
        return {name: self.tables[name].draw(self.consumer, part, version) for name, part in parts.items() if part}

    def state(self) -> dict[str, Any]:
        """What each table is owed; the tables have states of their own."""
        return {"owed": dict(self._owed)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._owed = dict(state["owed"])
