"""Each executor in a process of its own, under Monarch (`torchmonarch`): a single controller and its processes.

A process has its own cores, its own number of threads and its own way to die. Monarch carries the messages; that a process is
gone is noticed by watching the process itself, because Monarch's own supervision takes ten seconds. It listens on Unix sockets
of this host only. Nothing else in the package but `weights.monarch` imports it.
"""

import asyncio
import atexit
import contextlib
import functools
import itertools
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monarch.actor
from monarch._rust_bindings.monarch_hyperactor.host_mesh import BootstrapCommand
from monarch.actor import (
    Actor,
    MeshFailure,
    ProcMesh,
    concurrent_endpoint,
    default_bootstrap_cmd,
    shutdown_context,
    this_host,
)

from freerun.errors import ExecutorDied, FreerunError
from freerun.placement import resident, wire
from freerun.placement.base import Death, ExecutorSpec
from freerun.placement.calls import END, Desk, Exited, Life, check
from freerun.placement.guardian import Guardian
from freerun.placement.interleaving import Recorder
from freerun.placement.monarch_line import Line
from freerun.placement.monarch_nursery import Nursery
from freerun.placement.processes import Process, end

log = logging.getLogger(__name__)

RETIREMENT = 10.0
"""Seconds for an executor that is not needed any more to close and end, before it is killed."""
GOODBYE = 0.5
"""Seconds for Monarch to stop a process by itself, which it often does not; what is closed has nothing to lose."""
STACKS = 0.5
"""Seconds in which every process has written its stacks."""


class Home(Actor):
    """The actor that lives in each process. Every endpoint is concurrent: a busy executor does not keep it from answering."""

    def __init__(self, name: str, cores: tuple[int, ...]) -> None:
        resident.settle_in(name, cores)
        self._resident = resident.Resident(name)
        self._stacks = resident.answer_stacks()

    @concurrent_endpoint
    async def settled(self, answers: Any) -> tuple[int, int]:
        """The number of this process, and the descriptor of its stacks. `answers` is the port for all that is asked."""
        self._answers = answers
        return os.getpid(), self._stacks

    @concurrent_endpoint
    async def ask(self, number: int, what: str, *args: Any) -> None:
        """Do `what`, a method of `Resident`, and answer under `number`."""
        self._answers.send((number, await getattr(self._resident, what)(*args)))


@dataclass(slots=True)
class _Place:
    """An executor's process as its parent sees it."""

    life: Life
    mesh: ProcMesh
    line: Line
    process: Process
    stacks: int

    async def ask(self, what: str, *args: Any) -> Any:
        """The result of a method of `Resident`. Raises its error, or `Exited` if Monarch cannot reach the process."""
        fine, outcome = wire.loads(await self.line.ask(what, *args))
        if not fine:
            raise outcome
        return outcome

    async def close(self) -> Any:
        """`Resident.close`, or nothing if the process ends first: Monarch would wait for its answer."""
        asked, ended = asyncio.ensure_future(self.ask("close")), asyncio.ensure_future(self.process.ended.wait())
        try:
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            return asked.result() if asked.done() else None
        finally:
            asked.cancel()
            ended.cancel()


class MonarchHandle:
    """See `base.Handle`. Arguments and results are copied through pickling."""

    def __init__(self, name: str, placement: "MonarchPlacement", place: _Place) -> None:
        self.name, self._placement, self._place = name, placement, place

    async def call(self, method: str, *args: Any, deadline: float, what: str = "", **kwargs: Any) -> Any:
        message = wire.dumps((args, kwargs))
        return await self._placement.ask(self._place, method, "call", method, message, deadline=deadline, what=what or method)

    async def stream(self, method: str, *args: Any, deadline: float, what: str = "") -> AsyncIterator[Any]:
        message, stream, index = wire.dumps((args, {})), self._placement.new_stream(), 0
        while True:
            element = await self._placement.ask(
                self._place, f"{method}#{index}", "advance", method, message, stream, deadline=deadline, what=what or method
            )
            if element is END:
                return
            try:
                yield element
            except GeneratorExit:
                await self._placement.ask(
                    self._place, f"{method}#close", "end", method, stream, deadline=deadline, what=f"end {method}"
                )
                raise
            index += 1


class MonarchPlacement:
    """See `base.Placement`. Processes on this host.

    `record` writes the order of completions to a file that `InlinePlacement` can replay. `start_deadline` is how many seconds
    the start of a process and each constructor may take. `guardian` is told of every process; by default one is made. With
    `preload`, processes are forked from one that has imported these modules: see `monarch_nursery`.
    """

    def __init__(
        self,
        *,
        record: Path | None = None,
        start_deadline: float = 600.0,
        guardian: Guardian | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        self._recorder = Recorder(record) if record is not None else None
        self._desk = Desk(self._recorder)
        self._start_deadline = start_deadline
        self._specs: dict[str, ExecutorSpec] = {}
        self._places: dict[str, _Place] = {}
        self._starting: list[ProcMesh] = []
        self._preload = tuple(preload)
        self._nursery: Nursery | None = None
        self._nursery_opens = asyncio.Lock()
        self._streams = itertools.count()
        self._guardian, self._shared_guardian = guardian, guardian is not None

    async def spawn(self, specs: Sequence[ExecutorSpec]) -> Mapping[str, MonarchHandle]:
        """See `base.Placement.spawn`. Processes start side by side."""
        check(specs, self._specs)
        _take_over_endings()
        self._guardian = self._guardian or Guardian()
        self._specs |= {spec.name: spec for spec in specs}
        handles = await asyncio.gather(*(self._start(spec) for spec in specs), return_exceptions=True)
        started = {}
        for handle in handles:
            if isinstance(handle, BaseException):
                await self._retire([spec.name for spec in specs], RETIREMENT)
                if not self._specs:
                    await self.stop()
                raise handle
            started[handle.name] = handle
        return started

    async def respawn(self, name: str) -> MonarchHandle:
        """Start the executor `name` anew in a new process, as it was first specified; what is left of the old one is killed."""
        if name in self._places:
            place = self._places.pop(name)
            place.life.settled = False  # whoever replaces it while it lives knows that it ends
            await self._end([place], patience=0.0)
        return await self._start(self._specs[name])

    async def retire(self, name: str) -> None:
        """See `base.Placement.retire`."""
        for ending in await self._retire([name], RETIREMENT):
            if isinstance(ending, FreerunError):
                raise ending

    async def _retire(self, names: Sequence[str], deadline: float) -> list[Any]:
        """End these executors and forget them; what their `close` returned or raised."""
        places = [self._places.pop(name) for name in names if name in self._places]
        for name in names:
            self._specs.pop(name, None)
        for place in places:
            place.life.settled = False  # its end is no death
        living = [place for place in places if not place.process.ended.is_set()]
        closing = [asyncio.wait_for(place.close(), deadline / 2) for place in living]
        endings = await asyncio.gather(*closing, return_exceptions=True)
        stopping = [asyncio.wait_for(place.mesh.stop().as_asyncio(), GOODBYE) for place in living]
        for ending in await asyncio.gather(*stopping, return_exceptions=True):
            if isinstance(ending, BaseException):
                log.debug("monarch could not stop a process by itself: %s", ending)
        await self._end(places, patience=deadline / 10)
        return endings

    async def _start(self, spec: ExecutorSpec) -> MonarchHandle:
        life = Life(spec.name, settled=False)
        command = await self._command(spec.threads)
        mesh = this_host().spawn_procs(name="executor", bootstrap_command=command)
        self._starting.append(mesh)
        home = mesh.spawn("home", Home, spec.name, tuple(spec.cores))
        line = Line(home)
        try:
            pid, stacks = await self._wait(life, "start its process", lambda: asyncio.ensure_future(_settled(home, line.port)))
        except BaseException:
            line.close("it did not start")
            raise

        def gone(how: str) -> None:
            line.close(how)
            self._desk.bury(life, how)

        process = Process(pid, gone)
        if self._guardian is not None:
            self._guardian.watch_over(pid)
        place = self._places[spec.name] = _Place(life, mesh, line, process, stacks)
        self._starting.remove(mesh)
        message = wire.dumps((spec.factory, spec.args, dict(spec.kwargs)))
        await self._wait(life, "construct", lambda: asyncio.ensure_future(place.ask("start", message)))
        life.settled = True
        return MonarchHandle(spec.name, self, place)

    async def _command(self, threads: int) -> BootstrapCommand:
        """What Monarch is to start a process with."""
        command = default_bootstrap_cmd().with_env(resident.environment(threads))
        if not self._preload:
            return command
        async with self._nursery_opens:
            if self._nursery is not None and not self._nursery.alive:
                self._close_nursery()
            if self._nursery is None:
                self._nursery = await self._open_nursery()
        program, arguments = self._nursery.command()
        return BootstrapCommand(program, None, arguments, command.env)

    async def _open_nursery(self) -> Nursery:
        """Raises `ExecutorDied` if it cannot import what it has to."""
        nursery = Nursery(self._preload)
        if self._guardian is not None:
            for group in nursery.groups:
                self._guardian.watch_over(group)
        if not await asyncio.get_running_loop().run_in_executor(None, nursery.wait):
            nursery.close()
            raise ExecutorDied(
                "the process that executors are forked from died",
                given=f"it was to import {', '.join(self._preload)}",
                expected="modules that can be imported",
                todo="look for its last lines on stderr, or start executors without it: --placement.preload false",
            )
        return nursery

    def _close_nursery(self) -> None:
        if self._nursery is not None:
            self._nursery.close()
            if self._guardian is not None:
                for group in self._nursery.groups:
                    self._guardian.release(group)
            self._nursery = None

    async def _wait(self, life: Life, what: str, start: Callable[[], "asyncio.Future[Any]"]) -> Any:
        return await self._desk.call(
            life, "__init__", lambda _: start(), deadline=self._start_deadline, what=what, record=False
        )

    async def ask(self, place: _Place, label: str, what_to_do: str, *args: Any, deadline: float, what: str) -> Any:
        """Do `what_to_do`, a method of `Resident`, in the executor's process; `label` names the call in the record."""
        return await self._desk.call(
            place.life, label, lambda _: asyncio.ensure_future(place.ask(what_to_do, *args)), deadline=deadline, what=what
        )

    def new_stream(self) -> int:
        """A number that no other stream has."""
        return next(self._streams)

    def failures(self) -> AsyncIterator[Death]:
        return self._desk.failures()

    async def dump_stacks(self, directory: Path) -> list[Path]:
        """See `base.Placement.dump_stacks`. A signal asks for it, which reaches a process that answers no message."""
        living = {name: place for name, place in self._places.items() if not place.process.ended.is_set()}
        for place in living.values():
            os.kill(place.process.pid, signal.SIGUSR1)
        await asyncio.sleep(STACKS)
        written = []
        for name, place in living.items():
            source, path = Path(f"/proc/{place.process.pid}/fd/{place.stacks}"), directory / f"stacks-{name}.txt"
            if place.stacks >= 0 and source.exists():
                path.write_bytes(source.read_bytes())
                written.append(path)
        return written

    def waits(self) -> list[tuple[str, str, float]]:
        return self._desk.waits.now()

    def pids(self) -> dict[str, int]:
        """Process numbers by executor, for people and for tests that kill."""
        return {name: place.process.pid for name, place in self._places.items()}

    async def stop(self, deadline: float = 10.0) -> None:
        """See `base.Placement.stop`: executors are closed, then processes are ended, and what still runs then is killed.

        If closing raises, everything else is still ended, and then it is raised here.
        """
        endings = await self._retire(list(self._specs), deadline)
        starting, self._starting = self._starting, []
        await asyncio.gather(
            *(asyncio.wait_for(mesh.stop().as_asyncio(), deadline / 4) for mesh in starting), return_exceptions=True
        )
        self._close_nursery()
        if self._guardian is not None and not self._shared_guardian:
            self._guardian.close()
            self._guardian = None
        if self._recorder is not None:
            self._recorder.close()
        for ending in endings:
            if isinstance(ending, FreerunError):
                raise ending

    async def _end(self, places: Sequence[_Place], *, patience: float) -> None:
        await end([place.process for place in places], patience=patience)
        for place in places:
            place.line.close("it was ended")
            if self._guardian is not None:
                self._guardian.release(place.process.pid)


async def _settled(home: Any, answers: Any) -> tuple[int, int]:
    """`Home.settled`. Raises `Exited` if its process could not be started, or ended before it could answer."""
    try:
        return await home.settled.call_one(answers)
    except Exception as error:  # Monarch does not say which kinds there are
        raise Exited(f"unknown: {error}") from error


@functools.cache
def _take_over_endings() -> None:
    """Once per process: a dead executor does not end it, and its own end does not complain when Monarch takes over a second."""
    this_host()
    monarch.actor.unhandled_fault_hook = _drop
    atexit.register(_shut_down)


def _shut_down() -> None:
    with contextlib.suppress(TimeoutError):
        shutdown_context(host_timeout=1.0).get(timeout=3.0)


def _drop(failure: MeshFailure) -> None:
    """Monarch's answer to a dead process is to end this one; ours is `failures`, which reported it long before."""
    log.debug("monarch reports: %s", failure)
