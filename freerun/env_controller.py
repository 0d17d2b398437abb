"""The program of a control run: phase after phase, in which actors collect and the trainer learns, at limits that are data.

    supply --order--> actor --chunk--> storage or queue --updates--> trainer
                        ^                                              |
                        +---------- WeightsRef of the newest <---------+

| loop           | consumes               | produces              | waits for                 | woken by                    |
|----------------|------------------------|-----------------------|---------------------------|-----------------------------|
| collect (each) | orders, the newest ref | chunks                | a slot, or its turn       | publication, stored chunk   |
| train          | chunks, or what is due | the next version      | chunks, or due updates    | arrived or stored chunk     |
| judge          | the newest ref         | returns of episodes   | nothing                   | a share of the work is done |
| watch          | deaths                 | a fresh executor      | a death                   | the placement               |

| phase    | a step is                                            | limits                                              |
|----------|------------------------------------------------------|-----------------------------------------------------|
| offline  | `updates` updates on data sets                       | none                                                |
| replay   | `updates` updates on rows that may be drawn again    | `Turns` on the store's table, a largest age         |
| rollouts | epochs over `chunks` chunks                          | admission: the lag bound of language, same machine  |

There is no journal: experience is worth less than a response of a language model, and where it is not, it lies in the storage.
A checkpoint waits until nothing is in flight, and holds storages, queue, and the episodes under way as seeds and actions. A
crash costs what was collected since.
"""

import json
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from freerun.checkpoint import fitting
from freerun.collection import TRAINER, Collection, Queue, Replay, Rollouts
from freerun.env_schedule import EnvSchedule, Work, work_of
from freerun.errors import DeadlineExceeded, ExecutorDied
from freerun.federation import Rounded
from freerun.metrics import Event, Sink, TrialRecord
from freerun.placement.base import Handle, Placement
from freerun.program import Healer, Program, Save
from freerun.schedule import FULL, QUICK
from freerun.store import journal
from freerun.store.phases import Plan
from freerun.transitions import Chunk
from freerun.types import Max

CHUNKS = "chunks.journal"
"""File of a checkpoint: chunks that were finished and not trained on."""


class EnvController(Program):
    """Runs a control job on executors that already exist. `envs` is the number of environments of each actor, `capacity` the
    transitions that replay holds, `rollouts` whether the algorithm's terms read rollouts. `judge` is the actor that evaluates;
    `scores` are reference returns, of a random and of an expert policy, for normalised scores. Pictures go to `pictures`.
    `supply` takes the place of the queue of rollouts, and `beat` is an executor that waits, for supplies that go by time."""

    def __init__(
        self,
        schedule: EnvSchedule,
        *,
        placement: Placement,
        actors: Sequence[Handle],
        judge: Handle,
        trainer: Handle,
        envs: int,
        capacity: int,
        rollouts: bool,
        sink: Sink,
        seed: int,
        scores: tuple[float, float] | None = None,
        pictures: Path | None = None,
        supply: Rollouts | None = None,
        beat: Handle | None = None,
        save: Save | None = None,
        directory: Path | None = None,
        began: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            placement=placement,
            trainer=trainer,
            workers=[*actors, judge, *([beat] if beat is not None else [])],
            sink=sink,
            deadline=schedule.call_deadline,
            stall_deadline=schedule.stall_deadline,
            save=save,
            directory=directory,
            began=began,
            clock=clock,
        )
        self.schedule, self.judge, self.trials = schedule, judge, list[TrialRecord]()
        self._seed, self._scores, self._pictures = seed, scores, pictures
        rows = schedule.chunk * envs
        self.works = [work_of(p, schedule, rows=rows, rollouts=rollouts or supply is not None) for p in schedule.phases]
        self.supply: Rollouts | Replay = Replay(schedule, capacity=max(1, capacity // rows))
        if rollouts or supply is not None:
            self.supply = supply or Queue(schedule)
        self._beat = beat
        self._healer = Healer(placement, self.tracker, sink, schedule.executor_restarts)
        self.collection = Collection(
            schedule,
            self.supply,
            actors=actors,
            trainer=trainer,
            rows=rows,
            healer=self._healer,
            tracker=self.tracker,
            loops=self.loops,
            sink=sink,
            newest=lambda: self.ref,
        )
        self.phase, self.updates = 0, 0
        self._going_on = False
        self._judging: set[int] = set()

    # --- what a run of control adds ------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        # Of a run that is over, what it made; before, what it may make at most.
        return self.step if self.phase == len(self.works) else sum(work.steps for work in self.works)

    @property
    def done(self) -> float:
        """The share of the run's work that lies behind."""
        if self.phase == len(self.works):
            return 1.0
        work = self.works[self.phase]
        here = self.collection.finished / work.chunks if work.chunks else self.updates / max(work.updates, 1)
        behind = sum(w.amount for w in self.works[: self.phase]) + here * work.amount
        return behind / sum(w.amount for w in self.works)

    def _workers(self) -> list[Coroutine[Any, Any, None]]:
        timed = [self._keep_time(self._beat)] if self._beat is not None else []
        return [self.collection.collect(name) for name in self.collection.actors] + timed

    async def _keep_time(self, beat: Handle) -> None:
        """Wake the trainer when a supply that goes by time has its step together."""
        supply = self.supply
        assert isinstance(supply, Rounded), "only a supply of rounds goes by time"
        while True:
            await self.loops.until(lambda: supply.remaining() < math.inf, beat, lambda: "nothing has arrived in this round")
            await self.tracker.call(beat, "wait", supply.remaining(), what="wait", doing="waiting for the end of the round")
            self.loops.notify()
            await self.loops.until(lambda: not supply.ready(), beat, lambda: "the round is being closed")

    def _counts(self) -> Mapping[str, int]:
        return self.supply.counts()

    def _under_way(self) -> str:
        return f"{self.collection.begun - self.collection.finished} chunks in flight"

    def _owns(self, name: str) -> bool:
        return name in self.collection.actors or name == self.judge.name

    async def _heal(self, name: str) -> None:
        if name in self.collection.actors:
            await self.collection.heal(name)
            return
        self.judge = await self._healer.respawn(name)
        self._healer.respawned(name, self.ref.version)
        self.loops.notify()

    # --- train ---------------------------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        while self.phase < len(self.works) and not self.stopping:
            work = self.works[self.phase]
            if not self._going_on:
                self.updates = 0
                self._tell("phase", {"name": work.phase.name})
                self.collection.begin_phase(work)
            self._going_on = False
            takes = not isinstance(self.supply, Replay) and work.chunks
            await (self._learn_from_rollouts(work) if takes else self._learn(work))
            if not self.stopping:
                self.phase += 1
        await self.loops.until(lambda: not self._judging, self.trainer, lambda: "the evaluation under way")
        await self._become_quiet()

    async def _learn_from_rollouts(self, work: Work) -> None:
        """Step after step on the chunks of each."""
        assert not isinstance(self.supply, Replay), "terms that read rollouts take chunks from a queue"
        supply = self.supply

        def over() -> bool:
            return self.stopping or (self.collection.done and supply.exhausted())

        while not over():
            await self.loops.until(lambda: over() or supply.ready(), self.trainer, lambda: "waiting for chunks")
            chunks = [] if self.stopping else supply.take(self.ref.version)
            if not chunks:
                return
            doing = f"taking {len(chunks)} chunks"
            await self.tracker.call(self.trainer, "accumulate", chunks, what="train", doing=doing)
            await self._step(Plan(phase=self.phase, done=self.done), chunks)
            await self._after_step()

    async def _learn(self, work: Work) -> None:
        """Step after step on what sources give, as far as it is due; or only collect."""
        while not self.stopping and (self.updates < work.updates or not self.collection.done):
            num = min(work.batch, (work.updates if self.collection.done else work.most) - self.updates)
            if num and self._exhausted(work):
                self._tell("forgone", {"updates": work.updates - self.updates, "because": "everything stored is too old"})
                return
            if not num or (work.chunks and not self._is_due(num)):
                await self.loops.until(partial(self._may_go_on, work, num), self.trainer, lambda: "waiting for transitions")
                continue
            if work.chunks and isinstance(self.supply, Replay):
                self.supply.table.spend(TRAINER, num, self.ref.version)
            first = self.supply.table.first_key if isinstance(self.supply, Replay) else 0
            await self._step(Plan(phase=self.phase, updates=num, done=self.done, first=first))
            self.updates += num
            await self._after_step()

    def _is_due(self, num: int) -> bool:
        """Whether `num` updates may be made now."""
        return isinstance(self.supply, Replay) and self.supply.table.drawable(TRAINER, num, self.ref.version) >= num

    def _exhausted(self, work: Work) -> bool:
        """Whether the updates that are left can never be made: all is collected, and all of it is too old."""
        return bool(work.chunks) and self.collection.done and not self._is_due(1)

    def _may_go_on(self, work: Work, num: int) -> bool:
        if self.stopping or (self.collection.done and self.updates >= work.updates):
            return True
        return bool(num) and (self._is_due(num) or self._exhausted(work))

    async def _step(self, plan: Plan, taken: Sequence[Chunk] = ()) -> None:
        """One step of the trainer, on the chunks that were `taken` from a queue or on what sources give."""
        keep = sorted({self.ref.version} | self.collection.versions_in_use() | self._judging)
        doing = f"{plan.updates} updates and publication" if plan.updates else "updates and publication"
        report = await self.tracker.call(self.trainer, "finish_step", keep, plan, what="update", doing=doing)
        self.ref = report.ref
        self.step += 1
        if taken and not isinstance(self.supply, Replay):
            self.supply.trained(taken, report.version)
        elif isinstance(self.supply, Queue):
            self.supply.other_step()
        self.tracker.count({"env/total": Max(self.collection.taken), "phase": Max(self.phase)})
        chunks = 0 if isinstance(self.supply, Replay) else self.schedule.chunks
        self.sink.step(self.tracker.step_record(self.step, report, chunks, self._counts()))
        self._publish_status()
        self.loops.notify()

    def _could_end(self) -> bool:
        """Whether the run ends here, with fewer steps than it might have made: the trainer need not make more updates."""
        work = self.works[-1]
        return self.works[self.phase] is work and self.updates >= work.updates < work.most and self.collection.done

    async def _after_step(self) -> None:
        """Judge and checkpoint, if it is time."""
        schedule, last = self.schedule, self.step == self.total_steps or self._could_end()
        wanted = int(self.done * schedule.evaluations + 1e-9)
        begun = sum(trial.split == QUICK for trial in self.trials) + len(self._judging)
        if begun < wanted and not self._judging and not last and schedule.eval_episodes:
            self._judging.add(self.ref.version)
            self.loops.spawn(self._judge(QUICK, schedule.eval_episodes))
        if schedule.checkpoint_every and self.step % schedule.checkpoint_every == 0 and not last and self.save is not None:
            await self._become_quiet()
            await self.save(self)
            self.collection.pause = False
            self.loops.notify()

    async def _become_quiet(self) -> None:
        """Wait until no chunk and no evaluation is under way, and begin none."""
        self.collection.pause = True
        await self.loops.until(
            lambda: self.collection.quiet and not self._judging, self.trainer, lambda: "what is in flight, for a checkpoint"
        )

    # --- judge ---------------------------------------------------------------------------------------------------------------

    async def _judge_fully(self, amount: int | None) -> None:
        num = self.schedule.final_eval_episodes if amount is None else amount
        if num:
            self._judging.add(self.ref.version)
            await self._judge(FULL, num)

    def _is_judged(self) -> bool:
        return any(trial.split == FULL and trial.step == self.step for trial in self.trials)

    async def _judge(self, split: str, num: int) -> None:
        """Play episodes with the newest version, and film one."""
        ref, step, taken = self.ref, self.step, self.collection.taken
        seed = self._seed if split == FULL else self._seed + 1
        report = await self._ask_judge("judge", ref, num, seed, doing=f"playing {num} episodes")
        picture = ""
        if split == FULL and self._pictures is not None:
            name = f"step-{step:08d}.png"
            why = await self._ask_judge("film", ref, str(self._pictures / name), seed, doing="filming an episode")
            picture = "" if why else name
            if why:
                self._tell("no picture", {"because": why})
        returns = tuple(e.total for e in report.episodes)
        score = None
        if self._scores is not None:
            low, high = self._scores
            score = 100.0 * (sum(returns) / len(returns) - low) / (high - low)
        trial = TrialRecord(
            step=step,
            split=split,
            returns=returns,
            length=sum(e.length for e in report.episodes) / len(returns),
            version=report.version,
            taken=taken,
            seconds=self.tracker.now(),
            score=score,
            picture=picture,
        )
        self.trials.append(trial)
        self._judging.discard(ref.version)
        self.sink.evaluation(trial)
        self.loops.notify()

    async def _ask_judge(self, method: str, *args: Any, doing: str) -> Any:
        while True:
            handle = self.judge
            try:
                return await self.tracker.call(handle, method, *args, what="evaluate", doing=doing)
            except ExecutorDied:
                await self.loops.until(partial(self._is_replaced, handle), handle, lambda: "died, being started anew")
            except DeadlineExceeded as error:
                self._healer.given_up(handle.name, error)
                await self._heal(handle.name)

    def _is_replaced(self, handle: Handle) -> bool:
        return self.judge is not handle

    def _tell(self, what: str, detail: Mapping[str, Any]) -> None:
        now = self.tracker.now()
        self.sink.event(Event(executor="controller", what=what, start=now, end=now, detail=detail))

    # --- checkpoints ---------------------------------------------------------------------------------------------------------

    async def write(self, directory: Path) -> None:
        state = {
            "step": self.step,
            "phase": self.phase,
            "updates": self.updates,
            "collection": await self.collection.save(),
            "trials": [asdict(trial) for trial in self.trials],
        }
        (directory / "controller.json").write_text(json.dumps(state))
        chunks = journal.Journal(directory / CHUNKS, fsync_every=0)
        for item, payload in ({} if isinstance(self.supply, Replay) else self.supply.payloads()).items():
            chunks.finished(item, "chunk", 0, payload)
        chunks.close()

    def is_in(self, checkpoint: Path) -> bool:
        """There is no journal, and within a step, even in place of one, chunks are collected."""
        state = json.loads((checkpoint / "controller.json").read_text())
        then = state["phase"], state["updates"], state["collection"]["counts"], len(state["trials"])
        return then == (self.phase, self.updates, self.collection.counts(), len(self.trials))

    def saved(self, oldest: Path) -> None:
        """Nothing to tidy up: there is no journal."""

    async def restore(self, checkpoint: Path) -> None:
        """Put a fresh program where the saved one was. Raises `CheckpointError` for a checkpoint that is whole and yet none of
        this run."""
        with fitting(checkpoint):
            await self._restore(checkpoint, json.loads((checkpoint / "controller.json").read_text()))

    async def _restore(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        self.step, self.phase, self.updates = state["step"], state["phase"], state["updates"]
        self.trials = [TrialRecord(**{**trial, "returns": tuple(trial["returns"])}) for trial in state["trials"]]
        self._going_on = self.phase < len(self.works)
        payloads = {record.item: record.payload for record in journal.read(checkpoint / CHUNKS)}
        work = self.works[min(self.phase, len(self.works) - 1)]
        await self.collection.load(state["collection"], work, payloads)
