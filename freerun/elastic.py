"""More or fewer generators while a run goes on. The request is a file in the run directory, which a resumed run finds again;
the answers are events.

A new generator starts at the newest version, because its first request carries that. One that is to go gets no more work and
ends when it has answered what it has; if it dies before, others do that.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from freerun.errors import FreerunError
from freerun.intake import Intake
from freerun.metrics import Event, Sink
from freerun.placement.base import ExecutorSpec, Placement
from freerun.tracker import Tracker

REQUEST = "scale.json"
PERIOD = 0.5
"""Seconds between two looks for a request."""


def ask(directory: Path, actors: int) -> None:
    """Ask the run in `directory`, which may be going on or be resumed later, for so many generators."""
    attempt = directory / f".{REQUEST}.new"
    attempt.write_text(json.dumps({"actors": actors}))
    attempt.replace(directory / REQUEST)


def asked(directory: Path) -> int | None:
    """How many generators were asked for last; None if nobody asked. Raises `ValueError` for a file that does not say."""
    try:
        request = json.loads((directory / REQUEST).read_text())
    except FileNotFoundError:
        return None
    if not isinstance(request, dict) or type(request.get("actors")) is not int or request["actors"] < 1:
        raise ValueError(f"{REQUEST} says {request!r}, and not how many actors of at least 1")
    return int(request["actors"])


class Elastic:
    """Follows requests for the run in `directory`. `spec(i)` says how the generator of number `i` is made."""

    def __init__(
        self,
        intake: Intake,
        placement: Placement,
        tracker: Tracker,
        sink: Sink,
        spec: Callable[[int], ExecutorSpec],
        directory: Path,
    ) -> None:
        self._intake, self._placement, self._tracker, self._sink = intake, placement, tracker, sink
        self._spec, self._directory = spec, directory
        self._refused, self._failed = "", 0

    async def follow(self) -> None:
        """The loop: ends with the run."""
        while True:
            try:
                wanted = asked(self._directory)
            except ValueError as error:
                self._refuse(str(error))
                wanted = None
            if wanted is not None:
                await self.scale(wanted)
            for name in self._intake.crew.done:
                await self._remove(name)
            await asyncio.sleep(PERIOD)

    async def scale(self, wanted: int) -> None:
        """Have `wanted` generators, at least 1. Returns when new ones have begun; those that go may take longer."""
        crew = self._intake.crew
        while len(crew.staying) < wanted:
            if not await self._add(wanted):
                return
        for name in crew.staying[wanted:]:
            self._intake.dismiss(name)
            self._say(name, "leaving")

    async def _add(self, wanted: int) -> bool:
        """Whether one more could be started."""
        taken = self._intake.crew.members.keys()
        spec = next(spec for i in range(len(taken) + 1) if (spec := self._spec(i)).name not in taken)
        if self._failed == wanted:
            return False
        try:
            (handle,) = (await self._placement.spawn([spec])).values()
        except FreerunError as error:
            self._failed = wanted
            self._refuse(str(error))
            return False
        self._tracker.add(handle)
        self._intake.enlist(handle)
        self._say(spec.name, "added")
        return True

    async def _remove(self, name: str) -> None:
        del self._intake.crew.members[name]
        await self._placement.retire(name)
        self._tracker.remove(name)
        self._say(name, "removed")

    def _say(self, name: str, what: str) -> None:
        now, detail = self._tracker.now(), {"generators": len(self._intake.crew.staying)}
        self._sink.event(Event(executor=name, what=what, start=now, end=now, detail=detail))

    def _refuse(self, why: str) -> None:
        if why != self._refused:
            self._refused, now = why, self._tracker.now()
            self._sink.event(Event(executor="controller", what="scale refused", start=now, end=now, detail={"why": why}))
