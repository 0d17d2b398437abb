"""Answers to `reasoning-gym` problems, judged by the dataset that made them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reasoning_gym.dataset import ProceduralDataset

from freerun.errors import DataError
from freerun.rewards.verifiers import Extract
from freerun.types import RewardResult


@dataclass(frozen=True, slots=True)
class Judge:
    """One dataset, how to find an answer in a completion, and whether the dataset's partial marks count."""

    dataset: ProceduralDataset
    extract: Extract
    partial: bool


@dataclass(frozen=True, slots=True)
class GymScore:
    """The reward of the dataset named by `meta["source"]` for the problem number `meta["index"]`, from 0 to 1.

    Without partial marks, anything below full marks is 0. The problem is made again from its number, so that what the dataset
    needs to judge it never has to travel; `DataError` if that gives another answer than the prompt's.
    """

    judges: Mapping[str, Judge]

    def __call__(self, prompt: str, completion: str, meta: Mapping[str, Any]) -> RewardResult:
        judge = self.judges[meta["source"]]
        entry = judge.dataset[meta["index"]]
        if str(entry["answer"]) != meta["answer"]:
            raise DataError(
                f"reasoning-gym's '{meta['source']}' does not make the same problem twice",
                given=f"{entry['question']!r} with the answer {entry['answer']!r}",
                expected=f"{prompt!r} with the answer {meta['answer']!r}",
                todo="leave this dataset out, or build prompts and rewards with the same version of reasoning-gym",
            )
        score = float(judge.dataset.score_answer(judge.extract(completion), entry))
        return RewardResult(score if judge.partial or score >= 1.0 else 0.0, {meta["source"]: score})
