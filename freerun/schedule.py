"""How long a run is, how much a step holds, how asynchronous it may be; and the endless order of its prompts."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from freerun.errors import ConfigError, DataError
from freerun.types import Prompt

FULL, QUICK = "heldout", "heldout-quick"
"""Names of the evaluations before and after the run, and of the smaller ones during it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """How long, how much per step, and how asynchronous."""

    steps: int = 100
    """Optimiser steps of the run."""
    groups: int = 8
    """Groups (prompts) per step."""
    group_size: int = 8
    """Responses per prompt."""
    max_lag: int = 1
    """Target lag: 0 is synchronous, 1 is one-step off-policy. Capacity is (max_lag + 1) * groups slots."""
    window: int = 1
    """How far behind the oldest active item the batcher may take a finished group; 1 is strict first in, first out."""
    stream: int = 1
    """Start a micro-batch as soon as this many groups are ready; a value of `groups` waits for the whole step."""
    decode_steps: int = 16
    """Decode steps per call of a generator: smaller reacts faster, larger costs fewer messages."""
    retries: int = 2
    """How often a failed group is generated again before it is dropped."""
    skip_uniform: bool = False
    """Drop a group whose rewards are all equal (a group baseline learns nothing from it) and admit another in its place."""
    max_skips: int = 4
    """With `skip_uniform`: at most this many times `groups` are dropped per step; after that uniform groups are trained on."""
    eval_every: int = 10
    """Held-out evaluation every so many steps, on spare slots; 0 evaluates before and after only."""
    eval_prompts: int = 64
    """Problems of an evaluation during the run."""
    final_eval_prompts: int = 256
    """Problems of the evaluations before and after the run."""
    checkpoint_every: int = 0
    """Checkpoint every so many steps; 0 checkpoints at the end and on interruption only."""
    call_deadline: float = 600.0
    """Seconds that any one call of an executor may take."""
    sample_every: int = 1
    """Record one trajectory of every so many groups."""


class PromptStream:
    """Prompts without end: epoch after epoch, each a permutation of its own that the seed fixes. Positions before 0 are valid
    too, and are a stream of their own (the warm start draws from there)."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._prompts, self._seed = prompts, seed
        self._epoch: int | None = None
        self._order: list[int] = []

    def at(self, position: int) -> Prompt:
        epoch, offset = divmod(position, len(self._prompts))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self._prompts)))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
        return self._prompts[self._order[offset]]


def check(config: ControllerConfig, num_prompts: int) -> None:
    """Raises `ConfigError` or `DataError` for a combination that cannot work."""
    if num_prompts == 0:
        raise DataError(
            "the training set is empty",
            given="0 prompts",
            expected="at least one prompt",
            todo="check the task's dataset and its filters",
        )
    for name, value in (
        ("steps", config.steps),
        ("groups", config.groups),
        ("group_size", config.group_size),
        ("window", config.window),
        ("stream", config.stream),
        ("decode_steps", config.decode_steps),
    ):
        if value < 1:
            raise ConfigError(
                f"control.{name} is too small", given=value, expected="at least 1", todo=f"raise --control.{name}"
            )
    if config.stream > config.groups:
        raise ConfigError(
            "control.stream is larger than a step",
            given=f"stream {config.stream}, groups {config.groups}",
            expected="stream <= groups",
            todo="lower --control.stream",
        )


def stream_seed(*parts: int) -> int:
    """A 63-bit seed fixed by `parts`, independent of Python's own hashing."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
