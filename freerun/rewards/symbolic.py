"""Mathematical answers, compared as expressions by `math-verify`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from math_verify import parse, verify

from freerun.errors import DataError
from freerun.rewards.verifiers import expected_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class MathMatch:
    r"""1 if the completion's final expression (LaTeX or plain, boxed or not) equals `meta["answer"]` as mathematics: 1/2, 0.5
    and $\frac{1}{2}$ are the same.

    Raises `DataError` if the answer cannot be parsed. Nothing here limits the time: the library's own limits are alarm signals,
    which only work in a main thread, so the pool's deadline is the limit.
    """

    decimals: int = 6
    """Decimals to which inexact numbers are compared."""

    def __post_init__(self) -> None:
        # The library warns, once and on the terminal, that its own time limit is off.
        logging.getLogger("math_verify").setLevel(logging.ERROR)

    def __call__(self, prompt: str, completion: str, meta: Mapping[str, Any]) -> float:
        answer = expected_answer(meta)
        expected = parse(answer, parsing_timeout=None) or parse(f"${answer}$", parsing_timeout=None)
        if not expected:
            raise DataError(
                "the answer of a prompt is not a mathematical expression",
                given=repr(answer),
                expected="LaTeX, or a plain expression",
                todo="correct the dataset, or use ExactMatch",
            )
        found = parse(completion, parsing_timeout=None)
        return float(verify(expected, found, float_rounding=self.decimals, timeout_seconds=None))
