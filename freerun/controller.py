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
| watch           | deaths                   | the end of the run    | a death                 | the placement                |

Evaluation is not a loop: its requests fill decode slots that training leaves free (see `evaluate.py`).
Every loop is a task and the first to raise ends the run. What a call does depends only on its arguments and its executor's own
state, and what this program does next depends only on the order in which calls complete. That order is what
`placement.inline` records and replays.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from freerun.errors import AllFailed, ExecutorDied
from freerun.evaluate import Accuracy, Evaluator
from freerun.metrics import Sink
from freerun.placement.base import Handle, Placement
from freerun.schedule import FULL, QUICK, ControllerConfig, PromptStream, check, stream_seed
from freerun.store.admission import Admission
from freerun.tracker import Tracker, sample_record
from freerun.types import Failure, Group, Prompt, Request, RewardRequest, RewardResult, Sampling, Sum, Trajectory, WeightsRef


@dataclass(slots=True)
class Active:
    """An admitted item that is not yet a group: what has arrived of it."""

    prompt: Prompt
    seed: int
    attempt: int = 0
    generator: str = ""
    responses: dict[int, Trajectory | Failure] = field(default_factory=dict)
    rewards: dict[int, RewardResult | Failure] = field(default_factory=dict)


class Controller:
    """Runs a training job on executors that already exist; `run` returns when the last step is published and evaluated.

    `prompts` are taken in a seeded random order, epoch after epoch. `save` writes a checkpoint of this controller and its
    trainer.
    """

    def __init__(
        self,
        config: ControllerConfig,
        *,
        placement: Placement,
        generators: Sequence[Handle],
        rewarder: Handle,
        trainer: Handle,
        prompts: Sequence[Prompt],
        heldout: Sequence[Prompt],
        sampling: Sampling,
        eval_sampling: Sampling,
        accuracy: Accuracy,
        sink: Sink,
        seed: int,
        save: "Callable[[Controller], Awaitable[object]] | None" = None,
        began: float = 0.0,
    ) -> None:
        check(config, len(prompts))
        self.config, self.placement, self.sink, self.seed, self._save = config, placement, sink, seed, save
        self.generators, self.rewarder, self.trainer = list(generators), rewarder, trainer
        self.prompts, self.evaluator = PromptStream(prompts, seed), Evaluator(heldout, eval_sampling, accuracy)
        self.sampling = sampling
        self.tracker = Tracker([*generators, rewarder, trainer], sink, deadline=config.call_deadline, began=began)
        self.admission = Admission(batch=config.groups, max_lag=config.max_lag, window=config.window, retries=config.retries)
        self.active: dict[int, Active] = {}
        self.groups: dict[int, Group] = {}
        self.cursor = self.step = 0
        self.ref: WeightsRef  # Set by the first call of every entry point, before any loop starts.
        self.stopping = False
        self._outbox: dict[str, list[Request]] = {g.name: [] for g in generators}
        self._load: dict[str, int] = {g.name: 0 for g in generators}
        self._held: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task] = set()
        self._failed: asyncio.Future
        self._skipped = self._fruitless = 0
        self._last_failure: Failure | None = None

    # --- the run -------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Train to the last step. Raises the first error of any loop; then no task of this controller is left."""
        self.ref = await self.tracker.call(self.trainer, "start", what="publish", doing="publishing the first version")
        if self.step == 0 and self.config.final_eval_prompts:
            await self._beside_loops(self._evaluate_and_wait(self.config.final_eval_prompts))
        await self._beside_loops(self._train())
        if not self.stopping and self.config.final_eval_prompts:
            await self._beside_loops(self._evaluate_and_wait(self.config.final_eval_prompts))

    async def evaluate(self, num_prompts: int) -> None:
        """Publish what the trainer holds and evaluate it on the first `num_prompts` held-out problems; trains nothing."""
        self.ref = await self.tracker.call(self.trainer, "start", what="publish", doing="publishing the loaded version")
        await self._beside_loops(self._evaluate_and_wait(num_prompts))

    async def _beside_loops(self, main: Coroutine[Any, Any, None]) -> None:
        """Run `main` to its end beside the other loops; the first task to fail ends all, and its error is raised here."""
        self._failed = asyncio.get_running_loop().create_future()
        first = self._spawn(main)
        self._spawn(self._watch())
        for generator in self.generators:
            self._spawn(self._generate(generator))
        try:
            await asyncio.wait({first, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
        finally:
            rest, self._tasks = self._tasks, set()
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            self._failed.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task:
        """Run `work` as a task whose error ends the run."""

        def ended(task: asyncio.Task) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not self._failed.done():
                self._failed.set_exception(error)

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    def request_stop(self) -> None:
        """Finish the step in hand if it is nearly there, checkpoint, and let `run` return."""
        self.stopping = True
        self._notify()

    def _notify(self) -> None:
        """Wake every loop that waits for a change."""
        self._wake.set()
        self._wake = asyncio.Event()

    async def _until(self, ready: Callable[[], bool], handle: Handle, why: Callable[[], str]) -> None:
        while not ready():
            self.tracker.idle(handle, why())
            self._publish_status()
            await self._wake.wait()

    def _publish_status(self) -> None:
        self.sink.status(self.tracker.snapshot(self.step, self.config.steps, self.admission.counts()))

    async def _watch(self) -> None:
        async for name in self.placement.failures():
            raise ExecutorDied(
                f"executor '{name}' died",
                given=f"step {self.step}, {len(self.active)} items in flight",
                expected="every executor lives as long as the run",
                todo="read its last lines above, then `freerun resume DIR`",
            )

    # --- admission -----------------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Fill free slots with new prompts, as long as the remaining steps need items."""
        while not self.stopping and self._num_wanted() > 0:
            prompt = self.prompts.at(self.cursor)
            item = self.admission.admit(prompt.uid)
            if item is None:
                break
            self.cursor += 1
            self.active[item] = Active(prompt=prompt, seed=stream_seed(self.seed, item))
            self.order(item)
        self._notify()

    def _num_wanted(self) -> int:
        steps_left = self.config.steps - self.step
        return steps_left * self.config.groups - len(self.active) - len(self.groups)

    def order(self, item: int) -> None:
        """Ask the least loaded generator for the group of `item`."""
        active = self.active[item]
        target = min(self.generators, key=lambda g: self._load[g.name]).name
        self._load[target] += self.config.group_size
        active.generator, active.responses, active.rewards = target, {}, {}
        self._outbox[target].append(
            Request(
                item=item,
                prompt=active.prompt,
                num_samples=self.config.group_size,
                sampling=self.sampling,
                seed=stream_seed(active.seed, active.attempt),
            )
        )

    # --- generate and score --------------------------------------------------------------------------------------------------

    async def _generate(self, generator: Handle) -> None:
        name = generator.name
        while True:
            await self._until(lambda: self._has_work(name), generator, self._why_no_prompts)
            requests, self._outbox[name] = self._outbox[name], []
            for request in requests:
                self.admission.begin(request.item, self.ref.version)
            questions = self.evaluator.spare(self._spare(name))
            self._load[name] += len(questions)
            requests = requests + questions
            self._sent[name] = self.ref.version
            report = await self.tracker.call(
                generator,
                "advance",
                requests,
                self.ref,
                self.config.decode_steps,
                what="generate",
                doing=f"decoding {self._load[name]} responses",
            )
            self._held[name] = report.version
            self.tracker.count(
                {
                    "tokens/generated": Sum(report.tokens),
                    "tokens/prefilled": Sum(report.prefill_tokens),
                    "time/generate": Sum(report.seconds),
                    "time/swap": Sum(report.swap_seconds),
                }
            )
            self._responded(name, report.finished)

    def _has_work(self, name: str) -> bool:
        return bool(self._outbox[name] or self._load[name] or self.evaluator.has_backlog)

    def _why_no_prompts(self) -> str:
        return "no free slot: the trainer is behind" if self._num_wanted() > 0 else "no prompts left to admit"

    def _spare(self, name: str) -> int:
        """Decode slots that training, whose share is a full table of items, leaves free on this generator."""
        room = self.admission.capacity * self.config.group_size
        return max(room // len(self.generators), 1) - self._load[name]

    def _responded(self, name: str, finished: Sequence[Any]) -> None:
        """Sort what a generator returned by item, and score each item's part."""
        arrived: dict[int, dict[int, Trajectory | Failure]] = {}
        for one in finished:
            self._load[name] -= 1
            arrived.setdefault(one.item, {})[one.sample] = one.outcome
        for item, outcomes in arrived.items():
            self._spawn(self._score(item, outcomes))
        self._notify()

    async def _score(self, item: int, outcomes: dict[int, Trajectory | Failure]) -> None:
        """Reward the responses of `item` that just arrived; when the last of its group is in, the group is finished."""
        prompt = self.evaluator.prompt(item) if item < 0 else self.active[item].prompt
        good = {sample: t for sample, t in outcomes.items() if not isinstance(t, Failure)}
        rewards: dict[int, RewardResult | Failure] = {s: f for s, f in outcomes.items() if isinstance(f, Failure)}
        if good:
            requests = [RewardRequest(prompt=prompt, completion=t.text) for t in good.values()]
            scored = await self.tracker.call(
                self.rewarder, "score", requests, what="score", doing=f"scoring {len(requests)} responses"
            )
            rewards |= dict(zip(good, scored, strict=True))
        if item < 0:
            record = self.evaluator.answered(outcomes[0], rewards[0], self.tracker.now())
            if record is not None:
                self.sink.evaluation(record)
        else:
            active = self.active[item]
            active.responses |= outcomes
            active.rewards |= rewards
            if len(active.rewards) == self.config.group_size:
                self._group_complete(item)
        self._notify()

    def _group_complete(self, item: int) -> None:
        active = self.active[item]
        failure = next((r for r in active.rewards.values() if isinstance(r, Failure)), None)
        if failure is not None:
            self._group_failed(item, failure)
            return
        samples = range(self.config.group_size)
        group = Group(
            item=item,
            prompt=active.prompt,
            trajectories=tuple(t for s in samples if isinstance(t := active.responses[s], Trajectory)),
            rewards=tuple(r for s in samples if isinstance(r := active.rewards[s], RewardResult)),
        )
        self._fruitless = 0
        del self.active[item]
        uniform = len({r.value for r in group.rewards}) == 1
        if uniform and self.config.skip_uniform and self._skipped < self.config.max_skips * self.config.groups:
            self._skipped += 1
            self.admission.finish(item, group.oldest_version)
            self.admission.drop(item, "uniform rewards")
            self.admit()
            return
        self.admission.finish(item, group.oldest_version)
        self.groups[item] = group

    def _group_failed(self, item: int, failure: Failure) -> None:
        self._last_failure = failure
        if self.admission.fail(item, failure):
            self.active[item].attempt += 1
            self.order(item)
            return
        del self.active[item]
        self._fruitless += 1
        if self._fruitless >= self.config.groups:
            raise AllFailed(
                f"the last {self._fruitless} groups all failed, every retry included",
                given=f"last failure: {failure.kind} in {failure.where}: {failure.message}",
                expected="at least one group per step that can be generated and scored",
                todo="mend the cause named above, then resume",
            )
        self.admit()

    # --- train ---------------------------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        self.admit()
        while self.step < self.config.steps and await self._take_a_step():
            pass
        await self._checkpoint()

    async def _take_a_step(self) -> bool:
        """Train on the next step's items as they come; False, and no step, if the run is to stop."""
        taken: list[int] = []
        while len(taken) < self.config.groups:
            await self._until(partial(self._enough, len(taken)), self.trainer, partial(self._why_no_batch, len(taken)))
            if self.stopping:
                return False
            items = self.admission.take(self.config.groups - len(taken), self.ref.version)
            groups = [self.groups[i] for i in items]
            doing = f"forward and backward of {len(items)} groups"
            await self.tracker.call(self.trainer, "accumulate", groups, what="train", doing=doing)
            taken += items
        await self._finish_step(taken)
        return True

    def _enough(self, num_taken: int) -> bool:
        return self.stopping or self.admission.ready() >= min(self.config.stream, self.config.groups - num_taken)

    def _why_no_batch(self, num_taken: int) -> str:
        return f"waiting for groups: {num_taken} of {self.config.groups} taken, {len(self.active)} being generated or scored"

    async def _finish_step(self, items: list[int]) -> None:
        # A call that is under way may be on the version that it was sent, or still on the one held before.
        keep = sorted({self.ref.version, *self._held.values(), *self._sent.values()})
        report = await self.tracker.call(
            self.trainer, "finish_step", keep, what="update", doing="optimiser step and publication"
        )
        self.admission.trained(items, report.version)
        self.admission.published(report.version)
        self.ref = report.ref
        self.step += 1
        self._skipped = 0
        self._record(items, report)
        for item in items:
            del self.groups[item]
        self.admit()
        if self.config.eval_every and self.step % self.config.eval_every == 0 and self.step < self.config.steps:
            self.evaluator.begin(self.step, QUICK, self.config.eval_prompts)
            self._notify()
        if self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0 and self.step < self.config.steps:
            await self._checkpoint()

    def _record(self, items: list[int], report: Any) -> None:
        self.sink.step(self.tracker.step_record(self.step, report, len(items), self.admission.counts()))
        for item in items[:: self.config.sample_every]:
            self.sink.sample(sample_record(self.step, report.version - 1, self.groups[item]))
        self._publish_status()

    # --- evaluation and checkpoints ------------------------------------------------------------------------------------------

    async def _evaluate_and_wait(self, num_prompts: int) -> None:
        """Evaluate `num_prompts` held-out problems with nothing else going on."""
        await self._until(lambda: self.evaluator.current is None, self.trainer, lambda: "the evaluation under way")
        self.evaluator.begin(self.step, FULL, num_prompts)
        self._notify()
        await self._until(
            lambda: self.evaluator.current is None or self.stopping, self.trainer, lambda: "the held-out evaluation"
        )

    async def _checkpoint(self) -> None:
        if self._save is not None:
            await self._save(self)
