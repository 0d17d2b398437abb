"""The one program that decides what happens next. It holds no tensors: groups pass through it unopened.

    prompts --admit(slot)--> generator --response--> rewarder --group--> store --groups--> trainer
                                ^                                                            |
                                +----------- WeightsRef of the newest version <--------------+
                    a slot is freed when its item was trained AND the version that trained on it is published

| loop            | consumes                 | produces              | waits for               | woken by                     |
|-----------------|--------------------------|-----------------------|-------------------------|------------------------------|
| admission       | free slots, prompts      | requests              | nothing: runs if woken  | start, publication, drop     |
| generate (each) | requests, the newest ref | responses             | something to decode     | admission, retry, evaluation |
| score (a group) | responses                | rewards, then a group | the rewarder            | a finished response          |
| train           | groups in the window     | the next version      | a group in the window   | a finished or dropped group  |
| watch           | deaths                   | a fresh executor, or the end of the run | a death | the placement              |
| follow          | requests for generators  | more or fewer of them | a request               | time (see `elastic.py`)      |

The first three are in `intake.py`. Evaluation is not a loop: its requests fill decode slots that training leaves free (see
`evaluate.py`). Every loop is a task and the first to raise ends the run. What a call does depends only on its arguments and its
executor's own state, and what this program does next depends only on the order in which calls complete. That order is what
`placement.inline` records and replays.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from freerun.elastic import Elastic
from freerun.errors import ConfigError, DeadlineExceeded, ExecutorDied, FreerunError, Stalled
from freerun.evaluate import Accuracy, Evaluator
from freerun.intake import Intake
from freerun.loops import Loops
from freerun.metrics import Event, Sink
from freerun.placement.base import ExecutorSpec, Handle, Placement
from freerun.replay import Replay
from freerun.schedule import FULL, QUICK, ControllerConfig, Stream, check
from freerun.store.journal import Journal
from freerun.tracker import Tracker, sample_record
from freerun.types import Example, Group, Prompt, Sampling, WeightsRef

STALL_PERIOD = 1.0
"""Seconds between two looks for a stall."""


class Controller:
    """Runs a training job on executors that already exist; `run` returns when the last step is published and evaluated.

    `prompts` are what items are made from; a data set of examples needs no generator but for evaluations. `save` writes a
    checkpoint of this controller and its trainer. What a stall leaves behind goes into `directory`, where requests for more or
    fewer generators come from; `another(i)` says how the one of number `i` is made. With `exact` there is a checkpoint only
    where nothing is under way, and what was finished after it is no part of a resume: then, if calls complete in a fixed order,
    a run that was killed and resumed is the unbroken one.
    """

    def __init__(
        self,
        config: ControllerConfig,
        *,
        placement: Placement,
        generators: Sequence[Handle],
        rewarder: Handle,
        trainer: Handle,
        prompts: Sequence[Prompt] | Sequence[Example],
        heldout: Sequence[Prompt],
        sampling: Sampling,
        eval_sampling: Sampling,
        accuracy: Accuracy,
        sink: Sink,
        seed: int,
        experts: Sequence[Example] = (),
        journal: Journal | None = None,
        save: "Callable[[Controller], Awaitable[object]] | None" = None,
        directory: Path | None = None,
        began: float = 0.0,
        another: Callable[[int], ExecutorSpec] | None = None,
        exact: bool = False,
    ) -> None:
        check(config, len(prompts))
        if config.experts and not experts:
            raise ConfigError(
                "the run has no demonstrations",
                given=f"control.experts = {config.experts}",
                expected="a recipe that says where demonstrations come from",
                todo="set `experts` in the recipe, or --control.experts 0",
            )
        self.config, self.placement, self.sink, self._save, self._directory = config, placement, sink, save, directory
        self.trainer, self.exact = trainer, exact
        self.evaluator = Evaluator(heldout, eval_sampling, accuracy)
        self.tracker = Tracker([*generators, rewarder, trainer], sink, deadline=config.call_deadline, began=began)
        self.loops = Loops(self._waiting)
        self.step = 0
        self.stopping = False
        # What generators are given, and the trainer's version. Every entry point sets them before any loop starts.
        self.ref: WeightsRef
        self.version: int
        self.intake = Intake(
            config,
            placement=placement,
            generators=generators,
            rewarder=rewarder,
            prompts=Stream(prompts, seed),
            sampling=sampling,
            evaluator=self.evaluator,
            tracker=self.tracker,
            loops=self.loops,
            sink=sink,
            seed=seed,
            newest=lambda: self.ref,
            journal=journal,
        )
        self.replay = (
            Replay(config.replay, batch=config.groups, max_age=config.replay_age, seed=seed) if config.replay else None
        )
        self._experts = Stream(experts, seed)
        self._elastic = (
            Elastic(self.intake, placement, self.tracker, sink, another, directory)
            if another is not None and directory is not None
            else None
        )

    # --- the run -------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Train to the last step. Raises the first error of any loop; then no task of this controller is left."""
        await self._start("publishing the first version")
        await self._beside_loops(self._whole(), *([self._elastic.follow()] if self._elastic is not None else []))

    async def _whole(self) -> None:
        """In one go: between two sets of loops what a generator answers would reach nobody."""
        if self.step == 0 and self.config.final_eval_prompts:
            await self._evaluate_and_wait(self.config.final_eval_prompts)
        await self._train()
        if not self.stopping and self.config.final_eval_prompts:
            await self._evaluate_and_wait(self.config.final_eval_prompts)

    async def evaluate(self, num_prompts: int) -> None:
        """Publish what the trainer holds and evaluate it on the first `num_prompts` held-out problems; trains nothing."""
        await self._start("publishing the loaded version")
        await self._beside_loops(self._evaluate_and_wait(num_prompts))

    async def _start(self, doing: str) -> None:
        """Publish what the trainer holds, which after a crash may be a version that generators were not given before."""
        self.ref = await self.tracker.call(self.trainer, "start", what="publish", doing=doing)
        self.version = self.ref.version
        self.intake.published(self.version)

    async def _beside_loops(self, main: Any, *others: Coroutine[Any, Any, None]) -> None:
        generating = [self.intake.generate(name) for name in self.intake.crew.members]
        try:
            await self.loops.beside(main, [self._watch(), self._notice_stalls(), *others, *generating])
        except (DeadlineExceeded, Stalled) as error:
            await self._report_stall(error)
            raise

    def request_stop(self) -> None:
        """Finish the step in hand if it is nearly there, checkpoint, and let `run` return."""
        self.stopping = self.intake.stopping = True
        self.loops.notify()

    def _waiting(self, handle: Handle, why: str) -> None:
        self.tracker.idle(handle, why)
        self._publish_status()

    def _publish_status(self) -> None:
        self.sink.status(self.tracker.snapshot(self.step, self.config.steps, self.intake.admission.counts()))

    async def _watch(self) -> None:
        async for death in self.placement.failures():
            now = self.tracker.now()
            self.sink.event(Event(executor=death.name, what="died", start=now, end=now, detail={"how": death.how}))
            if not self.intake.owns(death.name):
                raise ExecutorDied(
                    f"executor '{death.name}' died",
                    given=f"{death.how}; at step {self.step}, with {len(self.intake.active)} items in flight",
                    expected="a trainer that lives as long as the run",
                    todo="look for its last lines on stderr, and for the kernel's out-of-memory killer in `dmesg`",
                )
            self.loops.spawn(self.intake.heal(death.name))

    async def _notice_stalls(self) -> None:
        """A call that hangs has a deadline of its own. What is noticed here is that there is no call, and that nobody makes
        one."""
        while True:
            await asyncio.sleep(STALL_PERIOD)
            if not self.placement.waits() and self.tracker.quiet() > self.config.stall_deadline:
                raise Stalled(
                    "nobody can go on",
                    given="; ".join(self.tracker.waiting()),
                    expected=f"a call within {self.config.stall_deadline:g} s",
                    todo="report this with events.jsonl and the stacks in the run directory",
                )

    async def _report_stall(self, error: FreerunError) -> None:
        """Leave in the records who waits for whom since when, and what every thread is doing."""
        open_calls = [f"{name}: {what}, {seconds:.0f} s" for name, what, seconds in self.placement.waits()]
        stacks = await self.placement.dump_stacks(self._directory) if self._directory is not None else []
        now, waiting = self.tracker.now(), [*open_calls, *self.tracker.waiting()]
        detail = {"error": str(error), "waiting": waiting, "stacks": [path.name for path in stacks]}
        self.sink.event(Event(executor="controller", what="stalled", start=now, end=now, detail=detail))

    # --- train ---------------------------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        self.intake.admit()
        while self.step < self.config.steps and await self._take_a_step():
            pass
        if self._save is not None:
            await self._save(self)

    async def _take_a_step(self) -> bool:
        """Train on the next step's items as they come; False, and no step, if the run is to stop."""
        taken: dict[int, Group | Example] = {}
        while len(taken) < self.config.groups:
            await self.loops.until(partial(self._enough, len(taken)), self.trainer, partial(self._why_no_batch, len(taken)))
            if self.stopping:
                return False
            groups = self.intake.take(self.config.groups - len(taken), self.version)
            await self._accumulate(list(groups.values()))
            taken |= groups
        if extra := self._extra():
            await self._accumulate(extra)
        await self._finish_step(taken)
        return True

    async def _accumulate(self, groups: Sequence[Group | Example]) -> None:
        doing = f"forward and backward of {len(groups)} groups"
        await self.tracker.call(self.trainer, "accumulate", groups, what="train", doing=doing)

    def _extra(self) -> list[Group | Example]:
        """What the step trains on besides the items that were taken for it: replayed groups and demonstrations."""
        replayed = self.replay.draw(self.version) if self.replay is not None else []
        first = self.step * self.config.experts
        return [*replayed, *(self._experts.at(first + i) for i in range(self.config.experts))]

    def _enough(self, num_taken: int) -> bool:
        return self.stopping or self.intake.admission.ready() >= min(self.config.stream, self.config.groups - num_taken)

    def _why_no_batch(self, num_taken: int) -> str:
        under_way = len(self.intake.active)
        return f"waiting for groups: {num_taken} of {self.config.groups} taken, {under_way} being generated or scored"

    async def _finish_step(self, taken: dict[int, Group | Example]) -> None:
        keep = sorted({self.ref.version} | self.intake.crew.versions_in_use())
        report = await self.tracker.call(
            self.trainer, "finish_step", keep, what="update", doing="optimiser step and publication"
        )
        self.step += 1
        self.version = report.version
        self.intake.trained(list(taken), self.version)
        last = self.step == self.config.steps
        if self.step % self.config.publish_every == 0 or last:
            self.ref = report.ref
            self.intake.published(self.version)
        groups = [group for group in taken.values() if isinstance(group, Group)]
        if self.replay is not None:
            self.replay.add(groups)
        self.sink.step(self.tracker.step_record(self.step, report, len(taken), self.intake.admission.counts()))
        for group in groups[:: self.config.sample_every]:
            self.sink.sample(sample_record(self.step, report.version - 1, group))
        self._publish_status()
        self.intake.admit()
        if self.config.eval_every and self.step % self.config.eval_every == 0 and not last:
            self.evaluator.begin(self.step, QUICK, self.config.eval_prompts)
            self.loops.notify()
        if self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0 and not last and self._save:
            if self.exact:
                await self.loops.until(
                    self._nothing_is_under_way, self.trainer, lambda: "a checkpoint waits for what is under way"
                )
            await self._save(self)

    def _nothing_is_under_way(self) -> bool:
        return self.stopping or not (self.intake.active or self.evaluator.current)

    # --- evaluation ----------------------------------------------------------------------------------------------------------

    async def _evaluate_and_wait(self, num_prompts: int) -> None:
        """Evaluate `num_prompts` held-out problems with nothing else going on."""
        await self.loops.until(lambda: self.evaluator.current is None, self.trainer, lambda: "the evaluation under way")
        self.evaluator.begin(self.step, FULL, num_prompts)
        self.loops.notify()
        await self.loops.until(
            lambda: self.evaluator.current is None or self.stopping, self.trainer, lambda: "the held-out evaluation"
        )
