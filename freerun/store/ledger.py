"""How every item ended: trained at which version, or dropped for which reason. JSON-able, and small: it keeps runs of items."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Runs = list[list[int]]
"""Item ids as `[first, last]` runs, in the order in which they ended."""


class Ledger:
    """Outcomes of items that have left the store, for good: each item ends once.

    A step in admission order is one run, so a ledger of a million items takes about as much room as its steps.
    `num_trained` and `num_dropped` (by reason) are counted apart from the runs.
    """

    def __init__(self, trained: Mapping[int, Runs] | None = None, dropped: Mapping[str, Runs] | None = None) -> None:
        self.trained = {version: _copy(runs) for version, runs in (trained or {}).items()}
        self.dropped = {reason: _copy(runs) for reason, runs in (dropped or {}).items()}
        self.num_trained = sum(map(_length, self.trained.values()))
        self.num_dropped = Counter({reason: _length(runs) for reason, runs in self.dropped.items()})

    def train(self, items: Iterable[int], version: int) -> None:
        """`items` were trained on by the step that made `version`."""
        items = sorted(items)
        _extend(self.trained.setdefault(version, []), items)
        self.num_trained += len(items)

    def drop(self, item: int, reason: str) -> None:
        """`item` was given up."""
        _extend(self.dropped.setdefault(reason, []), [item])
        self.num_dropped[reason] += 1

    def outcome(self, item: int) -> int | str | None:
        """The version that trained on `item`, the reason for which it was dropped, or None if it has not ended."""
        for outcomes in (self.trained, self.dropped):
            for outcome, runs in outcomes.items():
                if any(first <= item <= last for first, last in runs):
                    return outcome
        return None

    def ended(self) -> Iterator[int]:
        """Every item that has ended, once for each time it did."""
        for runs in [*self.trained.values(), *self.dropped.values()]:
            for first, last in runs:
                yield from range(first, last + 1)

    def state(self) -> dict[str, Any]:
        """A snapshot, JSON-able."""
        return {
            "trained": {str(version): _copy(runs) for version, runs in self.trained.items()},
            "dropped": {reason: _copy(runs) for reason, runs in self.dropped.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Ledger":
        return cls({int(v): runs for v, runs in state["trained"].items()}, state["dropped"])


def _extend(runs: Runs, items: Iterable[int]) -> None:
    for item in items:
        if runs and runs[-1][1] == item - 1:
            runs[-1][1] = item
        else:
            runs.append([item, item])


def _copy(runs: Runs) -> Runs:
    return [list(run) for run in runs]


def _length(runs: Runs) -> int:
    return sum(last - first + 1 for first, last in runs)
