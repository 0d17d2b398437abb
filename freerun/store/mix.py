"""Batches from several tables, in shares that are constant or move along a schedule: hybrid, offline to online, rehearsal."""

import math
import random
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


class Portions:
    """How many of the `n` rows of each batch come from each of several sources. What rounding takes from a source in one batch
    it gets in a later one, so the shares hold over time; constant shares that divide `n` evenly are exact in every batch.
    Raises `ConfigError` for shares that cannot make a batch."""

    def __init__(self, shares: Mapping[str, Share], n: int) -> None:
        bends = [[share.at(step) for share in shares.values()] for step in {0, *(share.steps for share in shares.values())}]
        if not shares or n < 1 or any(min(bend) < 0 or sum(bend) <= 0 for bend in bends):
            raise ConfigError(
                "the shares of a mix cannot make a batch",
                given=f"{dict(shares)} of {n}",
                todo="correct them",
                expected="shares that are never negative and never 0 for all; n above 0",
            )
        self.shares, self.n = shares, n
        largest = {name: max(bend[i] / sum(bend) for bend in bends) for i, name in enumerate(shares)}
        self.most = {name: min(n, int(n * share) + len(shares)) for name, share in largest.items()}
        """Of each source, what a batch may ask for at most."""
        self._owed = dict.fromkeys(shares, 0.0)

    def peek(self, step: int) -> tuple[dict[str, int], dict[str, float]]:
        """The numbers for a batch at `step`, and what is owed once they are given; `give` makes it so."""
        shares = {name: share.at(step) for name, share in self.shares.items()}
        total = sum(shares.values())
        owed = {name: debt + self.n * shares[name] / total for name, debt in self._owed.items()}
        parts = {name: max(0, math.floor(debt + 1e-9)) if shares[name] > 0 else 0 for name, debt in owed.items()}
        while (missing := self.n - sum(parts.values())) != 0:
            # Whoever is owed most gets one more; whoever got most beyond what is owed gives one back.
            able = [name for name in parts if (shares[name] > 0 if missing > 0 else parts[name] > 0)]
            name = (max if missing > 0 else min)(able, key=lambda name: owed[name] - parts[name])
            parts[name] += 1 if missing > 0 else -1
        owed = {name: debt - parts[name] for name, debt in owed.items()}
        return parts, owed

    def give(self, owed: Mapping[str, float]) -> None:
        self._owed = dict(owed)

    def take(self, step: int) -> dict[str, int]:
        """The numbers for the batch at `step`, given."""
        parts, owed = self.peek(step)
        self.give(owed)
        return parts

    def state(self) -> dict[str, Any]:
        return {"owed": dict(self._owed)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._owed = dict(state["owed"])


class Spells:
    """As `Portions`, but every batch comes from one source, which is drawn in proportion to the shares for `length` batches at
    a time. `seed` fixes the draws. Raises `ConfigError` for shares that cannot make a batch."""

    def __init__(self, shares: Mapping[str, Share], n: int, *, length: int, seed: int) -> None:
        Portions(shares, n)
        self.shares, self.n = shares, n
        self._length, self._chance = length, random.Random(seed)
        self._now, self._left = "", 0

    def take(self, step: int) -> dict[str, int]:
        """The numbers for the batch at `step`, given."""
        if not self._left:
            weights = [share.at(step) for share in self.shares.values()]
            (self._now,), self._left = self._chance.choices(list(self.shares), weights), self._length
        self._left -= 1
        return {name: self.n if name == self._now else 0 for name in self.shares}

    def state(self) -> dict[str, Any]:
        version, internal, gauss = self._chance.getstate()
        return {"now": self._now, "left": self._left, "chance": [version, list(internal), gauss]}

    def load(self, state: Mapping[str, Any]) -> None:
        self._now, self._left = state["now"], state["left"]
        version, internal, gauss = state["chance"]
        self._chance.setstate((version, tuple(internal), gauss))


class Mix:
    """Batches of `n` draws for the consumer of one name from several tables, in `Portions`. Raises `ConfigError` for shares
    that cannot make a batch, and where a table's limits could keep it from ever giving its part at once."""

    def __init__(self, tables: Mapping[str, Table], shares: Mapping[str, Share], *, consumer: str, n: int) -> None:
        if tables.keys() != shares.keys():
            raise ConfigError(
                "the shares of a mix cannot make a batch",
                given=f"{dict(shares)} of {n}",
                todo="correct them",
                expected=f"a share for each of {', '.join(tables)}",
            )
        self.tables, self.consumer, self.portions = tables, consumer, Portions(shares, n)
        for name, most in self.portions.most.items():
            tables[name].config.refuse_batch(consumer, most)

    def draw(self, *, step: int, version: int) -> dict[str, list[Draw]]:
        """A batch by table; or nothing, and no change, while a table cannot give its part: no other one makes up for it."""
        parts, owed = self.portions.peek(step)
        if any(self.tables[name].drawable(self.consumer, part, version) < part for name, part in parts.items()):
            return {}
        self.portions.give(owed)
        return {name: self.tables[name].draw(self.consumer, part, version) for name, part in parts.items() if part}

    def state(self) -> dict[str, Any]:
        """What each table is owed; the tables have states of their own."""
        return self.portions.state()

    def load(self, state: Mapping[str, Any]) -> None:
        self.portions.load(state)
