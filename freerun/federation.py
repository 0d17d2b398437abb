"""A supply of clients' work for a server: `store.rounds` in place of the queue of rollouts.

The program is that of any control run. An actor trains as well and sends what that changed, the trainer adds changes up, and
which of them make a step is what a federated scheme decides.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from freerun.collection import Rollouts
from freerun.env_schedule import Work
from freerun.store.rounds import Rounds, Scheme
from freerun.transitions import Chunk


class Rounded(Rollouts):
    """The work of `clients` clients in rounds; `now` is the clock by which a scheme may end them. A checkpoint keeps nothing of
    what has arrived and is not added up: like what is under way, it is done again."""

    def __init__(self, scheme: Scheme, clients: int, now: Callable[[], float]) -> None:
        self._scheme, self._now = scheme, now
        self._rounds = Rounds(scheme, clients)
        self.chunks: dict[int, Chunk] = {}

    def begin_phase(self, work: Work) -> None:
        """Nothing: the scheme is that of the whole run."""

    def order(self, version: int, actor: int) -> int | None:
        if not self._rounds.next_item:
            self._rounds.since = self._now()
        return self._rounds.begin(actor, version) if self._rounds.may_begin(actor) else None

    def arrived(self, chunk: Chunk) -> None:
        self._rounds.arrive(chunk.actor, self._now())
        self.chunks[chunk.item] = chunk

    def ready(self) -> bool:
        return self._rounds.ready(self._now())

    def remaining(self) -> float:
        """Seconds until time ends the round; infinite if it does not."""
        return max(0.0, self._rounds.closing - self._now())

    def exhausted(self) -> bool:
        """What arrived last may never fill a round: it is not used."""
        return not self.ready() and math.isinf(self._rounds.closing)

    def take(self, version: int) -> list[Chunk]:
        return [self.chunks.pop(work.item) for work in self._rounds.take(self._now())] if self.ready() else []

    def trained(self, chunks: Sequence[Chunk], version: int) -> None:
        self._rounds.published()

    def counts(self) -> Mapping[str, int]:
        return self._rounds.counts()

    def state(self) -> dict[str, Any]:
        return {"next_item": self._rounds.next_item}

    def payloads(self) -> Mapping[int, bytes]:
        return {}

    def load(self, state: Mapping[str, Any], payloads: Mapping[int, bytes]) -> None:
        self._rounds.next_item, self._rounds.since = state["next_item"], self._now()
