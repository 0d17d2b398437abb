"""Hidden numbers that have to be seen before they can be reasoned about, as in a picture: `cafb>BD=` shows four numbers by
letters and asks whether the second and the fourth have an even sum; `B0D1n` says what was read and answers no.

A report, `2051` after `cafb>`, says what the letters mean without knowing the question. `Reports` teaches a model to write such
reports, with holes and mistakes; `Reasoner` answers the question from a report alone, and guesses what the report does not say.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from freerun.errors import ConfigError
from freerun.tasks.base import Problem, Task, split
from freerun.types import Example, Prompt, RewardResult, Sampling, Source

LETTERS, PLACES, DIGITS = "abcdefghi", "ABCDEFGHI", "0123456789"
UNSEEN = "?"
ALPHABET = f"{LETTERS}{PLACES}{DIGITS}>={UNSEEN}yn"
"""Characters of prompts, reports and answers."""


def right_answer(prompt: str, completion: str, meta: Mapping[str, Any]) -> RewardResult:
    """1 if the last character is the answer. The part `read` is the share of stated numbers that are right, of two at least."""
    stated = [(place, number) for place, number in pairwise(completion) if place in PLACES and number in DIGITS]
    good = sum(meta["numbers"][PLACES.index(place) :][:1] == number for place, number in stated)
    return RewardResult(float(completion[-1:] == meta["answer"]), {"read": good / max(2, len(stated))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Scenes of `places` numbers below `values`, each with a question about two of them."""

    places: int = 4
    """Numbers of a scene, from 2 to 9."""
    values: int = 6
    """Different numbers, from 2 to 9."""
    train: int = 512
    """Training questions, at most."""
    heldout: int = 256
    """Held-out questions, about scenes that no training question shows."""
    seed: int = 0
    """Which scenes and questions."""

    def build(self) -> Task:
        """Raises `ConfigError` for impossible sizes, `DataError` if there are too few different scenes."""
        if not (2 <= self.places <= 9 and 2 <= self.values <= 9 and min(self.train, self.heldout) >= 1):
            raise ConfigError(
                "the scenes task cannot make such scenes",
                given=f"places {self.places}, values {self.values}, train {self.train}, heldout {self.heldout}",
                expected="places and values from 2 to 9, train and heldout at least 1",
                todo="correct the section task",
            )
        train, heldout = split("scenes", self._problems(), train=self.train, heldout=self.heldout)
        return Task(
            name="scenes",
            train=train,
            heldout=heldout,
            reward=right_answer,
            solution=solution,
            sampling=Sampling(max_tokens=2 * self.places + 2),
        )

    def _problems(self) -> Iterator[Problem]:
        rng = random.Random(self.seed)
        while True:
            numbers = "".join(str(rng.randrange(self.values)) for _ in range(self.places))
            asked = sorted(rng.sample(range(self.places), 2))
            shown = "".join(LETTERS[int(number)] for number in numbers)
            meta = {"numbers": numbers, "asked": "".join(PLACES[i] for i in asked), "answer": _parity(numbers, asked)}
            yield Problem(f"{shown}>{meta['asked']}=", meta, numbers)


def solution(prompt: Prompt) -> str:
    """The two numbers asked for, read rightly, and the answer."""
    return _stated(prompt.meta["numbers"], [PLACES.index(place) for place in prompt.meta["asked"]], prompt.meta["answer"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Demonstrations of reports on the training scenes: each number is missing, or another one, with these probabilities."""

    unseen: float = 0.3
    """Probability that a number is missing."""
    wrong: float = 0.1
    """Probability that another number is given in its place, which may be the same by chance."""
    values: int = 6
    """Numbers that a wrong one is drawn from."""
    repeats: int = 4
    """Reports of each scene."""
    seed: int = 0
    """Seed of holes and mistakes."""

    def build(self, task: Task) -> Sequence[Example]:
        rng = random.Random(f"{self.seed}/reports")
        return tuple(
            Example(
                uid=f"{prompt.uid}/report",
                prompt=Reasoner().report_prompt(prompt),
                responses=tuple(self._report(prompt.meta["numbers"], rng) for _ in range(self.repeats)),
                source=Source.EXPERT,
            )
            for prompt in task.train
        )

    def _report(self, numbers: str, rng: random.Random) -> str:
        def seen(number: str) -> str:
            draw = rng.random()
            if draw < self.unseen:
                return UNSEEN
            return str(rng.randrange(self.values)) if draw < self.unseen + self.wrong else number

        return "".join(map(seen, numbers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoner:
    """Reads a report and answers the question: step by step for the two numbers asked for, or at length for all. What the
    report does not say is made up."""

    values: int = 6
    """Numbers that a guess is drawn from."""
    slip: float = 0.05
    """Probability that the conclusion is the wrong one."""
    long: float = 0.5
    """Probability of going through all numbers."""

    def report_prompt(self, prompt: Prompt) -> Prompt:
        """The scene of a question, without the question."""
        shown, _, _ = str(prompt.content).partition(">")
        return Prompt(f"{prompt.uid}/report", f"{shown}>", prompt.meta)

    def reason(self, prompt: Prompt, report: str, rng: random.Random) -> str:
        """A response to the question that never looks at the scene."""
        size = len(prompt.meta["numbers"])
        read = "".join(
            number if number in DIGITS else str(rng.randrange(self.values)) for number in report[:size].ljust(size, UNSEEN)
        )
        asked = [PLACES.index(place) for place in prompt.meta["asked"]]
        answer = _parity(read, asked)
        if rng.random() < self.slip:
            answer = "n" if answer == "y" else "y"
        return _stated(read, range(size) if rng.random() < self.long else asked, answer)


def _parity(numbers: str, asked: Sequence[int]) -> str:
    return "n" if sum(int(numbers[i]) for i in asked) % 2 else "y"


def _stated(numbers: str, places: Sequence[int], answer: str) -> str:
    return "".join(f"{PLACES[i]}{numbers[i]}" for i in places) + answer
