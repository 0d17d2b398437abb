"""The order in which calls complete, written down and read back.

What a call does depends only on its arguments and its executor's own state, and what the controller does next depends only on
the order in which it learns of completions. So that order is all there is to record: one JSON line per completion, in the order
of delivery. The same rule of delivery holds while recording and while replaying: one completion at a time, and the controller
has reacted to it fully before the next (`settle`).
"""

import asyncio
import json
from collections import deque
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from freerun.errors import RunDirectoryError

HOPS = 32
"""Turns of the event loop that the controller gets for its reaction; it takes a handful (task wakes task wakes task)."""


async def settle() -> None:
    """Let every task that the last delivery woke, and those that they wake, run until they wait again."""
    for _ in range(HOPS):
        await asyncio.sleep(0)


class Ending(StrEnum):
    """How a call ended, as its caller saw it; `DEATH` is the report of a death by `Placement.failures`."""

    RETURNED = "returned"
    RAISED = "raised"
    LATE = "late"
    DIED = "died"
    DEATH = "death"


@dataclass(frozen=True, slots=True)
class Completion:
    """The `number`-th call of `method` on `executor`, counting from 0 in order of submission. An element of a stream is a call,
    too, with its index after a `#` in `method`."""

    executor: str
    method: str
    number: int
    ending: Ending = Ending.RETURNED

    @property
    def key(self) -> tuple[str, str, int]:
        return self.executor, self.method, self.number


def read(path: Path) -> list[Completion]:
    """The recorded order. Raises `RunDirectoryError` if the file is missing or is not one; a torn last line is left out."""
    try:
        lines = path.read_text().split("\n")
        return [Completion(**{**(c := json.loads(line)), "ending": Ending(c["ending"])}) for line in lines[:-1]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunDirectoryError(
            "this recorded interleaving cannot be read",
            given=f"{path}: {error}",
            expected="the interleaving.jsonl that a run wrote with placement.record on",
            todo="record a run again, or correct the path",
        ) from error


class Recorder:
    """Delivers completions one at a time and writes down their order. Belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self._queue: deque[tuple[Completion, asyncio.Future[None]]] = deque()
        self._deliveries: asyncio.Task[None] | None = None

    async def turn(self, completion: Completion) -> None:
        """Wait until it is this completion's turn to be delivered; it is written when this returns."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((completion, turn))
        if self._deliveries is None or self._deliveries.done():
            self._deliveries = asyncio.create_task(self._deliver())
        await turn

    async def _deliver(self) -> None:
        while self._queue:
            completion, turn = self._queue.popleft()
            if turn.cancelled():
                continue  # the caller no longer waits, so it never learns of this completion
            self._file.write(json.dumps(asdict(completion)) + "\n")
            self._file.flush()
            turn.set_result(None)
            await settle()

    def close(self) -> None:
        """Close the file; every line is already in it."""
        self._file.close()
