"""How long a run is, how much a step holds, how asynchronous it may be; and the endless order of its data."""

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Generic, TypeVar

from freerun.errors import ConfigError

T = TypeVar("T")

FULL, QUICK = "heldout", "heldout-quick"
"""Names of the evaluations before and after the run, and of the smaller ones during it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """How long, how much per step, and how asynchronous. Raises `ConfigError` for numbers that cannot work."""

    steps: int = 100
    """Optimiser steps of the run."""
    groups: int = 8
    """Groups (prompts) per step."""
    group_size: int = 8
    """Responses per prompt."""
    max_lag: int = 1
    """Target lag: 0 is synchronous, 1 is one-step off-policy. Capacity is (max_lag + 1) * groups slots."""
    publish_every: int = 1
    """Generators are given every so many-th version only, as where weights travel slowly; at most max_lag + 1. With exactly
    that many, data are made in rounds: all by one version, trained on at lags 0 to max_lag."""
    window: int = 1
    """How far behind the oldest active item the batcher may take a finished group; 1 is strict first in, first out."""
    stream: int = 1
    """Start a micro-batch as soon as this many groups are ready; a value of `groups` waits for the whole step."""
    decode_steps: int = 16
    """Decode steps per call of a generator: smaller reacts faster, larger costs fewer messages."""
    retries: int = 2
    """How often a failed group is generated again before it is dropped."""
    executor_restarts: int = 3
    """How often a generator or the rewarder that died is started anew before the run ends."""
    experts: int = 0
    """Expert demonstrations added to each step."""
    replay: int = 0
    """Groups of earlier steps that each step trains on once more, as far as there are any young enough."""
    replay_age: int = 2
    """How many versions old a replayed group may be."""
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
    """Seconds that any one call of an executor may take, after which the run ends and says which one did not answer."""
    stall_deadline: float = 60.0
    """Seconds without any call, after which the run ends and says who waits for whom."""
    sample_every: int = 1
    """Record one trajectory of every so many groups."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("steps", "groups", "group_size", "window", "publish_every", "stream"), 1)
        least |= dict.fromkeys(("decode_steps", "sample_every"), 1)
        least |= dict.fromkeys(("max_lag", "experts", "replay", "replay_age", "retries", "executor_restarts", "max_skips"), 0)
        least |= dict.fromkeys(("eval_every", "eval_prompts", "final_eval_prompts", "checkpoint_every"), 0)
        values = asdict(self)
        for name, limit in least.items():
            if (value := values[name]) < limit:
                raise ConfigError(
                    f"control.{name} is too small", given=value, expected=f"at least {limit}", todo=f"raise --control.{name}"
                )
        if not (self.call_deadline > 0 and self.stall_deadline > 0):
            raise ConfigError(
                "nobody can answer within no time",
                given=f"call_deadline {self.call_deadline}, stall_deadline {self.stall_deadline}",
                expected="control.call_deadline and control.stall_deadline above 0",
                todo="raise it",
            )
        if self.publish_every > self.max_lag + 1:
            raise ConfigError(
                "the run would wait for itself: no slot becomes free before the next version is published",
                given=f"publish_every {self.publish_every}, max_lag {self.max_lag}",
                expected="publish_every <= max_lag + 1",
                todo="raise --control.max-lag, or lower --control.publish-every",
            )
        if self.stream > self.groups:
            raise ConfigError(
                "control.stream is larger than a step",
                given=f"stream {self.stream}, groups {self.groups}",
                expected="stream <= groups",
                todo="lower --control.stream",
            )


class Stream(Generic[T]):
    """A data set without end: epoch after epoch, each a permutation of its own that the seed fixes; or, with `weights`, draws
    in proportion to them, each fixed by the seed and its position. Positions before 0 are valid too, and are a stream of their
    own (the warm start draws from there)."""

    def __init__(self, data: Sequence[T], seed: int, weights: Sequence[float] = ()) -> None:
        self._data, self._seed = data, seed
        self._cumulative = list(itertools.accumulate(weights))
        self._epoch: int | None = None
        self._order: list[int] = []

    def at(self, position: int) -> T:
        """The datum at `position`. Looking back across an epoch's end costs a shuffle."""
        if self._cumulative:
            return random.Random(f"{self._seed}/{position}").choices(self._data, cum_weights=self._cumulative)[0]
        epoch, offset = divmod(position, len(self._data))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self._data)))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
        return self._data[self._order[offset]]


def stream_seed(*parts: int) -> int:
    """A 63-bit seed fixed by `parts`, independent of Python's own hashing."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
