"""A mix of `reasoning-gym` datasets, each with a share, parameters of its own and worked examples from the same dataset.

Two ways of asking: turns of a chat, or plain text in which each worked example is written like the question and a response ends
with its line. Small models do far better with the second.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS, create_dataset

from freerun.config import nearest
from freerun.errors import ConfigError
from freerun.rewards.procedural import GymScore, Judge
from freerun.rewards.verifiers import Extract, last_number, whole
from freerun.tasks.base import MAX_DRAWS, Problem, Task, conversation, split, stored_answer
from freerun.types import Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One dataset of the mix."""

    dataset: str
    """Its name in reasoning-gym."""
    share: float = 1.0
    """Its part of the mix, relative to the others'."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings, such as `min_terms`; `seed` and `size` are set here."""
    examples: int = 1
    """Worked examples before each question: the first problems of the dataset, the same for all."""
    drop: tuple[str, ...] = ()
    """Texts to leave out of its questions, such as advice on the form of the answer that the examples already give."""
    form: str = "Question: {question}\nAnswer: {answer}\n\n"
    """Text style: how one question and its answer are written. The answer is the end of its line."""
    extract: Extract = whole
    """Finds the answer in a completion."""
    partial: bool = False
    """Whether the dataset's partial marks count as reward, or only full marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which datasets, in what shares, and how many problems. Each dataset may occur once. Questions of the same words in
    another order, such as 27 + 82 and 82 + 27, are one problem to the split."""

    sources: tuple[Source, ...]
    """The mix."""
    style: Literal["chat", "text"] = "chat"
    """`chat`: each example is a turn of the user and one of the assistant; `text`: examples and question in their form."""
    instruction: str | None = None
    """Said first, to all problems: the system's turn, or the beginning of the text. In chat style, none leaves the system's
    turn to the model's template, and an empty one is an empty turn."""
    train: int = 4096
    """Training problems of all sources together, at most."""
    heldout: int = 512
    """Held-out problems of all sources together."""
    max_tokens: int = 16
    """Suggested length of a response."""
    seed: int = 0
    """Which problems, and which of them are held out."""

    def build(self) -> Task:
        """Raises `ConfigError` for a mix that cannot be made and for unknown datasets and parameters, `DataError` if a dataset
        has too few different problems."""
        self._check()
        judges: dict[str, Judge] = {}
        train: list[Prompt] = []
        heldout: list[Prompt] = []
        total = sum(s.share for s in self.sources)
        for source in self.sources:
            num_train, num_heldout = (max(1, round(n * source.share / total)) for n in (self.train, self.heldout))
            dataset = _created(source, self.seed, source.examples + MAX_DRAWS * (num_train + num_heldout))
            judges[source.dataset] = Judge(dataset, source.extract, source.partial)
            shown = [_key(_question(source, dataset[i])) for i in range(source.examples)]
            name, problems = f"gym/{source.dataset}", self._problems(source, dataset)
            parts = split(name, problems, train=num_train, heldout=num_heldout, shown=shown)
            train += parts[0]
            heldout += parts[1]
        random.Random(self.seed).shuffle(heldout)
        return Task(
            name="gym",
            train=tuple(train),
            heldout=tuple(heldout),
            reward=GymScore(judges),
            solution=self._solution,
            sampling=Sampling(max_tokens=self.max_tokens, stop=("\n",) if self.style == "text" else ()),
        )

    def _problems(self, source: Source, dataset: ProceduralDataset) -> Iterator[Problem]:
        worked = [(_question(source, dataset[i]), str(dataset[i]["answer"])) for i in range(source.examples)]
        before, _, after = source.form.partition("{answer}")
        text = (self.instruction or "") + "".join(before.replace("{question}", q) + a + after for q, a in worked)
        for index in range(source.examples, len(dataset)):
            entry = dataset[index]
            question = _question(source, entry)
            # The space before an answer belongs to the answer: tokenizers join it to what follows.
            asked = text + before.replace("{question}", question).rstrip(" ")
            content = asked if self.style == "text" else conversation(self.instruction, worked, question)
            meta = {"source": source.dataset, "index": index, "answer": str(entry["answer"])}
            yield Problem(content, meta, _key(question))

    def _solution(self, prompt: Prompt) -> str:
        answer = stored_answer(prompt)
        if self.style == "chat":
            return answer
        before = next(s.form for s in self.sources if s.dataset == prompt.meta["source"]).partition("{answer}")[0]
        return f"{before[len(before.rstrip(' ')) :]}{answer}\n"

    def _check(self) -> None:
        names = [s.dataset for s in self.sources]
        unknown = next((n for n in names if n not in DATASETS), None)
        if unknown is not None:
            raise ConfigError(
                f"reasoning-gym has no dataset '{unknown}'",
                given=unknown,
                expected=f"one of: {nearest(unknown, DATASETS)}",
                todo="correct the name",
            )
        odd = next((s.form for s in self.sources if not re.fullmatch(r"(?s).*\{question\}.*\{answer\}\n.*", s.form)), None)
        if odd is not None:
            raise ConfigError(
                "this form cannot hold a question and its answer",
                given=repr(odd),
                expected="text with {question}, then {answer}, then the end of the line",
                todo="correct the form of the source",
            )
        least = min((self.train, self.heldout, *(s.share for s in self.sources)))
        if not names or len(set(names)) < len(names) or least <= 0:
            raise ConfigError(
                "this mix of datasets cannot be made",
                given=f"{', '.join(f'{s.dataset} {s.share:g}' for s in self.sources) or 'no sources'}; "
                f"train {self.train}, heldout {self.heldout}",
                expected="at least one source, each dataset once, shares above 0, train and heldout at least 1",
                todo="correct the section task",
            )


def _created(source: Source, seed: int, size: int) -> ProceduralDataset:
    try:
        return create_dataset(source.dataset, **{**source.parameters, "seed": seed, "size": size})
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"reasoning-gym refuses these parameters of '{source.dataset}'",
            given=f"{dict(source.parameters)}: {error}",
            expected=f"fields of {DATASETS[source.dataset][1].__name__}, with values it accepts",
            todo="correct parameters",
        ) from error


def _question(source: Source, entry: Mapping[str, Any]) -> str:
    question = entry["question"]
    for text in source.drop:
        question = question.replace(text, "")
    return question.strip()


def _key(question: str) -> tuple[str, ...]:
    return tuple(sorted(question.split()))


def demo() -> Config:
    """Three kinds of problem for a small model, in plain text with short answers: sums of numbers below 100 (half of them),
    letters to count in a few words, and the next term of a sequence.

    Chosen by measurement with SmolLM2-135M-Instruct: at temperature 1, three quarters of the sums and nearly all of the letter
    problems are solved by some of eight samples and not by all, which is where a group has something to learn from.
    """
    return Config(
        sources=(
            Source(
                dataset="basic_arithmetic",
                share=2,
                parameters={
                    "operators": ("+",),
                    "min_terms": 2,
                    "max_terms": 2,
                    "min_digits": 2,
                    "max_digits": 2,
                    "allow_parentheses": False,
                    "allow_negation": False,
                },
                drop=("Calculate ", "."),
                form="{question} = {answer}\n",
                extract=last_number,
            ),
            Source(
                dataset="letter_counting",
                parameters={"min_words": 2, "max_words": 4},
                examples=2,
                extract=last_number,
            ),
            Source(
                dataset="number_sequence",
                parameters={"min_terms": 4, "max_terms": 5, "min_value": 1, "max_value": 20, "max_complexity": 1},
                drop=(" ?",),
                form="{question} {answer}\n",
                examples=2,
            ),
        ),
        style="text",
        max_tokens=8,
    )
