"""One table for every way of using experience: a queue, a replay buffer and a dataset differ in their settings only.

This is the index. It knows which items exist, which of their columns are ready and who has drawn what; a column's value is
whatever the caller passes, usually a reference to where the data lies, and is handed on unopened. Columns become ready one by
one. A consumer names those that it needs and sees an item when they are all there, so one stage streams into the next:

>>> from freerun.store.limits import Slots
>>> from freerun.store.selectors import Uniform
>>> queue = Table(TableConfig(name="groups", capacity=8, consumers={
...     "reference": Consumer(needs=("tokens",), limiter=Slots(slots=4)),
...     "trainer": Consumer(needs=("tokens", "reward"), limiter=Slots(slots=8)),
... }))
>>> for item in range(3):
...     _ = queue.insert(item, version=0, columns={"tokens": f"tokens of {item}"})
>>> [draw.key for draw in queue.draw("reference", 2, version=0)]
[0, 1]
>>> queue.draw("trainer", 2, version=0)                          # no rewards yet
[]
>>> queue.fill(0, {"reward": 1.0})
>>> queue.draw("trainer", 2, version=0)                          # a short batch instead of a wait
[Draw(key=0, version=0, probability=1.0, columns={'tokens': 'tokens of 0', 'reward': 1.0})]
>>> replay = Table(TableConfig(name="replay", capacity=1000, remover=Fifo(), max_age=8, consumers={
...     "trainer": Consumer(needs=(), selector=Uniform(), uses=0,
...                         limiter=SamplesPerInsert(ratio=4.0, min_size=100, error_buffer=64, batch=32)),
... }))
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from freerun.errors import ConfigError, IllegalTransition
from freerun.store.limits import Level, Limiter, MinSize, SamplesPerInsert
from freerun.store.selectors import Fifo, Selector, SelectorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """One reader of a table."""

    needs: tuple[str, ...]
    """Columns that must be ready."""
    selector: SelectorConfig = field(default_factory=Fifo)
    """Which item comes next."""
    uses: int = 1
    """How often an item may be drawn; 0 is without limit."""
    limiter: Limiter = field(default_factory=MinSize)
    """How far it and the producers may run ahead of one another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """A table. Settings with which its users could wait for each other, or for what never comes, are refused: why, it says."""

    name: str
    """Named in errors."""
    consumers: Mapping[str, Consumer]
    """Readers by name. An item leaves when all have used it up."""
    capacity: int
    """Items that fit."""
    remover: SelectorConfig | None = None
    """Which item goes when a new one finds the table full; without a remover, inserts wait."""
    max_age: int | None = None
    """An item whose version is more than this behind the consumer's at a draw is removed instead."""
    seed: int = 0
    """Of random selectors and removers."""

    def __post_init__(self) -> None:
        finite = {name: c for name, c in self.consumers.items() if c.uses}
        if not self.consumers or min(c.uses for c in self.consumers.values()) < 0:
            raise self._refusal("it needs a consumer, and uses of 0 (no limit) or more")
        for name, consumer in self.consumers.items():
            limiter = consumer.limiter
            if why := limiter.deadlock(consumer.uses):
                raise self._refusal(f"consumer '{name}': {why}")
            if limiter.need > self.capacity:
                raise self._refusal(f"consumer '{name}' waits for {limiter.need} items, and {self.capacity} fit")
            if isinstance(consumer.selector, Fifo) and not consumer.uses:
                raise self._refusal(f"consumer '{name}' draws in order with unlimited uses, so it gets the first item for ever")
            if isinstance(limiter, SamplesPerInsert) and self.remover is None:
                raise self._refusal(
                    f"consumer '{name}' waits for inserts, which wait for room once the table is full: it needs a remover"
                )
        if self.remover is None and 0 < len(finite) < len(self.consumers):
            raise self._refusal(
                "it fills up with items that some consumers never use up, and then nothing new comes for " + ", ".join(finite)
            )
        if self.remover is None and finite and sum(c.limiter.need - 1 for c in finite.values()) >= self.capacity:
            raise self._refusal(f"{self.capacity} items can be spread over the consumers so that none has what it waits for")

    def refuse_batch(self, consumer: str, batch: int) -> None:
        """Raises `ConfigError` if the table could wait for ever once `consumer` waits for `batch` draws at a time."""
        settings = self.consumers[consumer]
        limiter = replace(settings.limiter, batch=max(batch, settings.limiter.batch))
        replace(self, consumers={**self.consumers, consumer: replace(settings, limiter=limiter)})

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"table '{self.name}' could wait for ever",
            given=why,
            expected="limits under which somebody can always go on",
            todo="change the limits named above",
        )


class Draw(NamedTuple):
    """One use of an item: the columns that the consumer needs, and the probability with which it was drawn."""

    key: int
    version: int
    probability: float
    columns: Mapping[str, Any]


@dataclass(slots=True)
class _Entry:
    version: int
    priority: float
    columns: dict[str, Any]
    used: dict[str, int]


class Table:
    """The state machine. Keys must grow from insert to insert. Not thread-safe: it belongs to one controller."""

    def __init__(self, config: TableConfig) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        """`inserted = present + used + evicted + expired + deleted`, and the draws of each consumer as `drawn/<name>`."""
        self._entries: dict[int, _Entry] = {}
        self._left = dict.fromkeys(config.consumers, 0)
        self._limiters: dict[str, Limiter] = {name: c.limiter for name, c in config.consumers.items()}
        self._since: dict[str, tuple[int, int]] = dict.fromkeys(config.consumers, (0, 0))
        self._ages: list[tuple[int, int]] = []
        self._last_key = -1
        self._rng = random.Random(config.seed)
        self._selectors: dict[str, Selector] = {name: c.selector.build() for name, c in config.consumers.items()}
        self._remover = config.remover.build() if config.remover else None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    # --- producers -----------------------------------------------------------------------------------------------------------

    def may_insert(self, coming: int = 0) -> bool:
        """Whether every consumer's limiter and the capacity allow one more item, once `coming` items that are being made have
        been inserted. Asked before an item is begun, it keeps producers within the limits that hold when it is there."""
        room = len(self._entries) + coming < self.config.capacity or self._remover is not None
        return room and all(limiter.may_insert(self._level(name, coming)) for name, limiter in self._limiters.items())

    def insert(
        self, key: int, *, version: int, columns: Mapping[str, Any], priority: float = 1.0, promised: bool = False
    ) -> list[int]:
        """Add an item with the columns that are ready; returns the keys that had to go. Raises `IllegalTransition` unless
        `may_insert()`, or `promised`: then it was asked before the item was begun. `key` must be larger than any before."""
        if not (promised or self.may_insert()) or key <= self._last_key:
            given = f"{len(self)} items, last key {self._last_key}"
            raise self._illegal(f"cannot take item {key} now", given, "may_insert(), and a key above the last")
        gone = []
        while len(self._entries) >= self.config.capacity and self._remover is not None:
            gone.append(self._remover.select(self._rng)[0])
            self._forget(gone[-1], "evicted")
        self._last_key = key
        self._entries[key] = _Entry(version, priority, {}, dict.fromkeys(self.config.consumers, 0))
        self.counts["inserted"] += 1
        for name, selector in self._selectors.items():
            selector.add(key)
            self._left[name] += 1
        if self._remover is not None:
            self._remover.add(key)
            self._remover.ready(key, priority)
        if self.config.max_age is not None:
            heapq.heappush(self._ages, (version, key))
        self._show(key, set(self.config.consumers))
        self.fill(key, columns)
        return gone

    def fill(self, key: int, columns: Mapping[str, Any]) -> None:
        """More columns of `key` are ready. Refuses to change one that is, since a consumer may have seen it."""
        entry = self._entry(key)
        if again := sorted(entry.columns.keys() & columns.keys()):
            raise self._illegal(f"has these columns of item {key} already", again, "each column once")
        entry.columns.update(columns)
        self._show(key, {name for name, c in self.config.consumers.items() if not columns.keys().isdisjoint(c.needs)})

    def reprioritise(self, key: int, priority: float) -> None:
        """Change the priority of `key`; does nothing if it has left, as it may have between a draw and its loss."""
        if key in self._entries:
            self._entries[key].priority = priority
            self._show(key, set(self.config.consumers))
            if self._remover is not None:
                self._remover.ready(key, priority)

    def delete(self, key: int) -> None:
        """Take `key` out unused."""
        self._entry(key)
        self._forget(key, "deleted")

    # --- consumers -----------------------------------------------------------------------------------------------------------

    def drawable(self, consumer: str, n: int, version: int) -> int:
        """How many of `n` draws would succeed now."""
        self.expire(version)
        settings, selector = self.config.consumers[consumer], self._selectors[consumer]
        budget = min(n, self._limiters[consumer].budget(self._level(consumer)))
        return min(budget, selector.num_ready(budget)) if settings.uses else budget * selector.num_ready(1)

    def draw(self, consumer: str, n: int, version: int) -> list[Draw]:
        """Up to `n` draws for a consumer at policy `version`: fewer if fewer are ready or allowed. An item that all consumers
        have used up leaves the table with its last draw."""
        self.expire(version)
        settings, selector = self.config.consumers[consumer], self._selectors[consumer]
        draws: list[Draw] = []
        n = min(n, self._limiters[consumer].budget(self._level(consumer)))
        while len(draws) < n and selector.num_ready(1):
            key, probability = selector.select(self._rng)
            entry = self._entries[key]
            draws.append(Draw(key, entry.version, probability, {column: entry.columns[column] for column in settings.needs}))
            self.counts[f"drawn/{consumer}"] += 1
            entry.used[consumer] += 1
            if entry.used[consumer] == settings.uses:
                selector.take(key)
                self._left[consumer] -= 1
                if all(self._used_up(entry, name) for name in self.config.consumers):
                    self._forget(key, "used")
        return draws

    def spend(self, consumer: str, n: int, version: int) -> int:
        """As `draw`, by a consumer that selects among the items itself, where their data lies: the draws are counted, and it
        must select from those that are there now. Returns how many of `n` are granted: all, or none while fewer are allowed.
        Only for consumers whose items are never used up."""
        self.expire(version)
        if self.config.consumers[consumer].uses or not n:
            raise self._illegal(f"cannot let '{consumer}' select for itself", f"{n} draws", "some, with unlimited uses")
        if self._limiters[consumer].budget(self._level(consumer)) < n or not self._selectors[consumer].num_ready(1):
            return 0
        self.counts[f"drawn/{consumer}"] += n
        return n

    def limit(self, consumer: str, limiter: Limiter, *, since: Sequence[int] | None = None) -> None:
        """From now on `limiter` holds for `consumer`, and the inserts and draws that it sees are counted from now, or from
        `since`, which a state has. Raises `ConfigError` if somebody could wait for ever."""
        settings = self.config.consumers[consumer]
        replace(self.config, consumers={**self.config.consumers, consumer: replace(settings, limiter=limiter)})
        self._limiters[consumer] = limiter
        inserted, drawn = since or (self.counts["inserted"], self.counts[f"drawn/{consumer}"])
        self._since[consumer] = inserted, drawn

    def expire(self, version: int) -> None:
        """Remove what is too old for a consumer at `version`; every draw does. Who asks `may_insert` after an update and before
        the next draw has to do it first, or both sides may wait for room that is there."""
        while self._ages and version - self._ages[0][0] > (self.config.max_age or 0):
            _, key = heapq.heappop(self._ages)
            if key in self._entries:
                self._forget(key, "expired")

    @property
    def first_key(self) -> int:
        """No item with a smaller key is there; the next key if there is none."""
        return next(iter(self._entries), self._last_key + 1)

    # --- checkpoints ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """A snapshot of the whole index, JSON-able; the values of columns are the caller's to keep."""
        return {
            "last_key": self._last_key,
            "counts": dict(self.counts),
            "since": {name: list(pair) for name, pair in self._since.items()},
            "rng": self._rng.getstate(),
            "entries": [[k, e.version, e.priority, sorted(e.columns), dict(e.used)] for k, e in self._entries.items()],
            "selectors": {name: selector.state() for name, selector in self._selectors.items()},
            "remover": self._remover.state() if self._remover is not None else None,
        }

    @classmethod
    def from_state(cls, config: TableConfig, state: Mapping[str, Any], value: Callable[[int, str], Any]) -> "Table":
        """The table as it was; `value(key, column)` gives back what the caller kept. It goes on with the very draws that the
        saved one would have made. A limiter given to `limit` is not saved: it must be that of
        `config`."""
        self = cls(config)
        self._last_key, self.counts = state["last_key"], Counter(state["counts"])
        self._since = {name: (inserted, drawn) for name, (inserted, drawn) in state["since"].items()}
        version, internal, gauss = state["rng"]
        self._rng.setstate((version, tuple(internal), gauss))
        for key, born, priority, columns, used in state["entries"]:
            self._entries[key] = _Entry(born, priority, {column: value(key, column) for column in columns}, dict(used))
            for name in config.consumers:
                self._left[name] += not self._used_up(self._entries[key], name)
        if config.max_age is not None:
            self._ages = sorted((e.version, key) for key, e in self._entries.items())
        self._selectors = {name: c.selector.build(state["selectors"][name]) for name, c in config.consumers.items()}
        self._remover = config.remover.build(state["remover"]) if config.remover else None
        return self

    # --- helpers -------------------------------------------------------------------------------------------------------------

    def _illegal(self, what: str, given: object, expected: str) -> IllegalTransition:
        todo = "this is a bug in the caller"
        return IllegalTransition(f"table '{self.config.name}' {what}", given=given, expected=expected, todo=todo)

    def _level(self, consumer: str, coming: int = 0) -> Level:
        inserted, drawn = self._since[consumer]
        return Level(
            self._left[consumer] + coming,
            self.counts["inserted"] - inserted + coming,
            self.counts[f"drawn/{consumer}"] - drawn,
        )

    def _used_up(self, entry: _Entry, consumer: str) -> bool:
        return entry.used[consumer] == self.config.consumers[consumer].uses > 0

    def _entry(self, key: int) -> _Entry:
        if key not in self._entries:
            raise self._illegal(f"has no item {key}", f"{len(self)} items", "an item that has not left")
        return self._entries[key]

    def _show(self, key: int, consumers: set[str]) -> None:
        """Let those of `consumers` see `key` that find all they need and have uses left."""
        entry = self._entries[key]
        for name in consumers:
            if entry.columns.keys() >= set(self.config.consumers[name].needs) and not self._used_up(entry, name):
                self._selectors[name].ready(key, entry.priority)

    def _forget(self, key: int, why: str) -> None:
        entry = self._entries.pop(key)
        self.counts[why] += 1
        for name, selector in self._selectors.items():
            if not self._used_up(entry, name):
                self._left[name] -= 1
                selector.discard(key)
        if self._remover is not None:
            self._remover.discard(key)
