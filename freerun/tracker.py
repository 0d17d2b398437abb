"""Calls on executors, timed and named: what each executor is doing and since when, and what it waits for when it does nothing.

Every call and every wait becomes an `Event` of the timeline; the records of a step are put together here.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from freerun.metrics import IDLE, Event, ExecutorStatus, SampleRecord, Sink, Status, StepRecord, plain
from freerun.placement.base import Handle
from freerun.types import Group, Metric, Sum, merge_all

RATES = {
    "throughput/generator": "tokens/generated",
    "throughput/trainer": "tokens/trained",
    "throughput/env": "env/steps",
    "throughput/updates": "updates",
}
"""Rates, and what they count per second."""


class Report(Protocol):
    """What the trainer says of a finished step."""

    version: int
    metrics: Mapping[str, Metric]


class Tracker:
    """Wraps calls on handles. `now()` is seconds since the run began; `began` shifts it when a run is resumed."""

    def __init__(
        self,
        handles: Sequence[Handle],
        sink: Sink,
        *,
        deadline: float,
        began: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink, self._deadline, self._clock = sink, deadline, clock
        self._zero = clock() - began
        self.status = {h.name: ExecutorStatus(state="idle", what="not started", since=began) for h in handles}
        self._open: dict[str, int] = dict.fromkeys(self.status, 0)
        self._busy: dict[str, float] = dict.fromkeys(self.status, 0.0)
        self._busy_since: dict[str, float] = dict.fromkeys(self.status, began)
        self._mark = self._step_ended = began
        self._last_change = clock()
        self._counted: list[Mapping[str, Metric]] = []

    def add(self, handle: Handle) -> None:
        """One more executor."""
        name, now = handle.name, self.now()
        self.status[name] = ExecutorStatus(state="idle", what="not started", since=now)
        self._open[name], self._busy[name], self._busy_since[name] = 0, 0.0, now

    def remove(self, name: str) -> None:
        """It is no more."""
        self._end_idle(name, self.now())
        for kept in (self.status, self._open, self._busy, self._busy_since):
            del kept[name]

    def now(self) -> float:
        return self._clock() - self._zero

    async def call(self, handle: Handle, method: str, *args: Any, what: str, doing: str, **kwargs: Any) -> Any:
        """Call `method` on `handle`. `what` is the kind of work in one word, for the timeline; `doing` says it for the reader
        of the live view and of a stall report. Calls on one executor may overlap. Raises what the call raises."""
        name, start, self._last_change = handle.name, self.now(), self._clock()
        if not self._open[name]:
            self._end_idle(name, start)
            self._busy_since[name] = start
        self._open[name] += 1
        self.status[name] = ExecutorStatus(state="busy", what=doing, since=start)
        try:
            return await handle.call(method, *args, deadline=self._deadline, what=doing, **kwargs)
        finally:
            end, self._last_change = self.now(), self._clock()
            self._open[name] -= 1
            self._sink.event(Event(executor=name, what=what, start=start, end=end, detail={"doing": doing}))
            if not self._open[name]:
                self._busy[name] += end - max(self._busy_since[name], self._mark)
                self.status[name] = ExecutorStatus(state="idle", what="", since=end)

    def idle(self, handle: Handle, why: str) -> None:
        """Say what `handle` waits for. The wait is recorded when it ends, or when its reason changes."""
        status = self.status[handle.name]
        if status.state == "idle" and status.what != why:
            now = self.now()
            self._end_idle(handle.name, now)
            self.status[handle.name] = ExecutorStatus(state="idle", what=why, since=status.since if not status.what else now)

    def quiet(self) -> float:
        """Seconds since a call last began or ended."""
        return self._clock() - self._last_change

    def waiting(self) -> list[str]:
        """Who waits for what, since when, in words."""
        return [f"{n}: {s.what or 'idle'}, since {s.since:.0f} s" for n, s in self.status.items() if s.state == "idle"]

    def idle_shares(self) -> Mapping[str, float]:
        """Share of the time since this was last asked in which each executor ran no call."""
        now = self.now()
        span = max(now - self._mark, 1e-9)
        for name in self._open:
            if self._open[name]:
                self._busy[name] += now - max(self._busy_since[name], self._mark)
        shares = {name: min(1.0, max(0.0, 1.0 - busy / span)) for name, busy in self._busy.items()}
        self._mark, self._busy = now, dict.fromkeys(self._busy, 0.0)
        return shares

    def snapshot(self, step: int, total_steps: int, ledger: Mapping[str, int]) -> Status:
        """The run at this moment, for live views."""
        doing = dict(self.status)
        return Status(step=step, total_steps=total_steps, seconds=self.now(), executors=doing, items=ledger)

    def count(self, metrics: Mapping[str, Metric]) -> None:
        """Add to the metrics of the step in hand."""
        self._counted.append(metrics)

    def step_record(self, step: int, report: Report, num_items: int, ledger: Mapping[str, int]) -> StepRecord:
        """Everything counted since the last step, the trainer's report, and the rates over the time between."""
        now = self.now()
        merged = merge_all([*self._counted, report.metrics])
        values: dict[str, float | Mapping[int, float]] = {**plain(merged)}
        seconds = max(now - self._step_ended, 1e-9)
        self._counted, self._step_ended = [], now
        values |= {
            **{rate: _sum(merged, name) / seconds for rate, name in RATES.items() if name in merged},
            **({"throughput/items": num_items / seconds} if num_items else {}),
            "time/step": seconds,
            **{f"idle/{name}": share for name, share in self.idle_shares().items()},
            **{f"items/{state}": float(number) for state, number in ledger.items()},
        }
        return StepRecord(step=step, version=report.version, seconds=now, metrics=values)

    def _end_idle(self, name: str, now: float) -> None:
        status = self.status[name]
        if status.state == "idle" and status.what and now > status.since:
            self._sink.event(Event(executor=name, what=IDLE, start=status.since, end=now, detail={"why": status.what}))


def _sum(metrics: Mapping[str, Metric], name: str) -> float:
    counted = metrics.get(name)
    return counted.value if isinstance(counted, Sum) else 0.0


def sample_record(step: int, trainer_version: int, group: Group) -> SampleRecord:
    """One trajectory of `group` for the records; siblings take turns from item to item."""
    index = group.item % len(group.trajectories)
    trajectory, reward, content = group.trajectories[index], group.rewards[index], group.prompt.content
    return SampleRecord(
        step=step,
        item=group.item,
        uid=group.prompt.uid,
        prompt=content if isinstance(content, str) else content[-1].content,
        completion=trajectory.text,
        reward=reward.value,
        oldest=trajectory.oldest_version,
        newest=trajectory.newest_version,
        lag=trainer_version - trajectory.oldest_version,
        stop=str(trajectory.stop),
        parts=reward.parts,
    )
