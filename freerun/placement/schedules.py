"""When calls run within one process, and in which order their completions are delivered.

| schedule  | runs a call                            | delivers completions                           |
|-----------|----------------------------------------|------------------------------------------------|
| `Threads` | at once, on a thread of its executor   | as they come                                   |
| `Serial`  | after every earlier one                | in order of submission                         |
| `Virtual` | when its executor is free              | in order of virtual time                       |
| `Replay`  | when the record says it completed      | in the recorded order; after its end, serially |

All but the first run one call at a time on the controller's own thread: they are deterministic, and a debugger works in them.
"""

import asyncio
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from freerun.errors import ReplayDiverged
from freerun.placement.calls import Life, died, late
from freerun.placement.interleaving import Completion, Ending, settle

PATIENCE = 5.0
"""Seconds that a replay waits for the call that the record says comes next while it is asked for others."""


@dataclass(slots=True, eq=False)
class Call:
    """A submitted call: `work` makes the coroutine that runs it, `result` is what the caller awaits."""

    life: Life
    completion: Completion
    work: Callable[[], Coroutine[Any, Any, Any]]
    sync: bool
    deadline: float
    what: str
    result: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the result and the executor lives."""
        return not self.result.done() and not self.life.died.done()

    def deliver(self, outcome: "asyncio.Future[Any]") -> None:
        """Give the caller what `outcome`, which is done, holds."""
        error = None if outcome.cancelled() else outcome.exception()
        if self.result.done():
            return
        if outcome.cancelled():
            self.result.cancel()
        elif error is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(outcome.result())

    def fail(self, error: Exception) -> None:
        """Give the caller `error`, unless it no longer waits."""
        if not self.result.done():
            self.result.set_exception(error)


async def perform(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Run `work` to its end on this thread; the task that holds its outcome."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
    return task


class Schedule(Protocol):
    """One way to run calls. `real_time` says whether deadlines are seconds of the real clock."""

    real_time: bool

    def submit(self, call: Call) -> None:
        """Take over `call`; its result is set sooner or later."""
        ...

    async def visit(self, name: str, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work`, which makes or closes the executor `name`, where it lives: outside the order of calls."""
        ...

    def forget(self, name: str) -> None:
        """The executor `name` is dead; another may take its name."""
        ...

    def now(self) -> float:
        """Seconds on this schedule's clock."""
        ...

    def stop(self, deadline: float) -> None:
        """End what this schedule started."""
        ...


class LoopThread:
    """A daemon thread with an event loop: runs coroutines of other threads, one after another as far as they do not await."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._ending.wait())

    def submit(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Future[Any]":
        """Run `work` there; a future of the calling loop."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def stop(self, deadline: float) -> None:
        """End the thread. One still busy at `deadline` cannot be killed: it is left behind and ends with the process."""
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(deadline)


class Threads:
    """Each executor has a thread for sync calls, which therefore queue, and one for async calls, which overlap."""

    real_time = True

    def __init__(self) -> None:
        self._threads: dict[tuple[str, bool], LoopThread] = {}

    def submit(self, call: Call) -> None:
        work = self._thread(call.life.name, call.sync).submit(call.work())
        work.add_done_callback(call.deliver)
        call.result.add_done_callback(lambda result: work.cancel() if result.cancelled() else None)

    async def visit(self, name: str, work: Coroutine[Any, Any, Any]) -> Any:
        return await self._thread(name, sync=True).submit(work)

    def forget(self, name: str) -> None:
        for key in [k for k in self._threads if k[0] == name]:
            self._threads.pop(key).stop(0.0)

    def now(self) -> float:
        return time.monotonic()

    def stop(self, deadline: float) -> None:
        end = time.monotonic() + deadline
        for thread in self._threads.values():
            thread.stop(max(0.0, end - time.monotonic()))
        self._threads.clear()

    def _thread(self, name: str, sync: bool) -> LoopThread:
        if (name, sync) not in self._threads:
            self._threads[name, sync] = LoopThread(f"{name}-{'sync' if sync else 'async'}")
        return self._threads[name, sync]


class _Pumped:
    """What the deterministic schedules share: one task that runs calls, alive while there is something to do."""

    real_time = False

    def __init__(self) -> None:
        self._pump: asyncio.Task[None] | None = None

    async def visit(self, name: str, work: Coroutine[Any, Any, Any]) -> Any:
        return await work

    def forget(self, name: str) -> None:
        """Nothing belongs to one executor."""

    def now(self) -> float:
        return time.monotonic()

    def stop(self, deadline: float) -> None:
        if self._pump is not None:
            self._pump.cancel()

    def _ensure_pump(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(work())


class Serial(_Pumped):
    """First submitted, first run; the next one starts when the caller of the last has reacted."""

    def __init__(self) -> None:
        super().__init__()
        self._pending: deque[Call] = deque()

    def submit(self, call: Call) -> None:
        self._pending.append(call)
        self._ensure_pump(self._run)

    async def _run(self) -> None:
        while self._pending:
            call = self._pending.popleft()
            if call.wanted:
                call.deliver(await perform(call.work()))
            await settle()


class Virtual(_Pumped):
    """A simulated clock. A call starts when its executor is free (an async one at once) and takes `duration` seconds of it.

    `duration(executor, method)` is asked right after the work of the call has run, so it may depend on what the work did.
    A call whose duration exceeds its deadline fails with `DeadlineExceeded` at its deadline and keeps its executor busy.
    """

    def __init__(self, duration: Callable[[str, str], float]) -> None:
        super().__init__()
        self._duration = duration
        self._time = 0.0
        self._pending: list[Call] = []
        self._busy: set[str] = set()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def submit(self, call: Call) -> None:
        self._pending.append(call)
        self._ensure_pump(self._run)

    def now(self) -> float:
        return self._time

    async def _run(self) -> None:
        while True:
            await settle()
            await self._start()
            if not self._agenda:
                return
            self._time, _, happen = heapq.heappop(self._agenda)
            happen()

    async def _start(self) -> None:
        """Run every call whose turn it is at this instant, and put its completion on the agenda."""
        waiting, self._pending = self._pending, []
        for call in waiting:
            name = call.life.name
            if not call.wanted:
                continue
            if call.sync and name in self._busy:
                self._pending.append(call)
                continue
            if call.sync:
                self._busy.add(name)
            outcome = await perform(call.work())
            seconds = await self._ask(call)
            if seconds > call.deadline:
                self._at(self._time + call.deadline, partial(_too_late, call))
            self._at(self._time + seconds, partial(self._finish, call, outcome))

    async def _ask(self, call: Call) -> float:
        """The duration of `call`; if the function raises, the call fails with that."""

        async def ask() -> float:
            return self._duration(call.life.name, call.completion.method)

        answer = await perform(ask())
        if answer.exception() is None:
            return answer.result()
        call.deliver(answer)
        return 0.0

    def _finish(self, call: Call, outcome: "asyncio.Task[Any]") -> None:
        if call.sync:
            self._busy.discard(call.life.name)
        call.deliver(outcome)

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), happen))


class Replay(_Pumped):
    """Follows a recorded order. Calls that the record says timed out or died are not run but fail likewise.

    `report` is told the names of executors at the moment the recorded run learned of their deaths. When the caller asks for
    other calls than the record has, every open call raises `ReplayDiverged`.
    """

    def __init__(self, record: Sequence[Completion], report: Callable[[str], None]) -> None:
        super().__init__()
        self._record, self._report = deque(record), report
        self._pending: dict[tuple[str, str, int], Call] = {}
        self._arrival = asyncio.Event()

    def submit(self, call: Call) -> None:
        self._pending[call.completion.key] = call
        self._arrival.set()
        self._ensure_pump(self._run)

    async def _run(self) -> None:
        while self._record:
            completion = self._record.popleft()
            if completion.ending is Ending.DEATH:
                self._report(completion.executor)
            else:
                await self._await_arrival(completion)
                await self._follow(completion, self._pending.pop(completion.key))
            await settle()
        while self._pending:
            call = self._pending.pop(next(iter(self._pending)))
            if call.wanted:
                call.deliver(await perform(call.work()))
            await settle()

    async def _await_arrival(self, completion: Completion) -> None:
        """Wait until the call that is next in the record was submitted."""
        while completion.key not in self._pending:
            self._arrival.clear()
            arrival = asyncio.ensure_future(self._arrival.wait())
            done, _ = await asyncio.wait({arrival}, timeout=PATIENCE if any(c.wanted for c in self._pending.values()) else None)
            if not done:
                arrival.cancel()
                self._diverge(completion)

    def _diverge(self, completion: Completion) -> None:
        asked = ", ".join(f"{e}.{m} ({n})" for e, m, n in self._pending)
        error = ReplayDiverged(
            "the replayed run does other things than the recorded one",
            given=f"calls {asked}",
            expected=f"call {completion.executor}.{completion.method} ({completion.number})",
            todo="replay with the code, the config and the seed of the recorded run",
        )
        for call in self._pending.values():
            call.fail(error)
        self._pending.clear()

    async def _follow(self, completion: Completion, call: Call) -> None:
        if completion.ending is Ending.LATE:
            call.fail(late(call.life.name, call.what, call.deadline))
        elif completion.ending is Ending.DIED:
            call.fail(died(call.life.name, call.what, "as recorded"))
        elif not call.result.done():
            call.deliver(await perform(call.work()))


def _too_late(call: Call) -> None:
    call.fail(late(call.life.name, call.what, call.deadline))
