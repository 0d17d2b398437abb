"""Sums of whole numbers: `12+34=` to a model of characters, or asked after worked examples to a model of language."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from freerun.errors import ConfigError
from freerun.rewards.verifiers import ExactMatch, NumericMatch
from freerun.tasks.base import Problem, Task, conversation, split, stored_answer
from freerun.types import Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which sums, how they are asked, and how many. Sums of the same numbers in another order are one problem to the split."""

    digits: int = 2
    """Digits of every number; the first is not 0 if there are several."""
    terms: int = 2
    """Numbers in a sum."""
    subtraction: bool = False
    """Whether half of the signs are minus."""
    style: Literal["raw", "lines", "chat"] = "raw"
    """`raw`: bare characters, answered by the digits alone; `lines`: one sum a line, answered by the rest of the line; `chat`:
    turns. In the last two the last number of the response counts."""
    examples: int = 1
    """Worked examples before the question, in the styles `lines` and `chat`."""
    train: int = 4096
    """Training problems, at most."""
    heldout: int = 512
    """Held-out problems."""
    seed: int = 0
    """Which problems, and which of them are held out."""

    def build(self) -> Task:
        """Raises `ConfigError` for sizes below 1, `DataError` if there are too few different sums."""
        if min(self.digits, self.terms, self.train, self.heldout) < 1 or self.examples < 0:
            raise ConfigError(
                "the addition task needs sizes of at least 1",
                given=f"digits {self.digits}, terms {self.terms}, train {self.train}, heldout {self.heldout}, "
                f"examples {self.examples}",
                expected="each at least 1, examples at least 0",
                todo="correct the section task",
            )
        raw, rng = self.style == "raw", random.Random(self.seed)
        worked = [self._sum(rng) for _ in range(0 if raw else self.examples)]
        shown = [_key(signed) for signed in worked]
        train, heldout = split("addition", self._problems(rng, worked), train=self.train, heldout=self.heldout, shown=shown)
        return Task(
            name="addition",
            train=train,
            heldout=heldout,
            reward=ExactMatch() if raw else NumericMatch(),
            solution=self._solution,
            sampling=Sampling(
                max_tokens=self.digits + len(str(self.terms)) + (2 if raw else 6), stop=("\n",) if self.style == "lines" else ()
            ),
        )

    def _problems(self, rng: random.Random, worked: list[list[int]]) -> Iterator[Problem]:
        gap = "" if self.style == "raw" else " "
        examples = [(_question(signed, gap), str(sum(signed))) for signed in worked]
        lines = "".join(f"{question} {answer}\n" for question, answer in examples)
        while True:
            signed = self._sum(rng)
            question = _question(signed, gap)
            content = conversation(None, examples, question) if self.style == "chat" else lines + question
            yield Problem(content, {"answer": str(sum(signed))}, _key(signed))

    def _solution(self, prompt: Prompt) -> str:
        return f" {stored_answer(prompt)}\n" if self.style == "lines" else stored_answer(prompt)

    def _sum(self, rng: random.Random) -> list[int]:
        least = 10 ** (self.digits - 1) if self.digits > 1 else 0
        numbers = [rng.randrange(least, 10**self.digits) for _ in range(self.terms)]
        return [n if i == 0 or not self.subtraction or rng.random() < 0.5 else -n for i, n in enumerate(numbers)]


def _key(signed: list[int]) -> tuple[int, ...]:
    return tuple(sorted(signed))


def _question(signed: list[int], gap: str) -> str:
    """The sum up to its equals sign, with `gap` around every sign."""
    signs = ("-" if n < 0 else "+" for n in signed)
    text = "".join(f"{gap}{sign}{gap}{abs(n)}" for sign, n in zip(signs, signed, strict=True))
    return text.removeprefix(f"{gap}+{gap}") + f"{gap}="
