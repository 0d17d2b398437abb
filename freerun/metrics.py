"""What a run reports: the names of all metrics, the records that carry them, and the protocol of those who listen.

One clock: every `seconds`, `start`, `end` and `since` counts from the start of the run. A resumed run goes on counting where
the step it resumed from ended (`RunDirectory.elapsed`), so that curves and timelines join.

The name of a metric is an entry of `METRICS`, or fits one with a part in angle brackets: `loss/policy` fits `loss/<term>`.
`docs/metrics.md` is written from that table by `tools/metrics_table.py`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from freerun.config import nearest
from freerun.errors import ConfigError
from freerun.types import Metric


class Meaning(NamedTuple):
    """What a metric counts in, and one sentence."""

    unit: str
    meaning: str


METRICS: Mapping[str, Meaning] = {
    "reward/mean": Meaning("reward", "mean reward of the trajectories trained on in this step"),
    "reward/std": Meaning("reward", "standard deviation of the reward inside a group, mean over groups"),
    "reward/flat_groups": Meaning("share", "groups whose rewards are all equal, which carry no signal for a group baseline"),
    "reward/<part>": Meaning("reward", "mean of a named component that the reward function returned in `RewardResult.parts`"),
    "heldout/<split>": Meaning("share", "accuracy on problems that training never sees"),
    "judged/<split>": Meaning("reward", "mean return of episodes played with the actions that the policy is judged by"),
    "lag/mean": Meaning("versions", "trainer version at consumption minus the version that made the token or step, mean"),
    "lag/max": Meaning("versions", "largest lag of any token or step; admission bounds it"),
    "lag/collected": Meaning("versions", "versions published while a chunk was being collected with the one before them, mean"),
    "lag/tokens": Meaning("tokens", "histogram: tokens, or steps of rollouts, trained on, per lag"),
    "ratio/mean": Meaning("ratio", "probability under the current policy over probability under the behaviour policy, mean"),
    "ratio/max": Meaning("ratio", "largest such ratio"),
    "ratio/clipped": Meaning("share", "tokens whose ratio the algorithm clipped, truncated or masked"),
    "ess": Meaning("share", "effective sample size of the ratios, (sum w)^2 / (n sum w^2): 1 is on-policy, near 0 is useless"),
    "mismatch/abs_mean": Meaning("nats", "|trainer log-prob - generator log-prob| of sampled tokens, before the update, mean"),
    "mismatch/abs_max": Meaning("nats", "the largest such difference"),
    "mismatch/k3": Meaning("nats", "KL(generator, trainer) by the k3 estimator, r - 1 - log r, mean over tokens"),
    "mismatch/lag0_abs_mean": Meaning("nats", "the mean difference over tokens of lag 0 alone: numerics, not staleness"),
    "entropy": Meaning("nats", "entropy of the policy at the sampled positions, mean over tokens"),
    "kl/reference": Meaning("nats", "KL of the current policy from the frozen reference, estimated on sampled tokens"),
    "kl/behaviour": Meaning("nats", "KL of the behaviour policy from the current one, estimated on sampled tokens"),
    "kl/update": Meaning("nats", "KL of the policy before a natural step from the one after it, mean over its rows"),
    "advantage/mean": Meaning("reward", "mean advantage over tokens"),
    "advantage/abs_mean": Meaning("reward", "mean absolute advantage over tokens: how much signal the step had"),
    "env/return": Meaning("reward", "undiscounted return of the episodes that ended since the last step, as explored, mean"),
    "env/length": Meaning("steps", "steps of those episodes, mean"),
    "env/terminated": Meaning("share", "those episodes that the task ended, rather than time or a failure"),
    "env/episodes": Meaning("episodes", "how many there were"),
    "env/steps": Meaning("steps", "environment steps that actors took since the last step of the trainer"),
    "env/total": Meaning("steps", "environment steps ordered since the start of the run"),
    "env/failures/<kind>": Meaning("failures", "environments that raised or hung since the last step: each cost its episode"),
    "phase": Meaning("index", "phase of the run, from 0"),
    "updates": Meaning("updates", "gradient updates of the step"),
    "loss/<term>": Meaning("loss", "reduced value of a loss term, as it enters the gradient"),
    "algorithm/<name>": Meaning("any", "a quantity that the algorithm defines; its file says what it is"),
    "grad_norm": Meaning("norm", "L2 norm of the gradient before clipping"),
    "grad_norm/<term>": Meaning("norm", "L2 norm of one term's gradient before clipping, at the last update of the step"),
    "lr": Meaning("rate", "learning rate of the step"),
    "tokens/trained": Meaning("tokens", "action tokens that the step trained on"),
    "tokens/computed": Meaning("tokens", "tokens that went through the trainer's network: prompts, responses and padding"),
    "tokens/padding": Meaning("share", "padding among the computed tokens"),
    "tokens/generated": Meaning("tokens", "response tokens that the generators produced since the last step"),
    "tokens/prefilled": Meaning("tokens", "prompt tokens that the generators computed since the last step"),
    "throughput/generator": Meaning("tokens/s", "response tokens produced per second of wall time, all generators"),
    "throughput/trainer": Meaning("tokens/s", "action tokens trained on per second of wall time"),
    "throughput/env": Meaning("steps/s", "environment steps taken per second of wall time, all actors"),
    "throughput/updates": Meaning("updates/s", "gradient updates per second of wall time"),
    "throughput/items": Meaning("items/s", "items trained on per second of wall time"),
    "time/step": Meaning("s", "wall time from the end of the last step to the end of this one"),
    "time/<phase>": Meaning("s", "wall time of the step that went into a named phase of an executor"),
    "idle/<executor>": Meaning("share", "wall time since the last step in which the executor waited for others"),
    "response/length_mean": Meaning("tokens", "action tokens per trajectory, mean"),
    "response/length_max": Meaning("tokens", "action tokens of the longest trajectory"),
    "response/versions": Meaning("versions", "policy versions that took part in one response, mean"),
    "response/stop/<reason>": Meaning("share", "trajectories that ended for this reason: eos, stop_string, length, context"),
    "items/used/<source>": Meaning("items", "items that the step trained on, by where they come from"),
    "items/unused/<source>": Meaning("items", "items given to the step that the algorithm no longer trains on, by source"),
    "items/<state>": Meaning("items", "ledger: items admitted, waiting, in_flight, stored, training, trained or dropped"),
    "items/dropped/<reason>": Meaning("items", "ledger: items given up for this reason, since the start of the run"),
}
"""Every metric: name to unit and meaning. A new metric is a new line here, or an `algorithm/<name>`."""

_PATTERNS = [(re.compile(re.sub(r"<\w+>", ".+", name)), METRICS[name]) for name in sorted(METRICS, reverse=True) if "<" in name]

Values = Mapping[str, float | Mapping[int, float]]
"""Metrics as plain numbers; a histogram is a mapping from bucket to count."""


def describe(name: str) -> Meaning:
    """Unit and meaning of a metric. Raises `ConfigError` for a name that `METRICS` does not have."""
    if name in METRICS:
        return METRICS[name]
    for pattern, info in _PATTERNS:
        if pattern.fullmatch(name):
            return info
    raise ConfigError(
        f"metric '{name}' is not in the table of metrics",
        given=name,
        expected=f"a name of METRICS, such as {nearest(name, METRICS)}",
        todo="correct it, name it algorithm/<name> if one algorithm defines it, or add it to METRICS in freerun/metrics.py",
    )


def plain(metrics: Mapping[str, Metric]) -> dict[str, float | dict[int, float]]:
    """Merged metrics as numbers, in the order of the names. Raises `ConfigError` for an unknown name."""
    for name in metrics:
        describe(name)
    return {name: metrics[name].value for name in sorted(metrics)}


IDLE = "idle"
"""`Event.what` of a span in which an executor waited; `detail["why"]` says why: "waiting for groups 3 to 12"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A span of time in which `executor` did `what` ("generate", "score", "train", "publish", "evaluate", `IDLE`, ...).

    Spans of one executor may overlap; time that no span covers counts as idle for an unknown reason. An instant
    (`start == end`) marks something that happened and is worth a line to the reader: "resumed", "died", "checkpoint".
    """

    executor: str
    what: str
    start: float
    end: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One trainer step. `version` is what the step published, `seconds` when it ended."""

    step: int
    version: int
    seconds: float
    metrics: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """One trajectory that `step` trained on; versions `oldest` to `newest` produced it, `uid` names its prompt."""

    step: int
    item: int
    uid: str
    prompt: str
    completion: str
    reward: float
    oldest: int
    newest: int
    lag: int
    stop: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRecord:
    """Accuracy on `count` problems of `split`, finished at `seconds`, after `step` trainer steps, by versions `oldest` to
    `newest` (equal, unless the weights changed meanwhile)."""

    step: int
    split: str
    accuracy: float
    count: int
    oldest: int
    newest: int
    seconds: float

    @property
    def key(self) -> tuple[int, str]:
        """Which one of a run it is: made again after a crash, it is the same."""
        return self.step, self.split


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """Undiscounted `returns` of episodes played with the actions that `version` is judged by, after `step` trainer steps and
    `taken` environment steps; `length` is their mean length. `score` is the mean return between the references of a random
    (0) and an expert policy (100), where there are any; `picture` the name of a file in `pictures`, or empty."""

    step: int
    split: str
    returns: tuple[float, ...]
    length: float
    version: int
    taken: int
    seconds: float
    score: float | None = None
    picture: str = ""

    @property
    def newest(self) -> int:
        """The version that was judged."""
        return self.version

    @property
    def key(self) -> tuple[int, str, int]:
        """Which one of a run it is: made again after a crash, it is the same."""
        return self.step, self.split, self.taken

    @property
    def mean(self) -> float:
        return sum(self.returns) / len(self.returns)

    @property
    def std(self) -> float:
        """Of the episodes' returns, not of their mean."""
        mean = self.mean
        return math.hypot(*(r - mean for r in self.returns)) / len(self.returns) ** 0.5


Evaluation = EvalRecord | TrialRecord
"""How well a policy does: on problems with answers, or in episodes."""


def evaluation_of(row: Mapping[str, Any]) -> Evaluation:
    """An evaluation from a line of `evals.jsonl`. Raises `KeyError`, `TypeError` or `ValueError` if it is none."""
    if "returns" not in row:
        return EvalRecord(
            step=int(row["step"]),
            split=str(row["split"]),
            accuracy=float(row["accuracy"]),
            count=int(row["count"]),
            oldest=int(row["oldest"]),
            newest=int(row["newest"]),
            seconds=float(row["seconds"]),
        )
    returns = tuple(map(float, row["returns"]))
    if not returns:
        raise ValueError("a trial of no episodes")
    return TrialRecord(
        step=int(row["step"]),
        split=str(row["split"]),
        returns=returns,
        length=float(row["length"]),
        version=int(row["version"]),
        taken=int(row["taken"]),
        seconds=float(row["seconds"]),
        score=None if row["score"] is None else float(row["score"]),
        picture=str(row["picture"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStatus:
    """What an executor is doing ("decoding 48 responses"), or why it does nothing ("waiting for 3 groups"), and since when."""

    state: Literal["busy", "idle"]
    what: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The run at one moment. `items` are the ledger's counts by state ("waiting", "in_flight", "stored", ...)."""

    step: int
    total_steps: int
    seconds: float
    executors: Mapping[str, ExecutorStatus]
    items: Mapping[str, int] = field(default_factory=dict)


class Sink(Protocol):
    """Somebody who listens to a run. Calls come from one thread, in the order of what happened, and return at once.

    A sink that cannot keep a record raises a `FreerunError`, which stops the run: records are never lost silently.
    """

    def event(self, record: Event) -> None: ...

    def step(self, record: StepRecord) -> None: ...

    def sample(self, record: SampleRecord) -> None: ...

    def evaluation(self, record: Evaluation) -> None: ...

    def status(self, record: Status) -> None:
        """A fresh picture for live views; it need not be kept."""
        ...

    def close(self) -> None:
        """No more records. Safe to call twice."""
        ...


class Fanout:
    """A `Sink` that passes every record on to each of `sinks`, in order. `close` closes all of them, even if one raises."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = tuple(sinks)

    def event(self, record: Event) -> None:
        for sink in self._sinks:
            sink.event(record)

    def step(self, record: StepRecord) -> None:
        for sink in self._sinks:
            sink.step(record)

    def sample(self, record: SampleRecord) -> None:
        for sink in self._sinks:
            sink.sample(record)

    def evaluation(self, record: Evaluation) -> None:
        for sink in self._sinks:
            sink.evaluation(record)

    def status(self, record: Status) -> None:
        for sink in self._sinks:
            sink.status(record)

    def close(self) -> None:
        with ExitStack() as stack:
            for sink in reversed(self._sinks):
                stack.callback(sink.close)
