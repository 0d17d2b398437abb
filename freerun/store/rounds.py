"""Rounds of federated training: which clients' work a server adds up at a time, and with what weights.

Papers      FedAvg (arXiv 1602.05629), FedBuff (arXiv 2106.06639), and the framework (arXiv 2206.10189) of which these,
            asynchronous FedAvg and FedFix are special cases.
Equation    theta <- theta + lr sum_{i in round} d_i (theta_i - theta sent to i)
Limit       what this converges to is the optimum of sum_i q_i f_i, q_i in proportion to d_i times how often i takes part
            (`rates`), for whatever d_i. For importances p_i it takes d_i = p_i / rate_i.

| scheme        | a round ends                      | a client that has arrived     | takes part, per round                |
|---------------|-----------------------------------|-------------------------------|--------------------------------------|
| `Synchronous` | when all have arrived: FedAvg     | waits for the end             | once                                 |
| `Arrivals(1)` | with each arrival: async. FedAvg  | goes on at once               | (1 / tau_i) / sum_j 1 / tau_j        |
| `Arrivals(c)` | with every c arrivals: FedBuff    | goes on at once               | c (1 / tau_i) / sum_j 1 / tau_j      |
| `Interval(s)` | every s seconds: FedFix           | waits for the end             | 1 / ceil(tau_i / s)                  |

tau_i is the time that client i takes for a piece of work. No clock and no tensors here: the caller says what time it is.

Code        the authors' code logs FedFix's `q_i` with ceil(tau_i / s) where its inverse belongs; `surrogate` follows the paper.
            With few clients and long steps the limit is only nearly that of the table: what is added up was computed at other
            places, and the bias shrinks with `lr`.
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

from freerun.errors import ConfigError, IllegalTransition

ROUNDING = 1e-9
"""Slack of times that are sums: what arrives at the very end of an interval belongs to it."""


class Scheme(Protocol):
    """When rounds end. `waits`: whether a client whose work is in stays idle until its round has ended."""

    waits: ClassVar[bool]

    def full(self, arrived: int, clients: int) -> bool:
        """Whether a round into which `arrived` pieces of work have come ends for that reason."""
        ...

    def closing(self, since: float, first: float) -> float:
        """When a round that began at `since`, and into which the first work came at `first`, ends because of the time."""
        ...

    def rates(self, seconds: Sequence[float]) -> list[float]:
        """How often each client takes part in a round, in the long run, if its work takes so many seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Synchronous:
    """FedAvg: a round waits for everybody."""

    waits: ClassVar[bool] = True

    def full(self, arrived: int, clients: int) -> bool:
        return arrived == clients

    def closing(self, since: float, first: float) -> float:
        return math.inf

    def rates(self, seconds: Sequence[float]) -> list[float]:
        return [1.0] * len(seconds)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Asynchronous FedAvg (one arrival), and FedBuff (several)."""

    count: int = 1
    """Arrivals of a round."""
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self, self.count >= 1, "count >= 1")

    def full(self, arrived: int, clients: int) -> bool:
        return arrived >= self.count

    def closing(self, since: float, first: float) -> float:
        return math.inf

    def rates(self, seconds: Sequence[float]) -> list[float]:
        total = sum(1.0 / s for s in seconds)
        return [self.count / s / total for s in seconds]


@dataclass(frozen=True, slots=True)
class Interval:
    """FedFix: a round takes a fixed time. One into which nothing has come goes on for as long again."""

    seconds: float
    """Length of a round."""
    waits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, self.seconds > 0, "seconds > 0")

    def full(self, arrived: int, clients: int) -> bool:
        return False

    def closing(self, since: float, first: float) -> float:
        return since + self.seconds * max(1, math.ceil((first - since) / self.seconds * (1.0 - ROUNDING) - ROUNDING))

    def rates(self, seconds: Sequence[float]) -> list[float]:
        return [1.0 / max(1, math.ceil(s / self.seconds * (1.0 - ROUNDING))) for s in seconds]


Config: TypeAlias = Synchronous | Arrivals | Interval
"""What a recipe can ask for."""


def weights(scheme: Scheme, importances: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """The weights `d_i` of clients' work with which `sum_i p_i f_i` is minimised: `p_i` over the rate of taking part."""
    return [p / rate for p, rate in zip(importances, scheme.rates(seconds), strict=True)]


def surrogate(scheme: Scheme, weights: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """The importances `q_i`, adding up to 1, of the objective that training with these weights really minimises."""
    parts = [d * rate for d, rate in zip(weights, scheme.rates(seconds), strict=True)]
    return [part / sum(parts) for part in parts]


class Work(NamedTuple):
    """A client's piece of work: begun with the weights of `version`."""

    client: int
    item: int
    version: int


class Rounds:
    """The state machine: who may begin, what has arrived, and what a round takes. Raises `IllegalTransition` for what the rules
    forbid. Every piece of work that is begun is taken exactly once."""

    def __init__(self, scheme: Scheme, clients: int) -> None:
        self.scheme, self.clients = scheme, clients
        self.since, self.next_item = 0.0, 0
        self._working: dict[int, Work] = {}
        self._arrived: list[Work] = []
        self._held: set[int] = set()
        self._first = math.inf

    def may_begin(self, client: int) -> bool:
        """Whether the client is idle, and need not wait: for the end of its round, or for what comes of it."""
        if client in self._working or client in self._held or self.scheme.full(len(self._arrived), self.clients):
            return False
        return not (self.scheme.waits and any(work.client == client for work in self._arrived))

    def begin(self, client: int, version: int) -> int:
        """The number of the piece of work that `client` begins with the weights of `version`."""
        if not self.may_begin(client):
            raise self._illegal(f"client {client} cannot begin", "neither working nor waiting for its round to end")
        self._working[client] = Work(client, self.next_item, version)
        self.next_item += 1
        return self._working[client].item

    def arrive(self, client: int, now: float) -> None:
        """The client's work is in."""
        if client not in self._working:
            raise self._illegal(f"client {client} cannot arrive", "that it has begun something")
        self._first = min(self._first, now)
        self._arrived.append(self._working.pop(client))

    @property
    def closing(self) -> float:
        """When the round ends, if nothing ends it before; infinite if time alone does not."""
        return self.scheme.closing(self.since, self._first) if self._arrived else math.inf

    def ready(self, now: float) -> bool:
        """Whether the round ends now."""
        due = self.closing
        return self.scheme.full(len(self._arrived), self.clients) or now >= due - ROUNDING * max(1.0, abs(due))

    def take(self, now: float) -> list[Work]:
        """End the round: what came in, in order of arrival. Until `published`, those whose work it is begin nothing new."""
        if not self.ready(now):
            raise self._illegal("the round cannot end", "that what the scheme waits for has happened")
        self.since = min(now, self.closing)
        arrived, self._arrived, self._first = self._arrived, [], math.inf
        self._held = {work.client for work in arrived}
        return arrived

    def published(self) -> None:
        """The version that the round made is there."""
        self._held = set()

    def counts(self) -> dict[str, int]:
        return {"admitted": self.next_item, "in_flight": len(self._working), "stored": len(self._arrived)}

    def state(self) -> dict[str, Any]:
        """JSON-able. Work under way is not kept: it is begun again."""
        first = None if math.isinf(self._first) else self._first
        arrived = [list(work) for work in self._arrived]
        return {"since": self.since, "first": first, "next_item": self.next_item, "arrived": arrived}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        self.since, self.next_item, self._working = state["since"], state["next_item"], {}
        self._arrived = [Work(*work) for work in state["arrived"]]
        self._first = math.inf if state["first"] is None else state["first"]

    def _illegal(self, what: str, expected: str) -> IllegalTransition:
        given = f"working {sorted(self._working)}, arrived {[w.client for w in self._arrived]}"
        return IllegalTransition(f"rounds: {what}", given=given, expected=expected, todo="this is a bug in the caller")


class Round(NamedTuple):
    """A round that ended at `time`, which made version `version`."""

    time: float
    version: int
    works: tuple[Work, ...]


def played(scheme: Scheme, seconds: Sequence[float], until: float) -> Iterator[Round]:
    """The rounds up to time `until` of clients whose work always takes so many seconds, all beginning at 0 with version 0."""
    rounds, version, now = Rounds(scheme, len(seconds)), 0, 0.0
    agenda: list[tuple[float, int]] = []
    while now <= until:
        for client in range(len(seconds)):
            if rounds.may_begin(client):
                rounds.begin(client, version)
                heapq.heappush(agenda, (now + seconds[client], client))
        if rounds.ready(now):
            version += 1
            yield Round(now, version, tuple(rounds.take(now)))
            rounds.published()
        elif agenda and agenda[0][0] <= rounds.closing * (1.0 + ROUNDING):
            now, client = heapq.heappop(agenda)
            rounds.arrive(client, now)
        else:
            now = rounds.closing


def _check(config: Scheme, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError("rounds cannot be like this", given=config, expected=rule, todo="correct the scheme in the recipe")
