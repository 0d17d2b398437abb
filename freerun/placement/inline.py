"""Every executor in this process: a debugger works, a deterministic order is possible, and nothing else needs to be installed.

Calls pass arguments and results by reference, so an executor must not change what it was given or what it gave away.
Pinned cores mean nothing here, and the number of torch threads belongs to the whole process: it is set to the largest that
any executor asks for, and set back by `stop`.
"""

import asyncio
import faulthandler
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from freerun.errors import ConfigError
from freerun.placement.base import Death, ExecutorSpec
from freerun.placement.calls import END, Desk, Exited, Life, check, died, is_sync, run
from freerun.placement.interleaving import Completion, Recorder, read
from freerun.placement.schedules import Call, Replay, Schedule, Serial, Threads, Virtual


class InlineHandle:
    """See `base.Handle`. Deadlines hold under the schedule `threads`, and on the simulated clock under `virtual`."""

    def __init__(self, placement: "InlinePlacement", life: Life) -> None:
        self.name, self._placement, self._life = life.name, placement, life

    async def call(self, method: str, *args: Any, deadline: float, what: str = "", **kwargs: Any) -> Any:
        return await self._placement.call(
            self._life, method, method, lambda executor: getattr(executor, method)(*args, **kwargs), deadline, what or method
        )

    async def stream(self, method: str, *args: Any, deadline: float, what: str = "") -> AsyncIterator[Any]:
        elements: list[Any] = []

        def advance(executor: Any) -> Any:
            if not elements:
                elements.append(getattr(executor, method)(*args))
            return anext(elements[0], END)

        index = 0
        while True:
            element = await self._placement.call(self._life, method, f"{method}#{index}", advance, deadline, what or method)
            if element is END:
                return
            try:
                yield element
            except GeneratorExit:
                await self._placement.call(
                    self._life, method, f"{method}#close", lambda _: elements[0].aclose(), deadline, f"end {method}"
                )
                raise
            index += 1


class InlinePlacement:
    """See `base.Placement`. The schedules are described in `schedules`.

    `duration(executor, method)` gives the seconds that a call takes under `virtual`. `record` writes the order of completions
    to a file; `replay` follows such a file, whatever the schedule. Raises `ConfigError` if these do not go together.
    """

    def __init__(
        self,
        *,
        schedule: Literal["threads", "serial", "virtual"] = "threads",
        duration: Callable[[str, str], float] | None = None,
        record: Path | None = None,
        replay: Path | None = None,
    ) -> None:
        if (schedule == "virtual") != (duration is not None):
            raise ConfigError(
                "the virtual schedule and durations go together",
                given=f"schedule '{schedule}' {'without' if duration is None else 'with'} durations",
                expected="schedule 'virtual' and a function of executor and method that gives seconds",
                todo="give both or neither",
            )
        self._recorder = Recorder(record) if record is not None else None
        self._schedule = self._make_schedule(schedule, duration, replay)
        self._desk = Desk(self._recorder, self.now)
        self._lives: dict[str, Life] = {}
        self._specs: dict[str, ExecutorSpec] = {}
        self._executors: dict[str, Any] = {}
        self._threads_before: int | None = None

    def _make_schedule(self, name: str, duration: Callable[[str, str], float] | None, replay: Path | None) -> Schedule:
        if replay is not None:
            return Replay(read(replay), lambda dead: self._desk.report(Death(dead, "as recorded")))
        if duration is not None:
            return Virtual(duration)
        return Threads() if name == "threads" else Serial()

    async def spawn(self, specs: Sequence[ExecutorSpec]) -> Mapping[str, InlineHandle]:
        """See `base.Placement.spawn`. Constructors run one after another, in the given order."""
        check(specs, self._specs)
        if self._threads_before is None:
            self._threads_before = torch.get_num_threads()
        torch.set_num_threads(max([spec.threads for spec in [*self._specs.values(), *specs]]))
        for spec in specs:
            self._specs[spec.name] = spec
        try:
            for spec in specs:
                await self.respawn(spec.name)
        except Exception:
            for spec in specs:
                await self.retire(spec.name)
            if not self._specs:
                await self.stop()
            raise
        return {spec.name: InlineHandle(self, self._lives[spec.name]) for spec in specs}

    async def respawn(self, name: str) -> InlineHandle:
        """Start the executor `name` anew, as it was first specified. Its predecessor, if there is one, is abandoned."""
        self._schedule.forget(name)
        if name in self._lives and not self._lives[name].died.done():
            self._lives[name].died.set_result("replaced")
        spec = self._specs[name]
        try:
            self._executors[name] = await self._schedule.visit(
                name, run(name, "__init__", lambda: spec.factory(*spec.args, **spec.kwargs))
            )
        except Exited as exited:
            raise died(name, "start", str(exited)) from exited
        self._lives[name] = Life(name)
        return InlineHandle(self, self._lives[name])

    async def retire(self, name: str) -> None:
        """See `base.Placement.retire`."""
        self._specs.pop(name)
        life, executor = self._lives.pop(name, None), self._executors.pop(name, None)
        try:
            if life is not None and not life.died.done() and callable(getattr(executor, "close", None)):
                await self._schedule.visit(name, run(name, "close", executor.close))
        finally:
            if life is not None and not life.died.done():
                life.died.set_result("retired")
            self._schedule.forget(name)

    def failures(self) -> AsyncIterator[Death]:
        return self._desk.failures()

    async def dump_stacks(self, directory: Path) -> list[Path]:
        """See `base.Placement.dump_stacks`: one file, because there is one process."""
        path = directory / "stacks-inline.txt"
        with path.open("w") as file:
            faulthandler.dump_traceback(file)
        return [path]

    def waits(self) -> list[tuple[str, str, float]]:
        return self._desk.waits.now()

    def now(self) -> float:
        """Seconds on the schedule's clock: simulated ones under `virtual`."""
        return self._schedule.now()

    def kill(self, name: str, how: str = "killed") -> None:
        """Count the executor as dead: its calls fail, `failures` reports it. For tests of what follows a death."""
        self._desk.bury(self._lives[name], how)

    async def stop(self, deadline: float = 10.0) -> None:
        """Close every living executor that has a `close`, and end the threads; a thread that hangs ends with the process.

        If closing raises, everything else is still ended, and then it is raised here.
        """
        living = [
            n
            for n, life in self._lives.items()
            if not life.died.done() and callable(getattr(self._executors[n], "close", None))
        ]
        closing = [
            asyncio.wait_for(self._schedule.visit(n, run(n, "close", self._executors[n].close)), deadline) for n in living
        ]
        endings = await asyncio.gather(*closing, return_exceptions=True)
        errors = [e for e in endings if isinstance(e, BaseException) and type(e) is not TimeoutError]
        self._lives.clear()
        self._executors.clear()
        self._schedule.stop(deadline)
        if self._recorder is not None:
            self._recorder.close()
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
        for error in errors:
            raise error

    async def call(self, life: Life, method: str, label: str, work: Callable[[Any], Any], deadline: float, what: str) -> Any:
        """Run `work(executor)`, which calls `method`; `label` names it in the record."""
        name, executor = life.name, self._executors.get(life.name)

        def start(completion: Completion) -> Any:
            call = Call(
                life=life,
                completion=completion,
                work=lambda: run(name, method, lambda: work(executor)),
                sync=is_sync(executor, method),
                deadline=deadline,
                what=what,
            )
            self._schedule.submit(call)
            return call.result

        return await self._desk.call(life, label, start, deadline=deadline if self._schedule.real_time else None, what=what)
