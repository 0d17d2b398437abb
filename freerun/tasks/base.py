"""The task contract: a task is data. Prompts to train on, prompts to judge by, and functions that read the answers.

A task is one file with a frozen `Config` whose `build()` returns a `Task`. The config travels to the executors; each builds the
same task from it. There is no registry: a recipe imports the module.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from freerun.errors import DataError
from freerun.rewards.pool import RewardFunction
from freerun.types import Message, Prompt, RewardResult, Sampling

MAX_DRAWS = 8
"""A generator of random problems is asked at most this many times as often as problems are wanted, so that a task with few
different problems ends with as many as there are."""


def solved(result: RewardResult) -> float:
    """1 if the reward is full marks, else 0."""
    return float(result.value >= 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, checked at construction: both sets have prompts, no uid occurs twice, and no content is in both sets. Raises
    `DataError` otherwise."""

    name: str
    """Shown in errors."""
    train: Sequence[Prompt]
    """Prompts to train on."""
    heldout: Sequence[Prompt]
    """Prompts that training never sees, in an order of which every beginning is a fair sample."""
    reward: RewardFunction
    """Scores a completion."""
    solution: Callable[[Prompt], str]
    """The text of a correct response, for demonstrations. Raises `DataError` if the task knows none."""
    accuracy: Callable[[RewardResult], float] = solved
    """What a reward says about success, from 0 to 1."""
    sampling: Sampling = field(default_factory=Sampling)
    """Settings that suit the answers of this task."""

    def __post_init__(self) -> None:
        for which, prompts in (("training", self.train), ("held-out", self.heldout)):
            if not prompts:
                raise DataError(
                    f"the {which} set of task '{self.name}' is empty",
                    given="0 prompts",
                    expected="at least one prompt",
                    todo="check the sizes in the section task, and the dataset and its filters",
                )
        uids = [p.uid for p in (*self.train, *self.heldout)]
        if len(set(uids)) < len(uids):
            raise self._twice("uid", next(u for u in uids if uids.count(u) > 1))
        seen = {p.content for p in self.heldout}
        shared = next((p for p in self.train if p.content in seen), None)
        if shared is not None:
            raise self._twice("content of a held-out prompt", shared.content)

    def _twice(self, what: str, value: object) -> DataError:
        return DataError(
            f"a {what} occurs twice in task '{self.name}'",
            given=repr(value),
            expected="unique uids, and a training set without held-out problems",
            todo="remove the double from the dataset",
        )


class TaskConfig(Protocol):
    """A frozen, picklable description that builds the same task in every process."""

    def build(self) -> Task: ...


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem before it has an id. Problems with equal `key` are too alike for one to train on and the other to judge by."""

    content: str | tuple[Message, ...]
    meta: dict[str, Any]
    key: Hashable


def split(
    name: str, problems: Iterable[Problem], *, train: int, heldout: int, shown: Iterable[Hashable] = ()
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """(train, heldout) from a stream of random problems: the first `heldout` different ones are held out, and up to `train`
    further ones that are like none of them follow. Contents are distinct, so a stream that repeats itself may give fewer
    training prompts. Keys in `shown`, those of worked examples, are in neither.

    Raises `DataError` if there are not `heldout` different problems and one more.
    """
    held: dict[Hashable, Problem] = {}
    trained: dict[str | tuple[Message, ...], Problem] = {}
    taken = set(shown)
    for problem in islice(problems, MAX_DRAWS * (train + heldout)):
        if len(trained) == train:
            break
        if problem.key in taken:
            continue
        if len(held) < heldout:
            held.setdefault(problem.key, problem)
        elif problem.key not in held:
            trained.setdefault(problem.content, problem)
    if len(held) < heldout or not trained:
        raise DataError(
            f"task '{name}' has too few different problems",
            given=f"{len(held) + len(trained)} problems",
            expected=f"more than the {heldout} held-out ones",
            todo="lower task.heldout, or make the problems larger",
        )
    return _numbered(f"{name}/train", trained.values()), _numbered(f"{name}/heldout", held.values())


def _numbered(name: str, problems: Iterable[Problem]) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"{name}/{i}", p.content, p.meta) for i, p in enumerate(problems))


def conversation(instruction: str | None, examples: Sequence[tuple[str, str]], question: str) -> tuple[Message, ...]:
    """Chat turns: the instruction as the system's, each worked example as a question and its answer, then the question. All
    prompts of a task that share instruction and examples share these tokens. `None` leaves the system's turn to the model's
    template, which may insert one of its own or know none; an empty instruction is an empty turn."""
    turns = [] if instruction is None else [Message("system", instruction)]
    for asked, answered in examples:
        turns += [Message("user", asked), Message("assistant", answered)]
    return (*turns, Message("user", question))


def stored_answer(prompt: Prompt) -> str:
    """`meta["answer"]` as the text of a correct response."""
    return str(prompt.meta["answer"])


def json_line(line: bytes) -> Any:
    """The JSON value in a line of somebody's file. Raises `ValueError` for one that is none, that is nested too deeply to be
    read, or that has text which cannot be written again: half of a surrogate pair."""
    try:
        value = json.loads(line)
        if b"\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value
