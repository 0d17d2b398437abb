"""Verifiers: what they find in a completion, and what they count as equal."""

import asyncio
import pickle
from fractions import Fraction

import pytest

from freerun.errors import DataError
from freerun.rewards.pool import RewardConfig, RewardPool
from freerun.rewards.symbolic import MathMatch
from freerun.rewards.verifiers import (
    ExactMatch,
    NumericMatch,
    answer_tag,
    boxed,
    first_line,
    first_number,
    last_number,
    number,
    whole,
)
from freerun.types import FailureKind, Prompt, RewardRequest, RewardResult


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12 + 5 = 17", "17"),
        ("12-5=7", "7"),
        ("12-5", "5"),
        ("it is -3.5.", "-3.5"),
        ("1,234,567.25 in all", "1,234,567.25"),
        ("12,34", "34"),
        ("about 3/4", "3/4"),
        ("x=.5", ".5"),
        ("The answer: 5.", "5"),
        ("none", None),
        ("-", None),
    ],
)
def test_the_last_number_is_found(text, expected):
    assert last_number(text) == expected


def test_the_first_number_is_found():
    assert first_number("17 because 12 + 5") == "17" and first_number("no") is None


def test_numbers_are_exact():
    assert number("0.1") + number("0.2") == Fraction(3, 10)
    assert number("1,234/2") == 617
    assert number("1/0") is None and number("x") is None and number("1e999999999") is None


def test_answers_are_found_in_lines_tags_and_boxes():
    assert first_line("\n  yes \nno") == "yes"
    assert whole("  ") is None
    assert answer_tag("<answer>1</answer> or <answer>\n2 </answer> <answer>3") == "2"
    assert answer_tag("<answer>3") is None
    assert boxed(r"\boxed{1} so \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert boxed(r"\boxed{1} and \boxed{2") == "1"


def test_exact_match_compares_text_without_the_white_space_around_it():
    assert ExactMatch()("q", " olleh\n", {"answer": "olleh"}) == 1.0
    assert ExactMatch()("q", "Olleh", {"answer": "olleh"}) == 0.0
    assert ExactMatch(ignore_case=True)("q", "Olleh", {"answer": "olleh"}) == 1.0
    assert ExactMatch(extract=answer_tag)("q", "olleh", {"answer": "olleh"}) == 0.0


def test_numeric_match_compares_values_and_not_digits():
    match = NumericMatch()
    assert match("q", "so 8/2", {"answer": 4}) == 1.0
    assert match("q", "4.0", {"answer": "4"}) == 1.0
    assert match("q", "1,000", {"answer": "1000"}) == 1.0
    assert match("q", "5", {"answer": "4"}) == match("q", "1/0", {"answer": "4"}) == match("q", "four", {"answer": "4"}) == 0.0
    assert NumericMatch(tolerance=0.01)("q", "3.14", {"answer": "3.1416"}) == 1.0


def test_a_prompt_without_a_usable_answer_is_a_data_error():
    with pytest.raises(DataError, match="answer"):
        ExactMatch()("q", "x", {})
    with pytest.raises(DataError, match="not a number"):
        NumericMatch()("q", "4", {"answer": "four"})
    with pytest.raises(DataError, match="not a mathematical expression"):
        MathMatch()("q", "4", {"answer": ""})


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"$\frac{1}{2}$", "0.5", 1.0),
        ("The answer is 1/2", r"\frac{1}{2}", 1.0),
        (r"so \boxed{x^2+2x+1}", "(x+1)^2", 1.0),
        (r"\boxed{3}", "4", 0.0),
        ("I do not know", "4", 0.0),
    ],
)
def test_math_match_compares_expressions(completion, answer, expected):
    assert MathMatch()("q", completion, {"answer": answer}) == expected


def test_math_match_works_in_the_threads_of_the_pool_where_alarm_signals_do_not():
    async def main():
        pool = RewardPool(MathMatch(), RewardConfig(concurrency=4))
        prompt, nonsense = Prompt("p", "q", {"answer": "1/2"}), Prompt("p", "q", {"answer": ""})
        outcomes = await pool.score([RewardRequest(prompt, "0.5"), RewardRequest(prompt, "2"), RewardRequest(nonsense, "2")])
        await pool.close()
        return outcomes

    right, wrong, failed = asyncio.run(main())
    assert (right, wrong) == (RewardResult(1.0), RewardResult(0.0))
    assert failed.kind is FailureKind.VERIFIER and "MathMatch" in failed.where


def test_verifiers_cross_process_boundaries():
    for verifier in (ExactMatch(extract=answer_tag), NumericMatch(), MathMatch()):
        assert pickle.loads(pickle.dumps(verifier)) == verifier
