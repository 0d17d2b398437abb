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
`evaluate.py`). What all runs have in common is in `program.py`.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from freerun.checkpoint import needed_after, write_controller
from freerun.elastic import Elastic
from freerun.errors import ConfigError, DataError
from freerun.evaluate import Accuracy, Evaluator
from freerun.intake import Intake
from freerun.metrics import Sink
from freerun.placement.base import ExecutorSpec, Handle, Placement
from freerun.program import Program, Save
from freerun.replay import Replay
from freerun.schedule import FULL, QUICK, ControllerConfig, Stream
from freerun.store.journal import Journal
from freerun.tracker import sample_record
from freerun.types import Example, Group, Prompt, Sampling


class Controller(Program):
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
        save: Save | None = None,
        directory: Path | None = None,
        began: float = 0.0,
        another: Callable[[int], ExecutorSpec] | None = None,
        exact: bool = False,
    ) -> None:
        if not prompts:
            raise DataError(
                "the training set is empty",
                given="0 prompts",
                expected="at least one prompt",
                todo="check the task's dataset and its filters",
            )
        if config.experts and not experts:
            raise ConfigError(
                "the run has no demonstrations",
                given=f"control.experts = {config.experts}",
                expected="a recipe that says where demonstrations come from",
                todo="set `experts` in the recipe, or --control.experts 0",
            )
        super().__init__(
            placement=placement,
            trainer=trainer,
            workers=[*generators, rewarder],
            sink=sink,
            deadline=config.call_deadline,
            stall_deadline=config.stall_deadline,
            save=save,
            directory=directory,
            began=began,
        )
        self.config, self.exact = config, exact
        self.evaluator = Evaluator(heldout, eval_sampling, accuracy)
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

    # --- what a run of language adds -----------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        return self.config.steps

    async def _start(self, doing: str) -> None:
        """What the trainer holds may, after a crash, be a version that generators were not given before."""
        await super()._start(doing)
        self.version = self.ref.version
        self.intake.published(self.version)

    async def evaluate(self, amount: int) -> None:
        """As `Program.evaluate`. Admission does not hear of the version: it was not told of the steps that made it."""
        await super()._start("publishing the loaded version")
        self.version = self.ref.version
        await self._beside_loops(self._judge_fully(amount))

    def request_stop(self) -> None:
        self.intake.stopping = True
        super().request_stop()

    def _workers(self) -> list[Coroutine[Any, Any, None]]:
        return [self.intake.generate(name) for name in self.intake.crew.members]

    def _beside_run(self) -> list[Coroutine[Any, Any, None]]:
        return [self._elastic.follow()] if self._elastic is not None else []

    def _counts(self) -> Mapping[str, int]:
        return self.intake.admission.counts()

    def _under_way(self) -> str:
        return f"{len(self.intake.active)} items in flight"

    def _owns(self, name: str) -> bool:
        return self.intake.owns(name)

    async def _heal(self, name: str) -> None:
        await self.intake.heal(name)

    async def write(self, directory: Path) -> None:
        write_controller(directory, self)

    def saved(self, oldest: Path) -> None:
        if self.intake.journal is not None and (needed := needed_after(oldest)) is not None:
            self.intake.journal.compact(needed)

    def is_in(self, checkpoint: Path) -> bool:
        return True  # what was finished since is in the journal

    # --- train ---------------------------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        self.intake.admit()
        while self.step < self.config.steps and await self._take_a_step():
            pass

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
        if self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0 and not last and self.save:
            if self.exact:
                await self.loops.until(
                    self._nothing_is_under_way, self.trainer, lambda: "a checkpoint waits for what is under way"
                )
            await self.save(self)

    def _nothing_is_under_way(self) -> bool:
        return self.stopping or not (self.intake.active or self.evaluator.current)

    # --- evaluation ----------------------------------------------------------------------------------------------------------

    def _is_judged(self) -> bool:
        return any(record.split == FULL and record.step == self.step for record in self.evaluator.records)

    async def _judge_fully(self, amount: int | None) -> None:
        """Evaluate so many held-out problems."""
        num_prompts = self.config.final_eval_prompts if amount is None else amount
        if not num_prompts:
            return
        await self.loops.until(lambda: self.evaluator.current is None, self.trainer, lambda: "the evaluation under way")
        self.evaluator.begin(self.step, FULL, num_prompts)
        self.loops.notify()
        await self.loops.until(
            lambda: self.evaluator.current is None or self.stopping, self.trainer, lambda: "the held-out evaluation"
        )
