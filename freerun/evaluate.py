"""Evaluation on held-out prompts that leaves the lag bound alone.

Evaluation requests hold no slot and are given to a generator only where training work leaves decode slots free, so they neither
delay an admitted item nor age it. They run on whatever weights the generator holds; the versions that answered are recorded
with the result, so an evaluation that overlapped a swap says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from freerun.metrics import EvalRecord
from freerun.types import Failure, Prompt, Request, RewardResult, Sampling, Trajectory

Accuracy = Callable[[RewardResult], float]
"""Maps the reward of one held-out answer to [0, 1]."""


@dataclass(slots=True)
class Evaluation:
    """One pass over held-out prompts: what is still to be asked, what came back. Item ids are negative, so that they can never
    be confused with admitted items.

    `backlog` is what no generator has yet; an answer that failed counts as wrong, and `failures` says how many did.
    """

    step: int
    split: str
    num_prompts: int
    accuracy: Accuracy
    prompts: dict[int, Prompt] = field(default_factory=dict)
    backlog: list[Request] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)
    failures: int = 0

    @staticmethod
    def of(
        prompts: Sequence[Prompt], *, step: int, split: str, sampling: Sampling, accuracy: Accuracy, first_item: int
    ) -> "Evaluation":
        """Ask each of `prompts` once; ids count down from `first_item` (negative)."""
        by_item = {first_item - i: p for i, p in enumerate(prompts)}
        requests = [Request(item=i, prompt=p, num_samples=1, sampling=sampling, seed=0) for i, p in by_item.items()]
        return Evaluation(
            step=step, split=split, num_prompts=len(prompts), accuracy=accuracy, prompts=by_item, backlog=requests[::-1]
        )

    def next_requests(self, room: int) -> list[Request]:
        """Up to `room` requests that no generator has yet."""
        return [self.backlog.pop() for _ in range(min(max(room, 0), len(self.backlog)))]

    def answered(self, response: Trajectory | Failure, reward: RewardResult | Failure) -> None:
        """Take the reward of one answer; a failure to answer or to score counts as wrong."""
        if not isinstance(response, Failure):
            self.versions |= {response.oldest_version, response.newest_version}
        self.failures += isinstance(reward, Failure)
        self.scores.append(0.0 if isinstance(reward, Failure) else self.accuracy(reward))

    @property
    def done(self) -> bool:
        return len(self.scores) == self.num_prompts

    def record(self, now: float) -> EvalRecord:
        """The result, once `done`."""
        return EvalRecord(
            step=self.step,
            split=self.split,
            accuracy=sum(self.scores) / len(self.scores),
            count=len(self.scores),
            oldest=min(self.versions, default=0),
            newest=max(self.versions, default=0),
            seconds=now,
        )


class Evaluator:
    """Evaluations of one run, one at a time: `current` is under way, `records` are done."""

    def __init__(self, heldout: Sequence[Prompt], sampling: Sampling, accuracy: Accuracy) -> None:
        self._heldout, self._sampling, self._accuracy = heldout, sampling, accuracy
        self._next_item = -1
        self.current: Evaluation | None = None
        self.records: list[EvalRecord] = []

    def begin(self, step: int, split: str, num_prompts: int) -> None:
        """Start on the first `num_prompts` held-out problems, unless an evaluation is still under way or there are none."""
        if self.current is None and self._heldout and num_prompts:
            self.current = Evaluation.of(
                self._heldout[:num_prompts],
                step=step,
                split=split,
                sampling=self._sampling,
                accuracy=self._accuracy,
                first_item=self._next_item,
            )
            self._next_item -= num_prompts

    @property
    def under_way(self) -> tuple[int, str, int] | None:
        """What to `begin` again in a run that is resumed; None if no evaluation is under way."""
        now = self.current
        return None if now is None else (now.step, now.split, now.num_prompts)

    @property
    def has_backlog(self) -> bool:
        """Whether there are questions that no generator has yet."""
        return self.current is not None and bool(self.current.backlog)

    def spare(self, room: int) -> list[Request]:
        """Up to `room` of those questions."""
        return self.current.next_requests(room) if self.current is not None else []

    def ask_again(self, questions: Sequence[Request]) -> None:
        """Whoever had these questions is gone."""
        if self.current is not None:
            self.current.backlog += questions

    def prompt(self, item: int) -> Prompt:
        """The question with the negative id `item`."""
        assert self.current is not None, "an answer arrived while no evaluation was under way"
        return self.current.prompts[item]

    def answered(self, response: Trajectory | Failure, reward: RewardResult | Failure, now: float) -> EvalRecord | None:
        """Take one answer; the record of the evaluation if it was the last."""
        assert self.current is not None, "an answer arrived while no evaluation was under way"
        self.current.answered(response, reward)
        if not self.current.done:
            return None
        record, self.current = self.current.record(now), None
        self.records.append(record)
        return record
