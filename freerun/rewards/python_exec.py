"""Answers that are Python programs, judged by what they do in the sandbox.

Three kinds of tests, one to a prompt, in `meta`:

    examples                [{"input": "2 3", "output": "5"}]                 a program from standard input to standard output
    function, cases         "add", [{"args": [2, 3], "expected": 5}]          a function; `kwargs` may be given as well
    asserts, setup          ["assert add(2, 3) == 5"], "import math"          statements about what the program defines

The word of the code under test counts for nothing: only its output and its values do, as data. Expected values never enter the
interpreter in which it runs. Output and cases are compared out here. An assert is taken apart: the calls into the program are
evaluated beside it, and the rest, comparison and expected values, in a second sandbox that has only their values. So there is
nothing to gain by leaving early, printing a verdict, redefining equality or patching what a test uses. `docs/sandbox.md` says
what remains.
"""

import asyncio
import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from freerun.errors import ConfigError, DataError
from freerun.rewards import asserts
from freerun.rewards.sandbox import Sandbox, SandboxConfig, SandboxResult, Status
from freerun.rewards.trials import decode
from freerun.rewards.verifiers import Extract
from freerun.types import RewardResult

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")


def code_block(text: str) -> str | None:
    """What stands in the last fenced block that is marked as Python or not marked; a block may end with the text. All of a text
    that has no fence; `None` for an empty one and where all blocks are in other languages."""
    if "```" not in text:
        return text if text.strip() else None
    blocks = [code for language, code in _FENCE.findall(text) if language.lower() in _PYTHON and code.strip()]
    return blocks[-1] if blocks else None


class Verdict(NamedTuple):
    """What came of one test. `stopped`: a limit of the sandbox or of the verifier ended it."""

    kind: Literal["passed", "wrong", "raised", "stopped"]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonExec:
    """The share of tests that the program in a completion passes, or with `partial` off 1 if it passes all of them and else 0.

    A program that runs into a limit, crashes or does not parse is a wrong answer. The part `stopped` is the share of tests that
    a limit ended. Raises `DataError` if `meta` has no tests of one of the three kinds, or tests that cannot be judged, and
    `SandboxError`, which stops the run, if there is no sandbox to run the program in.
    """

    partial: bool = True
    """Whether passing some of the tests counts."""
    seconds: float = 20.0
    """Wall time for all tests of an answer; tests that have not passed by then count as failed. Below the pool's deadline, or
    slow programs would fail their group instead of themselves."""
    tolerance: float = 1e-6
    """Relative and absolute difference up to which numbers count as equal, in cases, if one of them is no integer."""
    extract: Extract = code_block
    """Finds the program in the completion."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    """What the program may use."""

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.tolerance < 0:
            raise ConfigError(
                "programs cannot be judged with these limits",
                given=f"seconds {self.seconds}, tolerance {self.tolerance}",
                expected="seconds above 0, tolerance at least 0",
                todo="correct them where the task makes its reward",
            )

    async def __call__(self, prompt: str, completion: str, meta: Mapping[str, Any]) -> RewardResult:
        tests = tests_of(meta)
        program = self.extract(completion)
        if program is None:
            return RewardResult(0.0, {"passed": 0.0, "stopped": 0.0}, {"problem": "there is no program"})
        verdicts: list[Verdict] = []
        try:
            async with asyncio.timeout(self.seconds):
                await self._judge(program, tests, verdicts)
        except TimeoutError:
            verdicts.append(Verdict("stopped", f"{self.seconds:g} s for all tests are over"))
        return self._reward(verdicts, len(tests))

    async def _judge(self, program: str, tests: "Tests", verdicts: list[Verdict]) -> None:
        sandbox = _sandbox(self.sandbox)
        if isinstance(tests, Examples):
            for given, expected in tests.pairs:
                verdicts.append(printed(await sandbox.run(program, given), expected))
                if not self.partial and verdicts[-1].kind != "passed":
                    return
        elif isinstance(tests, Cases):
            replies = await _evaluate(sandbox, program, "", tests.calls)
            verdicts += [self._compare(*pair) for pair in zip(replies, tests.expected, strict=True)]
        else:
            calls = [call for test in tests.tests for call in test.calls.values()]
            replies = await _evaluate(sandbox, program, tests.setup, calls)
            verdicts += await _assert(sandbox, tests, replies)

    def _compare(self, reply: "Reply", expected: Any) -> Verdict:
        if reply.failure is not None:
            return reply.failure
        try:
            found = decode(reply.data)
        except ValueError as error:
            return Verdict("wrong", str(error))
        return (
            Verdict("passed") if same(found, expected, self.tolerance) else Verdict("wrong", f"it gave {reprlib.repr(found)}")
        )

    def _reward(self, verdicts: Sequence[Verdict], tests: int) -> RewardResult:
        passed = sum(verdict.kind == "passed" for verdict in verdicts)
        # Tests that nobody came to, because the time was over, share the fate of the last one.
        stopped = sum(v.kind == "stopped" for v in verdicts)
        if verdicts and verdicts[-1].kind == "stopped":
            stopped += tests - len(verdicts)
        failed = next((verdict for verdict in verdicts if verdict.kind != "passed"), None)
        info = {"tests": tests, "passed": passed} | ({} if failed is None else {"problem": f"{failed.kind}: {failed.detail}"})
        value = passed / tests if self.partial else float(passed == tests)
        return RewardResult(value, {"passed": passed / tests, "stopped": stopped / tests}, info)


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs and outputs of a whole program."""

    pairs: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, slots=True)
class Cases:
    """Calls of a function, as source, and what they return."""

    calls: tuple[str, ...]
    expected: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.calls)


@dataclass(frozen=True, slots=True)
class Asserts:
    """Statements, taken apart."""

    setup: str
    tests: tuple[asserts.Parts, ...]

    def __len__(self) -> int:
        return len(self.tests)


Tests = Examples | Cases | Asserts


class Reply(NamedTuple):
    """What came back of a call into the program: encoded data, or why there is none."""

    data: Any
    failure: Verdict | None = None


@cache
def _sandbox(config: SandboxConfig) -> Sandbox:
    """One for each config, so that the machine is checked once."""
    return Sandbox(config)


def _trials() -> str:
    return Path(__file__).with_name("trials.py").read_text(encoding="utf-8")


def tests_of(meta: Mapping[str, Any]) -> Tests:
    """The tests of a prompt. Raises `DataError` if they are not of exactly one kind, or malformed."""
    kinds = [kind for kind in ("examples", "cases", "asserts") if meta.get(kind)]
    try:
        if kinds == ["examples"]:
            return Examples(tuple((_text(e["input"]), _text(e["output"])) for e in meta["examples"]))
        if kinds == ["cases"]:
            calls = tuple(_call(_text(meta["function"]), c["args"], c.get("kwargs", {})) for c in meta["cases"])
            return Cases(calls, tuple(c["expected"] for c in meta["cases"]))
        if kinds == ["asserts"]:
            setup = _text(meta.get("setup", ""))
            return Asserts(setup, asserts.take_apart(meta["asserts"], setup, meta.get("function")))
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        problem = f"{len(kinds)} kinds of tests among {sorted(meta)}"
    raise DataError(
        "a prompt has no tests for programs that can be used",
        given=problem,
        expected="one of: examples [{input, output}]; function and cases [{args, expected}]; asserts [text]",
        todo="correct the dataset",
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not text")
    return value


def _call(function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A call as source. Arguments are JSON, whose values Python writes as they are read."""
    json.dumps([args, kwargs], allow_nan=False)
    if not all(name.isidentifier() for name in (function, *kwargs)):
        raise ValueError(f"{function!r:.80} or {list(kwargs)!r:.80} cannot be called")
    return f"{function}({', '.join([*map(repr, args), *(f'{name}={value!r}' for name, value in kwargs.items())])})"


def printed(result: SandboxResult, expected: str) -> Verdict:
    """Whether a program ended well with the expected output. White space at the ends of lines and of the output is ignored."""
    if not result.ok:
        return _failure(result)
    found, wanted = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (result.stdout, expected))
    return Verdict("passed") if found == wanted else Verdict("wrong", f"it printed {result.stdout!r:.200}")


def _failure(result: SandboxResult) -> Verdict:
    if result.status in (Status.EXITED, Status.MEMORY):
        return Verdict("raised", f"code {result.code}: {result.stderr.rstrip()[-200:]}")
    return Verdict("stopped", result.status)


async def _evaluate(sandbox: Sandbox, program: str, setup: str, calls: Sequence[str]) -> list[Reply]:
    """The values of calls into a program, which may have forged them, as it may return what it likes. A call that does not come
    back takes those after it with it."""
    job = json.dumps({"setup": setup, "answer": program, "calls": calls})
    result = await sandbox.run(_trials(), job)
    # One for the setup, one for the program, one each; there may be a million more, and what follows the last is no line.
    lines = [_parsed(line) for line in result.stdout.split("\n", 2 + len(calls))[:-1]]
    if lines and lines[0].failure is not None:
        raise _setup_fails(setup, lines[0].failure.detail)
    missing = Verdict("raised", "it ended early") if result.ok else _failure(result)
    defined, *values = [*lines, *[Reply(None, missing)] * (2 + len(calls) - len(lines))][1 : 2 + len(calls)]
    return values if defined.failure is None else [defined] * len(calls)


def _parsed(line: str) -> Reply:
    try:
        ((kind, content),) = json.loads(line).items()
    except (ValueError, AttributeError, RecursionError):
        return Reply(None, Verdict("wrong", f"it gave {line!r:.200}"))
    return Reply(content) if kind == "value" else Reply(None, Verdict("raised", f"{content!s:.200}"))


async def _assert(sandbox: Sandbox, tests: Asserts, replies: Sequence[Reply]) -> list[Verdict]:
    """Judge each statement from the values of its calls, in an interpreter of its own."""
    left, jobs, verdicts = iter(replies), [], []
    for test in tests.tests:
        mine = {name: next(left) for name in test.calls}
        failure = next((reply.failure for reply in mine.values() if reply.failure is not None), None)
        verdicts.append(failure)
        if failure is None:
            values = {name: reply.data for name, reply in mine.items()}
            jobs.append({"condition": test.condition, "modules": test.modules, "values": values})
    judged = iter(await _judged(sandbox, tests.setup, jobs) if jobs else [])
    return [next(judged) if verdict is None else verdict for verdict in verdicts]


async def _judged(sandbox: Sandbox, setup: str, jobs: list[dict[str, Any]]) -> list[Verdict]:
    try:
        job = json.dumps({"setup": setup, "tests": jobs})
    except RecursionError:
        return [Verdict("wrong", "it gave something too deep")] * len(jobs)
    result = await sandbox.run(_trials(), job)
    if not result.ok:
        # Only what the program returned can be at fault: too much, or too long to compare.
        return [Verdict("wrong", f"comparing what it gave ended as '{result.status}'")] * len(jobs)
    wrong, *problems = json.loads(result.stdout)
    if wrong:
        raise _setup_fails(setup, wrong)
    return [Verdict("wrong", problem) if problem else Verdict("passed") for problem in problems]


def _setup_fails(setup: str, problem: str) -> DataError:
    return DataError(
        "the setup of a prompt's asserts fails on its own",
        given=f"{problem} in {setup!r:.300}",
        expected="code that runs without the program: imports, and helpers of the tests",
        todo="correct the dataset",
    )


def same(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether a value is the expected one, which is JSON: a tuple counts as a list, keys as their text; `True` is not 1."""
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None or isinstance(expected, str):
        return type(found) is type(expected) and found == expected
    if isinstance(expected, list):
        alike = isinstance(found, list | tuple) and len(found) == len(expected)
        return alike and all(same(a, b, tolerance) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, dict):
        if not isinstance(found, dict) or len(found) != len(expected):
            return False
        named = {key if isinstance(key, str) else json.dumps(key): each for key, each in found.items() if _is_key(key)}
        return named.keys() == expected.keys() and all(same(named[key], expected[key], tolerance) for key in expected)
    if isinstance(found, int) and isinstance(expected, int):
        return found == expected
    if not isinstance(found, int | float):
        return False
    try:
        return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:
        return False


def _is_key(key: Any) -> bool:
    return key is None or isinstance(key, str | int | float)
