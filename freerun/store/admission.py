"""Admission: how a bound on lag is kept by never starting too much, instead of by throwing work away.

A slot is charged when an item is admitted. It is freed when the item was trained AND that update was published, or when the
item is dropped. With `P` items a step and `(S + 1) * P` slots nothing is ever trained with a lag above `S + ceil((W - 1) / P)`,
where `W` is the window of the batcher (proof: docs/staleness.md). Here `S = max_lag`, `P = batch`, `W = window`.

    admit        begin          finish            take              trained           published
    -----> waiting ---> in flight ---> stored ----------> training ----------> trained ----------> slot free
              ^             |
              +-- fail, requeue           waiting, in flight, stored --- drop ---> dropped(reason), slot free

One item a step and lag 1, so two items may be under way:

>>> admission = Admission(batch=1, max_lag=1)
>>> first, second = admission.admit("a"), admission.admit("b")
>>> admission.admit("c") is None                       # both slots are charged
True
>>> admission.begin(first, version=0); admission.begin(second, version=0)
>>> admission.finish(second, oldest_version=0)
>>> admission.take(1, version=0)                       # `first` is older and not there yet, and the window is 1
[]
>>> admission.finish(first, oldest_version=0)
>>> admission.take(1, version=0)
[0]
>>> admission.trained([first], version=1)
>>> admission.admit("c") is None                       # trained, but nobody can generate with version 1 yet
True
>>> admission.published(1)
>>> third = admission.admit("c")
>>> admission.take(1, version=1)                       # lag 1: made by version 0, trained on by version 1
[1]
>>> {state: n for state, n in admission.counts().items() if n}
{'admitted': 3, 'waiting': 1, 'training': 1, 'trained': 1}
"""

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from freerun.errors import ConfigError, IllegalTransition, StaleItem
from freerun.store.ledger import Ledger
from freerun.store.selectors import READY, Window

if TYPE_CHECKING:
    from freerun.types import Failure

_BUG = "this is a bug in the caller, or here: report it with the run's events.jsonl"


class State(enum.StrEnum):
    """Where an item is. `TRAINED` items whose version is not yet published still hold a slot."""

    WAITING = "waiting"
    IN_FLIGHT = "in_flight"
    STORED = "stored"
    TRAINING = "training"
    TRAINED = "trained"


@dataclass(slots=True)
class Item:
    """What is known of an item that holds a slot. `admitted` is the version that was published when it was admitted, `least`
    the oldest one with which the bound holds (never above `admitted`), `oldest` the oldest that produced any part of it, -1
    until it is finished; `failures` counts failed attempts."""

    uid: str
    state: State
    admitted: int
    least: int
    oldest: int = -1
    failures: int = 0


class Admission:
    """The state machine of slots, versions and the window. Holds no payloads; ids count up from 0 in admission order.

    `batch` items make a step, `max_lag` is the target lag, `window` says how far behind the oldest active item the batcher may
    take a finished one, `retries` how often a failed item is tried again before it is dropped. Every method is a transition
    and refuses, with `IllegalTransition` and before any change, an item that is not where the transition starts.
    """

    def __init__(self, *, batch: int, max_lag: int, window: int = 1, retries: int = 2) -> None:
        given = {"batch": batch, "max_lag": max_lag, "window": window, "retries": retries}
        for name, least in (("batch", 1), ("max_lag", 0), ("window", 1), ("retries", 0)):
            if given[name] < least:
                raise ConfigError(
                    f"admission cannot work with this {name}",
                    given=f"{name} {given[name]}",
                    expected=f"at least {least}",
                    todo=f"raise {name}",
                )
        self.batch, self.max_lag, self.window, self.retries = batch, max_lag, window, retries
        self.capacity = (max_lag + 1) * batch
        self.trainer_version = self.published_version = self.next_item = 0
        self.items: dict[int, Item] = {}
        self.ledger = Ledger()
        self.failures: Counter[str] = Counter()
        self._order = Window(window)
        self._training: list[int] = []
        self._unpublished: dict[int, list[int]] = {}
        self._counts: Counter[str] = Counter()

    @property
    def lag_bound(self) -> int:
        """The largest lag that `take` can meet. At `max_lag` 0 a step needs every item that has a slot, whatever the window."""
        return self.max_lag + -(-(self.window - 1) // self.batch) if self.max_lag else 0

    @property
    def free_slots(self) -> int:
        return self.capacity - len(self.items)

    # --- an item's way -------------------------------------------------------------------------------------------------------

    def admit(self, uid: str) -> int | None:
        """Charge a slot for a new item made from the prompt `uid`; its id, or None if no slot is free."""
        if not self.free_slots:
            return None
        item, self.next_item = self.next_item, self.next_item + 1
        least = (item - self._counts["dropped"]) // self.batch - self.max_lag
        self.items[item] = Item(uid, State.WAITING, self.published_version, least)
        self._counts.update((State.WAITING, "admitted"))
        self._order.add(item)
        return item

    def begin(self, item: int, version: int) -> None:
        """An actor that holds `version` starts on `item`. The proof needs it *born fresh*: `version` is at least the one that
        was published when the item was admitted. It cannot be one that is not published yet."""
        entry = self._at(item, "begin", State.WAITING)
        self._check_version(item, "begin", version, entry.admitted)
        self._move(entry, State.IN_FLIGHT)

    def finish(self, item: int, oldest_version: int) -> None:
        """`item` is complete and scored; `oldest_version` is the oldest that actors stamped on any of its tokens or steps."""
        entry = self._at(item, "finish", State.IN_FLIGHT)
        self._check_version(item, "finish", oldest_version, entry.admitted)
        self._store(item, entry, oldest_version)

    def fail(self, item: int, failure: "Failure") -> bool:
        """An attempt at `item` failed. True: it waits again, at its place in the order. False: that was the last attempt, and
        it is dropped, the kind of its failure being the reason."""
        entry = self._at(item, "fail", State.IN_FLIGHT)
        self.failures[str(failure.kind)] += 1
        entry.failures += 1
        if entry.failures > self.retries:
            self.drop(item, str(failure.kind))
            return False
        self._move(entry, State.WAITING)
        return True

    def requeue(self, item: int) -> None:
        """The actor of `item` died, or what it had stored is lost: it waits again, at its place in the order. Not counted as a
        failure of the item."""
        self._move(self._at(item, "requeue", State.IN_FLIGHT, State.STORED), State.WAITING)
        self._order.pending(item)

    def recall(self, item: int, oldest_version: int) -> bool:
        """`item` was finished before a crash: store it without generating it again. False, and nothing changes, if it is older
        than the bound allows here. Its versions may be newer than any published one: those updates were lost, while the
        log-probs that training corrects with were not."""
        entry = self._at(item, "recall", State.WAITING)
        if oldest_version < entry.least:
            return False
        self._store(item, entry, oldest_version)
        return True

    def drop(self, item: int, reason: str) -> None:
        """Give `item` up. Its slot is free at once and it leaves the order, so that a new item takes its part in the step. Not
        once it was taken: a gradient cannot be taken back."""
        self._at(item, f"drop ({reason})", State.WAITING, State.IN_FLIGHT, State.STORED)
        self._counts[self.items.pop(item).state] -= 1
        self._counts["dropped"] += 1
        self._order.discard(item)
        self.ledger.drop(item, reason)

    # --- a step --------------------------------------------------------------------------------------------------------------

    def ready(self) -> int:
        """How many items `take` would give now."""
        return len(self._order.takeable(self.batch - len(self._training)))

    def take(self, n: int, version: int) -> list[int]:
        """Up to `n` finished items for the step that the trainer makes at `version`, oldest first; fewer if fewer are inside
        the window, none once the step has its `batch` items. A step may be taken in several calls. Raises `StaleItem` if a lag
        is above `lag_bound`, which admission makes impossible."""
        if version != self.trainer_version:
            raise _illegal("a step is made at a version that is not the trainer's", version, self.trainer_version)
        items = self._order.takeable(min(n, self.batch - len(self._training)))
        for item in items:
            lag = version - self.items[item].oldest
            if lag > self.lag_bound:
                raise StaleItem(
                    f"item {item} is too old to train on",
                    given=f"lag {lag}, trainer at version {version}",
                    expected=f"lag at most {self.lag_bound}",
                    todo=_BUG,
                )
        for item in items:
            self._order.take(item)
            self._move(self.items[item], State.TRAINING)
        self._training += items
        return items

    def trained(self, items: Sequence[int], version: int) -> None:
        """The step on `items`, which are all that were taken since the last one and exactly `batch`, has made `version`."""
        given, expected = (version, sorted(items)), (self.trainer_version + 1, sorted(self._training))
        if given != expected or len(items) != self.batch:
            raise _illegal("a step closed that does not fit what was taken for it", given, f"{expected}: {self.batch} items")
        for item in items:
            self._move(self.items[item], State.TRAINED)
        self.ledger.train(items, version)
        self.trainer_version, self._training, self._unpublished[version] = version, [], list(items)

    def published(self, version: int) -> None:
        """Actors can have `version` from now on: the slots of the items of its step, and of steps before it, are free."""
        if not self.published_version < version <= self.trainer_version:
            expected = f"above {self.published_version} and at most {self.trainer_version}"
            raise _illegal("a version was published out of turn", version, expected)
        self.published_version = version
        for done in [v for v in self._unpublished if v <= version]:
            for item in self._unpublished.pop(done):
                del self.items[item]

    # --- accounts and checkpoints --------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """`admitted = waiting + in_flight + stored + training + trained + dropped`, and `dropped` once more by reason."""
        counts = {str(name): self._counts[name] for name in ("admitted", *State, "dropped")}
        return counts | {f"dropped/{reason}": n for reason, n in self.ledger.num_dropped.items()}

    def audit(self) -> None:
        """Recount everything from the items and the ledger. Raises `IllegalTransition` if the books do not balance."""
        live: Counter[str] = Counter(entry.state for entry in self.items.values() if entry.state != State.TRAINED)
        ended = list(self.ledger.ended())
        ids = [*ended, *(i for i, entry in self.items.items() if entry.state != State.TRAINED)]
        history = Ledger(self.ledger.trained, self.ledger.dropped)
        recount = {
            "admitted": self.next_item,
            **{str(s): live[s] for s in State},
            "trained": history.num_trained,
            "dropped": history.num_dropped.total(),
            **{f"dropped/{r}": n for r, n in history.num_dropped.items()},
        }
        if recount != self.counts() or sorted(ids) != list(range(self.next_item)) or len(self.items) > self.capacity:
            given, expected = f"{self.counts()} in {len(self.items)} slots", f"{recount}, every item once, in {self.capacity}"
            raise _illegal("the accounts of the store do not balance", given, expected)

    def state(self) -> dict[str, Any]:
        """A snapshot of everything, JSON-able; it belongs into the checkpoint of the trainer at `trainer_version`."""
        return {
            "batch": self.batch,
            "max_lag": self.max_lag,
            "window": self.window,
            "retries": self.retries,
            "trainer_version": self.trainer_version,
            "published_version": self.published_version,
            "next_item": self.next_item,
            "items": {str(i): asdict(entry) for i, entry in self.items.items()},
            "order": self._order.state(),
            "unpublished": {str(v): list(items) for v, items in self._unpublished.items()},
            "failures": dict(self.failures),
            "ledger": self.ledger.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Admission":
        """Go on after a restart: what was in flight waits again, and what was taken for a step that never closed is stored
        again, as if the attempt at that step had not been made."""
        self = cls(batch=state["batch"], max_lag=state["max_lag"], window=state["window"], retries=state["retries"])
        self.trainer_version, self.published_version = state["trainer_version"], state["published_version"]
        self.next_item, self.ledger = state["next_item"], Ledger.from_state(state["ledger"])
        self.failures = Counter(state["failures"])
        self._unpublished = {int(v): list(items) for v, items in state["unpublished"].items()}
        order = dict(state["order"])
        again = {State.IN_FLIGHT: State.WAITING, State.TRAINING: State.STORED}
        for key, fields in state["items"].items():
            item, entry = int(key), Item(**{**fields, "state": State(fields["state"])})
            if entry.state == State.TRAINING:
                order[item] = READY
            entry.state = again.get(entry.state, entry.state)
            self.items[item] = entry
        self._order = Window(self.window, sorted(order.items()))
        self._counts = Counter(e.state for e in self.items.values() if e.state != State.TRAINED)
        self._counts.update(admitted=self.next_item, trained=self.ledger.num_trained, dropped=self.ledger.num_dropped.total())
        return self

    # --- helpers -------------------------------------------------------------------------------------------------------------

    def _at(self, item: int, transition: str, *states: State) -> Item:
        entry = self.items.get(item)
        if entry is None or entry.state not in states:
            where = entry.state if entry else self.ledger.outcome(item) if item < self.next_item else "never admitted"
            raise _illegal(f"cannot {transition} item {item}", f"it is: {where}", " or ".join(states))
        return entry

    def _check_version(self, item: int, transition: str, version: int, admitted: int) -> None:
        if not admitted <= version <= self.published_version:
            raise IllegalTransition(
                f"cannot {transition} item {item} with weights of version {version}",
                given=f"admitted when version {admitted} was published; now {self.published_version} is",
                expected=f"a version from {admitted} to {self.published_version}",
                todo="give the actor the newest weights together with the item",
            )

    def _store(self, item: int, entry: Item, oldest_version: int) -> None:
        entry.oldest = oldest_version
        self._move(entry, State.STORED)
        self._order.ready(item)

    def _move(self, entry: Item, state: State) -> None:
        self._counts[entry.state] -= 1
        self._counts[state] += 1
        entry.state = state


def _illegal(what: str, given: object, expected: object) -> IllegalTransition:
    return IllegalTransition(what, given=given, expected=expected, todo=_BUG)
