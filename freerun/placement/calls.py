"""One call on one executor, as both placements make it: run it, wait for it with a deadline, name what goes wrong."""

import asyncio
import enum
import inspect
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from freerun.errors import ConfigError, DeadlineExceeded, ExecutorDied, ExecutorFailed, FreerunError
from freerun.placement.base import Death, ExecutorSpec
from freerun.placement.interleaving import Completion, Ending, Recorder


def check(specs: Sequence[ExecutorSpec], taken: Collection[str]) -> None:
    """Raises `ConfigError` for specifications that cannot all be started beside the executors named in `taken`."""
    for name, number in Counter([*taken, *(spec.name for spec in specs)]).items():
        if number > 1:
            raise ConfigError(
                f"two executors are called '{name}'", given=f"{number} of that name", expected="one", todo="number them"
            )
    usable = os.sched_getaffinity(0) if sys.platform == "linux" else frozenset(range(os.cpu_count() or 1))
    for spec in specs:
        if not usable.issuperset(spec.cores) or spec.threads < 1:
            raise ConfigError(
                f"executor '{spec.name}' cannot have these cores or threads",
                given=f"cores {spec.cores}, {spec.threads} threads",
                expected=f"cores out of {sorted(usable)}, at least one thread",
                todo="lower the number of executors, or switch pinning off",
            )


class End(enum.Enum):
    """Stands for the element after the last of a stream; stays itself when pickled."""

    END = "end of stream"


END = End.END


class Exited(Exception):
    """A method raised `SystemExit`: its executor is to count as dead. `SystemExit` itself would end an event loop."""

    def __str__(self) -> str:
        return f"exit status {self.args[0]}"


@contextmanager
def translated(name: str, method: str) -> Iterator[None]:
    """Errors of the block, which calls `method` on the executor `name`, as a `Handle.call` raises them.

    A `FreerunError` stays itself, anything else becomes `ExecutorFailed` with the traceback, and `SystemExit` becomes `Exited`.
    """
    try:
        yield
    except FreerunError:
        raise
    except SystemExit as exit:
        raise Exited(exit.code) from exit
    except Exception as error:
        raise failed(name, method, error) from error


async def run(name: str, method: str, work: Callable[[], Any]) -> Any:
    """What `work()` returns, awaited if need be, with errors `translated`."""
    with translated(name, method):
        result = work()
        return await result if inspect.isawaitable(result) else result


def is_sync(executor: Any, method: str) -> bool:
    """Whether calls of `method` must come one at a time."""
    function = getattr(executor, method, None)
    return not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function))


def failed(name: str, method: str, error: BaseException) -> ExecutorFailed:
    """The error for a method that raised something of its own."""
    return ExecutorFailed(
        f"{name}.{method} raised {type(error).__name__}: {error}",
        given="".join(traceback.format_exception(error)).rstrip(),
        expected="a result or a FreerunError",
        todo=f"mend the cause shown by the traceback, which is from inside executor '{name}'",
    )


def died(name: str, what: str, how: str) -> ExecutorDied:
    """The error for an executor that is gone, and for a call on it; `what` says what it was at."""
    return ExecutorDied(
        f"executor '{name}' died",
        given=f"{how}; it was asked to: {what}",
        expected="an executor that lives until it is stopped",
        todo="look for its last lines on stderr, and for the kernel's out-of-memory killer in `dmesg`",
    )


def late(name: str, what: str, deadline: float) -> DeadlineExceeded:
    """The error for a call that took too long."""
    return DeadlineExceeded(
        f"executor '{name}' did not finish in time: {what}",
        given=f"still busy after {deadline:g} s",
        expected=f"an answer within {deadline:g} s",
        todo="raise the deadline if the work is really that long; else see what it does with `py-spy dump --pid PID`",
    )


class Waits:
    """The waits that are open now, for stall reports."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[object, tuple[str, str, float]] = {}

    @contextmanager
    def open(self, executor: str, what: str) -> Iterator[None]:
        """List a wait for `executor` to do `what` while the block runs."""
        key = object()
        self._open[key] = (executor, what, self._clock())
        try:
            yield
        finally:
            del self._open[key]

    def now(self) -> list[tuple[str, str, float]]:
        """(executor, what, seconds so far), the oldest first."""
        return [(executor, what, self._clock() - since) for executor, what, since in self._open.values()]


@dataclass(slots=True)
class Life:
    """One executor from its start to its death: `died` resolves to how. Made inside the controller's event loop. While it is
    not `settled`, whoever starts it learns of its death, and nobody else."""

    name: str
    settled: bool = True
    died: "asyncio.Future[str]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Desk:
    """Everything around a call that does not depend on where the executor lives. Belongs to the controller's event loop.

    With a `recorder`, callers learn of completions one at a time, in the order that is written down.
    """

    def __init__(self, recorder: Recorder | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._recorder = recorder
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._deaths: asyncio.Queue[Death] = asyncio.Queue()
        self.waits = Waits(clock)

    async def call(
        self,
        life: Life,
        method: str,
        start: Callable[[Completion], "asyncio.Future[Any]"],
        *,
        deadline: float | None,
        what: str,
        record: bool = True,
    ) -> Any:
        """Start a call and wait for its result, its executor's death, or `deadline` seconds (None: as long as it takes).

        Raises `DeadlineExceeded`, `ExecutorDied`, or what the call raised. Without `record` its completion is no part of the
        recorded order.
        """
        completion = Completion(life.name, method, self._numbers[life.name, method])
        self._numbers[life.name, method] += record
        with self.waits.open(life.name, what):
            if life.died.done():
                ending, outcome = Ending.DIED, died(life.name, what, life.died.result())
            else:
                result = start(completion)
                try:
                    await asyncio.wait({result, life.died}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    finished = result.done()
                    if not finished:
                        result.cancel()
                ending, outcome = self._ending(life, method, result if finished else None, deadline, what)
            if self._recorder is not None and record:
                await self._recorder.turn(replace(completion, ending=ending))
        if ending is not Ending.RETURNED:
            raise outcome
        return outcome

    def _ending(
        self, life: Life, method: str, result: "asyncio.Future[Any] | None", deadline: float | None, what: str
    ) -> tuple[Ending, Any]:
        """How a call ended, with its result or its error. `result` is None for one that did not finish."""
        if result is None:
            if life.died.done():
                return Ending.DIED, died(life.name, what, life.died.result())
            return Ending.LATE, late(life.name, what, deadline or 0.0)
        if result.cancelled():
            return Ending.RAISED, failed(life.name, method, asyncio.CancelledError())
        match result.exception():
            case None:
                return Ending.RETURNED, result.result()
            case Exited() as exited:
                self.bury(life, str(exited))
                return Ending.DIED, died(life.name, what, str(exited))
            case error:
                return Ending.RAISED, error

    def bury(self, life: Life, how: str) -> None:
        """Count the executor as dead: its open calls fail and, if it had settled, `failures` reports it, once."""
        if not life.died.done():
            life.died.set_result(how)
            if life.settled:
                self.report(Death(life.name, how))

    def report(self, death: Death) -> None:
        """Have `failures` yield `death`."""
        self._deaths.put_nowait(death)

    async def failures(self) -> AsyncIterator[Death]:
        """Every death, once."""
        while True:
            death = await self._deaths.get()
            if self._recorder is not None:
                await self._recorder.turn(Completion(death.name, "", 0, Ending.DEATH))
            yield death
