"""A mix of `reasoning-gym` datasets, each with a share, parameters of its own and worked examples from the same dataset."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS, create_dataset

from freerun.config import nearest
from freerun.errors import ConfigError
from freerun.rewards.procedural import GymScore, Judge
from freerun.rewards.verifiers import Extract, whole
from freerun.tasks.base import MAX_DRAWS, Problem, Task, conversation, split, stored_answer
from freerun.types import Sampling


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
    extract: Extract = whole
    """Finds the answer in a completion."""
    partial: bool = False
    """Whether the dataset's partial marks count as reward, or only full marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which datasets, in what shares, and how many problems. Each dataset may occur once."""

    sources: tuple[Source, ...]
    """The mix."""
    instruction: str = ""
    """The system's turn, the same for all."""
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
        judges, train, heldout = {}, [], []
        total = sum(s.share for s in self.sources)
        for source in self.sources:
            num_train, num_heldout = (max(1, round(n * source.share / total)) for n in (self.train, self.heldout))
            dataset = _created(source, self.seed, source.examples + MAX_DRAWS * (num_train + num_heldout))
            judges[source.dataset] = Judge(dataset, source.extract, source.partial)
            examples = [dataset[i] for i in range(source.examples)]
            worked = [(e["question"], str(e["answer"])) for e in examples]
            parts = split(
                f"gym/{source.dataset}",
                _problems(source, dataset, conversation(self.instruction, worked, "")[:-1]),
                train=num_train,
                heldout=num_heldout,
                shown=[e["question"] for e in examples],
            )
            train += parts[0]
            heldout += parts[1]
        random.Random(self.seed).shuffle(heldout)
        return Task(
            name="gym",
            train=tuple(train),
            heldout=tuple(heldout),
            reward=GymScore(judges),
            solution=stored_answer,
            sampling=Sampling(max_tokens=self.max_tokens),
        )

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


def _problems(source: Source, dataset: ProceduralDataset, before: tuple) -> Iterator[Problem]:
    for index in range(source.examples, len(dataset)):
        entry = dataset[index]
        question = entry["question"]
        meta = {"source": source.dataset, "index": index, "answer": str(entry["answer"])}
        yield Problem((*before, conversation("", (), question)[-1]), meta, question)
