"""An executor for tests of placements, and a way to run a body on some of them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

from freerun.errors import DataError
from freerun.placement.base import ExecutorSpec
from freerun.placement.inline import InlinePlacement


class Worker:
    """An executor with state, and ways to go wrong."""

    def __init__(self, state: int = 0) -> None:
        if state < 0:
            raise ValueError("negative state")
        self.state, self.log, self.closed = state, [], []

    def add(self, amount: int) -> int:
        self.state = self.state * 3 + amount
        return self.state

    def note(self, word: str) -> list[str]:
        self.log.append(word)
        return list(self.log)

    def meet(self, barrier: threading.Barrier) -> int:
        return barrier.wait(timeout=20)

    def hold(self, event: threading.Event) -> bool:
        return event.wait(timeout=20)

    async def wait_for(self, event: asyncio.Event) -> str:
        await event.wait()
        return "seen"

    async def make_event(self) -> asyncio.Event:
        return asyncio.Event()

    async def set(self, event: asyncio.Event) -> None:
        event.set()

    async def count(self, end: int):
        for i in range(end):
            self.log.append(i)
            yield i

    def thread(self) -> str:
        return threading.current_thread().name

    def complain(self) -> None:
        raise DataError("bad row", given="row 7", expected="a good one", todo="drop it")

    def stumble(self) -> None:
        raise KeyError("oops")

    def leave(self) -> None:
        raise SystemExit(3)

    def close(self) -> None:
        self.closed.append(True)


def run(placement: InlinePlacement, body: Callable[..., Awaitable], *names: str, **kwargs):
    """`body(handles...)` on fresh workers, with everything stopped afterwards."""

    async def main():
        try:
            handles = await placement.spawn([ExecutorSpec(name=n, factory=Worker, kwargs=kwargs) for n in names or ("a",)])
            return await body(*handles.values())
        finally:
            await placement.stop()

    return asyncio.run(asyncio.wait_for(main(), 60))
