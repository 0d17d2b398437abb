"""Sort a few digits: `3141>` is answered by `1134`. For models of characters. The reward counts digits in their right place."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from freerun.errors import ConfigError
from freerun.tasks.base import Problem, Task, split, stored_answer
from freerun.types import RewardResult, Sampling


def share_in_place(prompt: str, completion: str, meta: Mapping[str, Any]) -> RewardResult:
    """Share of places at which the completion has the right digit, over the longer of the two; 1 only if they are equal."""
    answer = meta["answer"]
    right = sum(a == b for a, b in zip(answer, completion, strict=False))
    return RewardResult(right / max(len(answer), len(completion)), {"exact": float(answer == completion)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Rows of `least` to `most` digits. Rows of the same digits in another order are one problem to the split."""

    least: int = 3
    """Fewest digits of a row."""
    most: int = 6
    """Most digits of a row."""
    train: int = 4096
    """Training problems, at most."""
    heldout: int = 512
    """Held-out problems."""
    seed: int = 0
    """Which rows, and which of them are held out."""

    def build(self) -> Task:
        """Raises `ConfigError` for impossible lengths, `DataError` if there are too few different rows."""
        if not (1 <= self.least <= self.most and min(self.train, self.heldout) >= 1):
            raise ConfigError(
                "the sorting task cannot make such rows",
                given=f"least {self.least}, most {self.most}, train {self.train}, heldout {self.heldout}",
                expected="1 <= least <= most, train and heldout at least 1",
                todo="correct the section task",
            )
        train, heldout = split("sorting", self._problems(), train=self.train, heldout=self.heldout)
        return Task(
            name="sorting",
            train=train,
            heldout=heldout,
            reward=share_in_place,
            solution=stored_answer,
            sampling=Sampling(max_tokens=self.most + 2),
        )

    def _problems(self) -> Iterator[Problem]:
        rng = random.Random(self.seed)
        while True:
            row = "".join(rng.choices("0123456789", k=rng.randint(self.least, self.most)))
            answer = "".join(sorted(row))
            yield Problem(f"{row}>", {"answer": answer}, answer)
