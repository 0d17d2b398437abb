"""Reverse a short word of random letters: `abcd>` is answered by `dcba`. For models of characters."""

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

from freerun.errors import ConfigError
from freerun.rewards.verifiers import ExactMatch
from freerun.tasks.base import Problem, Task, split, stored_answer
from freerun.types import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Words of `least` to `most` letters, drawn from the first `letters` of the alphabet."""

    least: int = 3
    """Fewest letters of a word."""
    most: int = 6
    """Most letters of a word."""
    letters: int = 10
    """How many different letters there are."""
    train: int = 4096
    """Training problems, at most."""
    heldout: int = 512
    """Held-out problems."""
    seed: int = 0
    """Which words, and which of them are held out."""

    def build(self) -> Task:
        """Raises `ConfigError` for impossible lengths, `DataError` if there are too few different words."""
        if not (1 <= self.least <= self.most and 1 <= self.letters <= 26 and min(self.train, self.heldout) >= 1):
            raise ConfigError(
                "the reversal task cannot make such words",
                given=f"least {self.least}, most {self.most}, letters {self.letters}, "
                f"train {self.train}, heldout {self.heldout}",
                expected="1 <= least <= most, letters from 1 to 26, train and heldout at least 1",
                todo="correct the section task",
            )
        train, heldout = split("reversal", self._problems(), train=self.train, heldout=self.heldout)
        return Task(
            name="reversal",
            train=train,
            heldout=heldout,
            reward=ExactMatch(),
            solution=stored_answer,
            sampling=Sampling(max_tokens=self.most + 2),
        )

    def _problems(self) -> Iterator[Problem]:
        rng = random.Random(self.seed)
        while True:
            length = rng.randint(self.least, self.most)
            word = "".join(rng.choices(string.ascii_lowercase[: self.letters], k=length))
            yield Problem(f"{word}>", {"answer": word[::-1]}, word)
