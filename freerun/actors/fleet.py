"""Environments side by side: stepped together, each episode from a seed of its own; one that raises or hangs is replaced.

An episode follows from its seed and its actions, so that is what a checkpoint keeps of one that is under way: going on replays
it. What an environment does besides (time, files, chance of its own) is noticed then, and the episode is given up.

Shapes: N environments, K of them that are asked.
"""

import hashlib
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from queue import SimpleQueue
from typing import Any

import numpy as np

from freerun.actors.environment import ActorConfig, Environment, Step
from freerun.errors import AllFailed, DataError
from freerun.transitions import Episode
from freerun.types import Failure, FailureKind

Outcome = Any
"""What became of one call on one environment: what it returned, which may be anything, or a `Failure`."""


NOT_FINITE = ("an observation that is not finite", "finite numbers")


@dataclass(slots=True)
class Slot:
    """One place for an environment, and its episode under way."""

    env: Environment
    number: int = -1
    steps: int = 0
    total: float = 0.0
    failures: int = 0
    actions: list[np.ndarray] = field(default_factory=list)


@dataclass(slots=True)
class Happened:
    """What a call of `step` did, for the environments that were asked: arrays of their steps, the number and the place of each
    in its episode, episodes that ended. `undone` are environments whose step did not happen; its arrays hold nothing there."""

    next_obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    number: np.ndarray
    step: np.ndarray
    ended: list[tuple[int, Episode]] = field(default_factory=list)
    undone: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Fleet:
    """`num` environments. `obs` [N, ...] is what each sees now; `reset` must be called first.

    `seed_of(env, number)` is the seed of an episode. Raises `AllFailed` when one place has failed more often in a row than
    `config.retries` allows, and `DataError` when an environment returns what is no observation, no reward or no step.
    """

    def __init__(
        self, make: Callable[[], Environment], num: int, config: ActorConfig, seed_of: Callable[[int, int], int]
    ) -> None:
        self._make, self._config, self._seed_of = make, config, seed_of
        self.slots = [Slot(make()) for _ in range(num)]
        self.spaces = self.slots[0].env.spaces
        dtype = np.uint8 if self.spaces.pixels else np.float32
        self.obs = np.zeros((num, *self.spaces.obs), dtype=dtype)
        self._delays = random.Random(seed_of(0, 0))
        threaded = config.workers > 1 or config.deadline > 0
        self._workers = [_Worker() for _ in range(min(config.workers, num))] if threaded else []

    def restart(self, seed_of: Callable[[int, int], int]) -> None:
        """From the next `reset` on, count episodes from 0 and take their seeds from here."""
        self._seed_of = seed_of
        for slot in self.slots:
            slot.number = -1

    def reset(self) -> list[Failure]:
        """Begin a new episode everywhere; what failed on the way."""
        return self._begin(range(len(self.slots)))

    def step(self, actions_K: np.ndarray, asked: Sequence[int] | None = None) -> Happened:
        """One step of each environment, or of those in `asked`, and a reset where an episode ended. An environment that fails
        is replaced and has begun a new episode: its step did not happen."""
        asked = range(len(self.slots)) if asked is None else asked
        num = len(asked)
        happened = Happened(
            next_obs=np.zeros((num, *self.obs.shape[1:]), dtype=self.obs.dtype),
            reward=np.zeros(num, dtype=np.float32),
            terminated=np.zeros(num, dtype=bool),
            truncated=np.zeros(num, dtype=bool),
            number=np.array([self.slots[i].number for i in asked]),
            step=np.array([self.slots[i].steps for i in asked], dtype=np.int32),
        )
        calls = {i: _bound(self.slots[i].env.step, actions_K[k]) for k, i in enumerate(asked)}
        outcomes = self._run(calls, self._delay if self._config.delay_median else None)
        over = []
        for k, i in enumerate(asked):
            outcome = outcomes[i]
            if isinstance(outcome, Failure):
                happened.undone.append(i)
                happened.failures.append(outcome)
                self._replace(i, outcome)
                over.append(i)
            elif self._took(k, i, actions_K[k], self._checked(i, outcome), happened):
                over.append(i)
        # All of them at once: an environment's step may take no longer than a look at one observation.
        if not _finite(happened.next_obs):
            k = next(k for k, obs in enumerate(happened.next_obs) if not _finite(obs))
            raise self._garbage(asked[k], *NOT_FINITE, steps=int(happened.step[k]))
        if over:
            happened.failures += self._begin(over)
        return happened

    def _took(self, k: int, i: int, action: np.ndarray, step: Step, happened: Happened) -> bool:
        """Write down one step; whether its episode is over."""
        slot = self.slots[i]
        slot.failures = 0
        slot.steps += 1
        slot.total += step.reward
        slot.actions.append(action)
        happened.next_obs[k], happened.reward[k] = step.obs, step.reward
        happened.terminated[k], happened.truncated[k] = step.terminated, step.truncated
        if step.terminated or step.truncated:
            happened.ended.append((i, Episode(slot.total, slot.steps, step.terminated)))
            return True
        self.obs[i] = step.obs
        return False

    def _checked(self, i: int, returned: Any) -> Step:
        """What a step returned. Raises `DataError` for anything but a step that can be trained on: an environment that returns
        that is wrong, not unlucky."""
        if not isinstance(returned, Step):
            raise self._garbage(i, f"a {type(returned).__name__}", "a Step")
        self._check_obs(i, returned.obs)
        if not isinstance(returned.reward, Real) or not math.isfinite(returned.reward):
            raise self._garbage(i, f"{returned.reward!r:.100} as reward", "a finite number")
        return returned

    def _check_obs(self, i: int, obs: Any) -> None:
        shape, dtype = self.obs.shape[1:], self.obs.dtype
        fits = isinstance(obs, np.ndarray) and obs.shape == shape
        if not fits or not (obs.dtype == dtype or np.can_cast(obs.dtype, dtype, "same_kind")):
            kind = f"{obs.dtype} of shape {obs.shape}" if isinstance(obs, np.ndarray) else f"a {type(obs).__name__}"
            raise self._garbage(i, f"{kind} as observation", f"{dtype} of shape {shape}, as its spaces say")

    def _garbage(self, i: int, given: str, expected: str, *, steps: int | None = None) -> DataError:
        slot = self.slots[i]
        steps = slot.steps if steps is None else steps
        return DataError(
            f"environment {i} returned what cannot be trained on",
            given=f"{given}, in the episode of seed {self._seed_of(i, slot.number)} after {steps} steps",
            expected=expected,
            todo="mend the environment; if it cannot tell, let it raise, and the episode counts as failed",
        )

    def _begin(self, indices: Sequence[int]) -> list[Failure]:
        """Begin new episodes, again and again where that fails."""
        failures: list[Failure] = []
        left = list(indices)
        while left:
            for i in left:
                slot = self.slots[i]
                slot.number, slot.steps, slot.total, slot.actions = slot.number + 1, 0, 0.0, []
            outcomes = self._run({i: _bound(self.slots[i].env.reset, self._seed_of(i, self.slots[i].number)) for i in left})
            again = []
            for i, outcome in outcomes.items():
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                    self._replace(i, outcome)
                    again.append(i)
                else:
                    self._check_obs(i, outcome)
                    if not _finite(outcome):
                        raise self._garbage(i, *NOT_FINITE)
                    self.obs[i] = outcome
            left = again
        return failures

    def _replace(self, i: int, failure: Failure) -> None:
        slot = self.slots[i]
        slot.failures += 1
        if slot.failures > self._config.retries:
            raise AllFailed(
                f"environment {i} failed {slot.failures} times in a row",
                given=f"last failure: {failure.kind} in {failure.where}: {failure.message}",
                expected=f"a step after at most {self._config.retries} failures",
                todo="mend the environment, or raise actor.retries if it is only unlucky",
            )
        if failure.kind is not FailureKind.TIMEOUT:
            self._close(slot.env)
        slot.env = self._make()

    def _delay(self) -> float:
        return self._delays.lognormvariate(math.log(self._config.delay_median), self._config.delay_sigma)

    # --- calls ---------------------------------------------------------------------------------------------------------------

    def _run(self, calls: Mapping[int, Callable[[], Any]], delay: Callable[[], float] | None = None) -> dict[int, Outcome]:
        """Make one call on each of several environments."""
        delays = {i: delay() for i in calls} if delay else {}
        jobs = [(i, _delayed(call, delays[i]) if i in delays else call) for i, call in calls.items()]
        if not self._workers:
            return {i: _attempt(i, call) for i, call in jobs}
        parts = [jobs[w :: len(self._workers)] for w in range(len(self._workers))]
        for worker, part in zip(self._workers, parts, strict=True):
            worker.give(part)
        outcomes: dict[int, Outcome] = {}
        for w, part in enumerate(parts):
            outcomes |= self._await(w, part)
        return outcomes

    def _await(self, w: int, part: list[tuple[int, Callable[[], Any]]]) -> dict[int, Outcome]:
        """What worker `w` made of its part. A call that makes no progress for the deadline is abandoned with its thread."""
        outcomes: dict[int, Outcome] = {}
        while True:
            worker = self._workers[w]
            before = len(worker.outcomes)
            if worker.done.wait(self._config.deadline or None):
                return outcomes | worker.outcomes
            finished = worker.abandon(unless_beyond=before)
            if finished is None:
                continue
            hung, *rest = [job for job in part if job[0] not in finished]
            message = f"no answer within {self._config.deadline:g} s"
            outcomes |= finished | {hung[0]: Failure(FailureKind.TIMEOUT, f"environment {hung[0]}", message)}
            self._workers[w], part = _Worker(), rest
            self._workers[w].give(rest)

    def _close(self, env: Environment) -> None:
        """Close an environment that has failed; that it fails at that too is no news."""
        _attempt(-1, env.close)

    def close(self) -> None:
        """Close all environments, and end the threads but for those that hang."""
        for worker in self._workers:
            worker.retire()
        for slot in self.slots:
            slot.env.close()

    # --- checkpoints ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The episodes under way, as seeds and actions; JSON-able."""
        return {
            "slots": [{"number": s.number, "actions": np.array(s.actions).tolist(), "total": s.total} for s in self.slots],
            "obs": self.obs.tolist(),
            "delays": self._delays.getstate(),
        }

    def load(self, state: Mapping[str, Any]) -> list[Failure]:
        """Undo `state` by playing the episodes again. An environment that then sees something else begins a new one: these are
        listed as failures."""
        version, internal, gauss = state["delays"]
        self._delays.setstate((version, tuple(internal), gauss))
        kind = np.int64 if self.spaces.discrete else np.float32
        failures: list[Failure] = []
        for i, (slot, saved) in enumerate(zip(self.slots, state["slots"], strict=True)):
            slot.number, slot.steps, slot.total = int(saved["number"]), len(saved["actions"]), float(saved["total"])
            slot.actions = [np.array(action, kind) for action in saved["actions"]]
            seen: Any = _attempt(i, _bound(slot.env.reset, self._seed_of(i, slot.number)))
            for action in slot.actions:
                if isinstance(seen, Failure):
                    break
                seen = _attempt(i, _bound(slot.env.step, action))
            obs = seen.obs if isinstance(seen, Step) else seen
            if isinstance(seen, Failure) or not np.array_equal(obs, np.array(state["obs"][i], self.obs.dtype)):
                why = seen.message if isinstance(seen, Failure) else "it saw something else when its episode was played again"
                failures += [Failure(FailureKind.ENVIRONMENT, f"environment {i}", why), *self._begin([i])]
            else:
                self.obs[i] = obs
        return failures


class _Worker:
    """A thread that makes calls one after another. A daemon, because a call that hangs must not keep the process alive."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.done = threading.Event()
        self._lock, self._abandoned = threading.Lock(), False
        self._jobs: SimpleQueue[list[tuple[int, Callable[[], Any]]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="environment", daemon=True).start()

    def give(self, jobs: list[tuple[int, Callable[[], Any]]]) -> None:
        self.outcomes = {}
        self.done.clear()
        self._jobs.put(jobs)

    def retire(self) -> None:
        """End the thread once its present call, if it is in one, has returned."""
        self._jobs.put(None)

    def abandon(self, *, unless_beyond: int) -> dict[int, Outcome] | None:
        """Make this worker begin no further call, unless it has more than so many outcomes or is done; what it has. The call in
        which it hangs may return some day: those after it are somebody else's by then."""
        with self._lock:
            if len(self.outcomes) > unless_beyond or self.done.is_set():
                return None
            self._abandoned = True
            return dict(self.outcomes)

    def _work(self) -> None:
        while (jobs := self._jobs.get()) is not None:
            for i, call in jobs:
                outcome = _attempt(i, call)
                with self._lock:
                    if self._abandoned:
                        return
                    self.outcomes[i] = outcome
            self.done.set()


def _finite(obs: np.ndarray) -> bool:
    return obs.dtype.kind != "f" or bool(np.isfinite(obs).all())


def _attempt(i: int, call: Callable[[], Any]) -> Any:
    """What `call` returns, or that it failed: an environment is anybody's code and may raise anything. What it says is cut,
    because it ends in the records."""
    try:
        return call()
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        return Failure(FailureKind.ENVIRONMENT, f"environment {i}", f"{type(error).__name__}: {error!s:.1000}")


def _bound(method: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
    return lambda: method(argument)


def _delayed(call: Callable[[], Any], seconds: float) -> Callable[[], Any]:
    def slow() -> Any:
        time.sleep(seconds)
        return call()

    return slow


def seed_from(*parts: object) -> int:
    """A 31-bit seed fixed by `parts`."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 33
