"""From orders to chunks: which actor collects what, with which version, and where a chunk goes when it is there.

    supply --order--> actor --chunk--> supply (rollouts), or trainer's storage (replay)

It decides about chunks and holds no tensors: chunks pass through it unopened. A supply is the state machine that says whether
one more chunk may be begun: `Queue` is admission, as for groups of language; `Replay` is the store's table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from freerun.encoding import decode_chunk, encode_chunk
from freerun.env_schedule import EnvSchedule, Work
from freerun.errors import DeadlineExceeded, ExecutorDied
from freerun.loops import Loops
from freerun.metrics import Event, Sink
from freerun.placement.base import Handle
from freerun.program import Healer
from freerun.store.admission import Admission
from freerun.store.limits import MinSize, Turns
from freerun.store.selectors import Fifo, Uniform
from freerun.store.table import Consumer, Table, TableConfig
from freerun.tracker import Tracker
from freerun.transitions import Chunk, Mode, Order
from freerun.types import Mean, Metric, Sum, WeightsRef

TRAINER = "trainer"


class Supply(Protocol):
    """Where chunks wait to be used, and whether more may be begun."""

    def begin_phase(self, work: Work) -> None: ...

    def order(self, version: int, actor: int) -> int | None:
        """Begin one more chunk of `actor` with weights of `version`: its number, or None if it has to wait."""

    def counts(self) -> Mapping[str, int]: ...

    def state(self) -> dict[str, Any]: ...


class Rollouts(Supply, Protocol):
    """A supply of chunks that are used once: a step takes some when they are there. `chunks` are those that have arrived and
    are not used up."""

    chunks: dict[int, Chunk]

    def arrived(self, chunk: Chunk) -> None: ...

    def ready(self) -> bool:
        """Whether the chunks of the next step are there."""

    def take(self, version: int) -> list[Chunk]:
        """The chunks of the step that the trainer makes at `version`; none if it is not `ready`."""

    def trained(self, chunks: Sequence[Chunk], version: int) -> None:
        """The step on `chunks` made `version`, which is published."""

    def exhausted(self) -> bool:
        """Whether there will be no further step, once everything is collected."""

    def payloads(self) -> Mapping[int, bytes]:
        """What has arrived and is not used, for a checkpoint."""

    def load(self, state: Mapping[str, Any], payloads: Mapping[int, bytes]) -> None: ...


class Queue(Rollouts):
    """Chunks that are trained on once, in order, with a bound on their lag.

    Admission counts versions of steps that train on chunks. Phases without actors make versions too, while no chunk is under
    way; `others` of them lie behind, and are taken off.
    """

    def __init__(self, schedule: EnvSchedule) -> None:
        self.admission = Admission(batch=schedule.chunks, max_lag=schedule.max_lag, window=schedule.window)
        self.chunks: dict[int, Chunk] = {}
        self.others = 0

    def begin_phase(self, work: Work) -> None:
        """Nothing: the limits are those of the whole run."""

    def order(self, version: int, actor: int) -> int | None:
        item = self.admission.admit(f"chunk {self.admission.next_item}")
        if item is not None:
            self.admission.begin(item, version - self.others)
        return item

    def arrived(self, chunk: Chunk) -> None:
        self.admission.finish(chunk.item, chunk.oldest_version - self.others)
        self.chunks[chunk.item] = chunk

    def ready(self) -> bool:
        return self.admission.ready() >= self.admission.batch

    def exhausted(self) -> bool:
        return not self.chunks

    def take(self, version: int) -> list[Chunk]:
        if not self.ready():
            return []
        return [self.chunks[item] for item in self.admission.take(self.admission.batch, version - self.others)]

    def trained(self, chunks: Sequence[Chunk], version: int) -> None:
        self.admission.trained([chunk.item for chunk in chunks], version - self.others)
        self.admission.published(version - self.others)
        for chunk in chunks:
            del self.chunks[chunk.item]

    def other_step(self) -> None:
        """A step without chunks published a version."""
        self.others += 1

    def counts(self) -> Mapping[str, int]:
        return self.admission.counts()

    def state(self) -> dict[str, Any]:
        return {"admission": self.admission.state(), "others": self.others}

    def payloads(self) -> dict[int, bytes]:
        return {item: encode_chunk(chunk) for item, chunk in self.chunks.items()}

    def load(self, state: Mapping[str, Any], payloads: Mapping[int, bytes]) -> None:
        self.admission, self.others = Admission.from_state(state["admission"]), state["others"]
        self.chunks = {item: decode_chunk(data) for item, data in payloads.items()}


class Replay(Supply):
    """Chunks that may be drawn from many times: `Turns` of collecting and learning, and a largest age."""

    def __init__(self, schedule: EnvSchedule, *, capacity: int) -> None:
        self._schedule = schedule
        self._config = TableConfig(
            name="replay",
            capacity=capacity,
            remover=Fifo(),
            max_age=schedule.max_age,
            consumers={TRAINER: Consumer(needs=(), selector=Uniform(), uses=0, limiter=MinSize())},
        )
        self.table = Table(self._config)
        self.coming = self.ordered = self.arrivals = self._inserted = 0
        self._answered: dict[int, int] = {}

    def begin_phase(self, work: Work) -> None:
        self.table.limit(TRAINER, self._limiter(work))

    def _limiter(self, work: Work) -> Turns | MinSize:
        if not work.updates or not work.chunks:
            return MinSize()
        least, most = (updates / (work.chunks - work.size) for updates in (work.updates, work.most))
        schedule = self._schedule
        return Turns(ratio=least, most=most, size=work.size, batch=work.batch, lead=schedule.lead, ahead=schedule.ahead)

    def order(self, version: int, actor: int) -> int | None:
        self.table.expire(version)
        if not self.table.may_insert(self.coming):
            return None
        self.coming += 1
        self.ordered += 1
        return self.ordered - 1

    def next_key(self) -> int:
        """The key under which the next chunk that arrives is stored."""
        self.arrivals += 1
        return self.arrivals - 1

    def stored(self, chunk: Chunk) -> None:
        """The trainer has it. Chunks are stored in the order of their keys; answers that come at once come in any order, and
        the table takes them in that of the keys."""
        self._answered[chunk.item] = chunk.oldest_version
        while self._inserted in self._answered:
            version = self._answered.pop(self._inserted)
            self.table.insert(self._inserted, version=version, columns={}, promised=True)
            self._inserted += 1
            self.coming -= 1

    def counts(self) -> Mapping[str, int]:
        gone = {why: self.table.counts[why] for why in ("evicted", "expired")}
        return {"admitted": self.ordered, "in_flight": self.coming, "stored": len(self.table), **gone}

    def state(self) -> dict[str, Any]:
        return {"table": self.table.state(), "ordered": self.ordered, "arrivals": self.arrivals}

    def load(self, state: Mapping[str, Any], work: Work) -> None:
        """Undo `state`, in the middle of the phase that is `work`."""
        self.table = Table.from_state(self._config, state["table"], lambda key, column: None)
        self.table.limit(TRAINER, self._limiter(work), since=state["table"]["since"][TRAINER])
        self.ordered, self.arrivals, self.coming = state["ordered"], state["arrivals"], 0
        self._inserted = self.arrivals


class Collection:
    """The actors of a run. `newest` gives the newest published version. `pause` keeps new chunks from being begun."""

    def __init__(
        self,
        schedule: EnvSchedule,
        supply: Rollouts | Replay,
        *,
        actors: Sequence[Handle],
        trainer: Handle,
        rows: int,
        healer: Healer,
        tracker: Tracker,
        loops: Loops,
        sink: Sink,
        newest: Callable[[], WeightsRef],
    ) -> None:
        self.supply, self.actors = supply, {a.name: a for a in actors}
        self._schedule, self._trainer, self._rows, self._newest = schedule, trainer, rows, newest
        self._healer, self._tracker, self._loops, self._sink = healer, tracker, loops, sink
        self._orders: dict[str, Order] = {}
        self._versions: dict[str, set[int]] = {name: set() for name in self.actors}
        self._lives = dict.fromkeys(self.actors, 0)
        self._storing = 0
        self._work: Work | None = None
        self.begun = self.finished = self.taken = 0
        self.pause = False

    # --- a phase -------------------------------------------------------------------------------------------------------------

    def begin_phase(self, work: Work) -> None:
        """Collect what the phase asks for."""
        self._work, self.begun, self.finished = work, 0, 0
        self.supply.begin_phase(work)
        self._loops.notify()

    @property
    def done(self) -> bool:
        """Whether all chunks of the phase are there."""
        return self._work is None or self.finished == self._work.chunks

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way."""
        return not self._orders and not self._storing

    # --- the loop of one actor -----------------------------------------------------------------------------------------------

    async def collect(self, name: str) -> None:
        while True:
            await self._loops.until(lambda: self._has_order(name), self.actors[name], self._why_no_order)
            order, handle, ref = self._orders[name], self.actors[name], self._newest()
            self._versions[name].add(ref.version)
            try:
                doing = f"playing {self._rows} steps"
                report = await self._tracker.call(handle, "collect", order, ref, what="collect", doing=doing)
            except ExecutorDied:
                await self._loops.until(partial(self._is_replaced, handle), handle, lambda: "died, being started anew")
                continue
            except DeadlineExceeded as error:
                self._healer.given_up(name, error)
                await self.heal(name)
                continue
            self._versions[name] = {report.version}
            del self._orders[name]
            self._arrived(report)

    def _is_replaced(self, handle: Handle) -> bool:
        return all(handle is not other for other in self.actors.values())

    def _has_order(self, name: str) -> bool:
        """Whether the actor has a chunk to collect; takes one on if it may."""
        if name in self._orders:
            return True
        work = self._work
        if work is None or self.pause or self.begun >= work.chunks:
            return False
        item = self.supply.order(self._newest().version, list(self.actors).index(name))
        if item is None:
            return False
        phase, before = work.phase, self.begun * self._rows
        mode: Mode = "random" if before < phase.random else phase.act
        self._orders[name] = Order(item=item, steps=self._schedule.chunk, mode=mode, taken=self.taken, life=self._lives[name])
        self.begun += 1
        self.taken += self._rows
        return True

    def _why_no_order(self) -> str:
        if self._work is None or self.begun >= self._work.chunks:
            return "nothing left to collect in this phase"
        return "a checkpoint is being written" if self.pause else "enough collected: the trainer is behind"

    def _arrived(self, report: Any) -> None:
        chunk: Chunk = report.chunk
        self._tracker.count(
            {
                **episode_metrics(chunk),
                "lag/collected": Mean(self._newest().version - chunk.oldest_version, 1),
                "env/steps": Sum(chunk.num_rows),
                "time/collect": Sum(report.seconds),
                "time/swap": Sum(report.swap_seconds),
                **report.metrics,
            }
        )
        for failure in chunk.failures:
            now = self._tracker.now()
            what = f"{failure.kind}: {failure.message}"
            self._sink.event(Event(executor=f"actor {chunk.actor}", what="failed", start=now, end=now, detail={"what": what}))
        if isinstance(self.supply, Replay):
            self._storing += 1
            self._loops.spawn(self._store(self.supply, replace(chunk, item=self.supply.next_key())))
        else:
            self.supply.arrived(chunk)
            self.finished += 1
        self._loops.notify()

    async def _store(self, supply: Replay, chunk: Chunk) -> None:
        doing = f"storing {chunk.num_rows} transitions"
        await self._tracker.call(self._trainer, "accumulate", [chunk], what="store", doing=doing)
        supply.stored(chunk)
        self.finished += 1
        self._storing -= 1
        self._loops.notify()

    def versions_in_use(self) -> set[int]:
        """Versions that an actor may be playing with."""
        return set().union(*self._versions.values())

    # --- deaths and checkpoints ----------------------------------------------------------------------------------------------

    async def heal(self, name: str) -> None:
        """Start a dead actor anew: its chunk is collected again, in other episodes."""
        handle = await self._healer.respawn(name)
        self.actors[name], self._versions[name] = handle, set()
        self._lives[name] = self._healer.deaths[name]
        if name in self._orders:
            self._orders[name] = replace(self._orders[name], life=self._lives[name])
        self._healer.respawned(name, self._newest().version)
        self._loops.notify()

    def counts(self) -> dict[str, int]:
        """Chunks begun and finished in this phase, and steps of environments taken in the run."""
        return {"begun": self.begun, "finished": self.finished, "taken": self.taken}

    async def save(self) -> dict[str, Any]:
        """JSON-able: counts, lives, and the state of each actor. Only while quiet."""
        actors = {name: await self._save_actor(name) for name in self.actors}
        return {
            "supply": self.supply.state(),
            "counts": self.counts(),
            "lives": self._lives,
            "deaths": dict(self._healer.deaths),
            "actors": actors,
        }

    async def _save_actor(self, name: str) -> dict[str, Any]:
        """The state of an actor; if it dies instead, that of its successor, which has not begun yet."""
        while True:
            handle = self.actors[name]
            try:
                return await self._tracker.call(handle, "save", what="checkpoint", doing="saving its episodes")
            except ExecutorDied:
                await self._loops.until(partial(self._is_replaced, handle), handle, lambda: "died, being started anew")

    async def load(self, state: Mapping[str, Any], work: Work, payloads: Mapping[int, bytes]) -> None:
        """Undo `save`, in the middle of the phase that is `work`."""
        self._work = work
        counts = state["counts"]
        self.begun, self.finished, self.taken = counts["begun"], counts["finished"], counts["taken"]
        self._lives |= state["lives"]
        self._healer.deaths.update(state["deaths"])
        if isinstance(self.supply, Replay):
            self.supply.load(state["supply"], work)
        else:
            self.supply.load(state["supply"], payloads)
        for name, saved in state["actors"].items():
            call = partial(self._tracker.call, self.actors[name], "load", saved, what="checkpoint")
            for failure in await call(doing="playing its episodes again"):
                now = self._tracker.now()
                self._sink.event(Event(executor=name, what="failed", start=now, end=now, detail={"what": failure.message}))


def episode_metrics(chunk: Chunk) -> dict[str, Metric]:
    """What the episodes that ended in a chunk add up to, and its failures."""
    metrics: dict[str, Metric] = {
        f"env/failures/{failure.kind}": Sum(sum(f.kind == failure.kind for f in chunk.failures)) for failure in chunk.failures
    }
    if chunk.ended:
        num = len(chunk.ended)
        metrics |= {
            "env/return": Mean(sum(e.total for e in chunk.ended), num),
            "env/length": Mean(float(sum(e.length for e in chunk.ended)), num),
            "env/terminated": Mean(float(sum(e.terminated for e in chunk.ended)), num),
            "env/episodes": Sum(num),
        }
    return metrics
