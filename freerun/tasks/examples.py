"""Data sets of responses that no policy of the run made: a task's own solutions, or a file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from freerun.errors import DataError
from freerun.tasks.base import Task, json_line
from freerun.types import Example, Message, Prompt, RewardResult, Source


class ExamplesConfig(Protocol):
    """A frozen, picklable description of a data set for a task."""

    def build(self, task: Task) -> Sequence[Example]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Solutions:
    """Each training prompt of the task with its correct answer, as a demonstration."""

    limit: int = 0
    """Use so many of the prompts; 0 is all."""

    def build(self, task: Task) -> Sequence[Example]:
        prompts = task.train[: self.limit] if self.limit else task.train
        return tuple(Example(uid=p.uid, prompt=p, responses=(task.solution(p),), source=Source.EXPERT) for p in prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """Each training prompt of the task with its correct answer, of reward 1, and the next prompt's with a different one, of
    reward 0."""

    limit: int = 0
    """Use so many of the prompts; 0 is all."""

    def build(self, task: Task) -> Sequence[Example]:
        """Raises `DataError` if all answers are the same."""
        prompts = task.train[: self.limit] if self.limit else task.train
        answers = [task.solution(prompt) for prompt in prompts]
        found = []
        for i, (prompt, right) in enumerate(zip(prompts, answers, strict=True)):
            wrong = next((answer for answer in (*answers[i:], *answers[:i]) if answer != right), None)
            if wrong is None:
                raise DataError(
                    "no answer of the task is wrong for another prompt",
                    given=f"{len(answers)} answers, all {right!r}",
                    expected="two different answers",
                    todo="use more prompts, or a data set of comparisons",
                )
            rewards = (RewardResult(1.0), RewardResult(0.0))
            found.append(Example(uid=prompt.uid, prompt=prompt, responses=(right, wrong), rewards=rewards))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A JSON Lines file. A line holds `prompt` (text, or turns with role and content), `responses` (a list of texts), and may
    hold `rewards` (a number per response), `logps` (a list of numbers per response: the log-prob of each of its tokens under
    the policy that wrote it, end token last) and `meta` (fields). In place of responses and rewards it may hold a better text
    `chosen` and a worse one `rejected`: rewards 1 and 0."""

    path: str
    """The file, UTF-8."""
    expert: bool = False
    """Whether the responses are demonstrations, worth imitating whatever their rewards."""

    def build(self, task: Task) -> Sequence[Example]:
        """Raises `DataError` for a missing file, and naming the lines that cannot be used."""
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise DataError("example file not found", given=self.path, expected="a JSON Lines file", todo="correct the path")
        found, bad = [], []
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    found.append(self._example(json_line(line), f"{file.name}:{number}"))
                except ValueError as error:
                    bad.append(f"line {number}: {error}")
        if bad or not found:
            raise DataError(
                f"{len(bad)} lines of {self.path} cannot be used" if bad else f"{self.path} holds no examples",
                given="; ".join(bad[:5]) or "no lines",
                expected="an object per line: prompt, responses (or chosen and rejected), where wanted rewards and logps",
                todo="correct the lines",
            )
        return found

    def _example(self, row: Any, uid: str) -> Example:
        """Raises `ValueError` with the reason if `row` is no example."""
        if not isinstance(row, dict):
            raise ValueError(f"a {type(row).__name__} instead of an object")
        if row.keys() & {"chosen", "rejected"}:
            if row.keys() & {"responses", "rewards"}:
                raise ValueError("'chosen' and 'rejected' beside 'responses' or 'rewards'")
            row = {**row, "responses": [row.get("chosen"), row.get("rejected")], "rewards": [1, 0]}
        responses, rewards, logps = row.get("responses"), row.get("rewards", []), row.get("logps", [])
        if not isinstance(responses, list) or not responses or not all(isinstance(r, str) for r in responses):
            raise ValueError("'responses', or 'chosen' and 'rejected', are not a list of texts")
        if not isinstance(rewards, list) or len(rewards) not in (0, len(responses)) or not all(map(_is_finite, rewards)):
            raise ValueError(f"'rewards' are not {len(responses)} finite numbers")
        whole = isinstance(logps, list) and len(logps) in (0, len(responses))
        if not whole or not all(isinstance(one, list) and all(map(_is_finite, one)) for one in logps):
            raise ValueError(f"'logps' are not {len(responses)} lists of finite numbers")
        if not isinstance(row.get("meta", {}), dict):
            raise ValueError("'meta' is not an object")
        return Example(
            uid=uid,
            prompt=Prompt(uid, _content(row.get("prompt")), row.get("meta", {})),
            responses=tuple(responses),
            rewards=tuple(RewardResult(float(r)) for r in rewards),
            logps=tuple(tuple(map(float, one)) for one in logps),
            source=Source.EXPERT if self.expert else Source.DATASET,
        )


def _content(prompt: Any) -> str | tuple[Message, ...]:
    if isinstance(prompt, str) and prompt:
        return prompt
    if (
        isinstance(prompt, list)
        and prompt
        and all(
            isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content")) for turn in prompt
        )
    ):
        return tuple(Message(turn["role"], turn["content"]) for turn in prompt)
    raise ValueError("'prompt' is neither text nor a list of turns with role and content")


def _is_finite(value: Any) -> bool:
    """As a float, which not every whole number can be."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
