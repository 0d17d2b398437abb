"""From free slots to finished groups: admission, generation, scoring, and the journal of what is finished.

    prompts --admit(slot)--> outbox --> generator --responses--> rewarder --rewards--> group --journal--> store

Groups pass through it unopened. Items of a dataset are finished as they are admitted. Items of an executor that died wait
again, at their place; it is started anew and adopts the newest version with its first request.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from freerun.crew import Crew, Member
from freerun.encoding import decode_group, encode_group
from freerun.errors import AllFailed, CheckpointError, ExecutorDied
from freerun.evaluate import Evaluator
from freerun.loops import Loops
from freerun.metrics import Sink
from freerun.placement.base import Handle, Placement
from freerun.program import Healer
from freerun.schedule import ControllerConfig, Stream, stream_seed
from freerun.store.admission import Admission, State
from freerun.store.journal import Journal, Record
from freerun.store.recovery import Recovery
from freerun.tracker import Tracker
from freerun.types import (
    Example,
    Failure,
    Group,
    Prompt,
    Request,
    RewardRequest,
    RewardResult,
    Sampling,
    Source,
    Sum,
    Trajectory,
    WeightsRef,
)


@dataclass(slots=True)
class Active:
    """An admitted item that is not yet a group: who works on it, the how-manieth order that is, and what has arrived of it."""

    prompt: Prompt
    generator: str = ""
    orders: int = 0
    responses: dict[int, Trajectory | Failure] = field(default_factory=dict)
    rewards: dict[int, RewardResult | Failure] = field(default_factory=dict)


class Intake:
    """The half of a run that makes groups; `groups` are those that are finished and not yet trained and published.

    `prompts` are taken in a seeded random order, epoch after epoch: item `i` is made from the `i`-th. `newest` gives the newest
    published version. Every group is in `journal`, if there is one, before the store learns of it.
    """

    def __init__(
        self,
        config: ControllerConfig,
        *,
        placement: Placement,
        generators: Sequence[Handle],
        rewarder: Handle,
        prompts: Stream[Prompt | Example],
        sampling: Sampling,
        evaluator: Evaluator,
        tracker: Tracker,
        loops: Loops,
        sink: Sink,
        seed: int,
        newest: Callable[[], WeightsRef],
        journal: Journal | None = None,
    ) -> None:
        self.config, self.prompts, self.journal = config, prompts, journal
        self.crew, self.rewarder = Crew(generators), rewarder
        self.admission = Admission(batch=config.groups, max_lag=config.max_lag, window=config.window, retries=config.retries)
        self.active: dict[int, Active] = {}
        self.groups: dict[int, Group | Example] = {}
        self.stopping = False
        self._evaluator, self._tracker, self._loops, self._sink = evaluator, tracker, loops, sink
        self._sampling, self._seed, self._newest = sampling, seed, newest
        self._recovery: Recovery | None = None
        self._healer = Healer(placement, tracker, sink, config.executor_restarts)
        self._skipped = self._fruitless = 0
        self._last_failure: Failure | None = None

    # --- admission -----------------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Fill free slots with new items, as long as the remaining steps need them."""
        while not self.stopping and self._num_wanted() > 0:
            prompt = self.prompts.at(self.admission.next_item)
            item = self.admission.admit(prompt.uid)
            if item is None:
                break
            if isinstance(prompt, Example):
                self._take_example(item, prompt)
            elif not self._settled(item, prompt):
                self.active[item] = Active(prompt=prompt)
                self._order(item)
        self._loops.notify()

    def _num_wanted(self) -> int:
        """Items that the remaining steps need and that are neither under way nor there."""
        needed = self.config.steps * self.config.groups - self.admission.ledger.num_trained
        return needed - len(self.active) - len(self.groups)

    def _take_example(self, item: int, example: Example) -> None:
        """Nobody has to make it."""
        version = self._newest().version
        self.admission.begin(item, version)
        self.admission.finish(item, version)
        self.groups[item] = example

    def _settled(self, item: int, prompt: Prompt) -> bool:
        """Whether the item ended before a crash, and is now where it was then."""
        record = self._recovery.settle(item) if self._recovery is not None else None
        if record is not None and not record.reason:
            self.groups[item] = decode_group(record.payload, item, prompt, source=Source.RECALLED)
        return record is not None

    def _order(self, item: int) -> None:
        """Ask the least loaded generator for the group of `item`. Attempts that failed make another seed, deaths do not."""
        active = self.active[item]
        member = self.crew.least_loaded()
        member.load += self.config.group_size
        active.generator, active.orders, active.responses, active.rewards = member.handle.name, active.orders + 1, {}, {}
        seed = stream_seed(stream_seed(self._seed, item), self.admission.items[item].failures)
        member.outbox.append(
            Request(item=item, prompt=active.prompt, num_samples=self.config.group_size, sampling=self._sampling, seed=seed)
        )

    # --- generate ------------------------------------------------------------------------------------------------------------

    async def generate(self, name: str) -> None:
        """The loop of one generator; ends when it leaves and has nothing more to do."""
        while not self.crew.is_done(name):
            member = self.crew.members[name]
            await self._loops.until(lambda: self._is_called_for(name), member.handle, self._why_no_prompts)
            if self.crew.is_done(name):
                return
            member, ref = self.crew.members[name], self._newest()
            requests, member.outbox = member.outbox, []
            for request in requests:
                self.admission.begin(request.item, ref.version)
            questions = self._evaluator.spare(self.crew.spare(name, self.admission.capacity * self.config.group_size))
            member.load += len(questions)
            member.asked += questions
            member.versions.add(ref.version)
            try:
                report = await self._tracker.call(
                    member.handle,
                    "advance",
                    [*requests, *questions],
                    ref,
                    self.config.decode_steps,
                    what="generate",
                    doing=f"decoding {member.load} responses",
                )
            except ExecutorDied:
                await self._loops.until(partial(self._is_settled, member), member.handle, lambda: "died, being started anew")
                continue
            member.versions = {report.version}
            self._tracker.count(
                {
                    "tokens/generated": Sum(report.tokens),
                    "tokens/prefilled": Sum(report.prefill_tokens),
                    "time/generate": Sum(report.seconds),
                    "time/swap": Sum(report.swap_seconds),
                }
            )
            self._responded(name, report.finished)

    def _is_called_for(self, name: str) -> bool:
        """Whether the loop of a generator has something to do, be it to end."""
        member = self.crew.members.get(name)
        return member is None or bool(member.outbox or member.load or member.leaving or self._evaluator.has_backlog)

    def _is_settled(self, dead: Member) -> bool:
        """Whether a generator that died has a successor, or needs none."""
        name = dead.handle.name
        return self.crew.is_done(name) or self.crew.members[name] is not dead

    def _why_no_prompts(self) -> str:
        return "no free slot: the trainer is behind" if self._num_wanted() > 0 else "no prompts left to admit"

    def _responded(self, name: str, finished: Sequence[Any]) -> None:
        """Sort what a generator returned by item, and score each item's part."""
        arrived: dict[int, dict[int, Trajectory | Failure]] = {}
        member = self.crew.members[name]
        for one in finished:
            member.load -= 1
            arrived.setdefault(one.item, {})[one.sample] = one.outcome
        member.asked = [r for r in member.asked if r.item not in arrived]
        for item, outcomes in arrived.items():
            active = self.active.get(item)
            if active is not None:
                active.responses |= outcomes
            self._loops.spawn(self._score(item, outcomes, active.orders if active is not None else 0))
        self._loops.notify()

    # --- score ---------------------------------------------------------------------------------------------------------------

    async def _score(self, item: int, outcomes: dict[int, Trajectory | Failure], orders: int) -> None:
        """Reward the responses of `item` that just arrived; when the last of its group is in, the group is finished."""
        active = self.active.get(item)
        prompt = self._evaluator.prompt(item) if active is None else active.prompt
        good = {sample: t for sample, t in outcomes.items() if not isinstance(t, Failure)}
        rewards: dict[int, RewardResult | Failure] = {s: f for s, f in outcomes.items() if isinstance(f, Failure)}
        if good:
            requests = [RewardRequest(prompt=prompt, completion=t.text) for t in good.values()]
            rewards |= dict(zip(good, await self._rewards(requests), strict=True))
        if active is None:
            record = self._evaluator.answered(outcomes[0], rewards[0], self._tracker.now())
            if record is not None:
                self._sink.evaluation(record)
        elif active.orders == orders:  # else its generator died meanwhile, and all of it was ordered again
            active.rewards |= rewards
            if len(active.rewards) == self.config.group_size:
                self._group_complete(item)
        self._loops.notify()

    async def _rewards(self, requests: Sequence[RewardRequest]) -> Sequence[RewardResult | Failure]:
        doing = f"scoring {len(requests)} responses"
        while True:
            handle = self.rewarder
            try:
                return await self._tracker.call(handle, "score", requests, what="score", doing=doing)
            except ExecutorDied:
                await self._loops.until(partial(self._has_successor, handle), handle, lambda: "died, being started anew")

    def _has_successor(self, rewarder: Handle) -> bool:
        return self.rewarder is not rewarder

    def _group_complete(self, item: int) -> None:
        active, uid = self.active[item], self.admission.items[item].uid
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
            self._write_drop(item, "uniform rewards")
            self.admission.finish(item, group.oldest_version)
            self.admission.drop(item, "uniform rewards")
            self.admit()
            return
        if self.journal is not None:
            self.journal.finished(item, uid, group.oldest_version, encode_group(group))
        self.admission.finish(item, group.oldest_version)
        self.groups[item] = group

    def _group_failed(self, item: int, failure: Failure) -> None:
        self._last_failure = failure
        if self.admission.items[item].failures >= self.config.retries:
            self._write_drop(item, str(failure.kind))
        if self.admission.fail(item, failure):
            self._order(item)
            self._loops.notify()
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

    def _write_drop(self, item: int, reason: str) -> None:
        if self.journal is not None:
            self.journal.dropped(item, self.admission.items[item].uid, reason)

    # --- the other half ------------------------------------------------------------------------------------------------------

    def take(self, num: int, version: int) -> dict[int, Group | Example]:
        """Up to `num` groups for the step that the trainer makes at `version`."""
        return {item: self.groups[item] for item in self.admission.take(num, version)}

    def trained(self, items: Sequence[int], version: int) -> None:
        """The step on `items` made `version`."""
        self.admission.trained(items, version)
        self._skipped = 0
        for item in items:
            del self.groups[item]

    def published(self, version: int) -> None:
        """Generators are given `version` from now on: slots of what was trained on become free."""
        if version > self.admission.published_version:
            self.admission.published(version)

    # --- deaths and crashes --------------------------------------------------------------------------------------------------

    def owns(self, name: str) -> bool:
        """Whether `name` is an executor of this half."""
        return name in self.crew.members or name == self.rewarder.name

    async def heal(self, name: str) -> None:
        """Start a dead executor anew; a generator's items wait again. One that was leaving has no successor. Raises
        `ExecutorDied` if it died too often."""
        dead = self.crew.members.get(name)
        if dead is not None and dead.leaving:
            self._hand_over(dead)
            return
        handle = await self._healer.respawn(name)
        if dead is None:
            self.rewarder = handle
        else:
            self.crew.members[name] = Member(handle)
            self._hand_over(dead)
        self._healer.respawned(name, self._newest().version)
        self._loops.notify()

    def _hand_over(self, dead: Member) -> None:
        """Let others, or its successor, do what `dead` had to."""
        self._evaluator.ask_again(dead.asked)
        dead.asked, dead.outbox, dead.load = [], [], 0
        for item, active in self.active.items():
            if active.generator == dead.handle.name and len(active.responses) < self.config.group_size:
                if self.admission.items[item].state == State.IN_FLIGHT:
                    self.admission.requeue(item)
                self._order(item)
        self._loops.notify()

    def enlist(self, handle: Handle) -> None:
        """One more generator, which takes its part of the work from now on."""
        self.crew.members[handle.name] = Member(handle)
        self._loops.spawn(self.generate(handle.name))
        self._loops.notify()

    def dismiss(self, name: str) -> None:
        """Give this generator nothing new, and what it was not sent yet to others. It is one of `crew.done` when it has
        answered what it has."""
        member = self.crew.members[name]
        member.leaving = True
        waiting, member.outbox = member.outbox, []
        member.load -= self.config.group_size * len(waiting)
        for request in waiting:
            self._order(request.item)
        self._loops.notify()

    def restore(self, state: dict[str, Any], held: Iterable[Record], records: Iterable[Record]) -> None:
        """Go on from an admission state, the finished groups in it (`held`) and the journal since: finished groups are in the
        store again, unfinished items are ordered again. Raises `CheckpointError` if the data set is not the one of the run."""
        groups = {record.item: record for record in held}
        given = {int(item) for item in state["items"] if isinstance(self.prompts.at(int(item)), Example)}
        self._recovery = Recovery(state, records, held=groups.keys() | given)
        self.admission = self._recovery.admission
        for item, entry in sorted(self.admission.items.items()):
            if entry.state is State.TRAINED:
                continue
            prompt = self.prompts.at(item)
            if prompt.uid != entry.uid:
                raise CheckpointError(
                    f"item {item} of the checkpoint was made from another prompt",
                    given=f"prompt {prompt.uid}",
                    expected=f"prompt {entry.uid}",
                    todo="resume with the data set and the seed of the run",
                )
            if isinstance(prompt, Example):
                self.groups[item] = prompt
            elif entry.state is State.STORED:
                record = groups.get(item) or self._recovery.stored[item]
                source = Source.RECALLED if item not in groups else None
                self.groups[item] = decode_group(record.payload, item, prompt, source=source)
            else:
                self.active[item] = Active(prompt=prompt)
                self._order(item)
