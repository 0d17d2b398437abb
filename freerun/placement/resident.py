"""The inside of a process that is home to one executor. Knows nothing of how messages reach it."""

import asyncio
import contextvars
import faulthandler
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from freerun.placement import wire
from freerun.placement.calls import END, Exited, failed, is_sync, run, translated
from freerun.placement.schedules import LoopThread

FAREWELL = 0.2
"""Seconds for the news of an executor's exit to leave before its process ends."""


def environment(threads: int) -> dict[str, str]:
    """Variables that must be set before the process starts, because torch and OpenMP read them when they are loaded.

    Passive waiting: a thread that spins while it waits takes its core from the neighbour that it waits for.
    """
    number = str(threads)
    return {
        "OMP_NUM_THREADS": number,
        "MKL_NUM_THREADS": number,
        "OPENBLAS_NUM_THREADS": number,
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }


def settle_in(name: str, cores: Sequence[int]) -> None:
    """Give this process its executor's name in lists of processes, make it the head of its own process group, and keep it on
    `cores`.

    A group, because its end must take along whatever processes the executor starts; and so that an interrupt from the keyboard
    reaches only the controller, which knows what to do.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    if sys.platform == "linux":
        Path("/proc/self/comm").write_text(name)  # the kernel keeps 15 bytes
    if cores and sys.platform == "linux":
        for thread in os.listdir("/proc/self/task"):  # those that run already; later ones inherit
            os.sched_setaffinity(int(thread), cores)


def answer_stacks() -> int:
    """From now on SIGUSR1 makes this process write the stacks of its threads, whatever they do and even if they hang: into
    memory that others read through the descriptor returned here, or to stderr (then -1) where there is no such memory."""
    if sys.platform != "linux":
        faulthandler.register(signal.SIGUSR1)
        return -1
    descriptor = os.memfd_create("stacks")
    faulthandler.register(signal.SIGUSR1, file=descriptor)
    return descriptor


class Resident:
    """Runs the calls of one executor: sync ones one at a time on a thread, async ones on the event loop of another thread.

    So whoever delivers messages is never kept waiting. Messages and replies are `wire` bytes; a reply is `(True, result)` or
    `(False, error)`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: Any = None
        self._sync = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._async: LoopThread | None = None
        self._streams: dict[int, AsyncGenerator[Any, None]] = {}

    async def start(self, message: bytes) -> bytes:
        """Make the executor from `(factory, args, kwargs)`."""

        def work() -> None:
            factory, args, kwargs = wire.loads(message)
            self._executor = factory(*args, **kwargs)

        return await self._on_thread("__init__", work)

    async def call(self, method: str, message: bytes) -> bytes:
        """Run `method` with `(args, kwargs)`."""

        def work() -> Any:
            args, kwargs = wire.loads(message)
            return getattr(self._executor, method)(*args, **kwargs)

        return await (self._on_thread if is_sync(self._executor, method) else self._on_loop)(method, work)

    async def advance(self, method: str, message: bytes, stream: int) -> bytes:
        """The next element of a stream, or `END`, after which it is forgotten. A `stream` of a new number is begun."""

        async def work() -> Any:
            if stream not in self._streams:
                args, kwargs = wire.loads(message)
                self._streams[stream] = getattr(self._executor, method)(*args, **kwargs)
            element = await anext(self._streams[stream], END)
            if element is END:
                del self._streams[stream]
            return element

        return await self._on_loop(method, work)

    async def end(self, method: str, stream: int) -> bytes:
        """Close a stream before its end."""
        return await self._on_loop(method, self._streams.pop(stream).aclose)

    async def close(self) -> bytes:
        """Close the executor, if it exists and has a `close`."""
        if not callable(getattr(self._executor, "close", None)):
            return wire.dumps((True, None))
        return await self.call("close", wire.dumps(((), {})))

    async def _on_thread(self, method: str, work: Callable[[], Any]) -> bytes:
        def sync() -> Any:
            with translated(self._name, method):
                return wire.dumps((True, work()))

        context = contextvars.copy_context()  # transports find the process that they belong to in it
        return await self._reply(method, asyncio.get_running_loop().run_in_executor(self._sync, context.run, sync))

    async def _on_loop(self, method: str, work: Callable[[], Any]) -> bytes:
        async def overlapping() -> bytes:
            result = await run(self._name, method, work)
            with translated(self._name, method):
                return wire.dumps((True, result))

        if self._async is None:
            self._async = LoopThread(f"{self._name}-async")
        return await self._reply(method, self._async.submit(overlapping()))

    async def _reply(self, method: str, outcome: "asyncio.Future[bytes]") -> bytes:
        await asyncio.wait({outcome})
        if outcome.cancelled():
            return wire.dumps((False, failed(self._name, method, asyncio.CancelledError())))
        match outcome.exception():
            case None:
                return outcome.result()
            case Exited() as exited:
                asyncio.get_running_loop().call_later(FAREWELL, _exit, exited.args[0])
                return wire.dumps((False, exited))
            case error:
                return wire.dumps((False, error))


def _exit(status: object) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
