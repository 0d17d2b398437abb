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
