"""The user's own problems: a file with one JSON object per line."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freerun.errors import ConfigError, DataError
from freerun.rewards.pool import RewardFunction
from freerun.rewards.verifiers import ExactMatch
from freerun.tasks.base import Task, json_line
from freerun.types import Message, Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A file of problems. Every field of a line but the prompt reaches the reward function as `meta`, the answer as
    `"answer"`."""

    path: str
    """A JSON Lines file, UTF-8."""
    heldout_path: str = ""
    """A second file with the held-out problems; without one, they are taken from the first."""
    heldout: int = 256
    """Problems of `path` to hold out if there is no `heldout_path`."""
    prompt_field: str = "prompt"
    """Holds text, or a list of chat turns with `role` and `content`."""
    answer_field: str = "answer"
    """Holds what the verifier compares with; a reward function that needs none may leave it empty."""
    chat: bool = True
    """Whether a prompt that is text becomes a user's turn, or is given to the model as it is."""
    reward: RewardFunction = field(default_factory=ExactMatch)
    """Scores a completion: a verifier, or any function that is importable by name."""
    max_tokens: int = 256
    """Suggested length of a response."""
    seed: int = 0
    """Which problems are held out."""

    def build(self) -> Task:
        """Raises `DataError` for a missing file, naming the lines that cannot be used, and for a problem that occurs twice;
        `ConfigError` if more would be held out than there are."""
        prompts = self._read(self.path)
        if self.heldout_path:
            train, heldout = prompts, self._read(self.heldout_path)
        else:
            if not 0 < self.heldout < len(prompts):
                raise ConfigError(
                    "the held-out set takes all problems" if self.heldout else "nothing would be held out",
                    given=f"task.heldout = {self.heldout}, {len(prompts)} problems in {self.path}",
                    expected="at least one problem on each side",
                    todo="change task.heldout, or name a task.heldout_path",
                )
            random.Random(self.seed).shuffle(prompts)
            train, heldout = prompts[self.heldout :], prompts[: self.heldout]
        return Task(
            name=self.path,
            train=tuple(train),
            heldout=tuple(heldout),
            reward=self.reward,
            solution=self._solution,
            sampling=Sampling(max_tokens=self.max_tokens),
        )

    def _solution(self, prompt: Prompt) -> str:
        if "answer" not in prompt.meta:
            raise DataError(
                "a demonstration needs an answer",
                given=f"{prompt.uid} without '{self.answer_field}'",
                expected="a line with an answer",
                todo="add the answer, or run without a warm start",
            )
        return str(prompt.meta["answer"])

    def _read(self, path: str) -> list[Prompt]:
        """Prompts in the order of the file; equal ones count once."""
        file = Path(path).expanduser()
        if not file.is_file():
            raise DataError("dataset file not found", given=path, expected="a JSON Lines file", todo="correct task.path")
        prompts: dict[Any, Prompt] = {}
        bad: list[str] = []
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    prompt = self._prompt(json_line(line), f"{file.name}:{number}")
                    prompts.setdefault(prompt.content, prompt)
                except ValueError as error:
                    bad.append(f"line {number}: {error}")
        if bad:
            raise DataError(
                f"{len(bad)} lines of {path} cannot be used",
                given="; ".join(bad[:5]),
                expected=f"one JSON object per line with '{self.prompt_field}', text or chat turns",
                todo="correct the lines, or set task.prompt_field and task.answer_field",
            )
        return list(prompts.values())

    def _prompt(self, row: Any, uid: str) -> Prompt:
        """Raises `ValueError` with the reason if `row` is not a problem."""
        if not isinstance(row, dict):
            raise ValueError(f"a {type(row).__name__} instead of an object")
        if self.prompt_field not in row:
            raise ValueError(f"no field '{self.prompt_field}' among {sorted(row)}")
        meta = {k: v for k, v in row.items() if k not in (self.prompt_field, self.answer_field)}
        if self.answer_field in row:
            meta["answer"] = row[self.answer_field]
        return Prompt(uid, self._content(row[self.prompt_field]), meta)

    def _content(self, prompt: Any) -> str | tuple[Message, ...]:
        if isinstance(prompt, str) and prompt.strip():
            return (Message("user", prompt),) if self.chat else prompt
        if isinstance(prompt, list) and prompt and all(_is_turn(turn) for turn in prompt):
            return tuple(Message(turn["role"], turn["content"]) for turn in prompt)
        raise ValueError(f"'{self.prompt_field}' is neither text nor a list of turns with role and content")


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
