"""The words of the project, one per idea. Every other module imports them from here.

actor        an executor that produces experience: a token generator, an environment worker, an agent
rewarder     an executor that scores trajectories
trainer      the executor that consumes batches and updates networks
controller   the one program that decides what happens next; holds no tensors
trajectory   one response, episode or agent run: tokens with an action mask, behaviour log-probs, version per token
group        the trajectories that share one prompt or start state
item         what the store holds: a group, or a chunk of transitions
slot         permission to have one item between admission and "trained, and the new weights published"
version      integer; version 0 is the initial policy; every publication adds one
lag          trainer version at consumption minus the oldest version that produced any part of the item
behaviour / proximal / current / reference
             the policy that sampled / at the start of the update / being trained / frozen

Shape suffixes: B trajectories of a batch, G trajectories of a group, T positions of one trajectory (or, in a `Batch`, its
action tokens only, padded to the longest).
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freerun.errors import MissingColumn


class Stop(enum.StrEnum):
    """Why a response ended."""

    EOS = "eos"
    STRING = "stop_string"
    LENGTH = "length"
    CONTEXT = "context"


class FailureKind(enum.StrEnum):
    """Which boundary a failed item crossed when it failed."""

    MODEL = "model_error"
    ENVIRONMENT = "environment_error"
    VERIFIER = "verifier_error"
    TIMEOUT = "timeout"
    EXECUTOR = "executor_died"


class Source(enum.StrEnum):
    """Where an item comes from, which decides what may be asked of it at consumption.

    `ROLLOUT` was made by an actor of this run, under the bound on lag. `RECALLED` was too, before a crash whose updates are
    lost: its versions may be above the trainer's. `REPLAY` is a rollout that is used once more. `DATASET` and `EXPERT` were
    made by nobody of this run, and have no versions; `EXPERT` is worth imitating.
    """

    ROLLOUT = "rollout"
    RECALLED = "recalled"
    REPLAY = "replay"
    DATASET = "dataset"
    EXPERT = "expert"


class CachePolicy(enum.StrEnum):
    """What happens to running responses when new weights arrive.

    `KEEP` goes on with keys and values of the old weights, `RECOMPUTE` rebuilds them with the new ones, `FINISH` ends the
    running responses on the old weights before the swap.
    """

    KEEP = "keep"
    RECOMPUTE = "recompute"
    FINISH = "finish"


class Message(NamedTuple):
    """One turn of a chat prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem. `uid` is unique in its dataset; `content` is raw text, or chat turns that the tokenizer's template renders;
    `meta` is JSON-able and reaches the reward function untouched (the answer lives here)."""

    uid: str
    content: str | tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch the truncations off.
    A response ends at the end-of-sequence token, at a stop string (which stays in the tokens), or after `max_tokens`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Order for one group: `num_samples` responses to `prompt`. Sample `i` draws from the counter-based stream
    `(seed, i, position)`, so its tokens depend on nothing that happens to share the batch with it.
    `partial` carries paused trajectories to go on with: it is empty, or holds one entry per sample (`None`: start anew)."""

    item: int
    prompt: Prompt
    num_samples: int
    sampling: Sampling
    seed: int
    partial: tuple["Trajectory | None", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One response with everything that training on it needs.

    tokens_T   int64   prompt and response
    action_T   bool    True where the policy chose the token
    logp_T     float32 behaviour log-prob under the *actual* sampling distribution (temperature and truncations included);
                       0 where `action_T` is False; NaN throughout where nobody knows who sampled
    version_T  int32   policy version that produced the token, stamped by the actor; -1 where `action_T` is False, and where
                       no version of this run did
    routing_LTk  int16  experts that each token went to, by router, in a mixture of experts whose routing is to be replayed;
                       -1 at the last token, which went through no model
    """

    tokens_T: Tensor
    action_T: Tensor
    logp_T: Tensor
    version_T: Tensor
    text: str
    stop: Stop | None
    cache_policy: CachePolicy = CachePolicy.KEEP
    routing_LTk: Tensor | None = None

    @property
    def num_actions(self) -> int:
        return int(self.action_T.sum())

    @property
    def oldest_version(self) -> int:
        return int(self.version_T[self.action_T].min())

    @property
    def newest_version(self) -> int:
        return int(self.version_T[self.action_T].max())


@dataclass(frozen=True, slots=True)
class RewardResult:
    """A finite reward; `parts` are named components for the records, `info` anything JSON-able worth reading later."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """One response to score."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A typed outcome in place of a result: what failed, where (executor, function), why, after how many attempts."""

    kind: FailureKind
    where: str
    message: str
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The finished item of a language task: siblings of one prompt, each scored."""

    item: int
    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    rewards: tuple[RewardResult, ...]
    source: Source = Source.ROLLOUT

    @property
    def oldest_version(self) -> int:
        made_by = [t.version_T[t.action_T] for t in self.trajectories]
        return int(torch.cat(made_by).min())


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An item of a dataset, still in text: responses that no policy of this run made.

    `rewards` has one entry per response, or none if nothing was scored. `logps` has the log-probs of each response's tokens
    under the policy that wrote it, as the trained model's tokenizer cuts it, its end token last; or nothing if they are
    unknown."""

    uid: str
    prompt: Prompt
    responses: tuple[str, ...]
    rewards: tuple[RewardResult, ...] = ()
    logps: tuple[tuple[float, ...], ...] = ()
    source: Source = Source.DATASET


class Column(NamedTuple):
    """What a batch column means: its shape in letters, and one sentence."""

    shape: str
    meaning: str


COLUMNS: Mapping[str, Column] = {
    "mask": Column("BT", "True on real action tokens, False on padding"),
    "mask_rollout": Column("BT", "True on action tokens that are no expert's"),
    "mask_expert": Column("BT", "True on the tokens of expert demonstrations"),
    "mask_selected": Column("BT", "True on the action tokens of trajectories that the algorithm chose in `prepare`"),
    "logp_behaviour": Column("BT", "log-prob of the token under the policy that sampled it, recorded by the actor"),
    "logp_proximal": Column("BT", "log-prob under the policy at the start of the update, recomputed by the trainer"),
    "logp_reference": Column("BT", "log-prob under the frozen reference policy"),
    "logp_previous": Column("BT", "log-prob under the policy before the last step"),
    "entropy_proximal": Column("BT", "entropy of the policy at the start of the update, where the token was predicted"),
    "version": Column("BT", "policy version that produced the token"),
    "lag": Column("BT", "trainer version at consumption minus the token's version"),
    "advantage": Column("BT", "credit of the token, from the algorithm's `credit`"),
    "reward": Column("B", "scalar reward of the trajectory"),
    "group": Column("B", "index of the trajectory's group within the batch"),
    "group_tokens": Column("B", "action tokens of all trajectories of the group"),
    "values": Column("BT", "value estimates at the start of the update"),
    "returns": Column("BT", "targets of the value function"),
    "value_reference": Column("B", "expected reward of the reference policy on the prompt"),
}
"""Columns a batch may have. A new kind of data is a new line here and a producer."""


class Batch(Mapping[str, Tensor]):
    """Immutable columns of a micro-batch. Reading a column that is not there is a `MissingColumn` error, never zeros.

    Raises `KeyError` at construction if a name is not in `known`, the table of columns.
    """

    def __init__(
        self, columns: Mapping[str, Tensor], *, reader: str = "the trainer", known: Mapping[str, Column] = COLUMNS
    ) -> None:
        if unknown := sorted(columns.keys() - known.keys()):
            raise MissingColumn(
                f"batch has columns that no table of columns defines: {', '.join(unknown)}",
                given=unknown,
                expected=sorted(known),
                todo="define the column in freerun/types.py (language) or freerun/transitions.py (control)",
            )
        self._columns, self._reader, self._known = dict(columns), reader, known

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._columns:
            raise MissingColumn(
                f"{self._reader} reads column '{name}', which this batch does not have",
                given=sorted(self._columns),
                expected=f"'{name}' ({self._known[name].meaning})" if name in self._known else name,
                todo=f"declare '{name}' in the algorithm's needs, and use a recipe whose actors and rewards produce it",
            )
        return self._columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def with_columns(self, **columns: Tensor) -> "Batch":
        """A new batch with these columns added or replaced."""
        return Batch({**self._columns, **columns}, reader=self._reader, known=self._known)

    def read_by(self, reader: str) -> "Batch":
        """The same columns, with `reader` named in the error for a missing one."""
        return Batch(self._columns, reader=reader, known=self._known)

    def rows(self, index: Tensor) -> "Batch":
        """The trajectories in `index`, as a new batch."""
        return self.with_columns(**{name: column[index] for name, column in self._columns.items()})


@dataclass(frozen=True, slots=True)
class Mean:
    """A metric that averages: merge adds totals and counts, so micro-batches and ranks weigh by what they counted."""

    total: float
    count: float

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Sum:
    """A metric that adds up."""

    value: float


@dataclass(frozen=True, slots=True)
class Max:
    """A metric of which the largest counts."""

    value: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per integer bucket, such as tokens per lag."""

    counts: Mapping[int, float]

    @property
    def value(self) -> dict[int, float]:
        return dict(sorted(self.counts.items()))


Metric = Mean | Sum | Max | Histogram


def merge(left: Metric, right: Metric) -> Metric:
    """Combine two records of one metric. Raises `TypeError` if they are of different kinds."""
    match left, right:
        case Mean(), Mean():
            return Mean(left.total + right.total, left.count + right.count)
        case Sum(), Sum():
            return Sum(left.value + right.value)
        case Max(), Max():
            return Max(max(left.value, right.value))
        case Histogram(), Histogram():
            keys = set(left.counts) | set(right.counts)
            return Histogram({k: left.counts.get(k, 0.0) + right.counts.get(k, 0.0) for k in keys})
    raise TypeError(f"cannot merge {type(left).__name__} with {type(right).__name__}")


def merge_all(records: "list[Mapping[str, Metric]]") -> dict[str, Metric]:
    """Merge metric mappings name by name."""
    merged: dict[str, Metric] = {}
    for record in records:
        for name, metric in record.items():
            merged[name] = merge(merged[name], metric) if name in merged else metric
    return merged


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRef:
    """Where one published version can be read. Small and picklable: it travels in control messages, the bytes do not.

    `manifest` maps a parameter's name to (dtype, shape, byte offset); `address` is the transport's own; `checksum` is empty
    unless the publisher was asked to compute it.
    """

    version: int
    transport: str
    address: Any
    manifest: Mapping[str, tuple[str, tuple[int, ...], int]]
    num_bytes: int
    checksum: str = ""
