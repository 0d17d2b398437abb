"""How far producers and a consumer of a table may run ahead of one another, and which settings would let both wait for ever.

A limiter answers two questions from three counts: may an item be inserted, and how many draws may the consumer make now. The
danger is that both answers are no at once, to a consumer that waits until it may make `batch` draws. `deadlock` says whether
that can be, and a table refuses to be made that way. Pacing both sides by one ratio is Reverb's idea (Cassirer et al. 2021).
"""

import sys
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

UNLIMITED = sys.maxsize


class Level(NamedTuple):
    """What a limiter sees of one consumer: items that are there and not used up (`backlog`), items ever inserted, draws ever
    made."""

    backlog: int
    inserted: int
    drawn: int


class Limiter(Protocol):
    """A frozen dataclass. `batch` is the number of draws that its consumer waits for, `need` the backlog that takes."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def batch(self) -> int: ...

    @property
    def need(self) -> int: ...

    def may_insert(self, level: Level) -> bool: ...

    def budget(self, level: Level) -> int:
        """How many draws are allowed now."""

    def deadlock(self, uses: int) -> str:
        """Why this limiter alone could make both sides wait; empty if it cannot. `uses` is how often an item may be drawn, 0
        without limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinSize:
    """Draws are allowed while `size` items are there, inserts always."""

    size: int = 1
    """Items that must be there."""
    batch: int = 1
    """Draws the consumer waits for at a time."""

    @property
    def need(self) -> int:
        return max(1, self.size, self.batch)

    def may_insert(self, level: Level) -> bool:
        return True

    def budget(self, level: Level) -> int:
        return UNLIMITED if level.backlog >= self.size else 0

    def deadlock(self, uses: int) -> str:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """At most `slots` items wait for the consumer: a bounded queue. Nothing is thrown away; producers wait instead."""

    slots: int
    """Items that may be there and not used up."""
    batch: int = 1
    """Draws the consumer waits for at a time."""

    @property
    def need(self) -> int:
        return max(1, self.batch)

    def may_insert(self, level: Level) -> bool:
        return level.backlog < self.slots

    def budget(self, level: Level) -> int:
        return UNLIMITED

    def deadlock(self, uses: int) -> str:
        if not uses:
            return "a slot is freed when its item is used up, and items with unlimited uses never are"
        if self.batch > self.slots:
            return f"the consumer waits for {self.batch} items, and there are {self.slots} slots"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesPerInsert:
    """Draws and inserts keep `|ratio * (inserted - min_size) - drawn| <= error_buffer` while `min_size` items are there. While
    fewer are, every insert is allowed and no draw."""

    ratio: float
    """Draws per inserted item."""
    min_size: int
    """Items that must be there."""
    error_buffer: float
    """By how many draws either side may be ahead."""
    batch: int = 1
    """Draws the consumer waits for at a time."""

    @property
    def need(self) -> int:
        return self.min_size

    def may_insert(self, level: Level) -> bool:
        return level.backlog < self.min_size or self._due(level) + self.ratio <= self.error_buffer

    def budget(self, level: Level) -> int:
        return max(0, int(self._due(level) + self.error_buffer)) if level.backlog >= self.min_size else 0

    def deadlock(self, uses: int) -> str:
        buffer = (self.ratio + self.batch) / 2
        if self.ratio <= 0 or self.min_size < 1:
            return f"ratio {self.ratio} and min size {self.min_size} must be positive, or an empty table holds inserts back"
        if self.error_buffer < buffer:
            return (
                f"with an error buffer of {self.error_buffer} there are levels at which neither one insert nor a batch of "
                f"{self.batch} draws is allowed; from (ratio + batch) / 2 = {buffer} there are none"
            )
        if uses and self.ratio > uses:
            return f"{self.ratio} draws per insert are asked for, of items that may be drawn {uses} times"
        if uses and self.batch > self.min_size:
            return f"the consumer waits for {self.batch} draws, while {self.min_size} items can hold inserts back"
        return ""

    def _due(self, level: Level) -> float:
        return self.ratio * (level.inserted - self.min_size) - level.drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Draws follow inserts at a ratio, in whole batches: exact where `SamplesPerInsert` is symmetric.

    Due are `ratio * (inserted - size) - drawn` draws, once `size` items were inserted. The consumer may draw what is due and
    `lead` draws more; an item may be inserted while less than a batch is due, and `ahead` items more, or if there is none. So
    `-lead <= due < batch + (ahead + 1) * ratio` as long as items are there, and with neither the two take strict turns. There
    is always somebody who can go on, whatever the numbers.

    With `most`, a consumer that would have to wait for slow producers may go on up to `most * (inserted - size) + lead` draws:
    `ratio` is then the least that an item is used, and what is left between the two is decided by who is slower.
    """

    ratio: float
    """Draws per inserted item."""
    size: int = 0
    """Items that must have been inserted before the first draw; they make no draws due."""
    batch: int = 1
    """Draws the consumer waits for at a time."""
    lead: float = 0.0
    """Draws that the consumer may make before they are due."""
    ahead: int = 0
    """Items that may be inserted before their turn."""
    most: float = 0.0
    """Draws per inserted item that the consumer may make; what is below `ratio` means no more than that."""

    @property
    def need(self) -> int:
        return 1

    def may_insert(self, level: Level) -> bool:
        return not level.backlog or self._due(level, self.ratio) < self.batch + self.ahead * self.ratio

    def budget(self, level: Level) -> int:
        if not level.backlog or level.inserted < self.size:
            return 0
        return max(0, int(self._due(level, max(self.ratio, self.most)) + self.lead + 1e-9))

    def deadlock(self, uses: int) -> str:
        if self.ratio <= 0:
            return f"a ratio of {self.ratio} never makes a draw due"
        if min(self.size, self.lead, self.ahead) < 0 or self.batch < 1:
            return (
                f"size {self.size}, lead {self.lead} and ahead {self.ahead} cannot be negative, nor batch {self.batch} below 1"
            )
        if uses:
            return f"items that may be drawn {uses} times can be used up before their draws are due"
        return ""

    def _due(self, level: Level, ratio: float) -> float:
        return ratio * (level.inserted - self.size) - level.drawn
