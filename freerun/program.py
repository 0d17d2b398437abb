"""What every run does, whatever it trains: publish, judge, step after step until the end, checkpoint, and notice who dies.

`Controller` (language) and `EnvController` (control) add where a step's data comes from and how a policy is judged. Every loop
is a task and the first to raise ends the run. What a call does depends only on its arguments and its executor's own state, and
what this program does next depends only on the order in which calls complete. That order is what `placement.inline` records and
replays.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from freerun.errors import DeadlineExceeded, ExecutorDied, FreerunError, Stalled
from freerun.loops import Loops
from freerun.metrics import Event, Sink
from freerun.placement.base import Handle, Placement
from freerun.tracker import Tracker
from freerun.types import WeightsRef

Save = Callable[["Program"], Awaitable[object]]
"""Writes a checkpoint of a program and its executors."""


STALL_PERIOD = 1.0
"""Seconds between two looks for a stall."""


class Program(ABC):
    """Runs a job on executors that already exist; `run` returns when the last step is published and judged. `workers` are all
    executors but the trainer. What a stall leaves behind goes into `directory`. Seconds are those of `clock`."""

    def __init__(
        self,
        *,
        placement: Placement,
        trainer: Handle,
        workers: Sequence[Handle],
        sink: Sink,
        deadline: float,
        stall_deadline: float,
        save: Save | None,
        directory: Path | None,
        began: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stall_deadline, self._directory = stall_deadline, directory
        self.placement, self.trainer, self.sink, self.save = placement, trainer, sink, save
        self.tracker = Tracker([*workers, trainer], sink, deadline=deadline, began=began, clock=clock)
        self.loops = Loops(self._waiting)
        self.step = 0
        self.stopping = False
        self.ref: WeightsRef  # Set by the first call of every entry point, before any loop starts.

    # --- the run -------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Train to the last step. Raises the first error of any loop; then no task of this program is left."""
        await self._start("publishing the first version")
        await self._beside_loops(self._whole(), self._beside_run())

    async def _whole(self) -> None:
        """In one go: between two sets of loops what an executor answers would reach nobody."""
        if self.step == 0 and not self._is_judged():
            await self._judge_fully(None)
        await self._train()
        if self.save is not None:
            await self.save(self)
        if not self.stopping:
            await self._judge_fully(None)

    async def evaluate(self, amount: int) -> None:
        """Publish what the trainer holds and judge it on `amount` problems or episodes; trains nothing."""
        await self._start("publishing the loaded version")
        await self._beside_loops(self._judge_fully(amount))

    async def _start(self, doing: str) -> None:
        """Publish what the trainer holds."""
        self.ref = await self.tracker.call(self.trainer, "start", what="publish", doing=doing)

    async def _beside_loops(self, main: Coroutine[Any, Any, None], others: Sequence[Coroutine[Any, Any, None]] = ()) -> None:
        try:
            await self.loops.beside(main, [self._watch(), self._notice_stalls(), *others, *self._workers()])
        except (DeadlineExceeded, Stalled) as error:
            await self._report_stall(error)
            raise

    def request_stop(self) -> None:
        """Finish the step in hand if it is nearly there, checkpoint, and let `run` return."""
        self.stopping = True
        self.loops.notify()

    def _waiting(self, handle: Handle, why: str) -> None:
        self.tracker.idle(handle, why)
        self._publish_status()

    def _publish_status(self) -> None:
        self.sink.status(self.tracker.snapshot(self.step, self.total_steps, self._counts()))

    async def _watch(self) -> None:
        async for name, how in self.placement.failures():
            now = self.tracker.now()
            self.sink.event(Event(executor=name, what="died", start=now, end=now, detail={"how": how}))
            if not self._owns(name):
                raise ExecutorDied(
                    f"executor '{name}' died",
                    given=f"{how}; at step {self.step}, with {self._under_way()}",
                    expected="a trainer that lives as long as the run",
                    todo="look for its last lines on stderr, and for the kernel's out-of-memory killer in `dmesg`",
                )
            self.loops.spawn(self._heal(name))

    async def _notice_stalls(self) -> None:
        """A call that hangs has a deadline of its own. What is noticed here is that there is no call, and that nobody makes
        one."""
        while True:
            await asyncio.sleep(STALL_PERIOD)
            if not self.placement.waits() and self.tracker.quiet() > self._stall_deadline:
                raise Stalled(
                    "nobody can go on",
                    given="; ".join(self.tracker.waiting()),
                    expected=f"a call within {self._stall_deadline:g} s",
                    todo="report this with events.jsonl and the stacks in the run directory",
                )

    async def _report_stall(self, error: FreerunError) -> None:
        """Leave in the records who waits for whom since when, and what every thread is doing."""
        open_calls = [f"{name}: {what}, {seconds:.0f} s" for name, what, seconds in self.placement.waits()]
        stacks = await self.placement.dump_stacks(self._directory) if self._directory is not None else []
        now, waiting = self.tracker.now(), [*open_calls, *self.tracker.waiting()]
        detail = {"error": str(error), "waiting": waiting, "stacks": [path.name for path in stacks]}
        self.sink.event(Event(executor="controller", what="stalled", start=now, end=now, detail=detail))

    # --- what a kind of run adds ---------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Steps of the whole run."""

    @abstractmethod
    async def _train(self) -> None:
        """Step after step to the end, or until `stopping`."""

    @abstractmethod
    async def _judge_fully(self, amount: int | None) -> None:
        """Judge the newest version, with nothing else going on; None is as much as the config says, which may be nothing."""

    @abstractmethod
    def _is_judged(self) -> bool:
        """Whether the policy of this step was judged fully, by the attempt that is resumed."""

    @abstractmethod
    def _workers(self) -> list[Coroutine[Any, Any, None]]:
        """The loops that make data."""

    def _beside_run(self) -> list[Coroutine[Any, Any, None]]:
        """Further loops of a run, which an evaluation alone does not need."""
        return []

    @abstractmethod
    def _counts(self) -> Mapping[str, int]:
        """Items by state."""

    @abstractmethod
    def _under_way(self) -> str:
        """What is in flight, for an error."""

    @abstractmethod
    def _owns(self, name: str) -> bool:
        """Whether the executor `name` can be started anew."""

    @abstractmethod
    async def _heal(self, name: str) -> None:
        """Start a dead executor anew; what it had in hand is done again."""

    @abstractmethod
    async def write(self, directory: Path) -> None:
        """Everything of this program that going on needs, into a checkpoint."""

    @abstractmethod
    def is_in(self, checkpoint: Path) -> bool:
        """Whether a resume from `checkpoint`, which is whole and of this step, would lose nothing that was done since."""

    @abstractmethod
    def saved(self, oldest: Path) -> None:
        """A checkpoint was written; `oldest` is the oldest one to which a resume could fall back."""


class Healer:
    """Starts dead executors anew, as often as the run allows, and says so."""

    def __init__(self, placement: Placement, tracker: Tracker, sink: Sink, restarts: int) -> None:
        self._placement, self._tracker, self._sink, self._restarts = placement, tracker, sink, restarts
        self.deaths: Counter[str] = Counter()

    async def respawn(self, name: str) -> Handle:
        """The successor of executor `name`, even if that takes several attempts. Each is a death. Raises `ExecutorDied` if it
        died too often."""
        while True:
            self.deaths[name] += 1
            if self.deaths[name] > self._restarts:
                raise ExecutorDied(
                    f"executor '{name}' died {self.deaths[name]} times",
                    given=f"control.executor_restarts = {self._restarts}",
                    expected="an executor that lives, after at most as many deaths",
                    todo="mend what kills it: its last lines are on stderr",
                )
            try:
                return await self._placement.respawn(name)
            except ExecutorDied as error:
                self.given_up(name, error)

    def given_up(self, name: str, error: FreerunError) -> None:
        """Executor `name` counts as dead, because of an error that `failures` does not report."""
        self._tell(name, "died", {"how": error.given})

    def respawned(self, name: str, version: int) -> None:
        """The successor has taken over."""
        self._tell(name, "respawned", {"version": version})

    def _tell(self, name: str, what: str, detail: Mapping[str, Any]) -> None:
        now = self._tracker.now()
        self._sink.event(Event(executor=name, what=what, start=now, end=now, detail=detail))
