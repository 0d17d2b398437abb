"""Runs a reward function for many responses at once, with a limit, a deadline, retries, and failures that are data.

The function is anyone's: it may be slow, raise, hang, or return nonsense. What becomes of each:

| it           | becomes                                                                                                   |
|--------------|-----------------------------------------------------------------------------------------------------------|
| raises       | called again up to `retries` times, then `Failure(VERIFIER)` for that response                            |
| is too slow  | the call is abandoned and made again up to `retries` times, then `Failure(TIMEOUT)` for that response     |
| hangs often  | `RewardError` once more than `max_hung` abandoned calls are still running                                 |
| returns NaN, infinity or no number | `RewardError` at once: such a function is wrong, not unlucky, and training on must stop |
"""

import asyncio
import inspect
import math
import queue
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Protocol

from freerun.errors import ConfigError, RewardError
from freerun.types import Failure, FailureKind, Prompt, RewardRequest, RewardResult

RewardFunction = Callable[[str, str, Mapping[str, Any]], Any]
"""`(prompt, completion, meta) -> float | RewardResult`, sync or async. `prompt` is the raw text, or the last turn of a chat;
`completion` is the response without special tokens; `meta` is the prompt's own. A sync function runs in threads, several at a
time; an async one runs on the executor's event loop, which it must not block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """How rewards are computed."""

    concurrency: int = 16
    """Calls that run at the same time."""
    threads: bool = True
    """Call a sync function in threads, so that slow calls overlap and hanging ones are given up. Off, it is called on the
    executor's own thread, without a deadline: for functions that take less time than the way to a thread and back."""
    deadline: float = 30.0
    """Seconds that one call may take."""
    retries: int = 1
    """How often a call that raised or was too slow is made again."""
    max_hung: int = 32
    """Abandoned calls that may still be running in threads before the run is stopped."""
    delay_median: float = 0.0
    """For benchmarks: median seconds of a simulated lognormal delay before each call, which occupies one of `concurrency`; 0 is
    off."""
    delay_sigma: float = 1.0
    """Standard deviation of the logarithm of the delay."""
    delay_seed: int = 0
    """Seed of the delays."""

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.deadline <= 0 or self.retries < 0 or self.max_hung < 0 or self.delay_median < 0:
            raise ConfigError(
                "the reward pool cannot work with these limits",
                given=f"concurrency {self.concurrency}, deadline {self.deadline}, retries {self.retries}, "
                f"max_hung {self.max_hung}, delay_median {self.delay_median}",
                expected="concurrency at least 1, deadline above 0, the others at least 0",
                todo="correct the section reward",
            )


class Scoring(Protocol):
    """Anything that has a reward function, such as a task."""

    @property
    def reward(self) -> RewardFunction: ...


class ScoringConfig(Protocol):
    """A frozen, picklable description from which the rewarder builds the function where it lives."""

    def build(self) -> Scoring: ...


class RewarderExecutor:
    """The executor that scores responses."""

    def __init__(self, task: ScoringConfig, config: RewardConfig) -> None:
        self._pool = RewardPool(task.build().reward, config)

    async def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult | Failure]:
        """As `RewardPool.score`."""
        return await self._pool.score(requests)

    async def close(self) -> None:
        """As `RewardPool.close`."""
        await self._pool.close()


class RewardPool:
    """Calls one reward function. Lives on one event loop."""

    def __init__(self, function: RewardFunction, config: RewardConfig) -> None:
        self.name = function_name(function)
        self._function, self._config = function, config
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        self._at_once = not (self._is_async or config.threads or config.delay_median)
        self._permits = asyncio.Semaphore(config.concurrency)
        self._idle: list[_Worker] = []
        self._abandoned: set[asyncio.Future] = set()
        self._delays = random.Random(config.delay_seed)

    @property
    def num_hung(self) -> int:
        """Calls that passed their deadline and are still running."""
        return len(self._abandoned)

    async def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult | Failure]:
        """One outcome per request, in their order. Calls may overlap, and share the limit.

        Raises `RewardError` if the function returned something that is no reward, or if too many of its calls hang; calls that
        have not begun are then dropped.
        """
        if self._at_once:
            return [self._score_here(request) for request in requests]
        tasks = [asyncio.ensure_future(self._score_one(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Ends every thread and task of the pool, except threads inside a call that never returns: those are daemons, which end
        with the process."""
        for worker in self._idle:
            worker.retire()
        self._idle.clear()
        for call in self._abandoned:
            call.cancel()
        await asyncio.sleep(0)  # Lets cancelled coroutines end while the loop still runs.

    async def _score_one(self, request: RewardRequest) -> RewardResult | Failure:
        async with self._permits:
            if self._config.delay_median:
                await asyncio.sleep(self._delays.lognormvariate(math.log(self._config.delay_median), self._config.delay_sigma))
            for attempt in range(1, self._config.retries + 2):
                outcome = await self._attempt(request, attempt)
                if isinstance(outcome, RewardResult):
                    break
            return outcome

    def _score_here(self, request: RewardRequest) -> RewardResult | Failure:
        for attempt in range(1, self._config.retries + 2):
            call: Future = Future()
            _answer(call, self._function, _arguments(request))
            outcome = self._outcome(call, request, attempt)
            if isinstance(outcome, RewardResult):
                break
        return outcome

    async def _attempt(self, request: RewardRequest, attempt: int) -> RewardResult | Failure:
        arguments = _arguments(request)
        worker = None if self._is_async else self._idle.pop() if self._idle else _Worker(self._function)
        call = asyncio.ensure_future(self._function(*arguments) if worker is None else worker.call(*arguments))
        call.add_done_callback(self._ended)
        try:
            await asyncio.wait({call}, timeout=self._config.deadline)
        finally:
            in_time = call.done()
            if not in_time:
                self._abandon(call, worker)
            elif worker is not None:
                self._idle.append(worker)
        if not in_time:
            self._check_hung()
            reason = f"no answer within {self._config.deadline:g} s"
            return Failure(FailureKind.TIMEOUT, self.name, reason, attempt)
        return self._outcome(call, request, attempt)

    def _outcome(self, call: asyncio.Future | Future, request: RewardRequest, attempt: int) -> RewardResult | Failure:
        """What a call that has ended becomes. What an error says is cut, because it ends in the records."""
        error = call.exception()
        if isinstance(error, RewardError):
            raise error
        if error is not None:
            return Failure(FailureKind.VERIFIER, self.name, f"{type(error).__name__}: {error!s:.1000}", attempt)
        return checked(call.result(), self.name, request)

    def _abandon(self, call: asyncio.Future, worker: "_Worker | None") -> None:
        """Nobody waits for `call` any more; it counts as hung until it ends."""
        self._abandoned.add(call)
        if worker is None:
            call.cancel()
        else:
            worker.retire()

    def _ended(self, call: asyncio.Future) -> None:
        self._abandoned.discard(call)
        if not call.cancelled():
            call.exception()  # Read, so that asyncio does not report it as forgotten when the call was abandoned.

    def _check_hung(self) -> None:
        if self.num_hung > self._config.max_hung:
            raise RewardError(
                f"reward function {self.name} hangs",
                given=f"{self.num_hung} calls that passed their deadline of {self._config.deadline:g} s are still running",
                expected=f"at most {self._config.max_hung}",
                todo="give the function a timeout of its own, or raise reward.deadline if it is only slow",
            )


class _Worker:
    """A thread that makes one call at a time. A daemon, because a call that hangs must not keep the process alive."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function
        self._jobs: queue.SimpleQueue[tuple[Future, tuple] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="reward", daemon=True).start()

    def call(self, *arguments: Any) -> asyncio.Future:
        future: Future = Future()
        self._jobs.put((future, arguments))
        return asyncio.wrap_future(future)

    def retire(self) -> None:
        """End the thread once its present call, if it is in one, has returned."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, arguments = job
            if future.set_running_or_notify_cancel():
                _answer(future, self._function, arguments)


def _answer(future: Future, function: RewardFunction, arguments: tuple) -> None:
    """Call `function` and let `future` hold what comes of it."""
    try:
        future.set_result(function(*arguments))
    except StopIteration as error:
        # A future cannot hold it: the call would seem to hang.
        future.set_exception(RuntimeError(f"StopIteration: {error}"))
    except BaseException as error:
        future.set_exception(error)


def _arguments(request: RewardRequest) -> tuple[str, str, Mapping[str, Any]]:
    """What a reward function is called with."""
    return prompt_text(request.prompt), request.completion, request.prompt.meta


def prompt_text(prompt: Prompt) -> str:
    """What a reward function sees of a prompt: the raw text, or the last turn of a chat."""
    return prompt.content if isinstance(prompt.content, str) else prompt.content[-1].content


def function_name(function: RewardFunction) -> str:
    """Module and name of a function, a partial of one, a bound method or a callable object."""
    while isinstance(function, partial):
        function = function.func
    named = function if inspect.isroutine(function) else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def checked(returned: Any, name: str, request: RewardRequest) -> RewardResult:
    """`returned` as a `RewardResult`. Any real number will do, `bool` included. Raises `RewardError` naming the function, the
    problem and what came back."""
    result = returned if isinstance(returned, RewardResult) else RewardResult(returned)
    values = {"the reward": result.value, **{f"part '{k}'": v for k, v in result.parts.items()}}
    for what, value in values.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise RewardError(
                f"reward function {name} returned {what} as {_described(value)} for prompt '{request.prompt.uid}'",
                given=f"{returned!r:.300} for the completion {request.completion!r:.300}",
                expected="a finite number, or a RewardResult of finite numbers",
                todo="correct the function; if it cannot tell, let it raise, and the response counts as failed",
            )
    return RewardResult(float(result.value), {k: float(v) for k, v in result.parts.items()}, result.info)


def _described(value: Any) -> str:
    return str(float(value)) if isinstance(value, Real) else f"a {type(value).__name__}"
