"""A mix of arithmetic for chat models, asked after a worked example of each kind: `27 + 82`, answered `27 + 82 = 109`.

Repeating the question before the answer matters: SmolLM2-135M solves about a third of two-digit sums this way and almost none
when it is to give the digits alone. All problems share their prompt up to the question, so that part is computed once.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from freerun.errors import ConfigError
from freerun.rewards.verifiers import NumericMatch
from freerun.tasks.base import Problem, Task, conversation, split
from freerun.types import Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How often each kind of problem is asked. Shares are relative."""

    sums: float = 1.0
    """Share of `a + b`, both of two digits."""
    differences: float = 0.0
    """Share of `a - b`, both of two digits, never negative."""
    chains: float = 0.0
    """Share of `a + b + c`, each from 1 to 20."""
    products: float = 0.0
    """Share of `a * b`, each from 2 to 12."""
    train: int = 4096
    """Training problems, at most."""
    heldout: int = 512
    """Held-out problems; sums and products in another order count as the same problem."""
    seed: int = 0
    """Which problems, and which of them are held out."""

    def build(self) -> Task:
        """Raises `ConfigError` for negative shares or none at all, `DataError` if there are too few different problems."""
        shares = {"sums": self.sums, "differences": self.differences, "chains": self.chains, "products": self.products}
        if min(shares.values()) < 0 or not any(shares.values()):
            raise ConfigError(
                "the arithmetic task needs shares that are not negative, one of them above 0",
                given=shares,
                expected="such as sums 1.0",
                todo="correct the section task",
            )
        train, heldout = split("arithmetic", self._problems(shares), train=self.train, heldout=self.heldout, shown=_SHOWN)
        return Task(
            name="arithmetic",
            train=train,
            heldout=heldout,
            reward=NumericMatch(),
            solution=_worked,
            sampling=Sampling(max_tokens=16),
        )

    def _problems(self, shares: dict[str, float]) -> Iterator[Problem]:
        rng = random.Random(self.seed)
        kinds = list(shares)
        examples = [(asked, f"{asked} = {answer}") for kind, (asked, answer) in _EXAMPLES.items() if shares[kind]]
        while True:
            kind = rng.choices(kinds, list(shares.values()))[0]
            text, answer, key = _problem(kind, rng)
            content = conversation("", examples, text)
            yield Problem(content, {"question": text, "answer": str(answer), "kind": kind}, (kind, key))


_EXAMPLES = {
    "sums": ("27 + 82", 109),
    "differences": ("73 - 25", 48),
    "chains": ("15 + 16 + 13", 44),
    "products": ("3 * 9", 27),
}

_SHOWN = (("sums", (27, 82)), ("differences", (73, 25)), ("chains", (13, 15, 16)), ("products", (3, 9)))


def _problem(kind: str, rng: random.Random) -> tuple[str, int, tuple[int, ...]]:
    """Question, answer, and what makes two problems of this kind the same."""
    if kind == "chains":
        terms = tuple(rng.randint(1, 20) for _ in range(3))
        return " + ".join(map(str, terms)), sum(terms), tuple(sorted(terms))
    low, high = (2, 12) if kind == "products" else (10, 99)
    a, b = rng.randint(low, high), rng.randint(low, high)
    if kind == "differences":
        a, b = max(a, b), min(a, b)
        return f"{a} - {b}", a - b, (a, b)
    key = (min(a, b), max(a, b))
    return (f"{a} * {b}", a * b, key) if kind == "products" else (f"{a} + {b}", a + b, key)


def _worked(prompt: Prompt) -> str:
    return f"{prompt.meta['question']} = {prompt.meta['answer']}"
