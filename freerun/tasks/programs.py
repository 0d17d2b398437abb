"""Write a Python function of one argument, such as "returns 3 times x, plus 7". Judged by running it in the sandbox on cases
that the prompt does not show."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from freerun.errors import ConfigError
from freerun.rewards.python_exec import PythonExec
from freerun.rewards.sandbox import SandboxConfig
from freerun.tasks.base import Problem, Task, conversation, split, stored_answer
from freerun.types import Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How many functions are asked for, and how they are judged."""

    cases: int = 6
    """Arguments on which an answer is tried, besides the one that the prompt shows."""
    partial: bool = True
    """Whether the reward is the share of cases that pass; otherwise it is 1 if all do."""
    train: int = 512
    """Training problems, at most."""
    heldout: int = 64
    """Held-out problems; no function of them is trained on."""
    seed: int = 0
    """Which functions, which arguments, and what is held out."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    """What an answer may use."""

    def build(self) -> Task:
        """Raises `ConfigError` for sizes below 1, `DataError` if there are too few different functions."""
        if min(self.cases, self.train, self.heldout) < 1:
            raise ConfigError(
                "the task of programs needs sizes of at least 1",
                given=f"cases {self.cases}, train {self.train}, heldout {self.heldout}",
                expected="each at least 1",
                todo="correct the section task",
            )
        train, heldout = split("programs", self._problems(), train=self.train, heldout=self.heldout)
        return Task(
            name="programs",
            train=train,
            heldout=heldout,
            reward=PythonExec(partial=self.partial, sandbox=self.sandbox),
            solution=_solution,
            sampling=Sampling(max_tokens=96),
        )

    def _problems(self) -> Iterator[Problem]:
        rng = random.Random(self.seed)
        while True:
            kind = rng.choice(_KINDS)
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            shown, *arguments = (kind.draw(rng) for _ in range(self.cases + 1))
            words, code = (text.replace("<a>", str(a)).replace("<b>", str(b)) for text in (kind.words, kind.code))
            question = (
                f"Write a Python function f(x) that returns {words}. For example, f({shown!r}) returns "
                f"{kind.value(shown, a, b)!r}. Answer with the code only."
            )
            meta = {
                "function": "f",
                "cases": [{"args": [x], "expected": kind.value(x, a, b)} for x in arguments],
                "answer": f"def f(x):\n    return {code}",
            }
            used = (a if "<a>" in kind.words else 0, b if "<b>" in kind.words else 0)
            yield Problem(conversation(None, [], question), meta, (kind.words, used))


class _Kind(NamedTuple):
    """A family of functions: in words, as code, as what it computes, and how an argument is drawn."""

    words: str
    code: str
    value: Callable[[Any, int, int], Any]
    draw: Callable[[random.Random], Any]


def _integer(rng: random.Random) -> int:
    return rng.randint(-20, 20)


def _integers(rng: random.Random) -> list[int]:
    return [rng.randint(-9, 20) for _ in range(rng.randint(1, 6))]


def _word(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefgh", k=rng.randint(1, 9)))


_KINDS = (
    _Kind("<a> times x, plus <b>", "<a> * x + <b>", lambda x, a, b: a * x + b, _integer),
    _Kind("the square of x, minus <a> times x", "x * x - <a> * x", lambda x, a, b: x * x - a * x, _integer),
    _Kind("the larger of x and <a>, plus <b>", "max(x, <a>) + <b>", lambda x, a, b: max(x, a) + b, _integer),
    _Kind("the remainder of x plus <a>, divided by <b>", "(x + <a>) % <b>", lambda x, a, b: (x + a) % b, _integer),
    _Kind(
        "the sum of <b> times each number in the list x that is greater than <a>",
        "sum(<b> * y for y in x if y > <a>)",
        lambda x, a, b: sum(b * y for y in x if y > a),
        _integers,
    ),
    _Kind(
        "the list of the numbers in x in reverse order, each plus <a>, times <b>",
        "[(y + <a>) * <b> for y in reversed(x)]",
        lambda x, a, b: [(y + a) * b for y in reversed(x)],
        _integers,
    ),
    _Kind(
        "how many numbers in the list x are less than <a>",
        "sum(y < <a> for y in x)",
        lambda x, a, b: sum(y < a for y in x),
        _integers,
    ),
    _Kind("the first <a> letters of the string x, <b> times in a row", "x[:<a>] * <b>", lambda x, a, b: x[:a] * b, _word),
    _Kind(
        "the string x reversed, followed by its length plus <a>",
        "x[::-1] + str(len(x) + <a>)",
        lambda x, a, b: x[::-1] + str(len(x) + a),
        _word,
    ),
)


def _solution(prompt: Prompt) -> str:
    return f"```python\n{stored_answer(prompt)}\n```"
