"""Executors of a few lines, and a sink that keeps everything: what the controller and its intake are tested on."""

from dataclasses import dataclass, field

import torch

from freerun.actors.engine import Finished
from freerun.errors import RewardError
from freerun.metrics import EvalRecord, Event, SampleRecord, Status, StepRecord
from freerun.schedule import ControllerConfig
from freerun.types import Failure, FailureKind, Prompt, RewardResult, Stop, Sum, Trajectory, WeightsRef

PROMPTS = [Prompt(f"p{i}", f"{i}", {"answer": str(i)}) for i in range(20)]


def ref(version: int) -> WeightsRef:
    return WeightsRef(version=version, transport="fake", address=None, manifest={}, num_bytes=0)


@dataclass
class Report:
    version: int = 0
    ref: WeightsRef | None = None
    metrics: dict = field(default_factory=lambda: {"tokens/trained": Sum(1.0)})
    finished: tuple = ()
    running: int = 0
    waiting: int = 0
    tokens: int = 1
    prefill_tokens: int = 1
    seconds: float = 0.0
    swap_seconds: float = 0.0


class Generator:
    """Answers every sample after `delay` calls, with the version it held when it began."""

    def __init__(self, fails: int = 0) -> None:
        self.work, self.version, self.fails = [], 0, fails

    def advance(self, requests, ref, steps):
        self.version = ref.version
        self.work += [(r, s, self.version) for r in requests for s in range(r.num_samples)]
        done, self.work = self.work[:6], self.work[6:]
        return Report(version=self.version, finished=tuple(Finished(r.item, s, self.answer(v)) for r, s, v in done))

    def answer(self, version):
        if self.fails:
            self.fails -= 1
            return Failure(FailureKind.MODEL, "generator", "made to fail")
        one = torch.ones(1)
        return Trajectory(
            tokens_T=one.long(), action_T=one.bool(), logp_T=-one, version_T=one.int() * version, text="1", stop=Stop.EOS
        )


class Rewarder:
    def __init__(self, value=None) -> None:
        self.value = value

    async def score(self, requests):
        if self.value == "nan":
            raise RewardError("reward is not finite", given="nan", expected="a finite number", todo="mend the function 'f'")
        return [
            RewardResult(float(len(r.completion) + hash(r.prompt.uid) % 3 if self.value is None else self.value))
            for r in requests
        ]


class Trainer:
    def __init__(self) -> None:
        self.version, self.taken, self.log = 0, [], []

    def start(self):
        return ref(self.version)

    def accumulate(self, groups):
        self.taken += groups

    def finish_step(self, keep):
        self.log.append(
            (self.version, [g.item for g in self.taken], [self.version - g.oldest_version for g in self.taken], list(keep))
        )
        self.version, self.taken = self.version + 1, []
        return Report(version=self.version, ref=ref(self.version))

    def history(self):
        return self.log


@dataclass
class Records:
    """A sink that keeps everything."""

    events: list[Event] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)
    evaluations: list[EvalRecord] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)

    def event(self, record):
        self.events.append(record)

    def step(self, record):
        self.steps.append(record)

    def sample(self, record):
        self.samples.append(record)

    def evaluation(self, record):
        self.evaluations.append(record)

    def status(self, record):
        self.statuses.append(record)

    def close(self):
        pass


def small(**changes):
    return ControllerConfig(
        **{
            "steps": 12,
            "groups": 3,
            "group_size": 2,
            "max_lag": 1,
            "eval_every": 4,
            "eval_prompts": 3,
            "final_eval_prompts": 5,
            **changes,
        }
    )
