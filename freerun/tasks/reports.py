"""Semi-off-policy data (SOPHIA, arXiv 2507.16814): the policy reports what it sees without knowing the question, somebody else
reasons from the report to an answer, and what may be imitated is decided by how far the report carries.

    prompt --report_prompt--> policy --K reports--> reasoner --N responses each--> rewards --Selection--> examples of the prompt

A single round: the policy that reports is the one that RL starts from.

Shapes: K reports of a prompt, N responses to each.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from freerun.algorithms.language.sophia import Selection
from freerun.tasks.authors import Author, scored
from freerun.tasks.base import Task
from freerun.tasks.written import example_of, once
from freerun.types import Example, Prompt, RewardResult


class ReasonerConfig(Protocol):
    """A frozen, picklable description of somebody who reasons from reports."""

    def report_prompt(self, prompt: Prompt) -> Prompt:
        """What the policy is asked to report on: never the question."""
        ...

    def reason(self, prompt: Prompt, report: str, rng: random.Random) -> str:
        """A response to `prompt` from the report alone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The selected responses to each training prompt, with reward 1; prompts without any are left out."""

    author: Author
    """The policy that reports."""
    reasoner: ReasonerConfig
    """Who reasons."""
    selection: Selection = field(default_factory=Selection)
    """What is worth imitating."""
    reports: int = 8
    """Reports of each prompt."""
    reasonings: int = 8
    """Responses to each report."""
    prompts: int = 512
    """Training prompts, at most."""
    seed: int = 0
    """Seed of the reasoner."""

    def build(self, task: Task) -> Sequence[Example]:
        """Raises `DataError` if nothing is selected."""
        prompts = task.train[: self.prompts]
        return once(self, task, prompts, False, lambda: self._collected(task, prompts))

    def _collected(self, task: Task, prompts: Sequence[Prompt]) -> list[Example]:
        asked = [self.reasoner.report_prompt(prompt) for prompt in prompts]
        reports, _ = self.author.answers(task, asked, self.reports)
        rng = random.Random(f"{self.seed}/reasoner")
        responses = [
            [self.reasoner.reason(prompt, report.text, rng) for report in siblings for _ in range(self.reasonings)]
            for prompt, siblings in zip(prompts, reports, strict=True)
        ]
        each = [prompt for prompt, texts in zip(prompts, responses, strict=True) for _ in texts]
        outcomes = scored(task, each, [text for texts in responses for text in texts])
        examples, first = [], 0
        for prompt, texts in zip(prompts, responses, strict=True):
            solved = [task.accuracy(outcome) >= 1.0 for outcome in outcomes[first : first + len(texts)]]
            first += len(texts)
            chosen = self._chosen(texts, solved)
            if chosen:
                examples.append(example_of(prompt, chosen, [RewardResult(1.0)] * len(chosen), ()))
        return examples

    def _chosen(self, texts: Sequence[str], solved: Sequence[bool]) -> list[str]:
        shape = (self.reports, self.reasonings)
        length_KN = torch.tensor([len(text) for text in texts]).view(shape)
        reward_KN = self.selection.rewards(torch.tensor(solved).view(shape), length_KN)
        return [texts[i] for i in reward_KN.flatten().nonzero().flatten().tolist()]
