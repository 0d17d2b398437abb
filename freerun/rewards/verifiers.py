"""Reward functions for answers that can be checked: plain text and numbers. Each compares what it extracts from the completion
with `meta["answer"]` and gives 1 or 0."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from freerun.errors import DataError

Extract = Callable[[str], str | None]
"""Finds the answer in a completion; `None` if there is none."""

_NUMBER = re.compile(r"(?:(?<!\w)[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)")
"""A sign counts only where it is not an operator, so the last number of `12-5` is 5."""


def whole(text: str) -> str | None:
    """All of it, without surrounding white space; `None` if that is empty."""
    return text.strip() or None


def first_line(text: str) -> str | None:
    """The first line that is not blank."""
    return whole(text.lstrip().partition("\n")[0])


def last_number(text: str) -> str | None:
    """The last number: an integer, a decimal or a fraction such as 3/4, with a sign, with or without thousands commas."""
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def first_number(text: str) -> str | None:
    """The first number, of the same forms as `last_number`."""
    match = _NUMBER.search(text)
    return match.group() if match else None


def answer_tag(text: str) -> str | None:
    """What stands inside the last complete `<answer>...</answer>`."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return whole(found[-1]) if found else None


def boxed(text: str) -> str | None:
    r"""What stands inside the last complete `\boxed{...}`, inner braces included."""
    for start in reversed([m.end() for m in re.finditer(r"\\boxed\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return whole(text[start:end])
    return None


def number(text: str) -> Fraction | None:
    """Exact value of a number in the forms of `last_number`; `None` for anything else and for a division by zero."""
    if not _NUMBER.fullmatch(text.strip()):  # Also keeps out 1e999999999, whose exact value would fill the memory.
        return None
    numerator, _, denominator = text.replace(",", "").strip().partition("/")
    try:
        return Fraction(numerator) / Fraction(denominator or 1)
    except (ValueError, ZeroDivisionError):
        return None


def expected_answer(meta: Mapping[str, Any]) -> str:
    """`meta["answer"]` as text. Raises `DataError` if the prompt came without one."""
    if "answer" not in meta:
        raise DataError(
            "a prompt has no answer to compare with",
            given=f"meta with {sorted(meta)}",
            expected="the key 'answer'",
            todo="add the answer to the dataset, or use a verifier that needs none",
        )
    return str(meta["answer"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatch:
    """1 if the extracted text equals the answer, white space at the ends aside."""

    extract: Extract = whole
    """Finds the answer in the completion."""
    ignore_case: bool = False
    """Whether capital and small letters are the same."""

    def __call__(self, prompt: str, completion: str, meta: Mapping[str, Any]) -> float:
        found, expected = self.extract(completion), expected_answer(meta).strip()
        if found is None:
            return 0.0
        return float(found.casefold() == expected.casefold() if self.ignore_case else found == expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericMatch:
    """1 if the extracted number equals the answer in value, so that 4, 4.0 and 8/2 are the same. Numbers are exact fractions.

    Raises `DataError` if the answer is not a number.
    """

    extract: Extract = last_number
    """Finds the number in the completion."""
    tolerance: float = 0.0
    """Largest absolute difference that still counts as equal."""

    def __call__(self, prompt: str, completion: str, meta: Mapping[str, Any]) -> float:
        expected = number(expected_answer(meta))
        if expected is None:
            raise DataError(
                "the answer of a prompt is not a number",
                given=repr(meta["answer"]),
                expected="an integer, a decimal or a fraction",
                todo="correct the dataset, or use ExactMatch or MathMatch",
            )
        found = self.extract(completion)
        value = None if found is None else number(found)
        return float(value is not None and abs(value - expected) <= Fraction(self.tolerance))
