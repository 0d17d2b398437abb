"""Which item comes next. This file so far holds the one order that queues and admission share: first in, first out, with a window."""

from collections import OrderedDict
from collections.abc import Iterable

PENDING, READY, TAKEN = "pending", "ready", "taken"


class Window:
    """First in, first out, except that any ready key among the `width` oldest may go first.

    The window is anchored at the oldest key that was not taken, and keys taken out of turn keep their place in it until that
    one goes: so at most `width - 1` keys ever overtake a slow one. Width 1 is strict first in, first out. A discarded key gives up its place.
    """

    def __init__(self, width: int, marks: Iterable[tuple[int, str]] = ()) -> None:
        self.width = width
        self._marks: OrderedDict[int, str] = OrderedDict(marks)
        self._trim()

    def add(self, key: int) -> None:
        """Put `key` last, not ready."""
        self._marks[key] = PENDING

    def ready(self, key: int) -> None:
        """`key` may be taken as soon as it is inside the window."""
        self._marks[key] = READY

    def take(self, key: int) -> None:
        """`key` is gone, but if an older one is still here it counts as having overtaken it."""
        self._marks[key] = TAKEN
        self._trim()

    def discard(self, key: int) -> None:
        """`key` is gone and overtook nobody."""
        del self._marks[key]
        self._trim()

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

    def marks(self) -> list[tuple[int, str]]:
        """Every key from the oldest that was not taken, in order, as the constructor takes them."""
        return list(self._marks.items())

    def _trim(self) -> None:
        while self._marks and next(iter(self._marks.values())) == TAKEN:
            self._marks.popitem(last=False)
