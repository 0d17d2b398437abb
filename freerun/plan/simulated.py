"""Executors without models, whose calls take stated times: schedules can be tested, and planned, in milliseconds.

They have the methods of the real ones, so the controller cannot tell. Under the placement's schedule `virtual`, with a
`VirtualClock` for the executors and its `taken` as the placement's `duration`, nobody sleeps and every run is the same; with a
`WallClock` they really take the time, under any placement.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from freerun.actors.engine import Finished
from freerun.actors.generator import GeneratorReport
from freerun.trainer.batch import check_group
from freerun.trainer.trainer import AccumulateReport, StepReport
from freerun.types import (
    Group,
    Max,
    Mean,
    Metric,
    Request,
    RewardRequest,
    RewardResult,
    Stop,
    Sum,
    Trajectory,
    WeightsRef,
)

# --- time -------------------------------------------------------------------------------------------------------------------


class Distribution(Protocol):
    """Draws one number, of seconds or of tokens."""

    def draw(self, source: random.Random) -> float: ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Always `value`."""

    value: float

    def draw(self, source: random.Random) -> float:
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform:
    """Anything between `low` and `high`."""

    low: float
    high: float

    def draw(self, source: random.Random) -> float:
        return source.uniform(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Half the draws lie below `median`; `sigma` is the standard deviation of the logarithm. Response lengths look like this:
    at 1.0 one in twenty is five times the median."""

    median: float
    sigma: float

    def draw(self, source: random.Random) -> float:
        return self.median * source.lognormvariate(0.0, self.sigma)


class Clock(Protocol):
    """How a simulated executor takes time."""

    def spend(self, seconds: float) -> None: ...

    async def spend_async(self, seconds: float) -> None:
        """As `spend`, letting other async calls of the executor overlap."""
        ...


class WallClock:
    """Real seconds."""

    def spend(self, seconds: float) -> None:
        time.sleep(seconds)

    async def spend_async(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class VirtualClock:
    """Adds up what the call in hand has spent. One for all executors of a placement: their calls run one at a time."""

    def __init__(self) -> None:
        self._spent = 0.0

    def spend(self, seconds: float) -> None:
        self._spent += seconds

    async def spend_async(self, seconds: float) -> None:
        self._spent += seconds

    def taken(self, executor: str, method: str) -> float:
        """The seconds of the call that has just run; give this to `InlinePlacement` as `duration`."""
        spent, self._spent = self._spent, 0.0
        return spent


# --- executors --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorTimes:
    """What generating costs."""

    length: Distribution = LogNormal(64, 0.5)
    """Tokens of a response, at least one and at most what the request allows."""
    slots: int = 64
    """Responses decoded at the same time."""
    step: float = 0.02
    """Seconds of a decode step, whatever it holds."""
    per_response: float = 0.001
    """Seconds that each running response adds to a decode step."""
    prefill: float = 0.01
    """Seconds of one prompt's prefill."""
    swap: float = 0.1
    """Seconds of adopting a version."""


@dataclass(slots=True)
class _Response:
    request: Request
    sample: int
    length: int
    versions: list[int] = field(default_factory=list)


class SimulatedGenerator:
    """Continuous batching as `GeneratorExecutor` does it, with keys and values kept at a swap, without the model."""

    def __init__(self, times: GeneratorTimes, clock: Clock) -> None:
        self._times, self._clock = times, clock
        self._version = 0
        self._adopted = -1
        self._waiting: deque[_Response] = deque()
        self._running: list[_Response] = []

    def advance(self, requests: Sequence[Request], ref: WeightsRef | None, steps: int) -> GeneratorReport:
        times, swap = self._times, 0.0
        if ref is not None and ref.version > self._adopted:
            self._version = self._adopted = ref.version
            swap = times.swap
        seconds = swap + times.prefill * len(requests)
        for request in requests:
            self._waiting.extend(_Response(request, i, self._length(request, i)) for i in range(request.num_samples))
        tokens, finished = 0, []
        for _ in range(steps):
            while self._waiting and len(self._running) < times.slots:
                self._running.append(self._waiting.popleft())
            if not self._running:
                break
            seconds += times.step + times.per_response * len(self._running)
            tokens += len(self._running)
            for response in self._running:
                response.versions.append(self._version)
            finished += [_finished(r) for r in self._running if len(r.versions) == r.length]
            self._running = [r for r in self._running if len(r.versions) < r.length]
        self._clock.spend(seconds)
        return GeneratorReport(
            finished=tuple(finished),
            version=self._version,
            running=len(self._running),
            waiting=len(self._waiting),
            tokens=tokens,
            prefill_tokens=len(requests),
            seconds=seconds,
            swap_seconds=swap,
        )

    def _length(self, request: Request, sample: int) -> int:
        drawn = round(self._times.length.draw(random.Random(f"{request.seed}/{sample}")))
        return min(max(drawn, 1), request.sampling.max_tokens)

    def close(self) -> None:
        """Nothing to free."""


def _finished(response: _Response) -> Finished:
    """A one-token prompt and `length` zeros, with the versions that would have made them."""
    length = response.length
    trajectory = Trajectory(
        tokens_T=torch.zeros(1 + length, dtype=torch.int64),
        action_T=torch.tensor([False] + [True] * length),
        logp_T=torch.zeros(1 + length),
        version_T=torch.tensor([-1, *response.versions], dtype=torch.int32),
        text=f"{response.request.seed}/{response.sample}",
        stop=Stop.EOS,
    )
    return Finished(response.request.item, response.sample, trajectory)


class SimulatedRewarder:
    """Scores all responses of a call side by side, each taking `seconds`; rewards are 0 or 1, fixed by prompt and response."""

    def __init__(self, seconds: Distribution, clock: Clock, seed: int = 0) -> None:
        self._seconds, self._clock, self._random = seconds, clock, random.Random(seed)

    async def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        await self._clock.spend_async(max(self._seconds.draw(self._random) for _ in requests))
        return [RewardResult(float(random.Random(r.prompt.uid + r.completion).randrange(2))) for r in requests]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerTimes:
    """What training costs."""

    per_token: float = 0.0005
    """Seconds of forward and backward per token."""
    update: float = 0.2
    """Seconds of an optimiser step."""
    publish: float = 0.1
    """Seconds of a publication."""


class SimulatedTrainer:
    """Counts versions and measures lags. Raises `StaleItem` for a group older than `max_lag`; None accepts any."""

    def __init__(self, times: TrainerTimes, clock: Clock, max_lag: int | None = None) -> None:
        self._times, self._clock, self._max_lag = times, clock, max_lag
        self._version = 0
        self._lags: list[int] = []
        self._tokens = 0

    def start(self) -> WeightsRef:
        self._clock.spend(self._times.publish)
        return self._ref()

    def accumulate(self, groups: Sequence[Group]) -> AccumulateReport:
        for group in groups:
            check_group(group, version=self._version, max_lag=self._max_lag)
            self._lags.append(self._version - group.oldest_version)
        tokens = sum(len(t.tokens_T) for group in groups for t in group.trajectories)
        self._tokens += tokens
        self._clock.spend(self._times.per_token * tokens)
        return AccumulateReport(len(self._lags), 0)

    def finish_step(self, keep: Iterable[int] = ()) -> StepReport:
        self._clock.spend(self._times.update + self._times.publish)
        self._version += 1
        metrics: dict[str, Metric] = {
            "tokens/trained": Sum(float(self._tokens)),
            "lag/mean": Mean(float(sum(self._lags)), float(len(self._lags))),
            "lag/max": Max(max(self._lags, default=0)),
        }
        self._lags, self._tokens = [], 0
        return StepReport(self._version, self._ref(), metrics, {"update": self._times.update, "publish": self._times.publish})

    def _ref(self) -> WeightsRef:
        return WeightsRef(version=self._version, transport="simulated", address=None, manifest={}, num_bytes=0)

    def save(self, directory: str) -> None:
        """Nothing to save."""

    def close(self) -> None:
        """Nothing to free."""
