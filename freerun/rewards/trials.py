"""What the verifier of programs runs in the sandbox: a job from standard input, results as JSON lines.

`evaluate` runs an answer and the calls of the tests, and gives what they return as plain data. It shares its interpreter with
the answer, which can therefore make it say anything; it knows nothing of what is expected, so that saying the right thing takes
knowing it. `judge` runs the tests on that data, in an interpreter that never meets the answer. Also imported outside, for the
encoding of data.
"""

import importlib
import json
import os
import reprlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TextIO

COLLECTIONS: dict[str, Callable[[Sequence], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class NotPlain(TypeError):
    """A value is something else than plain data."""


class Outcome:
    """What an attempt gave: a value or an error."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error = ""

    def set_exception(self, error: BaseException) -> None:
        """Whatever it is: code that is tested may raise anything, and that is its result."""
        self.error = f"{type(error).__name__}: {error!s:.200}"


def encode(value: Any) -> Any:
    """Plain data as JSON that keeps apart what JSON does not: `None`, numbers and text as they are, else {kind: content}.
    Subclasses become what they derive from. Raises `NotPlain` for anything else."""
    if value is None or isinstance(value, bool):
        return value
    for scalar in (int, float, str):
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(each)] for key, each in value.items()]}
    for name, kind in (("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return {name: [encode(each) for each in value]}
    raise NotPlain(f"{type(value).__name__} is not plain data")


def decode(data: Any) -> Any:
    """The value that `encode` was given. Raises `ValueError` for anything that it would not have made."""
    try:
        return _decode(data)
    except (TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"no encoded value: {type(error).__name__}") from error


def _decode(data: Any) -> Any:
    if not isinstance(data, dict):
        if isinstance(data, list):
            raise ValueError("a list stands where a value should")
        return data
    ((kind, content),) = data.items()
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {_decode(key): _decode(each) for key, each in content}
    return COLLECTIONS[kind]([_decode(each) for each in content])


def channel() -> TextIO:
    """Standard output. From now on, what is printed goes to standard error instead."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return results


def evaluate(job: dict[str, Any]) -> None:
    """Run `job["setup"]`, `job["answer"]`, and each of `job["calls"]`; give the value of each in a line, as soon as it is
    known. The first line can be believed, as the answer has not begun."""
    results = channel()

    def say(attempt: Callable[[], Any]) -> None:
        outcome = Outcome()
        try:
            line = json.dumps({"value": encode(attempt())})
        except BaseException as error:
            outcome.set_exception(error)
            line = json.dumps({"error": outcome.error})
        results.write(f"{line}\n")
        results.flush()

    names: dict[str, Any] = {"__name__": "answer"}
    say(partial(define, job["setup"], names))
    say(partial(define, job["answer"], names))
    for call in job["calls"]:
        say(partial(eval, compile(call, "<test>", "eval"), names))
    os._exit(0)  # Without waiting for threads that the answer may have started.


def judge(job: dict[str, Any]) -> None:
    """Run `job["setup"]`, then say of each of `job["tests"]` (`values`, encoded, by name; a `condition` on them; the `modules`
    that it names) what is wrong with it; nothing is "". First of all comes the same of the setup."""
    results = channel()
    names: dict[str, Any] = {"__name__": "tests"}
    verdicts = [attempted(partial(define, job["setup"], names))]
    verdicts += [attempted(partial(holds, test, names)) for test in job["tests"]]
    with results:
        json.dump(verdicts, results)


def define(source: str, names: dict[str, Any]) -> None:
    exec(compile(source, "<code>", "exec"), names)


def holds(test: dict[str, Any], names: dict[str, Any]) -> None:
    values = {name: decode(data) for name, data in test["values"].items()}
    modules = {name: importlib.import_module(name) for name in test["modules"]}
    condition = compile(test["condition"], "<test>", "eval")
    assert eval(condition, {**names, **modules, **values}), f"with {', '.join(map(reprlib.repr, values.values()))}"


def attempted(attempt: Callable[[], Any]) -> str:
    outcome = Outcome()
    try:
        attempt()
    except Exception as error:
        outcome.set_exception(error)
    return outcome.error


def main() -> None:
    job = json.load(sys.stdin)
    (evaluate if "answer" in job else judge)(job)


if __name__ == "__main__":
    main()
