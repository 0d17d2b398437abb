"""Tasks that run side by side: the first to fail ends all, and whoever waits is woken when something has changed."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from freerun.placement.base import Handle


class Loops:
    """The running tasks of one program. `waiting(handle, why)` is told what an executor waits for, each time somebody looks."""

    def __init__(self, waiting: Callable[[Handle, str], None]) -> None:
        self._waiting = waiting
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task] = set()
        self._failed: asyncio.Future

    async def beside(self, main: Coroutine[Any, Any, None], others: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run `main` to its end beside `others`, which are then cancelled; the first error of any task, those that were spawned
        meanwhile included, ends all and is raised here."""
        self._failed = asyncio.get_running_loop().create_future()
        first = self.spawn(main)
        for other in others:
            self.spawn(other)
        try:
            await asyncio.wait({first, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
        finally:
            rest, self._tasks = self._tasks, set()
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            self._failed.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task:
        """Run `work` as a task whose error ends all."""

        def ended(task: asyncio.Task) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not self._failed.done():
                self._failed.set_exception(error)

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    def notify(self) -> None:
        """Something has changed: wake everybody who waits."""
        self._wake.set()
        self._wake = asyncio.Event()

    async def until(self, ready: Callable[[], bool], handle: Handle, why: Callable[[], str]) -> None:
        """Return when `ready()`; meanwhile `handle` is idle, and `why()` says what it waits for."""
        while not ready():
            self._waiting(handle, why())
            await self._wake.wait()
