"""Which item comes next, out of those that are there. A remover asks the same question: which item goes when the table is full.

Keys are integers that grow in the order of insertion. A selector holds the keys of a table (`add`), knows which of them its
consumer may have (`ready`), and forgets them (`take` when the consumer has used one up, `discard` when one goes unused). The
configs are data and `build` the state machine, from scratch or from what its `state()` was. Draws use the generator given to
`select` and nothing else.
"""

import heapq
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from freerun.errors import ConfigError, DataError

PENDING, READY, TAKEN = "pending", "ready", "taken"


class Selector(Protocol):
    """One consumer's view of a table's keys. Selectors that do not care about order inherit `add` and `take`."""

    def add(self, key: int) -> None:
        """`key` is in the table, not yet ready."""
        return None

    def ready(self, key: int, priority: float) -> None:
        """`key` may be selected from now on; on a key that is ready already, changes its priority."""

    def take(self, key: int) -> None:
        """The consumer has used `key` up."""
        self.discard(key)

    def discard(self, key: int) -> None:
        """`key` leaves the table, ready or not, used or not. Does nothing if it is gone already."""

    def select(self, rng: random.Random) -> tuple[int, float]:
        """A key and the probability with which it was drawn. Only if `num_ready(1)` is not 0."""

    def num_ready(self, limit: int) -> int:
        """How many different keys could be selected one after another, counted up to `limit`."""

    def state(self) -> Any:
        """JSON-able."""


class SelectorConfig(Protocol):
    """A frozen dataclass that makes a selector."""

    def build(self, state: Any = None) -> Selector: ...


# --- in order ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fifo:
    """First in, first out, with a window: see `Window`. Width 1 is strict."""

    window: int = 1
    """How far behind the oldest key a ready one may be and still go first."""

    def __post_init__(self) -> None:
        _at_least_one("window", self.window)

    def build(self, state: Any = None) -> "Window":
        return Window(self.window, state or ())


class Window:
    """First in, first out, except that any ready key among the `width` oldest may go first.

    The window is anchored at the oldest key that was not taken, and keys taken out of turn keep their place in it until that
    one goes: so at most `width - 1` keys ever overtake a slow one. A discarded key gives up its place.
    """

    def __init__(self, width: int, marks: Iterable[tuple[int, str]] = ()) -> None:
        self.width = width
        self._marks: OrderedDict[int, str] = OrderedDict(marks)
        self._trim()

    def add(self, key: int) -> None:
        self._marks[key] = PENDING

    def pending(self, key: int) -> None:
        """`key` is not ready after all; it keeps its place."""
        self._marks[key] = PENDING

    def ready(self, key: int, priority: float = 1.0) -> None:
        self._marks[key] = READY

    def take(self, key: int) -> None:
        self._marks[key] = TAKEN
        self._trim()

    def discard(self, key: int) -> None:
        self._marks.pop(key, None)
        self._trim()

    def select(self, rng: random.Random) -> tuple[int, float]:
        return self.takeable(1)[0], 1.0

    def num_ready(self, limit: int) -> int:
        return len(self.takeable(limit))

    def takeable(self, limit: int) -> list[int]:
        """The keys that could be taken now one after another, oldest first, at most `limit`."""
        keys: list[int] = []
        behind = 0
        for key, mark in self._marks.items():
            if behind >= self.width or len(keys) >= limit:
                break
            if mark == READY:
                keys.append(key)
            if behind or mark == PENDING:
                behind += 1
        return keys

    def state(self) -> list[tuple[int, str]]:
        return list(self._marks.items())

    def _trim(self) -> None:
        while self._marks and next(iter(self._marks.values())) == TAKEN:
            self._marks.popitem(last=False)


# --- at random ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every ready key with the same probability, with replacement."""

    def build(self, state: Any = None) -> "UniformSelector":
        return UniformSelector(state or ())


class UniformSelector(Selector):
    """A list in which the last key fills the hole that a leaving one makes: every operation takes constant time."""

    def __init__(self, keys: Iterable[int] = ()) -> None:
        self._keys = list(keys)
        self._place = {key: i for i, key in enumerate(self._keys)}

    def ready(self, key: int, priority: float) -> None:
        if key not in self._place:
            self._place[key] = len(self._keys)
            self._keys.append(key)

    def discard(self, key: int) -> None:
        if key in self._place:
            hole, last = self._place.pop(key), self._keys.pop()
            if last != key:
                self._keys[hole] = last
                self._place[last] = hole

    def select(self, rng: random.Random) -> tuple[int, float]:
        return self._keys[rng.randrange(len(self._keys))], 1.0 / len(self._keys)

    def num_ready(self, limit: int) -> int:
        return min(limit, len(self._keys))

    def state(self) -> list[int]:
        return list(self._keys)


@dataclass(frozen=True, slots=True)
class Recency:
    """One of the `last` newest ready keys, each with the same probability, with replacement. `last=1` is last in, first out."""

    last: int
    """How many of the newest keys are drawn from."""

    def __post_init__(self) -> None:
        _at_least_one("last", self.last)

    def build(self, state: Any = None) -> "RecencySelector":
        return RecencySelector(self.last, state or ())


class RecencySelector(UniformSelector):
    """The places are a dict, so they are in the order in which keys became ready. A draw walks back from the newest."""

    def __init__(self, last: int, keys: Iterable[int] = ()) -> None:
        super().__init__(keys)
        self._last = last

    def select(self, rng: random.Random) -> tuple[int, float]:
        num = min(self._last, len(self._place))
        return next(itertools.islice(reversed(self._place), rng.randrange(num), None)), 1.0 / num

    def state(self) -> list[int]:
        return list(self._place)


@dataclass(frozen=True, slots=True)
class Prioritised:
    """Probability in proportion to `priority ** exponent`, with replacement (Schaul et al. 2016, eq. 1).

    Weigh a draw's loss by its `probability` to undo the bias. A remover with a negative exponent prefers low priorities.
    """

    exponent: float = 0.6
    """0 is uniform, 1 is proportional."""

    def build(self, state: Any = None) -> "PrioritisedSelector":
        return PrioritisedSelector(self.exponent, state or ())


class PrioritisedSelector(Selector):
    """A tree of sums over the keys' weights: a change or a draw takes the logarithm of their number.

    Node `i` holds the sum of nodes `2i` and `2i + 1`; leaves begin at `width`, and a new key goes to the first free one. A sum
    is always made anew from its two parts, so rounding does not build up. Raises `DataError` for a priority whose weight is
    not a positive, finite number.
    """

    def __init__(self, exponent: float, leaves: Iterable[tuple[int, float] | None] = ()) -> None:
        self._exponent = exponent
        self._keys: list[int | None] = []
        self._place: dict[int, int] = {}
        self._free: list[int] = []
        self._width, self._sums = 1, [0.0, 0.0]
        for i, leaf in enumerate(leaves):
            self._keys.append(None)
            if leaf is None:
                self._free.append(i)
            else:
                self._put(i, *leaf)

    def ready(self, key: int, priority: float) -> None:
        weight = priority**self._exponent if priority > 0 else 0.0
        if not (weight > 0 and math.isfinite(weight)):
            raise DataError(
                f"item {key} cannot be drawn with this priority",
                given=f"priority {priority}, weight {weight}",
                expected="a weight that is positive and finite",
                todo="add a small constant to the priority",
            )
        if key not in self._place and not self._free:
            self._free.append(len(self._keys))
            self._keys.append(None)
        self._put(self._place[key] if key in self._place else heapq.heappop(self._free), key, weight)

    def discard(self, key: int) -> None:
        if key in self._place:
            i = self._place.pop(key)
            self._keys[i] = None
            heapq.heappush(self._free, i)
            self._set(i, 0.0)

    def select(self, rng: random.Random) -> tuple[int, float]:
        mass, node = rng.random() * self._sums[1], 1
        while node < self._width:
            node *= 2
            if mass >= self._sums[node] and self._sums[node + 1] > 0:
                mass -= self._sums[node]
                node += 1
        key = self._keys[node - self._width]
        assert key is not None, "the walk goes only where there is weight"
        return key, self._sums[node] / self._sums[1]

    def num_ready(self, limit: int) -> int:
        return min(limit, len(self._place))

    def state(self) -> list[tuple[int, float] | None]:
        return [None if key is None else (key, self._sums[self._width + i]) for i, key in enumerate(self._keys)]

    def _put(self, i: int, key: int, weight: float) -> None:
        while self._width < len(self._keys):
            leaves = self._sums[self._width :]
            self._width *= 2
            self._sums = [0.0] * self._width + leaves + [0.0] * (self._width - len(leaves))
            for node in range(self._width - 1, 0, -1):
                self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]
        self._keys[i], self._place[key] = key, i
        self._set(i, weight)

    def _set(self, i: int, weight: float) -> None:
        node = self._width + i
        self._sums[node] = weight
        while node > 1:
            node //= 2
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(
            f"a selector cannot work with this {name}", given=f"{name} {value}", expected="at least 1", todo=f"raise {name}"
        )
