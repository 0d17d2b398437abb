"""Data sets that a stated policy writes, in the format of `examples.File`: with rewards, and with the log-probs of every token
under that policy. So a method that learns from other people's data can be tried before anybody has such data.

Each is written once, on first use, below the cache directory, and found again by its config and its prompts.
"""

import fcntl
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from freerun import config as configs
from freerun.errors import DataError
from freerun.models.base import LanguageModel
from freerun.models.gguf import cache_directory
from freerun.tasks.authors import Author, scored
from freerun.tasks.base import Task
from freerun.tasks.examples import File
from freerun.trainer.examples import group_of
from freerun.types import Example, Prompt, RewardResult, Source, Stop, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """The task's solutions with slips: an author who, at each character, draws any of the alphabet with probability `noise` and
    writes on as if nothing had happened. Its log-probs are exact, for a model of characters."""

    alphabet: str
    """What a slip draws from; it holds every character of a solution."""
    noise: float = 0.3
    """Probability of a slip."""
    prompts: int = 512
    """Training prompts to answer, at most."""
    samples: int = 4
    """Responses to each."""
    expert: bool = False
    """Whether the responses are demonstrations."""
    seed: int = 0
    """Seed of the slips."""

    def build(self, task: Task) -> Sequence[Example]:
        """Raises `DataError` for a solution that the alphabet cannot write."""
        prompts = task.train[: self.prompts]
        return once(self, task, prompts, self.expert, lambda: self._written(task, prompts))

    def _written(self, task: Task, prompts: Sequence[Prompt]) -> list[Example]:
        rng = random.Random(f"{self.seed}/noisy")
        answers = [[self._answer(task.solution(prompt), rng) for _ in range(self.samples)] for prompt in prompts]
        asked = [prompt for prompt in prompts for _ in range(self.samples)]
        rewards = scored(task, asked, [text for siblings in answers for text, _ in siblings])
        return [
            example_of(prompt, [t for t, _ in siblings], rewards[i * self.samples :][: self.samples], [p for _, p in siblings])
            for i, (prompt, siblings) in enumerate(zip(prompts, answers, strict=True))
        ]

    def _answer(self, solution: str, rng: random.Random) -> tuple[str, list[float]]:
        unknown = sorted(set(solution) - set(self.alphabet))
        if unknown:
            raise DataError(
                "a solution has characters that its author cannot write",
                given=f"{solution!r}, alphabet {self.alphabet!r}",
                expected=f"an alphabet with {''.join(unknown)!r}",
                todo="correct the alphabet of the data set",
            )
        other = self.noise / len(self.alphabet)
        text = "".join(rng.choice(self.alphabet) if rng.random() < self.noise else right for right in solution)
        found = [1.0 - self.noise + other if a == b else other for a, b in zip(text, solution, strict=True)]
        # The end is never in doubt.
        return text, [*map(math.log, found), 0.0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Responses of a language model to the task's training prompts, with its log-probs under its own sampling. Responses that
    did not end by the model's end token, or whose text is cut into other tokens when it is read again, are left out: their
    number is in the `meta` of the prompt, as `left_out`."""

    author: Author
    """Who writes."""
    prompts: int = 512
    """Training prompts to answer, at most."""
    samples: int = 4
    """Responses to each."""
    solved: bool = False
    """Whether to keep only those that the task counts as solved."""
    expert: bool = False
    """Whether the responses are demonstrations."""

    def build(self, task: Task) -> Sequence[Example]:
        """Raises `DataError` if no response is left, or one cannot be scored."""
        prompts = task.train[: self.prompts]
        return once(self, task, prompts, self.expert, lambda: self._written(task, prompts))

    def _written(self, task: Task, prompts: Sequence[Prompt]) -> list[Example]:
        answers, model = self.author.answers(task, prompts, self.samples)
        asked = [prompt for prompt, siblings in zip(prompts, answers, strict=True) for _ in siblings]
        rewards = iter(scored(task, asked, [t.text for siblings in answers for t in siblings]))
        examples = []
        for prompt, siblings in zip(prompts, answers, strict=True):
            kept: list[tuple[Trajectory, RewardResult]] = []
            for trajectory, reward in zip(siblings, rewards, strict=False):
                if is_readable(prompt, trajectory, model) and (not self.solved or task.accuracy(reward) >= 1.0):
                    kept.append((trajectory, reward))
            if kept:
                meta = {**prompt.meta, "left_out": len(siblings) - len(kept)}
                logps = [t.logp_T[t.action_T].tolist() for t, _ in kept]
                texts = [t.text for t, _ in kept]
                examples.append(example_of(Prompt(prompt.uid, prompt.content, meta), texts, [r for _, r in kept], logps))
        return examples


def is_readable(prompt: Prompt, trajectory: Trajectory, model: LanguageModel) -> bool:
    """Whether the text of a response, read again, is the tokens that were sampled, its end token included."""
    if trajectory.stop is not Stop.EOS:
        return False
    again = group_of(example_of(prompt, [trajectory.text], (), ()), model).trajectories[0]
    return again.tokens_T.tolist() == trajectory.tokens_T.tolist()


def write(path: Path, examples: Iterable[Example]) -> None:
    """A file that `examples.File` reads back."""
    with path.open("w", encoding="utf-8") as lines:
        for example in examples:
            content = example.prompt.content
            turns = content if isinstance(content, str) else [turn._asdict() for turn in content]
            row = {
                "prompt": turns,
                "responses": example.responses,
                "rewards": [reward.value for reward in example.rewards],
                "logps": example.logps,
                "meta": dict(example.prompt.meta),
            }
            lines.write(json.dumps(row) + "\n")


def once(
    config: object, task: Task, prompts: Sequence[Prompt], expert: bool, make: Callable[[], Sequence[Example]]
) -> Sequence[Example]:
    """The data set that `make` gives, from its file if it was written before. The file appears whole or not at all; two
    processes that ask at the same time make it once."""
    asked = json.dumps([task.name, configs.dump(config), [[p.content, dict(p.meta)] for p in prompts]])
    digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
    path = cache_directory() / "examples" / f"{type(config).__name__.lower()}-{digest}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{path}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                examples = make()
                if not examples:
                    raise DataError(
                        "the author of a data set wrote nothing that can be used",
                        given=f"{len(prompts)} prompts",
                        expected="at least one whole response",
                        todo="teach it longer, or give it more tokens to end its responses",
                    )
                partial = Path(f"{path}.partial")
                write(partial, examples)
                partial.rename(path)
    return File(path=str(path), expert=expert).build(task)


def example_of(
    prompt: Prompt, texts: Sequence[str], rewards: Sequence[RewardResult], logps: Sequence[Sequence[float]]
) -> Example:
    return Example(
        uid=prompt.uid,
        prompt=prompt,
        responses=tuple(texts),
        rewards=tuple(rewards),
        logps=tuple(map(tuple, logps)),
        source=Source.DATASET,
    )
